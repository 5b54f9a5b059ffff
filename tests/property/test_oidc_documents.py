"""OIDC discovery for any names and keys: documents say what tokens say, hosts only choose, bytes depend on content alone."""

from __future__ import annotations

import json
import string

from hypothesis import given, settings
from hypothesis import strategies as st

from identity_server.domain.oidc_documents import Authority, IssuerUrl, Provider, render
from spiffe_core.bundle import JwtAuthority
from spiffe_core.bundle_document import load_token_keys
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import InvalidRequest
from spiffe_core.spiffe_id import TrustDomain

_SPKI = [spki_der(generate(kind).public_key()) for kind in (KeyKind.EC_P256, KeyKind.EC_P384, KeyKind.RSA_2048)]

labels = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=12).map(lambda text: f"x{text}")
names = st.lists(labels, min_size=1, max_size=4).map(".".join)
authorities = st.builds(Authority, names, st.none() | st.integers(1, 65535))
paths = st.lists(labels, max_size=3).map(lambda parts: "".join(f"/{part}" for part in parts))
keys = st.lists(
    st.builds(JwtAuthority, st.text(min_size=1, max_size=20), st.sampled_from(_SPKI)),
    max_size=5,
    unique_by=lambda one: one.key_id,
)


@st.composite
def providers(draw: st.DrawFn) -> Provider:
    domains = draw(st.lists(authorities, min_size=1, max_size=4, unique=True))
    issuer = draw(
        st.none() | st.builds(lambda host, path: IssuerUrl.parse(f"https://{host}{path}"), authorities, paths)
    )
    return Provider(tuple(domains), issuer, path_prefix=draw(st.none() | paths))


@settings(max_examples=40)
@given(providers(), keys, st.randoms(use_true_random=False))
def test_the_same_keys_give_the_same_bytes_in_any_order(provider: Provider, found: list[JwtAuthority], chance) -> None:
    shuffled = list(found)
    chance.shuffle(shuffled)
    assert render(provider, found) == render(provider, shuffled)


@settings(max_examples=40)
@given(providers(), keys)
def test_every_key_comes_back_out_of_the_set(provider: Provider, found: list[JwtAuthority]) -> None:
    """RFC 7517: our own strict reader finds the same keys under the same key IDs."""
    body = render(Provider(provider.domains, provider.issuer, key_use=False), found).keys
    read = load_token_keys(body, TrustDomain("example.org"), "jwt-svid")
    assert read.warnings == (() if found else ("no usable key: no SVID of example.org will be trusted",))
    assert {(one.key_id, one.public_key) for one in read.bundle.jwt_authorities} == {
        (one.key_id, one.public_key) for one in found
    }


@settings(max_examples=40)
@given(providers(), keys)
def test_each_domain_tells_an_issuer_whose_documents_it_serves(provider: Provider, found: list[JwtAuthority]) -> None:
    """Discovery sections 3 and 4.3: who asks at the issuer's URL is told exactly that issuer, and where the keys are."""
    documents = render(provider, found)
    for domain, issuer in provider.issuers().items():
        told = json.loads(documents.configuration[domain])
        assert told["issuer"] == issuer.text
        assert told["jwks_uri"] == f"{issuer.text}/keys"
        if provider.issuer is None:
            asked = provider.domain_of(str(issuer.authority))
            assert asked is not None
            assert json.loads(documents.configuration[asked])["issuer"] == issuer.text
            assert issuer.path == provider.prefix


@given(providers(), st.text(max_size=40) | authorities.map(str))
def test_any_host_is_one_of_the_domains_or_refused(provider: Provider, host: str) -> None:
    found = provider.domain_of(host)
    assert found is None or found in {str(domain) for domain in provider.domains}
    if found is not None:
        assert Authority.parse(host).host == Authority.parse(found).host


@given(st.text(max_size=60) | st.text("htps:/.-@?#[]%x1", max_size=40).map(lambda text: f"https://{text}"))
def test_a_text_is_an_issuer_or_refused_and_an_issuer_stays_as_it_was_written(text: str) -> None:
    try:
        issuer = IssuerUrl.parse(text)
    except InvalidRequest:
        return
    assert issuer.text == text
    assert str(Authority.parse(str(issuer.authority))) == str(issuer.authority)
