"""Use-cases of a server below an upstream authority: follow its roots and keys, taint or revoke a root of its.

What the upstream shows is added at once. A root that it taints is tainted here only after our own authority has been
replaced by one below another root, so that agents that rotate get something better (spire_features section 20).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from identity_server.domain.access import Caller
from identity_server.domain.audit import AuthorityChanged, BundleChanged
from identity_server.domain.authority import Authority
from identity_server.domain.orders import Order, key_digest
from identity_server.domain.published import ends_at
from identity_server.domain.upstream import UpstreamView
from identity_server.ports import AuditLog, Store, UpstreamAuthority
from identity_server.services.audited import audited
from identity_server.services.authorities import Authorities
from identity_server.services.authority_lines import spki_of
from identity_server.services.upstream_commands import (
    FIELD,
    NOT_VALID,
    Withdrawn,
    anchors_in_force,
    follow,
    followed,
    issuer_id,
    revoke_root,
    taint_root,
)
from spiffe_core.bundle import TrustBundle
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError, InvalidRequest, PreconditionFailed, Unavailable
from spiffe_core.spiffe_id import TrustDomain

RETRY_SECONDS = 5.0
MAX_SHOWN = 128

log = logging.getLogger(__name__)


class UpstreamAuthorities:
    """Belongs to the event loop.

    Without an upstream there is nothing to follow, and commands are refused but for the root of an upstream that is not
    configured any more.
    """

    def __init__(
        self,
        *,
        upstream: UpstreamAuthority | None,
        authorities: Authorities,
        store: Store,
        clock: Clock,
        audit: AuditLog,
        trust_domain: TrustDomain,
        server_id: str,
        new_id: Callable[[], str],
    ) -> None:
        self._upstream, self._authorities = upstream, authorities
        self._store, self._clock, self._audit = store, clock, audit
        self._trust_domain, self._server_id, self._new_id = trust_domain, server_id, new_id
        self._shown = UpstreamView()
        self._withdrawn = Withdrawn()
        self.last_error: IdentityError | None = None
        """Why the upstream's authorities could not be followed the last time; None when they were. For health."""

    async def taint(self, caller: Caller, key_id: str) -> str:
        """Mark an upstream root as no longer to be relied on: everything below it rotates at once.

        Raises:
            PreconditionFailed: there is no upstream, and there was none.
            InvalidRequest: it is not the root of an old authority alone.
        """
        self._require(key_id)
        now = self._now()
        command = partial(
            taint_root, trust_domain=self._trust_domain, server_id=self._server_id, key_id=key_id, now=now
        )
        with audited(self._audit, self._about(caller, "taint", key_id)):
            return await self._store.execute(command)

    async def revoke(self, caller: Caller, key_id: str) -> str:
        """Take a tainted upstream root out of the bundle: what is below it is refused from then on.

        Raises:
            PreconditionFailed: there is no upstream and there was none, or it still publishes this root: it would come
                back.
            InvalidRequest: it is not the root of an old authority alone.
            Internal: it is not tainted.
        """
        self._require(key_id)
        now = self._now()
        upstream = self._upstream
        if upstream is not None and any(one.key_id == key_id for one in upstream.view.value.x509_authorities):
            raise PreconditionFailed(
                f"upstream {upstream.name} still publishes this authority, so it would come back; "
                "take it out there first"
            )

        def destroy(row: Authority) -> Order:
            return Order(
                self._new_id(), "x509", "destroy", caller.actor, now, row.authority_id, key_digest(spki_of(row))
            )

        command = partial(
            revoke_root,
            trust_domain=self._trust_domain,
            server_id=self._server_id,
            key_id=key_id,
            now=now,
            destroy=destroy,
        )
        with audited(self._audit, self._about(caller, "revoke", key_id)):
            return await self._store.execute(command)

    async def keep_up(self) -> None:
        """Follow the upstream for as long as the server runs."""
        if self._upstream is None:
            return
        watch = self._upstream.view
        while True:
            version = watch.version
            try:
                await self.follow(watch.value)
                self.last_error = None
            except IdentityError as error:
                self.last_error = error
                log.warning(
                    "the upstream's authorities could not be followed yet: %s",
                    error.public,
                    extra={"facts": error.facts},
                )
                await self._clock.sleep(RETRY_SECONDS)
                continue
            await watch.changed(version)

    async def follow(self, view: UpstreamView) -> None:
        """Make our bundle hold what the upstream shows.

        Raises:
            Unavailable: the database cannot be written, or our authority is below a root that the upstream tainted and
                cannot be replaced; call again.
        """
        self._note_withdrawn(view)
        await self._leave_tainted(view)
        bundles = self._store.state.value.bundles
        before = bundles.own if bundles is not None else TrustBundle(self._trust_domain)
        now = self._now()
        in_force = anchors_in_force(await self._store.read(lambda uow: uow.authorities.of_kind("x509")), now)
        expected = followed(before, view, self._withdrawn, in_force)
        if expected.bundle is not before:
            await self._store_followed(view, expected.bundle, now)
        if in_force & {one.key_id for one in view.x509_authorities if one.tainted}:
            raise Unavailable(
                "a server still signs below a root that the upstream tainted; it is tainted here after that"
            )

    async def _store_followed(self, view: UpstreamView, expected: TrustBundle, now: int) -> None:
        ids = [one.key_id for one in expected.x509_authorities] + [one.key_id for one in expected.jwt_authorities]
        ids += [one.key_id for one in expected.wit_authorities]
        event = BundleChanged(
            change="follow upstream",
            trust_domain=str(self._trust_domain),
            actor=f"upstream {self._upstream.name}" if self._upstream is not None else "upstream",
            authority_ids=" ".join(ids),
        )
        command = partial(follow, trust_domain=self._trust_domain, view=view, withdrawn=self._withdrawn, now=now)
        with audited(self._audit, event):
            found = await self._store.execute(command)
        self._withdrawn = Withdrawn()
        log.info(
            "the trust bundle follows the upstream authority",
            extra={"facts": {"sequence": found.bundle.sequence, "conflicts": list(found.conflicts)}},
        )

    def _note_withdrawn(self, view: UpstreamView) -> None:
        x509 = {one.key_id for one in view.x509_authorities}
        jwt = {one.key_id for one in view.jwt_authorities}
        gone = {one.key_id for one in self._shown.x509_authorities if one.tainted} - x509
        wit = {one.key_id for one in view.wit_authorities}
        gone_jwt = {one.key_id for one in self._shown.jwt_authorities if one.tainted} - jwt
        gone_wit = {one.key_id for one in self._shown.wit_authorities if one.tainted} - wit
        before = self._withdrawn
        self._withdrawn = Withdrawn(
            (before.x509 | gone) - x509, (before.jwt | gone_jwt) - jwt, (before.wit | gone_wit) - wit
        )
        self._shown = view

    async def _leave_tainted(self, view: UpstreamView) -> None:
        """Sign below another root, if the upstream tainted ours."""
        tainted = {one.key_id for one in view.x509_authorities if one.tainted}
        active = self._authorities.active
        if active is None or not tainted:
            return
        prepared = self._authorities.slots("x509").prepared
        if active.anchor_id not in tainted and (prepared is None or prepared.anchor_id not in tainted):
            return
        log.warning(
            "the upstream tainted a root that an authority of ours is below; making another",
            extra={"facts": {"roots": sorted(tainted)}},
        )
        fresh = await self._authorities.prepare("x509", "upstream")
        if fresh.anchor_id in tainted:
            raise Unavailable("the upstream authority still signs below a root that it has tainted")
        if active.anchor_id in tainted:
            await self._authorities.activate("x509", fresh.authority_id, "upstream")

    def _require(self, key_id: str) -> None:
        """An upstream, or an authority of ours from when there was one: its root is still in the bundle."""
        if self._upstream is None and not any(
            one.upstream_chain and key_id in {one.anchor_id, issuer_id(one)}
            for one in self._store.state.value.authorities
        ):
            raise PreconditionFailed("upstream authority is not configured")
        if not key_id:
            raise InvalidRequest(f"{NOT_VALID}: no subject key ID provided", field=FIELD)

    def _about(self, caller: Caller, verb: str, key_id: str) -> AuthorityChanged:
        bundles = self._store.state.value.bundles
        return AuthorityChanged(
            change=verb,
            authority_id=key_id[:MAX_SHOWN],
            not_after=ends_at(bundles.own if bundles is not None else None, "x509", key_id),
            slot="upstream X.509",
            server_id=self._server_id,
            actor=caller.actor,
        )

    def _now(self) -> int:
        return int(self._clock.now().timestamp())
