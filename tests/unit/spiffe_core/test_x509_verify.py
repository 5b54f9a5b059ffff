"""Path validation: every N-X case that a pure function can decide (S4; the public vectors: interop/test_limbo.py).

Each case is a story told to one small world: a CA, its bundle, and what a peer presents. The good chain is verified
before and after, so that a refusal is about the fault and not about the world.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from spiffe_core.bundle import TrustBundle, X509Authority
from spiffe_core.crypto.keys import spki_der
from spiffe_core.errors import Kind, Reason, VerificationFailed
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.x509_verify import MAX_NAMES, verify_x509_svid
from tests.authority import (
    CLIENT_AUTH,
    SERVER_AUTH,
    SpiffeTestCA,
    compressed_spki,
    explicit_spki,
    resigned,
    tlv,
    trusting,
)

NOW = datetime(2030, 6, 1, 12, 0, tzinfo=UTC)
TD, FED = TrustDomain("example.org"), TrustDomain("fed.test")
ID = SpiffeId(TD, "/workload")

ROOT = SpiffeTestCA(name="root", now=NOW)
RSA_ROOT = SpiffeTestCA(name="rsa root", now=NOW, key=rsa.generate_private_key(65537, 2048))
MIDDLE = ROOT.intermediate(name="middle")
STRANGER = SpiffeTestCA(name="root", now=NOW)  # the same name, another key
FED_ROOT = SpiffeTestCA("fed.test", name="fed", now=NOW)
GOOD = ROOT.issue()

BUNDLES = trusting(ROOT.bundle(RSA_ROOT), FED_ROOT.bundle())
UNKNOWN = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)
SAN_OID, OTHER_OID = bytes.fromhex("0603551d11"), bytes.fromhex("0603551d63")
OID_RSA = bytes.fromhex("2a864886f70d0101")


def verify(chain, bundles=BUNDLES, now=NOW, **options):
    return verify_x509_svid(chain, bundles, now=now, **options)


def refused(chain, bundles=BUNDLES, now=NOW, **options) -> VerificationFailed:
    """The refusal of `chain`, with the good chain accepted before and after in the same world."""
    assert verify(GOOD.chain).spiffe_id == ID
    with pytest.raises(VerificationFailed) as refusal:
        verify(chain, bundles, now, **options)
    assert refusal.value.kind is Kind.UNAUTHENTICATED
    assert verify(GOOD.chain).spiffe_id == ID
    return refusal.value


def leaf(**spoil):
    return ROOT.issue(**spoil).chain


def below(signer=ROOT, leaf_spoil=None, **ca_spoil):
    return signer.intermediate(name="spoiled", **ca_spoil).issue(**(leaf_spoil or {})).chain


def under_root(**ca_spoil):
    """A leaf right under a spoiled root, and the look-up that trusts this root."""
    root = SpiffeTestCA(name="spoiled root", now=NOW, **ca_spoil)
    return root.issue().chain, trusting(root.bundle())


def flipped(der: bytes, position: int) -> bytes:
    at = position % len(der)
    return der[:at] + bytes([der[at] ^ 1]) + der[at + 1 :]


def duplicated_san() -> tuple[bytes, ...]:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), b"\x30\x00")
    return (resigned(leaf(extensions=((unknown, False),))[0], ROOT.key, (OTHER_OID, SAN_OID)),)


def weak_rsa_signature(last: int) -> tuple[bytes, ...]:
    good = RSA_ROOT.issue().chain[0]
    return (resigned(good, RSA_ROOT.key, (OID_RSA + b"\x0b", OID_RSA + bytes([last]))),)


def constrained(*permitted: x509.GeneralName):
    return x509.NameConstraints(list(permitted), None)


HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SIMPLE = {
    "N-X-01": (STRANGER.issue().chain, Reason.UNKNOWN_AUTHORITY),
    "N-X-01 without key identifiers": (STRANGER.issue(key_ids=False).chain, Reason.BAD_SIGNATURE),
    "N-X-02 leaf": (leaf(not_before=NOW - DAY, not_after=NOW - HOUR), Reason.EXPIRED),
    "N-X-02 intermediate": (below(not_before=NOW - DAY, not_after=NOW - HOUR), Reason.EXPIRED),
    "N-X-04": (leaf(not_before=NOW + HOUR, not_after=NOW + DAY), Reason.NOT_YET_VALID),
    "N-X-05 signature": ((flipped(GOOD.chain[0], -1),), Reason.BAD_SIGNATURE),
    "N-X-05 body": (
        (GOOD.chain[0].replace(b"spiffe://example.org/workload", b"spiffe://example.org/workloae"),),
        Reason.BAD_SIGNATURE,
    ),
    "N-X-06": (leaf(ca=True), Reason.NOT_A_LEAF),
    "N-X-07": (leaf(usage=frozenset({"digital_signature", "key_cert_sign"})), Reason.NOT_A_LEAF),
    "N-X-08": (leaf(usage=frozenset({"digital_signature", "crl_sign"})), Reason.NOT_A_LEAF),
    "N-X-09": (leaf(uris=("spiffe://example.org/a", "spiffe://example.org/b")), Reason.BAD_SPIFFE_ID),
    "N-X-09 same": (leaf(uris=("spiffe://example.org/a",) * 2), Reason.BAD_SPIFFE_ID),
    "N-X-10": (leaf(uris=("spiffe://example.org/a", "https://example.org/b")), Reason.BAD_SPIFFE_ID),
    "N-X-10 reverse": (leaf(uris=("https://example.org/b", "spiffe://example.org/a")), Reason.BAD_SPIFFE_ID),
    "N-X-11": (leaf(uris=(), subject=(("CN", "spiffe://example.org/a"),)), Reason.NO_SPIFFE_ID),
    "N-X-12": (leaf(uris=(), dns=("web.example.org",)), Reason.NO_SPIFFE_ID),
    "N-X-13": (leaf(uris=("https://example.org/w",)), Reason.BAD_SPIFFE_ID),
    "N-X-15": (leaf(uris=("spiffe://example.org",)), Reason.BAD_SPIFFE_ID),
    "N-X-16": (leaf(uris=(), dns=("spiffe://example.org/a",)), Reason.NO_SPIFFE_ID),
    "N-X-17": (duplicated_san(), Reason.MALFORMED),
    "N-X-18": (ROOT.issue("spiffe://fed.test/w").chain, Reason.UNKNOWN_AUTHORITY),
    "N-X-19": (SpiffeTestCA("nobody.test", now=NOW).issue().chain, Reason.NO_BUNDLE),
    "N-X-21": (MIDDLE.issue().chain[:1], Reason.UNKNOWN_AUTHORITY),
    "N-X-22 not a CA": (below(ca=False), Reason.BAD_CA),
    "N-X-22 no basicConstraints": (below(ca=None), Reason.BAD_CA),
    "N-X-22 no keyCertSign": (below(usage=frozenset({"crl_sign"})), Reason.BAD_CA),
    "N-X-22 no keyUsage": (below(usage=None), Reason.BAD_CA),
    "N-X-23": (
        ROOT.intermediate(name="a", path_length=0).intermediate(name="b").issue().chain,
        Reason.PATH_TOO_LONG,
    ),
    "N-X-24 leaf": (leaf(extensions=(UNKNOWN,)), Reason.UNKNOWN_CRITICAL),
    "N-X-24 intermediate": (below(extensions=(UNKNOWN,)), Reason.UNKNOWN_CRITICAL),
    "N-X-25 excluded": (
        below(constraints=constrained(x509.UniformResourceIdentifier("other.org"))),
        Reason.NAME_CONSTRAINT,
    ),
    "N-X-25 not understood": (below(constraints=constrained(x509.RFC822Name("a.org"))), Reason.NAME_CONSTRAINT),
    "N-X-27 missing": (leaf(usage=None), Reason.KEY_USAGE),
    "N-X-27 not critical": (leaf(usage_critical=False), Reason.KEY_USAGE),
    "N-X-27 no digitalSignature": (leaf(usage=frozenset({"key_encipherment"})), Reason.KEY_USAGE),
    "N-X-29 any": (leaf(eku=(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)), Reason.EXTENDED_KEY_USAGE),
    "N-X-29 code signing": (leaf(eku=(ExtendedKeyUsageOID.CODE_SIGNING,)), Reason.EXTENDED_KEY_USAGE),
    "N-X-29 intermediate": (below(eku=(ExtendedKeyUsageOID.CODE_SIGNING,)), Reason.EXTENDED_KEY_USAGE),
    "N-X-31 RSA 1024": (leaf(key=rsa.generate_private_key(65537, 1024)), Reason.WEAK_ALGORITHM),
    "N-X-31 exponent 3": (leaf(key=rsa.generate_private_key(3, 2048)), Reason.WEAK_ALGORITHM),
    "N-X-31 secp256k1": (leaf(key=ec.generate_private_key(ec.SECP256K1())), Reason.WEAK_ALGORITHM),
    "N-X-31 P-192": (leaf(key=ec.generate_private_key(ec.SECP192R1())), Reason.WEAK_ALGORITHM),
    "N-X-31 Ed25519": (leaf(key=ed25519.Ed25519PrivateKey.generate()), Reason.WEAK_ALGORITHM),
    "N-X-31 weak intermediate": (
        below(key=ec.generate_private_key(ec.SECP256K1())),
        Reason.WEAK_ALGORITHM,
    ),
    "N-X-31 SHA-1": (weak_rsa_signature(0x05), Reason.WEAK_ALGORITHM),
    "N-X-31 MD5": (weak_rsa_signature(0x04), Reason.WEAK_ALGORITHM),
    "N-X-32 root": ((ROOT.der,), Reason.NOT_A_LEAF),
    "N-X-32 intermediate": (MIDDLE.chain, Reason.NOT_A_LEAF),
    "N-X-36 indefinite length": ((b"\x30\x80" + GOOD.chain[0][4:] + b"\x00\x00",), Reason.MALFORMED),
    "N-X-36 trailing bytes": ((GOOD.chain[0] + b"\x00",), Reason.MALFORMED),
    "no chain": ((), Reason.EMPTY_CHAIN),
    "an empty certificate": ((b"",), Reason.MALFORMED),
    "a presented root that nobody trusts": ((*STRANGER.issue().chain, STRANGER.der), Reason.UNKNOWN_AUTHORITY),
}


@pytest.mark.parametrize(("chain", "reason"), SIMPLE.values(), ids=SIMPLE)
def test_bad_chains_are_refused_with_the_reason(chain, reason):
    assert refused(chain).reason is reason


MALFORMED_URIS = [
    (vector["id"], text)
    for vector in json.loads((Path(__file__).parents[2] / "vectors" / "spiffe_ids.json").read_text("utf-8"))
    for text in vector["inputs"]
    if text.isascii() and text
]


@pytest.mark.parametrize(("case", "uri"), MALFORMED_URIS, ids=[f"N-X-14 {case}" for case, _ in MALFORMED_URIS])
def test_a_malformed_id_in_the_san_is_no_identity(case, uri):
    """N-X-14, N-ID-08, N-ID-09: each malformed ID, inside an SVID that is good otherwise."""
    assert refused(leaf(uris=(uri,))).reason is Reason.BAD_SPIFFE_ID, case


def test_an_id_of_other_letters_in_the_san_is_no_identity():
    """N-X-14 with N-ID-14 and N-ID-29: UTF-8 where ASCII belongs, and bytes that are not even UTF-8."""
    for tail, reason in ((b"\xc3\xa9", Reason.BAD_SPIFFE_ID), (b"\xff\xfe", Reason.MALFORMED)):
        name = b"spiffe://example.org/workload"
        der = resigned(GOOD.chain[0], ROOT.key, (name, name[:-2] + tail))
        assert refused((der,)).reason is reason


def test_an_expired_root_is_no_anchor():
    """N-X-03."""
    chain, bundles = under_root(not_before=NOW - 2 * DAY, not_after=NOW - DAY)
    assert refused(chain, bundles).reason is Reason.EXPIRED


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"ca": False}, Reason.BAD_CA),
        ({"usage": frozenset({"crl_sign"})}, Reason.BAD_CA),
        ({"extensions": (UNKNOWN,)}, Reason.UNKNOWN_CRITICAL),
        ({"eku": (ExtendedKeyUsageOID.CODE_SIGNING,)}, Reason.EXTENDED_KEY_USAGE),
        ({"key": ec.generate_private_key(ec.SECP256K1())}, Reason.WEAK_ALGORITHM),
        ({"constraints": constrained(x509.UniformResourceIdentifier("other.org"))}, Reason.NAME_CONSTRAINT),
    ],
    ids=["not a CA", "no keyCertSign", "unknown extension", "EKU", "weak key", "name constraint"],
)
def test_anchors_keep_the_rules_of_authorities(spoil, reason):
    """N-X-22, 24, 25, 31 for the root itself."""
    chain, bundles = under_root(**spoil)
    assert refused(chain, bundles).reason is reason


def test_only_the_bundle_of_the_own_trust_domain_counts():
    """N-X-18, ID-28, FED-12: both bundles are loaded; each CA speaks for its own domain only."""
    assert str(verify(FED_ROOT.issue("spiffe://fed.test/w").chain).spiffe_id) == "spiffe://fed.test/w"
    assert refused(ROOT.issue("spiffe://fed.test/w").chain).reason is Reason.UNKNOWN_AUTHORITY
    assert refused(FED_ROOT.issue("spiffe://example.org/w").chain).reason is Reason.UNKNOWN_AUTHORITY


def test_a_look_up_that_answers_with_another_domains_bundle_is_not_believed():
    """TDB-01: the caller's mistake must not become a cross-domain trust."""
    assert refused(GOOD.chain, lambda _: FED_ROOT.bundle()).reason is Reason.NO_BUNDLE


