"""Why a workload gets what it gets: the chain from the socket to the signature, and the first link that is broken.

The decision is the one that serves workloads (`spiffe_core.entitlement`), asked for its reasons (architecture A10).
`explain` is pure: what was found goes in, the answer comes out. Codes are stable; docs/explain.md has their table.
"""

from __future__ import annotations

import enum
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from spiffe_core.entitlement import Verdict
from spiffe_core.entitlement import explain as verdicts_on
from spiffe_core.entry import RegistrationEntry
from spiffe_core.selectors import Selector, canonical

NEAREST = 3
"""So many of the entries that come closest are shown."""
STALE_SECONDS = 60.0
"""An agent that has not heard from its server for so long may lack an entry that exists."""


class Code(enum.Enum):
    """The root causes. The value is the code; the comment beside it stands in the table of the docs."""

    SERVED = "MUN-I000"
    BANNED = "MUN-E101"
    NOT_JOINED = "MUN-E102"
    NEVER_SYNCED = "MUN-E103"
    OUT_OF_TOUCH = "MUN-E104"
    NO_PROCESS = "MUN-E201"
    ATTESTATION_FAILED = "MUN-E202"
    ATTESTOR_FAILED = "MUN-E203"
    NO_ENTRIES = "MUN-E301"
    SELECTOR_DIFFERS = "MUN-E302"
    SELECTOR_MISSING = "MUN-E303"
    TYPE_NOT_ATTESTED = "MUN-E304"
    NOTHING_CLOSE = "MUN-E305"
    ENTRY_EXPIRED = "MUN-E306"
    WRONG_PARENT = "MUN-E307"
    UNKNOWN_AGENT = "MUN-E308"
    STORED_ONLY = "MUN-E401"
    SIGNING_REFUSED = "MUN-E402"
    SVID_ENDED = "MUN-E403"
    BEING_FETCHED = "MUN-E404"


MEANINGS: Mapping[Code, str] = {
    Code.SERVED: "the workload is served",
    Code.BANNED: "the agent is banned: it has forgotten everything and serves nobody",
    Code.NOT_JOINED: "the agent has no identity of its own, so it knows no entries",
    Code.NEVER_SYNCED: "the agent has not read its entries from the server yet",
    Code.OUT_OF_TOUCH: "the agent has not heard from its server for a while: a newer entry may exist",
    Code.NO_PROCESS: "there is no such process, or it has ended",
    Code.ATTESTATION_FAILED: "no attestor could tell anything about the process",
    Code.ATTESTOR_FAILED: "the attestor that would find what an entry asks for has failed",
    Code.NO_ENTRIES: "no entry names this agent, or a group it is in, as its parent",
    Code.SELECTOR_DIFFERS: "an entry asks for another value of a selector",
    Code.SELECTOR_MISSING: "an entry asks for a selector that the process does not have",
    Code.TYPE_NOT_ATTESTED: "an entry asks for a type of selector that this agent attests nobody by",
    Code.NOTHING_CLOSE: "no entry of this agent comes close",
    Code.ENTRY_EXPIRED: "the entry that matches has expired",
    Code.WRONG_PARENT: "the entry that matches is another agent's, or a group's that this node is not in",
    Code.UNKNOWN_AGENT: "the server knows no such agent",
    Code.STORED_ONLY: "the entry that matches is for a secret store (store_svid) and is not served here",
    Code.SIGNING_REFUSED: "the server did not sign for the entry that matches",
    Code.SVID_ENDED: "the SVID has ended and could not be renewed",
    Code.BEING_FETCHED: "the entry matches, and its SVID is on its way",
}
"""One line for each code, for the table in the docs."""


class Outcome(enum.Enum):
    """How a step ended."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Step:
    """One link of the chain. `details` are lines below it."""

    name: str
    outcome: Outcome
    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """The whole answer: `cause` is the first line, `fix` the last."""

    code: Code
    cause: str
    fix: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """What one attestor said: selectors with notes, or an error."""

    name: str
    selectors: frozenset[Selector] = frozenset()
    notes: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """How the agent stands. Ages are in seconds, None for never."""

    agent_id: str = ""
    unknown: bool = False
    """The server has no such agent; `why` is the id that looks most like it."""
    banned: bool = False
    member: bool = False
    why: str = ""
    waits_for: str = ""
    ready: bool = False
    pushed: bool = False
    position: str = ""
    synced_before: float | None = None
    sync_trouble: str = ""


@dataclass(frozen=True, slots=True)
class Issue:
    """What is held for one entry: when its SVID ends, or why there is none ("" if it is on its way)."""

    ends: datetime | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """How many entries match below other parents, one of these parents, and that entry if it may be shown."""

    count: int
    parent_id: str
    entry: RegistrationEntry | None = None


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that was found about one workload. `process` is "" for one that is only thought of."""

    agent: AgentFacts
    process: str = ""
    no_process: str = ""
    asked: tuple[Asked, ...] = ()
    selectors: frozenset[Selector] | None = None
    """None if there are none, because attestation failed as a whole."""
    types: frozenset[str] = frozenset()
    """The types of selectors that this agent's attestors make."""
    entries: tuple[RegistrationEntry, ...] = ()
    elsewhere: Elsewhere | None = None
    """Entries that match and are not this agent's."""
    signed: bool = True
    """Whether SVIDs are looked at; the server only tells who is entitled to one."""
    issues: Mapping[str, Issue] = field(default_factory=dict)
    """What is held for the entries, by id."""


