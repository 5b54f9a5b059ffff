"""Commits whose outcome is not told, holes, batches and mistakes: what the log makes of them (eventlog sections 2.2, 4)."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from identity_server.store import writer
from spiffe_core.errors import Conflict, Internal, InvalidRequest, Unavailable
from tests.doubles.log_rig import Rig, entry, put


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty database: migrating one per example would be most of the time."""
    folder = tmp_path_factory.mktemp("template")
    rig = Rig(folder)
    rig.close()
    return rig.path


@pytest.fixture
def rig(tmp_path: Path, template: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, template)
    yield made
    made.close()


def test_a_commit_that_failed_after_it_happened_is_found_and_not_repeated(rig: Rig) -> None:
    """eventlog 4.6: applied = wanted, exactly."""
    failures = _failing_commits(rig, happened=True)
    ran: list[int] = []
    outcomes = rig.write(*(lambda uow, n=n: (ran.append(n), put(n, 1)(uow)) for n in range(3)))
    assert failures == [True]
    assert [outcome.revision for outcome in outcomes] == [2, 3, 4]
    assert ran == [0, 1, 2]
    rig.followers[0].step()
    assert rig.memory(rig.followers[0]) == rig.tables()


def test_a_commit_that_failed_and_did_not_happen_is_run_again(rig: Rig) -> None:
    failures = _failing_commits(rig, happened=False)
    ran: list[int] = []
    outcomes = rig.write(*(lambda uow, n=n: (ran.append(n), put(n, 1)(uow)) for n in range(3)))
    assert failures == [True]
    assert [outcome.revision for outcome in outcomes] == [2, 3, 4]
    assert ran == [0, 1, 2, 0, 1, 2]
    rig.followers[0].step()
    assert rig.memory(rig.followers[0]) == rig.tables()


def test_memory_keeps_the_id_of_an_entry_once(rig: Rig) -> None:
    """B11a: a second copy for the key costs 10 MB with 100,000 entries; by what was written, and by what was read."""
    rig.write(put(10_000, 1), put(10_001, 1))
    rig.write(put(10_000, 2))
    for one in rig.followers:
        one.step()
        assert len(one.state.entries) == 2
        assert all(key is record.id for key, record in one.state.entries.items())


def _failing_commits(rig: Rig, *, happened: bool) -> list[bool]:
    """The next COMMIT reports a lost connection, after it was done or instead of it."""
    from sqlalchemy.engine.default import DefaultDialect

    failures: list[bool] = []
    dialect = rig.database.writer.dialect

    def do_commit(connection) -> None:
        if not failures:
            failures.append(True)
            if happened:
                DefaultDialect.do_commit(dialect, connection)
            raise sqlite3.OperationalError("the connection was lost")
        DefaultDialect.do_commit(dialect, connection)

    dialect.do_commit = do_commit  # type: ignore[method-assign]  # a fault below everything of ours
    return failures


def test_rows_get_keys_that_grow(rig: Rig) -> None:
    """Page tokens stay in order across operations, batches and histories."""
    rig.write(put(5, 1), put(3, 1))
    rig.write(lambda uow: uow.entries.add([entry(4), entry(1)]))
    with rig.database.reader.begin() as connection:
        rows = connection.execute(text("SELECT id FROM entry ORDER BY row_key")).scalars().all()
    assert [bytes(one) for one in rows] == [b"5", b"3", b"4", b"1"]


def test_a_large_batch_is_one_transaction(rig: Rig) -> None:
    begun: list[int] = []
    from sqlalchemy import event as sa_event

    sa_event.listen(rig.database.writer, "commit", lambda _connection: begun.append(1))
    outcomes = rig.write(*(put(number, 1) for number in range(writer.MAX_BATCH)))
    assert len(begun) == 1
    assert [outcome.revision for outcome in outcomes][:6] == [2, 3, 4, 5, 6, 7]


def test_a_commit_whose_outcome_cannot_be_learnt_is_unavailable(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals and reads of the batch are still answered; writes are told to look."""
    monkeypatch.setattr(writer, "_MOST_TRIES", 3)
    _failing_commits(rig, happened=True)
    monkeypatch.setattr(rig.writer, "_find", lambda _failed: None)

    def refused(_uow) -> None:
        raise InvalidRequest("no")

    outcomes = rig.write(put(1, 1), refused, lambda uow: uow.entries.get("1") is not None)
    assert [type(outcome.error) for outcome in outcomes] == [Unavailable, InvalidRequest, type(None)]
    assert "look before retrying" in str(outcomes[0].error)


def test_looking_for_a_lost_commit_survives_more_failures(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = writer.lock_head, iter([False, True, True, False])

    def lock_head(connection):
        if next(failures, False):
            raise OperationalError("SELECT", {}, sqlite3.OperationalError("the connection was lost"))
        return real(connection)

    monkeypatch.setattr(writer, "lock_head", lock_head)
    _failing_commits(rig, happened=True)
    (outcome,) = rig.write(put(1, 1))
    assert (outcome.error, outcome.revision) == (None, 2)


def test_a_mistake_of_ours_answers_everybody_and_the_writer_lives_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(writer, "advance", lambda *_: 1 / 0)
        outcomes = rig.write(put(1, 1), put(2, 1))
    assert [type(outcome.error) for outcome in outcomes] == [Internal, Internal]
    (outcome,) = rig.write(put(1, 1))
    assert (outcome.error, outcome.revision) == (None, 2)


def test_a_caught_conflict_leaves_nothing_behind(rig: Rig) -> None:
    def command(uow) -> None:
        uow.entries.add([entry(1)])
        with pytest.raises(Conflict):
            uow.entries.add([entry(2), entry(1)])

    rig.write(command)
    rig.followers[0].step()
    assert set(rig.followers[0].state.entries) == {"1"}
    assert rig.memory(rig.followers[0]) == rig.tables()


def test_a_replica_that_lags_is_waited_for(rig: Rig) -> None:
    """eventlog 2.6: a head behind ours is proof on a primary at once, on a replica only if it stays."""
    rig.followers[0]._behind_is_proof_after = 3
    backup = rig.copy()
    rig.write(put(1, 1))
    rig.followers[0].step()
    rig.restore(backup)
    backup.close()
    assert [rig.followers[0].step() for _ in range(2)] == [False, False]
    assert rig.changes == []
    assert rig.followers[0].step()
    assert [change.proven for change in rig.changes] == [True]
