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


async def test_one_agent_that_asks_and_asks_takes_one_reading_thread_and_no_more():
    """S53: a node that was broken into must not keep the others' renewals from being read for."""
    store = Slow()
    store.apply(agents={AGENT: attested("os:linux")})
    asked = ExplainEntitlement(store=store, clock=FakeClock(), progress=None)
    asking = [asyncio.ensure_future(asked.elsewhere(sid(AGENT), selectors("unix:uid:1"))) for _ in range(40)]
    for task in asking[module.MAX_ASKING :]:
        with pytest.raises(Exhausted, match="ask again shortly"):
            await task
    for task in asking[: module.MAX_ASKING // 2]:
        task.cancel()  # a thread goes on reading for who left: that must not let another one begin
    await asyncio.sleep(0)
    with pytest.raises(Exhausted):
        await asked.elsewhere(sid(AGENT), selectors("unix:uid:1"))
    store.gate.set()
    answers = await asyncio.gather(*asking[module.MAX_ASKING // 2 : module.MAX_ASKING])
    assert answers == [None] * (module.MAX_ASKING // 2)
    assert (store.most, store.done) == (1, module.MAX_ASKING)
    assert await asked.elsewhere(sid(AGENT), selectors("unix:uid:1")) is None
