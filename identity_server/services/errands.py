"""This server's part in orders to all servers: carried out one after the other, and reported (architecture A15).

An errand that was interrupted is begun again: preparing twice leaves one prepared authority, and whoever is active, old
or gone already is left as it is.
"""

from __future__ import annotations

import logging

from identity_server.domain.access import Caller, CallerKind
from identity_server.domain.authority import Status
from identity_server.domain.orders import Errand, ErrandStatus, Order
from identity_server.ports import Store
from identity_server.services.authorities import Authorities
from identity_server.services.local_authority import LocalAuthorities
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError, Unavailable, Unimplemented

log = logging.getLogger(__name__)


class Errands:
    """Belongs to the event loop; one `run_waiting` at a time."""

    def __init__(
        self, *, authorities: Authorities, local: LocalAuthorities, store: Store, clock: Clock, server_id: str
    ) -> None:
        self._authorities, self._local = authorities, local
        self._store, self._clock = store, clock
        self._server_id = server_id

    async def run_waiting(self) -> int:
        """Carry out what is waiting, oldest first; how much was.

        Raises:
            Unavailable: the database or the keys cannot be used now; what is left is to be tried again.
        """
        done = 0
        while orders := self._store.state.value.orders:
            order = orders[0]
            errand = await self._carried_out(order)
            await self._report(order, errand)
            log.info(
                "order to all servers: %s %s authority: %s",
                order.verb,
                order.kind,
                errand.status.value,
                extra={"facts": {"order_id": order.order_id, "detail": errand.detail}},
            )
            done += 1
            if self._store.state.value.orders[:1] == (order,):
                raise Unavailable("the state in memory does not follow the database's orders; trying again")
        return done

    async def _report(self, order: Order, errand: Errand) -> None:
        await self._store.execute(lambda uow: uow.orders.report(order.order_id, errand))

    async def _carried_out(self, order: Order) -> Errand:
        status = ErrandStatus.DONE
        try:
            detail = await self._do(order)
        except Unavailable:
            raise
        except Unimplemented:
            detail = "switched off on this server"
        except IdentityError as error:
            status, detail = ErrandStatus.FAILED, error.public
        return Errand(self._server_id, status, detail, int(self._clock.now().timestamp()))

    async def _do(self, order: Order) -> str:
        caller = Caller(CallerKind.LOCAL, f"order {order.order_id} of {order.actor}")
        kind = order.kind
        if order.verb == "destroy":
            slot = await self._local.destroy_key(caller, order)
            return f"destroyed the key in slot {slot}" if slot else "no such key here any more"
        slots = self._authorities.slots(kind)
        if order.verb == "prepare":
            return f"prepared {(await self._local.prepare(caller, kind)).authority_id}"
        if order.verb == "activate":
            if slots.prepared is None:
                return f"nothing was prepared; {slots.active.authority_id if slots.active else 'nobody'} signs"
            return f"activated {(await self._local.activate(caller, kind, slots.prepared.authority_id)).authority_id}"
        old = [one for one in slots if one.status is Status.OLD]
        if order.verb == "taint":
            for one in old:
                await self._local.taint(caller, kind, one.authority_id)
            return f"tainted {' '.join(one.authority_id for one in old)}" if old else "there was no old authority"
        tainted = [one for one in old if one.tainted]
        for one in tainted:
            await self._local.revoke(caller, kind, one.authority_id)
        return f"revoked {' '.join(one.authority_id for one in tainted)}" if tainted else "no old authority was tainted"
