"""What the store needs of a database: two engines with the settings the event log depends on, and four services.

Every write transaction of the writer begins by locking the log's head, every read is one snapshot, and nothing is
acknowledged before it is on the disk. How each kind of database is made to do that is in `sqlite_database`,
`postgresql` and `mariadb`; `connecting` chooses by the URL.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from sqlalchemy import Connection, Engine

from spiffe_core.runtime.process import trim_memory

READERS = 6
"""Read connections: four for queries, one for the follower, one to spare."""
CONNECT_SECONDS = 5
LOCK_SECONDS = 5
"""How long the writer waits for the log's head before it tries again."""
FROZEN_SECONDS = 5
"""A client that holds the head and does nothing for so long is cut off by the database, so others can go on."""
STATEMENT_SECONDS = 30
SILENT_SECONDS = STATEMENT_SECONDS + CONNECT_SECONDS
"""A connection on which a database server says nothing for so long is given up: it would have ended the statement."""
ALONE_SECONDS = 120
"""How long a starting server waits for another one that migrates the schema."""
MIGRATION_SECONDS = 6 * 3600.0
"""A step of a migration may take so long before its connection is given up."""
LOCK_NAME = "muniment-schema"

TlsMode = Literal["auto", "verify", "insecure-off"]


@dataclass(frozen=True, slots=True)
class Access:
    """How to prove ourselves to a database server, and it to us. Secrets are files, read at every connect.

    `tls`: "auto" verifies the server's certificate and name unless it is on this machine, "verify" always does.
    """

    password_file: Path | None = None
    tls: TlsMode = "auto"
    tls_ca_file: Path | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None


class Bell(Protocol):
    """A thread that rings when another server may have written."""

    def start(self) -> None:
        """Begin to listen."""
        ...

    def close(self, timeout: float) -> None:
        """End the thread."""
        ...


class Database:
    """A writing and a reading engine on one database, and where it is, in words without credentials."""

    writer: Engine
    reader: Engine
    place: str
    announce: str = ""
    """A statement that tells other servers of the transaction it stands in; "" if they find out themselves."""
    behind_is_proof_after: int = 1
    """In so many polls a head behind ours must be seen before it is a lost history and not the lag of a replica."""

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While the block runs, no other server changes the schema."""
        yield

    def before_migration(self, revision: str) -> None:
        """Make what an operator goes back to when the migration from `revision` was a mistake."""

    def unhurried(self, connection: Connection) -> None:
        """Lift the time limits from a connection that is about to migrate, on both of its ends."""

    def weaknesses(self) -> tuple[str, ...]:
        """Settings of the database by which a crash may lose what was acknowledged, each with its remedy."""
        return ()

    def rest(self, connection: Connection) -> None:
        """Give memory back that a large write has taken; no transaction is open on the writer's `connection`."""
        del connection
        trim_memory()

    def bell(self, ring: Callable[[], None]) -> Bell | None:
        """What wakes the follower when another server has written; None if there can be no other."""
        del ring
        return None

    def close(self) -> None:
        """Close every connection."""
        self.reader.dispose()
        self.writer.dispose()
