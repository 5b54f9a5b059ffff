"""What happens to an agent's membership, and what it can do about it: the words `domain.session` is made of.

Times are seconds on a line that never goes back (`services.steady_time`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from spiffe_core.errors import Reason, Refusal


class Trouble(enum.Enum):
    """Why an attempt failed, as far as it changes what to do next."""

    PASSING = "passing"
    """The server could not be reached, or answered with something that may work later."""
    CREDENTIAL = "credential"
    """The evidence was refused or there is none: only an operator can help."""
    UNPROVEN = "unproven"
    """Whoever answers as the server is proven by nothing this agent believes."""
    TURNED_AWAY = "turned away"
    """The server is proven and does not take the agent's own SVID."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class Obtained:
    """An SVID is at hand: `fresh` from the server, or restored at start."""

    renew_at: float
    expires_at: float
    reattestable: bool
    fresh: bool = True


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """The Join or Renew under way did not work. `jitter` in [-1, 1] spreads the next one.

    `advice` tells the operator what to do; it matters when the trouble is the credential. `one_use` says that the same
    evidence is never judged differently (a join token): only other evidence is worth a frequent attempt. `reason` is
    why the server, or its answer, was not believed.
    """

    trouble: Trouble
    why: str
    jitter: float
    refusal: Refusal | None = None
    advice: str = ""
    one_use: bool = False
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """Another call was refused for a reason agents act on (spire_wire section 2)."""

    refusal: Refusal
    generation: int


@dataclass(frozen=True, slots=True)
class Replace:
    """The own SVID should not be used longer than it takes to get another (its authority was tainted)."""

    why: str


@dataclass(frozen=True, slots=True)
class CredentialChanged:
    """The operator provided new evidence: whatever the back-off says, it is worth an attempt now."""


@dataclass(frozen=True, slots=True)
class ServerUnproven:
    """Another call found a server that nothing in the believed bundle proves: its authorities or itself changed."""

    why: str


@dataclass(frozen=True, slots=True)
class ServerProven:
    """Another call reached a server that the believed bundle proves."""


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """Another call found a server that is proven, and that ends every connection which shows the own SVID.

    `advice` is what the operator should do if there is no evidence to attest anew with.
    """

    why: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class StillGood:
    """The wall clock says that the own SVID has life left: it was set back since the end of it was reckoned."""

    renew_at: float
    expires_at: float


Event = (
    Tick
    | Obtained
    | AttemptFailed
    | Refused
    | Replace
    | CredentialChanged
    | ServerUnproven
    | ServerProven
    | TurnedAway
    | StillGood
)


@dataclass(frozen=True, slots=True)
class Join:
    """Attest to the server. With `anew`, what the operator configured for first contact proves it as well."""

    anew: bool = False


@dataclass(frozen=True, slots=True)
class Renew:
    """Ask for a new SVID with the present one (RenewAgent)."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop every key and SVID, in memory and on disk, and end every workload stream."""


@dataclass(frozen=True, slots=True)
class Say:
    """Tell the operator. `grave` marks what will not mend itself."""

    text: str
    grave: bool = False


Command = Join | Renew | Forget | Say
