"""The agent's life as a value: events in, commands out, nothing done here.

Theory of operation
===================

A session says whether this agent is a member of its trust domain and what it should do about that::

              Obtained                    renewal due, Replace, MUST_REATTEST
    UNJOINED ----------> JOINED --------------------------------------------> RENEWING
        ^                   ^                     Obtained                        |
        |                   +-----------------------------------------------------+
        |                   |                                                     |
        +-------------------+---- own SVID expired, or the server refused it -----+
                            |
                            +---- AGENT_BANNED (from any phase) ----> REJECTED

- *UNJOINED*: no SVID the server accepts. The only thing to do is attest, again and again with back-off.
- *JOINED*: the SVID is good; nothing to do before `renew_at`.
- *RENEWING*: the SVID is good still and a new one is being asked for: by RenewAgent, or by attesting anew when the
  node's evidence may be used again.
- *REJECTED*: banned. Keys and SVIDs are forgotten at once and the agent stays up and says so; only an operator
  and a restart lead out of it.

`step` takes the session, one event and the time, and returns the next session and the commands for the service
around it: `Join`, `Renew`, `Forget`, `Say`. At most one attempt (Join or Renew) is under way at a time; its end comes
back as `Obtained` or `AttemptFailed`. `wake_at` is when the next `Tick` can matter.

Refusals carry the generation of the SVID they were about: a late refusal of an SVID that was replaced in the meantime
says nothing about the present one. A ban is about the agent and counts always.

Nothing here ends the process and nothing here takes SVIDs away from workloads, except a ban (architecture A19).
Times are seconds on a line that never goes back (`services.steady_time`), so that no clock jump makes a storm of
attempts.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from spiffe_core.errors import Refusal

FIRST_RETRY = 5.0
"""Seconds before the second attempt; each further wait is 1.5 times the one before (spire_features section 16.1)."""
LONGEST_RETRY = 480.0
"""Seconds between attempts at most."""
SHORTEST_RETRY = 1.0
"""Seconds between attempts at least, however short the SVID's remaining life is."""


class Phase(enum.Enum):
    """Where the agent stands with its server."""

    UNJOINED = "unjoined"
    JOINED = "joined"
    RENEWING = "renewing"
    REJECTED = "rejected"


