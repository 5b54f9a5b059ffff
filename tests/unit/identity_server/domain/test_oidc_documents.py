"""The documents of OIDC discovery: their members, which issuer a domain tells, and which hosts are answered (spire_features 21)."""

from __future__ import annotations

import json
from functools import cache

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from identity_server.domain.oidc_documents import (
    MAX_DOMAINS,
    Authority,
    IssuerUrl,
    Provider,
    configuration_document,
    key_set,
    render,
)
from spiffe_core.bundle import JwtAuthority
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import InvalidRequest


@cache
def authority(kind: str, key_id: str = "") -> JwtAuthority:
    key = ec.generate_private_key(ec.SECP521R1()) if kind == "ec-p521" else generate(KeyKind(kind))
    return JwtAuthority(key_id or kind, spki_der(key.public_key()), expires_at=1_900_000_000)


def provider(*domains: str, issuer: str = "", **over: object) -> Provider:
    parsed = IssuerUrl.parse(issuer, insecure=True) if issuer else None
    return Provider(tuple(map(Authority.parse, domains or ("oidc.example.org",))), parsed, **over)  # type: ignore[arg-type]


def test_the_configuration_has_spires_members_and_order() -> None:
    """OpenID Connect Discovery 1.0 section 3: what SPIRE's provider tells, and RS256 in the list."""
    document = configuration_document("https://oidc.example.org", "https://oidc.example.org/keys")
    assert list(json.loads(document).items()) == [
        ("issuer", "https://oidc.example.org"),
        ("jwks_uri", "https://oidc.example.org/keys"),
        ("authorization_endpoint", ""),
        ("response_types_supported", ["id_token"]),
        ("subject_types_supported", ["public"]),
        ("id_token_signing_alg_values_supported", ["RS256", "ES256", "ES384"]),
    ]


@pytest.mark.parametrize(
    ("kind", "alg", "members"),
    [
        ("ec-p256", "ES256", {"kty", "crv", "x", "y"}),
        ("ec-p384", "ES384", {"kty", "crv", "x", "y"}),
        ("ec-p521", "ES512", {"kty", "crv", "x", "y"}),
        ("rsa-2048", "RS256", {"kty", "n", "e"}),
        ("rsa-4096", "RS256", {"kty", "n", "e"}),
    ],
)
def test_each_key_says_its_algorithm_and_use_and_nothing_private(kind: str, alg: str, members: set[str]) -> None:
    """RFC 7517 section 4: `alg` and `use` as verifiers of clouds want them; TDB: public members only."""
    (key,) = json.loads(key_set([authority(kind)], use=True))["keys"]
    assert (key["alg"], key["use"], key["kid"]) == (alg, "sig", kind)
    assert set(key) == {"alg", "use", "kid"} | members
    (bare,) = json.loads(key_set([authority(kind)], use=False))["keys"]
    assert set(bare) == set(key) - {"use"}


def test_an_algorithm_of_a_foreign_key_is_offered_as_well() -> None:
    documents = render(provider(), [authority("ec-p521"), authority("ec-p256")])
    told = json.loads(documents.configuration["oidc.example.org"])
    assert told["id_token_signing_alg_values_supported"] == ["RS256", "ES256", "ES384", "ES512"]


def test_without_an_issuer_each_domain_is_the_issuer_of_its_own_url() -> None:
    made = provider("a.example.org", "b.example.org:8443", path_prefix="/oidc")
    documents = render(made, [])
    told = {domain: json.loads(document) for domain, document in documents.configuration.items()}
    assert {domain: (one["issuer"], one["jwks_uri"]) for domain, one in told.items()} == {
        "a.example.org": ("https://a.example.org/oidc", "https://a.example.org/oidc/keys"),
        "b.example.org:8443": ("https://b.example.org:8443/oidc", "https://b.example.org:8443/oidc/keys"),
    }
    assert documents.key_ids == ()


def test_one_issuer_is_told_by_every_domain_letter_for_letter() -> None:
    """`issuer` must be what stands in `iss`: the slash at its end stays, and is not doubled in the key set's URL."""
    made = provider("a.example.org", "b.example.org", issuer="https://a.example.org/x/")
    told = [json.loads(one) for one in render(made, []).configuration.values()]
    assert [one["issuer"] for one in told] == ["https://a.example.org/x/"] * 2
    assert [one["jwks_uri"] for one in told] == ["https://a.example.org/x/keys"] * 2
    assert made.prefix == "/x"
    assert made.issuer is not None
    assert made.issuer.discovery_url == "https://a.example.org/x/.well-known/openid-configuration"


