"""The server's own X.509-SVID: spiffe://<trust domain>/spire/server, with a key that never leaves memory.

Renewed with a new key at half-life, and at once when the authority that signed it is tainted or leaves the bundle
(spire_features section 13.1), or when the clock fell back to before it begins: agents would refuse it until then (R18).
While a renewal fails the old one stays in force until it really expires.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from identity_server.domain.agents import SERVER_PATH
from identity_server.domain.audit import DONE, SvidIssued
from identity_server.domain.published import signing_ids
from identity_server.ports import AuditLog, Store
from identity_server.services.issuer import Issuer
from spiffe_core.bundle import BundleSet, TrustBundle
from spiffe_core.clock import Clock
from spiffe_core.crypto.keys import KeyKind, generate, to_pkcs8
from spiffe_core.errors import Unavailable
from spiffe_core.lifetime import BACKDATE, renew_at
from spiffe_core.runtime.offload import Offload
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire.tls import TlsIdentity


class OwnIdentity:
    """Keeps the server's SVID fresh. Belongs to the event loop."""

    def __init__(
        self,
        *,
        store: Store,
        issuer: Issuer,
        clock: Clock,
        audit: AuditLog,
        trust_domain: TrustDomain,
        key_kind: KeyKind,
        jitter: Callable[[], float],
        offload: Offload,
        on_renewed: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._issuer = issuer
        self._clock = clock
        self._audit = audit
        self._id = SpiffeId(trust_domain, SERVER_PATH)
        self._key_kind = key_kind
        self._jitter = jitter
        self._offload = offload
        self._on_renewed = on_renewed
        """Told how many seconds each renewal took."""
        self._identity: TlsIdentity | None = None
        self._trusted = BundleSet(TrustBundle(trust_domain))
        self._authority_id = ""
        self._judged: TrustBundle | None = None
        self._begins_at: datetime | None = None
        self._ends_at: datetime | None = None
        self.renew_at: datetime | None = None

    @property
    def spiffe_id(self) -> SpiffeId:
        """Whom the server is."""
        return self._id

    @property
    def identity(self) -> TlsIdentity:
        """What the TLS listener presents; the same object until the next renewal."""
        if self._identity is None:
            raise Unavailable("the server has no certificate of its own yet")
        return self._identity

    @property
    def unexpired(self) -> TlsIdentity:
        """What is presented to strangers, who would refuse it expired (N-F-26)."""
        if self._ends_at is None or self._clock.now() >= self._ends_at:
            raise Unavailable("the server's own certificate has expired and could not be renewed")
        return self.identity

    @property
    def trusted(self) -> BundleSet:
        """Whom the TLS listener believes: our own trust domain alone, however many others we federate with.

        Federation is between workloads; nobody of another trust domain may be anybody here (spire_wire section 1.1).
        The same object until our bundle changes.
        """
        bundles = self._store.state.value.bundles
        if bundles is not None and bundles.own is not self._trusted.own:
            self._trusted = BundleSet(bundles.own)
        return self._trusted

    async def tick(self) -> bool:
        """Renew if that is due; True if it was."""
        if not self._due():
            return False
        began = self._clock.monotonic()
        key = await self._offload(generate, self._key_kind)
        signer = self._issuer.signer
        issued = self._issuer.issue("server", self._id, key.public_key())
        self._audit.record(
            SvidIssued(
                profile="server",
                spiffe_id=str(issued.spiffe_id),
                serial=issued.serial,
                not_after=issued.not_after,
                actor="server",
                outcome=DONE,
            )
        )
        now = self._clock.now()
        self._identity = TlsIdentity(issued.chain, to_pkcs8(key))
        self._authority_id = signer.authority.published_as if signer is not None else ""
        self._judged = None
        self._begins_at = now - BACKDATE
        self._ends_at = datetime.fromtimestamp(issued.not_after, UTC)
        self.renew_at = renew_at(now, self._ends_at, jitter=self._jitter())
        self._on_renewed(self._clock.monotonic() - began)
        return True

    def seconds_until_due(self) -> float:
        """How long until half-life; 0 if a renewal is due."""
        if self.renew_at is None or self._due():
            return 0.0
        return max(0.0, (self.renew_at - self._clock.now()).total_seconds())

    def _due(self) -> bool:
        now = self._clock.now()
        if self._identity is None or self.renew_at is None or now >= self.renew_at:
            return True
        if self._begins_at is not None and now < self._begins_at:
            return True
        bundles = self._store.state.value.bundles
        if bundles is None or bundles.own is self._judged:
            return False
        if self._authority_id not in signing_ids(bundles.own, "x509"):
            return True
        self._judged = bundles.own
        return False
