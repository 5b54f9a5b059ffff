"""Laws of the values: what is printed reads back as itself, and nothing else reads at all."""

from __future__ import annotations

import ipaddress
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiffe_core.entitlement import explain, judge, matching, reachable, unique_hints
from spiffe_core.errors import InvalidAddress, InvalidId, InvalidSelector
from spiffe_core.selectors import Selector, canonical, selector_digest
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from tests.builders import make_entry
from workload_api.address import TcpAddress, UnixAddress, parse_address

NAME = string.ascii_lowercase + string.digits + "._-"
trust_domains = st.text(NAME, min_size=1, max_size=255).map(TrustDomain)
segments = st.text(NAME + string.ascii_uppercase, min_size=1, max_size=40).filter(lambda text: text not in {".", ".."})
paths = st.lists(segments, max_size=6).map(lambda parts: "".join(f"/{part}" for part in parts))
spiffe_ids = st.builds(SpiffeId, trust_domains, paths)
types = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=":"), min_size=1, max_size=20)
values = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
selectors = st.builds(Selector, types, values)
few = st.frozensets(st.sampled_from([Selector("t", letter) for letter in "abcdef"]), max_size=6)


@given(spiffe_ids)
def test_ids_read_back_as_printed(spiffe_id):
    assert SpiffeId.parse(str(spiffe_id)) == spiffe_id


@given(trust_domains)
def test_trust_domains_read_back_as_printed(trust_domain):
    assert TrustDomain.parse(str(trust_domain)) == TrustDomain.parse(str(trust_domain.id)) == trust_domain


@given(st.one_of(st.text(), st.text().map(lambda text: f"spiffe://{text}"), st.text().map("spiffe://td/{}".format)))
def test_what_reads_as_an_id_prints_as_it_was(text):
    """S29, S30: no normalisation: a parser that accepts must give back the very bytes."""
    try:
        spiffe_id = SpiffeId.parse(text)
    except InvalidId:
        return
    assert str(spiffe_id) == text


@given(st.text())
def test_what_reads_as_a_trust_domain_prints_as_it_was(text):
    """S29."""
    try:
        trust_domain = TrustDomain.parse(text)
    except InvalidId:
        return
    assert str(trust_domain) == text.removeprefix("spiffe://")


@given(spiffe_ids, spiffe_ids)
def test_order_equality_and_hash_agree(one, other):
    assert (one == other) == (str(one) == str(other)) == (not one < other and not other < one)
    assert one != other or hash(one) == hash(other)


@given(spiffe_ids, paths)
def test_a_path_is_under_each_of_its_ancestors_and_no_sibling(spiffe_id, path):
    child = SpiffeId(TrustDomain("td"), path + "/x")
    assert child.is_under(path)
    assert not SpiffeId(TrustDomain("td"), path + "-x" if path else "/x").is_under(path + "/x/y")
    assert spiffe_id.is_under(spiffe_id.path)


@given(selectors)
def test_selectors_read_back_as_printed(selector):
    assert Selector.parse(str(selector)) == selector


@given(st.text())
def test_what_reads_as_a_selector_prints_as_it_was(text):
    """S29."""
    try:
        selector = Selector.parse(text)
    except InvalidSelector:
        return
    assert str(selector) == text


@given(st.lists(selectors, max_size=5), st.lists(selectors, max_size=5))
def test_digests_are_equal_exactly_for_equal_sets(one, other):
    assert (selector_digest(one) == selector_digest(other)) == (set(one) == set(other))
    assert canonical(one) == canonical(reversed(one))


unix_addresses = paths.filter(lambda path: 0 < len(path) <= 107).map(UnixAddress)
tcp_addresses = st.builds(TcpAddress, st.ip_addresses(), st.integers(1, 65535)).filter(
    lambda address: "%" not in str(address.ip)
)


@given(st.one_of(unix_addresses, tcp_addresses))
def test_addresses_read_back_as_printed(address):
    assert parse_address(str(address)) == address


@given(
    st.one_of(
        st.text(),
        st.sampled_from(["unix:", "unix://", "unix:///", "tcp://"]).flatmap(
            lambda start: st.text().map(lambda rest: start + rest)
        ),
    )
)
def test_what_reads_as_an_address_prints_as_one_that_reads_the_same(text):
    try:
        address = parse_address(text)
    except InvalidAddress:
        return
    assert parse_address(str(address)) == address


@given(st.ip_addresses(v=6), st.integers(1, 65535))
def test_ipv6_addresses_are_printed_in_brackets(ip, port):
    assert str(TcpAddress(ipaddress.IPv6Address(ip), port)) == f"tcp://[{ip}]:{port}"


@given(few, few)
def test_a_judgement_explains_itself(required, held):
    """Missing and surplus say exactly what separates the sets, and a match is the subset test."""
    verdict = judge(required, held)
    assert verdict.matched == (bool(required) and required <= held)
    assert (required - set(verdict.missing)) | set(verdict.surplus) == held
    assert not set(verdict.missing) & held


@given(st.lists(few.filter(bool), max_size=8), few)
def test_answer_and_explanation_never_disagree(wanted, held):
    entries = [make_entry(id=f"e{n}", selectors=one) for n, one in enumerate(wanted)]
    assert matching(entries, held) == tuple(v.entry for v in explain(entries, held) if v.matched)


@given(few, few, few)
def test_more_selectors_never_lose_an_entry(required, held, more):
    if judge(required, held).matched:
        assert judge(required, held | more).matched


@given(st.lists(st.tuples(st.sampled_from(["", "x", "y"]), st.integers(0, 3)), max_size=8))
def test_hints_are_unique_and_no_hint_is_lost(made):
    entries = [make_entry(id=f"e{n}", hint=hint, created_at=age) for n, (hint, age) in enumerate(made)]
    kept = [entry.hint for entry in unique_hints(entries) if entry.hint]
    assert sorted(kept) == sorted({hint for hint, _ in made if hint})


nodes = st.sampled_from(["/a", "/b", "/c", "/d", "/e"])


@given(st.frozensets(nodes, max_size=2), st.lists(st.tuples(nodes, nodes), max_size=12))
def test_the_closure_is_the_smallest_that_is_closed(start, edges):
    """Entries (parent, path): all are reached whose parent is in the start or is the path of a reached entry."""

    def children(parent):
        return [edge for edge in edges if edge[0] == parent]

    reached = {grant.entry for grant in reachable(start, children, lambda edge: edge[1])}
    closed = set(start)
    while (larger := closed | {path for parent, path in edges if parent in closed}) != closed:
        closed = larger
    assert reached == {edge for edge in edges if edge[0] in closed}


@pytest.mark.parametrize("text", ["spiffe://td/a", "unix:///a", "t:a"])
def test_the_strategies_reach_accepted_inputs(text):
    """The laws above are not vacuous."""
    reader = {"spiffe": SpiffeId.parse, "unix": parse_address, "t": Selector.parse}[text.split(":")[0]]
    assert str(reader(text)) == text
