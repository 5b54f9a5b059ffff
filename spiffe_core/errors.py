"""Every way this system says no.

    IdentityError                 kind, public text, facts for the log
    ├── InvalidRequest            the request can never work; names the field and the rule
    │   ├── InvalidId  InvalidSelector  InvalidEntry  InvalidCsr
    │   └── InvalidCertificate  InvalidBundle  InvalidAddress
    ├── ConfigError               a configuration file or flag is wrong; names file, key and rule
    ├── VerificationFailed        an SVID or a chain does not prove what it claims (see Reason)
    ├── Unauthenticated           nobody we know
    ├── Forbidden                 known, and not allowed
    │   ├── AgentRefused          with SPIRE's reason, on which agents act
    │   └── NoIdentityIssued      a workload that matches no registration entry
    ├── NotFound  Conflict  PreconditionFailed  Unimplemented
    ├── Unavailable               try again later
    │   └── Unbelieved            somebody was reached and did not prove itself (see Reason)
    ├── Exhausted                 a bound was reached
    │   └── TooFast               a bound on the rate; says when to come back
    ├── CorruptState              a file or row is not what we wrote; names the path and what to do
    └── Internal                  our fault

`public` may be shown to the caller; `facts` go to the log only. A message that a person may see says what to do next.
The gRPC and HTTP codes stand in `spiffe_core.wire.status`, nowhere else.
"""

from __future__ import annotations

import enum
from typing import Final


class Kind(enum.Enum):
    """The classes of failure a caller can tell apart."""

    INVALID = "invalid"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not-found"
    CONFLICT = "conflict"
    PRECONDITION = "precondition"
    EXHAUSTED = "exhausted"
    UNAVAILABLE = "unavailable"
    UNIMPLEMENTED = "unimplemented"
    INTERNAL = "internal"


class Refusal(enum.Enum):
    """Why an agent's call was refused: `spire.api.types.PermissionDeniedDetails.Reason`, by number."""

    AGENT_EXPIRED = 1
    AGENT_NOT_ATTESTED = 2
    AGENT_NOT_ACTIVE = 3
    AGENT_BANNED = 4
    AGENT_MUST_REATTEST = 5


class Reason(enum.Enum):
    """Why a chain or a token was not believed; the words appear in logs and in `VerificationFailed.reason`."""

    EMPTY_CHAIN = "empty-chain"
    TOO_LARGE = "too-large"
    MALFORMED = "malformed"
    NOT_A_LEAF = "not-a-leaf"
    NO_SPIFFE_ID = "no-spiffe-id"
    BAD_SPIFFE_ID = "bad-spiffe-id"
    NO_BUNDLE = "no-bundle"
    EMPTY_BUNDLE = "empty-bundle"
    UNKNOWN_AUTHORITY = "unknown-authority"
    BAD_SIGNATURE = "bad-signature"
    EXPIRED = "expired"
    REVOKED = "revoked"
    NOT_YET_VALID = "not-yet-valid"
    BAD_CA = "bad-ca"
    PATH_TOO_LONG = "path-too-long"
    UNKNOWN_CRITICAL = "unknown-critical-extension"
    NAME_CONSTRAINT = "name-constraint"
    KEY_USAGE = "key-usage"
    EXTENDED_KEY_USAGE = "extended-key-usage"
    WEAK_ALGORITHM = "weak-algorithm"
    UNEXPECTED_ID = "unexpected-id"
    BAD_HEADER = "bad-header"
    BAD_CLAIM = "bad-claim"
    UNEXPECTED_AUDIENCE = "unexpected-audience"
    OTHER_TRUST_DOMAIN = "other-trust-domain"
    """The other side proves itself, or may, for a trust domain that is not the one expected."""


OUT_OF_TIME: Final = frozenset({Reason.EXPIRED, Reason.NOT_YET_VALID})
"""What was not believed for its dates: either they, or this machine's clock, are wrong."""


