"""Bundle documents: every N-B case that a parser can decide.

Two outcomes are told apart: *skip* keeps the good entry beside the bad one and warns, *refuse* rejects the document.
"""

from __future__ import annotations

import base64
import json
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from josepy.jwk import JWK

from spiffe_core.bundle import MAX_SEQUENCE, JwtAuthority, TrustBundle, WitAuthority, X509Authority, poll_interval
from spiffe_core.bundle_document import (
    MAX_AUTHORITIES,
    MAX_DOCUMENT_BYTES,
    MAX_MAP_BYTES,
    MAX_TRUST_DOMAINS,
    MAX_WARNINGS,
    dump_bundle,
    dump_bundle_map,
    dump_bundle_pem,
    load_bundle,
    load_bundle_map,
    load_bundle_pem,
)
from spiffe_core.crypto.jwk import key_to_jwk
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import InvalidBundle, InvalidId, Kind
from spiffe_core.spiffe_id import TrustDomain
from tests.authority import SpiffeTestCA
from tests.builders import OTHER_TD, TD

CA, CA_2 = SpiffeTestCA(), SpiffeTestCA(key=rsa.generate_private_key(65537, 2048))
JWT_KEY, WIT_KEY = generate(KeyKind.EC_P256).public_key(), generate(KeyKind.EC_P384).public_key()


def b64(der: bytes) -> str:
    return base64.b64encode(der).decode()


def x509_jwk(ca: SpiffeTestCA = CA, **over):
    """A good x509-svid entry; a member given as None is left out."""
    jwk = {"use": "x509-svid", **key_to_jwk(ca.certificate.public_key()), "x5c": [b64(ca.der)], **over}
    return {name: value for name, value in jwk.items() if value is not None}


def jwt_jwk(**over):
    jwk = {"use": "jwt-svid", "kid": "k1", **key_to_jwk(JWT_KEY), **over}
    return {name: value for name, value in jwk.items() if value is not None}


def document(*keys, **members) -> bytes:
    return json.dumps({"keys": list(keys), **members}).encode()


def test_a_bundle_is_a_set_of_keys_that_anybody_reads():
    """TDB-02, RFC 7517 section 5: each key, read by another library, is the authority's."""
    curve, rsa_ca = SpiffeTestCA(), CA_2
    bundle = TrustBundle(
        TD,
        (X509Authority(curve.der), X509Authority(rsa_ca.der)),
        (JwtAuthority("k1", spki_der(JWT_KEY)),),
        (WitAuthority("w1", spki_der(WIT_KEY)),),
    )
    keys = json.loads(dump_bundle(bundle))["keys"]
    read = {one["kid"] if "kid" in one else one["x5c"][0]: JWK.from_json(one).key.public_numbers() for one in keys}
    expected = {b64(one.der): one.key.public_key() for one in (curve, rsa_ca)} | {"k1": JWT_KEY, "w1": WIT_KEY}
    assert read == {name: key.public_numbers() for name, key in expected.items()}


GOOD = document(x509_jwk(), jwt_jwk(), spiffe_sequence=3, spiffe_refresh_hint=300)


def test_a_good_document_is_read():
    loaded = load_bundle(GOOD, TD)
    assert loaded.warnings == ()
    assert loaded.bundle == TrustBundle(
        TD, (X509Authority(CA.der),), (JwtAuthority("k1", spki_der(JWT_KEY)),), (), 3, 300
    )


