"""How the agent is: decided from facts (reliability R16, R20; SPIRE's subsystem `agent` in spire_features section 10).

The agent serves workloads while it is a member of its trust domain and has read its entries once. A server that is away
is a trouble that is shown: workloads keep what they have, and get new SVIDs when it is back.
"""

from __future__ import annotations

from dataclasses import dataclass

from spiffe_core.health import Condition, Part, Report, loop_part


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known at one moment; durations in seconds.

    `phase` is the session's, `why` its last trouble, `waits_for` what would end it, and `acts_in` when the agent next
    does something about it by itself. `runway` is how long the agent's own SVID is still good, None without one.
    `doubt` is for how long the server has not been proven by the bundle. `synced_before` is how long ago the last sync
    worked, None before the first; `sync_trouble` why the last did not, `syncs_in` when the next is made. `unsaved` says
    why the agent's state could not be stored. `attestors` names those that could not ask whom they ask, and why.
    """

    draining: bool = False
    phase: str = "unjoined"
    member: bool = False
    banned: bool = False
    why: str = ""
    waits_for: str = ""
    acts_in: float | None = None
    doubt: float | None = None
    runway: float | None = None
    ready: bool = False
    in_touch: bool = False
    synced_before: float | None = None
    sync_trouble: str = ""
    syncs_in: float | None = None
    unsaved: str = ""
    attestors: tuple[tuple[str, str], ...] = ()
    streams: int = 0
    loop_lag: float = 0.0
    loop_blocked: bool = False


def report_of(facts: Facts) -> Report:
    """Every part, in a fixed order."""
    loop = loop_part(facts.loop_lag, blocked=facts.loop_blocked)
    return Report((_agent(facts), _svid(facts), _sync(facts), _state(facts), _attestors(facts), loop))


def _agent(facts: Facts) -> Part:
    detail = {"streams": facts.streams}
    if facts.draining:
        return Part("agent", Condition.FAILED, "the agent is stopping", detail)
    if facts.member and not facts.ready:
        text = "the entries have not been read from the server yet"
        text = f"{text}: {facts.sync_trouble}" if facts.sync_trouble else text
        return Part("agent", Condition.FAILED, text, detail)
    return Part("agent", detail=detail)


def _svid(facts: Facts) -> Part:
    detail: dict[str, object] = {
        "phase": facts.phase,
        "runway_seconds": max(0, round(facts.runway or 0.0)),
        "waits_for": facts.waits_for,
        **_in("next_try_seconds", facts.acts_in),
        **_in("server_unproven_seconds", facts.doubt),
    }
    if facts.banned:
        return Part("agent.svid", Condition.FAILED, "the agent is banned: everything was forgotten", detail)
    if not facts.member:
        text = facts.why or "the agent has not joined its trust domain; see the log"
        return Part("agent.svid", Condition.FAILED, text, detail)
    if facts.runway is not None and facts.runway <= 0.0:
        text = "the agent's own SVID has ended and could not be renewed"
        return Part("agent.svid", Condition.DEGRADED, text, detail)
    if facts.doubt is not None:
        text = "whoever answers as the server is proven by nothing this agent believes; workloads keep what they have"
        return Part("agent.svid", Condition.DEGRADED, text, detail)
    if facts.why:
        return Part("agent.svid", Condition.DEGRADED, facts.why, detail)
    return Part("agent.svid", detail=detail)


def _sync(facts: Facts) -> Part:
    before = facts.synced_before
    detail = {**_in("last_sync_seconds", before), **_in("next_try_seconds", facts.syncs_in)}
    if facts.member and facts.ready and not facts.in_touch:
        text = "the server cannot be reached; workloads keep what they have"
        text = f"{text}: {facts.sync_trouble}" if facts.sync_trouble else text
        return Part("agent.sync", Condition.DEGRADED, text, detail)
    return Part("agent.sync", detail=detail)


def _state(facts: Facts) -> Part:
    if facts.unsaved:
        text = f"the agent's state is not stored, a restart would lose it; it is tried again: {facts.unsaved}"
        return Part("agent.state", Condition.DEGRADED, text)
    return Part("agent.state")


def _attestors(facts: Facts) -> Part:
    """Those that ask somebody else: fewer selectors never match more, so the agent stays ready."""
    if facts.attestors:
        troubles = "; ".join(f"{name}: {trouble}" for name, trouble in facts.attestors)
        text = f"{troubles}; entries that need these selectors match nobody meanwhile"
        return Part("agent.attestors", Condition.DEGRADED, text)
    return Part("agent.attestors")


def _in(name: str, seconds: float | None) -> dict[str, object]:
    return {} if seconds is None else {name: round(seconds)}
