"""Our bundle as it is published: written down first, never with a lower number, whatever the database says."""

import pytest

from identity_server.domain.bundle_sequence import AWAY_SECONDS, CONFIRM_SECONDS, Published
from identity_server.services.published_bundle import PublishedBundle
from spiffe_core.bundle import TrustBundle, X509Authority
from spiffe_core.errors import Unavailable
from spiffe_core.spiffe_id import TrustDomain
from tests.authority import SpiffeTestCA
from tests.doubles.clock import FakeClock
from tests.doubles.memory_store import Database, MemoryStore

TD = TrustDomain("example.org")
ROOT = X509Authority(SpiffeTestCA("example.org").der)


class Memory:
    """What is written down; `full` refuses to."""

    def __init__(self, written=None):
        self.written, self.full, self.writes = written, False, 0

    async def read(self):
        return self.written

    async def write(self, published):
        if self.full:
            raise Unavailable("no space left")
        self.writes += 1
        self.written = published


class Rig:
    def __init__(self, sequence=7, written=None, hint=300):
        self.clock, self.memory = FakeClock(), Memory(written)
        self.database = Database(bundles={TD: TrustBundle(TD, (ROOT,), sequence=sequence, refresh_hint=hint)})
        self.store = MemoryStore(self.database, TD, "a")
        self.bundle = self.other(self.memory)

    def other(self, memory, hint=300):
        return PublishedBundle(store=self.store, memory=memory, clock=self.clock, trust_domain=TD, refresh_hint=hint)

    @property
    def now(self):
        return int(self.clock.now().timestamp())

    def change(self, sequence):
        self.database.bundles[TD] = TrustBundle(TD, (ROOT,), sequence=sequence, refresh_hint=300)
        self.database.revision += 1
        self.store.reload()

    async def settle(self):
        await self.bundle.tick()
        await self.bundle.tick()
        return self.bundle.current().sequence


async def test_a_known_number_is_published_as_it_stands():
    """TDB-06: a restart changes nothing."""
    rig = Rig()
    rig.memory.written = Published(7, rig.now)
    await rig.bundle.tick()
    assert rig.bundle.current().sequence == 7
    assert rig.store.commands == 0


async def test_without_a_memory_the_number_is_the_time():
    """D19: a new machine with a restored database."""
    rig = Rig()
    with pytest.raises(Unavailable, match="not ready to be published"):
        rig.bundle.current()
    assert await rig.settle() == rig.now
    assert rig.memory.written == Published(rig.now, rig.now)


async def test_what_cannot_be_written_down_is_not_published():
    """TDB-06, N-F-27: neither the first time nor later, and trying again does not raise the number each time."""
    rig = Rig()
    rig.memory.full = True
    await rig.bundle.tick()
    for _ in range(3):
        with pytest.raises(Unavailable, match="no space left"):
            await rig.bundle.tick()
    assert rig.bundle.watch.value is None
    assert rig.store.commands == 1
    rig.memory.full = False
    first = await rig.settle()
    rig.memory.full = True
    rig.change(first + 1)
    with pytest.raises(Unavailable):
        await rig.bundle.tick()
    assert rig.bundle.current().sequence == first


async def test_a_database_set_back_under_a_running_server_is_raised():
    """TDB-06, D19: what was published last stands until the number is above it."""
    rig = Rig()
    first = await rig.settle()
    rig.change(first + 5)
    assert await rig.settle() == first + 5
    rig.change(3)
    await rig.bundle.tick()
    assert rig.bundle.current().sequence == first + 5
    assert await rig.settle() > first + 5


async def test_a_server_that_was_away_for_long_does_not_take_the_databases_word():
    """D19: a backup may have been restored meanwhile."""
    rig = Rig()
    rig.memory.written = Published(7, rig.now - AWAY_SECONDS - 1)
    assert await rig.settle() == rig.now


async def test_that_the_number_stands_is_written_down_now_and_then():
    rig = Rig()
    first = await rig.settle()
    writes = rig.memory.writes
    rig.clock.advance(CONFIRM_SECONDS - 1)
    await rig.bundle.tick()
    assert rig.memory.writes == writes
    rig.clock.advance(1)
    await rig.bundle.tick()
    assert rig.memory.written == Published(first, rig.now)
    for _ in range(8):
        rig.clock.advance(CONFIRM_SECONDS)
        await rig.bundle.tick()
    assert rig.bundle.current().sequence == first, "a server that runs is never away"


async def test_servers_that_differ_in_the_hint_do_not_overrule_each_other_for_ever():
    """TDB-07, D17: the last to start wins, once."""
    rig = Rig()
    await rig.settle()
    other = rig.other(Memory(Published(rig.bundle.current().sequence, rig.now)), hint=60)
    for _ in range(3):
        await other.tick()
        await rig.bundle.tick()
    assert rig.bundle.current() == other.current()
    assert other.current().refresh_hint == 60
    assert rig.store.commands == 2
