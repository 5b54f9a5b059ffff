"""A log, its writer and its follower, stepped by hand."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from identity_server.domain.history import HistoryChange
from identity_server.domain.state import State
from identity_server.store import event_log
from identity_server.store.connecting import open_database
from identity_server.store.event_log import ReadOnly
from identity_server.store.follower import Follower
from identity_server.store.migrating import upgrade
from identity_server.store.own_writes import OwnWrites
from identity_server.store.unit_of_work import SqlUnitOfWork
from identity_server.store.writer import Operation, Outcome, Writer
from tests.builders import TD, make_entry
from tests.databases import SERVER, encode
from tests.doubles.clock import FakeClock


class Rig:
    """A writer and two followers on one database, moved by hand."""

    def __init__(self, folder: Path, template: Path | None = None) -> None:
        path = folder / "private" / "log.sqlite3"
        path.parent.mkdir(mode=0o700)
        if template is not None:
            shutil.copy(template, path)
            path.chmod(0o600)
        self.path = path
        self.database = open_database(path)
        upgrade(self.database)
        with self.database.writer.begin() as connection:
            event_log.bootstrap(connection, TD, 1_000, 77)
        self.outcomes: list[Outcome] = []
        self.changes: list[HistoryChange] = []
        own_writes = OwnWrites(most=20)
        self.writer = self.writing(own_writes)
        self.other = self.writing(OwnWrites())
        """Another server's: nobody here knows what it wrote."""
        self.followers = [self.follower() for _ in range(2)]
        self.followers.append(self.follower(own_writes))
        """The last one is of the writer's own process."""

    def writing(self, own_writes: OwnWrites) -> Writer:
        return Writer(
            self.database.writer,
            TD,
            place="test",
            clock=FakeClock(),
            deliver=lambda pairs: self.outcomes.extend(outcome for _, outcome in pairs),
            own_writes=own_writes,
        )

    def follower(self, own_writes: OwnWrites | None = None) -> Follower:
        one = Follower(
            self.database.reader,
            TD,
            SERVER,
            encode=encode,
            publish=self._publish,
            own_writes=own_writes,
            far=40,
            page=12,
        )
        one.load()
        return one

    def _publish(self, _state: State, change: HistoryChange | None) -> None:
        if change is None:
            return
        self.changes.append(change)
        if change.proven:
            self.write(lambda uow: uow.log.begin_history(change.after.epoch, 2_000))

    def write(self, *commands, writer: Writer | None = None) -> list[Outcome]:
        self.outcomes.clear()
        used = writer or self.writer
        (self.other if used is self.writer else self.writer)._discard()  # one writing connection, whoever uses it
        used._run([Operation(command) for command in commands])
        return list(self.outcomes)

    def tables(self) -> tuple[object, ...]:
        with self.database.reader.begin() as connection:
            uow = SqlUnitOfWork(connection, ReadOnly(), TD)
            return (
                event_log.read_head(connection).position,
                {one.id: encode(one) for one in uow.entries.all()},
                {one.spiffe_id.path: one for one in uow.agents.all()},
                {one.trust_domain: one for one in uow.bundles.all()},
            )

    @staticmethod
    def memory(one: Follower) -> tuple[object, ...]:
        state = one.state
        return (
            state.position,
            {entry_id: record.wire for entry_id, record in state.entries.items()},
            dict(state.agents.items()),
            dict(state.trust_bundles.items()),
        )

    def damage(self, *statements: str) -> None:
        """Change the tables behind everybody's back."""
        with closing(sqlite3.connect(self.path)) as live:
            for statement in statements:
                live.execute(statement)
            live.commit()

    def copy(self) -> sqlite3.Connection:
        memory = sqlite3.connect(":memory:")
        with closing(sqlite3.connect(self.path)) as live:
            live.backup(memory)
        return memory

    def restore(self, copy: sqlite3.Connection) -> None:
        with closing(sqlite3.connect(self.path)) as live:
            copy.backup(live)

    def close(self) -> None:
        self.writer._discard()
        self.other._discard()
        for one in self.followers:
            one._discard()
        self.database.close()


def entry(number: int, version: int = 0):
    return make_entry(
        id=str(number), spiffe_id=f"/{number}", selectors=[f"unix:uid:{version}"], revision_number=version
    )


def put(number: int, version: int):
    def command(uow) -> None:
        if uow.entries.get(str(number)) is None:
            uow.entries.add([entry(number, version)])
        else:
            uow.entries.replace([entry(number, version)])

    return command


memory, tables = Rig.memory, Rig.tables
