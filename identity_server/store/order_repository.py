"""Orders to all servers, and each server's errands, in the database (architecture A15)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update

from identity_server.domain.authority import AuthorityKind
from identity_server.domain.orders import (
    MAX_ACTOR,
    MAX_DETAIL,
    MAX_FINISHED,
    MAX_ORDERS,
    Errand,
    ErrandStatus,
    Order,
    OrderVerb,
    Progress,
)
from identity_server.store.event_log import EventKind, Recorder
from identity_server.store.mapping import stored_value
from identity_server.store.schema import authority_errand, authority_order

_WAITING = ErrandStatus.WAITING.value.encode()
_WAITING_FOR = (
    select(authority_order)
    .join(authority_errand, authority_errand.c.row_key == authority_order.c.row_key)
    .where(authority_errand.c.server_id == bindparam("server"), authority_errand.c.status == _WAITING)
    .order_by(authority_order.c.row_key)
)
_ORDERS = select(authority_order).order_by(authority_order.c.row_key.desc())
_ORDER = select(authority_order).where(authority_order.c.order_id == bindparam("of"))
_ERRANDS = (
    select(authority_errand)
    .where(authority_errand.c.row_key.in_(bindparam("keys", expanding=True)))
    .order_by(authority_errand.c.row_key, authority_errand.c.server_id)
)


class SqlOrders:
    """The OrderRepository of one transaction."""

    def __init__(self, connection: Connection, recorder: Recorder) -> None:
        self._connection = connection
        self._recorder = recorder

    def add(self, order: Order, servers: Sequence[str]) -> None:
        """Store an order with an errand for each of these servers; the oldest finished ones beyond the bound go."""
        kept = self._with_errands(self._connection.execute(_ORDERS))
        surplus = [row.row_key for row, progress in kept[MAX_FINISHED - 1 :] if progress.finished]
        surplus += [row.row_key for row, progress in kept[MAX_ORDERS - 1 :] if not progress.finished]
        self._recorder.writing()
        if surplus:
            self._connection.execute(delete(authority_errand).where(authority_errand.c.row_key.in_(surplus)))
            self._connection.execute(delete(authority_order).where(authority_order.c.row_key.in_(surplus)))
        key = self._recorder.next_row_key()
        self._connection.execute(insert(authority_order), {**_values(order), "row_key": key})
        if servers:
            rows = [{**_errand_values(Errand(one)), "row_key": key} for one in sorted(set(servers))]
            self._connection.execute(insert(authority_errand), rows)
        self._recorder.changed(EventKind.ORDER, order.order_id.encode())

    def waiting_for(self, server_id: str) -> tuple[Order, ...]:
        """The orders this server has not carried out, in the order in which they were given."""
        return tuple(map(_order, self._connection.execute(_WAITING_FOR, {"server": server_id.encode()})))

    def get(self, order_id: str) -> Progress | None:
        """An order with its errands, or None."""
        found = self._with_errands(self._connection.execute(_ORDER, {"of": order_id.encode()}))
        return found[0][1] if found else None

    def all(self) -> tuple[Progress, ...]:
        """Every order that is kept, newest first."""
        return tuple(progress for _, progress in self._with_errands(self._connection.execute(_ORDERS)))

    def report(self, order_id: str, errand: Errand) -> None:
        """Store what a server has done; an unknown order and one that concerns the server no more are passed over."""
        row = self._connection.execute(_ORDER, {"of": order_id.encode()}).one_or_none()
        if row is None:
            return
        values = _errand_values(errand)
        self._recorder.writing()
        done = self._connection.execute(
            update(authority_errand)
            .where(
                authority_errand.c.row_key == row.row_key,
                authority_errand.c.server_id == values["server_id"],
                authority_errand.c.status == _WAITING,
            )
            .values({name: values[name] for name in ("status", "detail", "finished_at")})
        )
        if done.rowcount:
            self._recorder.changed(EventKind.ORDER, order_id.encode())

    def _with_errands(self, rows: Iterable[Row[Any]]) -> list[tuple[Row[Any], Progress]]:
        found = list(rows)
        errands: dict[int, list[Errand]] = {}
        if found:
            for one in self._connection.execute(_ERRANDS, {"keys": [row.row_key for row in found]}):
                errands.setdefault(one.row_key, []).append(_errand(one))
        return [(row, Progress(_order(row), tuple(errands.get(row.row_key, ())))) for row in found]


def _values(order: Order) -> dict[str, Any]:
    return {
        "order_id": order.order_id.encode(),
        "kind": order.kind.encode(),
        "verb": order.verb.encode(),
        "authority_id": order.authority_id.encode(),
        "key_digest": order.key_digest,
        "actor": order.actor[:MAX_ACTOR].encode(errors="replace"),
        "created_at": order.created_at,
    }


def _errand_values(errand: Errand) -> dict[str, Any]:
    return {
        "server_id": errand.server_id.encode(),
        "status": errand.status.value.encode(),
        "detail": errand.detail[:MAX_DETAIL].encode(errors="replace"),
        "finished_at": errand.finished_at,
    }


def _order(row: Row[Any]) -> Order:
    return stored_value(
        "authority_order",
        row.order_id,
        lambda: Order(
            order_id=row.order_id.decode(),
            kind=cast("AuthorityKind", row.kind.decode()),
            verb=cast("OrderVerb", row.verb.decode()),
            actor=row.actor.decode(),
            created_at=row.created_at,
            authority_id=row.authority_id.decode(),
            key_digest=bytes(row.key_digest),
        ),
    )


def _errand(row: Row[Any]) -> Errand:
    return stored_value(
        "authority_errand",
        row.server_id,
        lambda: Errand(row.server_id.decode(), ErrandStatus(row.status.decode()), row.detail.decode(), row.finished_at),
    )
