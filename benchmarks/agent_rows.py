"""The rows about the agent: tokens from its cache, and the same while it renews ten thousand SVIDs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio

from benchmarks.measure import Row, cpu_of, median
from benchmarks.workload_rows import HEADER, OWN_CHANNEL, UID, first_svid
from deploy.demo.stack import LocalStack
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire.services import Stub

IN_FLIGHT = 64
CONNECTIONS = 8
AUDIENCE = "bench"
_SERVICE = workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
_REQUEST = workload_pb2.JWTSVIDRequest(audience=[AUDIENCE])


@contextlib.asynccontextmanager
async def connected(api_socket: Path, connections: int) -> AsyncIterator[list[Any]]:
    """Stubs on connections of their own."""
    channels = [grpc.aio.insecure_channel(f"unix:{api_socket}", options=OWN_CHANNEL) for _ in range(connections)]
    try:
        yield [Stub(channel, _SERVICE) for channel in channels]
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


def checked(response: workload_pb2.JWTSVIDResponse, path: str) -> None:
    """Raise unless the answer holds one token, for the path."""
    (svid,) = response.svids
    assert svid.spiffe_id.endswith(path), svid.spiffe_id
    assert svid.svid.count(".") == 2


async def tokens(stubs: list[Any], seconds: float, path: str = "/web", in_flight: int = IN_FLIGHT) -> list[float]:
    """Ask for the cached token for `seconds`, `in_flight` calls at a time; how long each call took, in seconds."""
    took: list[float] = []
    until = time.perf_counter() + seconds

    async def ask(stub: Any) -> None:
        while (start := time.perf_counter()) < until:
            response = await stub.FetchJWTSVID(_REQUEST, metadata=HEADER, timeout=30)
            took.append(time.perf_counter() - start)
            checked(response, path)

    await asyncio.gather(*(ask(stubs[number % len(stubs)]) for number in range(in_flight)))
    return took


def quantile(values: list[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def b5(repeats: int, seconds: float) -> list[Row]:
    """Tokens from the cache."""
    rates, costs, worst, split = [], [], [], ""
    with LocalStack("bench.test", sync_interval="5s") as stack:
        await asyncio.to_thread(stack.start)
        await asyncio.to_thread(stack.register, "/web", UID)
        await asyncio.to_thread(first_svid, stack.api_socket)
        agent = stack.agent
        assert agent is not None
        async with connected(stack.api_socket, CONNECTIONS) as stubs:
            await tokens(stubs, 0.2)
            for _ in range(repeats):
                before, start = cpu_of(agent.pid), time.perf_counter()
                took = await tokens(stubs, seconds)
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
