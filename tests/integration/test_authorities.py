"""Signing authorities against real key files and a real database (R1, R8, R11, R17, R18, R23, R30, R31, R33)."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from identity_server.domain.audit import AuthorityChanged
from identity_server.domain.authority import Authority, Slots, Status
from identity_server.keys import DiskKeys, MemoryKeys, set_aside
from identity_server.ports import KeyManager
from identity_server.services.authorities import Authorities, CaSettings
from identity_server.store.sql_store import SqlStore
from spiffe_core.bundle import TrustBundle
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.keys import KeyKind, PrivateKey, PublicKey, generate, spki_der
from spiffe_core.errors import CorruptState, InvalidRequest, Unavailable
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.x509_verify import verify_x509_svid
from tests.doubles.clock import FakeClock
from tests.doubles.memory_store import Database, MemoryStore

TD = TrustDomain("example.org")
WEB = SpiffeId(TD, "/web")
HOUR = 3_600
DAY = 24 * HOUR
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


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path / "data" / "keys.json")


async def test_the_first_authority_of_an_empty_domain_signs_at_once(server: Server) -> None:
    """A15. The audit line of each change stands before it."""
    authorities = await server.start()
    issued = server.issue(ttl=60)
    assert (WEB, 1, {server.active.authority_id}) == (issued.spiffe_id, len(issued.chain), server.roots)
    assert server.audit.changes() == ["prepare", "activate"]
    assert (server.active, None) == (authorities.active, authorities.last_error)
    assert str(x509.load_der_x509_certificate(issued.chain[0]).serial_number) == issued.serial
    assert int(server.clock.now().timestamp()) + 60 == issued.not_after


async def test_a_day_goes_by_on_spires_schedule(server: Server) -> None:
    """Prepared after 12 h, activated after 20 h, SVIDs of 4 h never cut short, the old root stays until a day after its end."""
    await server.start()
    first = server.active
    await server.run(12 * HOUR)
    assert server.slots.prepared is None
    await server.run(600)
    second = server.slots.prepared
    assert second is not None
    assert {first.authority_id, second.authority_id} == server.roots, "published when prepared"
    await server.run(8 * HOUR - 600)
    assert first == server.active
    assert int(server.clock.now().timestamp()) + 4 * HOUR == server.issue(ttl=4 * HOUR).not_after
    await server.run(600)
    assert second.authority_id == server.active.authority_id
    assert Status.OLD is server.database.authorities[first.authority_id].status
    await server.run(28 * HOUR - 1_200, step=1_200)
    assert first.authority_id in server.roots
    await server.run(1_200, step=1_200)
    assert first.authority_id not in server.roots
    assert len(server.roots) <= 3


async def test_a_week_of_rotation_leaves_no_orphans(server: Server) -> None:
    """R1, R31: never more than two authorities and two keys; the bundle does not grow."""
    await server.start()
    await server.run(7 * DAY, step=HOUR)
    assert len(server.roots) <= 4
    assert {one.key_slot for one in server.slots} >= set(server.keys.list())


async def test_a_restart_goes_on_with_the_same_authority(server: Server) -> None:
    """R1: a replay, not a new identity. Nothing is written."""
    await server.start()
    before, file = dict(server.database.authorities), server.path.read_bytes()
    authorities = await server.start()
    assert (before, file, 0) == (server.database.authorities, server.path.read_bytes(), server.store.commands)
    assert server.active == authorities.active
    server.issue()


async def test_a_kill_at_any_point_leaves_one_authority_that_was_published_first(tmp_path: Path) -> None:
    """R1: every point of the first start, of a preparation and of an activation; nothing signs unpublished (GuardedKey)."""
    for hours in (0, 13, 21):
        at, points = 0, 0
        while True:
            at += 1
            server = Server(tmp_path / f"{hours}-{at}" / "keys.json")
            if hours:
                await server.start()
                await server.run(12 * HOUR if hours == 13 else 20 * HOUR, step=HOUR)
                server.clock.advance(HOUR)
            former = server.slots.active
            try:
                server.kill_at = at + server.reached if hours else at
                await (server.authorities.tick() if hours else server.start())
            except Killed:
                points += 1
            else:
                break
            server.kill_at = -1
            await server.start()
            server.issue()
            await server.authorities.tick()
            if former is not None and hours == 13:
                assert former.authority_id == server.active.authority_id, "a rotation that was cut off costs nothing"
            assert server.active.authority_id in server.roots
            assert sum(one.status is Status.ACTIVE for one in server.database.authorities.values()) == 1
            assert {one.key_slot for one in server.slots} >= set(server.keys.list()), "no orphan key"
        assert points >= {0: 8, 13: 6, 21: 3}[hours], f"{points} kill points after {hours} h"


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_database_that_fails_while_preparing_costs_nothing(server: Server, when: str) -> None:
    """R33: no signature by an unsaved authority, a retry, and after a restart the same authority."""
    await server.start()
    first = server.active
    server.clock.advance(13 * HOUR)
    getattr(server.store, when).append(Unavailable("database"))
    await server.authorities.tick()
    assert isinstance(server.authorities.last_error, Unavailable)
    assert first == server.authorities.active
    server.issue()
    if when == "after":  # the outcome was unknown and the follower sees it later
        server.store.reload()
    await server.authorities.tick()
    assert server.authorities.last_error is None
    prepared = server.slots.prepared
    assert prepared is not None
    await server.start()
    assert (first, prepared) == (server.active, server.slots.prepared)


async def test_a_key_is_never_replaced_while_the_database_knows_an_authority_in_its_slot(server: Server) -> None:
    """R33: the commit happened, its answer was lost, and memory does not know yet: the key of slot B stays."""
    await server.start()
    server.clock.advance(13 * HOUR)
    server.store.after.append(Unavailable("answer lost"))
    await server.authorities.tick()
    file = server.path.read_bytes()
    await server.authorities.tick()
    assert (file, True) == (server.path.read_bytes(), isinstance(server.authorities.last_error, Unavailable))
    await server.start()
    assert server.slots.prepared is not None


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_database_that_fails_while_activating_leaves_the_former_signer(server: Server, when: str) -> None:
    """R33: the signer changes only when the state shows it."""
    await server.start()
    await server.run(20 * HOUR, step=HOUR)
    first = server.active
    server.clock.advance(HOUR)
    getattr(server.store, when).append(Unavailable("database"))
    await server.authorities.tick()
    assert server.authorities.active is not None
    assert first.authority_id == server.authorities.active.authority_id
    server.store.reload()
    await server.authorities.tick()
    assert (server.active, None) == (server.authorities.active, server.authorities.last_error)
    assert first.authority_id != server.active.authority_id
    server.issue()


async def test_a_full_disk_stops_preparing_not_issuing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """R11: also over a restart; it goes on by itself when there is room."""

    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    await server.start()
    server.clock.advance(13 * HOUR)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        await server.authorities.tick()
        assert "No space left" in str(server.authorities.last_error)
        server.issue()
        await server.start()
        assert "No space left" in str(server.authorities.last_error)
        server.issue()
    await server.authorities.tick()
    assert (server.authorities.last_error, server.slots.prepared is not None) == (None, True)


async def test_an_audit_log_that_fails_stops_the_change(server: Server) -> None:
    """A16: the line stands before the effect, or there is no effect."""
    await server.start()
    server.clock.advance(13 * HOUR)

    def fail() -> None:
        raise Unavailable("audit")

    server.audit.checkpoint = fail
    await server.authorities.tick()
    assert (server.slots.prepared, server.authorities.last_error is not None) == (None, True)
    server.issue()


LOST_KEYS = {
    "the file is missing": lambda path: path.unlink(),
    "the slot is empty": lambda path: path.write_text('{"keys": {}}'),
    "the slot holds another key": lambda path: DiskKeys(path).generate("x509-CA-A", KeyKind.EC_P256),
}


@pytest.mark.parametrize("name", LOST_KEYS)
async def test_a_lost_authority_key_stops_the_start_until_the_operator_decides(server: Server, name: str) -> None:
    """R8: never a silent new identity. With --reset-keys the old authority becomes OLD and its root stays."""
    await server.start()
    first = server.active
    LOST_KEYS[name](server.path)
    journal, bundle = dict(server.database.authorities), server.database.bundles[TD]
    with pytest.raises(CorruptState) as refused:
        await server.start()
    for part in (str(server.path), first.authority_id, "Restore it from a backup", "--reset-keys"):
        assert part in refused.value.public
    assert (journal, bundle) == (server.database.authorities, server.database.bundles[TD]), "nothing was written"
    server.settings["reset_keys"] = True
    set_aside(server.path)
    await server.start()
    assert Status.OLD is server.database.authorities[first.authority_id].status
    assert {first.authority_id, server.active.authority_id} == server.roots
    assert first.authority_id != server.active.authority_id
    server.settings["reset_keys"] = False
    await server.start()
    server.issue()


async def test_a_lost_prepared_key_stops_the_start_too(server: Server) -> None:
    await server.start()
    await server.run(13 * HOUR, step=HOUR)
    DiskKeys(server.path).delete("x509-CA-B")
    with pytest.raises(CorruptState, match="prepared"):
        await server.start()


async def test_memory_keys_mean_a_new_authority_after_a_restart(server: Server) -> None:
    """The old roots stay in the bundle: what they signed is still verified."""
    server.memory = True
    await server.start()
    first = server.active
    old_leaf = server.issue()
    for restarts in (2, 3, 4):
        await server.start()
        server.issue()
        assert restarts == len(server.roots)
        assert len(list(server.slots)) <= 2
    assert first.authority_id in server.roots
    bundle = server.database.bundles[TD]
    assert verify_x509_svid(old_leaf.chain, lambda _: bundle, now=server.clock.now()).spiffe_id == WEB


async def test_a_clock_that_jumps_forward_makes_a_new_authority_in_order(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """R17: prepared, published, activated; the log says "clock jump"; no root is pruned while the clock is in doubt."""
    await server.start()
    first = server.active
    server.clock.jump(50 * HOUR)
    with caplog.at_level(logging.INFO, "identity_server.services.authorities"):
        await server.authorities.tick()
    assert "clock jump" in caplog.text
    assert server.audit.changes()[2:] == ["prepare", "activate"]
    assert first.authority_id != server.active.authority_id
    server.issue()
    assert first.authority_id in server.roots
    await server.run(2 * HOUR)
    assert first.authority_id not in server.roots, "pruned when the jump has lasted an hour"


async def test_a_server_that_was_down_longer_than_its_authority_lived_starts(server: Server) -> None:
    """R23, also with an authority that was prepared before."""
    for hours in (1, 13):
        await server.start()
        await server.run(hours * HOUR, step=HOUR)
        before = server.active
        server.clock.advance(30 * DAY)
        await server.start()
        assert before.authority_id != server.active.authority_id
        server.issue()


async def test_a_clock_that_falls_back_two_hours_shortens_nothing(server: Server) -> None:
    """R18: an SVID issued after the step ends no sooner than one issued before it; no new authority, no loop."""
    await server.start()
    await server.run(3 * HOUR, step=HOUR)
    first, before = server.active, server.issue(ttl=600)
    server.clock.jump(-2 * HOUR)
    await server.authorities.tick()
    after = server.issue(ttl=600)
    assert after.not_after >= before.not_after
    assert (first, 2) == (server.active, len(server.audit.changes()))
    server.clock.advance(2 * HOUR + 60)
    assert server.issue(ttl=600).not_after == before.not_after + 60


async def test_a_clock_before_the_authoritys_birth_makes_one_that_is_valid_now(server: Server) -> None:
    """R18: once, not in a loop."""
    await server.start()
    server.clock.jump(-300 * DAY)
    for _ in range(3):
        await server.authorities.tick()
        server.issue()
    assert len(server.audit.changes()) == 4


async def test_a_root_taken_out_of_the_bundle_signs_no_more(server: Server) -> None:
    """Nothing is signed by what is not in the stored bundle; a new authority takes over, the root does not come back."""
    await server.start()
    first = server.active
    server.database.bundles[TD] = server.database.bundles[TD].without_x509_authority(first.authority_id)
    server.store.reload()
    with pytest.raises(Unavailable, match="no signing authority"):  # at once, not at the next tick
        server.authorities.issuer.issue("workload", WEB, LEAF_KEY)
    server.store.before.append(Unavailable("database"))
    await server.authorities.tick()
    assert server.authorities.active is None
    await server.authorities.tick()
    assert ({server.active.authority_id}, True) == (server.roots, first.authority_id not in server.roots)
    server.issue()


async def test_two_servers_share_a_bundle_and_never_lose_each_others_roots(tmp_path: Path) -> None:
    """R30, R31: both prepare, activate and prune against one database; the union is kept, only what expired goes."""
    database, clock = Database(), FakeClock()
    servers = [Server(tmp_path / name / "keys.json", database, clock, name) for name in ("s1", "s2")]
    for one in servers:
        await one.start()
    assert {one.active.authority_id for one in servers} == servers[0].roots
    for _ in range(4 * 24):
        clock.advance(HOUR)
        for one in servers:
            one.store.reload()
            await one.authorities.tick()
            one.issue()
        in_force = {row.authority_id for row in database.authorities.values() if row.status is not Status.OLD}
        assert in_force <= servers[0].roots
    assert len(servers[0].roots) <= 8


async def test_nothing_is_signed_before_start_and_authority_keys_are_not_certified(server: Server) -> None:
    """N-C-25 (Unavailable, no partial SVID), N-C-07 (every server's authority keys)."""
    await server.start()
    idle = Authorities(server.store, server.keys, server.clock, server.audit, CaSettings(TD, "s9"), os.urandom)
    with pytest.raises(Unavailable, match="no signing authority"):
        idle.issuer.issue("workload", WEB, LEAF_KEY)
    await server.run(13 * HOUR, step=HOUR)
    for slot in server.keys.list():
        key = server.keys.signer(slot)
        assert key is not None
        with pytest.raises(InvalidRequest, match="signing authority"):
            server.authorities.issuer.issue("workload", WEB, key.public_key())


async def test_each_profile_has_its_default_ttl_and_bad_requests_are_named(server: Server) -> None:
    server.settings |= {"x509_ttl": timedelta(minutes=30), "agent_ttl": timedelta(minutes=20)}
    issuer = (await server.start()).issuer
    now = int(server.clock.now().timestamp())
    ids = {"workload": WEB, "agent": SpiffeId(TD, "/spire/agent/x"), "server": SpiffeId(TD, "/spire/server")}
    ends = {profile: issuer.issue(profile, one, LEAF_KEY).not_after - now for profile, one in ids.items()}
    assert ends == {"workload": 1_800, "agent": 1_200, "server": 1_800}
    for field_name, over in {"ttl": {"ttl": -1}, "dns_names": {"dns_names": ("a_b.test\n",)}}.items():
        with pytest.raises(InvalidRequest) as refused:
            issuer.issue("workload", WEB, LEAF_KEY, **over)  # type: ignore[arg-type]  # spoiled on purpose
        assert field_name == refused.value.field


async def test_serials_are_distinct_and_random(server: Server) -> None:
    """S38."""
    await server.start()
    serials = {int(server.authorities.issuer.issue("workload", WEB, LEAF_KEY).serial) for _ in range(300)}
    assert len(serials) == 300
    assert max(serials) >= 2**120
    assert min(serials) >= 1


@asynccontextmanager
async def sql_store(path: Path) -> AsyncIterator[SqlStore]:
    store = SqlStore.open(path, trust_domain=TD, server_id="s1", encode=lambda _: b"", clock=SystemClock())
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.parametrize("kind", [KeyKind.EC_P256, KeyKind.EC_P384, KeyKind.RSA_2048])
async def test_a_rotation_on_a_real_database_survives_restarts(tmp_path: Path, kind: KeyKind) -> None:
    """R1 with SQLite and a key file: journal and bundle come back; the signer follows the committed state."""
    clock, audit = FakeClock(), Audit()
    seen: list[str] = []
    for hours in (0, 13, 8, 30):
        clock.advance(hours * HOUR)
        async with sql_store(tmp_path / "db.sqlite3") as store:
            settings = CaSettings(TD, "s1", key_kind=kind)
            authorities = Authorities(
                store, DiskKeys(tmp_path / "data" / "keys.json"), clock, audit, settings, os.urandom
            )
            await authorities.start()
            assert authorities.active is not None
            seen.append(authorities.active.authority_id)
            issued = authorities.issuer.issue("workload", WEB, LEAF_KEY, ttl=60)
            bundles = store.state.value.bundles
            assert bundles is not None
            assert verify_x509_svid(issued.chain, bundles.get, now=clock.now()).spiffe_id == WEB
            assert await store.read(lambda uow: uow.bundles.get(TD)) == bundles.own
    assert (seen[0], 3) == (seen[1], len(set(seen)))
    assert audit.changes() == ["prepare", "activate", "prepare", "activate", "prepare", "activate"]


def test_a_guarded_key_would_notice(tmp_path: Path) -> None:
    """The guard above can fail: it refuses to sign for an authority that is only prepared."""
    key = generate(KeyKind.EC_P256)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    server = Server(tmp_path)
    server.database.bundles[TD] = TrustBundle(TD)
    with pytest.raises(AssertionError, match="not in the stored bundle"):
        GuardedKey(key, server.database).sign(b"tbs", None)
