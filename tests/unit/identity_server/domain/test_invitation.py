"""Invitations: what is written is read again, and what was changed on its way, or is not of now, is refused."""

import base64
import json
from dataclasses import replace
from datetime import timedelta

import pytest

from identity_server.domain.federation import EndpointProfile, FederationRelationship
from identity_server.domain.invitation import (
    MAX_LINE,
    PREFIX,
    pinned_keys,
    pins_of,
    read_invitation,
    require_pinned,
    require_signer,
    write_invitation,
)
from spiffe_core.bundle import JwtAuthority, TrustBundle
from spiffe_core.crypto.jose import encode_part, sign_compact
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import InvalidRequest, Unavailable
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from tests.authority import SpiffeTestCA

HERE, THERE = TrustDomain("example.org"), TrustDomain("fed.test")
CA = SpiffeTestCA("fed.test")
NOW = CA.now
SERVER = SpiffeId(THERE, "/spire/server")
SVID = CA.issue(str(SERVER))
JWT = JwtAuthority("k1", spki_der(generate(KeyKind.EC_P256).public_key()))
BUNDLE = replace(CA.bundle(), jwt_authorities=(JWT,))
WITH = FederationRelationship(THERE, "https://fed.test:8443/", EndpointProfile.HTTPS_SPIFFE, SERVER)
WEB = FederationRelationship(THERE, "https://fed.test/b", EndpointProfile.HTTPS_WEB)


def line(relationship=WITH, *, bundle=BUNDLE, life=timedelta(hours=1), svid=SVID, now=NOW):
    return write_invitation(relationship, bundle, now=now, life=life, chain=svid.chain, key=svid.private_key)


def read(text, *, now=NOW, own=HERE):
    return read_invitation(text, now=now, own=own)


def forged(**claims):
    """An invitation signed by the same key that says something else; None leaves a member out."""
    header, payload, _ = line().removeprefix(PREFIX).split(".")
    said = json.loads(base64.urlsafe_b64decode(payload + "=="))
    said = {name: value for name, value in (said | claims).items() if value is not None}
    return PREFIX + sign_compact(header, encode_part(said), SVID.private_key)


@pytest.mark.parametrize("relationship", [WITH, WEB], ids=["https_spiffe", "https_web"])
def test_what_is_written_is_read_again(relationship):
    """Issue 6 item 4: trust domain, URL, profile, fingerprints, end; on one line."""
    text = line(relationship)
    assert "\n" not in text
    found = read(text)
    assert found.relationship == relationship
    assert found.pins == pins_of(BUNDLE)
    assert found.expires_at - found.issued_at == timedelta(hours=1)
    require_signer(found, BUNDLE)
    assert read("  " + text[:100] + "\r\n " + text[100:] + "\n") == found, "a mail program broke the line"


@pytest.mark.parametrize("kind", [KeyKind.EC_P384, KeyKind.RSA_2048], ids=lambda kind: kind.value)
def test_servers_sign_with_whatever_key_they_have(kind):
    svid = CA.issue(str(SERVER), key=generate(kind))
    require_signer(read(line(svid=svid)), BUNDLE)


@pytest.mark.parametrize("at", [len(PREFIX), 100, 700, -1], ids=str)
def test_a_changed_letter_is_found(at):
    text = line()
    letter = "A" if text[at] != "A" else "B"
    spoilt = text[:at] + letter + (text[at + 1 :] if at != -1 else "")
    with pytest.raises(InvalidRequest, match=r"is damaged|has no chain|another version|does not begin"):
        read(spoilt)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "does not begin with"),
        ("hello", "does not begin with"),
        ("muniment-federation-2:abc", "is of another version"),
        (PREFIX, "is damaged"),
        (PREFIX + "a.b.c", "is damaged"),
        (PREFIX + "x" * MAX_LINE, "is longer than"),
        (line()[:-10], "is damaged"),
        (line().rpartition(".")[0] + ".", "is damaged"),
    ],
    ids=["nothing", "a word", "a later version", "the prefix", "three letters", "long", "cut", "unsigned"],
)
def test_what_is_no_invitation_is_refused_with_the_rule(text, rule):
    with pytest.raises(InvalidRequest, match=rule):
        read(text)


