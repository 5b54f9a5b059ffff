"""The rows about both daemons together: the cold start, and one change told to a thousand workloads."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks.measure import Row, cpu_of, median, resident_mb
from benchmarks.raw_client import RawConnection, request_headers
from deploy.demo.stack import LocalStack
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as bundle_types
from spiffe_core.wire.services import Stub

HEADER = (("workload.spiffe.io", "true"),)
FETCH_SVID = request_headers("/SpiffeWorkloadAPI/FetchX509SVID")
CROWD = 1000
JOINING = 256
"""At a time: gRPC refuses calls when more than a thousand wait to be taken up."""
DESCRIPTORS = 4
"""Of the agent for each connection."""
OTHER = "other.test"
BUNDLE = bundle_pb2.DESCRIPTOR.services_by_name["Bundle"]
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
    times: list[float] = []
    used: dict[str, list[float]] = {"server": [], "agent": []}
    with LocalStack("bench.test", sync_interval="5s") as stack:
        stack.start()
        stack.register("/web", UID)
        first_svid(stack.api_socket)
        for _ in range(repeats):
            stack.agent.stop()
            stack.server.stop()
            start = time.perf_counter()
            daemons = {"server": stack.spawn_server(), "agent": stack.spawn_agent()}
            first_svid(stack.api_socket)
            times.append(time.perf_counter() - start)
            for name, daemon in daemons.items():
                used[name].append(1000 * cpu_of(daemon.pid).total)
    return [
        median("b1", "cold start to first SVID", times, "s", at_most=1.0),
        *(median("b1", f"CPU of the {name} until then", used[name], "ms") for name in used),
    ]


class Crowd:
    """Streams of FetchX509SVID, and when they heard something last."""

    def __init__(self) -> None:
        self.messages: dict[int, bytes] = {}
        self.last = 0.0
        self._missing: set[int] = set()
        self._all = asyncio.Event()
        self._connections: list[RawConnection] = []

    async def join(self, api_socket: Path, streams: int, connections: int) -> None:
        """Open them; return when each has its first message."""
        self.expect(range(streams))
        turn = asyncio.Semaphore(JOINING)

        async def one(number: int) -> None:
            own = set(range(number, streams, connections))
            served = asyncio.Event()

            def heard(stream: int, message: bytes) -> None:
                which = number + (stream // 2) * connections
                self._heard(which, message)
                own.discard(which)
                if not own:
                    served.set()

            async with turn:
                connection = await RawConnection.open(api_socket, heard)
                self._connections.append(connection)
                for _ in sorted(own):
                    connection.call(FETCH_SVID, b"")
                await served.wait()

        await asyncio.gather(*(one(number) for number in range(connections)))
        await self.served()

    def expect(self, streams: Iterable[int] | None = None) -> None:
        """From now on each is to hear something."""
        self._missing = set(self.messages if streams is None else streams)
        self._all.clear()

    async def served(self, seconds: float = 120.0) -> None:
        """Return when all have heard something."""
        async with asyncio.timeout(seconds):
            await self._all.wait()

    def leave(self) -> None:
        """Hang up."""
        for connection in self._connections:
            connection.close()

    def _heard(self, number: int, message: bytes) -> None:
        self.messages[number] = message
        self.last = time.time()  # noqa: TID251  # set beside the time in the agent's log
        self._missing.discard(number)
        if not self._missing:
            self._all.set()


def told_at(log: Path, since: int) -> float:
    """When the agent said, behind byte `since` of its log, that it had taken over a new bundle: the streams come next."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for line in log.read_bytes()[since:].splitlines():
            if b'"bundles changed"' in line:
                return datetime.fromisoformat(json.loads(line)["time"]).timestamp()
        time.sleep(0.01)
    raise AssertionError("the agent's log does not mention the change")


