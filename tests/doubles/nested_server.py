"""The authorities of a server below a scripted upstream, over a database in memory that several may share."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from identity_server.domain.authority import Authority, Slots
from identity_server.keys import MemoryKeys
from identity_server.services.authorities import Authorities, CaSettings, TokenSettings
from identity_server.services.upstream_authorities import UpstreamAuthorities
from spiffe_core.bundle import TrustBundle
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.x509_verify import verify_x509_svid
from tests.authority import SpiffeTestCA
from tests.doubles.clock import START, FakeClock
from tests.doubles.memory_store import Database, MemoryStore
from tests.doubles.scripted_upstream import ScriptedUpstream

TD = TrustDomain("example.org")
WEB = SpiffeId(TD, "/web")
LEAF = generate(KeyKind.EC_P256).public_key()


class Silent:
    def record(self, *_events: Any) -> None:
        pass


def ca(name: str, *, now: datetime = START, days: int = 30, **over: Any) -> SpiffeTestCA:
    return SpiffeTestCA(name=name, now=now, ttl=timedelta(days=days), **over)


@dataclass
class Nested:
    """A server below a scripted upstream, over a database that several may share."""

    database: Database = field(default_factory=Database)
    clock: FakeClock = field(default_factory=FakeClock)
    server_id: str = "s1"
    root: SpiffeTestCA = field(default_factory=lambda: ca("root"))
    keys: MemoryKeys = field(default_factory=MemoryKeys)
    jwt: bool = False
    wit: bool = False

    def __post_init__(self) -> None:
        self.upstream = ScriptedUpstream(self.clock, self.root)

    async def start(self) -> Nested:
        self.store = MemoryStore(self.database, TD, self.server_id)
        tokens = TokenSettings(timedelta(minutes=5))
        settings = CaSettings(TD, self.server_id, jwt=tokens if self.jwt else None, wit=tokens if self.wit else None)
        self.authorities = Authorities(self.store, self.keys, self.clock, Silent(), settings, os.urandom, self.upstream)
        self.above = UpstreamAuthorities(
            upstream=self.upstream,
            authorities=self.authorities,
            store=self.store,
            clock=self.clock,
            audit=Silent(),
            trust_domain=TD,
            server_id=self.server_id,
            new_id=lambda: os.urandom(8).hex(),
        )
        await self.upstream.start()
        await self.authorities.start()
        return self

    def issue(self) -> tuple[bytes, ...]:
        """A leaf that verifies against the stored bundle."""
        issued = self.authorities.issuer.issue("workload", WEB, LEAF)
        bundle = self.bundle
        verify_x509_svid(issued.chain, lambda _: bundle, now=self.clock.now())
        return issued.chain

    async def follow(self) -> None:
        await self.above.follow(self.upstream.view.value)

    @property
    def bundle(self) -> TrustBundle:
        return self.database.bundles[TD]

    @property
    def slots(self) -> Slots:
        return Slots.of(one for one in self.database.authorities.values() if one.server_id == self.server_id)

    @property
    def active(self) -> Authority:
        assert self.slots.active is not None
        return self.slots.active

    async def rotated(self) -> Authority:
        fresh = await self.authorities.prepare("x509", "test")
        return await self.authorities.activate("x509", fresh.authority_id, "test")
