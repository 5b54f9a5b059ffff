"""What an agent waits for and when it does something about it next: a session, told to people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from node_agent.domain.standing import Phase, Session

_AWAITED: Final = {
    Phase.UNJOINED: "the server to accept this node's attestation",
    Phase.RENEWING: "the server to renew the agent's own SVID",
    Phase.JOINED: "the agent's own SVID to be due for renewal",
}


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is waited for, and in how many seconds the agent acts by itself; None when it cannot or is at it."""

    waits_for: str
    seconds: float | None = None


def outlook_of(session: Session, now: float) -> Outlook:
    """What this session waits for at the time `now` on its own line."""
    wake = session.wake_at
    seconds = None if wake is None else max(0.0, wake - now)
    if session.phase is Phase.REJECTED:
        return Outlook("the ban to be lifted (`identity-server agent evict`) and a restart of this agent")
    if session.turned_away_since is not None:
        return _turned_away(session, seconds)
    if session.advice:
        return Outlook(session.advice, seconds)
    if session.doubt_since is not None:
        return _doubtful(session, now, seconds)
    return Outlook(_AWAITED[session.phase], seconds)


def _turned_away(session: Session, seconds: float | None) -> Outlook:
    if session.has_evidence:
        return Outlook("the server to take the agent's own SVID again, or this node's attestation", seconds)
    return Outlook(f"the server to take the agent's own SVID again; if it lost it, {session.advice}", seconds)


def _doubtful(session: Session, now: float, seconds: float | None) -> Outlook:
    ripe = session.bootstrap_at
    if ripe is None:
        text = (
            "a server that the bundle proves; if its authorities were replaced, write its bundle to trust_bundle_path, "
            'set rebootstrap_mode = "auto" and restart this agent'
        )
        return Outlook(text, seconds)
    if now < ripe:
        return Outlook("a server that the bundle proves, or the end of rebootstrap_delay", max(0.0, ripe - now))
    return Outlook("a server that the bundle or trust_bundle_path proves", seconds)