class IdentityError(Exception):
    """Base of all refusals. `public` may be shown to a caller; `facts` go to the log only."""

    kind: Kind = Kind.INTERNAL

    def __init__(self, public: str, **facts: object) -> None:
        super().__init__(public)
        self.public = public
        self.facts = facts


class InvalidRequest(IdentityError):
    """The request can never work. `field` names the offending field when one is to blame."""

    kind = Kind.INVALID

    def __init__(self, public: str, *, field: str = "", **facts: object) -> None:
        super().__init__(public, **facts)
        self.field = field


class InvalidId(InvalidRequest):
    """Not a SPIFFE ID or trust domain name (SPIFFE-ID section 2)."""


class InvalidSelector(InvalidRequest):
    """Not a selector."""


class InvalidEntry(InvalidRequest):
    """A registration entry breaks a rule."""


class InvalidCsr(InvalidRequest):
    """A certificate signing request breaks a rule."""


class InvalidCertificate(InvalidRequest):
    """A certificate or key cannot be read or is not of an allowed kind."""


class InvalidBundle(InvalidRequest):
    """A trust bundle or bundle document cannot be read."""


class InvalidAddress(InvalidRequest):
    """Not a Workload Endpoint address (SPIFFE Workload Endpoint section 4)."""


class ConfigError(InvalidRequest):
    """A configuration file or flag is wrong."""


class VerificationFailed(IdentityError):
    """An SVID does not prove what it claims."""

    kind = Kind.UNAUTHENTICATED

    def __init__(self, public: str, reason: Reason, **facts: object) -> None:
        super().__init__(public, **facts)
        self.reason = reason


class Unauthenticated(IdentityError):
    """The caller is nobody we know."""

    kind = Kind.UNAUTHENTICATED


class Forbidden(IdentityError):
    """The caller is known and may not do this."""

    kind = Kind.FORBIDDEN


class AgentRefused(Forbidden):
    """An agent was refused for a reason it must act on (spire_wire section 2)."""

    def __init__(self, refusal: Refusal, **facts: object) -> None:
        super().__init__(refusal.name.lower().replace("_", " "), **facts)
        self.refusal = refusal


class NoIdentityIssued(Forbidden):
    """No registration entry matches the workload.

    The caller learns an id to ask an administrator with, nothing more.
    """

    def __init__(self, refusal_id: str = "", **facts: object) -> None:
        super().__init__(f"no identity issued ({refusal_id})" if refusal_id else "no identity issued", **facts)


class NotFound(IdentityError):
    """The thing asked for does not exist."""

    kind = Kind.NOT_FOUND


class Conflict(IdentityError):
    """It exists already. `existing` is what stands in the way, when the caller may see it."""

    kind = Kind.CONFLICT

    def __init__(self, public: str, *, existing: object = None, **facts: object) -> None:
        super().__init__(public, **facts)
        self.existing = existing


class PreconditionFailed(IdentityError):
    """The right request at the wrong moment."""

    kind = Kind.PRECONDITION


class Exhausted(IdentityError):
    """A bound on size, count or rate was reached."""

    kind = Kind.EXHAUSTED


class TooFast(Exhausted):
    """A bound on the rate was reached. `retry_after` is in how many seconds the same request would be served."""

    def __init__(self, public: str, *, retry_after: float = 0.0, **facts: object) -> None:
        super().__init__(public, **facts)
        self.retry_after = retry_after


class Unavailable(IdentityError):
    """Try again later."""

    kind = Kind.UNAVAILABLE


class Unbelieved(Unavailable):
    """Whoever was to be asked was reached, and did not prove itself."""

    def __init__(self, public: str, reason: Reason, **facts: object) -> None:
        super().__init__(public, **facts)
        self.reason = reason


class Unimplemented(IdentityError):
    """This build or configuration does not offer it."""

    kind = Kind.UNIMPLEMENTED


class CorruptState(IdentityError):
    """A file or row is not what we wrote. Never repaired silently: the message names the path and what to do."""

    kind = Kind.PRECONDITION


class Internal(IdentityError):
    """Our fault."""