def explain(found: Findings, now: datetime) -> Explanation:
    """The chain, the root cause and what would mend it."""
    seconds = now.timestamp()
    steps = [_agent(found.agent), *_process(found), _entries(found)]
    verdicts = verdicts_on(found.entries, found.selectors or frozenset()) if found.selectors is not None else ()
    live = [one for one in verdicts if not _expired(one.entry, seconds)]
    matched = [one.entry for one in live if one.matched]
    nearest = _nearest(live)
    if found.selectors is not None:
        steps.append(_match(matched, nearest))
    if found.elsewhere is not None and not matched:
        steps.append(_others(found.elsewhere))
    if matched and found.signed:
        steps.append(_signing(matched, found.issues, now))
    gone = [one.entry for one in verdicts if one.matched and _expired(one.entry, seconds)]
    code, cause, fix = (
        _agent_cause(found.agent)
        or _process_cause(found)
        or (_issue_cause(matched, found, now) if matched else _no_match(found, nearest, gone))
    )
    return Explanation(code, cause, fix, tuple(steps))


Cause = tuple[Code, str, str]


def _agent(agent: AgentFacts) -> Step:
    if agent.unknown:
        return Step("agent", Outcome.FAILED, MEANINGS[Code.UNKNOWN_AGENT])
    if agent.banned or not agent.member or not agent.ready:
        text = MEANINGS[Code.BANNED if agent.banned else Code.NOT_JOINED if not agent.member else Code.NEVER_SYNCED]
        return Step("agent", Outcome.FAILED, text, tuple(filter(None, (agent.why, agent.sync_trouble))))
    way = f"pushed, at {agent.position}" if agent.pushed else "polled"
    age = "never" if agent.synced_before is None else f"{agent.synced_before:.0f} s ago"
    details = (f"entries: {way}; last heard from the server {age}", *filter(None, (agent.sync_trouble,)))
    return Step("agent", Outcome.OK, agent.agent_id, details)


def _process(found: Findings) -> Iterable[Step]:
    if found.no_process:
        yield Step("process", Outcome.FAILED, found.no_process)
        return
    if not found.process:
        yield Step("process", Outcome.SKIPPED, "the selectors were given", _lines(found.selectors or ()))
        return
    yield Step("process", Outcome.OK, found.process)
    for one in found.asked:
        if one.error:
            yield Step(f"attestor {one.name}", Outcome.FAILED, one.error)
        else:
            text = f"{len(one.selectors)} selectors" if one.selectors else "nothing to say about this process"
            yield Step(f"attestor {one.name}", Outcome.OK, text, (*_lines(one.selectors), *one.notes))


def _entries(found: Findings) -> Step:
    count = len(found.entries)
    outcome = Outcome.OK if count else Outcome.FAILED
    return Step("entries", outcome, f"this agent is authorised for {count}")


def _match(matched: Sequence[RegistrationEntry], nearest: Sequence[Verdict[RegistrationEntry]]) -> Step:
    if matched:
        return Step("match", Outcome.OK, f"{len(matched)} match", tuple(_named(one) for one in matched))
    return Step("match", Outcome.FAILED, "none matches", tuple(line for one in nearest for line in _miss(one)))


def _signing(matched: Sequence[RegistrationEntry], issues: Mapping[str, Issue], now: datetime) -> Step:
    lines, good = [], False
    for entry in matched:
        issue = issues.get(entry.id, Issue())
        if entry.store_svid:
            lines.append(f"{entry.spiffe_id}: not served here (store_svid)")
        elif issue.ends is not None:
            good = good or issue.ends > now
            word = "good until" if issue.ends > now else "ended at"
            lines.append(f"{entry.spiffe_id}: {word} {issue.ends:%Y-%m-%d %H:%M:%S} UTC")
        else:
            lines.append(f"{entry.spiffe_id}: {issue.refused or 'on its way'}")
    return Step("SVID", Outcome.OK if good else Outcome.FAILED, "held" if good else "none is held", tuple(lines))


