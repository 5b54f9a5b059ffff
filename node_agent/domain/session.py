"""The agent's life as a value: events in, commands out, nothing done here.

Theory of operation
===================

A session says whether this agent is a member of its trust domain and what it should do about that::

              Obtained                    renewal due, Replace, MUST_REATTEST, server unproven for too long
    UNJOINED ----------> JOINED --------------------------------------------> RENEWING
       ^ |                ^ ^                     Obtained                        |
       | |  StillGood     | +-----------------------------------------------------+
       | +----------------+                                                       |
       +---------------------- own SVID expired, or the server refused it --------+
                              |
                              +---- AGENT_BANNED (from any phase) ----> REJECTED

- *UNJOINED*: no SVID the server accepts. The only thing to do is attest, again and again with back-off.
- *JOINED*: the SVID is good; nothing to do before `renew_at`.
- *RENEWING*: the SVID is good still and a new one is being asked for: by RenewAgent, or by attesting anew when the
  node's evidence may be used again.
- *REJECTED*: banned. Keys and SVIDs are forgotten at once and the agent stays up and says so; only an operator
  and a restart lead out of it.

Beside the phase stands a doubt: since when whoever answers as the server has been proven by nothing this agent
believes. Where the operator allowed it (`patience`), a doubt that lasts makes the next attempt a bootstrap: a `Join`
that takes what is configured for first contact as proof too (SPIRE's `rebootstrap_mode`). What was believed is believed
until such an attempt has worked, so that a server that was only impostured for a while is found again. A bootstrap
takes evidence that may be used again, or evidence that has not been used.

A second doubt is whether the server knows this agent: it is proven, but ends each connection that shows the own SVID
before it says a word, because its bundle lacks the authority behind it (a database restored from an older backup). A
server that is only a moment behind does the same, so it must last for FIRST_RETRY. Then the agent attests anew if its
evidence may work; with a used token it goes on trying what it has, and says that a new one is needed.

`step` takes the session, one event and the time, and returns the next session and the commands for the service
around it: `Join`, `Renew`, `Forget`, `Say`. At most one attempt (Join or Renew) is under way at a time; its end comes
back as `Obtained` or `AttemptFailed`. `wake_at` is when the next `Tick` can matter.

Refusals carry the generation of the SVID they were about: a late refusal of an SVID that was replaced in the meantime
says nothing about the present one. A ban is about the agent and counts always.

Nothing here ends the process and nothing here takes SVIDs away from workloads, except a ban (architecture A19). No wait
between two attempts that may work is longer than LONGEST_RETRY, so that an agent is back within a minute of the end of
its trouble. Times are seconds on a line that never goes back (`services.steady_time`), so that no clock jump makes a
storm of attempts.
"""

from __future__ import annotations

from dataclasses import replace

from node_agent.domain.events import (
    AttemptFailed,
    Command,
    CredentialChanged,
    Event,
    Forget,
    Join,
    Obtained,
    Refused,
    Renew,
    Replace,
    Say,
    ServerProven,
    ServerUnproven,
    StillGood,
    Tick,
    Trouble,
    TurnedAway,
)
from node_agent.domain.retries import FIRST_RETRY, LONGEST_HOPELESS, LONGEST_RETRY, retry_delay
from node_agent.domain.standing import Phase, Session
from spiffe_core.errors import Reason, Refusal

BANNED = (
    "this agent is banned by the server: all keys and SVIDs were deleted and nothing is served any more; "
    "when the ban was lifted on the server (`identity-server agent evict`), restart the agent to join anew"
)


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
    session, notes = _noted(session, event, now)
    session, commands = _act(session, now)
    return session, (*notes, *commands)


def _noted(session: Session, event: Event, now: float) -> tuple[Session, tuple[Command, ...]]:
    """The session with what `event` says about it, before anything is done about it."""
    match event:
        case ServerUnproven():
            return _doubt(session, event.why, now)
        case TurnedAway():
            return _turned_away(session, event, now)
        case ServerProven():
            session = _welcomed(replace(session, doubt_since=None))
        case Tick():
            session = _expire(session, now)
        case Replace() if session.phase is Phase.JOINED:
            session = replace(session, phase=Phase.RENEWING, retry_at=now, why=event.why, reason=None)
        case CredentialChanged():
            session = replace(session, unused=True)
            if not session.is_member or session.bootstraps(now) or session.attests_anew(now):
                session = replace(session, retry_at=now)
        case StillGood() if session.is_member or session.lapsed:
            phase = session.phase if session.is_member else Phase.JOINED
            session = replace(session, phase=phase, lapsed=False, why="", reason=None)
            session = replace(session, renew_at=event.renew_at, expires_at=event.expires_at)
    return session, ()


def _obtained(session: Session, event: Obtained, now: float) -> Session:
    return Session(
        phase=Phase.JOINED,
        generation=session.generation + 1,
        renew_at=event.renew_at,
        expires_at=event.expires_at,
        reattestable=event.reattestable,
        issued_at=now if event.fresh else float("-inf"),
        why="",
        patience=session.patience,
        unused=event.reattestable,
    )


def _doubt(session: Session, why: str, now: float) -> tuple[Session, tuple[Command, ...]]:
    """Note that the server is not proven; said once for each doubt."""
    if session.doubt_since is not None:
        return session, ()
    session = replace(session, doubt_since=now)
    if session.patience is None:
        return session, (Say(f"{why}; this agent will not bootstrap again by itself (rebootstrap_mode)", grave=True),)
    return session, (Say(f"{why}; if that lasts for {session.patience:.0f} s the agent bootstraps again"),)


