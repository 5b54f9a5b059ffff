"""What shares a transaction, what it may not do, and what is there afterwards, in every database."""

import asyncio
import threading
from dataclasses import replace

import pytest

from identity_server.store.sql_store import SqlStore
from spiffe_core.errors import Conflict, Internal, InvalidRequest, Unavailable
from tests.builders import OTHER_TD, make_bundle, make_entry
from tests.databases import open_store, running_store
from tests.doubles.store_values import AGENT, AUTHORITY, FULL_ENTRY, token


async def _in_one_batch(store: SqlStore, commands: list) -> list:
    """Run the commands in one transaction: the writer is held busy until all of them wait."""
    entered, go = threading.Event(), threading.Event()

    def hold(_uow) -> None:
        entered.set()
        assert go.wait(10)

    holder = asyncio.ensure_future(store.execute(hold))
    while not entered.is_set():
        await asyncio.sleep(0.001)
    waiting = [asyncio.ensure_future(store.execute(command)) for command in commands]
    await asyncio.sleep(0)  # every command stands in the queue now
    go.set()
    await holder
    return await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_refusal_leaves_the_rest_of_its_batch_alone(store: SqlStore) -> None:
    seen: list[object] = []

    def add(number: int):
        entry = make_entry(id=str(number), spiffe_id=f"/{number}")

        def command(uow) -> int:
            seen.append(uow.entries._tables)
            if number == 1:
                raise InvalidRequest("no")
            if number == 3:
                raise ZeroDivisionError
            uow.entries.add([entry])
            return number

        return command

    results = await _in_one_batch(store, [add(number) for number in range(5)])
    assert [type(one) for one in results] == [int, InvalidRequest, int, ZeroDivisionError, int]
    assert set(store.state.value.entries) == {"0", "2", "4"}
    assert len(seen) == 5, "nothing was run twice"


@pytest.mark.parametrize("failure", [InvalidRequest("late"), ZeroDivisionError()])
async def test_an_exception_after_a_write_poisons_only_its_own_operation(store: SqlStore, failure: Exception) -> None:
    def add(number: int):
        def command(uow) -> int:
            uow.entries.add([make_entry(id=str(number), spiffe_id=f"/{number}")])
            if number == 2:
                raise failure
            return number

        return command

    before = store.state.value.position.revision
    results = await _in_one_batch(store, [add(number) for number in range(5)])
    assert results == [0, 1, failure, 3, 4]
    assert set(store.state.value.entries) == {"0", "1", "3", "4"}
    assert store.state.value.position.revision == before + 4, "revisions are dense"


async def test_a_broken_uniqueness_rule_fails_only_its_own_operation(store: SqlStore) -> None:
    await store.execute(lambda uow: uow.entries.add([FULL_ENTRY]))
    commands = [
        lambda uow, entry=entry: uow.entries.add([entry])
        for entry in (
            make_entry(id="a", spiffe_id="/a"),
            replace(FULL_ENTRY, id="twin"),
            make_entry(id="b", spiffe_id="/b"),
        )
    ]
    results = await _in_one_batch(store, commands)
    assert [type(one) for one in results] == [type(None), Conflict, type(None)]
    assert set(store.state.value.entries) == {"full", "a", "b"}


async def test_a_query_that_writes_is_refused(store: SqlStore) -> None:
    for write in (
        lambda uow: uow.entries.add([FULL_ENTRY]),
        lambda uow: uow.agents.put(AGENT),
        lambda uow: uow.bundles.put(make_bundle()),
        lambda uow: uow.authorities.put(AUTHORITY),
        lambda uow: uow.join_tokens.add(token("t")),
    ):
        with pytest.raises(Internal, match=r"Store\.execute"):
            await store.read(write)


async def test_a_query_sees_one_moment(store: SqlStore) -> None:
    await store.execute(lambda uow: uow.entries.add([make_entry(id="1", spiffe_id="/1")]))
    reading, written = threading.Event(), threading.Event()

    def query(uow) -> tuple[bool, bool]:
        first = uow.entries.get("1") is not None
        reading.set()
        assert written.wait(10)
        return first, uow.entries.get("2") is None

    answer = asyncio.ensure_future(store.read(query))
    while not reading.is_set():
        await asyncio.sleep(0.001)
    await store.execute(lambda uow: uow.entries.add([make_entry(id="2", spiffe_id="/2")]))
    written.set()
    assert await answer == (True, True)


async def test_what_was_stored_is_there_after_a_restart(database_url: str) -> None:
    """R33: same entries, agents, authorities and position."""
    async with running_store(database_url) as first:
        await first.execute(
            lambda uow: (
                uow.entries.add([FULL_ENTRY]),
                uow.agents.put(AGENT),
                uow.authorities.put(AUTHORITY),
                uow.bundles.put(make_bundle()),
            )
        )
        before = first.state.value
    second = open_store(database_url)
    try:
        after = second.state.value
        assert after == before
    finally:
        await second.close()


async def test_a_closed_store_says_unavailable(database_url: str) -> None:
    store = open_store(database_url)
    await store.start()
    await store.execute(lambda uow: uow.entries.add([FULL_ENTRY]))
    waiting = asyncio.ensure_future(store.execute(lambda uow: uow.entries.remove(["full"])))
    await asyncio.sleep(0)
    await store.close()
    assert await waiting is None, "what waited when the store closed is still stored"
    with pytest.raises(Unavailable):
        await store.execute(lambda uow: uow.entries.get("x"))
    reopened = open_store(database_url)
    assert reopened.state.value.entries == type(reopened.state.value.entries)()
    await reopened.close()


async def test_a_cancelled_caller_that_still_waits_changes_nothing(store: SqlStore) -> None:
    entered, go = threading.Event(), threading.Event()
    holder = asyncio.ensure_future(store.execute(lambda _uow: (entered.set(), go.wait(10))))
    while not entered.is_set():
        await asyncio.sleep(0.001)
    cancelled = asyncio.ensure_future(store.execute(lambda uow: uow.entries.add([FULL_ENTRY])))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    go.set()
    await holder
    await store.execute(lambda uow: uow.entries.add([make_entry(id="after")]))
    assert set(store.state.value.entries) == {"after"}


async def test_a_database_of_another_trust_domain_is_refused(database_url: str) -> None:
    """TDB-28: its authorities' keys are one trust domain's."""
    from spiffe_core.errors import PreconditionFailed

    await open_store(database_url).close()
    with pytest.raises(PreconditionFailed, match=r"belongs to trust domain example\.org"):
        open_store(database_url, trust_domain=OTHER_TD)
    await open_store(database_url).close()
