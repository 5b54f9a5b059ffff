"""What became of a change: a COMMIT without an answer, a killed or frozen server, failing transactions.

R26, R29, R32, R34, R35 and eventlog section 4.6, on real PostgreSQL and MariaDB.
"""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psycopg
import pymysql
import pytest
from sqlalchemy import make_url

from identity_server.store import writer
from identity_server.store.database import FROZEN_SECONDS
from spiffe_core.errors import Unavailable
from tests.builders import make_entry
from tests.databases import SHARED_KINDS, running_store, url_of
from tests.doubles.database_proxy import DatabaseProxy
from tests.doubles.database_servers import shared_server
from tests.doubles.held_follower import seen

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=SHARED_KINDS)
def url(request, tmp_path):
    return url_of(request.param, tmp_path)


def add(name):
    return lambda uow: uow.entries.add([make_entry(id=str(name), spiffe_id=f"/{name}")])


def run_sql(url, *statements):
    """Behind everybody's back."""
    parsed = make_url(url)
    return shared_server(parsed.get_backend_name()).execute(parsed.database, *statements)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_connection_cut_exactly_at_commit_neither_doubles_nor_loses_the_change(url, moment):
    """eventlog 2.2: the outcome is settled by the log itself; the caller is told what really happened."""
    with DatabaseProxy(url) as proxy:
        async with running_store(proxy.url) as store:
            await store.execute(add("first"))
            before = store.state.value.position.revision
            for number in range(20):
                if number % 4 == 0:
                    proxy.cut_at_commit(moment)
                runs = []

                def counted(uow, number=number, runs=runs):
                    runs.append(number)
                    add(number)(uow)

                await store.execute(counted)
                assert len(runs) == (2 if number % 4 == 0 and moment == "before" else 1), "never repeated blindly"
            assert proxy.cuts == 5
            assert store.state.value.position.revision == before + 20, "each change has one revision"
            assert set(store.state.value.entries) == {"first", *map(str, range(20))}
            assert store.trouble == ""


async def test_a_refusal_in_the_batch_stays_a_refusal_when_the_commit_is_settled(url):
    """Only what was written is in doubt."""
    with DatabaseProxy(url) as proxy:
        async with running_store(proxy.url) as store:
            await store.execute(add("first"))
            proxy.cut_at_commit("after")

            def refuse(_uow):
                raise Unavailable("mine")

            results = await asyncio.gather(*(store.execute(one) for one in (add("a"), refuse)), return_exceptions=True)
            assert results[0] is None
            assert str(results[1]) == "mine"


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_commit_that_cannot_be_settled_is_told_as_unknown(url, moment, monkeypatch):
    """The database is gone right after the COMMIT: neither "stored" nor "not stored" would be true."""
    monkeypatch.setattr(writer, "SETTLE_SECONDS", 0.3)
    with DatabaseProxy(url) as proxy:
        async with running_store(proxy.url) as store:
            await store.execute(add("first"))
            proxy.cut_at_commit(moment)

            def last(uow):
                add("doubtful")(uow)
                proxy._refusing = True  # from now on nobody can ask

            with pytest.raises(Unavailable, match="did not say whether"):
                await store.execute(last)
            proxy.mend()
            await store.execute(add("next"))
            await seen(store, lambda state: "next" in state.entries)
            assert ("doubtful" in store.state.value.entries) == (moment == "after")


@pytest.mark.slow
async def test_a_server_frozen_while_it_holds_the_head_holds_nobody_up_for_long(url):
    """R24, R32: the database cuts the frozen one off; others go on; when it wakes, its change is made once."""
    command = [sys.executable, "-m", "tests.doubles.store_process", url, "--freeze"]
    async with running_store(url, server_id="other") as store:
        await store.execute(add("before"))
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                await asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WSTOPPED)
                began = time.monotonic()
                await store.execute(add("meanwhile"))
                assert time.monotonic() - began < FROZEN_SECONDS + 10
                process.send_signal(signal.SIGCONT)
                assert (await asyncio.to_thread(process.stdout.readline)) == "stored\n"
            finally:
                process.kill()
        await seen(store, lambda state: {"before", "meanwhile", "frozen"} <= set(state.entries))
        assert run_sql(url, "SELECT count(*) FROM entry") == [(3,)]


@pytest.mark.slow
async def test_kill_9_of_a_server_loses_nothing_acknowledged_and_keeps_batches_whole(url):
    """R1, R26: as on SQLite; another server on the same database sees all of it, in order, without a restart."""
    acknowledged = set()
    async with running_store(url, server_id="survivor") as store:
        for round_ in range(3):
            command = [sys.executable, "-m", "tests.doubles.store_process", url]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
                assert process.stdout is not None
                assert (await asyncio.to_thread(process.stdout.readline)) == "ready\n"
                for _ in range(1 + round_ * 9):
                    acknowledged.add((await asyncio.to_thread(process.stdout.readline)).strip())
                process.send_signal(signal.SIGKILL)
                acknowledged.update(line.strip() for line in process.stdout if line.endswith("\n"))
            await store.execute(add(f"after-{round_}"))  # waits for the dead one's transaction
        ids = set(store.state.value.entries)
        batches = {}
        for one in ids:
            if one.startswith("b-"):
                batches[one.split("-")[1]] = batches.get(one.split("-")[1], 0) + 1
        assert set(batches.values()) <= {500}
        for line in acknowledged:
            kind, _, name = line.partition(" ")
            assert name in (ids if kind == "one" else batches), line
        ((stored,),) = run_sql(url, "SELECT count(*) FROM entry")
        assert stored == len(ids)


