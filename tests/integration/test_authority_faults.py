"""Signing authorities that are killed, lose their database, disk, audit log or keys (R1, R8, R11, R33)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from identity_server.domain.authority import Status
from identity_server.keys import DiskKeys, set_aside
from spiffe_core.crypto.keys import KeyKind
from spiffe_core.errors import CorruptState, Unavailable
from spiffe_core.x509_verify import verify_x509_svid
from tests.doubles.killable_authorities import (
    HOUR,
    TD,
    WEB,
    Killed,
    Server,
)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path / "data" / "keys.json")


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
    """R8, R10: never a silent new identity, nor a key that does not fit its certificate. With --reset-keys the old authority becomes OLD and its root stays."""
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
