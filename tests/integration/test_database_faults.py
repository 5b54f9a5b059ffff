"""The database stops, freezes, or falls silent while a server runs: R24, R26, on real PostgreSQL and MariaDB processes.

What is in memory goes on being served; what needs the database is told so within a bounded time; nobody restarts
anything afterwards.
"""

import asyncio
import threading
import time
from contextlib import contextmanager

import grpc
import grpc.aio
import pytest

from identity_server.store import mariadb, sql_store
from identity_server.store.postgresql import BoundedConnection
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import Unavailable
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from tests.builders import make_entry
from tests.databases import SHARED_KINDS, open_store, running_store
from tests.doubles.database_proxy import DatabaseProxy
from tests.doubles.database_servers import new_server
from tests.doubles.live_server import attest, entry, live_server, sign, spiffe_id, wanted

ANSWER = 3.0
SILENT = 1.0
BOUND = ANSWER + 5.0
"""What a busy machine may add."""


@pytest.fixture(scope="module", params=SHARED_KINDS)
def database(request):
    """A database server that the tests of this file may harm."""
    server = new_server(request.param)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """The product's bounds, shortened: what is tested is that they hold."""
    monkeypatch.setattr(sql_store, "ANSWER_SECONDS", ANSWER)
    monkeypatch.setattr(sql_store, "READ_SECONDS", ANSWER)
    monkeypatch.setattr(BoundedConnection, "patience", SILENT)
    monkeypatch.setattr(mariadb, "SILENT_SECONDS", SILENT)


@pytest.fixture
def url(database, request):
    return database.new_database(f"f{abs(hash(request.node.name)) % 10**12}")


@contextmanager
def stopped(database, _proxy):
    """The database crashes; afterwards it is started again."""
    database.stop_hard()
    try:
        yield
    finally:
        database.start()


@contextmanager
def frozen(database, _proxy):
    """Its processes stand still; the kernel goes on acknowledging what is sent to them."""
    database.freeze()
    try:
        yield
    finally:
        database.thaw()


@contextmanager
def cut(_database, proxy):
    """Every connection ends, no new one comes to be."""
    proxy.cut()
    try:
        yield
    finally:
        proxy.mend()


@contextmanager
def silent(_database, proxy):
    """Connections stay, and nothing ever arrives on them: no packet, no reset."""
    proxy.silence()
    try:
        yield
    finally:
        proxy.mend()


async def code_of(awaitable):
    """The status of a call that fails, and how long that took."""
    began = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    assert time.monotonic() - began < BOUND
    return caught.value.code()


def sync(agent):
    return agent.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest(), timeout=20)


def create(live, path, parent):
    return live.entry.BatchCreateEntry(entry_pb2.BatchCreateEntryRequest(entries=[entry(path, parent)]), timeout=20)


async def back(live):
    """Wait until the server writes and follows again, by itself."""
    async with asyncio.timeout(40):
        while True:
            try:
                return await live.token()
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017  # anything else is a fault of ours
                await asyncio.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [stopped, frozen, cut, silent])
async def test_known_agents_are_served_from_memory_while_the_database_is_away(database, url, fault):
    """R24: issuing and sync go on, writes and unknown agents get Unavailable without details, and it heals by itself."""
    with DatabaseProxy(url) as proxy:
        async with live_server(database={"url": proxy.url}) as live:
            agent = await live.join()
            (entry_id,) = await live.entries(entry("/web", agent.path))
            gone = await live.join()
            await live.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(gone.path)))
            token = await live.token()
            stranger = await live.dial()
            with fault(database, proxy):
                writing = [code_of(create(live, f"/new-{number}", agent.path)) for number in range(3)]
                joining = code_of(attest(stranger.agent, token, generate(KeyKind.EC_P256)))
                unknown = code_of(sync(gone))
                waiting = asyncio.gather(*writing, joining, unknown)
                for _ in range(5):
                    assert [one.id for one in (await sync(agent)).entries] == [entry_id]
                    (signed,) = await sign(agent, wanted(entry_id))
                    assert signed.status.code == 0
                assert set(await waiting) == {grpc.StatusCode.UNAVAILABLE}
                async with asyncio.timeout(20):
                    while not live.server.store.trouble:
                        await asyncio.sleep(0.05)
            await back(live)
            async with asyncio.timeout(20):
                while live.server.store.trouble:
                    await asyncio.sleep(0.05)
            (later,) = await live.entries(entry("/later", agent.path))
            assert later in {one.id for one in (await sync(agent)).entries}
            await live.join()
            stored = {one.id for one in await live.server.store.read(lambda uow: list(uow.entries.all()))}
            assert stored == set(live.state.entries), "what was refused is either stored and seen, or neither"


