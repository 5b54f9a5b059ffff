"""Use-cases of forced rotation: show, prepare, activate, taint, revoke (spire_wire 5.6, spire_features 20).

Show, prepare and activate act on this server, as in SPIRE. Taint and revoke take any authority of any server that
shares the database (architecture A15). Tainting makes everyone below rotate at once: this server renews its own
certificate, agents replace their SVIDs and those of their workloads. Revoking takes the authority out of the bundle;
connections whose certificates it anchored are cut by the guard of the front door.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from identity_server.domain.access import Caller
from identity_server.domain.audit import AuthorityChanged
from identity_server.domain.authority import Authority, AuthorityKind, Status
from identity_server.domain.orders import Errand, ErrandStatus, Order, key_digest
from identity_server.domain.published import ends_at
from identity_server.ports import AuditLog, Store
from identity_server.services.audited import audited
from identity_server.services.authorities import Authorities
from identity_server.services.authority_commands import WORDS, revoke, taint
from identity_server.services.authority_lines import spki_of
from identity_server.services.upstream_commands import issuer_id
from spiffe_core.clock import Clock
from spiffe_core.errors import InvalidRequest, PreconditionFailed
from spiffe_core.spiffe_id import TrustDomain

MAX_SHOWN = 128


@dataclass(frozen=True, slots=True)
class AuthorityView:
    """An authority as the API shows it; `upstream_id` is the hex key identifier of its issuer, "" if self-signed."""

    authority_id: str
    expires_at: int
    upstream_id: str = ""


@dataclass(frozen=True, slots=True)
class AuthorityStates:
    """This server's authorities of one kind."""

    active: AuthorityView | None
    prepared: AuthorityView | None
    old: AuthorityView | None


class LocalAuthorities:
    """What an operator may do with authorities. Belongs to the event loop."""

    def __init__(
        self,
        *,
        authorities: Authorities,
        store: Store,
        clock: Clock,
        audit: AuditLog,
        trust_domain: TrustDomain,
        server_id: str,
        new_id: Callable[[], str],
    ) -> None:
        self._authorities = authorities
        self._server_id, self._new_id = server_id, new_id
        self._store, self._clock, self._audit = store, clock, audit
        self._trust_domain = trust_domain

    def states(self, kind: AuthorityKind) -> AuthorityStates:
        """The authorities in this server's slots.

        Raises:
            Unimplemented: this kind is switched off.
            Unavailable: none is active yet.
        """
        slots = self._authorities.slots(kind)
        old = next((one for one in slots if one.status is Status.OLD), None)
        return AuthorityStates(*(view_of(one) if one else None for one in (slots.active, slots.prepared, old)))

    async def prepare(self, caller: Caller, kind: AuthorityKind) -> AuthorityView:
        """Make and publish the next authority."""
        return view_of(await self._authorities.prepare(kind, caller.actor))

    async def activate(self, caller: Caller, kind: AuthorityKind, authority_id: str) -> AuthorityView:
        """Let the prepared authority sign; answers when it does, after at most 10 s."""
        self._authorities.slots(kind)
        _require_id(authority_id)
        return view_of(await self._authorities.activate(kind, authority_id, caller.actor))

    async def taint(self, caller: Caller, kind: AuthorityKind, authority_id: str) -> AuthorityView:
        """Mark an old authority as no longer to be relied on; repeating it changes nothing."""
        self._authorities.slots(kind)
        _require_id(authority_id)
        self._refuse_below_upstream(kind, "tainted")
        view, event = self._about(caller, "taint", kind, authority_id)
        now = int(self._clock.now().timestamp())
        with audited(self._audit, event):
            row = await self._store.execute(lambda uow: taint(uow, self._trust_domain, kind, authority_id, now))
        return view if row is None else view_of(row)

    async def revoke(self, caller: Caller, kind: AuthorityKind, authority_id: str) -> AuthorityView:
        """Take a tainted authority out of the bundle, and have its server destroy the key: this one does so at once."""
        self._authorities.slots(kind)
        _require_id(authority_id, "invalid authority ID: ")
        self._refuse_below_upstream(kind, "revoked")
        view, event = self._about(caller, "revoke", kind, authority_id)
        now = int(self._clock.now().timestamp())
        order_id = self._new_id()

        def destroy(row: Authority) -> Order:
            return Order(order_id, kind, "destroy", caller.actor, now, authority_id, key_digest(spki_of(row)))

        command = partial(
            revoke, trust_domain=self._trust_domain, kind=kind, authority_id=authority_id, now=now, destroy=destroy
        )
        with audited(self._audit, event):
            row = await self._store.execute(command)
        if row is None:
            return view
        if row.server_id == self._server_id:
            slot = await self._authorities.destroy_key(key_digest(spki_of(row)))
            detail = f"destroyed the key in slot {slot}" if slot else "no such key here any more"
            errand = Errand(self._server_id, ErrandStatus.DONE, detail, now)
            await self._store.execute(lambda uow: uow.orders.report(order_id, errand))
        return view_of(row)

    async def destroy_key(self, caller: Caller, order: Order) -> str:
        """Destroy the key of an authority that another server revoked; its slot, "" if there is none here any more."""
        event = AuthorityChanged(
            change="destroy",
            authority_id=order.authority_id,
            slot=WORDS[order.kind],
            server_id=self._server_id,
            actor=caller.actor,
        )
        with audited(self._audit, event):
            return await self._authorities.destroy_key(order.key_digest)

    def _about(
        self, caller: Caller, verb: str, kind: AuthorityKind, authority_id: str
    ) -> tuple[AuthorityView, AuthorityChanged]:
        """What is known of the authority, and the audit event of what shall become of it (architecture A16)."""
        bundles = self._store.state.value.bundles
        expires_at = ends_at(bundles.own if bundles is not None else None, kind, authority_id)
        event = AuthorityChanged(
            change=verb,
            authority_id=authority_id[:MAX_SHOWN],
            not_after=expires_at,
            slot=WORDS[kind],
            actor=caller.actor,
        )
        return AuthorityView(authority_id, expires_at), event

    def _refuse_below_upstream(self, kind: AuthorityKind, word: str) -> None:
        if kind == "x509" and self._authorities.below_upstream:
            raise PreconditionFailed(f"local authority can't be {word} if there is an upstream authority")


def view_of(authority: Authority) -> AuthorityView:
    """An authority as the API shows it."""
    return AuthorityView(authority.authority_id, authority.not_after, issuer_id(authority))


def _require_id(authority_id: str, before: str = "") -> None:
    if not authority_id:
        raise InvalidRequest(f"{before}no authority ID provided", field="authority_id")
