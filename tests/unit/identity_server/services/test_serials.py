"""S38: a million serial numbers: none twice, every bit of them random, none too long, none negative (RFC 5280 4.1.2.2)."""

import os

from identity_server.domain.profiles import MAX_SERIAL
from identity_server.services.issuer import draw_serial

MILLION = 1_000_000


def test_a_million_serials_are_distinct_positive_and_short_enough():
    """S38: two servers that draw half of them each never meet either, for they share nothing but the odds: 2**-89."""
    drawn = [draw_serial(os.urandom) for _ in range(MILLION)]
    assert len(set(drawn)) == MILLION
    assert min(drawn) >= 1
    assert max(drawn) <= MAX_SERIAL < 2 ** (8 * 20 - 1), "at most twenty octets, the first bit not set"


def test_every_bit_of_a_serial_is_random():
    """S38: at least 64 bits are asked for (CA/Browser Forum 7.1); here all 128 fall either way, nearly as often."""
    drawn = [draw_serial(os.urandom) for _ in range(4_000)]
    for bit in range(128):
        share = sum(one >> bit & 1 for one in drawn) / len(drawn)
        assert 0.4 < share < 0.6, (bit, share)  # twelve standard deviations


def test_a_serial_is_never_zero():
    """S38: the one value of 2**128 that RFC 5280 does not allow."""
    assert draw_serial(bytes) == 1
    assert draw_serial(lambda size: b"\xff" * size) == MAX_SERIAL
