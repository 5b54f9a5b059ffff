"""What is wrong with registration entries, before a workload finds out (needs 1, 30 and 31).

Entries are looked at parent by parent, because only entries below one parent meet in one workload; so no more than the
entries below one parent are decoded at a time. Everything is counted, and the first `MAX_FINDINGS` are told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from identity_server.domain.agents import SERVER_PATH
from identity_server.domain.breadth import why_broad
from identity_server.domain.entry_record import EntryRecord
from identity_server.domain.lint_codes import Finding, LintCode
from identity_server.domain.overlaps import Overlap, Overlaps, Relation
from identity_server.domain.reach import Broken, Reach
from identity_server.domain.state import State
from identity_server.domain.verifier_limits import too_long_for
from spiffe_core.entry import RegistrationEntry
from spiffe_core.mending import update_command
from spiffe_core.selector_kinds import STORE_TYPES, Misspelt, corrected, misspelt, misspelt_node_type
from spiffe_core.selectors import Selector, canonical

MAX_FINDINGS: Final = 1_000
MAX_SIBLINGS: Final = 2_000
"""Where single entries are asked about, they are not compared with those of a parent that has more than so many."""
_OWN_NODE_TYPE: Final = "spiffe_id"
"""A join token with an ID of its own makes an entry with this type of selector (spire_features section 18.2)."""

Decode = Callable[[bytes], RegistrationEntry]


@dataclass(frozen=True, slots=True)
class Rules:
    """What entries are held against, besides each other. `types` are those that this server's attestors make."""

    now: float
    types: frozenset[str] = frozenset()
    ignored: frozenset[LintCode] = frozenset()


@dataclass(slots=True)
class Report:
    """What was found. `complete` is False if not every pair of entries below one parent was compared."""

    entries: int = 0
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[LintCode] = field(default_factory=Counter)
    complete: bool = True


def lint(state: State, rules: Rules, decode: Decode, only: Collection[str] | None = None) -> Report:
    """Look at all entries, or at those with the ids `only`. Pure, and long: run it on a thread."""
    report, reach = Report(), Reach(state)
    for parent, records in _by_parent(state, only):
        _lint_parent(state, rules, decode, only, report, reach, parent, records)
    return report


def _by_parent(state: State, only: Collection[str] | None) -> Iterator[tuple[str, Sequence[EntryRecord]]]:
    """The entries below each parent of which one is asked about; the parent of node entries is the server."""
    if only is None:
        yield from ((parent, tuple(records.values())) for parent, records in sorted(state.children.items()))
        yield SERVER_PATH, tuple(record for record in state.entries.values() if record.alias)
        return
    asked = [record for record in map(state.entries.get, only) if record is not None]
    for parent in sorted({record.parent for record in asked}):
        siblings: Mapping[str, EntryRecord] | None = state.children.get(parent)
        below = [record for record in asked if record.parent == parent]
        few = siblings is not None and len(siblings) <= MAX_SIBLINGS
        yield parent, tuple(siblings.values()) if few and siblings is not None else tuple(below)


def _lint_parent(  # one step of `lint`, with all it works on
    state: State,
    rules: Rules,
    decode: Decode,
    only: Collection[str] | None,
    report: Report,
    reach: Reach,
    parent: str,
    records: Sequence[EntryRecord],
) -> None:
    entries = {record.id: decode(record.wire) for record in sorted(records, key=lambda one: one.id)}
    overlaps = Overlaps(entries.values()) if parent != SERVER_PATH else None
    wanted = entries.keys() if only is None else [entry_id for entry_id in entries if entry_id in only]
    for entry_id in wanted:
        entry = entries[entry_id]
        report.entries += 1
        found = [
            *_way(state.entries[entry_id], entry, reach),
            *([] if overlaps is None else map(_overlap, overlaps.of(entry, both=only is not None))),
            *_selectors(entry, rules),
            *_rest(entry, state, rules),
        ]
        for one in found:
            if one.code not in rules.ignored:
                report.counts[one.code] += 1
                if len(report.findings) < MAX_FINDINGS:
                    report.findings.append(one)
    report.complete = report.complete and (overlaps is None or not overlaps.gave_up)


def _finding(code: LintCode, entry: RegistrationEntry, text: str, fix: str) -> Finding:
    return Finding(code, entry.id, str(entry.spiffe_id), text, fix)


def _way(record: EntryRecord, entry: RegistrationEntry, reach: Reach) -> Iterator[Finding]:
    """From the entry to an agent."""
    if record.alias:
        none = reach.matches_none(record)
        if none is not None:
            yield _finding(
                none.code, entry, none.text, "identity-server agent show -spiffeID AGENT prints its selectors"
            )
        return
    broken = reach.why_not(record.parent)
    if broken is not None:
        yield _finding(broken.code, entry, f"no agent can serve it: {broken.text}", _way_fix(entry, broken))


