"""The Store port for authorities and bundles, in memory, with troubles on request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from identity_server.domain.authority import Authority
from identity_server.domain.federation import FederationRelationship
from identity_server.domain.history import Position
from identity_server.domain.orders import Errand, ErrandStatus, Order, Progress
from identity_server.domain.server_settings import ServerRecord
from identity_server.domain.state import Change, State
from spiffe_core.bundle import TrustBundle
from spiffe_core.runtime.watch import Watch
from spiffe_core.spiffe_id import TrustDomain

T = TypeVar("T")


@dataclass
class Database:
    """What survives a restart."""

    authorities: dict[str, Authority] = field(default_factory=dict)
    bundles: dict[TrustDomain, TrustBundle] = field(default_factory=dict)
    orders: dict[str, Progress] = field(default_factory=dict)
    revision: int = 0
    relationships: dict[TrustDomain, FederationRelationship] = field(default_factory=dict)

    def copy(self) -> Database:
        return Database(
            dict(self.authorities), dict(self.bundles), dict(self.orders), self.revision, dict(self.relationships)
        )


class _Authorities:
    def __init__(self, rows: dict[str, Authority]) -> None:
        self._rows = rows

    def of_server(self, server_id: str) -> tuple[Authority, ...]:
        return tuple(one for one in self._rows.values() if one.server_id == server_id)

    def get(self, authority_id: str) -> Authority | None:
        return self._rows.get(authority_id)

    def of_kind(self, kind: str) -> tuple[Authority, ...]:
        return tuple(one for one in self._rows.values() if one.kind == kind)

    def put(self, authority: Authority) -> None:
        self._rows[authority.authority_id] = authority

    def remove(self, authority_id: str) -> None:
        self._rows.pop(authority_id, None)


class _Bundles:
    def __init__(self, rows: dict[TrustDomain, TrustBundle]) -> None:
        self._rows = rows

    def get(self, trust_domain: TrustDomain) -> TrustBundle | None:
        return self._rows.get(trust_domain)

    def put(self, bundle: TrustBundle) -> None:
        self._rows[bundle.trust_domain] = bundle

    def stored(self, trust_domains: Sequence[TrustDomain]) -> frozenset[TrustDomain]:
        return frozenset(one for one in trust_domains if one in self._rows)

    def remove(self, trust_domains: Sequence[TrustDomain]) -> None:
        for one in trust_domains:
            self._rows.pop(one, None)

    def count(self) -> int:
        return len(self._rows)


class _Relationships:
    def __init__(self, rows: dict[TrustDomain, FederationRelationship]) -> None:
        self._rows = rows

    def get(self, trust_domain: TrustDomain) -> FederationRelationship | None:
        return self._rows.get(trust_domain)

    def put(self, relationship: FederationRelationship) -> None:
        self._rows[relationship.trust_domain] = relationship

    def remove(self, trust_domain: TrustDomain) -> None:
        self._rows.pop(trust_domain, None)


class _Orders:
    def __init__(self, rows: dict[str, Progress]) -> None:
        self._rows = rows

    def add(self, order: Order, servers: Sequence[str]) -> None:
        self._rows[order.order_id] = Progress(order, tuple(Errand(one) for one in sorted(set(servers))))

    def waiting_for(self, server_id: str) -> tuple[Order, ...]:
        waiting = ErrandStatus.WAITING
        return tuple(
            one.order
            for one in self._rows.values()
            if any(errand.server_id == server_id and errand.status is waiting for errand in one.errands)
        )

    def get(self, order_id: str) -> Progress | None:
        return self._rows.get(order_id)

    def all(self) -> tuple[Progress, ...]:
        return tuple(reversed(self._rows.values()))

    def report(self, order_id: str, errand: Errand) -> None:
        progress = self._rows.get(order_id)
        if progress is not None:
            errands = tuple(
                errand if one.server_id == errand.server_id and one.status is ErrandStatus.WAITING else one
                for one in progress.errands
            )
            self._rows[order_id] = Progress(progress.order, errands)


class _Servers:
    """Nobody has written itself down: only the journal tells who was there."""

    def all(self) -> tuple[ServerRecord, ...]:
        return ()


class _UnitOfWork:
    def __init__(self, database: Database) -> None:
        self.servers = _Servers()
        self.authorities = _Authorities(database.authorities)
        self.bundles = _Bundles(database.bundles)
        self.orders = _Orders(database.orders)
        self.relationships = _Relationships(database.relationships)


class MemoryStore:
    """One server's store on a `Database` that others may share.

    `before` and `after` hold what to raise, one per command, before or after its commit; None lets a command pass.
    """

    def __init__(self, database: Database, trust_domain: TrustDomain, server_id: str) -> None:
        self.database = database
        self.before: list[BaseException | None] = []
        self.after: list[BaseException | None] = []
        self.commands = 0
        self._server_id = server_id
        self.state: Watch[State] = Watch(State(Position(1, 0, 0), trust_domain))
        self.reload()

    def reload(self) -> None:
        """Make `state` show what the database holds, as a follower does after another server's commit."""
        rows = tuple(one for one in self.database.authorities.values() if one.server_id == self._server_id)
        change = Change(
            Position(1, self.database.revision, 7),
            bundles=dict(self.database.bundles),
            relationships={
                **dict.fromkeys(self.state.value.relationships),
                **self.database.relationships,
            },
            authorities=rows,
            orders=_Orders(self.database.orders).waiting_for(self._server_id),
        )
        self.state.publish(self.state.value.apply(change))

    async def execute(self, command: Callable[[Any], T]) -> T:
        draft = self.database.copy()
        result = command(_UnitOfWork(draft))
        if draft == self.database:  # nothing to commit
            return result
        self.commands += 1
        _raise_next(self.before)
        self.database.authorities, self.database.bundles = draft.authorities, draft.bundles
        self.database.orders, self.database.relationships = draft.orders, draft.relationships
        self.database.revision += 1
        _raise_next(self.after)
        self.reload()
        return result

    async def read(self, query: Callable[[Any], T]) -> T:
        return query(_UnitOfWork(self.database.copy()))


def _raise_next(troubles: list[BaseException | None]) -> None:
    if troubles and (trouble := troubles.pop(0)) is not None:
        raise trouble
