"""Which signature algorithms are believed."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from spiffe_core.crypto.algorithms import signature_allowed
from spiffe_core.crypto.keys import KeyKind, generate
from tests.authority import SpiffeTestCA, resigned

RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_CA, RSA_CA = SpiffeTestCA(), SpiffeTestCA(key=RSA_KEY)
P384_CA = SpiffeTestCA(key=generate(KeyKind.EC_P384))
SHA256_OID, SHA224_OID = bytes.fromhex("608648016503040201"), bytes.fromhex("608648016503040204")


@pytest.mark.parametrize("ca", [EC_CA, P384_CA, RSA_CA], ids=["P-256", "P-384", "RSA"])
@pytest.mark.parametrize("digest", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()], ids=lambda digest: digest.name)
def test_sha2_signatures_are_allowed(ca, digest):
    assert signature_allowed(ca.issue(algorithm=digest).leaf, ca.key.public_key())


def test_pss_is_allowed_with_the_same_hashes():
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    leaf = RSA_CA.issue(rsa_padding=pss)
    assert signature_allowed(leaf.leaf, RSA_KEY.public_key())
    weak = resigned(leaf.chain[0], RSA_KEY, (SHA256_OID, SHA224_OID))
    assert not signature_allowed(x509.load_der_x509_certificate(weak), RSA_KEY.public_key())


def test_a_hash_nobody_knows_is_not_allowed():
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    unknown = resigned(
        RSA_CA.issue(rsa_padding=pss).chain[0], RSA_KEY, (SHA256_OID, bytes.fromhex("60864801650304027f"))
    )
    assert not signature_allowed(x509.load_der_x509_certificate(unknown), RSA_KEY.public_key())


def test_an_algorithm_of_another_kind_of_key_is_not_allowed():
    """N-C-04, N-X-31: an ECDSA name with an RSA signer and the reverse."""
    assert not signature_allowed(EC_CA.issue().leaf, RSA_KEY.public_key())
    assert not signature_allowed(RSA_CA.issue().leaf, EC_CA.key.public_key())


@pytest.mark.parametrize("last", [0x04, 0x05], ids=["MD5", "SHA-1"])
def test_broken_hashes_are_not_allowed(last):
    """N-X-31."""
    oid = bytes.fromhex("2a864886f70d0101")
    weak = resigned(RSA_CA.issue().chain[0], RSA_KEY, (oid + b"\x0b", oid + bytes([last])))
    assert not signature_allowed(x509.load_der_x509_certificate(weak), RSA_KEY.public_key())
