"""Public keys as JSON Web Keys."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from spiffe_core.crypto.jwk import key_from_jwk, key_to_jwk
from spiffe_core.crypto.keys import spki_der
from spiffe_core.errors import InvalidBundle

EC_JWK = key_to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key())
RSA_JWK = key_to_jwk(rsa.generate_private_key(65537, 2048).public_key())


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_ec_keys_survive(curve):
    key = ec.generate_private_key(curve).public_key()
    jwk = key_to_jwk(key)
    assert jwk.keys() == {"kty", "crv", "x", "y"}
    assert spki_der(key_from_jwk(jwk)) == spki_der(key)


def test_rsa_keys_survive():
    assert RSA_JWK.keys() == {"kty", "n", "e"}
    assert RSA_JWK["e"] == "AQAB"
    assert key_to_jwk(key_from_jwk(RSA_JWK)) == RSA_JWK


def test_coordinates_keep_their_leading_zeros():
    """RFC 7518 section 6.2.1.2: the length is the curve's, however small the number is."""
    point = ec.derive_private_key(0x7D, ec.SECP256R1()).public_key()
    number = next(
        n
        for n in range(1, 2000)
        if ec.derive_private_key(n, ec.SECP256R1()).public_key().public_numbers().x.bit_length() <= 248
    )
    point = ec.derive_private_key(number, ec.SECP256R1()).public_key()
    jwk = key_to_jwk(point)
    assert len(jwk["x"]) == 43
    assert spki_der(key_from_jwk(jwk)) == spki_der(point)


@pytest.mark.parametrize(
    ("jwk", "field"),
    [
        ({}, "kty"),
        ({"kty": "OKP", "crv": "Ed25519", "x": "AA"}, "kty"),
        ({"kty": "oct", "k": "AA"}, "kty"),
        ({"kty": ["EC"]}, "kty"),
        ({**EC_JWK, "crv": "secp256k1"}, "crv"),
        ({**EC_JWK, "crv": ["P-256"]}, "crv"),
        ({**EC_JWK, "x": b64(b"\x00" * 31)}, "x"),
        ({**EC_JWK, "x": b64(b"\x00" + bytes(32))}, "x"),
        ({**EC_JWK, "y": b64(bytes(32))}, "x"),
        ({**EC_JWK, "x": EC_JWK["x"] + "="}, "x"),
        ({**EC_JWK, "x": "+/" + EC_JWK["x"][2:]}, "x"),
        ({**EC_JWK, "x": EC_JWK["x"] + "\n"}, "x"),
        ({**EC_JWK, "x": "A"}, "x"),
        ({**EC_JWK, "x": 7}, "x"),
        ({"kty": "EC", "crv": "P-256"}, "x"),
        ({**RSA_JWK, "e": "AQ"}, "n"),
        ({**RSA_JWK, "e": "Aw"}, "key"),
        ({**RSA_JWK, "n": b64((1 << 511 | 1).to_bytes(64, "big"))}, "key"),
        ({**RSA_JWK, "n": "A" * 4096}, "n"),
        ({"kty": "RSA", "n": RSA_JWK["n"]}, "e"),
    ],
)
def test_broken_keys_are_refused_naming_the_member(jwk, field):
    """N-B-10, N-B-22, N-B-23: unknown kinds, points off the curve, wrong lengths, weak RSA."""
    assert key_from_jwk(EC_JWK)
    with pytest.raises(InvalidBundle) as refusal:
        key_from_jwk(jwk)
    assert refusal.value.field == field