def _way_fix(entry: RegistrationEntry, broken: Broken) -> str:
    if broken.near and broken.code in {LintCode.UNKNOWN_AGENT, LintCode.UNKNOWN_PARENT}:
        return update_command(entry, parent=f"spiffe://{entry.parent_id.trust_domain}{broken.near}")
    if broken.code is LintCode.PARENT_BANNED:
        return f"identity-server entry delete -entryID {entry.id}, or name another agent as its parent"
    if broken.code is LintCode.PARENT_LOOP:
        return update_command(entry, parent="AGENT")
    groups = f"identity-server entry show -parentID spiffe://{entry.parent_id.trust_domain}{SERVER_PATH}"
    return "identity-server agent list" if broken.code is LintCode.UNKNOWN_AGENT else groups


def _overlap(found: Overlap) -> Finding:
    entry, other = found.entry, found.other
    named = f"entry {other.id} ({other.spiffe_id})"
    drop = f"identity-server entry delete -entryID {entry.id}"
    if found.relation is Relation.SAME:
        text = f"{named} has the same parent and selectors: every workload gets both, the one with the lower id first"
        return _finding(LintCode.DUPLICATE, entry, text, f"{drop}, or give both a -hint")
    if found.relation is Relation.SHADOWED:
        asks = ", ".join(map(str, canonical(other.selectors)))
        text = f"{named} gives the same SPIFFE ID to whoever has {asks}: this one adds nobody"
        return _finding(LintCode.SHADOWED, entry, text, drop)
    text = f"whoever matches it also gets {other.spiffe_id} by entry {other.id}, which asks for less"
    return _finding(LintCode.OVERLAP, entry, text, "give both entries a -hint, or the other one more selectors")


def _selectors(entry: RegistrationEntry, rules: Rules) -> Iterator[Finding]:
    node = entry.parent_id.path == SERVER_PATH
    for selector in canonical(entry.selectors):
        if entry.store_svid and selector.type in STORE_TYPES:
            continue
        if node:
            wrong = misspelt_node_type(selector, rules.types)
        else:
            wrong = misspelt(selector, (*rules.types, _OWN_NODE_TYPE))
        if wrong is not None:
            yield _misspelt(entry, selector, wrong)
    broad = "" if node or entry.store_svid else why_broad(entry.selectors)
    if broad:
        text = f"{', '.join(map(str, canonical(entry.selectors)))}: {broad}"
        yield _finding(LintCode.OVER_BROAD, entry, text, f"{update_command(entry)} -selector TYPE:VALUE")


def _misspelt(entry: RegistrationEntry, selector: Selector, wrong: Misspelt) -> Finding:
    code = LintCode.UNKNOWN_TYPE if wrong.part == "type" else LintCode.UNKNOWN_KIND
    what = "type" if wrong.part == "type" else f"kind of {selector.type} selectors"
    right = corrected(selector, wrong)
    text = f"{selector}: {wrong.given!r} is no {what} that is known"
    if right is None:
        return _finding(code, entry, text, "make sure that an attestor of the agents makes it")
    fix = update_command(entry, selectors=(entry.selectors - {selector}) | {right})
    return _finding(code, entry, f"{text}; did you mean {right}?", fix)


def _rest(entry: RegistrationEntry, state: State, rules: Rules) -> Iterator[Finding]:
    spiffe_id = str(entry.spiffe_id)
    limits = too_long_for(spiffe_id)
    if limits and entry.parent_id.path != SERVER_PATH:
        names = ", ".join(f"{one.verifier} ({one.longest})" for one in limits)
        text = f"the SPIFFE ID has {len(spiffe_id)} characters, more than the subject of a token may have for {names}"
        yield _finding(LintCode.ID_TOO_LONG, entry, text, "give it a shorter path before a cloud is to trust it")
    if entry.expires_at and entry.expires_at <= rules.now:
        text = "it has expired: nobody is served by it, and it will be deleted"
        yield _finding(
            LintCode.EXPIRED, entry, text, f"{update_command(replace(entry, expires_at=0))} -entryExpiry SECONDS"
        )
    for name in entry.federates_with:
        if name not in state.trust_bundles:
            text = f"it federates with {name}, whose bundle is not here: its workloads cannot verify anybody from there"
            yield _finding(
                LintCode.NO_BUNDLE, entry, text, f"identity-server bundle set -id spiffe://{name} -path FILE"
            )