def test_an_empty_bundle_distrusts_the_whole_domain():
    """N-X-20, TDB-15."""
    assert refused(GOOD.chain, trusting(TrustBundle(TD, sequence=9))).reason is Reason.EMPTY_BUNDLE


def test_a_foreign_intermediate_verifies_with_a_note_unless_policy_forbids_it():
    """N-X-26: allowed by X509-11; the log hears of it."""
    chain = ROOT.intermediate("other.org", name="foreign").issue("spiffe://example.org/w").chain
    assert "another trust domain" in verify(chain).notes[0]
    assert refused(chain, same_domain_cas=True).reason is Reason.BAD_CA
    assert verify(MIDDLE.issue().chain, same_domain_cas=True).notes == ()


def test_anchors_without_or_with_a_sloppy_san_are_anchors():
    """N-ID-07, D2, D3, X509-08."""
    for uris in ((), ("spiffe://example.org/",), ("https://ca.example.org/",)):
        chain, bundles = under_root(uris=uris)
        assert verify(chain, bundles, same_domain_cas=True).notes == ()


@pytest.mark.parametrize(
    ("eku", "accepted"),
    [
        ((SERVER_AUTH, CLIENT_AUTH), {"client", "server", None}),
        ((SERVER_AUTH,), {"server", None}),
        ((CLIENT_AUTH,), {"client", None}),
        (None, {"client", "server", None}),
    ],
    ids=["both", "server only", "client only", "no EKU"],
)
def test_the_extended_key_usage_decides_the_role(eku, accepted):
    """N-X-28, for the leaf and inherited from an intermediate."""
    for chain in (leaf(eku=eku), below(eku=eku)):
        for purpose in ("client", "server", None):
            if purpose in accepted:
                assert verify(chain, purpose=purpose).spiffe_id == ID
            else:
                assert refused(chain, purpose=purpose).reason is Reason.EXTENDED_KEY_USAGE


