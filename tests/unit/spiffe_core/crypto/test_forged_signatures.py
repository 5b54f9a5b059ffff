"""Signatures that look right and are not (S5): made here with the private key, by arithmetic, one fault at a time.

The kinds are those that have broken verifiers before: numbers out of range, padding and hash identifiers that are not
compared to the last byte (CVE-2006-4339 and its kin), lengths that are not checked.
"""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from spiffe_core.crypto.jose import Jws, signature_is_good

DATA = b"header.payload"
N256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
EC_KEY = ec.generate_private_key(ec.SECP256R1())
R, S = decode_dss_signature(EC_KEY.sign(DATA, ec.ECDSA(hashes.SHA256())))
DER = EC_KEY.sign(DATA, ec.ECDSA(hashes.SHA256()))
RSA_KEY = rsa.generate_private_key(65537, 2048)
NUMBERS = RSA_KEY.private_numbers()
MODULUS, SECRET = NUMBERS.public_numbers.n, NUMBERS.d
SIZE = 256
DIGEST = hashlib.sha256(DATA).digest()
SHA256_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
SHA1_INFO = bytes.fromhex("3021300906052b0e03021a05000414")


def good(algorithm: str, key: object, signature: bytes) -> bool:
    return signature_is_good(Jws({}, b"", DATA, signature), algorithm, key)  # type: ignore[arg-type]


def pair(r: int, s: int, size: int = 32) -> bytes:
    return (r % 2**256).to_bytes(size) + (s % 2**256).to_bytes(size)


FORGED_EC = {
    "r is 0": pair(0, S),
    "s is 0": pair(R, 0),
    "both are 0": pair(0, 0),
    "both are 1": pair(1, 1),
    "r is the order": pair(N256, S),
    "s is the order": pair(R, N256),
    "r is the order, s 1": pair(N256, 1),
    "r is one below the order": pair(N256 - 1, S),
    "r and s exchanged": pair(S, R),
    "r with the order added": pair(R + N256, S),
    "s with the order added": pair(R, S + N256),
    "all bits set": b"\xff" * 64,
    "s one more": pair(R, S + 1),
    "empty": b"",
    "r alone": R.to_bytes(32),
    "a byte short": pair(R, S)[:-1],
    "a byte long": pair(R, S) + b"\0",
    "a zero before each": pair(R, S, 33),
    "DER": DER,
    "DER padded to the length": DER.ljust(64, b"\0")[:64],
}


@pytest.mark.parametrize("signature", FORGED_EC.values(), ids=FORGED_EC)
def test_an_ecdsa_signature_is_two_numbers_in_range_and_nothing_else(signature: bytes) -> None:
    """S5, RFC 7518 section 3.4."""
    assert good("ES256", EC_KEY.public_key(), pair(R, S))
    assert not good("ES256", EC_KEY.public_key(), signature)


def raw(message: bytes) -> bytes:
    """What the private key makes of an encoded message, whatever that is."""
    return pow(int.from_bytes(message), SECRET, MODULUS).to_bytes(SIZE)


