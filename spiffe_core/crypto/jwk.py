"""Public keys as JSON Web Keys (RFC 7517, RFC 7518 section 6): EC and RSA, public members only.

The keys of X.509 authorities may be ML-DSA: `kty` AKP with `alg` and `pub`, as the IETF's draft of ML-DSA for JOSE has
it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric import ec, mldsa, rsa

from spiffe_core.crypto.keys import AuthorityPublicKey, MlDsaPublicKey, PublicKey, check_verification_key
from spiffe_core.errors import InvalidBundle, InvalidCertificate

PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"})

_CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
_NAMES = {curve.name: name for name, curve in _CURVES.items()}
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
_MAX_MEMBER = 4096
_ML_DSA: dict[str, type[MlDsaPublicKey]] = {
    "ML-DSA-44": mldsa.MLDSA44PublicKey,
    "ML-DSA-65": mldsa.MLDSA65PublicKey,
    "ML-DSA-87": mldsa.MLDSA87PublicKey,
}
_ML_DSA_BYTES = {"ML-DSA-44": 1312, "ML-DSA-65": 1952, "ML-DSA-87": 2592}


def key_to_jwk(key: PublicKey) -> dict[str, str]:
    """The `kty` and key parameters of a public key, and nothing else."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        point = key.public_numbers()
        size = (key.curve.key_size + 7) // 8
        return {
            "kty": "EC",
            "crv": _NAMES[key.curve.name],
            "x": _encoded(point.x, size),
            "y": _encoded(point.y, size),
        }
    numbers = key.public_numbers()
    return {"kty": "RSA", "n": _encoded(numbers.n), "e": _encoded(numbers.e)}


def authority_key_to_jwk(key: AuthorityPublicKey) -> dict[str, str]:
    """As `key_to_jwk`, for the key of an X.509 authority."""
    if not isinstance(key, MlDsaPublicKey):
        return key_to_jwk(key)
    name = next(name for name, kind in _ML_DSA.items() if isinstance(key, kind))
    return {"kty": "AKP", "alg": name, "pub": _encoded(int.from_bytes(key.public_bytes_raw()), _ML_DSA_BYTES[name])}


def authority_key_from_jwk(jwk: Mapping[str, object]) -> AuthorityPublicKey:
    """As `key_from_jwk`, for the key of an X.509 authority.

    Raises:
        InvalidBundle: with the member that is wrong.
    """
    if jwk.get("kty") != "AKP":
        return key_from_jwk(jwk)
    name = jwk.get("alg")
    if not isinstance(name, str) or name not in _ML_DSA:
        raise InvalidBundle("alg: must be ML-DSA-44, ML-DSA-65 or ML-DSA-87", field="alg")
    return _ML_DSA[name].from_public_bytes(_decoded(jwk, "pub", _ML_DSA_BYTES[name]))


def private_key_to_jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """A private EC key with its public members (RFC 7518 section 6.2.2). A secret: neither log nor keep it."""
    secret = key.private_numbers().private_value
    return {**key_to_jwk(key.public_key()), "d": _encoded(secret, (key.curve.key_size + 7) // 8)}


def key_from_jwk(jwk: Mapping[str, object]) -> PublicKey:
    """Read the public key of a JWK.

    Raises:
        InvalidBundle: with the field `kty` for a kind we do not know, else with the member that is wrong.
    """
    key: PublicKey
    match jwk.get("kty"):
        case "EC":
            key = _ec_key(jwk)
        case "RSA":
            key = _rsa_key(jwk)
        case _:
            raise InvalidBundle("kty: is missing or not a kind of key that is used here", field="kty")
    try:
        return check_verification_key(key, field="key")
    except InvalidCertificate as refusal:
        raise InvalidBundle(refusal.public, field="key") from None


def _ec_key(jwk: Mapping[str, object]) -> ec.EllipticCurvePublicKey:
    name = jwk.get("crv")
    curve = _CURVES.get(name) if isinstance(name, str) else None
    if curve is None:
        raise InvalidBundle("crv: must be P-256, P-384 or P-521", field="crv")
    size = (curve.key_size + 7) // 8
    try:
        return ec.EllipticCurvePublicNumbers(
            int.from_bytes(_decoded(jwk, "x", size)), int.from_bytes(_decoded(jwk, "y", size)), curve
        ).public_key()
    except ValueError:
        raise InvalidBundle("x, y: are not a point on the curve", field="x") from None


def _rsa_key(jwk: Mapping[str, object]) -> rsa.RSAPublicKey:
    modulus, exponent = int.from_bytes(_decoded(jwk, "n")), int.from_bytes(_decoded(jwk, "e"))
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError:
        raise InvalidBundle("n, e: are not an RSA public key", field="n") from None


def _encoded(number: int, size: int = 0) -> str:
    data = number.to_bytes(size or (number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decoded(jwk: Mapping[str, object], member: str, size: int = 0) -> bytes:
    """The bytes of a member: base64url without padding; exactly `size` bytes if given (RFC 7518 section 6.2.1.2)."""
    text = jwk.get(member)
    if not isinstance(text, str) or len(text) > _MAX_MEMBER or not _BASE64URL.fullmatch(text):
        raise InvalidBundle(f"{member}: must be base64url without padding", field=member)
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise InvalidBundle(f"{member}: must be base64url without padding", field=member) from None
    if size and len(data) != size:
        raise InvalidBundle(f"{member}: must have {size} bytes", field=member)
    return data