def _agent_cause(agent: AgentFacts) -> Cause | None:
    if agent.unknown:
        text = f"the server knows no agent {agent.agent_id}"
        return (
            Code.UNKNOWN_AGENT,
            f"{text}; the closest is {agent.why}" if agent.why else text,
            "identity-server agent list",
        )
    if agent.banned:
        fix = f"identity-server agent evict -spiffeID {agent.agent_id or 'ID'}, then restart the agent"
        return Code.BANNED, MEANINGS[Code.BANNED], fix
    if not agent.member:
        text = f"the agent has not joined its trust domain: {agent.why}" if agent.why else MEANINGS[Code.NOT_JOINED]
        return Code.NOT_JOINED, text, f"the agent waits for {agent.waits_for}" if agent.waits_for else "see its log"
    if not agent.ready:
        text = MEANINGS[Code.NEVER_SYNCED]
        return (
            Code.NEVER_SYNCED,
            f"{text}: {agent.sync_trouble}" if agent.sync_trouble else text,
            ("node-agent healthcheck --verbose shows what it waits for"),
        )
    return None


def _process_cause(found: Findings) -> Cause | None:
    if found.no_process:
        return Code.NO_PROCESS, found.no_process, "give the number that `ps` shows where the agent runs (hostPID)"
    if found.selectors is None:
        broken = next((one for one in found.asked if one.error), None)
        detail = f": {broken.name}: {broken.error}" if broken is not None else ""
        return Code.ATTESTATION_FAILED, f"{MEANINGS[Code.ATTESTATION_FAILED]}{detail}", "put right what it names"
    return None


def _issue_cause(matched: Sequence[RegistrationEntry], found: Findings, now: datetime) -> Cause:
    served = [one for one in matched if not one.store_svid]
    if not served:
        one = matched[0]
        fix = (
            f"identity-server entry create -spiffeID {one.spiffe_id} -parentID {one.parent_id} {_flags(one.selectors)}"
        )
        return Code.STORED_ONLY, f"{_named(one)} is for a secret store (store_svid) and is not served here", fix
    if not found.signed:
        names = ", ".join(str(one.spiffe_id) for one in served)
        return Code.SERVED, f"a workload with these selectors is entitled to {names}", "nothing to mend"
    held = {one.id: found.issues.get(one.id, Issue()) for one in served}
    good = [one for one in served if (ends := held[one.id].ends) is not None and ends > now]
    if good:
        names = ", ".join(str(one.spiffe_id) for one in good)
        return Code.SERVED, f"the workload is served: {names}", "nothing to mend"
    refused = next((one for one in served if held[one.id].refused), None)
    if refused is not None:
        text = f"the server did not sign for {refused.spiffe_id}: {held[refused.id].refused}"
        return Code.SIGNING_REFUSED, text, "the server's log and audit log tell more; the agent tries again by itself"
    ended = next((one for one in served if held[one.id].ends is not None), None)
    if ended is not None:
        trouble = f": {found.agent.sync_trouble}" if found.agent.sync_trouble else ""
        text = f"the SVID of {ended.spiffe_id} has ended and could not be renewed{trouble}"
        return Code.SVID_ENDED, text, "make the server reachable; the agent renews by itself"
    return Code.BEING_FETCHED, f"the SVID of {served[0].spiffe_id} is on its way", "ask again in a moment"


def _no_match(
    found: Findings, nearest: Sequence[Verdict[RegistrationEntry]], gone: Sequence[RegistrationEntry]
) -> Cause:
    create = (
        f"identity-server entry create -parentID {found.agent.agent_id} -spiffeID ID {_flags(found.selectors or ())}"
    )
    if gone:
        entry = gone[0]
        fix = f"identity-server entry update -entryID {entry.id} ... -entryExpiry SECONDS"
        return Code.ENTRY_EXPIRED, f"{_named(entry)} matches, and has expired", fix
    age = found.agent.synced_before
    if age is not None and age > STALE_SECONDS and found.agent.sync_trouble:
        text = f"no entry that the agent knows matches, and it has not heard from the server for {age:.0f} s"
        return Code.OUT_OF_TOUCH, f"{text}: {found.agent.sync_trouble}", "make the server reachable"
    closest = _closest(found, nearest)
    if found.elsewhere is not None and (closest is None or closest[0] is not Code.SELECTOR_DIFFERS):
        return _wrong_parent(found.elsewhere, found.agent.agent_id)
    if not found.entries:
        text = f"no entry names {found.agent.agent_id}, or a group it is in, as its parent"
        return Code.NO_ENTRIES, text, create
    return closest or (Code.NOTHING_CLOSE, MEANINGS[Code.NOTHING_CLOSE], create)


def with_elsewhere(answer: Explanation, elsewhere: Elsewhere, agent_id: str) -> Explanation:
    """An earlier answer, now that the server has told of entries that match and are not this agent's."""
    if answer.code not in _NO_MATCH:
        return answer
    code, cause, fix = _wrong_parent(elsewhere, agent_id)
    return Explanation(code, cause, fix, (*answer.steps, _others(elsewhere)))


