"""Questions of agents about entries that are not theirs: one after the other, so that renewals are read for meanwhile."""

import asyncio

import pytest

from identity_server.domain.listing import Page
from identity_server.services import explain as module
from identity_server.services.explain import ExplainEntitlement
from spiffe_core.errors import Exhausted
from tests.builders import selectors, sid
from tests.doubles.clock import FakeClock
from tests.doubles.state_maker import AGENT, StateMaker, attested


class Slow(StateMaker):
    """A store whose reads wait for `gate`."""

    def __init__(self):
        super().__init__()
        self.gate, self.reading, self.most, self.done = asyncio.Event(), 0, 0, 0

    async def read(self, _query):
        self.reading += 1
        self.most = max(self.most, self.reading)
        await self.gate.wait()
        self.reading -= 1
        self.done += 1
        return Page(())


AGENTS = [f"{AGENT}-{number}" for number in range(10)]


async def test_agents_that_ask_and_ask_take_one_reading_thread_and_no_more():
    """S53: nodes that were broken into must not keep the others' renewals from being read for."""
    store = Slow()
    store.apply(agents=dict.fromkeys(AGENTS, attested("os:linux")))
    asked = ExplainEntitlement(store=store, clock=FakeClock(), progress=None)
    asking = [
        asyncio.ensure_future(asked.elsewhere(sid(AGENTS[number % len(AGENTS)]), selectors("unix:uid:1")))
        for number in range(40)
    ]
    for task in asking[module.MAX_ASKING :]:
        with pytest.raises(Exhausted, match="ask again shortly"):
            await task
    for task in asking[: module.MAX_ASKING // 2]:
        task.cancel()  # a thread goes on reading for who left: that must not let another one begin
    await asyncio.sleep(0)
    with pytest.raises(Exhausted):
        await asked.elsewhere(sid(AGENTS[0]), selectors("unix:uid:1"))
    store.gate.set()
    answers = await asyncio.gather(*asking[module.MAX_ASKING // 2 : module.MAX_ASKING])
    assert answers == [None] * (module.MAX_ASKING // 2)
    assert (store.most, store.done) == (1, module.MAX_ASKING)
    assert await asked.elsewhere(sid(AGENTS[0]), selectors("unix:uid:1")) is None


async def test_one_agent_takes_a_few_places_and_leaves_the_others_to_others():
    """S53: also while what it asked is still looked up, though it hung up; afterwards it may ask again."""
    store = Slow()
    store.apply(agents=dict.fromkeys(AGENTS, attested("os:linux")))
    asked = ExplainEntitlement(store=store, clock=FakeClock(), progress=None)
    greedy = [asyncio.ensure_future(asked.elsewhere(sid(AGENTS[0]), selectors("unix:uid:1"))) for _ in range(40)]
    modest = asyncio.ensure_future(asked.elsewhere(sid(AGENTS[1]), selectors("unix:uid:1")))
    for task in greedy[module.MAX_ASKING_EACH :]:
        with pytest.raises(Exhausted, match="this agent asks"):
            await task
    greedy[0].cancel()
    await asyncio.sleep(0)
    with pytest.raises(Exhausted, match="this agent asks"):
        await asked.elsewhere(sid(AGENTS[0]), selectors("unix:uid:1"))
    store.gate.set()
    assert await modest is None
    assert await asyncio.gather(*greedy[1 : module.MAX_ASKING_EACH]) == [None] * (module.MAX_ASKING_EACH - 1)
    assert await asked.elsewhere(sid(AGENTS[0]), selectors("unix:uid:1")) is None
