"""SPIFFE IDs and trust domain names: the N-ID vectors, and what the values promise."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from spiffe_core.errors import InvalidId, Kind
from spiffe_core.spiffe_id import MAX_SPIFFE_ID_BYTES, MAX_TRUST_DOMAIN_BYTES, SpiffeId, TrustDomain, shown

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "spiffe_ids.json").read_text("utf-8"))
TD = TrustDomain("example.org")
PRINTABLE_NAME = set("abcdefghijklmnopqrstuvwxyz0123456789.-_")
PRINTABLE_SEGMENT = PRINTABLE_NAME | set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_malformed_ids_are_refused_by_the_rule_they_break(vector):
    """N-ID-01..15, 19..29: refused with the rule, nothing normalised, and the next good ID is read as before."""
    assert str(SpiffeId.parse(vector["control"])) == vector["control"]
    for text in vector["inputs"]:
        with pytest.raises(InvalidId) as refusal:
            SpiffeId.parse(text, field="entry.spiffe_id")
        assert vector["rule"] in refusal.value.public, text
        assert refusal.value.public.isascii()
        assert refusal.value.field == "entry.spiffe_id"
        assert refusal.value.kind is Kind.INVALID
        with pytest.raises(InvalidId):
            TrustDomain.parse(text)
    assert str(SpiffeId.parse(vector["control"])) == vector["control"]


def id_of_length(length: int) -> str:
    prefix = "spiffe://example.org/"
    return prefix + "a" * (length - len(prefix))


def test_a_trust_domain_name_has_at_most_255_bytes():
    """N-ID-16, ID-19."""
    longest = "a" * MAX_TRUST_DOMAIN_BYTES
    assert TrustDomain.parse(longest).name == longest
    assert SpiffeId.parse(f"spiffe://{longest}/x").trust_domain.name == longest
    for read in (TrustDomain, TrustDomain.parse, lambda name: SpiffeId.parse(f"spiffe://{name}/x")):
        with pytest.raises(InvalidId, match="at most 255 bytes"):
            read(longest + "a")


def test_an_id_has_at_most_2048_bytes():
    """N-ID-17, ID-17, ID-18: 2048 are accepted everywhere, 2049 are refused and never cut."""
    longest = id_of_length(MAX_SPIFFE_ID_BYTES)
    assert str(SpiffeId.parse(longest)) == longest
    assert len(str(SpiffeId(TD, SpiffeId.parse(longest).path))) == 2048
    too_long = id_of_length(MAX_SPIFFE_ID_BYTES + 1)
    with pytest.raises(InvalidId, match="at most 2048 bytes"):
        SpiffeId.parse(too_long)
    with pytest.raises(InvalidId, match="at most 2048 bytes"):
        SpiffeId(TD, too_long.removeprefix("spiffe://example.org"))


def test_ten_megabytes_are_refused_at_once_and_not_echoed():
    """N-ID-18."""
    huge = id_of_length(10_000_000)
    started = time.perf_counter()
    with pytest.raises(InvalidId) as refusal:
        SpiffeId.parse(huge)
    with pytest.raises(InvalidId) as other:
        TrustDomain.parse(huge)
    assert time.perf_counter() - started < 0.5
    assert len(refusal.value.public) < 200
    assert len(other.value.public) < 200


def test_paths_are_case_sensitive():
    """N-ID-30, ID-20: /A and /a are two identities."""
    assert SpiffeId(TD, "/A") != SpiffeId(TD, "/a")
    assert len({SpiffeId(TD, "/A"), SpiffeId(TD, "/a")}) == 2


def test_trust_domains_are_compared_whole():
    """N-ID-31, ID-28: neither a prefix nor a suffix makes a member."""
    assert SpiffeId.parse("spiffe://example.org/a").member_of(TD)
    for name in ("example.org.evil.com", "xexample.org", "example.or", "org"):
        assert not SpiffeId.parse(f"spiffe://{name}/a").member_of(TD)


def test_prefixes_match_on_segment_boundaries():
    """N-ID-32, ID-16."""
    assert SpiffeId(TD, "/prod").is_under("/prod")
    assert SpiffeId(TD, "/prod/x").is_under("/prod")
    assert SpiffeId(TD, "/prod/x").is_under("")
    assert not SpiffeId(TD, "/production/x").is_under("/prod")
    assert not SpiffeId(TD, "/pro").is_under("/prod")
    with pytest.raises(InvalidId) as refusal:
        SpiffeId(TD, "/prod/x").is_under("/prod/")
    assert refusal.value.field == "prefix_path"


def test_exactly_39_bytes_may_stand_in_a_trust_domain():
    """ID-08: a loop over all bytes."""
    accepted = set()
    for code in range(256):
        try:
            accepted.add(SpiffeId.parse(f"spiffe://a{chr(code)}b/x").trust_domain.name[1:2])
        except InvalidId:
            continue
    # A slash ends the name, so "spiffe://a/b/x" is read with the trust domain "a".
    assert accepted - {""} == PRINTABLE_NAME
    assert len(PRINTABLE_NAME) == 39


def test_exactly_65_bytes_may_stand_in_a_segment():
    """ID-15: a loop over all bytes."""
    accepted = set()
    for code in range(256):
        try:
            accepted.add(SpiffeId.parse(f"spiffe://td/a{chr(code)}b").path[2])
        except InvalidId:
            continue
    assert accepted - {"/"} == PRINTABLE_SEGMENT
    assert len(PRINTABLE_SEGMENT) == 65


@pytest.mark.parametrize("name", ["td_1.example-2.org", ".example.org", "-a-", "192.168.1.1", "a_b", "x..y", "."])
def test_a_trust_domain_name_is_not_a_host_name(name):
    """ID-08, ID-10: names that look odd as DNS names are names like others."""
    assert str(SpiffeId.parse(f"spiffe://{name}/w")) == f"spiffe://{name}/w"


def test_a_trust_domain_is_read_from_its_name_or_its_id():
    assert TrustDomain.parse("example.org") == TrustDomain.parse("spiffe://example.org") == TD
    assert str(TD) == "example.org"
    assert str(TD.id) == "spiffe://example.org"
    assert TD.id.path == ""


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "is missing"),
        ("spiffe://", "is missing"),
        ("Example.org", "write 'example.org'"),
        ("SPIFFE://example.org", "write 'spiffe://example.org'"),
        ("spiffe://example.org/a", "a path is not allowed in a trust domain name"),
        ("https://example.org", "write the bare trust domain name"),
        ("example.org:443", "a port is not allowed"),
    ],
)
def test_what_is_not_a_trust_domain_is_refused(text, rule):
    with pytest.raises(InvalidId) as refusal:
        TrustDomain.parse(text, field="federates_with")
    assert rule in refusal.value.public
    assert refusal.value.field == "federates_with"


def test_values_check_themselves_however_they_are_made():
    with pytest.raises(InvalidId) as refusal:
        TrustDomain("Example.org")
    assert refusal.value.field == "trust_domain"
    with pytest.raises(InvalidId, match="begins with a slash"):
        SpiffeId(TD, "a")


def test_equality_is_only_with_the_own_type_and_hashes_agree():
    one, same = SpiffeId.parse("spiffe://example.org/a"), SpiffeId(TrustDomain("example.org"), "/a")
    assert one == same
    assert hash(one) == hash(same)
    assert one != "spiffe://example.org/a"
    assert TD != "example.org"
    assert sorted([SpiffeId(TD, "/b"), one]) == [one, SpiffeId(TD, "/b")]


@pytest.mark.parametrize(
    ("path", "reserved"),
    [("/spire", True), ("/spire/agent/x", True), ("/spire/server", True), ("/spirex", False), ("/a/spire", False)],
)
def test_paths_of_spire_itself_are_reserved(path, reserved):
    assert SpiffeId(TD, path).is_reserved is reserved


def test_long_input_is_shown_in_part():
    assert shown("a\n") == r"'a\n'"
    assert shown("a" * 200) == f"'{'a' * 80}'..."