def test_a_key_sets_url_can_be_elsewhere_and_a_prefix_can_be_stripped_by_a_proxy() -> None:
    made = provider(issuer="https://a.example.org/x", jwks_uri="https://cdn.example.org/jwks", path_prefix="/")
    (told,) = [json.loads(one) for one in render(made, []).configuration.values()]
    assert told["jwks_uri"] == "https://cdn.example.org/jwks"
    assert made.prefix == ""


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("oidc.example.org", "oidc.example.org"),
        ("OIDC.Example.ORG", "oidc.example.org"),
        ("oidc.example.org:443", "oidc.example.org"),
        ("oidc.example.org:80", None),
        ("oidc.example.org:8443", None),
        ("test.example.org:8443", "test.example.org:8443"),
        ("test.example.org", None),
        ("127.0.0.1:9443", "127.0.0.1:9443"),
        ("[::1]:9443", "[::1]:9443"),
        ("[0:0:0:0:0:0:0:1]:9443", "[::1]:9443"),
        ("evil.test", None),
        ("oidc.example.org.", None),
        ("oidc.example.org@evil.test", None),
        ("oidc.example.org:443:443", None),
        ("oidc.example.org:", None),
        ("oidc.example.org:0443000", None),
        ("oïdc.example.org", None),
        ("", None),
        ("a" * 5000, None),
    ],
)
def test_only_listed_hosts_are_answered(host: str, domain: str | None) -> None:
    """Deny by default: a port that would be another issuer is another domain."""
    made = provider("oidc.example.org", "test.example.org:8443", "127.0.0.1:9443", "[::1]:9443")
    assert made.domain_of(host) == domain


def test_with_one_issuer_the_port_of_the_host_means_nothing() -> None:
    made = provider("oidc.example.org", issuer="https://oidc.example.org")
    assert made.domain_of("oidc.example.org:8443") == "oidc.example.org"
    assert made.domain_of("evil.test:8443") is None


@pytest.mark.parametrize(
    ("issuer", "rule"),
    [
        ("http://oidc.example.org", "https://"),
        ("oidc.example.org", "https://"),
        ("HTTPS://oidc.example.org", "https://"),
        ("https:oidc.example.org", "https://"),
        ("spiffe://example.org", "https://"),
        ("https://", "host name"),
        ("https://user@oidc.example.org", "user"),
        ("https://oidc.example.org?x=1", "query"),
        ("https://oidc.example.org#x", "fragment"),
        ("https://oidc.example.org/a//b", "path"),
        ("https://oidc.example.org/a/../b", "path"),
        ("https://oidc.example.org/%61", "path"),
        ("https://oidc.example.org:0", "port"),
        ("https://oidc.example.org:99999", "port"),
        ("https://[::1", "URL"),
        ("https://oidc.exämple.org", "ASCII"),
        ("https://oidc.example.org/a b", "ASCII"),
        ("https://oidc.example.org/" + "a" * 2000, "at most"),
        ("https://1.2.3.400", "IP address"),
    ],
)
def test_what_no_verifier_would_accept_is_no_issuer(issuer: str, rule: str) -> None:
    with pytest.raises(InvalidRequest, match=rule) as refused:
        IssuerUrl.parse(issuer)
    assert refused.value.field == "jwt_issuer"


def test_plain_http_is_an_issuer_only_where_it_was_asked_for() -> None:
    assert IssuerUrl.parse("http://127.0.0.1:8080", insecure=True).authority == Authority("127.0.0.1", 8080)
    made = provider("localhost", scheme="http")
    assert made.issuers()["localhost"].text == "http://localhost"


@pytest.mark.parametrize(
    ("over", "field"),
    [
        ({"jwks_uri": "http://oidc.example.org/keys"}, "jwks_uri"),
        ({"jwks_uri": "keys"}, "jwks_uri"),
        ({"path_prefix": "oidc"}, "server_path_prefix"),
        ({"path_prefix": "/a?b"}, "server_path_prefix"),
        ({"path_prefix": "/" + "a" * 300}, "server_path_prefix"),
        ({"scheme": "ftp"}, "scheme"),
    ],
)
def test_a_provider_that_cannot_work_does_not_come_to_be(over: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        provider(**over)  # type: ignore[arg-type]
    assert refused.value.field == field


def test_the_number_of_domains_is_bounded() -> None:
    with pytest.raises(InvalidRequest, match="64"):
        Provider(tuple(Authority(f"d{number}.test") for number in range(MAX_DOMAINS + 1)))
    with pytest.raises(InvalidRequest, match="domains"):
        Provider(())


def test_the_bytes_change_with_the_keys_and_with_nothing_else() -> None:
    """The same on every server, in whatever order the keys came."""
    one, two = authority("ec-p256", "one"), authority("ec-p256", "two")
    first, second = render(provider(), [one, two]), render(provider(), [two, one])
    assert first.keys == second.keys
    assert first.keys != render(provider(), [one]).keys
    assert first.configuration["oidc.example.org"] == render(provider(), [one]).configuration["oidc.example.org"]
    assert first.key_ids == ("one", "two")
