"""The rows about the agent: tokens from its cache, and the same while it renews ten thousand SVIDs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import grpc

from benchmarks.driver import driving
from benchmarks.measure import Row, cpu_of, median
from benchmarks.raw_client import RawConnection, request_headers
from benchmarks.workload_rows import HEADER, OWN_CHANNEL, UID, Crowd, first_svid
from deploy.demo.stack import LocalStack
from spiffe_core.runtime.supervise import spawn
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire._gen.spire.api.agent.debug.v1 import debug_pb2
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.services import Stub

IN_FLIGHT = 64
PACE = 100
"""Calls a second where their latency is measured, begun whether or not those before have been answered."""
CONNECTIONS = 8
SERVICE = workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
DEBUG = debug_pb2.DESCRIPTOR.services_by_name["Debug"]
FETCH_TOKEN = request_headers("/SpiffeWorkloadAPI/FetchJWTSVID")
REQUEST = workload_pb2.JWTSVIDRequest(audience=["bench"])


def first_token(api_socket: Path, path: str) -> bytes:
    """The answer that every call has to give from now on, checked."""
    with grpc.insecure_channel(f"unix:{api_socket}", options=OWN_CHANNEL) as channel:
        response = Stub(channel, SERVICE).FetchJWTSVID(REQUEST, metadata=HEADER, timeout=30)
    (svid,) = response.svids
    assert svid.spiffe_id.endswith(path), svid.spiffe_id
    assert svid.svid.count(".") == 2  # a compact JWS
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
        self._pacing: set[asyncio.Task[None]] = set()
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
        for number in range(in_flight):
            self._ask(number % CONNECTIONS)

    def begin_paced(self) -> None:
        """Ask `PACE` times a second."""
        self.took.clear()
        spawn(self._pace(), "ask", self._pacing)

    async def _pace(self) -> None:
        loop = asyncio.get_running_loop()
        start, number = loop.time(), 0
        while True:
            self._ask(number % CONNECTIONS)
            number += 1
            await asyncio.sleep(start + number / PACE - loop.time())

    async def end(self) -> list[float]:
        """Let the last calls end; what was measured."""
        self._going = False
        for task in list(self._pacing):
            task.cancel()
        async with asyncio.timeout(30):
            while self._begun:
                await asyncio.sleep(0.005)
        assert not self.wrong, f"{self.wrong} calls were not answered with the token"
        return list(self.took)

    def _ask(self, connection: int) -> None:
        stream = self._connections[connection].call(FETCH_TOKEN, self._request)
        self._begun[connection, stream] = time.perf_counter()

    def _ears(self, connection: int):  # type: ignore[no-untyped-def]
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


async def b10(count: int) -> list[Row]:
    """The authority of `count` SVIDs is tainted: all of them are renewed at once, while others ask for tokens."""
    limits = f"[limits]\nprefetched_svids = {count + 100}\n"
    with LocalStack("bench.test", sync_interval="1s", agent=limits) as stack:
        await asyncio.to_thread(stack.start)
        agent, server = stack.agent, stack.server
        assert agent is not None
        assert server is not None
        await asyncio.to_thread(stack.register, "/web", UID)
        first = await asyncio.to_thread(first_svid, stack.api_socket)
        async with driving(stack) as driver:
            await driver.create_entries("/node", count)
        await holds(stack, count + 1)
        expected = await asyncio.to_thread(first_token, stack.api_socket, "/web")
        old = await asyncio.to_thread(next_authority, stack)
        await asyncio.sleep(1)
        async with Asking.of(stack.api_socket, expected) as asking:
            asking.begin_paced()
            await asyncio.sleep(2)
            alone = await asking.end()
            before, on_server, since = cpu_of(agent.pid), cpu_of(server.pid), agent.log.stat().st_size
            asking.begin_paced()
            await asyncio.to_thread(stack.admin, "localauthority", "x509", "taint", "-authorityID", old)
            took = await asyncio.to_thread(replaced, agent.log, since)
            meanwhile = await asking.end()
            used, served = cpu_of(agent.pid) - before, cpu_of(server.pid) - on_server
        last = await asyncio.to_thread(first_svid, stack.api_socket)
        assert last.svids[0].x509_svid != first.svids[0].x509_svid
    what = f"cached FetchJWTSVID, {PACE} a second"
    return [
        Row("b10", f"{count} SVIDs of a tainted authority renewed", took, "s", at_most=10),
        Row("b10", "agent CPU, calls included", used.total, "s", note=used.split()),
        Row("b10", "server CPU", served.total, "s", note=served.split()),
        Row("b10", f"{what}, before: p99", quantile(alone, 0.99) * 1000, "ms"),
        Row("b10", f"{what}, meanwhile: p99", quantile(meanwhile, 0.99) * 1000, "ms"),
    ]


def next_authority(stack: LocalStack) -> str:
    """Activate another X.509 authority; the id of the one before."""
    words = ("localauthority", "x509")
    new = stack.admin_json(*words, "prepare")["prepared_authority"]["authority_id"]
    time.sleep(1)  # agents have it with their next sync
    stack.admin(*words, "activate", "-authorityID", new)
    return str(stack.admin_json(*words, "show")["old"]["authority_id"])


async def holds(stack: LocalStack, count: int) -> None:
    """Return when the agent holds so many SVIDs."""
    async with asyncio.timeout(300), unix_channel(stack.agent_admin_socket) as channel:
        while True:
            info = await Stub(channel, DEBUG).GetInfo(debug_pb2.GetInfoRequest(), timeout=30)
            if info.cached_x509_svids_count >= count:
                return
            await asyncio.sleep(0.2)


def replaced(log: Path, since: int) -> float:
    """The seconds from the agent's word that SVIDs have to be replaced to its word that all are."""
    deadline, moments = time.monotonic() + 300, {}
    while time.monotonic() < deadline:
        for line in log.read_bytes()[since:].splitlines():
            for word in (b'"replacing ', b'"replaced '):
                if word in line:
                    moments[word] = datetime.fromisoformat(json.loads(line)["time"]).timestamp()
        if len(moments) == 2:  # the beginning and the end
            return moments[b'"replaced '] - moments[b'"replacing ']
        time.sleep(0.05)
    raise AssertionError(f"the SVIDs were not replaced: {moments}")


async def idle(workloads: int, seconds: float) -> list[Row]:
    """An agent with nothing to do: so many entries, a stream for each of so many workloads, nothing changes."""
    with LocalStack("bench.test", sync_interval="5s") as stack:
        await asyncio.to_thread(stack.start)
        agent = stack.agent
        assert agent is not None
        await asyncio.to_thread(stack.register, "/web", UID)
        async with driving(stack) as driver:
            await driver.create_entries("/node", workloads)
        await holds(stack, workloads + 1)
        crowd = Crowd()
        await crowd.join(stack.api_socket, workloads, workloads)
        await asyncio.sleep(3)
        before, start = cpu_of(agent.pid), time.perf_counter()
        await asyncio.sleep(seconds)
        used, took = cpu_of(agent.pid) - before, time.perf_counter() - start
        crowd.leave()
    what = f"of a core, agent with {workloads} SVIDs and {workloads} streams at rest"
    return [Row("idle", what, used.total / took * 100, "%", at_most=2, note=used.split())]
