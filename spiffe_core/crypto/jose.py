"""Signed tokens: JWS Compact Serialization (RFC 7515) with the nine algorithms that SPIFFE allows, and nothing else.

There is no code here for HMAC, for `none`, for keys inside headers or for JSON serialization, so none of them can be
switched on by a token. Reading is strict: base64url without padding and in its one spelling, UTF-8, JSON objects whose
member names are unique, finite numbers, bounded size. A token that two readers could understand differently is refused.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from spiffe_core.crypto.keys import PrivateKey, PublicKey
from spiffe_core.errors import InvalidRequest, Reason, VerificationFailed

MAX_TOKEN_BYTES = 64 * 1024
MAX_MEMBERS = 256
"""Members of the header or of the claims."""

_HASHES: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
_FOR_CURVE = {curve: algorithm for algorithm, curve in _CURVES.items()}
_ECDSA = {curve: ec.ECDSA(_HASHES[algorithm[2:]]) for algorithm, curve in _CURVES.items()}
_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False)
ALGORITHMS = frozenset(f"{family}{size}" for family in ("RS", "ES", "PS") for size in _HASHES)
"""RFC 7518 section 3.1, as far as JWT-SVID section 2.1 and WIT-SVID section 2.3 allow it."""

_PART = re.compile(r"[A-Za-z0-9_-]+")
_PARTS = 3


@dataclass(frozen=True, slots=True)
class Jws:
    """A token taken apart; nothing about it is believed yet. `signed` are the bytes the signature covers."""

    header: Mapping[str, Any]
    payload: bytes = field(repr=False)
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)


def algorithm_of(key: PublicKey) -> str:
    """The algorithm this system signs with: RS256 for RSA, else the one of the curve (RFC 7518 section 3.4)."""
    return "RS256" if isinstance(key, rsa.RSAPublicKey) else _FOR_CURVE[key.curve.name]


def fits(algorithm: str, key: PublicKey) -> bool:
    """Whether an allowed algorithm can be used with a key: the family by its kind, ES by exactly its curve."""
    if algorithm not in ALGORITHMS:
        return False
    if isinstance(key, rsa.RSAPublicKey):
        return algorithm[:2] in {"RS", "PS"}
    return _CURVES.get(algorithm) == key.curve.name


def encode_part(value: Mapping[str, object]) -> str:
    """A JSON object as one part of a token."""
    return _encoded(_JSON.encode(value).encode())


def sign_compact(header: str, payload: str, key: PrivateKey) -> str:
    """A token of two encoded parts, signed with the algorithm that `algorithm_of` names for the key.

    The key may live in a token or a KMS: it needs `sign` only, and an EC key its `curve`.
    """
    data = f"{header}.{payload}".encode("ascii")
    if isinstance(key, ec.EllipticCurvePrivateKey):
        curve = key.curve
        size = (curve.key_size + 7) // 8
        r, s = decode_dss_signature(key.sign(data, _ECDSA[curve.name]))
        signature = r.to_bytes(size) + s.to_bytes(size)  # RFC 7518 section 3.4: R and S, not DER
    else:
        signature = key.sign(data, padding.PKCS1v15(), _hash_of("RS256"))
    return f"{header}.{payload}.{_encoded(signature)}"


def read_compact(token: str) -> Jws:
    """Take a token apart.

    Raises:
        VerificationFailed: TOO_LARGE or MALFORMED; the message never quotes the token.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise VerificationFailed(f"token: has more than {MAX_TOKEN_BYTES} bytes", Reason.TOO_LARGE)
    parts = token.split(".")
    if len(parts) != _PARTS:
        raise VerificationFailed("token: is not three parts with dots between them", Reason.MALFORMED)
    header, payload, signature = (_decoded(part) for part in parts)
    signed = token.rpartition(".")[0].encode("ascii")
    return Jws(read_object(header, "header"), payload, signed, signature)


def read_object(data: bytes, what: str) -> Mapping[str, Any]:
    """A JSON object without surprises: unique names at every depth, finite numbers, sound text.

    Raises:
        VerificationFailed: MALFORMED.
    """
    try:
        text = data.decode()
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate is not text
    except (ValueError, RecursionError):  # the cause is dropped: it carries the document
        raise VerificationFailed(f"token: its {what} is not sound JSON", Reason.MALFORMED) from None
    if not isinstance(value, dict) or len(value) > MAX_MEMBERS:
        raise VerificationFailed(
            f"token: its {what} is not a JSON object of at most {MAX_MEMBERS} members", Reason.MALFORMED
        )
    return value


def signature_is_good(jws: Jws, algorithm: str, key: PublicKey) -> bool:
    """Whether `key` signed exactly these bytes with `algorithm`; False for an algorithm that does not fit the key."""
    if not fits(algorithm, key):
        return False
    digest = _hash_of(algorithm)
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(_der(jws.signature, key), jws.signed, ec.ECDSA(digest))
        elif algorithm.startswith("PS"):  # RFC 7518 section 3.5: MGF1 with the same hash, salt as long as the hash
            key.verify(jws.signature, jws.signed, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        else:
            key.verify(jws.signature, jws.signed, padding.PKCS1v15(), digest)
    except (InvalidSignature, ValueError):
        return False
    return True


def check_algorithm(algorithm: str, key: PublicKey, *, field: str) -> str:
    """An algorithm that may be used with a key, or the reason why not.

    Raises:
        InvalidRequest: with `field`.
    """
    if algorithm not in ALGORITHMS:
        raise InvalidRequest(f"{field}: must be one of {', '.join(sorted(ALGORITHMS))}", field=field)
    if not fits(algorithm, key):
        raise InvalidRequest(f"{field}: {algorithm} does not fit the key; use {algorithm_of(key)}", field=field)
    return algorithm


def _hash_of(algorithm: str) -> hashes.HashAlgorithm:
    return _HASHES[algorithm[2:]]


def _der(signature: bytes, key: ec.EllipticCurvePublicKey) -> bytes:
    size = (key.curve.key_size + 7) // 8
    if len(signature) != 2 * size:
        raise ValueError("a signature of the wrong length")
    return encode_dss_signature(int.from_bytes(signature[:size]), int.from_bytes(signature[size:]))


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decoded(part: str) -> bytes:
    data = (
        base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) if _PART.fullmatch(part) and len(part) % 4 != 1 else b""
    )
    if not data or _encoded(data) != part:  # unused bits that are not zero: a second spelling of the same bytes
        raise VerificationFailed("token: a part is not base64url without padding", Reason.MALFORMED)
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found


def _refuse(_constant: str) -> NoReturn:
    raise ValueError("not a number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number
