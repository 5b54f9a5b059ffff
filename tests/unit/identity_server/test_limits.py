"""S36: every limit on what a stranger may send is exact: one below and the limit itself are taken, one more is refused.

The numbers stand here as operators read them (docs/security-model.md, docs/compatibility.md), not as the code names them.
Limits in bytes are tried with characters of two bytes as well: counted as characters, they would let twice as much in.
"""

from __future__ import annotations

import json

import pytest

from identity_server.domain.federation import check_endpoint_url
from identity_server.domain.join_tokens import check_token
from spiffe_core.bundle import JwtAuthority
from spiffe_core.bundle_document import load_bundle
from spiffe_core.crypto.csr import parse_csr
from spiffe_core.crypto.jose import read_compact
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.dns_name import check_dns_name
from spiffe_core.errors import IdentityError
from spiffe_core.jwt_svid import check_audience
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from tests.builders import make_bundle, make_entry

TD = TrustDomain("example.org")
SPKI = spki_der(generate(KeyKind.EC_P256).public_key())


def name_of(size):
    """A DNS name of so many bytes, with labels of at most 63."""
    labels = ["a" * 60] * 8
    text = ".".join(labels)[:size]
    return f"{text[:-1]}a" if text.endswith(".") else text


def wide(size):
    """So many bytes in characters of two, and one of one where the number is odd."""
    return "é" * (size // 2) + "x" * (size % 2)


LIMITS = {
    "SPIFFE ID, bytes": (2048, lambda n: SpiffeId.parse("spiffe://example.org/" + "a" * (n - 21))),
    "trust domain, bytes": (255, lambda n: TrustDomain.parse("a" * n)),
    "trust domain in an ID, bytes": (255, lambda n: SpiffeId.parse(f"spiffe://{'a' * n}/x")),
    "selector's type, bytes": (128, lambda n: Selector("t" * n, "v")),
    "selector's type, wide": (128, lambda n: Selector(wide(n), "v")),
    "selector's value, bytes": (8192, lambda n: Selector("t", "v" * n)),
    "selector's value, wide": (8192, lambda n: Selector("t", wide(n))),
    "selector as text": (8192, lambda n: Selector.parse("t:" + "v" * n)),
    "selectors of an entry": (100, lambda n: make_entry(selectors=[f"unix:uid:{k}" for k in range(n)])),
    "entry's id": (255, lambda n: make_entry(id="i" * n)),
    "hint, bytes (N-C-23)": (1024, lambda n: make_entry(hint="h" * n)),
    "hint, wide": (1024, lambda n: make_entry(hint=wide(n))),
    "X.509 TTL, seconds": (2**31 - 1, lambda n: make_entry(x509_svid_ttl=n)),
    "JWT TTL, seconds": (2**31 - 1, lambda n: make_entry(jwt_svid_ttl=n)),
    "expiry": (2**63 - 1, lambda n: make_entry(expires_at=n)),
    "DNS names of an entry": (500, lambda n: make_entry(dns_names=tuple(f"n{k}.example" for k in range(n)))),
    "domains an entry federates with": (
        500,
        lambda n: make_entry(federates_with=tuple(TrustDomain(f"d{k}.test") for k in range(n))),
    ),
    "DNS name, bytes (N-C-12)": (253, lambda n: check_dns_name(name_of(n))),
    "audiences (N-C-20)": (32, lambda n: check_audience([f"a{k}" for k in range(n)])),
    "audience, bytes (N-C-20)": (1024, lambda n: check_audience(["a" * n])),
    "audience, wide": (1024, lambda n: check_audience([wide(n)])),
    "join token, bytes (S35)": (256, lambda n: check_token("t" * n)),
    "key id of a bundle's key, bytes": (1024, lambda n: JwtAuthority("k" * n, SPKI)),
    "key id, wide": (1024, lambda n: JwtAuthority(wide(n), SPKI)),
    "bundle's sequence": (2**64 - 1, lambda n: make_bundle(sequence=n)),
    "bundle's refresh hint": (2**31 - 1, lambda n: make_bundle(refresh_hint=n)),
    "keys of a bundle": (
        1000,
        lambda n: make_bundle(jwt_authorities=tuple(JwtAuthority(f"k{k}", SPKI) for k in range(n))),
    ),
    "bundle endpoint's URL, bytes": (2048, lambda n: check_endpoint_url("https://a.test/" + "a" * (n - 15))),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_exact(name):
    """S36: n - 1, n, n + 1."""
    limit, make = LIMITS[name]
    make(limit - 1)
    make(limit)
    with pytest.raises(IdentityError) as refused:
        make(limit + 1)
    assert str(limit) in refused.value.public.replace(",", ""), refused.value.public


def padded_bundle(size):
    """A bundle document of so many bytes."""
    text = json.dumps({"keys": [], "spiffe_sequence": 1}).encode()
    return text + b" " * (size - len(text))


UNREADABLE = {
    "CSR, bytes (N-C-02)": (16 * 1024, lambda n: parse_csr(b"\x30" * n), "has more than 16384 bytes"),
    "token, bytes (N-J-40)": (64 * 1024, lambda n: read_compact("a" * n), "has more than 65536 bytes"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_refused_for_its_size_is_refused_only_beyond_the_limit(name):
    """S36: up to the limit these are looked at, and refused for what they are."""
    limit, read, words = UNREADABLE[name]
    for size, by_size in ((limit - 1, False), (limit, False), (limit + 1, True)):
        with pytest.raises(IdentityError) as refused:
            read(size)
        assert (words in refused.value.public) is by_size, (size, refused.value.public)


def test_a_bundle_document_is_read_up_to_four_mebibytes():
    """S36, N-B-31."""
    limit = 4 * 1024 * 1024
    for size in (limit - 1, limit):
        assert load_bundle(padded_bundle(size), TD).bundle.sequence == 1
    with pytest.raises(IdentityError, match="has more than 4194304 bytes"):
        load_bundle(padded_bundle(limit + 1), TD)
