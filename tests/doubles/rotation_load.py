"""What goes on while authorities rotate: open streams, and handshakes between workloads.

Everything here runs without a pause and writes down each failure; a test that rotates asserts that there was none.
`rotation_calls` has the traffic of agents and tokens.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Self

import grpc.aio
from cryptography import x509

from spiffe_core.bundle import BundleSet
from spiffe_core.clock import SystemClock
from spiffe_core.errors import IdentityError
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.services import Stub
from spiffe_core.x509_svid import X509Svid
from workload_api.client import METADATA
from workload_api.service import SERVICE
from workload_api.tls import any_id, client_context, require_peer, server_context
from workload_api.x509_context import X509Context, x509_context

CHANNELS = 10
SLOW_SECONDS = 2.0
"""How old the SVID and the bundle of a slow workload are."""
_CLOCK = SystemClock()


def issuer_of(leaf: bytes) -> str:
    """The id of the authority that signed a certificate: SPIRE's authority ID."""
    found = x509.load_der_x509_certificate(leaf).extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    return (found.value.key_identifier or b"").hex()


class Load:
    """One kind of traffic: runs until stopped, counts, and remembers what failed."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.count = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.ensure_future(self.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def run(self) -> None:
        raise NotImplementedError

    async def more(self, count: int, seconds: float = 20.0) -> None:
        """Return when it has gone on for `count` more rounds."""
        goal = self.count + count
        async with asyncio.timeout(seconds):
            while self.count < goal:
                assert self._task is not None
                assert not self._task.done(), self._task
                await asyncio.sleep(0.01)

    async def after(self, seconds: float) -> None:
        """Return when it has gone on for this long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await self.more(1)


class Streams:
    """Many open FetchX509SVID streams; each message of each is checked, the newest is kept."""

    def __init__(self, socket: Any, count: int) -> None:
        self._channels = [unix_channel(str(socket)) for _ in range(min(CHANNELS, count))]
        self._stubs = [Stub(channel, SERVICE) for channel in self._channels]
        self._newest: list[X509Context | None] = [None] * count
        self._known: dict[bytes, X509Context] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self.failures: list[str] = []
        self.messages = 0
        self.closing = False

    async def __aenter__(self) -> Self:
        for number in range(len(self._newest)):
            self._tasks.append(asyncio.ensure_future(self._follow(number)))
        await self.until(lambda context: bool(context.svids))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._channels:
            await channel.close()

    async def _follow(self, number: int) -> None:
        call = self._stubs[number % len(self._stubs)].FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=METADATA)
        try:
            async for message in call:
                self._newest[number] = self._read(message)
                self.messages += 1
                self._changed.set()
            self.failures.append(f"stream {number} ended")
        except (grpc.aio.AioRpcError, IdentityError) as error:
            if not self.closing:
                self.failures.append(f"stream {number}: {error}")

    def _read(self, message: Any) -> X509Context:
        key = message.SerializeToString(deterministic=True)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = x509_context(message.svids, message.federated_bundles, _CLOCK.now())
        return known

    @property
    def count(self) -> int:
        """How many streams there are."""
        return len(self._newest)

    def newest(self, number: int) -> X509Context:
        """The last message of a stream."""
        found = self._newest[number]
        assert found is not None
        return found

    async def until(self, condition: Any, seconds: float = 30.0) -> float:
        """Wait until every stream's newest message fulfils `condition`; how many seconds that took."""
        began = time.monotonic()
        async with asyncio.timeout(seconds):
            while not all(one is not None and condition(one) for one in self._newest):
                self._changed.clear()
                assert not self.failures, self.failures[:5]
                await self._changed.wait()
        return time.monotonic() - began

    async def until_under(self, authority_id: str) -> float:
        """Wait until every stream has SVIDs of this authority and of no other."""
        return await self.until(lambda context: {issuer_of(svid.chain[0]) for svid in context.svids} == {authority_id})

    async def until_roots(self, known: Collection[str] = (), gone: Collection[str] = ()) -> float:
        """Wait until the bundle of every stream has the roots `known` and none of `gone`."""

        def holds(context: X509Context) -> bool:
            ids = {one.key_id for one in context.bundles.own.x509_authorities}
            return ids.issuperset(known) and ids.isdisjoint(gone)

        return await self.until(holds)


@dataclass(frozen=True, slots=True)
class Workload:
    """One identity of a message, with its bundles: what `workload_api.tls` asks of a source."""

    svid: X509Svid
    bundles: BundleSet


class Handshakes(Load):
    """Mutual TLS between two workloads, each with the newest of its own stream, and with what it had some time ago."""

    def __init__(self, streams: Streams, server: tuple[int, str], client: tuple[int, str]) -> None:
        super().__init__()
        self._streams, self._sides = streams, (server, client)
        self._past: deque[tuple[float, Workload, Workload]] = deque()
        self.pairs: Counter[tuple[str, str]] = Counter()

    def _now(self) -> tuple[Workload, Workload]:
        sides = []
        for number, path in self._sides:
            context = self._streams.newest(number)
            svid = next(one for one in context.svids if one.spiffe_id.path == path)
            sides.append(Workload(svid, context.bundles))
        return sides[0], sides[1]

    async def run(self) -> None:
        while True:
            server, client = self._now()
            now = time.monotonic()
            self._past.append((now, server, client))
            while len(self._past) > 1 and self._past[1][0] <= now - SLOW_SECONDS:
                self._past.popleft()
            _, slow_server, slow_client = self._past[0]
            pairs = ((server, client), (slow_server, slow_client), (server, slow_client), (slow_server, client))
            for left, right in pairs:
                self._shake(left, right)
            self.count += 1
            await asyncio.sleep(0.04)

    def _shake(self, server: Workload, client: Workload) -> None:
        try:
            handshake(server, client)
        except (IdentityError, ssl.SSLError) as error:
            self.failures.append(f"{time.monotonic():.2f} {server.svid.spiffe_id} <- {client.svid.spiffe_id}: {error}")
        self.pairs[issuer_of(server.svid.chain[0]), issuer_of(client.svid.chain[0])] += 1


def handshake(server: Workload, client: Workload) -> None:
    """A whole mutual TLS handshake in memory, judged on both sides as the library judges it.

    Raises:
        ssl.SSLError, IdentityError: one side refused.
    """
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    left = server_context(server).wrap_bio(inward, outward, server_side=True)
    right = client_context(client).wrap_bio(outward, inward)
    waiting = [right, left]
    for _ in range(8):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
    assert not waiting, "the handshake did not come to an end"
    assert require_peer(left, server, any_id(), purpose="client") == client.svid.spiffe_id
    assert require_peer(right, client, any_id(), purpose="server") == server.svid.spiffe_id