def block(info: bytes, digest: bytes, *, tail: bytes = b"", kind: bytes = b"\x01", fill: bytes = b"\xff") -> bytes:
    """EMSA-PKCS1-v1_5 (RFC 8017 section 9.2), with what follows or is wrong."""
    content = b"\0" + info + digest + tail
    return b"\0" + kind + fill * ((SIZE - 2 - len(content)) // len(fill)) + content


RIGHT = block(SHA256_INFO, DIGEST)
SHORT = b"\0\x01" + b"\xff" * 8 + b"\0" + SHA256_INFO + DIGEST
FORGED_PKCS1 = {
    "short padding and garbage behind": raw(SHORT.ljust(SIZE, b"\xaa")),
    "short padding and zeros behind": raw(SHORT.ljust(SIZE, b"\0")),
    "garbage after the hash": raw(block(SHA256_INFO, DIGEST, tail=b"\0\0")),
    "block type 2": raw(block(SHA256_INFO, DIGEST, kind=b"\x02")),
    "block type 0": raw(block(SHA256_INFO, DIGEST, kind=b"\x00", fill=b"\x00")),
    "padding of other bytes": raw(block(SHA256_INFO, DIGEST, fill=b"\xfe")),
    "one byte of the padding changed": raw(RIGHT[:20] + b"\xfe" + RIGHT[21:]),
    "no zero after the padding": raw(RIGHT.replace(b"\xff\0\x30\x31", b"\xff\xff\x30\x31")),
    "a hash without its identifier": raw(block(b"", DIGEST)),
    "the hash of something else": raw(block(SHA256_INFO, hashlib.sha256(b"other").digest())),
    "SHA-1 under its own name": raw(block(SHA1_INFO, hashlib.sha1(DATA, usedforsecurity=False).digest())),
    "an identifier without NULL": raw(block(bytes.fromhex("302f300b0609608648016503040201") + b"\x04\x20", DIGEST)),
    "NULL with a long length": raw(block(bytes.fromhex("3032300e06096086480165030402010581000420"), DIGEST)),
    "a sequence with a long length": raw(block(bytes.fromhex("308131300d060960864801650304020105000420"), DIGEST)),
    "an identifier with parameters inside": raw(
        block(bytes.fromhex("3035301106096086480165030402010504deadbeef0420"), DIGEST)
    ),
    "the signature plus the modulus": (int.from_bytes(raw(RIGHT)) + MODULUS).to_bytes(SIZE + 1),
    "a zero before it": b"\0" + raw(RIGHT),
    "a byte short": raw(RIGHT)[:-1],
    "empty": b"",
    "zero": bytes(SIZE),
    "one": (1).to_bytes(SIZE),
    "the modulus": MODULUS.to_bytes(SIZE),
    "the modulus less one": (MODULUS - 1).to_bytes(SIZE),
    "the encoded message itself": RIGHT,
}


@pytest.mark.parametrize("signature", FORGED_PKCS1.values(), ids=FORGED_PKCS1)
def test_an_rsa_signature_is_compared_to_its_last_byte(signature: bytes) -> None:
    """S5, RFC 8017 section 8.2.2."""
    assert good("RS256", RSA_KEY.public_key(), raw(RIGHT))
    assert not good("RS256", RSA_KEY.public_key(), signature)
    assert not good("PS256", RSA_KEY.public_key(), signature)


def pss(salt: int, mask: hashes.HashAlgorithm, digest: hashes.HashAlgorithm) -> bytes:
    return RSA_KEY.sign(DATA, padding.PSS(padding.MGF1(mask), salt), digest)


SHA256, SHA384 = hashes.SHA256(), hashes.SHA384()
FORGED_PSS = {
    "no salt": pss(0, SHA256, SHA256),
    "a longer salt": pss(48, SHA256, SHA256),
    "a mask of another hash": pss(32, SHA384, SHA256),
    "another hash": pss(48, SHA384, SHA384),
    "PKCS #1 v1.5": raw(RIGHT),
    "a byte long": pss(32, SHA256, SHA256) + b"\0",
    "a byte short": pss(32, SHA256, SHA256)[:-1],
    "the last byte changed": pss(32, SHA256, SHA256)[:-1] + b"\xbc",
}


@pytest.mark.parametrize("signature", FORGED_PSS.values(), ids=FORGED_PSS)
def test_a_pss_signature_has_the_hash_its_mask_and_its_salt(signature: bytes) -> None:
    """S5, RFC 7518 section 3.5: MGF1 with the same hash, salt as long as the hash."""
    assert good("PS256", RSA_KEY.public_key(), pss(32, SHA256, SHA256))
    assert not good("PS256", RSA_KEY.public_key(), signature)