async def crowd_async(streams: int, which: set[str], repeats: int) -> list[Row]:
    rows = []
    room = f"[limits]\nconnections = {streams + 200}\nstreams = {streams + 200}\nconnections_per_uid = {streams + 50}\nstreams_per_uid = {streams + 50}\n"  # fmt: skip
    with LocalStack("bench.test", sync_interval="200ms", agent=room) as stack:
        await asyncio.to_thread(stack.start)
        await asyncio.to_thread(set_bundle, stack)
        await asyncio.to_thread(stack.register, "/web", UID, federates_with=(OTHER,))
        await asyncio.to_thread(first_svid, stack.api_socket)
        agent, server = stack.agent, stack.server
        assert agent is not None
        assert server is not None
        await asyncio.sleep(1)
        idle = resident_mb(agent.pid)
        crowd = Crowd()
        start, cpu = time.perf_counter(), cpu_of(agent.pid)
        connections = min(streams, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1000) // DESCRIPTORS)
        await crowd.join(stack.api_socket, streams, connections)
        opened, used = (time.perf_counter() - start) * 1000, cpu_of(agent.pid) - cpu
        assert {len(workload_pb2.X509SVIDResponse.FromString(one).svids) for one in crowd.messages.values()} == {1}
        if "b11b" in which:
            await asyncio.sleep(1)
            full = resident_mb(agent.pid)
            rows += [
                Row("b11b", "server", resident_mb(server.pid), "MB"),
                Row("b11b", "agent, idle", idle, "MB"),
                Row("b11b", f"agent, {streams} streams", full, "MB", at_most=150 if streams <= CROWD else None),
                Row("b11b", "agent, each stream", (full - idle) * 1024 / streams, "KB", at_most=55),
            ]
        if "b4" in which:
            rows.append(Row("b4", f"{streams} streams on {connections} connections opened", opened, "ms"))
            rows.append(Row("b4", "agent CPU for it", used.total * 1000, "ms", note=used.split()))
            rows += await told(stack, crowd, repeats)
        crowd.leave()
    return rows


async def told(stack: LocalStack, crowd: Crowd, repeats: int) -> list[Row]:
    """A new bundle of another trust domain, told to everybody, again and again."""
    agent = stack.agent
    assert agent is not None
    times, cpus, split, streams = [], [], "", len(crowd.messages)
    for _ in range(repeats):
        before = set(crowd.messages.values())
        crowd.expect()
        cpu, since = cpu_of(agent.pid), agent.log.stat().st_size
        root = await asyncio.to_thread(set_bundle, stack)
        await crowd.served()
        used = cpu_of(agent.pid) - cpu
        (message,) = set(crowd.messages.values())
        assert message not in before
        assert workload_pb2.X509SVIDResponse.FromString(message).federated_bundles[f"spiffe://{OTHER}"] == root
        times.append((crowd.last - await asyncio.to_thread(told_at, agent.log, since)) * 1000)
        cpus.append(used.total * 1000)
        split = used.split()
    bar = 150 if streams <= CROWD else 1000
    return [
        median("b4", f"a bundle told to {streams} streams, to the last", times, "ms", at_most=bar),
        median("b4", "agent CPU for it", cpus, "ms", note=split),
    ]


def set_bundle(stack: LocalStack) -> bytes:
    """Store a new bundle of the other trust domain; its root."""
    key = generate(KeyKind.EC_P256)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, OTHER)])
    now = SystemClock().now()
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1)
    )
    uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{OTHER}")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # their order
    made = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(uri, critical=False)
        .sign(key, hashes.SHA256())
    )
    root = made.public_bytes(Encoding.DER)
    bundle = bundle_types.Bundle(trust_domain=OTHER, x509_authorities=[bundle_types.X509Certificate(asn1=root)])
    with grpc.insecure_channel(f"unix:{stack.admin_socket}", options=OWN_CHANNEL) as channel:
        request = bundle_pb2.BatchSetFederatedBundleRequest(bundle=[bundle])
        (result,) = Stub(channel, BUNDLE).BatchSetFederatedBundle(request, timeout=30).results
    assert result.status.code == 0, result.status.message
    return root