DEEP = b'{"keys":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
REFUSED = {
    "TDB-02 N-B-01 not JSON": (b"{", "is not one JSON text"),
    "N-B-01 truncated": (GOOD[:-1], "is not one JSON text"),
    "N-B-01 an HTML page": (b"<html>error</html>", "is not one JSON text"),
    "N-B-01 empty": (b"", "is not one JSON text"),
    "N-B-02 array": (b"[]", "is not a JSON object"),
    "N-B-02 string": (b'"keys"', "is not a JSON object"),
    "N-B-02 number": (b"1", "is not a JSON object"),
    "N-B-02 null": (b"null", "is not a JSON object"),
    "N-B-03 trailing bytes": (GOOD + b"x", "is not one JSON text"),
    "N-B-03 a second object": (GOOD + b"{}", "is not one JSON text"),
    "N-B-04 invalid UTF-8": (GOOD.replace(b'"k1"', b'"\xff"'), "is not one JSON text"),
    "N-B-04 UTF-16": (GOOD.decode().encode("utf-16"), "is not one JSON text"),
    "N-B-04 byte order mark": (b"\xef\xbb\xbf" + GOOD, "is not one JSON text"),
    "N-B-05 no keys": (b'{"spiffe_sequence":1}', "keys: is missing or not an array"),
    "N-B-06 null": (b'{"keys":null}', "keys: is missing or not an array"),
    "N-B-06 object": (b'{"keys":{}}', "keys: is missing or not an array"),
    "N-B-06 string": (b'{"keys":"x"}', "keys: is missing or not an array"),
    "N-B-29 keys twice": (b'{"keys":[],"keys":[]}', "a member name is given twice"),
    "N-B-29 inside a key": (b'{"keys":[{"use":"sig","use":"x"}]}', "a member name is given twice"),
    "N-B-29 escaped": (b'{"keys":[],"\\u006beys":[]}', "a member name is given twice"),
    "N-B-31 size": (b" " * (MAX_DOCUMENT_BYTES + 1), "has more than"),
    "N-B-31 a million keys": (b'{"keys":[' + b"0," * 1_000_000 + b"0]}", "at most 1000 are read"),
    "N-B-31 depth": (DEEP, "is not one JSON text"),
    "NaN": (b'{"keys":[],"spiffe_sequence":NaN}', "NaN and Infinity"),
    "a number of ten thousand digits": (b'{"keys":[],"x":' + b"1" * 10_000 + b"}", "is not one JSON text"),
}


@pytest.mark.parametrize(("data", "rule"), REFUSED.values(), ids=REFUSED)
def test_documents_that_are_not_what_they_claim_are_refused_whole(data, rule):
    assert load_bundle(GOOD, TD).bundle.sequence == 3
    with pytest.raises(InvalidBundle) as refusal:
        load_bundle(data, TD)
    assert rule in refusal.value.public
    assert refusal.value.kind is Kind.INVALID
    assert refusal.value.__cause__ is None
    assert load_bundle(GOOD, TD).bundle.sequence == 3