def test_a_ca_for_any_use_allows_every_role():
    chain = below(eku=(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,))
    assert verify(chain, purpose="client").spiffe_id == ID


def test_an_empty_subject_with_a_san_that_is_not_critical_is_noted():
    """N-X-30: accepted with a warning, the documented choice."""
    assert verify(leaf(subject=())).notes == ()
    assert "the subject is empty" in verify(leaf(subject=(), san_critical=False)).notes[0]


def test_a_self_signed_leaf_in_the_bundle_is_no_anchor():
    """N-X-33: cA=FALSE never anchors anything."""
    own = SpiffeTestCA(name="lonely", now=NOW, ca=False, usage=frozenset({"digital_signature"}))
    own = SpiffeTestCA(
        name="lonely",
        now=NOW,
        key=own.key,
        ca=False,
        usage=frozenset({"digital_signature"}),
        uris=("spiffe://example.org/w",),
    )
    mistaken = TrustBundle(TD, (X509Authority(own.der), X509Authority(ROOT.der)))
    assert refused((own.der,), trusting(mistaken)).reason is Reason.BAD_CA


def test_oversize_chains_are_refused_in_bounded_time():
    """N-X-35: fifty certificates, a megabyte of one, ten thousand names."""
    many = leaf(dns=tuple(f"n{number}.example.org" for number in range(10_000)))
    started = time.perf_counter()
    assert refused(GOOD.chain * 50).reason is Reason.TOO_LARGE
    assert refused((GOOD.chain[0], b"\x30" * 1_000_000)).reason is Reason.TOO_LARGE
    assert refused(many).reason is Reason.TOO_LARGE
    assert time.perf_counter() - started < 1


