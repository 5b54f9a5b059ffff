"""Which server a client talks to: its own order, one at a time, on to the next when one does not answer (A9)."""

import asyncio
import socket
from collections import Counter

import pytest

from spiffe_core.wire.servers import (
    FIRST_REST,
    JITTER,
    LONGEST_HESITATION,
    LONGEST_REST,
    PATIENCE,
    PAUSE_SHARE,
    SHORTEST_PAUSE,
    Place,
    Servers,
    in_order,
)


def place(number, rank=0):
    family = socket.AF_INET6 if rank else socket.AF_INET
    return Place("id.test", 8081, f"10.0.0.{number}", int(family), rank=rank)


PLACES = [place(number) for number in range(5)]


def seeds(count):
    return [f"agent {number}".encode() for number in range(count)]


def test_an_order_is_a_clients_own_and_the_same_each_time():
    for seed in seeds(20):
        assert in_order(PLACES, seed) == in_order(reversed(PLACES), seed)
    assert len({tuple(in_order(PLACES, seed)) for seed in seeds(20)}) > 10


def test_many_clients_spread_evenly_and_a_new_server_takes_only_its_share():
    """Rendezvous hashing: 1,000 clients on five servers; a sixth takes a sixth from each."""
    firsts = Counter(in_order(PLACES, seed)[0] for seed in seeds(1000))
    assert all(150 < count < 250 for count in firsts.values())
    moved = [seed for seed in seeds(1000) if in_order([*PLACES, place(9)], seed)[0] != in_order(PLACES, seed)[0]]
    assert 110 < len(moved) < 225
    assert all(in_order([*PLACES, place(9)], seed)[0] == place(9) for seed in moved)


def test_the_family_that_the_resolver_prefers_comes_first():
    mixed = [place(number, rank=number % 2) for number in range(6)]
    for seed in seeds(20):
        assert [one.rank for one in in_order(mixed, seed)] == [0, 0, 0, 1, 1, 1]


async def test_one_that_failed_rests_longer_each_time_and_is_tried_when_all_have_failed():
    servers, now = Servers([("id.test", 8081)]), asyncio.get_running_loop().time()
    first, second = PLACES[:2]
    servers.failed(first)
    assert servers.sorted([first, second], now + FIRST_REST / 2) == [second, first]
    assert servers.sorted([first, second], now + FIRST_REST + 1) == [first, second]
    for _ in range(50):
        servers.failed(first)
    servers.failed(second)
    assert servers.sorted([first, second], now) == [second, first], "the one that rests longer comes last"
    assert servers.sorted([first, second], now + LONGEST_REST - 1) == [second, first]
    assert servers.sorted([first, second], now + LONGEST_REST + 1) == [first, second]
    servers.opened(first)
    servers.failed(first)
    assert servers.sorted([first, second], now + FIRST_REST + 1) == [first, second], "a success forgets the failures"


async def test_while_a_connection_is_open_new_ones_go_there_too():
    """A9: one server at a time for stream and calls; afterwards the own order counts again."""
    servers = Servers([("id.test", 8081)])
    first, second = PLACES[:2]
    servers.opened(second)
    servers.opened(second)
    assert servers.sorted([first, second], 0.0) == [second, first]
    servers.closed(second)
    assert servers.sorted([first, second], 0.0) == [second, first]
    servers.failed()
    assert servers.sorted([first, second], asyncio.get_running_loop().time()) == [first, second]
    servers.opened(second)
    servers.closed(second)
    servers.closed(second)
    assert servers.sorted([first, second], 0.0) == [first, second]


async def test_only_a_move_to_another_server_is_put_off_by_chance():
    """A9: moves on with jitter; a first connection and a further one to the same server are made at once."""
    draws = iter([-0.5, 1.0, 0.0])
    servers = Servers([("id.test", 8081)], draw=lambda: next(draws))
    first, second = PLACES[:2]
    assert servers.hesitation(first) == 0.0
    servers.opened(first)
    assert servers.hesitation(first) == 0.0
    assert [servers.hesitation(second) for _ in range(3)] == [LONGEST_HESITATION / 2, LONGEST_HESITATION, 0.0]


@pytest.mark.parametrize("drawn", [-1.0, 0.0, 1.0])
def test_a_server_that_is_starting_is_dialled_again_soon_and_not_for_ever(drawn):
    """B1: whoever waits for it waits hardly longer than it takes; after three seconds it is away as any other."""
    servers = Servers([("id.test", 8081)], draw=lambda: drawn, starting_seconds=3.0)
    now, dials = 100.0, 1
    while (pause := servers.pause(now)) is not None:
        waited = now - 100.0
        assert pause <= max(SHORTEST_PAUSE, PAUSE_SHARE * waited) * (1 + JITTER)
        now, dials = now + pause, dials + 1
    assert now <= 103.0 + 3.0 * PAUSE_SHARE * (1 + JITTER)
    assert dials < 100
    assert servers.pause(now + 3600) is None


def test_no_server_is_starting_for_a_client_that_has_reached_one_or_gives_them_no_time():
    assert Servers([("id.test", 8081)]).pause(1.0) is None
    reached = Servers([("id.test", 8081)], starting_seconds=3.0)
    assert reached.pause(1.0) is not None
    reached.opened(PLACES[0])
    reached.closed(PLACES[0])
    assert reached.pause(1.1) is None


async def test_a_server_that_goes_on_being_unavailable_is_left_if_there_is_another():
    servers = Servers([("127.0.0.1", 1), ("127.0.0.2", 1)])
    (first, _) = await servers.order()
    servers.opened(first)
    for _ in range(2):
        assert [servers.answered(available=False) for _ in range(PATIENCE - 1)] == [False] * (PATIENCE - 1)
        assert not servers.answered(available=True)
    assert [servers.answered(available=False) for _ in range(PATIENCE)] == [False] * (PATIENCE - 1) + [True]
    assert (await servers.order())[1] == first
    alone = Servers([("127.0.0.1", 1)])
    await alone.order()
    assert not any(alone.answered(available=False) for _ in range(3 * PATIENCE))


async def test_a_name_stands_for_all_its_addresses_and_keeps_them_while_it_cannot_be_resolved(monkeypatch):
    loop = asyncio.get_running_loop()
    answer = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 8081, 0, 3)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 8081)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.2", 8081)),
    ]

    async def getaddrinfo(host, _port, **_):
        if host == "gone.test" or not answer:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return answer

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    servers = Servers([("id.test", 8081), ("gone.test", 8081)], seed=b"a")
    found = await servers.order()
    assert [one.rank for one in found] == [0, 1, 1]
    assert found[0].target == ("fe80::1", 8081, 0, 3)
    assert {one.target for one in found[1:]} == {("10.0.0.1", 8081), ("10.0.0.2", 8081)}
    assert str(found[0]) == "id.test:8081 (fe80::1)"
    answer.clear()
    assert await servers.order() == found
    with pytest.raises(socket.gaierror):
        await Servers([("gone.test", 8081)]).order()
