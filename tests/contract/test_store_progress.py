"""A9: how far each server's agents are, in every database."""

from dataclasses import replace
from pathlib import Path

import pytest

from identity_server.domain.agent_progress import AgentProgress, ProgressRecord, digest_of, documents, paths_of, read
from identity_server.domain.server_settings import MAX_RECORDS
from identity_server.store.sql_store import SqlStore
from spiffe_core.errors import Internal
from tests.databases import SERVER, SHARED_KINDS, running_store, url_of

AGENTS = tuple(AgentProgress(f"/spire/agent/x/{name}", 7, connected=True) for name in "abc")
LATER = 1_700_000_000


def record(server_id="other", agents=AGENTS, revision=7, beat=1, asked=0, written_at=LATER):
    members, brief = documents(agents, revision)
    return ProgressRecord(server_id, beat, asked, written_at, digest_of(members), members, brief)


def put(one, *, tell=False):
    return lambda uow: uow.progress.put(one, tell=tell)


def others(since=0, known=None):
    return lambda uow: uow.progress.others(SERVER, since, known or {})


@pytest.fixture(params=SHARED_KINDS)
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return url_of(request.param, tmp_path)


async def test_a_row_comes_back_as_it_was_written_but_not_ones_own(store: SqlStore) -> None:
    one = record(asked=9)
    await store.execute(put(one))
    await store.execute(put(record(SERVER)))
    assert await store.read(others()) == (one,)
    (found,) = await store.read(others())
    assert read("other", paths_of(found.members), found.brief).agents == tuple(
        replace(agent, server_id="other") for agent in AGENTS
    )


async def test_members_that_are_known_are_not_read_again(store: SqlStore) -> None:
    one = record()
    await store.execute(put(one))
    known = {"other": one.members_digest}
    assert await store.read(others(known=known)) == (replace(one, members=b""),)
    fewer = record(agents=AGENTS[:1], beat=2)
    await store.execute(put(fewer))
    assert await store.read(others(known=known)) == (fewer,)


async def test_at_rest_a_row_is_stored_without_a_revision_that_anybody_would_follow(store: SqlStore) -> None:
    """A9: in steady state no server is woken and no table is read again."""
    before = store.state.value
    await store.execute(put(record()))
    await store.execute(put(record(beat=2)))
    (found,) = await store.read(others())
    assert found.beat == 2
    assert await store.read(lambda uow: uow.log.head().position) == before.position
    await store.execute(put(record(beat=3), tell=True))
    state = store.state.value
    assert state.position.revision == before.position.revision + 1
    assert state.last.progress == {"other"}
    assert state.servers_at == before.servers_at, "nobody compares settings because of it"


async def test_what_is_told_reaches_another_server_of_the_database(shared_url: str) -> None:
    async with running_store(shared_url) as one, running_store(shared_url, server_id="other") as other:
        told = []
        other.state.listeners.append(lambda state: told.append(state.last.progress if state.last else None))
        version = other.state.version
        await one.execute(put(record(SERVER), tell=True))
        while frozenset({SERVER}) not in told:
            version = await other.state.changed(version)
        assert len(await other.read(lambda uow: uow.progress.others("other", 0, {}))) == 1
        await one.execute(lambda uow: uow.progress.remove(SERVER))
        while told.count(frozenset({SERVER})) < 2:
            version = await other.state.changed(version)
        assert await other.read(lambda uow: uow.progress.others("other", 0, {})) == ()


async def test_old_rows_are_not_shown_and_are_forgotten_a_bounded_number_at_a_time(store: SqlStore) -> None:
    def command(uow) -> None:
        for number in range(MAX_RECORDS + 4):
            uow.progress.put(record(f"s{number}", (), written_at=number), tell=False)

    await store.execute(command)
    assert len(await store.read(others())) == MAX_RECORDS
    assert {one.server_id for one in await store.read(others(since=MAX_RECORDS + 2))} == {"s258", "s259"}
    await store.execute(lambda uow: uow.progress.forget(MAX_RECORDS + 3))
    await store.execute(lambda uow: uow.progress.forget(MAX_RECORDS + 3))
    assert [one.server_id for one in await store.read(others())] == ["s259"]
    await store.execute(lambda uow: uow.progress.remove("unknown"))


async def test_a_query_writes_no_row(store: SqlStore) -> None:
    with pytest.raises(Internal, match=r"Store\.execute"):
        await store.read(put(record()))
