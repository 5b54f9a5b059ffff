"""PostgreSQL through psycopg 3.

The writer is READ COMMITTED and locks the head first; readers are REPEATABLE READ and read only. Other servers are told
by NOTIFY, once in each transaction; a listener hears it on a connection of its own, LISTEN first, then read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError

from identity_server.store.bulk import FILLING, Filling
from identity_server.store.database import (
    ALONE_SECONDS,
    CONNECT_SECONDS,
    FROZEN_SECONDS,
    LOCK_NAME,
    LOCK_SECONDS,
    MIGRATION_SECONDS,
    READERS,
    SILENT_SECONDS,
    STATEMENT_SECONDS,
    Access,
    Bell,
    Database,
)
from identity_server.store.server_address import ServerAddress
from spiffe_core.errors import IdentityError

CHANNEL = "muniment_log"
COPY_FROM = 16
"""So many new rows are worth the further round trip of a COPY."""
DEAD_PEER_MILLISECONDS = 10_000
_SCHEMA_LOCK = int.from_bytes(LOCK_NAME.encode()[:7])
_RECONNECT_SECONDS = 1.0
_SESSION = {
    "lock_timeout": f"{LOCK_SECONDS}s",
    "statement_timeout": f"{STATEMENT_SECONDS}s",
    "idle_in_transaction_session_timeout": f"{FROZEN_SECONDS}s",
}

_log = logging.getLogger(__name__)


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is given up when the server does not answer (R24).

    Its own statement time-out is no help when it is frozen or a firewall forgot the connection: no packet ever comes.
    """

    patience: float = SILENT_SECONDS

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Wait for a step of the protocol, at most `patience` seconds."""
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        began = time.monotonic()
        try:
            return super().wait(gen, interval, self.patience)
        except psycopg.Error as error:
            if time.monotonic() - began < self.patience or self.closed:
                raise
            self.close()
            silent = f"no answer from the server within {self.patience:g} s"
            raise psycopg.OperationalError(silent) from error


class PostgresDatabase(Database):
    """One database of a PostgreSQL server, 12 or newer."""

    announce = f"SELECT pg_notify('{CHANNEL}', '')"
    behind_is_proof_after = 3

    def __init__(self, url: URL, access: Access) -> None:
        self._address = ServerAddress.of(url, access, port=5432, socket_option="host")
        self.place = f"PostgreSQL database {self._address.place}"
        self.writer = self._engine("READ COMMITTED", pool_size=1)
        self.reader = self._engine("REPEATABLE READ", pool_size=READERS, postgresql_readonly=True)
        self.writer.dialect.use_insertmanyvalues_wo_returning = True  # one statement for many rows: 2.6 times as fast
        event.listen(self.writer, "do_executemany", _copy)
        event.listen(self.writer, "connect", _wait_for_the_disk)

    def connect(self, *, autocommit: bool = False) -> BoundedConnection:
        """A connection of its own, outside the pools."""
        address, access = self._address, self._address.access
        tls: dict[str, Any] = {"sslmode": "disable"}
        if address.verifies:
            tls = {"sslmode": "verify-full", "sslrootcert": address.roots()}
            if access.tls_cert_file and access.tls_key_file:
                tls |= {"sslcert": str(access.tls_cert_file), "sslkey": str(access.tls_key_file)}
        try:
            password = address.password()
        except IdentityError as error:  # while it is being changed
            raise psycopg.OperationalError(error.public) from error
        return BoundedConnection.connect(
            host=address.socket or address.host,
            port=address.port,
            user=address.user,
            dbname=address.database,
            password=password or None,
            autocommit=autocommit,
            connect_timeout=CONNECT_SECONDS,
            application_name="identity-server",
            target_session_attrs="read-write",  # after a fail-over: the new primary, never a standby
            tcp_user_timeout=DEAD_PEER_MILLISECONDS,
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            options=" ".join(f"-c {name}={value}" for name, value in _SESSION.items()),
            **tls,
        )

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """An advisory lock, held by an open transaction so that it also works behind a transaction pooler."""
        try:
            holder = self.connect()
        except psycopg.Error as error:
            raise OperationalError(None, None, error) from error
        with contextlib.closing(holder):
            try:
                holder.patience = ALONE_SECONDS + CONNECT_SECONDS
                holder.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
                holder.execute(f"SET LOCAL statement_timeout = '{ALONE_SECONDS}s'")
                holder.execute(f"SET LOCAL lock_timeout = '{ALONE_SECONDS}s'")
                holder.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
            except psycopg.Error as error:
                raise OperationalError(None, None, error) from error
            yield

    def unhurried(self, connection: Connection) -> None:
        """No limit on statements, and much time to wait for others' locks."""
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{ALONE_SECONDS}s'")
        driver: Any = connection.connection.driver_connection
        driver.patience = MIGRATION_SECONDS

    def weaknesses(self) -> tuple[str, ...]:
        """`fsync` and `full_page_writes` off; `synchronous_commit` is put right in our own sessions."""
        with self.reader.connect() as connection:
            off = [
                name
                for name in ("fsync", "full_page_writes")
                if connection.exec_driver_sql(f"SHOW {name}").scalar_one() != "on"
            ]
        return tuple(
            f"PostgreSQL runs with {name} = off: a crash may lose or damage what was acknowledged; set {name} = on"
            for name in off
        )

    def bell(self, ring: Callable[[], None]) -> Bell | None:
        """A listener."""
        return Listener(lambda: self.connect(autocommit=True), ring)

    def _engine(self, isolation: Any, *, pool_size: int, **execution: Any) -> Engine:
        return create_engine(
            "postgresql+psycopg://",
            creator=self.connect,
            pool_size=pool_size,
            max_overflow=0,
            hide_parameters=True,
            isolation_level=isolation,
            execution_options=execution,
        )


