"""R39: what servers write down about themselves, in every database."""

from dataclasses import replace
from pathlib import Path

import pytest

from identity_server.domain.join_tokens import JoinToken
from identity_server.domain.server_settings import MAX_RECORDS, IssuingSettings, ServerRecord
from identity_server.store.sql_store import SqlStore
from spiffe_core.errors import CorruptState, Internal
from tests.databases import SERVER, SHARED_KINDS, running_store, url_of

SETTINGS = IssuingSettings.of(
    {"jwt.issuer": "émoji 🦊", "svid.default_x509_ttl": 3600, "jwt.disabled": False, "x": None}
)
OTHER = IssuingSettings.of({"svid.default_x509_ttl": 600})
OWN = ServerRecord(SERVER, SETTINGS, 1_700_000_000)
THERE = ServerRecord("other", OTHER, 1_700_000_009)


@pytest.fixture(params=SHARED_KINDS)
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return url_of(request.param, tmp_path)


async def test_records_come_back_as_they_were_written_the_newest_first(store: SqlStore) -> None:
    assert await store.read(lambda uow: uow.servers.all()) == ()
    await store.execute(lambda uow: [uow.servers.put(one) for one in (OWN, THERE)])
    assert await store.read(lambda uow: uow.servers.all()) == (THERE, OWN)


async def test_what_is_new_moves_the_cue_to_read_and_what_is_not_changes_nothing(store: SqlStore) -> None:
    await store.execute(lambda uow: uow.servers.put(OWN))
    first = store.state.value
    assert first.servers_at == first.position
    await store.execute(lambda uow: uow.servers.put(OWN))
    assert store.state.value.position == first.position
    await store.execute(lambda uow: uow.servers.put(replace(OWN, settings=OTHER)))
    second = store.state.value
    assert second.servers_at == second.position != first.position
    await store.execute(lambda uow: uow.servers.put(replace(OWN, written_at=9)))
    assert await store.read(lambda uow: uow.servers.all()) == (replace(OWN, written_at=9),)


async def test_what_is_written_of_others_does_not_move_the_cue(store: SqlStore) -> None:
    await store.execute(lambda uow: uow.servers.put(OWN))
    before = store.state.value.servers_at
    await store.execute(lambda uow: uow.join_tokens.add(JoinToken(b"d" * 32, "", 1)))
    assert store.state.value.servers_at == before != store.state.value.position


async def test_another_server_of_the_database_hears_of_it(shared_url: str) -> None:
    """R39: at once, as of any change."""
    async with running_store(shared_url) as one, running_store(shared_url, server_id="other") as other:
        version, before = other.state.version, other.state.value.servers_at
        await one.execute(lambda uow: uow.servers.put(OWN))
        while other.state.value.servers_at == before:
            version = await other.state.changed(version)
        assert await other.read(lambda uow: uow.servers.all()) == (OWN,)


async def test_old_records_are_forgotten_and_many_are_bounded(store: SqlStore) -> None:
    def command(uow) -> None:
        for number in range(MAX_RECORDS + 4):
            uow.servers.put(ServerRecord(f"s{number}", OTHER, number))

    await store.execute(command)
    found = await store.read(lambda uow: uow.servers.all())
    assert [one.written_at for one in found] == list(range(MAX_RECORDS + 3, 3, -1))
    await store.execute(lambda uow: uow.servers.forget(MAX_RECORDS))
    await store.execute(lambda uow: uow.servers.forget(0))
    found = await store.read(lambda uow: uow.servers.all())
    assert [one.written_at for one in found] == [MAX_RECORDS + number for number in (3, 2, 1, 0)]


async def test_a_row_that_another_program_wrote_is_named(store: SqlStore) -> None:
    """What cannot be read is not compared as if it were equal."""

    class Broken(IssuingSettings):
        document = b"[]"

    broken = Broken(())
    await store.execute(lambda uow: uow.servers.put(replace(OWN, settings=broken)))
    with pytest.raises(CorruptState, match=r"table server_settings"):
        await store.read(lambda uow: uow.servers.all())


async def test_a_query_writes_no_record(store: SqlStore) -> None:
    for write in (lambda uow: uow.servers.put(OWN), lambda uow: uow.servers.put(replace(OWN, written_at=1))):
        with pytest.raises(Internal, match=r"Store\.execute"):
            await store.read(write)
