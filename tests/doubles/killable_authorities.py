"""The authorities of one server over real key files, which can be killed at each step that leaves a trace."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from identity_server.domain.audit import AuthorityChanged
from identity_server.domain.authority import Authority, Slots, Status
from identity_server.keys import DiskKeys, MemoryKeys
from identity_server.ports import KeyManager
from identity_server.services.authorities import Authorities, CaSettings
from spiffe_core.crypto.keys import KeyKind, PrivateKey, PublicKey, generate, spki_der
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.x509_verify import verify_x509_svid
from tests.doubles.clock import FakeClock
from tests.doubles.memory_store import Database, MemoryStore

TD = TrustDomain("example.org")
WEB = SpiffeId(TD, "/web")
HOUR = 3_600
LEAF_KEY = generate(KeyKind.EC_P256).public_key()


class Killed(BaseException):
    """kill -9, as seen from inside: nothing after it runs."""


@dataclass
class Audit:
    events: list[Any] = field(default_factory=list)
    checkpoint: Callable[[], None] = lambda: None

    def record(self, *events: Any) -> None:
        for event in events:
            self.checkpoint()
            self.events.append(event)

    def changes(self) -> list[str]:
        return [
            event.change for event in self.events if isinstance(event, AuthorityChanged) and event.outcome == "begun"
        ]


class GuardedKey:
    """An authority's key that signs leaves only while its certificate is ACTIVE in the journal and in the stored bundle."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, database: Database) -> None:
        self._key, self._database = key, database

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._key.public_key()

    def sign(self, data: bytes, algorithm: Any) -> bytes:
        own = spki_der(self._key.public_key())
        if data.count(own) == 0:  # not its own self-signed certificate
            bundle = self._database.bundles[TD]
            published = {spki_der(root.certificate.public_key()) for root in bundle.x509_authorities}  # type: ignore[arg-type]  # EC
            assert own in published, "a signature by an authority that is not in the stored bundle"
            active = [one for one in self._database.authorities.values() if one.status is Status.ACTIVE]
            assert any(own in one.certificate for one in active), "a signature by an authority that is not active"
        return self._key.sign(data, algorithm)


ec.EllipticCurvePrivateKey.register(GuardedKey)


class GuardedKeys:
    """A key manager whose keys are `GuardedKey`s, with a checkpoint before and after each change."""

    def __init__(self, inner: KeyManager, database: Database, checkpoint: Callable[[], None]) -> None:
        self._inner, self._database, self._checkpoint = inner, database, checkpoint
        self.persistent, self.location = inner.persistent, inner.location

    @property
    def trouble(self) -> str:
        return self._inner.trouble

    def check(self) -> None:
        self._inner.check()

    def generate(self, slot: str, kind: KeyKind) -> PublicKey:
        self._checkpoint()
        public = self._inner.generate(slot, kind)
        self._checkpoint()
        return public

    def signer(self, slot: str) -> PrivateKey | None:
        key: Any = self._inner.signer(slot)
        return None if key is None else GuardedKey(key, self._database)  # type: ignore[return-value]  # registered above

    def delete(self, slot: str) -> None:
        self._checkpoint()
        self._inner.delete(slot)

    def list(self) -> tuple[str, ...]:
        return self._inner.list()


class KillableStore(MemoryStore):
    """A checkpoint before and after each command and before each read."""

    checkpoint: Callable[[], None] = staticmethod(lambda: None)

    async def execute(self, command: Callable[[Any], Any]) -> Any:
        self.checkpoint()
        result = await super().execute(command)
        self.checkpoint()
        return result

    async def read(self, query: Callable[[Any], Any]) -> Any:
        self.checkpoint()
        return await super().read(query)


@dataclass
class Server:
    """One server over what survives restarts: a database and a key file."""

    path: Path
    database: Database = field(default_factory=Database)
    clock: FakeClock = field(default_factory=FakeClock)
    server_id: str = "s1"
    memory: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    kill_at: int = -1
    reached: int = 0

    def checkpoint(self) -> None:
        self.reached += 1
        if self.reached == self.kill_at:
            raise Killed

    async def start(self) -> Authorities:
        self.reached = 0
        self.store = KillableStore(self.database, TD, self.server_id)
        self.store.checkpoint = self.checkpoint
        self.audit = Audit(checkpoint=self.checkpoint)
        self.keys = GuardedKeys(MemoryKeys() if self.memory else DiskKeys(self.path), self.database, self.checkpoint)
        settings = CaSettings(TD, self.server_id, **self.settings)
        self.authorities = Authorities(self.store, self.keys, self.clock, self.audit, settings, os.urandom)
        await self.authorities.start()
        return self.authorities

    async def run(self, seconds: int, step: int = 600) -> None:
        """Let time pass with a tick every `step` seconds, and issue and verify a leaf each time."""
        for _ in range(0, seconds, step):
            self.clock.advance(step)
            await self.authorities.tick()
            assert self.authorities.last_error is None
            self.issue()

    def issue(self, **over: Any) -> Any:
        issued = self.authorities.issuer.issue("workload", WEB, LEAF_KEY, **over)
        now = self.clock.now()
        bundle = self.database.bundles[TD]
        assert verify_x509_svid(issued.chain, lambda _: bundle, now=now).spiffe_id == WEB
        return issued

    @property
    def slots(self) -> Slots:
        return Slots.of(one for one in self.database.authorities.values() if one.server_id == self.server_id)

    @property
    def active(self) -> Authority:
        active = self.slots.active
        assert active is not None
        return active

    @property
    def roots(self) -> set[str]:
        return {root.key_id for root in self.database.bundles[TD].x509_authorities}
