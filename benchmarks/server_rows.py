"""The rows about the server: issuing, minting, attesting, entries, sync and memory."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.driver import ENTRY, SVID, Driver, driving
from benchmarks.fleet_rows import pushed_from_nothing
from benchmarks.measure import Cpu, Row, cpu_of, median, resident_mb
from benchmarks.raw_client import RawConnection, request_headers
from benchmarks.targets import Muniment, Target
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as entry_types
from spiffe_core.wire.services import Stub
from spiffe_core.wire.tls import client_context
from spiffe_core.x509_verify import verify_x509_svid

SETTLE_SECONDS = 60.0
START_SECONDS = 300.0
ATTEST = request_headers("/spire.api.server.agent.v1.Agent/AttestAgent", "https")


@dataclass(frozen=True)
class Sizes:
    """How much of everything; the smoke run makes all of it tiny."""

    repeats: int = 5
    seconds: float = 3.0
    batch: int = 500
    entries: int = 100_000
    attestations: int = 300
    bars: bool = True

    def bar(self, row: Row, *, at_least: float | None = None, at_most: float | None = None) -> Row:
        """The row with its bar, if this run is large enough to be judged."""
        return replace(row, at_least=at_least, at_most=at_most) if self.bars else row


async def timed(
    pid: int, sizes: Sizes, callers: int, call: Callable[[int], Awaitable[int]]
) -> tuple[list[float], list[float], Cpu]:
    """Let `callers` call again and again; rates, CPU-µs each, and who used the CPU, of each repeat."""
    for caller in range(callers):
        await call(caller)
    rates, costs, used = [], [], Cpu()
    begun = cpu_of(pid)
    for _ in range(sizes.repeats):
        done = 0
        before, start = cpu_of(pid), time.perf_counter()
        until = start + sizes.seconds

        async def caller_loop(caller: int, until: float = until) -> None:
            nonlocal done
            while time.perf_counter() < until:
                made = await call(caller)
                done += made

        await asyncio.gather(*map(caller_loop, range(callers)))
        elapsed, used = time.perf_counter() - start, cpu_of(pid) - before
        rates.append(done / elapsed)
        costs.append(used.total / done * 1e6)
    return rates, costs, cpu_of(pid) - begun


async def issue(target: Target, sizes: Sizes) -> list[Row]:
    """b2: X.509-SVIDs by BatchNewX509SVID."""
    workers = getattr(target, "workers", 0)
    rows: list[Row] = []
    async with driving(target) as driver:
        identity, path = await driver.join()
        ids = await driver.create_entries(path, sizes.batch)
        await known(driver, identity, len(ids))
        csr = build_csr(generate(KeyKind.EC_P256), spiffe_id=None)
        request = svid_pb2.BatchNewX509SVIDRequest(
            params=[svid_pb2.NewX509SVIDParams(entry_id=one, csr=csr) for one in ids]
        )
        for callers in (1, 4):
            stubs = [Stub((await driver.dial(identity)).channel(), SVID) for _ in range(callers)]
            last: Any = None

            async def call(caller: int, stubs: list[Any] = stubs) -> int:
                nonlocal last
                last = await stubs[caller].BatchNewX509SVID(request, timeout=60)
                return len(last.results)

            rates, costs, used = await timed(target.server.pid, sizes, callers, call)
            for result in last.results:
                assert result.status.code == 0, result.status.message
                verify_x509_svid(list(result.svid.cert_chain), lambda _: driver.bundle, now=SystemClock().now())
            what = f"{callers} caller(s), {workers} worker(s)"
            note = f"server CPU: {used.split()}"
            rate = median("b2", f"SVIDs issued, {what}", rates, "/s", target=target.name, note=note)
            rows.append(sizes.bar(rate, at_least=7_000 if workers else 5_000))
            rows.append(median("b2", f"server CPU each, {what}", costs, "µs", target=target.name))
    return rows


async def mint(target: Target, sizes: Sizes) -> list[Row]:
    """b3: JWT-SVIDs by NewJWTSVID, 32 in flight on 4 connections."""
    async with driving(target) as driver:
        identity, path = await driver.join()
        ids = await driver.create_entries(path, min(sizes.batch, 100))
        await known(driver, identity, len(ids))
        stubs = [Stub((await driver.dial(identity)).channel(), SVID) for _ in range(4)]
        requests = [svid_pb2.NewJWTSVIDRequest(entry_id=one, audience=["bench"]) for one in ids]

        async def call(caller: int) -> int:
            answer = await stubs[caller % 4].NewJWTSVID(requests[caller % len(requests)], timeout=60)
            assert answer.svid.token
            return 1

        rates, costs, used = await timed(target.server.pid, sizes, 32, call)
    note = f"server CPU: {used.split()}"
    return [
        sizes.bar(median("b3", "JWT-SVIDs minted", rates, "/s", target=target.name, note=note), at_least=2_000),
        sizes.bar(median("b3", "server CPU each", costs, "µs", target=target.name), at_most=450),
    ]


async def attest(target: Target, sizes: Sizes) -> list[Row]:
    """b6: join-token attestations, a new TLS connection each, 8 at a time; what answers is verified afterwards."""
    rates, costs, own, answers = [], [], [], []
    async with driving(target) as driver:
        pid, place = target.server.pid, ("127.0.0.1", target.port)
        csr = build_csr(generate(KeyKind.EC_P256), spiffe_id=None)
        context = client_context(None, [one.der for one in driver.bundle.x509_authorities])
        begun = cpu_of(pid)
        for _ in range(sizes.repeats):
            requests = [
                driver.attestation(token, csr).SerializeToString() for token in await driver.tokens(sizes.attestations)
            ]
            before, start, mine = cpu_of(pid), time.perf_counter(), time.process_time()

            async def worker(requests: list[bytes] = requests) -> None:
                while requests:
                    answers.append(await RawConnection.one_call(place, context, ATTEST, requests.pop()))

            await asyncio.gather(*(worker() for _ in range(8)))
            elapsed, used = time.perf_counter() - start, cpu_of(pid) - before
            own.append((time.process_time() - mine) / sizes.attestations * 1e3)
            rates.append(sizes.attestations / elapsed)
            costs.append(used.total / sizes.attestations * 1e3)
        whole = cpu_of(pid) - begun
        for answer in answers:
            svid = agent_pb2.AttestAgentResponse.FromString(answer).result.svid
            verify_x509_svid(list(svid.cert_chain), lambda _: driver.bundle, now=SystemClock().now())
    note = f"server CPU: {whole.split()}; the driver: {statistics.median(own):.1f} ms each"
    return [
        sizes.bar(median("b6", "attestations, join token", rates, "/s", target=target.name, note=note), at_least=150),
        sizes.bar(median("b6", "server CPU each", costs, "ms", target=target.name), at_most=6),
    ]


async def registry(target: Target, sizes: Sizes) -> list[Row]:
    """b9, b8 and b11a in one go: create the entries, let one agent have them all, look at the memory."""
    name = getattr(target, "database_kind", "SQLite")
    pid = target.server.pid
    rows: list[Row] = []
    async with driving(target) as driver:
        identity, path = await driver.join()
        before, start = cpu_of(pid), time.perf_counter()
        ids = await driver.create_entries(path, sizes.entries)
        elapsed, used = time.perf_counter() - start, cpu_of(pid) - before
        note = f"server CPU: {used.total / len(ids) * 1e6:,.0f} µs each; {used.split()}"
        rate = Row(
            "b9", f"entries created, 500 a call, {name}", len(ids) / elapsed, "/s", target=target.name, note=note
        )
        rows.append(sizes.bar(rate, at_least=5_000))
        await known(driver, identity, len(ids))
        rows += await synchronise(driver, identity, sizes, len(ids))
        steady = Row("b11a", f"resident with {len(ids):,} entries", resident_mb(pid), "MB", target=target.name)
        rows.append(sizes.bar(steady, at_most=200))
        rows.append(Row("b11a", "the most it ever had", resident_mb(pid, "VmHWM"), "MB", target=target.name))
    target.server.stop()
    start = time.perf_counter()
    pid = target.start_server(START_SECONDS).pid
    rows.append(Row("b11a", "started again, serving after", time.perf_counter() - start, "s", target=target.name))
    again = Row("b11a", "started again, resident", resident_mb(pid), "MB", target=target.name)
    rows.append(sizes.bar(again, at_most=200))
    return rows


async def synchronise(driver: Driver, identity: Any, sizes: Sizes, count: int) -> list[Row]:
    """b8: GetAuthorizedEntries, then SyncAuthorizedEntries from nothing and again with nothing new."""
    pid, name = driver.target.server.pid, driver.target.name
    rows: list[Row] = []
    stub = Stub((await driver.dial(identity)).channel(), ENTRY)
    acts = {
        "all entries at once": lambda: whole(stub),
        "sync from nothing": lambda: sync(stub, all_new=True),
        "steady sync": lambda: sync(stub, all_new=False),
    }
    if name == Muniment.name:
        acts["push stream from nothing"] = lambda: pushed_from_nothing(driver, identity, count)
    for what, act in acts.items():
        times, costs, size = [], [], 0
        for _ in range(min(sizes.repeats, 3)):
            before, start = cpu_of(pid), time.perf_counter()
            found, size = await act()
            times.append(time.perf_counter() - start)
            costs.append((cpu_of(pid) - before).total)
            assert found == count, f"{found} entries instead of {count}"
        note = f"{size / 1e6:,.1f} MB of messages"
        rows.append(median("b8", f"{what}, {count:,} entries", times, "s", target=name, note=note))
        rows.append(median("b8", f"{what}, server CPU", costs, "s", target=name))
    return rows


async def whole(stub: Any) -> tuple[int, int]:
    answer = await stub.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest(), timeout=120)
    return len(answer.entries), answer.ByteSize()


async def sync(stub: Any, *, all_new: bool) -> tuple[int, int]:
    """As an agent does; with nothing new it is content with the revisions. Entries learnt of, bytes received."""
    call = stub.SyncAuthorizedEntries(timeout=120)
    await call.write(entry_pb2.SyncAuthorizedEntriesRequest())
    ids: list[str] = []
    size = found = 0
    more = True
    while more:
        page = await call.read()
        ids += [one.id for one in page.entry_revisions]
        found += len(page.entries)
        size, more = size + page.ByteSize(), page.more
    if all_new and ids:
        await call.write(entry_pb2.SyncAuthorizedEntriesRequest(ids=ids))
        more = True
        while more:
            page = await call.read()
            found += len(page.entries)
            size, more = size + page.ByteSize(), page.more
    await call.done_writing()
    return found or len(ids), size


async def known(driver: Driver, identity: Any, count: int) -> None:
    """Return once the server hands out all entries: SPIRE reads its database every five seconds."""
    stub = Stub((await driver.dial(identity)).channel(), ENTRY)
    mask = entry_types.EntryMask(spiffe_id=True)
    until = time.perf_counter() + SETTLE_SECONDS
    while time.perf_counter() < until:
        answer = await stub.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest(output_mask=mask), timeout=120)
        if len(answer.entries) >= count:
            return
        await asyncio.sleep(0.5)
    raise TimeoutError(f"the server does not hand out the {count} entries")


SERVER_ROWS: dict[str, Callable[[Target, Sizes], Awaitable[list[Row]]]] = {
    "b2": issue,
    "b3": mint,
    "b6": attest,
    "b8": registry,
}
