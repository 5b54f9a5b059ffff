"""Chains of other authorities: put in order whatever the order they come in (spire_features section 2.5)."""

import itertools

import pytest

from identity_server.domain.foreign_chain import MAX_CANDIDATES, earliest_end_above, end_of, ordered
from identity_server.domain.upstream import MAX_CHAIN
from spiffe_core.errors import InvalidCertificate
from tests.authority import SpiffeTestCA


@pytest.fixture(scope="module")
def line():
    """A root and three CAs below each other; the last is what was asked for."""
    cas = [SpiffeTestCA("example.org", name="0")]
    for name in ("1", "2", "3"):
        cas.append(cas[-1].intermediate(name=name))
    return [ca.der for ca in cas]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_every_order_gives_the_same_chain(line, order):
    """The certificate itself may stand among the others, as newer Vaults send it."""
    given = ordered(line[3], [line[index] for index in order])
    assert given.chain == (line[3], line[2], line[1])
    assert given.roots == (line[0],)


def test_the_last_that_was_sent_is_trusted_where_the_root_is_absent(line):
    given = ordered(line[3], [line[2], line[1]])
    assert given.chain == (line[3], line[2])
    assert given.roots == (line[1],)


def test_strangers_and_namesakes_are_passed_over(line):
    namesake = SpiffeTestCA("example.org", name="2").der
    assert ordered(line[3], [namesake, *line[:3], namesake]).chain == (line[3], line[2], line[1])


def test_ends_are_those_of_the_certificate_and_of_the_first_above(line):
    given = ordered(line[3], line)
    assert end_of(given) >= earliest_end_above(given) > 0


def test_what_leads_nowhere_is_refused(line):
    stranger = SpiffeTestCA("example.org", name="s").der
    for others in ([], [stranger], [line[1], line[0]], [line[3]]):
        with pytest.raises(InvalidCertificate, match="must lead from the certificate"):
            ordered(line[3], others)
    with pytest.raises(InvalidCertificate, match="must lead from"):
        ordered(line[0], line)  # self-signed: nobody above signed it


def test_size_is_bounded(line):
    with pytest.raises(InvalidCertificate, match="more than"):
        ordered(line[3], [line[2]] * (MAX_CANDIDATES + 1))
    cas = [SpiffeTestCA("example.org", name="0")]
    for number in range(MAX_CHAIN + 1):
        cas.append(cas[-1].intermediate(name=str(number + 1)))
    with pytest.raises(InvalidCertificate, match="over at most"):
        ordered(cas[-1].der, [ca.der for ca in cas])
