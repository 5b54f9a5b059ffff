"""The first link that is broken, and what would mend it: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import OUT_OF_TIME, Reason
from spiffe_core.explanation_codes import MEANINGS, Code
from spiffe_core.explanation_facts import AgentFacts, Asked, Elsewhere, Findings, Issue
from spiffe_core.mending import create_command, named, update_command
from spiffe_core.near_misses import Miss, counterpart, is_close
from spiffe_core.selector_kinds import corrected, misspelt
from spiffe_core.selectors import Selector

STALE_SECONDS = 60.0
"""An agent that has not heard from its server for so long may lack an entry that exists."""

Cause = tuple[Code, str, str]


def agent_cause(agent: AgentFacts) -> Cause | None:
    """What keeps the agent from serving anybody."""
    if agent.unknown:
        text = f"the server knows no agent {agent.agent_id}"
        return (
            Code.UNKNOWN_AGENT,
            f"{text}; the closest is {agent.why}" if agent.why else text,
            "identity-server agent list",
        )
    if agent.banned:
        evict = f"identity-server agent evict -spiffeID {agent.agent_id or 'ID'}, and restart the agent"
        fix = evict if agent.agent_id else f"{evict}; identity-server agent list -banned shows the ID"
        return Code.BANNED, MEANINGS[Code.BANNED], fix
    if not agent.member:
        text = f"the agent has not joined its trust domain: {agent.why}" if agent.why else MEANINGS[Code.NOT_JOINED]
        return Code.NOT_JOINED, text, agent.advice or _joining(agent)
    if not agent.ready:
        text = MEANINGS[Code.NEVER_SYNCED]
        return (
            Code.NEVER_SYNCED,
            f"{text}: {agent.sync_trouble}" if agent.sync_trouble else text,
            "make the server reachable; the agent goes on by itself (node-agent healthcheck --verbose)",
        )
    return None


def _joining(agent: AgentFacts) -> str:
    """What lets an agent join, by what its last try failed of."""
    if agent.reason is Reason.OTHER_TRUST_DOMAIN:
        return "correct trust_domain, or server_address, in the agent's settings and restart it"
    if agent.reason in OUT_OF_TIME:
        return (
            "set this node's clock right (`timedatectl`); if it is right, write the server's bundle of now to "
            "trust_bundle_path: identity-server bundle show"
        )
    return f"the agent waits for {agent.waits_for}" if agent.waits_for else "the agent's log says what it waits for"


def process_cause(found: Findings) -> Cause | None:
    """What keeps the process from being known."""
    if found.no_process:
        return Code.NO_PROCESS, found.no_process, "give the number that `ps` shows where the agent runs (hostPID)"
    if found.selectors is None:
        broken = next((one for one in found.asked if one.error), None)
        detail = f": {broken.name}: {broken.error}" if broken is not None else ""
        return Code.ATTESTATION_FAILED, f"{MEANINGS[Code.ATTESTATION_FAILED]}{detail}", "put right what it names"
    return None


def issue_cause(matched: Sequence[RegistrationEntry], found: Findings, now: datetime) -> Cause:
    """What becomes of the entries that match."""
    served = [one for one in matched if not one.store_svid]
    if not served:
        one = matched[0]
        fix = create_command(str(one.parent_id), str(one.spiffe_id), one.selectors)
        return Code.STORED_ONLY, f"{named(one)} is for a secret store (store_svid) and is not served here", fix
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


def no_match(found: Findings, nearest: Sequence[Miss], gone: Sequence[RegistrationEntry]) -> Cause:
    """What keeps a workload from all entries."""
    create = create_command((*found.node_names, found.agent.agent_id)[0], "ID", found.selectors or ())
    if gone:
        entry = gone[0]
        fix = f"{update_command(replace(entry, expires_at=0))} -entryExpiry SECONDS"
        return Code.ENTRY_EXPIRED, f"{named(entry)} matches, and has expired", fix
    age = found.agent.synced_before
    if age is not None and age > STALE_SECONDS and found.agent.sync_trouble:
        text = f"no entry that the agent knows matches, and it has not heard from the server for {age:.0f} s"
        return Code.OUT_OF_TOUCH, f"{text}: {found.agent.sync_trouble}", "make the server reachable"
    closest = _closest(found, nearest)
    if found.elsewhere is not None and (closest is None or closest[0] is not Code.SELECTOR_DIFFERS):
        return wrong_parent(found.elsewhere, found.agent.agent_id)
    if not found.entries:
        names = " or ".join((found.agent.agent_id, *found.node_names))
        text = f"no entry names {names}, or a group it is in, as its parent"
        return Code.NO_ENTRIES, text, create
    return closest or (Code.NOTHING_CLOSE, MEANINGS[Code.NOTHING_CLOSE], create)


def wrong_parent(elsewhere: Elsewhere, agent_id: str) -> Cause:
    """Entries match, and are not this agent's."""
    entry = elsewhere.entry
    if entry is None:
        count = "an entry matches" if elsewhere.count == 1 else f"{elsewhere.count} entries match"
        text = f"{count} below another parent, {elsewhere.parent_id}; this agent is {agent_id}"
        return Code.WRONG_PARENT, text, f"identity-server entry show -parentID {elsewhere.parent_id}"
    if elsewhere.why:
        return Code.WRONG_PARENT, f"{named(entry)} matches, and {elsewhere.why}", elsewhere.fix
    text = f"{named(entry)} matches, and its parent is {entry.parent_id}; this agent is {agent_id}"
    return Code.WRONG_PARENT, text, update_command(entry, parent=agent_id)


