"""Set comparisons of list filters, in SQL (spire_wire section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Table, func, select

from identity_server.domain.listing import Match
from spiffe_core.errors import InvalidRequest

_MAX_ROW_KEY = 2**63 - 1


def set_condition(record: Table, side: Table, given: Sequence[bytes], match: Match) -> ColumnElement[bool]:
    """True for rows of `record` whose set, kept as digests in `side`, compares with `given` as `match` says."""
    row_key = record.c.row_key
    held = side.c.row_key
    shares = row_key.in_(select(held).where(side.c.digest.in_(given)))
    strange = row_key.in_(select(held).where(side.c.digest.not_in(given)))
    complete = row_key.in_(
        select(held).where(side.c.digest.in_(given)).group_by(held).having(func.count() == len(set(given)))
    )
    return {
        Match.ANY: shares,
        Match.SUBSET: shares & ~strange,
        Match.SUPERSET: complete,
        Match.EXACT: complete & ~strange,
    }[match]


def after_condition(record: Table, token: str) -> list[ColumnElement[bool]]:
    """The rows that come after the page token; an empty token begins the list."""
    if not token:
        return []
    if not (token.isascii() and token.isdigit()) or int(token) > _MAX_ROW_KEY:
        raise InvalidRequest("page_token: is not one this server gave out; begin again without it", field="page_token")
    row_key: Any = record.c.row_key
    return [row_key > int(token)]
