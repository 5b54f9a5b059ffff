"""What is kept of refusals, and that a refusal costs the same however many entries there are (S53)."""

import itertools

from node_agent.services import explain as module
from node_agent.services.explain import MAX_SNAPSHOTS, Explain
from spiffe_core.explanation_facts import AgentFacts
from spiffe_core.spiffe_id import SpiffeId
from tests.builders import make_entry, selectors
from tests.unit.node_agent.conftest import Process, Selecting, make_world


class Peer(Process):
    """A caller whose program nobody asks for."""

    program = ""


class Asking:
    """An AttestWorkload of one scripted attestor."""

    types = ("unix",)

    def __init__(self, *found):
        self._attestor = Selecting(*found)

    async def each(self, peer):
        return {"unix": self._attestor.attest(peer, 0.0)}


async def nobody(_selectors):
    return 0, ""


async def explaining(*entries):
    world = make_world()
    world.server.publish(*entries)
    await world.settle()
    numbers = itertools.count()
    explain = Explain(
        workloads=world.workloads,
        attestation=Asking(*selectors("unix:uid:1000")),
        facts=lambda: AgentFacts(agent_id="spiffe://example.org/spire/agent/x", member=True, ready=True),
        elsewhere=nobody,
        pods=None,
        clock=world.clock,
        new_id=lambda: f"id-{next(numbers)}",
    )
    return world, explain


def wanting(number, **over):
    path = SpiffeId.parse(f"spiffe://example.org/w{number}")
    return make_entry(id=f"entry-{number}", spiffe_id=path, selectors=selectors(f"unix:uid:{2000 + number}"), **over)


async def test_nothing_is_decided_before_somebody_asks(monkeypatch):
    """Whoever has no identity may call as often as he likes: only who asks why pays for a look at every entry."""
    _world, explain = await explaining(*(wanting(number) for number in range(20)))
    decided = []
    monkeypatch.setattr(module, "explain", lambda found, now: decided.append(found) or _original(found, now))
    ids = [await explain.refused(Peer()) for _ in range(50)]
    assert decided == []
    answer = await explain.refusal(ids[0])
    assert len(decided) == 1
    assert len(decided[0].entries) == 20
    assert "asks for unix:uid:20" in answer.cause


_original = module.explain


async def test_a_refusal_is_explained_by_the_entries_of_its_time_while_few_sets_came_after_it():
    world, explain = await explaining(wanting(0))
    first = await explain.refused(Peer())
    world.server.publish(make_entry(id="entry-0", revision_number=1))  # it would match now
    await world.sync.once()
    assert "asks for unix:uid:2000" in (await explain.refusal(first)).cause
    for number in range(1, MAX_SNAPSHOTS + 1):
        world.server.publish(wanting(number))
        await world.sync.once()
        await explain.refused(Peer())
    assert "asks for" not in (await explain.refusal(first)).cause
    assert sum(one.entries.known is not None for one in explain._refusals.values()) <= MAX_SNAPSHOTS
