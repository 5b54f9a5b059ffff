"""Thousands of agents that connect at once do not hold up everybody else (R37): handshakes take turns, calls have lanes."""

import asyncio
import contextlib
import socket
import ssl

import grpc
import pytest

from spiffe_core.bundle import BundleSet
from spiffe_core.clock import SystemClock
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire import front_door
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.dialer import Dialer
from spiffe_core.wire.front_door import FrontDoor, Limits
from spiffe_core.wire.pace import ANSWERS_EACH_ROUND, FEWEST, LEAST_PATIENCE, Pace, Places, readable
from spiffe_core.wire.server_proof import DialTrust
from spiffe_core.wire.shares import ENOUGH_IN_A_SECOND, SLOW_SECONDS, Handshakes
from spiffe_core.wire.sockets import PrivateDirectory
from spiffe_core.wire.tls import ServerTls, TlsIdentity, client_context
from tests.authority import SpiffeTestCA
from tests.doubles.door_service import serve

SERVER_ID = SpiffeId.parse("spiffe://example.org/spire/server")
CLOCK = SystemClock()


async def rounds(count):
    """Let the loop come round so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_turns_are_given_in_order_a_few_in_each_round():
    pace, served = Pace(2), []

    async def work(number):
        await pace.turn()
        served.append(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(9):
            tasks.create_task(work(number))
        seen = []
        while len(served) < 9:
            before = len(served)
            await asyncio.sleep(0)
            seen.append(len(served) - before)
    assert served == list(range(9))
    assert max(seen) <= 2


async def test_a_turn_costs_no_wait_where_nobody_else_wants_one():
    pace = Pace(2)
    for _ in range(3):
        turn = pace.turn()
        with pytest.raises(StopIteration):
            turn.send(None)
        await rounds(2)


async def test_who_gave_up_waiting_uses_up_no_turn():
    pace = Pace(1)
    await pace.turn()
    waiting = [asyncio.ensure_future(pace.turn()) for _ in range(9)]
    await asyncio.sleep(0)
    waiting[7].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert [one.cancelled() for one in waiting] == [False] * 7 + [True, False]
    await rounds(2)
    await asyncio.wait_for(pace.turn(), 5)


async def test_a_socket_is_readable_when_bytes_or_the_end_have_come():
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        waiting = asyncio.ensure_future(readable(left))
        await rounds(2)
        assert not waiting.done()
        right.send(b"x")
        await asyncio.wait_for(waiting, 5)
        assert left.recv(2) == b"x", "nothing was read"
        right.close()
        await asyncio.wait_for(readable(left), 5)


class HandClock:
    """Timers that run when the test says so."""

    def __init__(self):
        self.now = 0.0
        self.due = []

    def time(self):
        return self.now

    def call_at(self, when, callback, *args):
        handle = asyncio.TimerHandle(when, callback, args, asyncio.get_running_loop())
        self.due.append(handle)
        return handle

    def go_to(self, when):
        self.now = when
        late, self.due = [one for one in self.due if one.when() <= when], [one for one in self.due if one.when() > when]
        for one in late:
            if not one.cancelled():
                one._run()


@contextlib.asynccontextmanager
async def under_way(places, count):
    """So many who want a place and end when they are told; the tasks, which of them began, and what ends them."""
    began, answers = [], [asyncio.Event() for _ in range(count)]

    async def work(number):
        async with places.one():
            began.append(number)
            await answers[number].wait()

    tasks = [asyncio.ensure_future(work(number)) for number in range(count)]
    await rounds(3)
    try:
        yield began, answers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_no_more_are_under_way_than_there_are_places():
    """R37: the answers of thirty are a short round, those of a thousand a long one."""
    async with under_way(Places(3, 1.0, timers=HandClock), 5) as (began, answers):
        assert began == [0, 1, 2]
        answers[1].set()
        await rounds(5)
        assert began == [0, 1, 2, 3]


async def test_there_is_more_room_for_the_far_and_less_for_the_near():
    """R37: answers that come one at a time while others wait mean that more fits; many in one round that less does."""
    places = Places(40, 1.0, timers=HandClock)
    async with under_way(places, 200) as (began, answers):
        assert len(began) == places.room == FEWEST
        for number in range(20):
            answers[number].set()
            await rounds(5)
        assert len(began) == 20 + places.room == 20 + FEWEST + 20
        for number in range(20, 40):
            answers[number].set()
        await rounds(5)
        assert places.room == FEWEST + 20 - (20 - ANSWERS_EACH_ROUND)
        for number in range(40, len(began)):
            answers[number].set()
        await rounds(5)
        assert places.room == FEWEST


async def test_who_gives_up_waiting_for_a_place_leaves_it_to_others():
    places = Places(1, 1.0, timers=HandClock)
    entered, leave = [], asyncio.Event()

    async def work(number):
        async with places.one():
            entered.append(number)
            await leave.wait()

    tasks = [asyncio.ensure_future(work(number)) for number in range(4)]
    await rounds(3)
    tasks[1].cancel()
    await rounds(3)
    leave.set()
    tasks[2].cancel("at the moment at which it may have its place")
    await asyncio.gather(*tasks, return_exceptions=True)
    assert entered[0] == 0
    assert entered[-1] == 3
    async with asyncio.timeout(5), places.one():
        pass


async def test_who_does_not_answer_holds_no_place_and_costs_patience_until_others_are_in_time():
    """S54: silence of a few costs the others a moment each, silence of a thousand a second in all."""
    clock = HandClock()
    places = Places(2, 1.0, timers=lambda: clock)
    async with under_way(places, 400) as (began, answers):
        clock.go_to(1.0)
        await rounds(5)
        assert began == [0, 1, 2, 3]
        assert places.patience == pytest.approx(0.98**2)
        answers[2].set()
        await rounds(5)
        assert places.patience == pytest.approx(0.98**2 * 1.02)
        answers[0].set()  # too late to be thanked for
        await rounds(5)
        assert places.patience == pytest.approx(0.98**2 * 1.02)
        while len(began) < 400:
            clock.go_to(clock.now + places.patience)
            await rounds(5)
        assert places.patience == pytest.approx(LEAST_PATIENCE)
        assert clock.now < 60.0, "400 times 0.5 s without losing patience"


async def test_nobody_is_late_because_this_process_was():
    clock = HandClock()
    places = Places(1, 1.0, timers=lambda: clock)
    async with under_way(places, 2) as (began, _):
        clock.go_to(1.6)
        await rounds(5)
        assert (began, places.patience) == ([0], 1.0)
        clock.go_to(2.6)
        await rounds(5)
        assert began == [0, 1]


@contextlib.asynccontextmanager
async def crowded(*, lanes, **limits):
    """A door with a Unix socket and a TLS port; the path, the dialer's maker, the server, the door."""
    ca = SpiffeTestCA("example.org")
    bundles = BundleSet(ca.bundle(), {})
    server_svid = ca.issue(SERVER_ID)
    door = FrontDoor(limits=Limits(**limits), lanes=lanes)
    _, server = await serve(door)
    folder = PrivateDirectory.make()
    path = folder.path / "api.sock"
    door.listen_unix(path)
    identity = TlsIdentity(server_svid.chain, server_svid.key)
    _, port = door.listen_tcp("127.0.0.1", 0, ServerTls(lambda: identity, lambda: bundles, CLOCK.now))

    def dialer():
        trust = DialTrust(SERVER_ID, bundles.get)
        return Dialer("127.0.0.1", port, trust=lambda: trust, identity=lambda: None, now=CLOCK.now)

    try:
        yield path, port, dialer, server, door
    finally:
        await server.stop(0)
        await door.close()
        for left in folder.path.iterdir():
            left.unlink()
        folder.close()


