"""The rows about both daemons together: the cold start, and one change told to a thousand workloads."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from benchmarks.measure import Row, cpu_seconds, median, resident_mb
from deploy.demo.stack import LocalStack
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire.services import Stub

HEADER = (("workload.spiffe.io", "true"),)
UID = f"unix:uid:{os.getuid()}"
OWN_CHANNEL = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 5), ("grpc.max_reconnect_backoff_ms", 10)]  # fmt: skip


def first_svid(api_socket: Path, seconds: float = 30) -> workload_pb2.X509SVIDResponse:
    """Ask again and again until the agent answers."""
    service = workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
    deadline = time.monotonic() + seconds
    with grpc.insecure_channel(f"unix:{api_socket}", options=OWN_CHANNEL) as channel:
        stub = Stub(channel, service)
        while True:
            try:
                return next(iter(stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=2)))
            except grpc.RpcError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.002)


def b1(repeats: int) -> list[Row]:
    times = []
    with LocalStack("bench.test", sync_interval="5s") as stack:
        stack.start()
        stack.register("/web", UID)
        first_svid(stack.api_socket)
        for _ in range(repeats):
            stack.agent.stop()
            stack.server.stop()
            start = time.perf_counter()
            stack.spawn_server()
            stack.spawn_agent()
            first_svid(stack.api_socket)
            times.append(time.perf_counter() - start)
    return [median("b1", "cold start to first SVID", times, "s", at_most=1.0)]


async def crowd_async(streams: int, which: set[str], repeats: int) -> list[Row]:
    rows = []
    service = workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
    with LocalStack("bench.test", sync_interval="200ms", agent=f"[limits]\nconnections_per_uid = {streams + 50}\nstreams_per_uid = {streams + 50}\n") as stack:  # fmt: skip
        stack.start()
        entry = stack.register("/web", UID)
        first_svid(stack.api_socket)
        await asyncio.sleep(1)
        if "b11b" in which:
            rows.append(Row("b11b", "server, idle", resident_mb(stack.server.pid), "MB"))
            rows.append(Row("b11b", "agent, idle", resident_mb(stack.agent.pid), "MB"))
        channels = [grpc.aio.insecure_channel(f"unix:{stack.api_socket}", options=OWN_CHANNEL) for _ in range(streams)]
        start = time.perf_counter()
        calls = [
            Stub(channel, service).FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER)
            for channel in channels
        ]
        firsts = await asyncio.gather(*(call.read() for call in calls))
        rows.append(
            Row("b4", f"{streams} streams on {streams} connections opened", (time.perf_counter() - start) * 1000, "ms")
        )
        assert all(len(first.svids) == 1 for first in firsts)
        if "b11b" in which:
            await asyncio.sleep(1)
            rows.append(Row("b11b", f"server, {streams} streams", resident_mb(stack.server.pid), "MB"))
            rows.append(Row("b11b", f"agent, {streams} streams", resident_mb(stack.agent.pid), "MB"))
        if "b4" in which:
            spreads, cpus = [], []
            for number in range(repeats):

                async def heard(call: Any) -> float:
                    await call.read()
                    return time.perf_counter()

                waiting = [asyncio.ensure_future(heard(call)) for call in calls]
                cpu = cpu_seconds(stack.agent.pid)
                await asyncio.to_thread(
                    stack.admin, "entry", "update", "-entryID", entry, "-parentID", stack.node_id, "-spiffeID",
                    f"spiffe://{stack.trust_domain}/web", "-selector", UID, "-hint", f"h{number}",
                )  # fmt: skip
                moments = await asyncio.wait_for(asyncio.gather(*waiting), 60)
                spreads.append((max(moments) - min(moments)) * 1000)
                cpus.append(cpu_seconds(stack.agent.pid) - cpu)
            rows.append(
                Row("b4", "first to last stream served", statistics.median(spreads), "ms", min(spreads), max(spreads))
            )
            rows.append(Row("b4", "agent CPU for it", statistics.median(cpus) * 1000, "ms"))
        for call in calls:
            call.cancel()
        await asyncio.gather(*(channel.close() for channel in channels))
    return rows
