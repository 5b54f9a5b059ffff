"""Set comparisons of list filters, in SQL (spire_wire section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Table, exists, func, select

from identity_server.domain.listing import Match
from spiffe_core.errors import InvalidRequest

_MAX_ROW_KEY = 2**63 - 1
_MAX_DIGITS = 19


def set_condition(record: Table, side: Table, given: Sequence[bytes], match: Match) -> ColumnElement[bool]:
    """True for rows of `record` whose set, kept as digests in `side`, compares with `given` as `match` says."""
    row_key = record.c.row_key
    held = side.c.row_key
    shares = row_key.in_(select(held).where(side.c.digest.in_(given)))
    # of the row alone: as a set of its own it would be nearly the whole table, read anew for each question
    strange = exists().where(held == row_key, side.c.digest.not_in(given)).correlate(record)
    complete = row_key.in_(
        select(held).where(side.c.digest.in_(given)).group_by(held).having(func.count() == len(set(given)))
    )
    return {
        Match.ANY: shares,
        Match.SUBSET: shares & ~strange,
        Match.SUPERSET: complete,
        Match.EXACT: complete & ~strange,
    }[match]


def after_condition(record: Table, token: str, query: str) -> list[ColumnElement[bool]]:
    """The rows that come after the page token, which must be of this `query`; an empty token begins the list (S58)."""
    if not token:
        return []
    key, _, of = token.partition("-")
    if not (key.isascii() and key.isdigit()) or len(key) > _MAX_DIGITS or int(key) > _MAX_ROW_KEY or of != query:
        raise foreign_token()
    row_key: Any = record.c.row_key
    return [row_key > int(key)]


def foreign_token() -> InvalidRequest:
    """The refusal of a page token that was not given out for this list."""
    return InvalidRequest(
        "page_token: is not one this server gave out for this list; begin again without it", field="page_token"
    )