@pytest.mark.parametrize(
    ("claims", "rule"),
    [
        ({"extra": 1}, "says more than this release understands"),
        ({"pins": []}, "names no keys"),
        ({"pins": None}, "names no keys"),
        ({"pins": [1]}, "names no keys"),
        ({"pins": ["a"] * 1001}, "names no keys"),
        ({"iat": None}, "has no times"),
        ({"exp": "soon"}, "has no times"),
        ({"exp": True}, "has no times"),
        ({"exp": 2**40}, "has no times"),
        ({"url": "http://fed.test/"}, "describes no relationship"),
        ({"url": 5}, "does not say where"),
        ({"url": None}, "describes no relationship"),
        ({"profile": "ftp"}, "neither https_web nor https_spiffe"),
        ({"profile": "https_web"}, "describes no relationship"),
        ({"endpoint_spiffe_id": None}, "describes no relationship"),
        ({"trust_domain": "Fed.test"}, "describes no relationship"),
        ({"trust_domain": "example.org"}, "is from this trust domain itself"),
    ],
)
def test_what_it_says_is_held_to_the_rules(claims, rule):
    """N-F-01, N-F-02, N-F-03, N-F-20."""
    with pytest.raises(InvalidRequest, match=rule):
        read(forged(**claims))


def test_it_ends():
    text = line()
    read(text, now=NOW + timedelta(minutes=59))
    with pytest.raises(InvalidRequest, match=r"ended at .* UTC; ask for a new one"):
        read(text, now=NOW + timedelta(hours=1))
    with pytest.raises(InvalidRequest, match="compare the clocks"):
        read(text, now=NOW - timedelta(minutes=2))
    with pytest.raises(InvalidRequest, match="has times that cannot be"):
        read(forged(exp=int((NOW + timedelta(days=8)).timestamp())))
    for life in (timedelta(0), timedelta(days=8)):
        with pytest.raises(InvalidRequest, match="ttl: must lie"):
            line(life=life)


def test_a_key_that_is_not_named_refuses_the_whole_bundle():
    """An attacker cannot add a key to good ones; a key that is gone since is no harm."""
    pins = pins_of(BUNDLE)
    require_pinned(BUNDLE, pins)
    require_pinned(CA.bundle(), pins)
    for more in (BUNDLE.with_x509_authority(SpiffeTestCA("fed.test").der), CA.bundle(SpiffeTestCA("fed.test"))):
        with pytest.raises(Unavailable, match="has a key the invitation does not name"):
            require_pinned(more, pins)
    other = replace(JWT, public_key=spki_der(generate(KeyKind.EC_P256).public_key()))
    with pytest.raises(Unavailable, match="jwt-svid k1"):
        require_pinned(replace(BUNDLE, jwt_authorities=(other,)), pins)
    with pytest.raises(Unavailable, match=r"no X\.509 authority"):
        require_pinned(TrustBundle(THERE), pins)


def test_a_fingerprint_covers_what_the_key_is_for_and_its_name():
    """A key that signs tokens must not pass for one of another name or use."""
    wit = replace(BUNDLE, jwt_authorities=(replace(JWT, key_id="k2"),))
    assert pins_of(wit) != pins_of(BUNDLE)
    assert [key.use for key in pinned_keys(BUNDLE)] == ["x509-svid", "jwt-svid"]
    assert all(len(key.pin) == 22 for key in pinned_keys(BUNDLE))


@pytest.mark.parametrize(
    "svid",
    [
        pytest.param(CA.issue("spiffe://fed.test/workload"), id="a workload of it"),
        pytest.param(SpiffeTestCA("fed.test").issue(str(SERVER)), id="an authority it does not have"),
        pytest.param(SpiffeTestCA("evil.test").issue("spiffe://evil.test/spire/server"), id="another trust domain"),
    ],
)
def test_only_a_server_of_the_trust_domain_can_have_signed_it(svid):
    """Nobody can bring two others to federate; what the line pins does not help who has no such key."""
    with pytest.raises(Unavailable, match=r"was not signed by spiffe://fed\.test/spire/server"):
        require_signer(read(line(svid=svid)), BUNDLE)


def test_the_signers_certificate_may_end_before_the_line_does():
    """It is judged at the moment of signing: a server's own SVID lives an hour, an invitation up to a week."""
    found = read(line(life=timedelta(days=7)), now=NOW + timedelta(days=6))
    require_signer(found, BUNDLE)
