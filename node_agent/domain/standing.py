"""Where an agent stands with its server: the state that `domain.session` moves.

Times are seconds on a line of its own.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from node_agent.domain.retries import FIRST_RETRY
from spiffe_core.errors import Reason


class Phase(enum.Enum):
    """Where the agent stands with its server."""

    UNJOINED = "unjoined"
    JOINED = "joined"
    RENEWING = "renewing"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Session:
    """Where the agent stands, and when it will next do something about it.

    `patience` is how many seconds a server may stay unproven before a bootstrap, None for ever; `doubt_since` is when
    it began to be. `unused` tells whether the evidence at hand may be good still, `bootstrapping` whether the attempt
    under way is a bootstrap, `lapsed` whether the membership ended by the clock alone. `turned_away_since` is since
    when a proven server has not taken the own SVID. `advice` is what the operator should do about `why`, and `reason`
    the kind of it where something was not believed.
    """

    phase: Phase = Phase.UNJOINED
    generation: int = 0
    renew_at: float = 0.0
    expires_at: float = 0.0
    reattestable: bool = False
    busy: bool = False
    failures: int = 0
    retry_at: float = 0.0
    issued_at: float = float("-inf")
    why: str = "not joined yet"
    advice: str = ""
    reason: Reason | None = None
    patience: float | None = None
    doubt_since: float | None = None
    turned_away_since: float | None = None
    unused: bool = True
    bootstrapping: bool = False
    lapsed: bool = False

    @property
    def is_member(self) -> bool:
        """Whether calls with the own SVID can be expected to work."""
        return self.phase in {Phase.JOINED, Phase.RENEWING}

    @property
    def is_known(self) -> bool:
        """Whether the server can be expected to know this agent; what was compared with it before is void otherwise."""
        return self.is_member and self.turned_away_since is None

    @property
    def bootstrap_at(self) -> float | None:
        """When the doubt about the server will have lasted long enough; None if there is none or it never will."""
        if self.patience is None or self.doubt_since is None:
            return None
        return self.doubt_since + self.patience

    @property
    def attest_anew_at(self) -> float | None:
        """When the server will have turned the own SVID away for long enough; None if it takes it."""
        return None if self.turned_away_since is None else self.turned_away_since + FIRST_RETRY

    @property
    def wake_at(self) -> float | None:
        """When a `Tick` can next change something; None when only another event can."""
        if self.phase is Phase.REJECTED or self.busy:
            return None
        if self.phase is Phase.JOINED:
            ripe = (self.bootstrap_at, self.attest_anew_at) if self.has_evidence else ()
            return min((self.renew_at, *(one for one in ripe if one is not None)))
        if self.phase is Phase.RENEWING:
            return min(self.retry_at, self.expires_at)
        return self.retry_at

    @property
    def has_evidence(self) -> bool:
        """Whether an attestation may work."""
        return self.reattestable or self.unused

    def bootstraps(self, now: float) -> bool:
        """Whether an attempt made now is a bootstrap."""
        ripe = self.bootstrap_at
        return ripe is not None and now >= ripe and self.has_evidence

    def attests_anew(self, now: float) -> bool:
        """Whether an attempt made now is an attestation because the server does not take the own SVID."""
        ripe = self.attest_anew_at
        return ripe is not None and now >= ripe and self.has_evidence