def test_the_number_of_names_is_bounded_below_the_size():
    assert verify(leaf(dns=tuple(f"n{n}.o" for n in range(MAX_NAMES - 1)))).spiffe_id == ID
    assert refused(leaf(dns=tuple(f"n{n}.o" for n in range(MAX_NAMES)))).reason is Reason.TOO_LARGE


def test_a_maze_of_cross_certificates_is_left_after_a_bounded_number_of_signatures():
    """N-X-35: nine certificates of one name and key offer 9! paths; sixty-four signatures are tried."""
    maze = SpiffeTestCA(name="maze", now=NOW)
    walls = tuple(SpiffeTestCA(name="maze", now=NOW, key=maze.key).der for _ in range(9))
    started = time.perf_counter()
    assert refused((*maze.issue(key_ids=False).chain, *walls)).reason is Reason.TOO_LARGE
    assert time.perf_counter() - started < 1


def test_right_authentication_and_wrong_identity_are_two_answers():
    """N-X-39."""
    verified = verify(GOOD.chain)
    verified.require(ID)
    with pytest.raises(VerificationFailed) as refusal:
        verified.require(SpiffeId(TD, "/other"))
    assert refusal.value.reason is Reason.UNEXPECTED_ID
    with pytest.raises(VerificationFailed):
        verified.require(SpiffeId(TD, "/Workload"))  # N-ID-30


