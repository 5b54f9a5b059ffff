"""Signing and reading compact tokens (RFC 7515, RFC 7518): what we sign others can verify, byte for byte."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from spiffe_core.crypto.jose import (
    ALGORITHMS,
    MAX_TOKEN_BYTES,
    algorithm_of,
    check_algorithm,
    encode_part,
    fits,
    read_compact,
    sign_compact,
    signature_is_good,
)
from spiffe_core.crypto.jwk import key_from_jwk
from spiffe_core.errors import InvalidRequest, Reason, VerificationFailed
from tests.tokens import SHA, unb64

KEYS: dict[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
}


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_signed_token_verifies_by_the_rules_of_the_rfc(algorithm: str) -> None:
    """JWT-01, JWT-05: three parts without padding; the signature checked without the code under test."""
    key = KEYS[algorithm]
    assert algorithm_of(key.public_key()) == algorithm
    token = sign_compact(encode_part({"alg": algorithm}), encode_part({"a": "é"}), key)
    header, claims, signature = token.split(".")
    assert "=" not in token
    assert json.loads(unb64(claims)) == {"a": "é"}
    raw, data = unb64(signature), f"{header}.{claims}".encode()
    if algorithm == "RS256":
        key.public_key().verify(raw, data, padding.PKCS1v15(), hashes.SHA256())
    else:
        half = (key.curve.key_size + 7) // 8
        assert len(raw) == 2 * half
        der = encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))
        key.public_key().verify(der, data, ec.ECDSA(SHA[algorithm[2:]]))
    assert signature_is_good(read_compact(token), algorithm, key.public_key())


def test_an_algorithm_fits_by_kind_and_curve_only() -> None:
    """JWT-07, N-J-10, N-J-11, N-C-22."""
    expected = {
        "RS256": {name for name in ALGORITHMS if name[:2] in {"RS", "PS"}},
        "ES256": {"ES256"},
        "ES384": {"ES384"},
        "ES512": {"ES512"},
    }
    for name, key in KEYS.items():
        fitting = {
            one for one in (*ALGORITHMS, "none", "HS256", "EdDSA", "ES256K", "es256", "") if fits(one, key.public_key())
        }
        assert fitting == expected[name]
    assert len(ALGORITHMS) == 9
    assert check_algorithm("PS384", KEYS["RS256"].public_key(), field="x") == "PS384"
    for wrong, text in {"HS256": "must be one of", "ES384": "does not fit the key; use ES256"}.items():
        with pytest.raises(InvalidRequest, match=text) as refused:
            check_algorithm(wrong, KEYS["ES256"].public_key(), field="signing_algorithm")
        assert refused.value.field == "signing_algorithm"


def test_the_example_of_rfc_7515_a3_verifies() -> None:
    """ES256, JWS appendix A.3: made by others."""
    key = key_from_jwk(
        {
            "kty": "EC",
            "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        }
    )
    token = (
        "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cn"
        "VlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
    )
    jws = read_compact(token)
    assert jws.header == {"alg": "ES256"}
    assert signature_is_good(jws, "ES256", key)
    assert not signature_is_good(jws, "ES384", key)


def test_size_is_checked_before_anything_is_decoded() -> None:
    """N-J-40."""
    with pytest.raises(VerificationFailed) as refused:
        read_compact("a" * (MAX_TOKEN_BYTES + 1))
    assert refused.value.reason is Reason.TOO_LARGE


def test_a_token_taken_apart_does_not_show_its_secret_parts() -> None:
    """JWT-32: a bearer token is in no repr."""
    token = sign_compact(encode_part({"alg": "ES256"}), encode_part({"sub": "secret"}), KEYS["ES256"])
    shown = repr(read_compact(token))
    assert "secret" not in shown
    assert token.rpartition(".")[2] not in shown
