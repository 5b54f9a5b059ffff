"""What stands in JWT-SVIDs and WIT-SVIDs, and what may be asked for (JWT and WIT rows, N-C-20, N-C-22)."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from spiffe_core.crypto.jwk import PRIVATE_MEMBERS
from spiffe_core.crypto.keys import spki_der
from spiffe_core.errors import InvalidRequest
from spiffe_core.jwt_svid import MAX_AUDIENCES, JwtSvid, check_audience, jwt_claims, jwt_header
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wit_svid import ConfirmationKey, WitSvid, wit_claims, wit_header

ID = SpiffeId.parse("spiffe://example.org/web")
P256, P384 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
RSA = rsa.generate_private_key(65537, 2048)


def test_blank_and_repeated_audiences_are_left_out() -> None:
    """spire_features section 14, JWT-14."""
    assert check_audience(["b", "", "a", "  ", "b", "B", "\t"]) == ("b", "a", "B")
    assert check_audience(["x" * 1024]) == ("x" * 1024,)
    assert len(check_audience([str(n) for n in range(MAX_AUDIENCES)])) == MAX_AUDIENCES


@pytest.mark.parametrize(
    ("audience", "text"),
    [
        ([], "at least one audience is required"),
        ([""], "at least one audience is required"),
        (["", " \n"], "at least one audience is required"),
        ([str(n) for n in range(33)], "at most 32"),
        (["a"] * 1000, "at most 32"),
        (["x" * 1025], "1024 bytes"),
        (["é" * 600], "1024 bytes"),
        (["x" * 1_000_000], "1024 bytes"),
    ],
)
def test_unusable_audiences_are_refused(audience: list[str], text: str) -> None:
    """N-C-20."""
    with pytest.raises(InvalidRequest, match=text) as refused:
        check_audience(audience)
    assert refused.value.field == "audience"


def test_a_jwt_svid_says_this_and_no_more() -> None:
    """JWT-03, JWT-12, JWT-14, JWT-19: aud is a list, no nbf; iss and jti only when there is one."""
    assert jwt_header("ES256", "k") == {"alg": "ES256", "kid": "k", "typ": "JWT"}
    plain = {"aud": ["a"], "exp": 20, "iat": 10, "sub": "spiffe://example.org/web"}
    assert jwt_claims(ID, ("a",), issued_at=10, expires_at=20) == plain
    full = jwt_claims(ID, ("a",), issued_at=10, expires_at=20, issuer="https://idp.example.org", jti="j")
    assert full == {**plain, "iss": "https://idp.example.org", "jti": "j"}


@pytest.mark.parametrize(
    ("key", "algorithm", "kty"),
    [(P256, "ES256", "EC"), (P384, "ES384", "EC"), (RSA, "RS512", "RSA"), (RSA, "PS256", "RSA")],
)
def test_a_wit_svid_confirms_one_key_with_one_algorithm(key: object, algorithm: str, kty: str) -> None:
    """WIT-02, WIT-05, WIT-08, WIT-11 to WIT-13, WIT-26, WIT-27: cnf.jwk with alg; no aud, no iss, nothing private."""
    confirmed = ConfirmationKey.read(spki_der(key.public_key()), algorithm)  # type: ignore[attr-defined]  # a private key
    assert wit_header("ES256", "k") == {"alg": "ES256", "kid": "k", "typ": "wit+jwt"}
    claims = wit_claims(ID, confirmed, issued_at=10, expires_at=20)
    assert claims.keys() == {"cnf", "exp", "iat", "sub"}
    jwk = claims["cnf"]["jwk"]  # type: ignore[index]  # an object
    assert (jwk["alg"], jwk["kty"]) == (algorithm, kty)
    assert not PRIVATE_MEMBERS & jwk.keys()


WEAK = rsa.generate_private_key(65537, 1024)
ED = ed25519.Ed25519PrivateKey.generate().public_key()


@pytest.mark.parametrize(
    ("public_key", "algorithm", "field"),
    [
        (b"", "ES256", "public_key"),
        (b"junk", "ES256", "public_key"),
        (spki_der(P256.public_key()) + b"x", "ES256", "public_key"),
        (P256.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "ES256", "public_key"),
        (WEAK.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo), "RS256", "public_key"),
        (ED.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo), "EdDSA", "public_key"),
        (spki_der(ec.generate_private_key(ec.SECP521R1()).public_key()), "ES512", "public_key"),
        (spki_der(P256.public_key()), "", "signing_algorithm"),
        (spki_der(P256.public_key()), "none", "signing_algorithm"),
        (spki_der(P256.public_key()), "HS256", "signing_algorithm"),
        (spki_der(P256.public_key()), "ECDH-ES", "signing_algorithm"),
        (spki_der(P256.public_key()), "ES384", "signing_algorithm"),
        (spki_der(RSA.public_key()), "ES256", "signing_algorithm"),
        (spki_der(P256.public_key()), "ES256" + "x" * 100_000, "signing_algorithm"),
    ],
    ids=lambda value: "key" if isinstance(value, bytes) else value[:16],  # keys are drawn anew in each process
)
def test_unusable_confirmation_keys_are_refused(public_key: bytes, algorithm: str, field: str) -> None:
    """N-C-22, N-W-07 and N-W-08 on the issuing side."""
    with pytest.raises(InvalidRequest) as refused:
        ConfirmationKey.read(public_key, algorithm)
    assert refused.value.field == field
    assert len(refused.value.public) < 200


def test_tokens_are_in_no_repr() -> None:
    """JWT-32."""
    assert "secret" not in repr(JwtSvid("secret", ID, ("a",), 1, 2)) + repr(WitSvid("secret", ID, 1, 2))
