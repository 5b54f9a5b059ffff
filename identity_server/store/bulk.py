"""Many new rows of one table at once.

Core compiles each row's parameters anew, a tenth of what a batch of entries costs, and on PostgreSQL spells them all
out in one statement that the driver parses character by character, a third of it. Here rows are tuples in the order of
the named columns and go to the driver as they are; a database that can do better finds in the execution options what
is being filled.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Dialect, Table

FILLING = "muniment_filling"
"""The execution option with the `Filling`."""
_PLACEHOLDERS = {"qmark": "?", "format": "%s", "pyformat": "%s"}


@dataclass(frozen=True, slots=True)
class Filling:
    """Which columns of which table the rows are for, quoted as the database wants them."""

    table: str
    columns: str
    types: tuple[str, ...]


def insert_rows(
    connection: Connection, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert rows whose values stand in the order of `columns`. Values are what the driver takes: nothing converts."""
    if rows:
        statement, filling = _prepared(connection.dialect, table, columns)
        connection.exec_driver_sql(statement, list(rows), execution_options={FILLING: filling})


@functools.lru_cache(maxsize=64)
def _prepared(dialect: Dialect, table: Table, columns: tuple[str, ...]) -> tuple[str, Filling]:
    """The statement for the driver. Names come from the schema, never from a caller."""
    quote = dialect.identifier_preparer.quote
    filling = Filling(
        quote(table.name),
        ", ".join(map(quote, columns)),
        tuple(table.c[name].type.compile(dialect).lower() for name in columns),
    )
    places = ", ".join([_PLACEHOLDERS[dialect.paramstyle]] * len(columns))
    return f"INSERT INTO {filling.table} ({filling.columns}) VALUES ({places})", filling  # noqa: S608  # see above
