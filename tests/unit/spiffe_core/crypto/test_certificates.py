"""Certificates are read strictly and once."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from spiffe_core.crypto.certificates import MAX_CERTIFICATE_BYTES, key_id_of, public_key_of, read_certificate
from spiffe_core.crypto.keys import spki_der, subject_key_id
from spiffe_core.errors import InvalidCertificate
from tests.authority import SpiffeTestCA, resigned, tlv

CA = SpiffeTestCA(path_length=0)
LEAF = CA.issue()
SAN_OID, OTHER_OID = bytes.fromhex("0603551d11"), bytes.fromhex("0603551d63")
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), b"\x30\x00")


def test_a_leaf_is_read():
    facts = read_certificate(LEAF.chain[0])
    assert not facts.is_ca
    assert not facts.self_issued
    assert facts.der == LEAF.chain[0]
    assert facts.key_usage is not None
    assert facts.key_usage.digital_signature
    assert facts.key_usage_critical
    assert facts.extended_key_usage == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert facts.alternative_names is not None
    assert not facts.alternative_names_critical
    assert facts.authority_key_id == read_certificate(CA.der).subject_key_id
    assert facts.name_constraints is None
    assert facts.unknown_critical == ()
    assert facts.not_after - facts.not_before > CA.now - CA.now
    assert spki_der(public_key_of(facts)) == spki_der(LEAF.private_key.public_key())


def test_a_root_is_read():
    facts = read_certificate(CA.der)
    assert facts.is_ca
    assert facts.self_issued
    assert facts.basic_constraints is not None
    assert facts.basic_constraints.path_length == 0
    assert facts.authority_key_id is None


def test_absent_extensions_are_absent_and_not_defaulted():
    bare = CA.issue(uris=(), ca=None, usage=None, eku=None, key_ids=False)
    facts = read_certificate(bare.chain[0])
    assert (facts.basic_constraints, facts.key_usage, facts.extended_key_usage) == (None, None, None)
    assert (facts.alternative_names, facts.subject_key_id, facts.authority_key_id) == (None, None, None)
    assert not facts.is_ca
    assert not facts.key_usage_critical


def test_only_unknown_critical_extensions_are_listed():
    policy = x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("1.2.3"), None)])
    inhibit = x509.InhibitAnyPolicy(0)
    leaf = CA.issue(extensions=((UNKNOWN, True), (policy, True), (inhibit, True)))
    assert read_certificate(leaf.chain[0]).unknown_critical == ("2.5.29.99", "2.5.29.54")
    assert read_certificate(CA.issue(extensions=((UNKNOWN, False),)).chain[0]).unknown_critical == ()


NON_ASCII = resigned(LEAF.chain[0], CA.key, (b"spiffe://example.org/workload", b"spiffe://example.org/worklo\xff\xfe"))


def _negative_serial() -> bytes:
    """RFC 5280 section 4.1.2.2: the sign bit of the serial number is set."""
    number = LEAF.leaf.serial_number
    size = number.bit_length() // 8 + 1
    written = bytes([0x02, size]) + number.to_bytes(size, "big")
    return resigned(LEAF.chain[0], CA.key, (written, written[:2] + bytes([written[2] | 0x80]) + written[3:]))


def _version_1_with_extensions() -> bytes:
    """RFC 5280 section 4.1.2.9: extensions in a certificate that says it has none."""
    tbs, version = LEAF.leaf.tbs_certificate_bytes, bytes.fromhex("a003020102")
    assert tbs[4:9] == version
    body = tlv(0x30, tlv(0x30, tbs[9:]) + LEAF.chain[0][4 + len(tbs) :])
    return resigned(body, CA.key)


BAD = {
    "empty": (b"", "is empty"),
    "N-X-35 oversize": (b"\x30" * (MAX_CERTIFICATE_BYTES + 1), "more than 65536 bytes"),
    "garbage": (b"garbage", "is not a readable"),
    "PEM": (LEAF.leaf.public_bytes(Encoding.PEM), "is not a readable"),
    "truncated": (LEAF.chain[0][:-1], "is not a readable"),
    "N-X-36 trailing bytes": (LEAF.chain[0] + b"\x00", "is not a readable"),
    "N-X-36 indefinite length": (b"\x30\x80" + LEAF.chain[0][4:] + b"\x00\x00", "is not a readable"),
    "N-X-17 two SAN extensions": (
        resigned(CA.issue(extensions=((UNKNOWN, False),)).chain[0], CA.key, (OTHER_OID, SAN_OID)),
        "is not a readable",
    ),
    "N-ID-29 invalid UTF-8 in a URI": (NON_ASCII, "is not a readable"),
    "a version that does not exist": (
        resigned(LEAF.chain[0], CA.key, (bytes.fromhex("a003020102"), bytes.fromhex("a003020107"))),
        "is not a readable",
    ),
}
FOUR_BYTES = x509.UnrecognizedExtension(  # an address without its mask, of which the library makes a TypeError
    x509.NameConstraints.oid, bytes.fromhex("300aa008300687040a000000")
)
BAD["S4 a name constraint on half an address"] = (
    SpiffeTestCA(extensions=((FOUR_BYTES, True),)).der,
    "is not a readable",
)
BAD["extensions before version 3"] = (_version_1_with_extensions(), "is not a readable")
BAD["a serial number below zero"] = (_negative_serial(), "is not a readable")


@pytest.mark.parametrize(("der", "rule"), BAD.values(), ids=BAD)
def test_what_cannot_be_read_by_everybody_is_refused(der, rule):
    assert read_certificate(LEAF.chain[0])
    with pytest.raises(InvalidCertificate) as refusal:
        read_certificate(der, field="chain")
    assert rule in refusal.value.public
    assert refusal.value.field == "chain"


def test_the_authority_id_is_the_subject_key_identifier():
    facts = read_certificate(CA.der)
    assert facts.subject_key_id is not None
    assert key_id_of(facts) == facts.subject_key_id.hex()


def test_without_the_extension_the_authority_id_is_computed():
    ca = SpiffeTestCA(key_ids=False)
    assert key_id_of(read_certificate(ca.der)) == subject_key_id(ca.key.public_key()).hex()


def test_a_key_that_cannot_be_read_is_refused():
    """The point is moved off the curve; the certificate around it is still well formed."""
    ca = SpiffeTestCA(key_ids=False)
    point = spki_der(ca.key.public_key())[-64:]
    facts = read_certificate(resigned(ca.der, ca.key, (point, b"\x01" * 64)))
    with pytest.raises(InvalidCertificate, match="x5c: the public key cannot be read"):
        public_key_of(facts, field="x5c")
    with pytest.raises(InvalidCertificate):
        key_id_of(facts)


def test_deprecated_encodings_are_refused_without_a_warning_filter_of_the_process():
    """A peer must not be able to choose what is printed on stderr: refused in a fresh interpreter, in silence."""
    program = (
        "import sys; from spiffe_core.crypto.certificates import read_certificate\n"
        "from spiffe_core.errors import InvalidCertificate\n"
        "try: read_certificate(bytes.fromhex(sys.argv[1]))\n"
        "except InvalidCertificate: print('refused')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, _negative_serial().hex()], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("refused\n", "")
