"""B7 over three servers and on a stock SPIRE pair, and B8 at rest: what agents cost that wait for changes.

As in `propagation_rows`: the measured path is real processes, the crowd is as little client as can be. The change is
always made on another server than the one the measured agent follows.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.driver import AGENT, ENTRY, Driver, driving
from benchmarks.measure import Row, cpu_of, median
from benchmarks.propagation_rows import TRUST_DOMAIN, Workload, changes_of, crowd, percentiles
from benchmarks.targets import UNLIMITED, Muniment, Spire, SpirePair, Target
from spiffe_core.wire._gen.muniment.server.propagation.v1 import propagation_pb2
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.services import Stub
from tests.doubles.database_servers import MariaDB, PostgreSQL
from tests.doubles.server_fleet import ServerFleet

SERVERS = 3
ROWS = {"postgresql": "b7pg", "mariadb": "b7my"}
P99_MS = {"postgresql": 250.0, "mariadb": 500.0}
DATABASES: dict[str, type[PostgreSQL | MariaDB]] = {"postgresql": PostgreSQL, "mariadb": MariaDB}
POLL_SECONDS = 5.0
"""SPIRE's default."""
POLLING = 100
ROUNDS = 4
PROPAGATION = propagation_pb2.DESCRIPTOR.services_by_name["Propagation"]
OWN = {"type": "unix", "value": f"uid:{os.getuid()}"}


def _id(path: str) -> dict[str, str]:
    return {"trust_domain": TRUST_DOMAIN, "path": path}


def _cpu(fleet: ServerFleet) -> float:
    return sum(cpu_of(one.server.pid).total for one in fleet.stacks if one.server is not None)


async def over_servers(kind: str, agents: int, changes: int, *, bars: bool = True) -> list[Row]:
    """b7 with three servers on one database; the crowd's streams are shared out among them."""
    if DATABASES[kind].missing():
        raise SystemExit(f"b7: {DATABASES[kind].missing()}")
    async with contextlib.AsyncExitStack() as undo:
        database = DATABASES[kind]()
        undo.callback(database.close)
        url = database.new_database("bench")
        fleet = ServerFleet(url, SERVERS, trust_domain=TRUST_DOMAIN, server=UNLIMITED, sync_interval="1h")
        undo.callback(fleet.close)
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        fleet.start()
        fleet.first.register("/always", f"unix:uid:{os.getuid()}")
        elsewhere = next(one for one in fleet.stacks if one is not fleet.chosen())
        admin = await undo.enter_async_context(unix_channel(elsewhere.admin_socket))
        api = await undo.enter_async_context(unix_channel(fleet.first.api_socket))
        ports = [one.port for one in fleet.stacks]
        await undo.enter_async_context(crowd(ports, Stub(admin, AGENT), agents, folder))
        workload = Workload(api)
        undo.callback(workload.leave)
        await workload.sees("/always", "")
        entries = Stub(admin, ENTRY)
        await changes_of(fleet.first, entries, workload, "/warm")
        before = _cpu(fleet)
        lives = [await changes_of(fleet.first, entries, workload, f"/job-{number}") for number in range(changes)]
        used = _cpu(fleet) - before
    note = f"{SERVERS} servers on {kind}, changed on another one than the agent's, {agents} more agents"
    rows = percentiles(ROWS[kind], lives, note, p99=P99_MS[kind] if bars else None)
    rows.append(
        Row(
            ROWS[kind],
            f"CPU of all servers for each change, {kind}",
            used / (3 * changes) * 1000,
            "ms",
            target="muniment",
            note=note,
        )
    )
    return rows


async def on_spire(binaries: Path, changes: int, interval: str) -> list[Row]:
    """b7 on a stock SPIRE pair; `interval` for both its server's cache and its agent, "" for their defaults."""
    async with contextlib.AsyncExitStack() as undo:
        pair = SpirePair(binaries, interval=interval)
        undo.callback(pair.close)
        pair.start_server()
        driver = await undo.enter_async_context(driving(pair))
        roots = [base64.encodebytes(root.der).decode() for root in driver.bundle.x509_authorities]
        pem = "".join(f"-----BEGIN CERTIFICATE-----\n{root}-----END CERTIFICATE-----\n" for root in roots)
        request = agent_pb2.CreateJoinTokenRequest(ttl=600, agent_id=_id("/node"))
        token = (await driver.agent.CreateJoinToken(request, timeout=30)).value
        always = {"spiffe_id": _id("/always"), "parent_id": _id("/node"), "selectors": [OWN]}
        await driver.entry.BatchCreateEntry(entry_pb2.BatchCreateEntryRequest(entries=[always]), timeout=30)
        await asyncio.to_thread(pair.start_agent, pem, token)
        api = await undo.enter_async_context(unix_channel(pair.api_socket))
        workload = await _open(api, undo)
        lives = [await changes_of(pair, driver.entry, workload, f"/job-{number}") for number in range(changes)]
    note = f"one server, SQLite, server and agent look every {interval or '5 s (default)'}"
    return percentiles("b7", lives, note, target="spire")


