"""What a client's frames cost (S54, S55)."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiffe_core.wire.http2_meter import (
    MAX_HEADER_BLOCK_BYTES,
    PREFACE,
    Abuse,
    Bucket,
    FrameWalker,
    Meter,
    Meters,
    Principals,
    Rates,
)


def frame(kind, flags=0, size=0, stream=1):
    return size.to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + b"\0" * size


frames = st.lists(st.tuples(st.integers(0, 255), st.sampled_from([0, 4]), st.integers(0, 3000)), max_size=30)


@given(frames, st.lists(st.integers(1, 400), max_size=200))
def test_the_price_does_not_depend_on_how_the_bytes_are_cut(parts, cuts):
    """TCP may deliver any byte boundary."""
    stream = PREFACE + b"".join(frame(kind, flags, size) for kind, flags, size in parts)
    try:
        whole = FrameWalker().price(stream)
    except Abuse:
        whole = None
    walker, pieces, at = FrameWalker(), [], 0
    for cut in cuts:
        pieces.append(stream[at : at + cut])
        at += cut
    pieces.append(stream[at:])
    try:
        total = sum(walker.price(piece) for piece in pieces)
    except Abuse:
        total = None
    assert whole == total


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", PREFACE[:20] + b"XXXX"])
def test_what_does_not_begin_with_the_preface_is_not_http2(start):
    """N-A-08: refused at the first byte that differs, without waiting for more."""
    with pytest.raises(Abuse):
        FrameWalker().price(start)


def test_a_header_block_may_grow_to_the_bound_and_not_beyond():
    """CVE-2024-24549's kind: the block never ends."""
    walker = FrameWalker()
    walker.price(PREFACE + frame(1, 0, 16_000))
    for _ in range((MAX_HEADER_BLOCK_BYTES - 16_000) // 8_000):
        walker.price(frame(9, 0, 8_000))
    with pytest.raises(Abuse):
        walker.price(frame(9, 0, 8_000))


def test_a_finished_header_block_is_forgotten():
    """Each request begins anew."""
    walker = FrameWalker()
    walker.price(PREFACE)
    for _ in range(50):
        walker.price(frame(1, 4, 16_000))


def test_honest_calls_cost_little_and_floods_much():
    """An ordinary call is a few dozen tokens; a ping, an empty settings frame or a fat header block is a flood's price."""
    walker = FrameWalker()
    walker.price(PREFACE)
    call = walker.price(frame(1, 4, 120)) + walker.price(frame(0, 1, 200)) + walker.price(frame(8, 0, 4))
    assert call < 30
    assert walker.price(frame(4)) >= 10 * call
    assert walker.price(frame(1, 4, 12_000)) >= 20 * call


def test_a_bucket_refills_with_time_and_its_debt_is_bounded():
    bucket = Bucket(100, 50, 0.0, most_wait=2.0)
    assert bucket.take(50, 0.0) == 0
    assert bucket.take(10, 0.0) == pytest.approx(0.1)
    assert bucket.take(1, 1.0) == 0
    assert bucket.take(1_000_000, 1.0) == pytest.approx(2.0)


def test_a_flooding_connection_waits_for_itself_and_its_neighbour_hardly():
    """The principal's bucket may not silence others behind the same address."""
    rates = Rates()
    principals = Principals(rates.principal, rates.principal_burst)
    flooder = Meter(rates, principals.of("10.0.0.1", 0.0), 0.0)
    honest = Meter(rates, principals.of("10.0.0.1", 0.0), 0.0)
    assert flooder.charge(PREFACE + frame(4) * 20_000, 0.0) > 20
    assert honest.charge(PREFACE + frame(1, 4, 100), 0.0) <= 0.25
    assert honest.charge(frame(1, 4, 100), 0.5) == 0


def test_principals_are_bounded_in_number():
    principals = Principals(1.0, 1.0, most=10)
    first = principals.of(0, 0.0)
    for number in range(1, 11):
        principals.of(number, 0.0)
    assert principals.of(0, 0.0) is not first
    assert principals.of(10, 0.0) is principals.of(10, 0.0)


def opened(count, first=1):
    """So many calls, each opened by a header block of one octet."""
    return b"".join(
        (1).to_bytes(3, "big") + bytes([1, 4]) + (first + 2 * number).to_bytes(4, "big") + b"\x82"
        for number in range(count)
    )


def test_a_users_calls_wait_for_their_turn_over_all_of_his_connections():
    """S53, N-A-36: some may wait, the rest comes as they begin; nobody else's connection waits, nor root's."""
    meters = Meters(Rates(calls_waiting=10, calls_forgotten=2))
    mine = [meters.of(pid, 0.0, uid=1000) for pid in (1, 2)]
    other, root = meters.of(3, 0.0, uid=1001), meters.of(4, 0.0)
    for meter in (*mine, other, root):
        assert meter.charge(PREFACE, 0.0) == 0
    assert mine[0].charge(opened(9), 0.0) == 0
    assert mine[0].charge(opened(50, 19), 0.0) == 0, "there is a turn left"
    assert mine[1].charge(opened(1), 0.0) > 0
    assert other.charge(opened(10), 0.0) == 0
    assert root.charge(opened(1000), 0.0) == 0
    for _ in range(49):
        mine[0].begun(0.0)
    assert mine[1].turn(0.0) > 0
    mine[0].begun(0.0)
    assert mine[1].turn(0.0) == 0
    assert mine[1].charge(b"", 0.0) == 0, "what opens no call waits for none"


def test_calls_that_never_begin_are_forgotten_in_time():
    """gRPC refuses some by itself: beyond a hundred on a connection, of unknown methods, reset at once."""
    meter = Meters(Rates(calls_waiting=10, calls_forgotten=5)).of(1, 0.0, uid=1000)
    assert meter.charge(PREFACE + opened(30), 0.0) == 0
    assert meter.charge(opened(1, 61), 1.0) > 0
    assert meter.turn(4.0) > 0
    assert meter.turn(4.2) == 0


def test_turns_that_come_back_are_never_more_than_there_were():
    meter = Meters(Rates(calls_waiting=3, calls_forgotten=0.001)).of(1, 0.0, uid=1000)
    for _ in range(100):
        meter.begun(0.0)
    assert meter.charge(PREFACE + opened(3), 0.0) == 0
    assert meter.charge(opened(1, 7), 0.0) > 0