def _copy(cursor: Any, _statement: str, rows: Sequence[tuple[Any, ...]], context: Any) -> bool | None:
    """Stream new rows in (COPY) instead of binding each; None leaves it to the driver, which is as fast for a few."""
    filling: Filling | None = context.execution_options.get(FILLING)
    if filling is None or len(rows) < COPY_FROM:
        return None
    with cursor.copy(f"COPY {filling.table} ({filling.columns}) FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(filling.types)
        for row in rows:
            copy.write_row(row)
    return True


def _wait_for_the_disk(connection: Any, _record: Any) -> None:
    """COMMIT answers after the log is on the disk, whatever the server's default."""
    if connection.execute("SHOW synchronous_commit").fetchone()[0] == "off":
        connection.execute("SET synchronous_commit = on")
        _log.warning("PostgreSQL has synchronous_commit = off; it is switched on for this server's sessions")
    connection.commit()


class Listener:
    """Rings at every NOTIFY, and after every reconnect, since what was sent meanwhile is lost."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], ring: Callable[[], None]) -> None:
        self._connect = connect
        self._ring = ring
        self._closing = threading.Event()
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="store-listener", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self, timeout: float) -> None:
        """End the thread."""
        self._closing.set()
        os.write(self._stop_write, b"x")
        if self._thread.is_alive():
            self._thread.join(timeout)
        if not self._thread.is_alive():
            os.close(self._stop_read)
            os.close(self._stop_write)

    def _serve(self) -> None:
        told = False
        while not self._closing.is_set():
            try:
                with contextlib.closing(self._connect()) as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    told = False
                    self._ring()
                    self._listen(connection)
            except Exception as error:  # noqa: BLE001  # gone for an hour, or the password changes: keep trying
                if not told and not self._closing.is_set():
                    _log.warning("notifications of PostgreSQL are lost until it is back; polling: %s", error)
                told = True
                self._closing.wait(_RECONNECT_SECONDS)

    def _listen(self, connection: psycopg.Connection[Any]) -> None:
        either = select.poll()  # not select.select: a busy server's descriptors have numbers above its limit of 1,023
        for descriptor in (connection.fileno(), self._stop_read):
            either.register(descriptor, select.POLLIN)
        while not self._closing.is_set():
            if self._stop_read in (descriptor for descriptor, _ in either.poll()):
                return
            for _ in connection.notifies(timeout=0):
                self._ring()