def test_the_verified_path_is_reported():
    verified = verify(GOOD.chain)
    assert verified.leaf_der == GOOD.chain[0]
    assert verified.anchor_der == ROOT.der
    assert verified.not_after == NOW + HOUR
    assert "leaf_der" not in repr(verified)


def test_the_earliest_end_on_the_path_counts():
    chain = below(not_after=NOW + timedelta(minutes=10))
    assert verify(chain).not_after == NOW + timedelta(minutes=10)


def test_a_chain_of_intermediates_verifies_in_any_order_and_with_the_root():
    """X509-11, XV-2."""
    deep = ROOT.intermediate(name="a").intermediate(name="b").issue().chain
    assert verify(deep).anchor_der == ROOT.der
    assert verify((deep[0], deep[2], deep[1])).anchor_der == ROOT.der
    assert verify((*deep, ROOT.der)).anchor_der == ROOT.der
    assert verify(ROOT.intermediate(name="a", path_length=0).issue().chain).spiffe_id == ID


def test_an_intermediate_may_be_the_anchor():
    anchored = trusting(TrustBundle(TD, (X509Authority(MIDDLE.der),)))
    assert verify(MIDDLE.issue().chain, anchored).anchor_der == MIDDLE.der


def test_two_roots_of_one_name_do_not_confuse_each_other():
    """A rotated root keeps its name: both are tried, and the one that fits is found."""
    twins = trusting(STRANGER.bundle(ROOT))
    assert verify(GOOD.chain, twins).anchor_der == ROOT.der
    assert verify(STRANGER.issue().chain, twins).anchor_der == STRANGER.der
    assert verify(leaf(key_ids=False), twins).anchor_der == ROOT.der


