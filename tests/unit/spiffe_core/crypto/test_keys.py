"""Keys: kinds, encodings, secrecy, and which public keys are believed."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import pickle

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509 import SubjectKeyIdentifier

from spiffe_core.crypto.keys import (
    MAX_PRIVATE_KEY_BYTES,
    MAX_PUBLIC_KEY_BYTES,
    KeyKind,
    PrivateKeyDer,
    check_public_key,
    check_verification_key,
    from_pkcs8,
    from_spki,
    generate,
    key_digest,
    spki_der,
    subject_key_id,
    to_pkcs8,
)
from spiffe_core.errors import InvalidCertificate

EC_KEY = generate(KeyKind.EC_P256)
SMALL = math.prod(p for p in range(2, 752) if all(p % d for d in range(2, math.isqrt(p) + 1)))


def rsa_public(modulus: int, exponent: int = 65537) -> rsa.RSAPublicKey:
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def without_small_factors(start: int, step: int = 2) -> int:
    while math.gcd(start, SMALL) != 1:
        start += step
    return start


SOUND_RSA = rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize("kind", [KeyKind.EC_P256, KeyKind.EC_P384, KeyKind.RSA_2048])
def test_every_kind_is_made_and_survives_pkcs8(kind):
    key = generate(kind)
    der = to_pkcs8(key)
    again = from_pkcs8(der.reveal())
    assert to_pkcs8(again) == der
    assert key_digest(again.public_key()) == key_digest(key.public_key())
    assert check_public_key(key.public_key(), field="k") is not None


@pytest.mark.slow
def test_the_largest_kind_has_4096_bits():
    key = generate(KeyKind.RSA_4096)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.key_size == 4096


def test_kinds_have_the_names_of_the_configuration():
    assert [kind.value for kind in KeyKind if not kind.post_quantum] == ["ec-p256", "ec-p384", "rsa-2048", "rsa-4096"]


def test_a_private_key_is_not_printed_or_pickled():
    secret = PrivateKeyDer(b"very secret")
    for text in (repr(secret), str(secret), f"{[secret]} {secret}"):
        assert "secret" not in text
        assert "<private key>" in text
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)
    with pytest.raises(TypeError, match="not pickled"):
        copy.copy(secret)
    with pytest.raises(TypeError):
        json.dumps({"key": secret})


def test_private_keys_are_equal_by_content_and_only_to_their_own_type():
    assert PrivateKeyDer(b"a") == PrivateKeyDer(b"a")
    assert hash(PrivateKeyDer(b"a")) == hash(PrivateKeyDer(b"a"))
    assert PrivateKeyDer(b"a") != PrivateKeyDer(b"b")
    assert PrivateKeyDer(b"a") != b"a"


def private_bytes(key, encoding=Encoding.DER, form=PrivateFormat.PKCS8, encryption=None):
    return key.private_bytes(encoding, form, encryption or NoEncryption())


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "is not an unencrypted PKCS#8"),
        (b"\x30", "is not an unencrypted PKCS#8"),
        (b"\x30\x03\x02\x01\x00", "is not an unencrypted PKCS#8"),
        (private_bytes(EC_KEY, form=PrivateFormat.TraditionalOpenSSL), "is not an unencrypted PKCS#8"),
        (private_bytes(SOUND_RSA, form=PrivateFormat.TraditionalOpenSSL), "is not an unencrypted PKCS#8"),
        (private_bytes(EC_KEY, encoding=Encoding.PEM), "is not an unencrypted PKCS#8"),
        (private_bytes(EC_KEY, encryption=BestAvailableEncryption(b"x")), "is not an unencrypted PKCS#8"),
        (private_bytes(EC_KEY)[:-1], "is not a readable PKCS#8"),
        (private_bytes(EC_KEY) + b"\x00", "is not a readable PKCS#8"),
        (private_bytes(ed25519.Ed25519PrivateKey.generate()), "must be an EC or RSA key"),
        (private_bytes(ec.generate_private_key(ec.SECP256K1())), "the curve secp256k1 is not allowed"),
        (b"\x30" * (MAX_PRIVATE_KEY_BYTES + 1), "more than 16384 bytes"),
    ],
    ids=[
        "empty",
        "one byte",
        "no algorithm",
        "SEC1",
        "PKCS#1",
        "PEM",
        "encrypted",
        "truncated",
        "trailing byte",
        "Ed25519",
        "secp256k1",
        "oversize",
    ],
)
def test_what_is_not_our_kind_of_pkcs8_is_refused_without_quoting_it(data, rule):
    """N-XW-04."""
    assert from_pkcs8(private_bytes(EC_KEY))
    with pytest.raises(InvalidCertificate) as refusal:
        from_pkcs8(PrivateKeyDer(data), field="x509_svid_key")
    assert rule in refusal.value.public
    assert refusal.value.field == "x509_svid_key"
    assert refusal.value.__cause__ is None


def test_a_public_key_survives_its_spki():
    public = EC_KEY.public_key()
    der = spki_der(public)
    assert spki_der(from_spki(der)) == der
    assert key_digest(public) == hashlib.sha256(der).digest()
    assert subject_key_id(public) == SubjectKeyIdentifier.from_public_key(public).digest


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        spki_der(EC_KEY.public_key()) + b"\x00",
        b"\x30" * (MAX_PUBLIC_KEY_BYTES + 1),
        SOUND_RSA.public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1),
        spki_der(EC_KEY.public_key())[:-1],
    ],
    ids=["empty", "garbage", "trailing byte", "oversize", "PKCS#1", "truncated"],
)
def test_what_is_no_spki_is_refused(data):
    with pytest.raises(InvalidCertificate) as refusal:
        from_spki(data, field="jwt_authorities")
    assert refusal.value.field == "jwt_authorities"


def test_a_compressed_point_is_a_second_spelling_and_refused():
    """One key has one DER form, so that comparing bytes compares keys."""
    point = EC_KEY.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    head = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
    with pytest.raises(InvalidCertificate, match="one DER form"):
        from_spki(head + point)


M = math.prod(p for p in range(3, 168) if all(p % d for d in range(2, math.isqrt(p) + 1)))
ROCA = without_small_factors((1 << 2047) // M * M + M + pow(65537, 1234, M), M)
_A = 1 << 1023 | 1 << 1022 | 1
while math.gcd(_A * (_A + 6), SMALL) != 1:
    _A += 2
CLOSE = _A * (_A + 6)
SOUND = SOUND_RSA.public_key().public_numbers().n

WEAK = {
    "N-C-05 RSA 1024": (rsa_public(without_small_factors(1 << 1023 | 1)), "have 2048 to 4096 bits"),
    "N-C-05 RSA 16384": (rsa_public(without_small_factors(1 << 16383 | 1)), "have 2048 to 4096 bits"),
    "N-C-05 RSA 8192": (rsa_public(without_small_factors(1 << 8191 | 1)), "have 2048 to 4096 bits"),
    "N-C-05 exponent 3": (rsa_public(SOUND, 3), "exponent must be odd and from 65537"),
    "N-C-05 huge exponent": (rsa_public(SOUND, 2**32 + 1), "exponent must be odd and from 65537"),
    "N-C-05 small factor": (rsa_public((1 << 2048) - 1), "has a small factor"),
    "N-C-05 close primes": (rsa_public(CLOSE), "two primes close together"),
    "N-C-05 ROCA": (rsa_public(ROCA), "CVE-2017-15361"),
    "N-C-06 secp256k1": (ec.generate_private_key(ec.SECP256K1()).public_key(), "the curve secp256k1 is not allowed"),
    "N-C-06 P-224": (ec.generate_private_key(ec.SECP224R1()).public_key(), "the curve secp224r1 is not allowed"),
    "N-C-06 P-521": (ec.generate_private_key(ec.SECP521R1()).public_key(), "the curve secp521r1 is not allowed"),
    "N-C-06 X25519": (x25519.X25519PrivateKey.generate().public_key(), "must be an EC or RSA key"),
    "N-C-06 Ed25519": (ed25519.Ed25519PrivateKey.generate().public_key(), "must be an EC or RSA key"),
}


@pytest.mark.parametrize(("key", "rule"), WEAK.values(), ids=WEAK)
def test_weak_public_keys_are_not_certified(key, rule):
    """N-C-05, N-C-06: refused by their numbers, before anything is computed with them."""
    assert check_public_key(SOUND_RSA.public_key(), field="csr")
    with pytest.raises(InvalidCertificate) as refusal:
        check_public_key(key, field="csr")
    assert rule in refusal.value.public
    assert refusal.value.field == "csr"


def test_foreign_domains_may_use_larger_keys():
    """P-521 and RSA up to 8192 bits verify, though we do not certify them."""
    for name in ("N-C-06 P-521", "N-C-05 RSA 8192"):
        assert check_verification_key(WEAK[name][0], field="k")
    for name in ("N-C-05 RSA 16384", "N-C-05 RSA 1024", "N-C-05 ROCA", "N-C-06 secp256k1"):
        with pytest.raises(InvalidCertificate):
            check_verification_key(WEAK[name][0], field="k")
