"""Bring a database to the schema this code is written for, or refuse it.

Alembic is imported only when there is something to do: an up-to-date database is recognised by one query.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from identity_server.store.database import Database
from identity_server.store.schema import SCHEMA_REVISION
from spiffe_core.errors import CorruptState, PreconditionFailed

VERSION_TABLE = "schema_revision"
MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(database: Database, *, target: str = SCHEMA_REVISION, scripts: Path = MIGRATIONS) -> str:
    """Migrate to `target`; returns the revision found before ("" for an empty database).

    The caller sees to it that nobody else migrates (`Database.alone`). A database that has a revision is asked to
    make a copy first.
    """
    place = database.place
    with database.writer.connect() as connection:
        found = _revision(connection, place)
    if found == target:
        return found
    logging.getLogger("alembic").setLevel(logging.WARNING)  # what it does, and what it loads, is no news to an operator
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    if found and found not in known:
        raise PreconditionFailed(
            f"database {place} has schema {found}, which this version does not know (it knows up to {target}): start "
            "the newer version that wrote it, or restore the backup made before the upgrade",
            place=place,
        )
    if found:
        database.before_migration(found)
    with database.writer.begin() as connection:
        database.unhurried(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, target)
    database.writer.dispose()  # the connection with the migration's patience
    return found


def _revision(connection: Connection, place: str) -> str:
    tables = set(inspect(connection).get_table_names())
    if VERSION_TABLE in tables:
        rows = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalars().all()  # noqa: S608  # a constant
        if len(rows) == 1:
            return str(rows[0])
        raise CorruptState(f"database {place}: {VERSION_TABLE} has {len(rows)} rows instead of one; restore a backup")
    if tables:
        raise CorruptState(
            f"database {place} has tables ({', '.join(sorted(tables)[:3])}, ...) but was not made by this program; "
            "name an empty database, or restore the right one"
        )
    return ""