LEAF = CA.issue()
ED = ed25519.Ed25519PrivateKey.generate()
SKIPPED = {
    "N-B-09 no use": (x509_jwk(use=None), "use: is missing or unknown"),
    "N-B-09 sig": (jwt_jwk(use="sig"), "use: is missing or unknown"),
    "N-B-09 case": (jwt_jwk(use="JWT-SVID"), "use: is missing or unknown"),
    "N-B-09 number": (jwt_jwk(use=7), "use: is missing or unknown"),
    "N-B-10 no kty": (x509_jwk(kty=None), "kty: is missing"),
    "N-B-10 unknown kty": (jwt_jwk(kty="OKP", crv="Ed25519"), "kty: is missing"),
    "N-B-11 null": (None, "is not an object"),
    "N-B-11 string": ("x", "is not an object"),
    "N-B-12 no x5c": (x509_jwk(x5c=None), "x5c: is missing or empty"),
    "N-B-12 empty x5c": (x509_jwk(x5c=[]), "x5c: is missing or empty"),
    "N-B-12 string": (x509_jwk(x5c=b64(CA.der)), "x5c: is missing or empty"),
    "N-B-14 PEM": (x509_jwk(x5c=[CA.certificate.public_bytes(Encoding.PEM).decode()]), "x5c: is not standard base64"),
    "N-B-14 base64url": (x509_jwk(x5c=[base64.urlsafe_b64encode(b"\xff\xff\xff").decode()]), "x5c: is not standard"),
    "N-B-14 line breaks": (x509_jwk(x5c=[b64(CA.der)[:64] + "\n" + b64(CA.der)[64:]]), "x5c: is not standard"),
    "N-B-14 not ASCII": (x509_jwk(x5c=["é"]), "x5c: is not standard"),
    "N-B-14 not a certificate": (x509_jwk(x5c=[b64(b"x")]), "is not a readable X.509 certificate"),
    "N-B-14 number": (x509_jwk(x5c=[7]), "x5c: is not a base64 string"),
    "N-B-14 huge": (x509_jwk(x5c=["A" * 200_000]), "x5c: is not a base64 string"),
    "N-B-15 leaf": (
        {"use": "x509-svid", **key_to_jwk(LEAF.private_key.public_key()), "x5c": [b64(LEAF.chain[0])]},
        "not a CA that may sign",
    ),
    "N-B-15 no keyCertSign": (x509_jwk(SpiffeTestCA(usage=frozenset({"crl_sign"}))), "not a CA that may sign"),
    "N-B-15 no keyUsage": (x509_jwk(SpiffeTestCA(usage=None)), "not a CA that may sign"),
    "N-B-16": (x509_jwk(**key_to_jwk(JWT_KEY)), "holds another key"),
    "N-B-16 weak certificate key": (
        {
            "use": "x509-svid",
            **key_to_jwk(JWT_KEY),
            "x5c": [b64(SpiffeTestCA(key=ec.generate_private_key(ec.SECP256K1())).der)],
        },
        "secp256k1 is not allowed",
    ),
    "N-B-19 no kid": (jwt_jwk(kid=None), "kid: is missing"),
    "N-B-19 empty kid": (jwt_jwk(kid=""), "kid: is missing"),
    "N-B-19 numeric kid": (jwt_jwk(kid=7), "kid: is missing"),
    "N-B-19 wit-svid": (jwt_jwk(use="wit-svid", kid=None), "kid: is missing"),
    "N-B-19 huge kid": (jwt_jwk(kid="a" * 2000), "key_id: must have 1 to 1024 bytes"),
    "N-B-22 off the curve": (jwt_jwk(y="A" * 43), "not a point on the curve"),
    "N-B-22 wrong length": (jwt_jwk(x="AAAA"), "x: must have 32 bytes"),
    "N-B-22 RSA e=1": (jwt_jwk(**{**key_to_jwk(CA_2.key.public_key()), "e": "AQ"}), "not an RSA public key"),
    "N-B-22 RSA 512": (
        jwt_jwk(kty="RSA", n=b64(b"\xff" * 64).rstrip("=").replace("/", "_"), e="AQAB"),
        "RSA keys have",
    ),
    "N-B-23": (jwt_jwk(kty="oct", k="AAAA"), "ALARM"),
    "N-B-23 without k": (jwt_jwk(kty="oct"), "kty: is missing or not a kind"),
    "N-B-24 d": (jwt_jwk(d="AAAA"), "ALARM"),
    "N-B-24 p": (x509_jwk(p="AAAA"), "ALARM"),
}


@pytest.mark.parametrize(("jwk", "rule"), SKIPPED.values(), ids=SKIPPED)
def test_unusable_entries_are_skipped_and_the_rest_is_kept(jwk, rule):
    """N-B-09..24, TDB-13, TDB-18, TDB-20."""
    good_x509, good_jwt = x509_jwk(CA_2), jwt_jwk(kid="good")
    loaded = load_bundle(document(good_x509, jwk, good_jwt), TD)
    assert loaded.bundle.x509_roots == (CA_2.der,)
    assert [authority.key_id for authority in loaded.bundle.jwt_authorities] == ["good"]
    assert len(loaded.warnings) == 1
    assert loaded.warnings[0].startswith("keys[1] skipped: ")
    assert rule in loaded.warnings[0]


def test_no_keys_distrust_the_whole_domain():
    """N-B-07, TDB-14, TDB-15."""
    loaded = load_bundle(document(spiffe_sequence=9), TD)
    assert loaded.bundle == TrustBundle(TD, sequence=9)
    assert loaded.bundle.is_empty
    assert "no SVID of example.org will be trusted" in loaded.warnings[0]


def test_only_unknown_keys_distrust_the_whole_domain_too():
    """N-B-08."""
    loaded = load_bundle(document({"use": "x", "kty": "y"}, {"kty": "SCTS"}), TD)
    assert loaded.bundle.is_empty
    assert len(loaded.warnings) == 3


