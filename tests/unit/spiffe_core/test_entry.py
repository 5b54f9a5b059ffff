"""Registration entries: SPIRE's rules with bounds (spire_features section 15.1)."""

from __future__ import annotations

import dataclasses

import pytest

from spiffe_core.entry import (
    MAX_DNS_NAMES,
    MAX_FEDERATES_WITH,
    MAX_HINT_BYTES,
    MAX_INT64,
    MAX_SELECTORS,
    MAX_TTL,
    check_membership,
    similarity,
)
from spiffe_core.errors import InvalidEntry, Kind
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import TrustDomain
from tests.builders import OTHER_TD, TD, make_entry, selectors, sid

ACCEPTED = {
    "an id of every allowed character": {"id": "aZ0-9._"},
    "the longest id": {"id": "a" * 255},
    "the largest ttl": {"x509_svid_ttl": MAX_TTL, "jwt_svid_ttl": MAX_TTL},
    "the latest expiry": {"expires_at": MAX_INT64, "created_at": MAX_INT64, "revision_number": MAX_INT64},
    "the longest hint": {"hint": "é" * (MAX_HINT_BYTES // 2)},
    "as many selectors as allowed": {"selectors": {Selector("a", str(n)) for n in range(MAX_SELECTORS)}},
    "as many DNS names as allowed": {"dns_names": tuple(f"n{n}.org" for n in range(MAX_DNS_NAMES))},
    "a wildcard": {"dns_names": ("*.example.org", "localhost")},
    "as many federated domains as allowed": {
        "federates_with": tuple(TrustDomain(f"d{n}") for n in range(MAX_FEDERATES_WITH))
    },
    "a stored SVID with selectors of one type": {"store_svid": True, "selectors": {"a:1", "a:2"}},
    "no prefetch": {"disable_x509_svid_prefetch": True, "jwt_svid_include_jti": True},
    "an administrator": {"admin": True, "downstream": True},
}

REFUSED = {
    "no id": ({"id": ""}, "id", "1 to 255 characters"),
    "an id that is too long": ({"id": "a" * 256}, "id", "1 to 255 characters"),
    "an id with a slash": ({"id": "a/b"}, "id", "1 to 255 characters"),
    "an id with a newline": ({"id": "a\n"}, "id", "1 to 255 characters"),
    "no selectors": ({"selectors": ()}, "selectors", "at least one"),
    "too many selectors": (
        {"selectors": {Selector("a", str(n)) for n in range(MAX_SELECTORS + 1)}},
        "selectors",
        "at most 100",
    ),
    "a negative X.509 ttl": ({"x509_svid_ttl": -1}, "x509_svid_ttl", "between 0 and 2147483647"),
    "a huge JWT ttl": ({"jwt_svid_ttl": MAX_TTL + 1}, "jwt_svid_ttl", "between 0 and 2147483647"),
    "a negative expiry": ({"expires_at": -1}, "expires_at", "between 0 and"),
    "a negative revision": ({"revision_number": -1}, "revision_number", "between 0 and"),
    "a creation time beyond 64 bits": ({"created_at": MAX_INT64 + 1}, "created_at", "between 0 and"),
    "N-C-23: a hint of 1025 bytes": ({"hint": "a" * 1025}, "hint", "more than 1024 bytes"),
    "N-C-23: a hint of 1025 bytes in 1024 characters": ({"hint": "a" * 1023 + "é"}, "hint", "more than 1024 bytes"),
    "a hint that is not UTF-8": ({"hint": "\udcff"}, "hint", "not valid UTF-8"),
    "too many federated domains": (
        {"federates_with": tuple(TrustDomain(f"d{n}") for n in range(MAX_FEDERATES_WITH + 1))},
        "federates_with",
        "at most 500",
    ),
    "too many DNS names": (
        {"dns_names": tuple(f"n{n}.org" for n in range(MAX_DNS_NAMES + 1))},
        "dns_names",
        "at most 500",
    ),
    "a DNS name twice": ({"dns_names": ("a.org", "A.org")}, "dns_names", "given twice"),
    "a malformed DNS name": ({"dns_names": ("a_b.org",)}, "dns_names", "is not a DNS name"),
    "a stored SVID with selectors of two types": (
        {"store_svid": True, "selectors": {"a:1", "b:1"}},
        "selectors",
        "one type",
    ),
    "a stored SVID without prefetch": (
        {"store_svid": True, "disable_x509_svid_prefetch": True},
        "disable_x509_svid_prefetch",
        "store_svid",
    ),
}


@pytest.mark.parametrize("over", ACCEPTED.values(), ids=ACCEPTED)
def test_entries_at_the_limits_are_accepted(over):
    assert make_entry(**over).id


@pytest.mark.parametrize(("over", "field", "rule"), REFUSED.values(), ids=REFUSED)
def test_entries_beyond_the_limits_are_refused_naming_the_field(over, field, rule):
    assert make_entry()
    with pytest.raises(InvalidEntry) as refusal:
        make_entry(**over)
    assert refusal.value.field == field
    assert rule in refusal.value.public
    assert refusal.value.kind is Kind.INVALID


def test_federated_domains_are_a_set_in_the_order_given():
    fed, other = TrustDomain("fed.test"), TrustDomain("a.test")
    assert make_entry(federates_with=(fed, other, fed)).federates_with == (fed, other)


def test_an_entry_is_a_value():
    entry = make_entry()
    assert entry == make_entry()
    assert hash(entry) == hash(make_entry())
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.hint = "x"


def test_members_of_the_trust_domain_with_a_path_are_accepted():
    check_membership(make_entry(), TD)
    check_membership(make_entry(parent_id="/spire/server"), TD)


@pytest.mark.parametrize(
    ("over", "field", "rule"),
    [
        ({"spiffe_id": "spiffe://fed.test/a"}, "spiffe_id", "not a member of this server's trust domain example.org"),
        ({"parent_id": "spiffe://fed.test/a"}, "parent_id", "not a member of this server's trust domain example.org"),
        ({"spiffe_id": "spiffe://example.org"}, "spiffe_id", "needs a path"),
        ({"parent_id": "spiffe://example.org"}, "parent_id", "needs a path"),
        ({"spiffe_id": "/spire/agent/x"}, "spiffe_id", "reserved"),
        ({"spiffe_id": "/spire"}, "spiffe_id", "reserved"),
    ],
)
def test_ids_a_server_may_not_hand_out_are_refused(over, field, rule):
    """N-C-24, N-C-09: foreign trust domains, the domain itself and reserved paths."""
    with pytest.raises(InvalidEntry) as refusal:
        check_membership(make_entry(**over), TD)
    assert refusal.value.field == field
    assert rule in refusal.value.public


def test_membership_is_asked_of_one_server():
    check_membership(make_entry(spiffe_id="spiffe://fed.test/a", parent_id="spiffe://fed.test/p"), OTHER_TD)


def test_similar_entries_agree_in_id_parent_and_selectors():
    entry = make_entry(selectors={"unix:uid:1", "unix:gid:1"})
    same = make_entry(id="other", hint="x", x509_svid_ttl=9, selectors={"unix:gid:1", "unix:uid:1"})
    assert similarity(entry) == similarity(same)
    assert len(similarity(entry)) == 32
    for over in ({"spiffe_id": "/w"}, {"parent_id": "/p"}, {"selectors": {"unix:uid:1"}}):
        assert similarity(dataclasses.replace(entry, **_values(over))) != similarity(entry)


def _values(over):
    return {
        name: sid(value) if isinstance(value, str) else selectors(*value) if isinstance(value, set) else value
        for name, value in over.items()
    }