def _others(elsewhere: Elsewhere) -> Step:
    text = f"{elsewhere.count} entries match below other parents, such as {elsewhere.parent_id}"
    return Step("other parents", Outcome.FAILED, text)


_NO_MATCH = {Code.NO_ENTRIES, Code.NOTHING_CLOSE, Code.SELECTOR_MISSING, Code.TYPE_NOT_ATTESTED}


def _wrong_parent(elsewhere: Elsewhere, agent_id: str) -> Cause:
    entry = elsewhere.entry
    if entry is None:
        count = "an entry matches" if elsewhere.count == 1 else f"{elsewhere.count} entries match"
        text = f"{count} below another parent, {elsewhere.parent_id}; this agent is {agent_id}"
        return Code.WRONG_PARENT, text, f"identity-server entry show -parentID {elsewhere.parent_id}"
    text = f"{_named(entry)} matches, and its parent is {entry.parent_id}; this agent is {agent_id}"
    fix = f"identity-server entry update -entryID {entry.id} -parentID {agent_id} -spiffeID {entry.spiffe_id} "
    return Code.WRONG_PARENT, text, fix + _flags(entry.selectors)


def _closest(found: Findings, nearest: Sequence[Verdict[RegistrationEntry]]) -> Cause | None:
    """What keeps the workload from the entry that comes closest; None if none comes close."""
    close = [one for one in nearest if len(one.missing) < len(one.entry.selectors) or _same_type(one)]
    if not close:
        return None
    best = close[0]
    missing = best.missing[0]
    failed = next((one for one in found.asked if one.error and one.name == missing.type), None)
    if failed is not None:
        text = f"{_named(best.entry)} asks for {missing}, and the {failed.name} attestor failed: {failed.error}"
        return Code.ATTESTOR_FAILED, text, "put right what the attestor says; nothing else is wrong with the entry"
    if found.types and missing.type not in found.types:
        text = f"{_named(best.entry)} asks for {missing}, and this agent has no attestor {missing.type}"
        return Code.TYPE_NOT_ATTESTED, text, f"add [attestors.{missing.type}] to the agent's settings"
    update = (
        f"identity-server entry update -entryID {best.entry.id} -parentID {best.entry.parent_id} "
        f"-spiffeID {best.entry.spiffe_id} "
    )
    there = _counterpart(missing, best.surplus)
    if there is not None:
        selectors = (best.entry.selectors - {missing}) | {there}
        text = f"{_named(best.entry)} asks for {missing}; the workload has {there}"
        return Code.SELECTOR_DIFFERS, text, update + _flags(selectors)
    text = f"{_named(best.entry)} asks for {missing}, which the workload does not have"
    return Code.SELECTOR_MISSING, text, update + _flags(best.entry.selectors - {missing} or (missing,))


def _nearest(verdicts: Sequence[Verdict[RegistrationEntry]]) -> list[Verdict[RegistrationEntry]]:
    """Those that miss the least; of equals those with a counterpart of what is missing, then by id."""

    def distance(one: Verdict[RegistrationEntry]) -> tuple[int, int, str]:
        apart = sum(_counterpart(selector, one.surplus) is None for selector in one.missing)
        return len(one.missing), apart, one.entry.id

    return sorted((one for one in verdicts if not one.matched), key=distance)[:NEAREST]


def _same_type(verdict: Verdict[RegistrationEntry]) -> bool:
    return any(_counterpart(selector, verdict.surplus) is not None for selector in verdict.missing)


def _counterpart(missing: Selector, surplus: Iterable[Selector]) -> Selector | None:
    """What the workload has in place of `missing`: the same type and the same key, another value."""
    key = _key(missing)
    return next((one for one in surplus if _key(one) == key), None)


def _key(selector: Selector) -> tuple[str, str]:
    return selector.type, selector.value.partition(":")[0]


def _expired(entry: RegistrationEntry, now: float) -> bool:
    return bool(entry.expires_at) and entry.expires_at <= now


def _named(entry: RegistrationEntry) -> str:
    return f"entry {entry.id} ({entry.spiffe_id})"


def _miss(verdict: Verdict[RegistrationEntry]) -> Iterable[str]:
    yield f"nearest: {_named(verdict.entry)}"
    for selector in verdict.missing:
        there = _counterpart(selector, verdict.surplus)
        yield f"  asks for {selector}" + (f"; there is {there}" if there is not None else "; there is no such selector")


def _lines(selectors: Iterable[Selector]) -> tuple[str, ...]:
    return tuple(map(str, canonical(selectors)))


def _flags(selectors: Iterable[Selector]) -> str:
    return " ".join(f"-selector {shlex.quote(str(one))}" for one in canonical(selectors))