async def _open(api: Any, undo: contextlib.AsyncExitStack) -> Workload:
    """A stream that has shown an identity: SPIRE's agent refuses a workload of whom it has not heard yet."""
    until = time.perf_counter() + 60
    while True:
        workload = Workload(api)
        try:
            await workload.sees("/always", "")
        except Exception:
            workload.leave()
            if time.perf_counter() > until:
                raise
            await asyncio.sleep(0.2)
        else:
            undo.callback(workload.leave)
            return workload


async def pushed_to_all(agents: int, changes: int, rest: float) -> list[Row]:
    """b8: changes that concern every agent, on push streams: bytes for each agent, and what the server uses."""
    async with contextlib.AsyncExitStack() as undo:
        target = Muniment()
        undo.callback(target.close)
        target.start_server()
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        driver = await undo.enter_async_context(driving(target))
        members = await undo.enter_async_context(crowd([target.port], driver.agent, agents, folder, "/crowd"))
        assert target.server is not None
        pid = target.server.pid

        def heard() -> int:
            return sum(member.messages for member in members)

        idle, at = cpu_of(pid), time.perf_counter()
        await asyncio.sleep(rest)
        resting = (cpu_of(pid) - idle).total / (time.perf_counter() - at)
        costs, sizes, ids = [], [], []
        for number in range(changes):
            messages, size, before = heard(), sum(member.bytes for member in members), cpu_of(pid)
            entry = {"spiffe_id": _id(f"/all/{number}"), "parent_id": _id("/crowd"), "selectors": [OWN]}
            made = await driver.entry.BatchCreateEntry(entry_pb2.BatchCreateEntryRequest(entries=[entry]), timeout=30)
            ids.append(made.results[0].entry.id)
            async with asyncio.timeout(60):
                while heard() < messages + agents:
                    await asyncio.sleep(0.01)
            costs.append((cpu_of(pid) - before).total * 1000)
            sizes.append((sum(member.bytes for member in members) - size) / agents)
    note = f"{agents} agents on push streams"
    return [
        Row(
            "b8all",
            "server CPU at rest, 1,000 agents pushed",
            resting * 1e5 / agents,
            "% of a core",
            target="muniment",
            note=note,
        ),
        median("b8all", "a change told to all agents, for each", sizes, "bytes", target="muniment", note=note),
        median("b8all", "a change told to all agents, server CPU", costs, "ms", target="muniment", note=note),
    ]


async def polled(target: Target, agents: int, rounds: int, entries: int, every: float) -> list[Row]:
    """b8: agents that poll as often as that, `entries` each, on connections they keep."""
    async with driving(target) as driver:
        key = [await driver.join() for _ in range(agents)]
        stubs = [Stub((await driver.dial(identity)).channel(), ENTRY) for identity, _ in key]
        for _, path in key:
            await driver.create_entries(path, entries)
        await _all_known(driver, stubs, entries)
        assert target.server is not None
        pid = target.server.pid
        idle, at = cpu_of(pid), time.perf_counter()
        await asyncio.sleep(every)
        alone = (cpu_of(pid) - idle).total / (time.perf_counter() - at)
        before, start = cpu_of(pid), time.perf_counter()
        for number in range(rounds):
            await asyncio.gather(*(_poll(stub, place / agents * every) for place, stub in enumerate(stubs)))
            await asyncio.sleep(max(0.0, start + (number + 1) * every - time.perf_counter()))
        used, lasted = (cpu_of(pid) - before).total, time.perf_counter() - start
    note = f"beyond what it uses alone; {agents} agents with {entries} entries, every {every:g} s, for {rounds} rounds"
    share = (used / lasted - alone) * 1e5 / agents
    return [Row("b8all", "server CPU for 1,000 agents that poll", share, "% of a core", target=target.name, note=note)]


async def _poll(stub: Any, delay: float) -> int:
    await asyncio.sleep(delay)
    call = stub.SyncAuthorizedEntries(timeout=30)
    await call.write(entry_pb2.SyncAuthorizedEntriesRequest())
    page = await call.read()
    await call.done_writing()
    return len(page.entries)


async def _all_known(driver: Driver, stubs: list[Any], entries: int) -> None:
    until = time.perf_counter() + 60
    while await _poll(stubs[-1], 0) < entries:
        if time.perf_counter() > until:
            raise TimeoutError(f"{driver.target.name} does not hand out the entries")
        await asyncio.sleep(0.5)


async def pushed_from_nothing(driver: Driver, identity: Any, count: int) -> tuple[int, int]:
    """Everything an agent is authorised for, by a push stream that begins; entries and bytes."""
    call = Stub((await driver.dial(identity)).channel(), PROPAGATION).Follow()
    await call.write(propagation_pb2.FollowRequest(hello=propagation_pb2.Hello()))
    found = size = 0
    more = True
    while more:
        page = await call.read()
        found, size, more = found + len(page.entries), size + page.ByteSize(), page.more
    call.cancel()
    assert found == count, f"{found} entries instead of {count}"
    return found, size


def spire_or_none(binaries: Path | None) -> list[Target]:
    """Who is measured polling: ours, and SPIRE where its binaries are."""
    return [Muniment()] if binaries is None else [Muniment(), Spire(binaries)]
