"""Asynchronous replicas of the database servers: they lag, are cut off, and become the primary (R27)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TypeVar

from deploy.demo.stack import free_port
from tests.doubles.database_servers import START_SECONDS, USER, MariaDB, PostgreSQL, lacking

S = TypeVar("S", PostgreSQL, MariaDB)


def _of(kind: type[S], settings: dict[str, str] | None = None) -> S:
    reason = kind.missing()
    if reason:
        lacking(kind.kind, reason)
    return kind(settings)


class Standby(PostgreSQL):
    """An asynchronous replica of a running PostgreSQL server, by streaming."""

    def __init__(self, primary: PostgreSQL) -> None:
        self.primary = primary
        super().__init__()

    @classmethod
    def primary_of_it(cls) -> PostgreSQL:
        """A server that can have one."""
        return _of(PostgreSQL)

    @property
    def address(self) -> Path:
        """What a `DatabaseProxy` passes on to."""
        return self.run

    def make(self) -> None:
        self.binaries = self.primary.binaries
        self.data.chmod(0o700)
        self.tool(
            *(self.binaries / "pg_basebackup", "-D", self.data, "-h", self.primary.run, "-U", USER),
            *("-R", "-c", "fast", "--no-sync"),
        )

    def caught_up(self) -> bool:
        (sent,), (seen,) = (
            *self.primary.execute("postgres", "SELECT pg_current_wal_lsn()"),
            *self.execute("postgres", "SELECT pg_last_wal_replay_lsn()"),
        )
        return bool(sent == seen)

    def cut_off(self) -> None:
        """It receives nothing more from the primary."""
        self.execute("postgres", "ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        deadline = time.monotonic() + START_SECONDS
        while self.execute("postgres", "SELECT count(*) FROM pg_stat_wal_receiver") != [(0,)]:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def promote(self) -> None:
        """It is the primary from now on."""
        self.execute("postgres", "SELECT pg_promote(true)")


class Replica(MariaDB):
    """An asynchronous replica of a running MariaDB server, by its binary log from the first change on."""

    def __init__(self, primary: MariaDB) -> None:
        self.primary = primary
        super().__init__({"server-id": "2", "read-only": "1"})
        self.execute(
            "mysql",
            f"CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={primary.settings['port']}, MASTER_USER='root',"
            f" MASTER_LOG_FILE='{_LOG}.000001', MASTER_LOG_POS=4, MASTER_CONNECT_RETRY=1",
            "START SLAVE",
        )

    @classmethod
    def primary_of_it(cls) -> MariaDB:
        """A server that can have one."""
        port = str(free_port())
        log = {"server-id": "1", "log-bin": _LOG, "binlog-format": "ROW", "sync-binlog": "1"}
        return _of(MariaDB, {"port": port, "bind-address": "127.0.0.1", **log})

    @property
    def address(self) -> Path:
        """What a `DatabaseProxy` passes on to."""
        return self.run / "mysqld.sock"

    def caught_up(self) -> bool:
        (sent,) = self.primary.execute("mysql", "SELECT @@gtid_binlog_pos")
        (seen,) = self.execute("mysql", "SELECT @@gtid_slave_pos")
        return sent == seen

    def cut_off(self) -> None:
        """It receives nothing more from the primary."""
        self.execute("mysql", "STOP SLAVE IO_THREAD")

    def promote(self) -> None:
        """It is the primary from now on."""
        self.execute("mysql", "STOP SLAVE", "RESET SLAVE ALL", "SET GLOBAL read_only = 0")


_LOG = "changes"
REPLICAS: dict[str, type[Standby | Replica]] = {"postgresql": Standby, "mariadb": Replica}
