"""X509-SVIDs: the rules for leaves, and loading one's own."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from spiffe_core.crypto.keys import KeyKind, PrivateKeyDer, generate, to_pkcs8
from spiffe_core.errors import InvalidCertificate, Reason, VerificationFailed
from spiffe_core.x509_svid import MAX_CHAIN, X509Svid, check_leaf, leaf_spiffe_id
from tests.authority import SpiffeTestCA, resigned

CA = SpiffeTestCA()
ID = "spiffe://example.org/workload"

LEAF_FAULTS = {
    "N-X-06 a CA": ({"ca": True}, Reason.NOT_A_LEAF),
    "N-X-07 keyCertSign": ({"usage": frozenset({"digital_signature", "key_cert_sign"})}, Reason.NOT_A_LEAF),
    "N-X-08 cRLSign": ({"usage": frozenset({"digital_signature", "crl_sign"})}, Reason.NOT_A_LEAF),
    "N-X-09 two SPIFFE IDs": ({"uris": (ID, "spiffe://example.org/other")}, Reason.BAD_SPIFFE_ID),
    "N-X-09 one ID twice": ({"uris": (ID, ID)}, Reason.BAD_SPIFFE_ID),
    "N-X-10 another URI behind": ({"uris": (ID, "https://example.org/")}, Reason.BAD_SPIFFE_ID),
    "N-X-10 another URI before": ({"uris": ("https://example.org/", ID)}, Reason.BAD_SPIFFE_ID),
    "N-X-11 no SAN": ({"uris": (), "subject": (("CN", ID),)}, Reason.NO_SPIFFE_ID),
    "N-X-12 DNS only": ({"uris": (), "dns": ("example.org",)}, Reason.NO_SPIFFE_ID),
    "N-X-13 https": ({"uris": ("https://example.org/w",)}, Reason.BAD_SPIFFE_ID),
    "N-X-15 no path": ({"uris": ("spiffe://example.org",)}, Reason.BAD_SPIFFE_ID),
    "N-X-16 as otherName": (
        {"uris": (), "other_names": [x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x0c\x01x")]},
        Reason.NO_SPIFFE_ID,
    ),
    "N-X-16 as DNS name": ({"uris": (), "dns": (ID,)}, Reason.NO_SPIFFE_ID),
    "N-X-27 no keyUsage": ({"usage": None}, Reason.KEY_USAGE),
    "N-X-27 keyUsage not critical": ({"usage_critical": False}, Reason.KEY_USAGE),
    "N-X-27 no digitalSignature": ({"usage": frozenset({"key_agreement"})}, Reason.KEY_USAGE),
}


@pytest.mark.parametrize(("spoil", "reason"), LEAF_FAULTS.values(), ids=LEAF_FAULTS)
def test_leaves_that_break_a_rule_are_refused_with_the_reason(spoil, reason):
    assert str(check_leaf(CA.issue().leaf)) == ID
    with pytest.raises(VerificationFailed) as refusal:
        check_leaf(CA.issue(**spoil).leaf)
    assert refusal.value.reason is reason


@pytest.mark.parametrize(
    "spoil",
    [
        {"ca": None},
        {"usage": frozenset({"digital_signature", "key_encipherment", "key_agreement"})},
        {"eku": None},
        {"subject": ()},
        {"dns": ("a.org", "b.org"), "other_names": [x509.RFC822Name("a@b.org")]},
    ],
    ids=["no basicConstraints", "X509-23 key agreement", "no EKU", "X509-06 no subject", "X509-03 other names"],
)
def test_leaves_with_unusual_but_allowed_content_are_accepted(spoil):
    assert str(check_leaf(CA.issue(**spoil).leaf)) == ID


def test_the_id_of_a_certificate_can_be_asked_alone():
    assert str(leaf_spiffe_id(CA.issue().leaf)) == ID


def test_a_certificate_whose_extensions_cannot_be_read_is_malformed():
    """N-X-17."""
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), b"\x30\x00")
    der = CA.issue(extensions=((unknown, False),)).chain[0]
    twice = resigned(der, CA.key, (bytes.fromhex("0603551d63"), bytes.fromhex("0603551d11")))
    with pytest.raises(VerificationFailed) as refusal:
        leaf_spiffe_id(x509.load_der_x509_certificate(twice))
    assert refusal.value.reason is Reason.MALFORMED


def test_an_svid_is_loaded_with_its_key():
    issued = CA.intermediate().issue()
    svid = X509Svid.load(issued.chain, issued.key, hint="internal")
    assert str(svid.spiffe_id) == ID
    assert svid.chain == issued.chain
    assert svid.key == issued.key
    assert svid.not_after == issued.not_after
    assert svid.not_before < svid.not_after
    assert svid.hint == "internal"
    assert X509Svid.load(issued.chain, issued.key.reveal(), hint="internal") == svid


def test_the_key_does_not_show():
    issued = CA.issue()
    assert "<private key>" in repr(issued.svid)
    assert "chain" not in repr(issued.svid)


GOOD = CA.issue()
OWN = CA.intermediate()
BAD_LOADS = {
    "no chain": ((), GOOD.key, "chain", "1 to 10 certificates"),
    "too many certificates": (GOOD.chain * (MAX_CHAIN + 1), GOOD.key, "chain", "1 to 10 certificates"),
    "N-XW-03 PEM": ((GOOD.leaf.public_bytes(Encoding.PEM),), GOOD.key, "chain", "is not a readable"),
    "N-XW-03 truncated": ((GOOD.chain[0][:-1],), GOOD.key, "chain", "is not a readable"),
    "N-XW-03 root first": ((CA.der, GOOD.chain[0]), GOOD.key, "chain", "is a CA certificate"),
    "N-XW-07 two IDs": (CA.issue(uris=(ID, ID)).chain, GOOD.key, "chain", "more than one URI"),
    "a stranger's intermediate": ((*GOOD.chain, OWN.der), GOOD.key, "chain", "not signed by the next one"),
    "N-XW-04 PEM key": (
        GOOD.chain,
        GOOD.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "key",
        "is not an unencrypted PKCS#8",
    ),
    "N-XW-05 another key": (GOOD.chain, to_pkcs8(generate(KeyKind.EC_P256)), "key", "not the private key of the leaf"),
}


@pytest.mark.parametrize(("chain", "key", "field", "rule"), BAD_LOADS.values(), ids=BAD_LOADS)
def test_an_svid_that_could_not_be_used_is_not_loaded(chain, key, field, rule):
    assert X509Svid.load(GOOD.chain, GOOD.key)
    with pytest.raises(InvalidCertificate) as refusal:
        X509Svid.load(chain, key)
    assert refusal.value.field == field
    assert rule in refusal.value.public


def test_the_reason_of_a_refused_leaf_is_kept_for_the_log():
    with pytest.raises(InvalidCertificate) as refusal:
        X509Svid.load(CA.issue(usage=None).chain, PrivateKeyDer(b""))
    assert refusal.value.facts["reason"] is Reason.KEY_USAGE