FAILING = {
    "postgresql": (
        "CREATE SEQUENCE seen_inserts",
        (
            "CREATE FUNCTION fail_often() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF nextval('seen_inserts') % 10 = 0 THEN RAISE EXCEPTION 'injected' USING ERRCODE = '{code}'; END IF; "
            "RETURN NEW; END $$"
        ),
        "CREATE TRIGGER fail_often BEFORE INSERT ON entry FOR EACH ROW EXECUTE FUNCTION fail_often()",
    ),
    "mariadb": (
        "CREATE SEQUENCE seen_inserts NOCACHE",
        (
            "CREATE TRIGGER fail_often BEFORE INSERT ON entry FOR EACH ROW BEGIN "
            "IF NEXTVAL(seen_inserts) % 10 = 0 THEN SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = {code}, "
            "MESSAGE_TEXT = 'injected'; END IF; END"
        ),
    ),
}


@pytest.mark.parametrize("failure", ["serialization", "deadlock"])
async def test_one_transaction_in_ten_fails_and_nobody_notices(url, failure):
    """R29: serialization failures and deadlocks are retried with jitter; nothing half, nothing twice, bounded."""
    kind = make_url(url).get_backend_name()
    code = {"postgresql": ("40001", "40P01"), "mariadb": ("1020", "1213")}[kind][failure == "deadlock"]
    async with running_store(url) as store:
        run_sql(url, *(one.replace("{code}", code) for one in FAILING[kind]))
        before = store.state.value.position.revision
        for number in range(60):
            await store.execute(add(number))
        await asyncio.gather(*(store.execute(add(f"many-{number}")) for number in range(8)))
        assert len(store.state.value.entries) == 68
        assert store.state.value.position.revision == before + 68
        column = {"postgresql": "last_value", "mariadb": "next_not_cached_value"}[kind]
        ((inserts,),) = run_sql(url, f"SELECT {column} FROM seen_inserts")  # constants
        assert inserts > 68 + 6, "one in ten was tried once more"


async def test_a_transaction_that_commits_late_is_not_skipped(url):
    """R35: somebody holds the head for a while and commits; who began later comes later, and both are seen."""
    parsed = make_url(url)
    async with running_store(url) as store:
        await store.execute(add("first"))
        revision = store.state.value.position.revision
        if parsed.get_backend_name() == "postgresql":
            slow = psycopg.connect(host=parsed.query["host"], user=parsed.username, dbname=parsed.database)
        else:
            slow = pymysql.connect(
                unix_socket=parsed.query["unix_socket"], user=parsed.username, database=parsed.database
            )
        with closing(slow), slow.cursor() as cursor:
            cursor.execute("SELECT revision FROM log_head WHERE id = 1 FOR UPDATE")
            cursor.execute(
                "INSERT INTO log_event (revision, seq, token, kind, subject) VALUES (%s, 0, 77, 2, %s)",
                (revision + 1, b"first"),
            )
            later = asyncio.ensure_future(store.execute(add("later")))
            done, _ = await asyncio.wait([later], timeout=0.3)
            assert not done, "nobody passes the one who holds the head"
            cursor.execute("UPDATE log_head SET revision = %s, token = 77 WHERE id = 1", (revision + 1,))
            slow.commit()
            await later
        assert store.state.value.position.revision == revision + 2
        assert set(store.state.value.entries) == {"first", "later"}


async def test_a_lost_listener_only_makes_news_a_second_late(tmp_path):
    """R34: nobody can LISTEN; each change of another server is seen within 5 s, none is missed, none comes twice."""
    url = url_of("postgresql", tmp_path)
    with DatabaseProxy(url) as proxy:
        async with running_store(url, server_id="one") as one, running_store(proxy.url, server_id="two") as two:
            await one.execute(add("first"))
            await seen(two, lambda state: "first" in state.entries)
            revisions = []
            follow = two._follower._publish

            def publish(state, change):
                revisions.append(state.position.revision)
                follow(state, change)

            two._follower._publish = publish
            proxy.forbid(b"LISTEN")
            for number in range(3):
                await one.execute(add(number))
                await seen(two, lambda state, number=number: str(number) in state.entries, seconds=5)
            assert proxy.cuts >= 1, "it tried to listen again"
            proxy.mend()
            async with asyncio.timeout(10):
                for number in itertools.count(100):
                    began = time.monotonic()
                    await one.execute(add(number))
                    await seen(two, lambda state, number=number: str(number) in state.entries, seconds=5)
                    if time.monotonic() - began < 0.5:
                        break
            assert revisions == sorted(set(revisions)), "nothing came twice"
            assert set(two.state.value.entries) == set(one.state.value.entries)