def _closest(found: Findings, nearest: Sequence[Miss]) -> Cause | None:
    """What keeps the workload from the entry that comes closest; None if none comes close.

    If none does, and all ask for what nobody here could find, that is what is wrong with them.
    """

    def odd(selector: Selector) -> bool:
        unknown = bool(found.types) and selector.type not in found.types
        return unknown or misspelt(selector, found.types) is not None

    close = [one for one in nearest if is_close(one)]
    if not close and not (nearest and all(any(map(odd, entry.selectors)) for entry in found.entries)):
        return None
    best = (close or nearest)[0]
    missing = next(filter(odd, best.missing), best.missing[0])
    return (
        _not_found(missing, best.entry, found.asked)
        or _misspelt(missing, best.entry, found.types)
        or _other_type(missing, best.entry, found.types)
        or _nothing_found(missing, best.entry, found.asked)
        or _differs(missing, best)
    )


def _not_found(missing: Selector, entry: RegistrationEntry, asked: Sequence[Asked]) -> Cause | None:
    failed = next((one for one in asked if one.error and one.name == missing.type), None)
    if failed is None:
        return None
    text = f"{named(entry)} asks for {missing}, and the {failed.name} attestor failed: {failed.error}"
    return (
        Code.ATTESTOR_FAILED,
        text,
        failed.fix or f"put right what the {failed.name} attestor says; the entry may stay",
    )


def _misspelt(missing: Selector, entry: RegistrationEntry, types: frozenset[str]) -> Cause | None:
    wrong = misspelt(missing, types)
    right = None if wrong is None else corrected(missing, wrong)
    if wrong is None or right is None:
        return None
    what = "type" if wrong.part == "type" else f"kind of {missing.type} selectors"
    text = f"{named(entry)} asks for {missing}, and {wrong.given!r} is no {what}; the closest is {wrong.right!r}"
    fix = update_command(entry, selectors=(entry.selectors - {missing}) | {right})
    return Code.SELECTOR_MISSPELT, text, fix


def _other_type(missing: Selector, entry: RegistrationEntry, types: frozenset[str]) -> Cause | None:
    if not types or missing.type in types:
        return None
    text = f"{named(entry)} asks for {missing}, and this agent has no attestor {missing.type}"
    return Code.TYPE_NOT_ATTESTED, text, f"add [attestors.{missing.type}] to the agent's settings"


def _nothing_found(missing: Selector, entry: RegistrationEntry, asked: Sequence[Asked]) -> Cause | None:
    """The attestor that would find it has nothing to say about the process, and says why: the entry may be right."""
    silent = next((one for one in asked if one.name == missing.type and not one.selectors and one.notes), None)
    if silent is None:
        return None
    text = f"{named(entry)} asks for {missing}, and the {silent.name} attestor found nothing: {silent.notes[0]}"
    others = frozenset(one for one in entry.selectors if one.type != missing.type)
    mend = update_command(entry, selectors=others) if others else create_command(str(entry.parent_id), "ID", ())
    return Code.SELECTOR_MISSING, text, f"run the workload where the entry expects it; if it belongs here: {mend}"


def _differs(missing: Selector, best: Miss) -> Cause:
    there = counterpart(missing, best.surplus)
    if there is not None:
        text = f"{named(best.entry)} asks for {missing}; the workload has {there}"
        fix = update_command(best.entry, selectors=(best.entry.selectors - {missing}) | {there})
        return Code.SELECTOR_DIFFERS, text, fix
    text = f"{named(best.entry)} asks for {missing}, which the workload does not have"
    return Code.SELECTOR_MISSING, text, update_command(best.entry, selectors=best.entry.selectors - {missing})
