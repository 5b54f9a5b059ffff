"""Why a workload gets what it gets: the chain from the socket to the signature, and the first link that is broken.

The decision is the one that serves workloads (`spiffe_core.entitlement`), asked for its reasons (architecture A10).
`explain` is pure: what was found goes in, the answer comes out. The values are in `explanation_facts`, the codes in
`explanation_codes`, how the root cause is chosen in `root_cause`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from spiffe_core.entitlement import explain as verdicts_on
from spiffe_core.entry import RegistrationEntry
from spiffe_core.explanation_codes import MEANINGS, Code
from spiffe_core.explanation_facts import (
    AgentFacts,
    ContainerExplanation,
    Elsewhere,
    Explanation,
    Findings,
    Issue,
    Outcome,
    Step,
)
from spiffe_core.mending import named
from spiffe_core.near_misses import Miss, nearest_of, told
from spiffe_core.root_cause import agent_cause, issue_cause, no_match, process_cause, wrong_parent
from spiffe_core.selectors import Selector, canonical

_NODE_NAME = "spiffe_id"
"""The type of the one selector that every agent has: its own SPIFFE ID."""


def explain(found: Findings, now: datetime) -> Explanation:
    """The chain, the root cause and what would mend it."""
    seconds = now.timestamp()
    found = _of_workloads(found)
    steps = [_agent(found.agent), *_process(found), _entries(found)]
    verdicts = verdicts_on(found.entries, found.selectors or frozenset()) if found.selectors is not None else ()
    live = [one for one in verdicts if not _expired(one.entry, seconds)]
    matched = [one.entry for one in live if one.matched]
    nearest = nearest_of(live)
    if found.selectors is not None:
        steps.append(_match(matched, nearest))
    if found.elsewhere is not None and not matched:
        steps.append(_others(found.elsewhere))
    if matched and found.signed:
        steps.append(_signing(matched, found.issues, now))
    gone = [one.entry for one in verdicts if one.matched and _expired(one.entry, seconds)]
    code, cause, fix = (
        agent_cause(found.agent)
        or process_cause(found)
        or (issue_cause(matched, found, now) if matched else no_match(found, nearest, gone))
    )
    return Explanation(code, cause, fix, tuple(steps))


def _of_workloads(found: Findings) -> Findings:
    """Without the entries that only name the agent: no process ever has their selectors."""
    names = tuple(one for one in found.entries if all(part.type == _NODE_NAME for part in one.selectors))
    if not names:
        return found
    others = tuple(one for one in found.entries if one not in names)
    return replace(found, entries=others, node_names=tuple(sorted(str(one.spiffe_id) for one in names)))


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
    if found.process:
        yield Step("process", Outcome.OK, found.process)
    elif found.container:
        yield Step("container", Outcome.OK, found.container)
    else:
        yield Step("process", Outcome.SKIPPED, "the selectors were given", _lines(found.selectors or ()))
        return
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


def _match(matched: Sequence[RegistrationEntry], nearest: Sequence[Miss]) -> Step:
    if matched:
        return Step("match", Outcome.OK, f"{len(matched)} match", tuple(named(one) for one in matched))
    return Step("match", Outcome.FAILED, "none matches", tuple(line for one in nearest for line in told(one)))


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


def explain_no_pod(agent: AgentFacts, code: Code, cause: str, fix: str) -> Explanation:
    """The answer about a pod that cannot be looked at."""
    first, line, mends = agent_cause(agent) or (code, cause, fix)
    return Explanation(first, line, mends, (_agent(agent), Step("pod", Outcome.FAILED, cause)))


def explain_pod(agent: AgentFacts, pod: str, containers: Sequence[ContainerExplanation]) -> Explanation:
    """The answer about a pod as a whole: the first container that is not served, those that only start it last."""
    if not containers:
        text = f"the pod {pod} has no container yet"
        return explain_no_pod(agent, Code.POD_EMPTY, text, "kubectl describe pod tells what it waits for")
    lacking = sorted((one for one in containers if one.explanation.code is not Code.SERVED), key=lambda one: one.init)
    steps = (
        _agent(agent),
        Step("pod", Outcome.OK, pod, tuple(f"{one.name}: {one.process or '-'}" for one in containers)),
    )
    if lacking and (not lacking[0].init or all(one.init for one in containers)):
        answer = lacking[0].explanation
        return Explanation(answer.code, f"container {lacking[0].name}: {answer.cause}", answer.fix, steps)
    served = next(one for one in containers if one.explanation.code is Code.SERVED)
    return Explanation(Code.SERVED, f"container {served.name}: {served.explanation.cause}", "nothing to mend", steps)


def with_elsewhere(answer: Explanation, elsewhere: Elsewhere, agent_id: str) -> Explanation:
    """An earlier answer, now that the server has told of entries that match and are not this agent's."""
    if answer.code not in _NO_MATCH:
        return answer
    code, cause, fix = wrong_parent(elsewhere, agent_id)
    return Explanation(code, cause, fix, (*answer.steps, _others(elsewhere)))


def _others(elsewhere: Elsewhere) -> Step:
    text = f"{elsewhere.count} entries match below other parents, such as {elsewhere.parent_id}"
    return Step("other parents", Outcome.FAILED, text)


_NO_MATCH = {Code.NO_ENTRIES, Code.NOTHING_CLOSE, Code.SELECTOR_MISSING, Code.SELECTOR_MISSPELT, Code.TYPE_NOT_ATTESTED}


def _expired(entry: RegistrationEntry, now: float) -> bool:
    return bool(entry.expires_at) and entry.expires_at <= now


def _lines(selectors: Iterable[Selector]) -> tuple[str, ...]:
    return tuple(map(str, canonical(selectors)))
