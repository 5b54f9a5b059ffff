"""What an audit record says (architecture A16): who did what, to what, from where, with what outcome.

Events are values; the sink turns them into one JSON line each, and adds when it was, in which request, and who called
from where. What is about to happen (administrative writes, everything about the authority) has the outcome "begun" and
stands in the file before its effect; what became of it follows as a second line. Leaf certificates and tokens are
queued before the signature leaves, the end of each call is queued too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from json.encoder import encode_basestring_ascii as _quoted
from operator import attrgetter
from typing import ClassVar, Final, Self

from spiffe_core.errors import IdentityError, Kind

BEGUN: Final = "begun"
"""About to happen; the outcome follows."""
DONE: Final = "done"
REFUSED: Final = "refused"
"""It did not happen because of what was asked, or of who asked."""
ATTESTED: Final = "attested"
"""The verdict on a node that proved itself."""
FAILED: Final = "failed"
"""It did not happen, or nobody knows whether it did, because of us or of the database."""
MAX_REASON = 512

_OURS: Final = frozenset({Kind.UNAVAILABLE, Kind.INTERNAL})


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Base of all events. Field values are text, whole numbers and tuples of text, never secrets.

    `revision_number` is the registration entry's; None where there is none to tell.
    """

    event: ClassVar[str] = "event"
    flushed: ClassVar[bool] = True
    issues: ClassVar[bool] = False
    """True for what was signed: with `audit.strict` it is written before it leaves."""
    outcome: str = field(default="", kw_only=True)
    reason: str = field(default="", kw_only=True)

    @property
    def precedes(self) -> bool:
        """True if the line has to stand before the effect."""
        return self.flushed and self.outcome in {"", BEGUN}

    def ended(self, error: BaseException | None = None) -> Self:
        """The same event with what became of it."""
        return self.told(*outcome_of(error))

    def told(self, outcome: str, reason: str = "") -> Self:
        """The same event with this outcome. `dataclasses.replace` takes three times as long, twice for each entry."""
        values_of, put = _SLOTS.get(type(self)) or _slots_of(type(self))
        made = object.__new__(type(self))
        for write, value in zip(put, values_of(self), strict=True):
            write(made, value)
        object.__setattr__(made, "outcome", outcome)
        object.__setattr__(made, "reason", reason)
        return made


def outcome_of(error: BaseException | None) -> tuple[str, str]:
    """The outcome and the reason to record for an action that ended so."""
    if error is None:
        return DONE, ""
    if isinstance(error, IdentityError):
        return FAILED if error.kind in _OURS else REFUSED, error.public[:MAX_REASON]
    return FAILED, "it was interrupted; whether it took effect shows in what follows"


_Slots = tuple[Callable[[AuditEvent], tuple[object, ...]], tuple[Callable[[AuditEvent, object], None], ...]]
_SLOTS: dict[type[AuditEvent], _Slots] = {}
"""Kind of event -> what reads its fields and what writes each of them: made once for each."""


def _slots_of(kind: type[AuditEvent]) -> _Slots:
    names = [item.name for item in fields(kind)]
    slots = _SLOTS[kind] = attrgetter(*names), tuple(getattr(kind, name).__set__ for name in names)
    return slots


_Shape = tuple[str, tuple[str, ...], Callable[[AuditEvent], tuple[object, ...]]]
_SHAPES: dict[type[AuditEvent], _Shape] = {}
"""Kind of event -> its first member, how each further one begins, and what reads their values: made once for each."""


def members_of(event: AuditEvent) -> str:
    """An event as the members of a JSON object, its name first, empty ones left out.

    Two lines are written about each call, and nearly all of it is text: the encoder would be set up anew for each
    value.
    """
    first, labels, values_of = _SHAPES.get(type(event)) or _shape_of(type(event))
    parts = [first]
    for label, value in zip(labels, values_of(event), strict=True):
        if type(value) is str:
            if value:
                parts.append(label + _quoted(value))
        elif type(value) is int:
            parts.append(f"{label}{value}")
        elif type(value) is tuple and value:
            parts.append(f"{label}[{','.join(map(_quoted, value))}]")
    return "".join(parts)


def _shape_of(kind: type[AuditEvent]) -> _Shape:
    names = [item.name for item in fields(kind)]
    labels = tuple(f',"{name}":' for name in names)
    shape = _SHAPES[kind] = f'"event":{_quoted(kind.event)}', labels, attrgetter(*names)
    return shape


