"""What may be minted without an entry (spire_wire section 5.4; N-C-08 to N-C-12, S34, S36)."""

import pytest
from cryptography import x509

from identity_server.domain.minting import MAX_DNS_NAMES, check_mint
from spiffe_core.crypto.csr import Csr
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import InvalidCsr
from spiffe_core.spiffe_id import SpiffeId, TrustDomain

TD = TrustDomain("example.org")
KEY = generate(KeyKind.EC_P256).public_key()


def csr(*uris, dns=()):
    return Csr(KEY, b"", b"", uris, tuple(dns), x509.Name([]))


def refusal(*uris, dns=()):
    with pytest.raises(InvalidCsr) as caught:
        check_mint(csr(*uris, dns=dns), TD)
    assert caught.value.field == "csr"
    return caught.value.public


def test_one_id_of_the_trust_domain_is_minted():
    assert check_mint(csr("spiffe://example.org/a", dns=["a.example", "*.b.example"]), TD) == SpiffeId(TD, "/a")


@pytest.mark.parametrize("uris", [(), ("spiffe://example.org/a", "spiffe://example.org/a")])
def test_exactly_one_uri(uris):
    assert f"exactly one URI SAN, it has {len(uris)}" in refusal(*uris)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://example.org/a", "invalid"),
        ("spiffe://example.org/a/", "invalid"),
        ("spiffe://example.org/a%41", "invalid"),
        ("spiffe://other.org/a", 'not a member of "example.org"'),
        ("spiffe://example.org", "add a path"),
        ("spiffe://example.org/spire", "reserved"),
        ("spiffe://example.org/spire/server", "reserved"),
    ],
)
def test_ids_that_may_not_be_minted(uri, words):
    assert words in refusal(uri)


def test_a_path_that_only_begins_like_the_reserved_one_is_free():
    assert check_mint(csr("spiffe://example.org/spires/server"), TD).path == "/spires/server"


def test_dns_names_are_counted_exactly():
    """S34, S36."""
    names = [f"n{number}.example" for number in range(MAX_DNS_NAMES)]
    assert check_mint(csr("spiffe://example.org/a", dns=names), TD)
    assert "101 DNS names" in refusal("spiffe://example.org/a", dns=[*names, "one.more"])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["-a.example"], "not valid"),
        (["a.*.example"], "not valid"),
        ([""], "not valid"),
        (["a.example", "A.example"], "given twice"),
        (["*.example.org", "www.example.org"], 'covered by the wildcard "*.example.org"'),
        (["WWW.example.org", "*.EXAMPLE.org"], "covered by the wildcard"),
    ],
)
def test_dns_names_that_may_not_stand_together(names, words):
    assert words in refusal("spiffe://example.org/a", dns=names)


def test_a_wildcard_covers_one_label_only():
    names = ["*.example.org", "a.b.example.org", "example.org"]
    assert check_mint(csr("spiffe://example.org/a", dns=names), TD)
