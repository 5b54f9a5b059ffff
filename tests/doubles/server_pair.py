"""Several real servers on one database, each with the loop that shares how far its agents are, and agents that follow."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio

from identity_server.rpc.services import PROPAGATION
from spiffe_core.wire._gen.muniment.server.propagation.v1 import propagation_pb2 as pb
from spiffe_core.wire.positions import POSITION
from spiffe_core.wire.services import Stub
from tests.doubles.held_follower import seen
from tests.doubles.live_server import live_server


@asynccontextmanager
async def sharing_servers(url, count=2):
    """So many servers that know each other's roots; `stop_sharing()` on one freezes what it tells the others."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(live_server(database={"url": url})) for _ in range(count)]
        for one in servers:
            await seen(one.server.store, lambda state: len(state.bundles.own.x509_roots) == count)
            one.sharing = asyncio.ensure_future(one.server.shared.run())
            stack.push_async_callback(ended, one.sharing)
        for one in servers:
            while len(one.server.shared) < count - 1:  # each has written its row
                await one.server.shared.look()
                await asyncio.sleep(0.01)
        yield servers


async def ended(task):
    """Cancel it and await its end; what it died of is raised."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled():
        task.result()


class Following:
    """One agent on a push stream of one server. It acknowledges what it is sent, unless it is `deaf`."""

    def __init__(self, live, agent, position="", *, held=(), carries=""):
        self.live, self.agent, self.path = live, agent, agent.path
        self.received = []
        self.entries = {one.id: one for one in held}
        self.position = position
        self.compared = self.replaced = False
        self.deaf = self.told = False
        self.news = asyncio.Event()
        self.ended = None
        self._call = Stub(agent.dialer.channel(), PROPAGATION).Follow(
            timeout=60, metadata=((POSITION, carries),) if carries else ()
        )
        self._task = asyncio.ensure_future(self._listen())

    async def until(self, condition, seconds=20):
        """Wait until what it was sent fulfils `condition`."""
        async with asyncio.timeout(seconds):
            while not condition(self):
                self.news.clear()
                await self.news.wait()
        return self

    async def close(self):
        """Hang up."""
        self._call.cancel()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def acknowledge(self):
        """Acknowledge the newest position, deaf or not."""
        await self._call.write(pb.FollowRequest(ack=pb.Ack(position=self.position)))

    async def _listen(self):
        try:
            await self._call.write(pb.FollowRequest(hello=pb.Hello(position=self.position)))
            while (message := await self._call.read()) is not grpc.aio.EOF:
                await self._heard(message)
        except grpc.aio.AioRpcError as error:
            self.ended = error
        self.news.set()

    async def _heard(self, message):
        if message.compare:
            self.compared = True
            stamps = [
                pb.Stamp(id=one.id, revision_number=one.revision_number, created_at=one.created_at)
                for one in self.entries.values()
            ]
            await self._call.write(pb.FollowRequest(stamps=pb.Stamps(stamps=stamps)))
            return
        if message.all_entries:
            self.replaced = True
            self.entries = {}
        self.received += (one.id for one in message.entries)
        self.entries |= {one.id: one for one in message.entries}
        for gone in message.removed_entries:
            self.entries.pop(gone, None)
        self.position = message.position
        self.told = True
        if not message.more and not self.deaf:
            await self.acknowledge()
        self.news.set()


@asynccontextmanager
async def following(live, agent=None, position="", *, held=(), carries=""):
    """An agent that follows this server and was told something by it, or was refused.

    `position` is where it says it is, with the entries `held`; `carries` goes along as calls of our agents have it.
    """
    one = Following(live, agent or await live.join(), position, held=held, carries=carries)
    try:
        yield await one.until(lambda it: it.told or it.ended)
    finally:
        await one.close()
