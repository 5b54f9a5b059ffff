"""MariaDB through PyMySQL.

The writer is READ COMMITTED and locks the head first; readers are REPEATABLE READ and read only, and end their
transaction after each snapshot. MariaDB cannot notify: a poll of the one head row finds what other servers wrote.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pymysql  # type: ignore[import-untyped]  # the driver has no types
from pymysql.constants import CLIENT, CR  # type: ignore[import-untyped]  # the driver has no types
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError

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
from spiffe_core.errors import ConfigError, IdentityError

BUSY_POLL_SECONDS = 0.02
IDLE_POLL_SECONDS = 0.1
STAY_BUSY_SECONDS = 2.0
"""For so long after a change the head is polled quickly."""
DEAD_PEER_MILLISECONDS = 10_000
_RECONNECT_SECONDS = 1.0
_LOCK_REFUSED = 1205
_SESSION = (
    "SET NAMES utf8mb4",
    "SET SESSION default_storage_engine = InnoDB",
    "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'",  # nothing is ever cut short silently
    f"SET SESSION innodb_lock_wait_timeout = {LOCK_SECONDS}",
    f"SET SESSION lock_wait_timeout = {STATEMENT_SECONDS}",  # behind a change of the schema
)
_LIMIT_STATEMENTS = f"SET SESSION max_statement_time = {STATEMENT_SECONDS}"
_LIMIT_FROZEN = f"SET SESSION idle_transaction_timeout = {FROZEN_SECONDS}"
"""Not `idle_write_transaction_timeout`: that begins with the first write, and the head is locked before it."""

_log = logging.getLogger(__name__)


class MariaDatabase(Database):
    """One database of a MariaDB server, 10.6 or newer."""

    behind_is_proof_after = 3

    def __init__(self, url: URL, access: Access) -> None:
        self._address = ServerAddress.of(url, access, port=3306, socket_option="unix_socket")
        _tls(self._address)  # refuses files that cannot be used
        self.place = f"MariaDB database {self._address.place}"
        self.writer = self._engine("READ COMMITTED", pool_size=1)
        self.reader = self._engine("REPEATABLE READ", pool_size=READERS)
        event.listen(self.writer, "connect", _hold_nobody_up)
        event.listen(self.reader, "connect", _only_read)

    def connect(self, *, autocommit: bool = False) -> Any:
        """A connection of its own, outside the pools."""
        address = self._address
        try:
            password, tls = address.password(), _tls(address)
        except IdentityError as error:  # while they are being changed
            raise pymysql.OperationalError(CR.CR_CONN_HOST_ERROR, error.public) from error
        connection = pymysql.Connection(
            host=address.host or None,
            user=address.user,
            password=password,
            database=address.database,
            charset="utf8mb4",
            autocommit=autocommit,
            client_flag=CLIENT.FOUND_ROWS,  # an UPDATE counts the rows it finds, not those it changes
            read_timeout=CONNECT_SECONDS,  # while connecting
            write_timeout=STATEMENT_SECONDS,
            local_infile=False,
            ssl=tls,
            ssl_disabled=tls is None,
            defer_connect=True,
        )
        connection.connect(_connected(address))
        try:
            _be_patient(connection, SILENT_SECONDS)
            with connection.cursor() as cursor:
                for statement in _SESSION:
                    cursor.execute(statement)
                if _is_mariadb(connection):
                    cursor.execute(_LIMIT_STATEMENTS)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """A named lock of a session of its own; only for the schema, never for the log."""
        try:
            holder = self.connect(autocommit=True)
        except pymysql.Error as error:
            raise OperationalError(None, None, error) from error
        with contextlib.closing(holder):
            try:
                with holder.cursor() as cursor:
                    cursor.execute("SET SESSION max_statement_time = 0")
                    _be_patient(holder, ALONE_SECONDS + CONNECT_SECONDS)
                    cursor.execute(
                        "SELECT GET_LOCK(%s, %s)", (f"{LOCK_NAME}-{self._address.database}"[:64], ALONE_SECONDS)
                    )
                    if cursor.fetchone()[0] != 1:
                        busy = pymysql.OperationalError(_LOCK_REFUSED, "another server is changing the schema")
                        raise OperationalError(None, None, busy)
            except pymysql.Error as error:
                raise OperationalError(None, None, error) from error
            yield

    def unhurried(self, connection: Connection) -> None:
        """No limit on statements, and much time to wait for others' locks."""
        connection.exec_driver_sql("SET SESSION max_statement_time = 0")
        connection.exec_driver_sql("SET SESSION idle_transaction_timeout = 0")
        connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {ALONE_SECONDS}")
        _be_patient(connection.connection.driver_connection, MIGRATION_SECONDS)

    def weaknesses(self) -> tuple[str, ...]:
        """Settings by which the redo log or the binary log is written late."""
        with self.reader.connect() as connection:
            flush, binlog, sync = connection.exec_driver_sql(
                "SELECT @@innodb_flush_log_at_trx_commit, @@log_bin, @@sync_binlog"
            ).one()
        found = []
        if flush != 1:
            found.append(
                f"MariaDB runs with innodb_flush_log_at_trx_commit = {flush}: a crash loses what was acknowledged; "
                "set it to 1"
            )
        if binlog and sync != 1:
            found.append(
                f"MariaDB runs with sync_binlog = {sync}: after a crash replicas may have another history; set it to 1"
            )
        return tuple(found)

    def bell(self, ring: Callable[[], None]) -> Bell | None:
        """A poll of the head row."""
        return HeadWatch(lambda: self.connect(autocommit=True), ring)

    def _engine(self, isolation: Any, *, pool_size: int) -> Engine:
        return create_engine(
            "mariadb+pymysql://",
            creator=self.connect,
            pool_size=pool_size,
            max_overflow=0,
            hide_parameters=True,
            isolation_level=isolation,
        )