@pytest.mark.slow
async def test_a_crash_of_the_database_under_writes_loses_nothing_acknowledged_and_doubles_nothing(database, url):
    """R26: killed and started again three times under eight writers; the log has neither holes nor doubles."""
    acknowledged, refused, stop = set(), 0, asyncio.Event()

    async def writer(store, name):
        nonlocal refused
        number = 0
        while not stop.is_set():
            number += 1
            made = make_entry(id=f"{name}-{number}", spiffe_id=f"/{name}/{number}")
            try:
                await store.execute(lambda uow, made=made: uow.entries.add([made]))
            except Unavailable:
                refused += 1
                await asyncio.sleep(0.01)
            else:
                acknowledged.add(made.id)

    async with running_store(url) as store:
        writers = [asyncio.ensure_future(writer(store, f"w{number}")) for number in range(8)]
        for _ in range(3):
            before = len(acknowledged)
            while len(acknowledged) < before + 100:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(database.stop_hard)
            await asyncio.to_thread(database.start)
        before = len(acknowledged)
        async with asyncio.timeout(40):
            while len(acknowledged) < before + 100:
                await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*writers)
        assert store.state.value.position.revision >= len(acknowledged)
        assert acknowledged <= set(store.state.value.entries)
        name = url.partition("?")[0].rpartition("/")[2]
        ((events, last, subjects),) = database.execute(
            name, "SELECT count(*), max(revision), count(DISTINCT subject) FROM log_event WHERE kind <> 1"
        )
        ((entries,),) = database.execute(name, "SELECT count(*) FROM entry")
        assert events == subjects == entries, "no entry was written twice"
        assert last == events + 1, "no revision is missing"


def at_work(monkeypatch, thread, what):
    """An event that is set while this thread of the store is at what it does with the database."""
    real, is_at_it = getattr(thread, what), threading.Event()

    def watched(*given):
        is_at_it.set()
        try:
            return real(*given)
        finally:
            is_at_it.clear()

    monkeypatch.setattr(thread, what, watched)
    return is_at_it


async def test_a_caller_in_the_queue_is_told_in_time_and_its_change_never_happens(database, url, monkeypatch):
    """R24: two writes wait behind a frozen database; the second was never begun, and is not done later either."""
    async with running_store(url) as store:
        await store.execute(lambda uow: uow.entries.add([make_entry(id="0", spiffe_id="/0")]))
        writing = at_work(monkeypatch, store._writer, "_run")
        database.freeze()
        try:
            first = asyncio.ensure_future(
                store.execute(lambda uow: uow.entries.add([make_entry(id="1", spiffe_id="/1")]))
            )
            assert await asyncio.to_thread(writing.wait, 20)
            began = time.monotonic()
            with pytest.raises(Unavailable, match="try again later"):
                await store.execute(lambda uow: uow.entries.add([make_entry(id="2", spiffe_id="/2")]))
            assert time.monotonic() - began < BOUND
            with pytest.raises(Unavailable):
                await first
        finally:
            database.thaw()
        async with asyncio.timeout(40):
            while True:
                try:
                    await store.execute(lambda uow: uow.entries.add([make_entry(id="3", spiffe_id="/3")]))
                    break
                except Unavailable:
                    await asyncio.sleep(0.1)
        assert {"0", "3"} <= set(store.state.value.entries)
        assert "2" not in store.state.value.entries


async def test_a_store_whose_database_is_frozen_is_closed_in_time(database, url, monkeypatch):
    """R6, R24: what waits for the database waits side by side; service managers kill who takes too long."""
    monkeypatch.setattr(BoundedConnection, "patience", 60.0)
    monkeypatch.setattr(mariadb, "SILENT_SECONDS", 60.0)
    monkeypatch.setattr(sql_store, "CLOSE_SECONDS", 4.0)
    store = open_store(url)
    await store.start()
    await store.execute(lambda uow: uow.entries.add([make_entry(id="0", spiffe_id="/0")]))
    writing = at_work(monkeypatch, store._writer, "_run")
    following = at_work(monkeypatch, store._follower, "step")
    database.freeze()
    try:
        change = asyncio.ensure_future(store.execute(lambda uow: uow.entries.add([make_entry(id="1", spiffe_id="/1")])))
        assert await asyncio.to_thread(writing.wait, 20)
        assert await asyncio.to_thread(following.wait, 20)
        began = time.monotonic()
        await store.close()
        took = time.monotonic() - began
        change.cancel()
        await asyncio.gather(change, return_exceptions=True)
    finally:
        database.thaw()
    for thread in (store._writer._thread, store._follower._thread, store._bell._thread):
        await asyncio.to_thread(thread.join, 30)
        assert not thread.is_alive()
    assert took < 7.5, "one after the other they take twice four seconds"