def test_of_several_certificates_the_first_is_used():
    """N-B-13, X509-42."""
    loaded = load_bundle(document(x509_jwk(x5c=[b64(CA.der), b64(CA_2.der)])), TD)
    assert loaded.bundle.x509_roots == (CA.der,)
    assert "only the first is used" in loaded.warnings[0]


def test_an_x509_entry_with_a_kid_is_accepted():
    """N-B-17: the publisher's fault, and ours to say."""
    loaded = load_bundle(document(x509_jwk(kid="x")), TD)
    assert loaded.bundle.x509_roots == (CA.der,)
    assert "kid: does not belong" in loaded.warnings[0]


def test_authorities_outside_their_validity_stay_in_the_set():
    """N-B-18: path validation decides when it is asked."""
    past = SpiffeTestCA(not_before=CA.now - timedelta(days=2), not_after=CA.now - timedelta(days=1))
    future = SpiffeTestCA(not_before=CA.now + timedelta(days=1), not_after=CA.now + timedelta(days=2))
    loaded = load_bundle(document(x509_jwk(past), x509_jwk(future)), TD)
    assert loaded.bundle.x509_roots == (past.der, future.der)
    assert loaded.warnings == ()


def test_two_keys_under_one_kid_are_both_skipped():
    """N-B-20: never pick silently; a third one does not bring the kid back."""
    other = {"use": "jwt-svid", "kid": "k1", **key_to_jwk(WIT_KEY)}
    loaded = load_bundle(document(jwt_jwk(), other, jwt_jwk(), jwt_jwk(kid="k2")), TD)
    assert [authority.key_id for authority in loaded.bundle.jwt_authorities] == ["k2"]
    assert all("stands for two keys" in warning for warning in loaded.warnings)
    assert len(loaded.warnings) == 2


def test_the_same_entry_twice_is_one():
    loaded = load_bundle(document(x509_jwk(), x509_jwk(), jwt_jwk(), jwt_jwk()), TD)
    assert len(loaded.bundle.x509_authorities) == len(loaded.bundle.jwt_authorities) == 1
    assert loaded.warnings == ()


def test_a_kid_of_a_jwt_key_and_of_a_wit_key_is_not_confused():
    """N-B-21: read into two tables; never published."""
    loaded = load_bundle(document(jwt_jwk(), {"use": "wit-svid", "kid": "k1", **key_to_jwk(WIT_KEY)}), TD)
    assert loaded.bundle.jwt_authorities == (JwtAuthority("k1", spki_der(JWT_KEY)),)
    assert loaded.bundle.wit_authorities == (WitAuthority("k1", spki_der(WIT_KEY)),)
    with pytest.raises(InvalidBundle, match="unique over JWT and WIT keys"):
        dump_bundle(loaded.bundle)


@pytest.mark.parametrize("text", ['"5"', "1.5", "1e3", "-1", str(2**64), "true", "null", "[]"])
def test_a_sequence_that_is_no_integer_counts_as_absent(text):
    """N-B-25, TDB-06."""
    loaded = load_bundle(b'{"keys":[],"spiffe_sequence":' + text.encode() + b"}", TD)
    assert loaded.bundle.sequence == 0
    assert "spiffe_sequence: is not an integer" in loaded.warnings[0]


@pytest.mark.parametrize("sequence", [0, 1, 2**53 + 1, 2**63 - 1, MAX_SEQUENCE])
def test_a_sequence_keeps_64_bits(sequence):
    """TDB-08."""
    loaded = load_bundle(document(spiffe_sequence=sequence), TD)
    assert loaded.bundle.sequence == sequence
    assert json.loads(dump_bundle(loaded.bundle))["spiffe_sequence"] == sequence


