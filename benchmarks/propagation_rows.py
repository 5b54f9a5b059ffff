"""B7 and B8: how soon a change is in force, and what it costs, with a crowd of agents on push streams.

The measured path is real processes: an administrator's call to the server, the server, an agent, a workload's open
stream. The crowd is as little client as can be, in this process; it holds streams and acknowledges.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import grpc.aio

from benchmarks.driver import AGENT, BUNDLE, ENTRY
from benchmarks.measure import Row, cpu_of, median, resident_mb
from benchmarks.targets import UNLIMITED
from deploy.demo.stack import LocalStack
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.services import Stub
from tests.authority import SpiffeTestCA
from tests.doubles.push_crowd import PushAgent

TRUST_DOMAIN, OTHER_DOMAIN = "bench.test", "other.test"
HEADER = (("workload.spiffe.io", "true"),)
API = workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
JOINING = 16
P50_MS, P99_MS = 20.0, 100.0
REST_SECONDS = 10.0


@contextlib.asynccontextmanager
async def crowd(
    ports: Sequence[int], agents: Any, count: int, folder: Path, alias: str = ""
) -> AsyncIterator[list[PushAgent]]:
    """`count` agents that have joined and follow the servers at these ports, as many each; all below one `alias`."""
    turn = asyncio.Semaphore(JOINING)
    members = [PushAgent(number, ports[number % len(ports)], folder) for number in range(count)]
    below = {"trust_domain": TRUST_DOMAIN, "path": alias} if alias else None

    async def join(member: PushAgent) -> None:
        async with turn:
            token = await agents.CreateJoinToken(agent_pb2.CreateJoinTokenRequest(ttl=600, agent_id=below), timeout=60)
            await member.attest(token.value)
            await member.follow()

    await asyncio.gather(*map(join, members))
    try:
        yield members
    finally:
        for member in members:
            member.leave()


class Pair(Protocol):
    """A server and its agent, ours or not."""

    node_id: str


def _entry(stack: Pair, path: str, entry_id: str = "", hint: str = "") -> dict[str, Any]:
    host, _, parent = stack.node_id.removeprefix("spiffe://").partition("/")
    return {
        "id": entry_id,
        "spiffe_id": {"trust_domain": host, "path": path},
        "parent_id": {"trust_domain": host, "path": f"/{parent}"},
        "selectors": [{"type": "unix", "value": f"uid:{os.getuid()}"}],
        "hint": hint,
    }


class Workload:
    """A process with an open stream, seen from the outside."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stream = Stub(channel, API).FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER)

    async def sees(self, path: str, hint: str | None) -> float:
        """When it first has the identity at `path` with this hint, or has it no longer (None)."""
        while True:
            answer = await asyncio.wait_for(self._stream.read(), 60)
            hints = [one.hint for one in answer.svids if one.spiffe_id.endswith(path)]
            if hints == ([] if hint is None else [hint]):
                return time.perf_counter()

    async def sees_root(self, root: bytes) -> float:
        """When it first has this as the other trust domain's bundle."""
        while True:
            answer = await asyncio.wait_for(self._stream.read(), 60)
            if answer.federated_bundles.get(f"spiffe://{OTHER_DOMAIN}") == root:
                return time.perf_counter()

    async def ended(self) -> float:
        """When its stream is ended because there is no identity for it any more."""
        assert await asyncio.wait_for(self._stream.code(), 60) is grpc.StatusCode.PERMISSION_DENIED
        return time.perf_counter()

    def leave(self) -> None:
        self._stream.cancel()


async def bundles_of(stack: Pair, admin: grpc.aio.Channel, workload: Workload, changes: int) -> list[dict[str, float]]:
    """Another trust domain's bundle replaced so often: milliseconds from each call to what the workload reads."""
    roots = [SpiffeTestCA(OTHER_DOMAIN).der for _ in range(2)]
    bundles, lives = Stub(admin, BUNDLE), []
    for number in range(changes + 1):
        root = roots[number % 2]
        bundle = {"trust_domain": OTHER_DOMAIN, "x509_authorities": [{"asn1": root}]}
        start = time.perf_counter()
        answer = await bundles.BatchSetFederatedBundle(
            bundle_pb2.BatchSetFederatedBundleRequest(bundle=[bundle]), timeout=30
        )
        assert answer.results[0].status.code == 0, answer
        if number == 0:
            entry = {**_entry(stack, "/federated"), "federates_with": [OTHER_DOMAIN]}
            await Stub(admin, ENTRY).BatchCreateEntry(entry_pb2.BatchCreateEntryRequest(entries=[entry]), timeout=30)
        seen = await workload.sees_root(root) - start
        if number:
            lives.append({"bundle replaced": seen * 1000})
    return lives


