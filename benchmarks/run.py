"""The measurements: `make bench`, or `make bench BENCH_ARGS="b2 b4"`.

Each row starts real processes on loopback, is bounded in count and time, and verifies what it was given after the timed
part. Absolute times depend on the machine: compare figures of one run.

    b1    cold start: both daemons exec'd to the first SVID at a workload (the node has joined before)
    b2    X.509-SVIDs issued a second by BatchNewX509SVID, 500 requests a call, 1 and 4 callers
    b4    fan-out: one change reaches 1,000 open streams
    b11b  resident memory of server and agent, idle and with 1,000 open streams
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import grpc
import uvloop

from benchmarks.measure import Row, cpu_seconds, resident_mb, show
from deploy.demo.stack import LocalStack
from spiffe_core.bundle import TrustBundle, X509Authority
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, PrivateKeyDer, generate
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as entry_types
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.dialer import Dialer, DialTrust
from spiffe_core.wire.services import Stub
from spiffe_core.wire.tls import TlsIdentity
from spiffe_core.x509_verify import verify_x509_svid

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
    return [Row("b1", "cold start to first SVID", statistics.median(times), "s", min(times), max(times))]


def saved_identity(stack: LocalStack) -> tuple[TlsIdentity, TrustBundle]:
    """The agent's own SVID, to speak to the server as that agent does."""
    state = json.loads((stack.folder / "agent-data" / "agent-state.json").read_text())
    chain = tuple(base64.b64decode(der) for der in state["svid"]["chain"])
    roots = tuple(X509Authority(base64.b64decode(a["der"])) for a in state["bundle"]["x509_authorities"])
    key = PrivateKeyDer(base64.b64decode(state["svid"]["key"]))
    return TlsIdentity(chain, key), TrustBundle(TrustDomain(stack.trust_domain), roots)


async def create_entries(stack: LocalStack, count: int, selector: str) -> list[str]:
    """Entries by BatchCreateEntry, 500 a call; their ids."""
    ids: list[str] = []
    async with unix_channel(stack.admin_socket) as channel:
        stub = Stub(channel, entry_pb2.DESCRIPTOR.services_by_name["Entry"])
        for start in range(0, count, 500):
            batch = [
                entry_types.Entry(
                    spiffe_id={"trust_domain": stack.trust_domain, "path": f"/load/{i}"},
                    parent_id={"trust_domain": stack.trust_domain, "path": "/node"},
                    selectors=[{"type": "load", "value": f"{selector}:{i}"}],
                )
                for i in range(start, min(start + 500, count))
            ]
            answer = await stub.BatchCreateEntry(entry_pb2.BatchCreateEntryRequest(entries=batch), timeout=60)
            ids += [result.entry.id for result in answer.results]
    return ids


async def b2_async(seconds: float) -> list[Row]:
    rows = []
    unlimited = "[ratelimit]\nattestation = false\nsigning = false\n"
    with LocalStack("bench.test", sync_interval="1h", server=unlimited) as stack:
        stack.start()
        identity, bundle = saved_identity(stack)
        start = time.perf_counter()
        ids = await create_entries(stack, 10_000, "a")
        rows.append(Row("b9", "entries created, 500 a call", 10_000 / (time.perf_counter() - start), "/s"))
        stack.agent.stop()
        server_id = SpiffeId(bundle.trust_domain, "/spire/server")
        trust = DialTrust(server_id, lambda _: bundle)
        csr = build_csr(generate(KeyKind.EC_P256), spiffe_id=None)
        params = [svid_pb2.NewX509SVIDParams(entry_id=entry_id, csr=csr) for entry_id in ids[:500]]
        request = svid_pb2.BatchNewX509SVIDRequest(params=params)
        for callers in (1, 4):
            done, last = 0, None
            dialers = []
            for _ in range(callers):
                dialer = Dialer(
                    "127.0.0.1", stack.port, trust=lambda: trust, identity=lambda: identity, now=SystemClock().now
                )
                await dialer.start()
                dialers.append(dialer)
            stubs = [Stub(d.channel(), svid_pb2.DESCRIPTOR.services_by_name["SVID"]) for d in dialers]
            for stub in stubs:
                await stub.BatchNewX509SVID(request, timeout=60)
            cpu, start = cpu_seconds(stack.server.pid), time.perf_counter()
            until = start + seconds

            async def call(stub: Any, until: float = until) -> None:
                nonlocal done, last
                while time.perf_counter() < until:
                    last = await stub.BatchNewX509SVID(request, timeout=60)
                    done += 500

            await asyncio.gather(*(call(stub) for stub in stubs))
            elapsed, used = time.perf_counter() - start, cpu_seconds(stack.server.pid) - cpu
            for result in last.results:
                assert result.status.code == 0, result.status.message
                verify_x509_svid(list(result.svid.cert_chain), lambda _: bundle, now=SystemClock().now())
            rows.append(Row("b2", f"SVIDs issued, {callers} caller(s)", done / elapsed, "/s"))
            rows.append(Row("b2", f"server CPU for each, {callers} caller(s)", used / done * 1e6, "µs"))
            for dialer in dialers:
                await dialer.close()
    return rows


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="which rows; all if none is named")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    wanted = set(options.rows) or {"b1", "b2", "b4", "b11b"}
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows: list[Row] = []
    if "b1" in wanted:
        rows += b1(options.repeats)
    if "b2" in wanted:
        rows += uvloop.run(b2_async(options.seconds))
    if wanted & {"b4", "b11b"}:
        rows += uvloop.run(crowd_async(options.streams, wanted, options.repeats))
    show(rows)


if __name__ == "__main__":
    main()
