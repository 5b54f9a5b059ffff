"""One page of a table in the order of its row keys.

A page token is the key of the last row and the name of the question: `281474976710656-1f0e3dad99908345`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, Table, select

from identity_server.domain.listing import Page
from identity_server.store.selection import after_condition

T = TypeVar("T")


def page_of(
    connection: Connection,
    table: Table,
    conditions: Sequence[ColumnElement[bool]],
    after: str,
    limit: int,
    value_of: Callable[[Row[Any]], T],
    *,
    query: str,
) -> Page[T]:
    """The rows after the page token `after`, which must be of the same `query`; a `limit` of 0 means all of them."""
    wanted = select(table).where(*conditions, *after_condition(table, after, query)).order_by(table.c.row_key)
    if limit <= 0:
        return Page(tuple(value_of(row) for row in connection.execute(wanted)))
    rows = connection.execute(wanted.limit(limit + 1)).all()
    more = len(rows) > limit
    return Page(tuple(value_of(row) for row in rows[:limit]), f"{rows[limit - 1].row_key}-{query}" if more else "")