def test_self_issued_intermediates_do_not_count_for_the_path_length():
    """RFC 5280 section 4.2.1.9: a key roll-over certificate in between is free, and exempt from name constraints."""
    top = SpiffeTestCA(
        name="rolling",
        now=NOW,
        path_length=0,
        constraints=x509.NameConstraints([x509.UniformResourceIdentifier("example.org")], None),
    )
    rolled = top.intermediate("example.org", name="rolling", uris=("spiffe://elsewhere.org",))
    assert verify(rolled.issue().chain, trusting(top.bundle())).spiffe_id == ID


def test_constraints_that_permit_the_id_let_it_pass():
    """X509-17: the other side of N-X-25."""
    chain = below(constraints=constrained(x509.UniformResourceIdentifier("example.org")))
    assert verify(chain).spiffe_id == ID


def test_validity_includes_both_ends():
    """RFC 5280 section 4.1.2.5."""
    chain = leaf(not_before=NOW, not_after=NOW + HOUR)
    assert verify(chain, now=NOW).spiffe_id == ID
    assert verify(chain, now=NOW + HOUR).spiffe_id == ID
    for moment, reason in (
        (NOW - timedelta(seconds=1), Reason.NOT_YET_VALID),
        (NOW + HOUR + timedelta(seconds=1), Reason.EXPIRED),
    ):
        assert refused(chain, now=moment).reason is reason


def test_a_key_that_cannot_be_read_is_a_weak_one():
    point = tlv(0x03, b"\x00" + GOOD.leaf.public_key().public_bytes(*_uncompressed()))
    broken = resigned(GOOD.chain[0], ROOT.key, (point[-64:], b"\x01" * 64))
    assert refused((broken,)).reason is Reason.WEAK_ALGORITHM


def _uncompressed():

    return Encoding.X962, PublicFormat.UncompressedPoint


def with_key(der, signer, spki):
    """A P-256 certificate whose key is spelled as `spki`, signed again."""
    old = spki_der(x509.load_der_x509_certificate(der).public_key())
    tbs = x509.load_der_x509_certificate(der).tbs_certificate_bytes
    header = 4 if tbs[1] == 0x82 else 3
    body = tlv(0x30, tbs[header:].replace(old, spki))
    algorithm = tlv(0x30, bytes.fromhex("06082a8648ce3d040302"))
    return tlv(0x30, body + algorithm + tlv(0x03, b"\0" + signer.sign(body, ec.ECDSA(hashes.SHA256()))))


@pytest.mark.parametrize(
    "spelled", [explicit_spki, compressed_spki], ids=["explicit curve parameters", "compressed point"]
)
def test_an_ec_key_in_another_spelling_is_refused_wherever_it_stands(spelled):
    """S4, S28, RFC 5480 section 2.1.1: in the leaf, in a CA between, in the authority itself (CVE-2020-0601's class)."""
    spoiled = with_key(GOOD.chain[0], ROOT.key, spelled(GOOD.private_key))
    assert with_key(GOOD.chain[0], ROOT.key, spki_der(GOOD.private_key.public_key())) != spoiled
    middle = MIDDLE.issue()
    between = with_key(MIDDLE.der, ROOT.key, spelled(MIDDLE.key))
    root = with_key(ROOT.der, ROOT.key, spelled(ROOT.key))
    lookup = trusting(TrustBundle(TD, (X509Authority(root),)))
    for chain, bundles in (((spoiled,), BUNDLES), ((middle.chain[0], between), BUNDLES), (GOOD.chain, lookup)):
        failure = refused(chain, bundles)
        assert (failure.reason, "must name its curve" in failure.public) == (Reason.WEAK_ALGORITHM, True)
