"""The rows about the agent: tokens from its cache, and the same while it renews ten thousand SVIDs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from benchmarks.measure import Row, cpu_of, median
from benchmarks.raw_client import RawConnection, request_headers
from benchmarks.workload_rows import HEADER, OWN_CHANNEL, UID, first_svid
from deploy.demo.stack import LocalStack
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire.services import Stub

IN_FLIGHT = 64
CONNECTIONS = 8
SERVICE = workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
FETCH_TOKEN = request_headers("/SpiffeWorkloadAPI/FetchJWTSVID")
REQUEST = workload_pb2.JWTSVIDRequest(audience=["bench"])


def first_token(api_socket: Path, path: str) -> bytes:
    """The answer that every call has to give from now on, checked."""
    with grpc.insecure_channel(f"unix:{api_socket}", options=OWN_CHANNEL) as channel:
        response = Stub(channel, SERVICE).FetchJWTSVID(REQUEST, metadata=HEADER, timeout=30)
    (svid,) = response.svids
    assert svid.spiffe_id.endswith(path), svid.spiffe_id
    assert svid.svid.count(".") == 2  # noqa: PLR2004  # a compact JWS
    return bytes(response.SerializeToString())


class Asking:
    """Keeps a number of calls in flight on a few connections; how long each took, in seconds."""

    def __init__(self, expected: bytes | None) -> None:
        self.expected = expected
        self.took: list[float] = []
        self.wrong = 0
        self._going = False
        self._begun: dict[tuple[int, int], float] = {}
        self._answered: set[tuple[int, int]] = set()
        self._connections: list[RawConnection] = []
        self._idle = asyncio.Event()
        self._request = REQUEST.SerializeToString()

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, api_socket: Path, expected: bytes | None) -> AsyncIterator[Asking]:
        """Connected to an agent."""
        asking = cls(expected)
        for number in range(CONNECTIONS):
            heard, ended = asking._ears(number)
            asking._connections.append(await RawConnection.open(api_socket, heard, ended))
        try:
            yield asking
        finally:
            for connection in asking._connections:
                connection.close()

    def begin(self, in_flight: int = IN_FLIGHT) -> None:
        """Ask, and ask again after each answer."""
        self.took.clear()
        self._going = True
        self._idle.clear()
        for number in range(in_flight):
            self._ask(number % CONNECTIONS)

    async def end(self) -> list[float]:
        """Let the last calls end; what was measured."""
        self._going = False
        async with asyncio.timeout(30):
            await self._idle.wait()
        assert not self.wrong, f"{self.wrong} calls were not answered with the token"
        return list(self.took)

    def _ask(self, connection: int) -> None:
        stream = self._connections[connection].call(FETCH_TOKEN, self._request)
        self._begun[connection, stream] = time.perf_counter()

    def _ears(self, connection: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
        def heard(stream: int, message: bytes) -> None:
            if self.expected is None or message == self.expected:
                self._answered.add((connection, stream))

        def ended(stream: int) -> None:
            self.took.append(time.perf_counter() - self._begun.pop((connection, stream)))
            if (connection, stream) in self._answered:
                self._answered.remove((connection, stream))
            else:
                self.wrong += 1
            if self._going:
                self._ask(connection)
            elif not self._begun:
                self._idle.set()

        return heard, ended


def quantile(values: list[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def b5(repeats: int, seconds: float) -> list[Row]:
    """Tokens from the cache."""
    rates, costs, worst, split = [], [], [], ""
    with LocalStack("bench.test", sync_interval="200ms") as stack:
        await asyncio.to_thread(stack.start)
        await asyncio.to_thread(stack.register, "/web", UID)
        await asyncio.to_thread(first_svid, stack.api_socket)
        expected = await asyncio.to_thread(first_token, stack.api_socket, "/web")
        agent = stack.agent
        assert agent is not None
        async with Asking.of(stack.api_socket, expected) as asking:
            for repeat in range(repeats + 1):
                before, start = cpu_of(agent.pid), time.perf_counter()
                asking.begin()
                await asyncio.sleep(seconds if repeat else 0.2)
                took = await asking.end()
                if not repeat:  # everything has been done once
                    continue
                rates.append(len(took) / (time.perf_counter() - start))
                used = cpu_of(agent.pid) - before
                costs.append(used.total / len(took) * 1e6)
                worst.append(quantile(took, 0.99) * 1000)
                split = used.split()
    what = f"cached FetchJWTSVID, {IN_FLIGHT} in flight"
    return [
        median("b5", what, rates, "/s", at_least=2000),
        median("b5", f"{what}: p99", worst, "ms"),
        median("b5", "agent CPU each", costs, "µs", note=split),
    ]