@pytest.mark.parametrize(
    ("text", "seconds", "warned"),
    [
        ("0", 300, False),
        ("1", 60, False),
        ("300", 300, False),
        ("-1", 300, True),
        ('"300"', 300, True),
        ("1.5", 300, True),
        ("1000000000000", 86400, True),
    ],
)
def test_a_hint_is_taken_within_reason(text, seconds, warned):
    """N-B-28, TDB-11."""
    loaded = load_bundle(b'{"keys":[],"spiffe_refresh_hint":' + text.encode() + b"}", TD)
    assert poll_interval(loaded.bundle.refresh_hint) == timedelta(seconds=seconds)
    assert ("spiffe_refresh_hint" in loaded.warnings[0]) is warned


def test_unknown_members_are_ignored():
    """N-B-30, TDB-03, TDB-04."""
    loaded = load_bundle(document(x509_jwk(x_note="x", alg="ES256"), x_note={"a": [1]}), TD)
    assert loaded.bundle.x509_roots == (CA.der,)
    assert loaded.warnings == ()


def test_warnings_are_bounded():
    loaded = load_bundle(document(*[{}] * MAX_AUTHORITIES), TD)
    assert len(loaded.warnings) == MAX_WARNINGS


def test_the_domain_is_the_callers_word():
    """N-B-38, TDB-01: a document does not say whose it is."""
    assert load_bundle(GOOD, OTHER_TD).bundle.trust_domain == OTHER_TD


FULL = TrustBundle(
    TD,
    (X509Authority(CA.der), X509Authority(CA_2.der)),
    (JwtAuthority("j", spki_der(JWT_KEY)),),
    (WitAuthority("w", spki_der(WIT_KEY)),),
    12,
    300,
)


def test_the_published_document_has_the_members_of_the_standard_and_no_others():
    """X509-36..39, TDB-05..17, TDB-10, TDB-17, TDB-19, WIT-36."""
    published = json.loads(dump_bundle(FULL))
    assert published.keys() == {"keys", "spiffe_sequence", "spiffe_refresh_hint"}
    ec_entry, rsa_entry, jwt_entry, wit_entry = published["keys"]
    assert ec_entry.keys() == {"use", "kty", "crv", "x", "y", "x5c"}
    assert rsa_entry.keys() == {"use", "kty", "n", "e", "x5c"}
    assert jwt_entry.keys() == wit_entry.keys() == {"use", "kid", "kty", "crv", "x", "y"}
    assert [entry["use"] for entry in published["keys"]] == ["x509-svid", "x509-svid", "jwt-svid", "wit-svid"]
    assert [base64.b64decode(text, validate=True) for text in ec_entry["x5c"]] == [CA.der]
    assert (jwt_entry["kid"], wit_entry["kid"]) == ("j", "w")
    assert (published["spiffe_sequence"], published["spiffe_refresh_hint"]) == (12, 300)


def test_an_empty_bundle_is_published_with_an_empty_array():
    """TDB-12."""
    assert dump_bundle(TrustBundle(TD)) == b'{"keys":[],"spiffe_sequence":0}'


def test_a_document_survives_reading_and_writing():
    assert load_bundle(dump_bundle(FULL), TD).bundle == FULL


def test_a_map_survives_without_its_hints():
    """TDB-21, TDB-25, N-B-37."""
    other = TrustBundle(OTHER_TD, (X509Authority(SpiffeTestCA("fed.test").der),), sequence=2, refresh_hint=60)
    data = dump_bundle_map([FULL, other])
    assert b"hint" not in data
    loaded = load_bundle_map(data)
    assert loaded.keys() == {TD, OTHER_TD}
    assert loaded[OTHER_TD].bundle.x509_roots == other.x509_roots
    assert load_bundle_map(b'{"trust_domains":{}}') == {}


def test_a_hint_inside_a_map_changes_nothing():
    """N-B-37, TDB-26."""
    data = b'{"trust_domains":{"fed.test":{"keys":[],"spiffe_refresh_hint":1}}}'
    assert load_bundle_map(data)[OTHER_TD].bundle.refresh_hint == 0


def test_a_map_may_be_empty():
    """TDB-22."""
    assert load_bundle_map(b'{"trust_domains":{}}') == {}


def test_a_map_has_each_domain_once():
    """TDB-23."""
    with pytest.raises(InvalidBundle, match="two bundles of one trust domain"):
        dump_bundle_map([FULL, FULL])