class Trouble(enum.Enum):
    """Why an attempt failed, as far as it changes what to do next."""

    PASSING = "passing"
    """The server could not be reached, or answered with something that may work later."""
    CREDENTIAL = "credential"
    """The evidence was refused or there is none: only an operator can help."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class Obtained:
    """An SVID is at hand: `fresh` from the server, or restored at start. Times are on the steady line."""

    renew_at: float
    expires_at: float
    reattestable: bool
    fresh: bool = True


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """The Join or Renew under way did not work. `jitter` in [-1, 1] spreads the next one.

    `advice` tells the operator what to do; it matters when the trouble is the credential.
    """

    trouble: Trouble
    why: str
    jitter: float
    refusal: Refusal | None = None
    advice: str = ""


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


Event = Tick | Obtained | AttemptFailed | Refused | Replace | CredentialChanged


@dataclass(frozen=True, slots=True)
class Join:
    """Attest to the server."""


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

BANNED = (
    "this agent is banned by the server: all keys and SVIDs were deleted and nothing is served any more; "
    "when the ban was lifted on the server (`identity-server agent evict`), restart the agent to join anew"
)


@dataclass(frozen=True, slots=True)
class Session:
    """Where the agent stands, and when it will next do something about it."""

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

    @property
    def is_member(self) -> bool:
        """Whether calls with the own SVID can be expected to work."""
        return self.phase in {Phase.JOINED, Phase.RENEWING}

    @property
    def wake_at(self) -> float | None:
        """When a `Tick` can next change something; None when only another event can."""
        if self.phase is Phase.REJECTED or self.busy:
            return None
        if self.phase is Phase.JOINED:
            return self.renew_at
        if self.phase is Phase.RENEWING:
            return min(self.retry_at, self.expires_at)
        return self.retry_at


def step(session: Session, event: Event, now: float) -> tuple[Session, tuple[Command, ...]]:
    """What `event` makes of the session, and what is to be done."""
    if session.phase is Phase.REJECTED:
        return session, ()
    match event:
        case Obtained():
            return _obtained(session, event, now), ()
        case AttemptFailed():
            return _failed(session, event, now)
        case Refused():
            is_about_present = event.generation == session.generation or event.refusal is Refusal.AGENT_BANNED
            return _refused(session, event.refusal, now) if is_about_present else (session, ())
        case Tick():
            session = _expire(session, now)
        case Replace() if session.phase is Phase.JOINED:
            session = replace(session, phase=Phase.RENEWING, retry_at=now, why=event.why)
        case CredentialChanged() if session.phase is Phase.UNJOINED:
            session = replace(session, retry_at=now)
    return _act(session, now)


def retry_delay(failures: int, jitter: float, *, longest: float = LONGEST_RETRY) -> float:
    """Seconds to wait after the n-th failure in a row, +-10 % by `jitter`."""
    grown = FIRST_RETRY * 1.5 ** min(max(failures - 1, 0), 40)
    return max(SHORTEST_RETRY, min(grown, longest)) * (1 + 0.1 * jitter)


def _obtained(session: Session, event: Obtained, now: float) -> Session:
    return Session(
        phase=Phase.JOINED,
        generation=session.generation + 1,
        renew_at=event.renew_at,
        expires_at=event.expires_at,
        reattestable=event.reattestable,
        issued_at=now if event.fresh else float("-inf"),
        why="",
    )


def _expire(session: Session, now: float) -> Session:
    if session.is_member and not session.busy and now >= session.expires_at:
        return replace(session, phase=Phase.UNJOINED, retry_at=now, failures=0, why="the agent's own SVID has expired")
    return session


def _act(session: Session, now: float) -> tuple[Session, tuple[Command, ...]]:
    """Begin the attempt that is due, if one is."""
    if session.busy:
        return session, ()
    if session.phase is Phase.JOINED and now >= session.renew_at:
        session = replace(session, phase=Phase.RENEWING, retry_at=now, why="")
    if session.phase is Phase.JOINED or now < session.retry_at:
        return session, ()
    by_renewal = session.phase is Phase.RENEWING and not session.reattestable
    return replace(session, busy=True), (Renew() if by_renewal else Join(),)


def _failed(session: Session, event: AttemptFailed, now: float) -> tuple[Session, tuple[Command, ...]]:
    session = replace(session, busy=False, failures=session.failures + 1)
    decisive = event.refusal is Refusal.AGENT_BANNED or session.phase is Phase.RENEWING
    if event.refusal is not None and decisive:
        return _refused(session, event.refusal, now)
    longest = LONGEST_RETRY
    if session.phase is Phase.RENEWING:
        longest = min(longest, (session.expires_at - now) / 6)
    session = replace(
        session, retry_at=now + retry_delay(session.failures, event.jitter, longest=longest), why=event.why
    )
    grave = event.trouble is Trouble.CREDENTIAL
    text = f"{event.why}; {event.advice}" if grave and event.advice else event.why
    return session, (Say(text, grave=grave),)


def _refused(session: Session, refusal: Refusal, now: float) -> tuple[Session, tuple[Command, ...]]:
    if refusal is Refusal.AGENT_BANNED:
        rejected = replace(session, phase=Phase.REJECTED, busy=False, why=BANNED)
        return rejected, (Forget(), Say(BANNED, grave=True))
    if not session.is_member:
        return session, ()
    wait = _pause(session, now)
    if refusal is Refusal.AGENT_MUST_REATTEST:
        why = "the server wants this agent to attest anew instead of renewing"
        session = replace(session, phase=Phase.RENEWING, reattestable=True, retry_at=now + wait, why=why)
        return _with_note(_act(session, now), why)
    why = f"the server does not accept this agent's SVID any more ({refusal.name}): attesting anew"
    session = replace(session, phase=Phase.UNJOINED, retry_at=now + wait, why=why)
    return _with_note(_act(session, now), why)


def _pause(session: Session, now: float) -> float:
    """Seconds before a refused agent attests anew: none, unless that is what it has just done in vain."""
    if session.failures > 1:
        return retry_delay(session.failures - 1, 0.0)
    return FIRST_RETRY if now - session.issued_at < FIRST_RETRY else 0.0


def _with_note(outcome: tuple[Session, tuple[Command, ...]], text: str) -> tuple[Session, tuple[Command, ...]]:
    session, commands = outcome
    return session, (Say(text), *commands)