async def test_silent_peers_take_nobodys_turn_and_are_sent_away_in_time():
    """S54: as many of them as there are turns, and more."""
    async with (
        crowded(lanes=2, handshake_seconds=0.5) as (_, port, dialer, _, door),
        contextlib.AsyncExitStack() as stack,
    ):
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(20)]
        one = dialer()
        await one.start()
        try:
            assert await one.channel().unary_unary("/door.Test/Who")(b"", timeout=10) == b"tls anonymous"
        finally:
            await one.close()
        for connection in silent:
            connection.settimeout(10)
            assert await asyncio.to_thread(connection.recv, 1) == b""
        assert door.refused["broken"] == 20


async def test_peers_that_stop_half_way_hold_nobody_up():
    """S54: as many of them as may be under way, and more; each has begun a handshake and goes no further."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = client_context(None, None).wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    said = outgoing.read()
    async with crowded(lanes=2) as (_, port, dialer, _, _), contextlib.AsyncExitStack() as stack:
        stuck = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(80)]
        for connection in stuck:
            connection.sendall(said)
            connection.settimeout(10)
        one = dialer()
        await one.start()
        try:
            assert await one.channel().unary_unary("/door.Test/Who")(b"", timeout=10) == b"tls anonymous"
        finally:
            await one.close()
        assert all([await asyncio.to_thread(connection.recv, 1) for connection in stuck]), "each had its turn"


async def test_calls_over_tls_take_turns_among_their_lanes_and_leave_the_first_listener_alone():
    """R37: an administrator on the Unix socket never waits behind agents, nor needs their listeners."""
    async with crowded(lanes=3) as (path, _, dialer, server, _), contextlib.AsyncExitStack() as stack:
        dialers = [dialer() for _ in range(4)]
        for one in dialers:
            await one.start()
            stack.push_async_callback(one.close)
        calls = [one.channel().unary_unary("/door.Test/Who")(b"", timeout=10) for one in dialers]
        assert await asyncio.gather(*calls) == [b"tls anonymous"] * 4
        first, *lanes = server._servers
        for lane in lanes:
            await lane.stop(0)
        async with unix_channel(path) as channel:
            assert (await channel.unary_unary("/door.Test/Who")(b"", timeout=10)).startswith(b"unix ")
        with pytest.raises(grpc.aio.AioRpcError):
            await dialers[0].channel().unary_unary("/door.Test/Who")(b"", timeout=2)
        del first


async def test_two_handshakes_begin_in_a_round_however_many_wait(monkeypatch):
    given = []

    class Counted(Pace):
        def _round(self, loop):
            super()._round(loop)
            given.append(self._given)

    monkeypatch.setattr(front_door, "Pace", Counted)
    async with crowded(lanes=2) as (_, _, dialer, _, _), contextlib.AsyncExitStack() as stack:
        dialers = [dialer() for _ in range(30)]
        for one in dialers:
            await one.start()
            stack.push_async_callback(one.close)
        calls = [one.channel().unary_unary("/door.Test/Who")(b"", timeout=30) for one in dialers]
        assert await asyncio.gather(*calls) == [b"tls anonymous"] * 30
    assert max(given) <= 2


async def test_who_waits_for_us_gives_way_to_nobody():
    """R37, S51: a peer that has spoken is not taken for a slow one while its turn has not come; a silent one is."""
    handshakes = Handshakes(2)
    spoken, silent, new, last = (asyncio.ensure_future(asyncio.sleep(3600)) for _ in range(4))
    assert handshakes.begin(spoken, 0.0)
    assert handshakes.begin(silent, 0.0)
    handshakes.keep_waiting(spoken)
    assert not handshakes.begin(new, 0.5)
    assert handshakes.begin(new, 2 * SLOW_SECONDS)
    handshakes.keep_waiting(new)
    handshakes.end(silent, 2 * SLOW_SECONDS)
    assert len(handshakes) == 2
    assert not handshakes.begin(last, 100.0)
    handshakes.go_on(spoken, 100.0)
    assert not handshakes.begin(last, 100.0)
    assert handshakes.begin(last, 100.0 + SLOW_SECONDS)
    for task in (spoken, silent, new, last):
        task.cancel()
    await asyncio.gather(spoken, silent, new, last, return_exceptions=True)
    assert len(handshakes) == 2
    handshakes.end(new, 200.0)
    handshakes.end(last, 200.0)
    assert len(handshakes) == 0


async def test_a_crowd_waits_in_the_kernels_queue_and_nobody_is_turned_away():
    """R37: more agents than may be at the door at once; each is let in the first time it tries."""
    async with crowded(lanes=2, handshakes=5) as (_, _, dialer, _, door), contextlib.AsyncExitStack() as stack:
        dialers = [dialer() for _ in range(40)]
        for one in dialers:
            await one.start()
            stack.push_async_callback(one.close)
        calls = [one.channel().unary_unary("/door.Test/Who")(b"", timeout=30) for one in dialers]
        assert await asyncio.gather(*calls) == [b"tls anonymous"] * 40
        assert door.refused["too many connections"] == 0


async def test_the_door_is_full_while_nobody_is_slow():
    handshakes = Handshakes(2)
    one, two = (asyncio.ensure_future(asyncio.sleep(3600)) for _ in range(2))
    assert not handshakes.full(0.0, 1)
    assert handshakes.full(0.0, 2), "two have been taken and have yet to begin"
    handshakes.begin(one, 0.0)
    handshakes.begin(two, 0.0)
    assert handshakes.full(0.5 * SLOW_SECONDS)
    assert not handshakes.full(SLOW_SECONDS), "the oldest is slow enough to give way"
    handshakes.keep_waiting(one)
    handshakes.keep_waiting(two)
    assert handshakes.full(100.0), "we are slow, not they"
    for task in (one, two):
        task.cancel()
    await asyncio.gather(one, two, return_exceptions=True)


async def test_nobody_gives_way_while_places_become_free_by_themselves():
    """R37, S50: a crowd that is let in by the hundred loses none, however slow; one that stands still loses the oldest."""
    handshakes = Handshakes(ENOUGH_IN_A_SECOND + 1)
    tasks = [asyncio.ensure_future(asyncio.sleep(3600)) for _ in range(ENOUGH_IN_A_SECOND + 3)]
    oldest, *quick, new, newer = tasks
    assert all(handshakes.begin(one, 10.0) for one in (oldest, *quick))
    for one in quick:
        handshakes.end(one, 12.0)
        assert handshakes.begin(one, 12.0)
    assert handshakes.full(12.5)
    assert not handshakes.begin(new, 12.5), "the oldest has taken 2.5 s, but it is not to blame"
    assert handshakes.full(13.5)
    assert not handshakes.full(14.5), "two seconds without any"
    assert handshakes.begin(new, 14.5)
    await rounds(2)
    assert oldest.cancelled()
    handshakes.end(oldest, 14.5)
    assert handshakes.begin(newer, 14.5), "that one gave way is nobody's merit"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
