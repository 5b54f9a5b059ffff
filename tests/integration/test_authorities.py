"""Signing authorities against real key files and a real database on their schedule (R17, R18, R23, R30, R31)."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from identity_server.domain.authority import Status
from identity_server.keys import DiskKeys
from identity_server.services.authorities import Authorities, CaSettings
from identity_server.store.sql_store import SqlStore
from spiffe_core.bundle import TrustBundle
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import InvalidRequest, Unavailable
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.x509_verify import verify_x509_svid
from tests.doubles.clock import FakeClock
from tests.doubles.killable_authorities import (
    HOUR,
    LEAF_KEY,
    TD,
    WEB,
    Audit,
    GuardedKey,
    Server,
)
from tests.doubles.memory_store import Database

DAY = 24 * HOUR


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