async def ban_of(admin: grpc.aio.Channel, workload: Workload) -> float:
    """The agent of the workload banned: milliseconds from the call to the end of the workload's stream."""
    agents = Stub(admin, AGENT)
    known = await agents.ListAgents(agent_pb2.ListAgentsRequest(), timeout=30)
    (own,) = [one for one in known.agents if one.agent_version.startswith("muniment/")]
    start = time.perf_counter()
    await agents.BanAgent(agent_pb2.BanAgentRequest(id=own.id), timeout=30)
    return (await workload.ended() - start) * 1000


async def changes_of(stack: Pair, entries: Any, workload: Workload, path: str) -> dict[str, float]:
    """One entry's life: milliseconds from each call to what the workload reads."""
    took = {}
    start = time.perf_counter()
    create = entry_pb2.BatchCreateEntryRequest(entries=[_entry(stack, path)])
    made = await entries.BatchCreateEntry(create, timeout=30)
    took["created"] = await workload.sees(path, "") - start
    entry_id = made.results[0].entry.id
    start = time.perf_counter()
    update = entry_pb2.BatchUpdateEntryRequest(entries=[_entry(stack, path, entry_id, "new")])
    await entries.BatchUpdateEntry(update, timeout=30)
    took["changed"] = await workload.sees(path, "new") - start
    start = time.perf_counter()
    await entries.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[entry_id]), timeout=30)
    took["deleted"] = await workload.sees(path, None) - start
    return {what: seconds * 1000 for what, seconds in took.items()}


def percentiles(
    row: str,
    lives: Sequence[dict[str, float]],
    note: str,
    *,
    p50: float | None = None,
    p99: float | None = None,
    target: str = "muniment",
) -> list[Row]:
    """p50 and p99 of each kind of change."""
    rows = []
    for what in lives[0]:
        values = sorted(life[what] for life in lives)
        last = values[min(len(values) - 1, int(len(values) * 0.99))]
        name = what if " " in what else f"entry {what}"
        rows.append(median(row, f"{name}: p50", values, "ms", target=target, at_most=p50, note=note))
        rows.append(Row(row, f"{name}: p99", last, "ms", target=target, at_most=p99, note=note))
    return rows


async def b7(agents: int, changes: int, *, bars: bool = True, push: bool = True) -> list[Row]:
    """Entries are created, changed and deleted under an open stream; polled instead of pushed for comparison."""
    bars = bars and push
    async with contextlib.AsyncExitStack() as undo:
        text = "" if push else "push = false\n"
        stack = undo.enter_context(LocalStack(TRUST_DOMAIN, server=UNLIMITED, agent=text, sync_interval="5s"))
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        stack.start()
        stack.register("/always", f"unix:uid:{os.getuid()}")
        admin = await undo.enter_async_context(unix_channel(stack.admin_socket))
        api = await undo.enter_async_context(unix_channel(stack.api_socket))
        await undo.enter_async_context(crowd([stack.port], Stub(admin, AGENT), agents, folder))
        workload = Workload(api)
        undo.callback(workload.leave)
        await workload.sees("/always", "")
        before = cpu_of(stack.server.pid)
        lives = [await changes_of(stack, Stub(admin, ENTRY), workload, f"/job-{number}") for number in range(changes)]
        used = (cpu_of(stack.server.pid) - before).total
        idle, at = cpu_of(stack.server.pid), time.perf_counter()
        await asyncio.sleep(REST_SECONDS if bars else 1)
        resting = (cpu_of(stack.server.pid) - idle).total / (time.perf_counter() - at)
        memory = resident_mb(stack.server.pid)
        replaced = await bundles_of(stack, admin, workload, changes)
        banned = await ban_of(admin, workload)
    note = f"{agents} agents connected, {'pushed' if push else 'polled every 5 s'}"
    rows = percentiles("b7", lives, note, p50=P50_MS if bars else None, p99=P99_MS if bars else None)
    rows += percentiles("b7", replaced, note, p50=P50_MS if bars else None, p99=P99_MS if bars else None)
    rows.append(Row("b7", "agent banned, its workload's stream ended", banned, "ms", note="once"))
    rows.append(Row("b7", "server CPU for each change", used / (3 * changes) * 1000, "ms", note=note))
    rows.append(Row("b8", "server CPU at rest", resting * 100, "% of a core", note=note))
    rows.append(Row("b8", "server memory", memory, "MB", note=note))
    return rows
