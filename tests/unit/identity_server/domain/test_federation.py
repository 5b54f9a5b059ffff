"""What a federation relationship must be, and what others may put into a bundle."""

from dataclasses import replace

import pytest

from identity_server.domain.federation import (
    MAX_URL_BYTES,
    EndpointProfile,
    FederationRelationship,
    check_endpoint_url,
    untainted,
    with_published_key,
)
from spiffe_core.bundle import JwtAuthority, WitAuthority
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import Conflict, InvalidRequest
from tests.builders import OTHER_TD, make_bundle, sid

KEYS = [spki_der(generate(KeyKind.EC_P256).public_key()) for _ in range(2)]


@pytest.mark.parametrize(
    "url",
    [
        "https://fed.test",
        "https://fed.test/",
        "https://fed.test:8443/bundle?x=1",
        "https://192.0.2.1/b",
        "https://[2001:db8::1]:443/b",
        "HTTPS://fed.test/",
    ],
)
def test_urls_of_endpoints(url):
    assert check_endpoint_url(url) == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "https scheme"),
        ("http://fed.test/", "https scheme"),
        ("fed.test/bundle", "https scheme"),
        ("file:///etc/passwd", "https scheme"),
        ("https://", "specify the host"),
        ("https:///bundle", "specify the host"),
        ("https://:443/", "specify the host"),
        ("https://user@fed.test/", "user info"),
        ("https://user:secret@fed.test/", "user info"),
        ("https://@fed.test/", "user info"),
        ("https://fed.test:0/", "port"),
        ("https://fed.test:65536/", "host or port"),
        ("https://fed.test:x/", "host or port"),
        ("https://[::1/", "host or port"),
        ("https://fed.test/a b", "characters"),
        ("https://fed.test\\@evil.test/", "characters"),
        ("https://fed.test/\r\nHost: x", "characters"),
        ("https://fed.test/\x00", "characters"),
        ("https://fed.test/" + "a" * MAX_URL_BYTES, "bytes"),
    ],
)
def test_what_is_no_url_of_an_endpoint(url, words):
    """N-F-02, FED-19, FED-20, spire_features section 19.3: https, a host, no user info; S44 likes confused parsers."""
    with pytest.raises(InvalidRequest, match=words) as refusal:
        check_endpoint_url(url)
    assert refusal.value.field == "bundle_endpoint_url"
    assert "secret" not in refusal.value.public


def test_the_profile_and_the_endpoint_id_belong_together():
    """FED-17, FED-36."""
    url, who = "https://fed.test/", sid("spiffe://fed.test/spire/server")
    FederationRelationship(OTHER_TD, url, EndpointProfile.HTTPS_WEB)
    FederationRelationship(OTHER_TD, url, EndpointProfile.HTTPS_SPIFFE, who)
    for profile, endpoint in ((EndpointProfile.HTTPS_WEB, who), (EndpointProfile.HTTPS_SPIFFE, None)):
        with pytest.raises(InvalidRequest, match="bundle_endpoint_profile"):
            FederationRelationship(OTHER_TD, url, profile, endpoint)


def test_nobody_else_says_what_is_tainted():
    bundle = make_bundle(
        jwt_authorities=(JwtAuthority("j", KEYS[0], tainted=True), JwtAuthority("k", KEYS[1])),
        wit_authorities=(WitAuthority("w", KEYS[0], tainted=True),),
    )
    tainted = bundle.with_x509_tainted(bundle.x509_authorities[0].key_id)
    clean = untainted(tainted)
    assert not any(one.tainted for one in (*clean.x509_authorities, *clean.jwt_authorities, *clean.wit_authorities))
    assert clean.x509_roots == bundle.x509_roots
    assert clean.sequence == tainted.sequence


class TestPublishing:
    def test_a_new_key_is_added_untainted(self):
        before = make_bundle()
        after = with_published_key(before, JwtAuthority("j", KEYS[0], expires_at=5, tainted=True))
        assert after.jwt_authorities == (JwtAuthority("j", KEYS[0], expires_at=5),)
        assert after.sequence == before.sequence + 1

    def test_the_same_key_again_changes_nothing_and_takes_no_taint_away(self):
        before = make_bundle(jwt_authorities=(JwtAuthority("j", KEYS[0], tainted=True),))
        assert with_published_key(before, JwtAuthority("j", KEYS[0], expires_at=9)) is before

    @pytest.mark.parametrize("kind", ["jwt", "wit"])
    def test_another_key_under_a_known_id_is_refused(self, kind):
        """A downstream server may not put its key in the place of ours."""
        known = {
            "jwt": {"jwt_authorities": (JwtAuthority("j", KEYS[0]),)},
            "wit": {"wit_authorities": (WitAuthority("j", KEYS[0]),)},
        }
        before = make_bundle(**known[kind])
        with pytest.raises(Conflict, match="another key"):
            with_published_key(before, replace(JwtAuthority("j", KEYS[0]), public_key=KEYS[1]))