def _turned_away(session: Session, event: TurnedAway, now: float) -> tuple[Session, tuple[Command, ...]]:
    """Note that a server that is proven does not take the own SVID; said once."""
    session = replace(session, doubt_since=None)
    if not session.is_member or session.turned_away_since is not None:
        return session, ()
    session = replace(session, turned_away_since=now, why=event.why, advice=event.advice, reason=None)
    if session.has_evidence:
        return session, (Say(f"{event.why}; if that lasts for {FIRST_RETRY:.0f} s this agent attests anew"),)
    return session, (Say(f"{event.why}; {event.advice}", grave=True),)


def _welcomed(session: Session) -> Session:
    if session.turned_away_since is None:
        return session
    return replace(session, turned_away_since=None, why="", advice="", reason=None)


def _expire(session: Session, now: float) -> Session:
    if session.is_member and not session.busy and now >= session.expires_at:
        why = "the agent's own SVID has expired"
        session = replace(session, phase=Phase.UNJOINED, retry_at=now, failures=0, why=why, reason=Reason.EXPIRED)
        return replace(session, lapsed=True, turned_away_since=None)
    return session


def _act(session: Session, now: float) -> tuple[Session, tuple[Command, ...]]:
    """Begin the attempt that is due, if one is."""
    if session.busy:
        return session, ()
    anew, unknown = session.bootstraps(now), session.attests_anew(now)
    if session.phase is Phase.JOINED and (anew or unknown or now >= session.renew_at):
        why = "the server is proven by nothing this agent believes: bootstrapping again" if anew else ""
        session = replace(session, phase=Phase.RENEWING, retry_at=now)
        session = session if unknown else replace(session, why=why, reason=None)
    if session.phase is Phase.JOINED or now < session.retry_at:
        return session, ()
    by_renewal = session.phase is Phase.RENEWING and not session.reattestable and not anew and not unknown
    session = replace(session, busy=True, bootstrapping=anew)
    return session, (Renew() if by_renewal else Join(anew),)


def _failed(session: Session, event: AttemptFailed, now: float) -> tuple[Session, tuple[Command, ...]]:
    by_believed = not session.bootstrapping
    session = replace(session, busy=False, bootstrapping=False, failures=session.failures + 1)
    grave = event.trouble is Trouble.CREDENTIAL
    notes: tuple[Command, ...] = ()
    kept = session.advice if session.turned_away_since is not None and not session.has_evidence else ""
    if event.trouble is Trouble.UNPROVEN:
        session, notes = _doubt(session, event.why, now)
    elif event.trouble is Trouble.TURNED_AWAY:
        session, notes = _turned_away(session, TurnedAway(event.why, event.advice), now)
        kept = session.advice
    elif by_believed and (event.refusal is not None or grave):
        session = replace(session, doubt_since=None)  # refused by a server that is proven
    decisive = event.refusal is Refusal.AGENT_BANNED or session.phase is Phase.RENEWING
    if event.refusal is not None and decisive:
        return _refused(session, event.refusal, now)
    hopeless = grave and event.one_use
    longest = LONGEST_HOPELESS if hopeless and not session.is_member else LONGEST_RETRY
    if session.phase is Phase.RENEWING:
        longest = min(longest, (session.expires_at - now) / 6)
    session = replace(
        session,
        retry_at=now + retry_delay(session.failures, event.jitter, longest=longest),
        why=event.why,
        reason=event.reason,
        advice=event.advice if grave else kept,
        unused=session.unused and not hopeless,
    )
    text = f"{event.why}; {event.advice}" if grave and event.advice else event.why
    return session, notes or (Say(text, grave=grave),)


def _refused(session: Session, refusal: Refusal, now: float) -> tuple[Session, tuple[Command, ...]]:
    if refusal is Refusal.AGENT_BANNED:
        rejected = replace(session, phase=Phase.REJECTED, busy=False, why=BANNED, reason=None)
        return rejected, (Forget(), Say(BANNED, grave=True))
    if not session.is_member:
        return session, ()
    wait = _pause(session, now)
    if refusal is Refusal.AGENT_MUST_REATTEST:
        why = "the server wants this agent to attest anew instead of renewing"
        session = replace(session, phase=Phase.RENEWING, reattestable=True, retry_at=now + wait, why=why, reason=None)
        return _with_note(_act(session, now), why)
    why = f"the server does not accept this agent's SVID any more ({refusal.name}): attesting anew"
    session = replace(session, phase=Phase.UNJOINED, retry_at=now + wait, why=why, reason=None)
    session = replace(session, doubt_since=None, turned_away_since=None)
    return _with_note(_act(session, now), why)


def _pause(session: Session, now: float) -> float:
    """Seconds before a refused agent attests anew: none, unless that is what it has just done in vain."""
    if session.failures > 1:
        return retry_delay(session.failures - 1, 0.0)
    return FIRST_RETRY if now - session.issued_at < FIRST_RETRY else 0.0


def _with_note(outcome: tuple[Session, tuple[Command, ...]], text: str) -> tuple[Session, tuple[Command, ...]]:
    session, commands = outcome
    return session, (Say(text), *commands)