def _connected(address: ServerAddress) -> socket.socket:
    """A connected socket; the driver's own way leaves it open when the server is not there."""
    try:
        if not address.socket:
            made = socket.create_connection((address.host, address.port), CONNECT_SECONDS)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_MILLISECONDS)
            return made
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.settimeout(CONNECT_SECONDS)
            made.connect(address.socket)
        except BaseException:
            made.close()
            raise
        return made
    except OSError as error:
        where = address.socket or f"{address.host}:{address.port}"
        raise pymysql.OperationalError(CR.CR_CONN_HOST_ERROR, f"no connection to {where}: {error}") from error


def _be_patient(connection: Any, seconds: float) -> None:
    """Give the connection up when the server says nothing for so long (R24): frozen, or forgotten by a firewall."""
    connection._read_timeout = seconds  # noqa: SLF001  # the driver has no setter


def _is_mariadb(connection: Any) -> bool:
    return "mariadb" in connection.get_server_info().lower()


def _hold_nobody_up(connection: Any, _record: Any) -> None:
    """If this process is stopped while it holds the log's head, the database lets go of it."""
    if _is_mariadb(connection):
        with connection.cursor() as cursor:
            cursor.execute(_LIMIT_FROZEN)
        connection.commit()


def _only_read(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION READ ONLY")
        cursor.execute("SHOW VARIABLES LIKE 'wsrep_on'")
        if (cursor.fetchone() or ("", "OFF"))[1] == "ON":  # another Galera node may not have applied our own write yet
            cursor.execute("SET SESSION wsrep_sync_wait = 1")
    connection.commit()


def _tls(address: ServerAddress) -> ssl.SSLContext | None:
    if not address.verifies:
        return None
    cert, key = address.access.tls_cert_file, address.access.tls_key_file
    try:
        context = ssl.create_default_context(cafile=address.roots())
    except OSError as error:
        raise _unusable("database.tls_ca_file", error) from error
    try:
        if cert and key:
            context.load_cert_chain(cert, key)
    except OSError as error:
        raise _unusable("database.tls_cert_file", error) from error
    return context


def _unusable(field: str, error: OSError) -> ConfigError:
    return ConfigError(f"{field}: cannot be used: {error}", field=field)


class HeadWatch:
    """Rings when the head row is another than it was. One autocommit connection, kept open: 0.1 ms a look."""

    def __init__(self, connect: Callable[[], Any], ring: Callable[[], None]) -> None:
        self._connect = connect
        self._ring = ring
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="store-head-watch", daemon=True)

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def close(self, timeout: float) -> None:
        """End the thread."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _serve(self) -> None:
        told = False
        while not self._closing.is_set():
            try:
                with contextlib.closing(self._connect()) as connection, connection.cursor() as cursor:
                    told = False
                    self._watch(cursor)
            except Exception as error:  # noqa: BLE001  # gone for an hour, or the password changes: keep trying
                if not told and not self._closing.is_set():
                    _log.warning("the log of MariaDB cannot be watched until it is back: %s", error)
                told = True
                self._closing.wait(_RECONNECT_SECONDS)

    def _watch(self, cursor: Any) -> None:
        seen: object = None
        busy_until = 0.0
        while not self._closing.is_set():
            cursor.execute("SELECT epoch, revision, token FROM log_head WHERE id = 1")
            head = cursor.fetchone()
            now = time.monotonic()
            if head != seen:
                seen, busy_until = head, now + STAY_BUSY_SECONDS
                self._ring()
            self._closing.wait(BUSY_POLL_SECONDS if now < busy_until else IDLE_POLL_SECONDS)
