"""Every database is brought from the oldest schema to the newest, and servers of both versions can use it meanwhile."""

import pytest
from sqlalchemy import MetaData, func, insert, select, text, update
from sqlalchemy.exc import SQLAlchemyError

from identity_server.domain.agents import AttestedAgent
from identity_server.domain.authority import Authority, Status
from identity_server.domain.join_tokens import JoinToken
from identity_server.store import event_log, schema
from identity_server.store.connecting import open_database
from identity_server.store.migrating import VERSION_TABLE, upgrade
from spiffe_core.errors import PreconditionFailed
from tests.builders import OTHER_TD, make_bundle, make_entry, selectors, sid
from tests.databases import SERVER, open_store, running_store

OLDEST = "0001"
LATE = "late"
"""The entry that an older server writes after the migration."""


async def filled(folder):
    """Rows of every table that the oldest version knew, and the state they amount to."""
    async with running_store(folder / "source" / "store.sqlite3") as store:
        entry = make_entry(
            id="one",
            selectors=["unix:uid:1000", "unix:path:/usr/bin/web"],
            federates_with=(OTHER_TD,),
            dns_names=("web.example.org",),
            hint="internal",
            admin=True,
        )
        agent = AttestedAgent(
            sid("/spire/agent/a"),
            "join_token",
            serial=str(2**127),
            expires_at=2_000_000_000,
            selectors=selectors("join_token:abc"),
            can_reattest=True,
        )
        authority = Authority(
            authority_id="ab" * 20,
            server_id=SERVER,
            slot="A",
            status=Status.PREPARED,
            certificate=b"\x30\x00\xff",
            issued_at=1,
            not_after=2_000_000_000,
            published_at=0,
        )

        def fill(uow):
            uow.entries.add([entry, make_entry(id=LATE, spiffe_id="/late")])
            uow.agents.put(agent)
            uow.join_tokens.add(JoinToken(digest=b"\x01" * 32, alias_path="/node", expires_at=2_000_000_000))
            uow.bundles.put(make_bundle())
            uow.bundles.put(make_bundle(trust_domain=OTHER_TD.name))
            uow.authorities.put(authority)

        await store.execute(fill)
        with store._database.reader.begin() as connection:
            rows = {
                table.name: [dict(row._mapping) for row in connection.execute(select(table))]
                for table in schema.metadata.sorted_tables
            }
        return rows, store.state.value


def old_tables(database):
    metadata = MetaData()
    with database.reader.connect() as connection:
        metadata.reflect(connection)
    return {table.name: table for table in metadata.sorted_tables if table.name != VERSION_TABLE}


def write(connection, table, rows):
    """As a server of the old version does: it knows the columns of its own schema only."""
    if rows:
        names = set(table.columns.keys())
        connection.execute(insert(table), [{name: row[name] for name in row if name in names} for row in rows])


def split(rows):
    """Rows of the entry that is written late, and all the others."""
    (key,) = (row["row_key"] for row in rows["entry"] if bytes(row["id"]) == LATE.encode())
    late = {
        name: [row for row in rows[name] if row["row_key"] == key]
        for name in ("entry", "entry_selector", "entry_federation")
    }
    return {name: [row for row in found if row not in late.get(name, [])] for name, found in rows.items()}, late


async def test_a_filled_database_of_the_oldest_schema_becomes_one_of_the_newest(database_url, tmp_path):
    """Nothing is lost or changed; statements of the old version still work afterwards (expand and contract)."""
    rows, expected = await filled(tmp_path)
    early, late = split(rows)
    database = open_database(database_url)
    with database.alone():
        upgrade(database, target=OLDEST)
    old = old_tables(database)
    with database.writer.begin() as connection:
        for name, table in old.items():
            write(connection, table, early[name])
    database.close()
    async with running_store(database_url) as store:
        assert set(store.state.value.entries) == {"one"}
        with store._database.writer.engine.connect() as connection:
            assert connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar() == (
                schema.SCHEMA_REVISION
            )
    database = open_database(database_url)  # a server of the old version goes on meanwhile
    try:
        with database.writer.begin() as connection:
            head = event_log.lock_head(connection)
            for name, found in late.items():
                write(connection, old[name], found)
            for name, table in old.items():
                assert connection.execute(select(func.count()).select_from(table)).scalar() == len(rows[name]), name
                connection.execute(select(table)).all()
            connection.execute(update(old["agent"]).values(new_serial=b"7"))
            connection.execute(update(old["log_head"]).values(token=head.token))
    finally:
        database.close()
    async with running_store(database_url) as store:
        state = store.state.value
        assert state.entries == expected.entries
        assert (state.position, state.authorities) == (expected.position, expected.authorities)
        assert [bundle.trust_domain for bundle in state.bundles.all()] == [
            bundle.trust_domain for bundle in expected.bundles.all()
        ]
        assert state.bundles.own == expected.bundles.own
        assert state.agents["/spire/agent/a"].new_serial == "7"
        assert await store.read(lambda uow: uow.join_tokens.get(b"\x01" * 32)) is not None
        await store.execute(lambda uow: uow.entries.add([make_entry(id="new", spiffe_id="/new")]))


async def test_a_newer_schema_is_refused_and_left_alone(database_url):
    """A server that does not know it says which one it is and what to do."""
    async with running_store(database_url) as store:
        await store.execute(lambda uow: uow.entries.add([make_entry()]))
    set_version(database_url, "9999")
    with pytest.raises(PreconditionFailed, match=r"schema 9999.*newer version"):
        open_store(database_url)
    set_version(database_url, schema.SCHEMA_REVISION)
    async with running_store(database_url) as store:
        assert len(store.state.value.entries) == 1


def set_version(url, version):
    database = open_database(url)
    try:
        with database.writer.begin() as connection:
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = :version"), {"version": version})
    finally:
        database.close()


async def test_a_migration_may_take_longer_than_ordinary_work(database_url):
    """Time limits of the session and of the client are lifted while the schema changes, and only then."""
    database = open_database(database_url)
    try:
        with database.writer.connect() as connection:
            usual = limits(connection)
        with database.writer.begin() as connection:
            database.unhurried(connection)
            lifted = limits(connection)
        assert all(after in {0, "0"} or after > before for before, after in zip(usual, lifted, strict=True))
        with database.alone():
            upgrade(database)
        with database.writer.connect() as connection:
            assert limits(connection) == usual
            with pytest.raises(SQLAlchemyError):
                connection.execute(text("SELECT * FROM not_there"))
    finally:
        database.close()


def limits(connection):
    """What bounds a statement on this connection: at the server, and at our end of it."""
    driver = connection.connection.driver_connection
    if connection.dialect.name == "postgresql":
        names = ("statement_timeout", "idle_in_transaction_session_timeout")
        return [*(connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names), driver.patience]
    if connection.dialect.name in {"mysql", "mariadb"}:
        names = ("max_statement_time", "idle_transaction_timeout")
        return [*(connection.exec_driver_sql(f"SELECT @@{name}").scalar() for name in names), driver._read_timeout]
    return []