EMPTY = b'{"keys":[]}'
BAD_MAPS = {
    "N-B-32 a name twice": (b'{"trust_domains":{"a":%b,"a":%b}}' % (EMPTY, EMPTY), InvalidBundle, "given twice"),
    "N-B-33 no member": (b"{}", InvalidBundle, "trust_domains: is missing"),
    "N-B-33 array": (b'{"trust_domains":[]}', InvalidBundle, "trust_domains: is missing"),
    "N-B-34 a URI": (b'{"trust_domains":{"spiffe://a":%b}}' % EMPTY, InvalidId, "write the bare trust domain name"),
    "N-B-34 upper case": (b'{"trust_domains":{"A.org":%b}}' % EMPTY, InvalidId, "write 'a.org'"),
    "N-B-34 a port": (b'{"trust_domains":{"a:80":%b}}' % EMPTY, InvalidId, "a port is not allowed"),
    "N-B-36 one bad bundle": (b'{"trust_domains":{"a":%b,"b":{}}}' % EMPTY, InvalidBundle, "keys: is missing"),
    "N-B-36 not an object": (b'{"trust_domains":{"a":%b,"b":7}}' % EMPTY, InvalidBundle, "b: is not an object"),
    "too many": (
        json.dumps({"trust_domains": {f"d{n}": 0 for n in range(MAX_TRUST_DOMAINS + 1)}}).encode(),
        InvalidBundle,
        "at most 20000",
    ),
    "too large": (b" " * (MAX_MAP_BYTES + 1), InvalidBundle, "has more than"),
}


@pytest.mark.parametrize(("data", "error", "rule"), BAD_MAPS.values(), ids=BAD_MAPS)
def test_bad_maps_are_refused_as_a_unit(data, error, rule):
    """TDB-24, TDB-29."""
    assert TrustDomain("a") in load_bundle_map(b'{"trust_domains":{"a":%b}}' % EMPTY)
    with pytest.raises(error) as refusal:
        load_bundle_map(data)
    assert rule in refusal.value.public


def test_the_own_bundle_is_not_taken_from_somebody_elses_map():
    """N-B-35."""
    data = b'{"trust_domains":{"example.org":%b,"fed.test":%b}}' % (EMPTY, EMPTY)
    assert load_bundle_map(data, own=TD).keys() == {OTHER_TD}


def test_pem_survives_with_text_around_it():
    loaded = load_bundle_pem(b"our roots\n" + dump_bundle_pem(FULL) + b"\n# end\n", TD)
    assert loaded.bundle == TrustBundle(TD, FULL.x509_authorities)
    assert loaded.warnings == ()
    assert load_bundle_pem(dump_bundle_pem(FULL).replace(b"\n", b"\r\n") * 2, TD).bundle.x509_roots == FULL.x509_roots


PEM = dump_bundle_pem(FULL)
KEY_PEM = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
BAD_PEMS = {
    "nothing": (b"", "must hold CERTIFICATE blocks"),
    "DER": (CA.der, "must hold CERTIFICATE blocks"),
    "a key beside": (PEM + KEY_PEM, "must hold CERTIFICATE blocks in PEM and no others"),
    "a block without end": (PEM[:-10], "and no others"),
    "padding in the middle": (
        b"-----BEGIN CERTIFICATE-----\nA=AA\n-----END CERTIFICATE-----\n",
        "PEM block 1 is not base64",
    ),
    "not a certificate": (
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "PEM block 1: x509_authorities: is not a readable",
    ),
    "a leaf": (PEM + LEAF.leaf.public_bytes(Encoding.PEM), "PEM block 3: the certificate is not a CA"),
    "too large": (b" " * (MAX_DOCUMENT_BYTES + 1), "has more than"),
}


@pytest.mark.parametrize(("data", "rule"), BAD_PEMS.values(), ids=BAD_PEMS)
def test_bad_pem_is_refused(data, rule):
    """What an operator trusts by hand is read strictly: a typo must not become a smaller trust set."""
    with pytest.raises(InvalidBundle) as refusal:
        load_bundle_pem(data, TD)
    assert rule in refusal.value.public