@dataclass(frozen=True, slots=True)
class AuthorityChanged(AuditEvent):
    """An authority was prepared, activated, retired, tainted, revoked or removed, or its key destroyed by an order.

    `actor` is empty for the schedule.
    """

    event: ClassVar[str] = "authority"
    change: str
    authority_id: str
    not_after: int = 0
    slot: str = ""
    server_id: str = ""
    actor: str = ""


@dataclass(frozen=True, slots=True)
class AuthorityOrdered(AuditEvent):
    """All servers were told to take a step with their authorities, or one of them was given up for good."""

    event: ClassVar[str] = "authority_order"
    change: str
    actor: str
    kind: str = ""
    order_id: str = ""
    server_id: str = ""


@dataclass(frozen=True, slots=True)
class EntryChanged(AuditEvent):
    """A registration entry was created, updated or deleted."""

    event: ClassVar[str] = "entry"
    change: str
    entry_id: str
    actor: str
    spiffe_id: str = ""
    parent_id: str = ""
    revision_number: int | None = None


@dataclass(frozen=True, slots=True)
class BundleChanged(AuditEvent):
    """Authorities were added to the own trust bundle, or the bundle of another trust domain was changed or deleted."""

    event: ClassVar[str] = "bundle"
    change: str
    trust_domain: str
    actor: str
    authority_ids: str = ""
    mode: str = ""
    """Of a deletion: what becomes of the entries that federate with the trust domain."""


@dataclass(frozen=True, slots=True)
class RelationshipChanged(AuditEvent):
    """A federation relationship was created, updated or deleted, or an invitation was made (of us) or accepted."""

    event: ClassVar[str] = "federation"
    change: str
    trust_domain: str
    actor: str
    endpoint_url: str = ""
    endpoint_spiffe_id: str = ""


@dataclass(frozen=True, slots=True)
class LogLevelChanged(AuditEvent):
    """An administrator turned the log's level."""

    event: ClassVar[str] = "log_level"
    level: str
    actor: str


@dataclass(frozen=True, slots=True)
class AgentChanged(AuditEvent):
    """An agent was banned or deleted."""

    event: ClassVar[str] = "agent"
    change: str
    spiffe_id: str
    actor: str


@dataclass(frozen=True, slots=True)
class AgentAttested(AuditEvent):
    """The verdict on a node attestation; it is written before the answer leaves."""

    event: ClassVar[str] = "attestation"
    attestation_type: str
    actor: str
    spiffe_id: str = ""
    serial: str = ""

    @property
    def precedes(self) -> bool:
        """Whatever the verdict is, it stands before the agent hears of it."""
        return True


@dataclass(frozen=True, slots=True)
class JoinTokenCreated(AuditEvent):
    """A join token was made. The token itself is not recorded, only the first bytes of its SHA-256."""

    event: ClassVar[str] = "join_token"
    digest_prefix: str
    expires_at: int
    actor: str
    alias: str = ""


@dataclass(frozen=True, slots=True)
class SvidIssued(AuditEvent):
    """A leaf certificate was signed. `entry_id` is empty for agent and minted SVIDs."""

    event: ClassVar[str] = "x509_svid"
    flushed: ClassVar[bool] = False
    issues: ClassVar[bool] = True
    profile: str
    spiffe_id: str
    serial: str
    not_after: int
    actor: str
    entry_id: str = ""
    revision_number: int | None = None


@dataclass(frozen=True, slots=True)
class TokenIssued(AuditEvent):
    """A JWT-SVID or WIT-SVID was signed: everything about it but the token. `entry_id` is empty for minted ones."""

    event: ClassVar[str] = "token"
    flushed: ClassVar[bool] = False
    issues: ClassVar[bool] = True
    profile: str
    spiffe_id: str
    key_id: str
    expires_at: int
    actor: str
    audience: tuple[str, ...] = ()
    jti: str = ""
    entry_id: str = ""
    revision_number: int | None = None


@dataclass(frozen=True, slots=True)
class CallRefused(AuditEvent):
    """A caller asked for one thing among others that it may not have, or in a way that cannot work."""

    event: ClassVar[str] = "refused"
    flushed: ClassVar[bool] = False
    method: str
    actor: str
    entry_id: str = ""
    spiffe_id: str = ""


@dataclass(frozen=True, slots=True)
class CallEnded(AuditEvent):
    """A call of the server's API ended, whatever it was about; `status` is gRPC's word for it."""

    event: ClassVar[str] = "call"
    flushed: ClassVar[bool] = False
    method: str
    status: str
    milliseconds: int = 0
