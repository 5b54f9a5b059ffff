"""A call that carries a position waits for a server that is behind, a second at most, and for no invented one (A8)."""

import asyncio

import pytest

from identity_server.domain.history import Position
from identity_server.domain.state import State
from identity_server.services import abreast
from identity_server.services.abreast import MAX_WAITING_EACH, Abreast
from spiffe_core.errors import Unavailable
from spiffe_core.runtime.watch import Watch
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire.positions import MAX_TEXT, POSITION, position_in

TD = TrustDomain("example.org")
HERE, NEXT, FAR = Position(5, 10, 1), Position(5, 11, 2), Position(5, 10**18, 3)


class Rig:
    """A server at HERE, before a database that is at `head`."""

    def __init__(self, head):
        self.head = head
        self.reads = 0
        self.watch = Watch(State(HERE, TD))
        self.abreast = Abreast(self.watch, self._read)

    async def _read(self):
        self.reads += 1
        await asyncio.sleep(0)
        if isinstance(self.head, Exception):
            raise self.head
        return self.head

    def call(self, position, caller="/spire/agent/a"):
        return asyncio.ensure_future(self.abreast.reached(caller, position))

    def catch_up(self, position):
        self.watch.publish(State(position, TD))


@pytest.mark.parametrize("position", [HERE, Position(5, 9, 7), Position(4, 99, 7), Position(5, 10, 99)])
async def test_what_this_server_has_costs_nothing(position):
    rig = Rig(NEXT)
    await rig.abreast.reached("/spire/agent/a", position)
    assert (rig.reads, rig.abreast.waiting, rig.abreast.behind) == (0, 0, 0)


@pytest.mark.parametrize("position", [FAR, Position(6, 1, 1), Position(5, 12, 1)])
async def test_what_the_database_does_not_have_is_waited_for_by_nobody(position):
    """An invented position, one of a history that was lost, one beyond a restored backup."""
    rig = Rig(NEXT)
    await rig.abreast.reached("/spire/agent/a", position)
    assert (rig.reads, rig.abreast.waiting, rig.abreast.behind) == (1, 0, 0)


@pytest.mark.parametrize("there", [NEXT, Position(5, 30, 4), Position(6, 1, 4)])
async def test_a_call_goes_on_as_soon_as_the_server_has_caught_up(there):
    rig = Rig(NEXT)
    calls = [rig.call(NEXT), rig.call(NEXT, "/spire/agent/b")]
    while rig.reads < 2:
        await asyncio.sleep(0)
    assert rig.abreast.waiting == 2
    rig.catch_up(there)
    await asyncio.gather(*calls)
    assert (rig.abreast.waiting, rig.abreast.behind) == (0, 0)


async def test_a_server_that_stays_behind_says_unavailable_and_nothing_else(monkeypatch):
    monkeypatch.setattr(abreast, "WAIT_SECONDS", 0.02)
    rig = Rig(NEXT)
    with pytest.raises(Unavailable) as caught:
        await rig.abreast.reached("/spire/agent/a", NEXT)
    assert not caught.value.facts
    assert (rig.abreast.waiting, rig.abreast.behind) == (0, 1)


async def test_a_database_that_cannot_be_read_is_unavailable():
    rig = Rig(Unavailable("the database is away"))
    with pytest.raises(Unavailable):
        await rig.abreast.reached("/spire/agent/a", NEXT)
    assert rig.abreast.waiting == 0


async def test_one_agent_takes_a_few_places_only_and_all_together_a_bounded_number(monkeypatch):
    monkeypatch.setattr(abreast, "MAX_WAITING", MAX_WAITING_EACH + 1)
    rig = Rig(NEXT)
    calls = [rig.call(NEXT) for _ in range(MAX_WAITING_EACH)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await rig.call(NEXT)
    other = rig.call(NEXT, "/spire/agent/b")
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await rig.call(NEXT, "/spire/agent/c")
    rig.catch_up(NEXT)
    await asyncio.gather(other, *calls)
    assert rig.abreast.waiting == 0


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        (None, None),
        ([], None),
        ([("other", "1.2.3")], None),
        ([("other", "x"), (POSITION, "1.2.3")], "1.2.3"),
        ([(POSITION, "")], ""),
        ([(POSITION, "1.2.3"), (POSITION, "9.9.9")], None),
        ([(POSITION, b"1.2.3")], None),
        ([(POSITION, "1" * (MAX_TEXT + 1))], None),
    ],
    ids=["no metadata", "empty", "another key", "one", "an empty text", "two", "bytes", "too long"],
)
def test_metadata_carry_one_position_or_none(metadata, found):
    assert position_in(metadata) == found
