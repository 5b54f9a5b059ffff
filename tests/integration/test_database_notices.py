"""PostgreSQL's notifications, as somebody else who listens hears them: one for each transaction (A8, issue 3 item 6)."""

import psycopg
import pytest
from sqlalchemy import make_url

from identity_server.store.postgresql import CHANNEL
from spiffe_core.errors import Conflict
from tests.builders import make_entry
from tests.databases import running_store, url_of

BATCH = 300


def entries(first):
    return [make_entry(id=f"e{number}", spiffe_id=f"/e{number}") for number in range(first, first + BATCH)]


def listening(url):
    """A connection of its own that hears what every server of the database hears."""
    parsed = make_url(url)
    line = psycopg.connect(
        host=parsed.query.get("host") or parsed.host,
        port=parsed.port,
        user=parsed.username,
        password=parsed.password,
        dbname=parsed.database,
        autocommit=True,
    )
    line.execute(f"LISTEN {CHANNEL}")
    return line


def heard(line):
    """How many notifications came before one of our own, which ends the count."""
    line.execute(f"SELECT pg_notify('{CHANNEL}', 'the end')")
    for number, notice in enumerate(line.notifies(timeout=30)):
        if notice.payload == "the end":
            return number
    pytest.fail("PostgreSQL did not deliver our own notification")


async def test_a_transaction_is_told_once_however_much_it_changes(tmp_path):
    """A8: 300 entries and their events ring once; what was refused, and what only reads, does not ring at all."""
    url = url_of("postgresql", tmp_path)
    async with running_store(url) as store:
        with listening(url) as line:
            heard(line)
            for first in (0, BATCH, 2 * BATCH):
                await store.execute(lambda uow, first=first: uow.entries.add(entries(first)))
                assert heard(line) == 1
            with pytest.raises(Conflict):
                await store.execute(lambda uow: uow.entries.add(entries(0)))
            assert await store.read(lambda uow: uow.entries.get("e0")) is not None
            assert heard(line) == 0
            await store.execute(lambda uow: uow.entries.remove([one.id for one in entries(0)]))
            assert heard(line) == 1
