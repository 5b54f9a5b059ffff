"""Use-cases of orders to all servers: give one, follow it, give up a server that is gone for good (A15)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from identity_server.domain.access import Caller
from identity_server.domain.audit import AuthorityOrdered
from identity_server.domain.authority import Authority, AuthorityKind
from identity_server.domain.orders import (
    Errand,
    Order,
    OrderVerb,
    Progress,
    concerned,
    require_tainted_everywhere,
)
from identity_server.ports import AuditLog, Store, UnitOfWork
from identity_server.services.audited import audited
from identity_server.services.authorities import Authorities
from identity_server.services.authority_commands import KINDS, every_authority, retire_server
from spiffe_core.clock import Clock
from spiffe_core.errors import InvalidRequest, NotFound

BY_HAND: Final[frozenset[OrderVerb]] = frozenset({"prepare", "activate", "taint", "revoke"})
"""What an administrator may order; keys are destroyed by revoking."""
MAX_SHOWN_ID = 255


class AuthorityOrders:
    """Belongs to the event loop."""

    def __init__(
        self,
        *,
        authorities: Authorities,
        store: Store,
        clock: Clock,
        audit: AuditLog,
        server_id: str,
        new_id: Callable[[], str],
    ) -> None:
        self._authorities, self._store = authorities, store
        self._clock, self._audit = clock, audit
        self._new_id = new_id
        self.server_id = server_id

    async def place(self, caller: Caller, kind: AuthorityKind, verb: OrderVerb) -> Progress:
        """Have every server take this step; the order as it stands when it is stored.

        Raises:
            InvalidRequest: this cannot be ordered.
            Unimplemented: this kind is switched off here.
            PreconditionFailed: revoking, while a server has not tainted yet.
        """
        if verb not in BY_HAND:
            raise InvalidRequest(f"verb: {verb} is not for administrators; revoking destroys keys", field="verb")
        self._authorities.slots(kind)
        now = self._now()
        order = Order(self._new_id(), kind, verb, caller.actor, now)
        event = AuthorityOrdered(change=verb, kind=kind, order_id=order.order_id, actor=caller.actor)
        own = self.server_id

        def command(uow: UnitOfWork) -> Progress:
            if verb == "revoke":
                require_tainted_everywhere(kind, uow.orders.all())
            servers = concerned(uow.authorities.of_kind(kind), own, now)
            uow.orders.add(order, servers)
            return Progress(order, tuple(Errand(one) for one in servers))

        with audited(self._audit, event):
            return await self._store.execute(command)

    async def progress(self, order_id: str) -> Progress:
        """How far an order has come.

        Raises:
            NotFound: there is none with this id (any more).
        """
        found = await self._store.read(lambda uow: uow.orders.get(order_id))
        if found is None:
            raise NotFound("no order has this id; finished ones are forgotten after a while", field="order_id")
        return found

    async def recent(self) -> tuple[Progress, ...]:
        """Every order that is kept, newest first."""
        return await self._store.read(lambda uow: uow.orders.all())

    async def everywhere(self) -> tuple[Authority, ...]:
        """The authorities of every server, by server and kind."""
        found = await self._store.read(every_authority)
        return tuple(sorted(found, key=lambda one: (one.server_id, KINDS.index(one.kind), one.issued_at)))

    async def give_up(self, caller: Caller, server_id: str) -> tuple[Authority, ...]:
        """A server will not come back: nobody waits for it, and its authorities become old; those that did.

        They can be tainted and revoked by their ids then. A server that was only thought to be gone makes new ones.

        Raises:
            InvalidRequest: it is this very server.
            NotFound: no server has this id.
        """
        if server_id == self.server_id:
            raise InvalidRequest(
                "server_id: is the server that was asked; its authorities can be rotated instead", field="server_id"
            )
        now = self._now()
        event = AuthorityOrdered(change="give up", server_id=server_id[:MAX_SHOWN_ID], actor=caller.actor)
        with audited(self._audit, event):
            return await self._store.execute(lambda uow: _give_up(uow, server_id, now))

    def _now(self) -> int:
        return int(self._clock.now().timestamp())


def _give_up(uow: UnitOfWork, server_id: str, now: int) -> tuple[Authority, ...]:
    if not uow.authorities.of_server(server_id) and not uow.orders.waiting_for(server_id):
        raise NotFound("no server has this id; `localauthority servers` shows which there are", field="server_id")
    return retire_server(uow, server_id, now)
