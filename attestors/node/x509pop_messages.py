"""The messages of x509pop, which are SPIRE's: JSON objects with standard base64 (spire_wire section 7).

These are they:

    payload     {"certificates": [DER, ...]}, leaf first
    challenge   {"rsa_signature": {"nonce"}} or {"ecdsa_signature": {"nonce"}}, by the kind of the leaf's key
    response    {"rsa_signature": {"nonce", "signature"}} (PSS) or {"ecdsa_signature": {"nonce", "r", "s"}}
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric import rsa

from spiffe_core.crypto.keys import PublicKey
from spiffe_core.errors import InvalidRequest


def member(document: Mapping[str, object], name: str, field: str) -> Mapping[str, object]:
    """The object under `name`; InvalidRequest if there is none."""
    found = document.get(name)
    if not isinstance(found, dict):
        raise InvalidRequest(f"{field}: holds no {name}", field=field)
    return found


def bytes_in(value: object, field: str, limit: int) -> bytes:
    """Standard base64 with padding, as Go writes bytes; at most `limit` of them."""
    if not isinstance(value, str) or not value or len(value) > limit * 4 // 3 + 4:
        raise InvalidRequest(f"{field}: must be base64 of 1 to {limit} bytes", field=field)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{field}: is not base64", field=field) from None


def kind_of(key: PublicKey) -> str:
    """What challenge and response are called for such a key."""
    return "rsa_signature" if isinstance(key, rsa.RSAPublicKey) else "ecdsa_signature"


def minimal(number: int) -> bytes:
    """Big-endian without leading zeros, as Go's `big.Int.Bytes`."""
    return number.to_bytes((number.bit_length() + 7) // 8)


def b64(data: bytes) -> str:
    """As Go writes bytes."""
    return base64.b64encode(data).decode("ascii")


def json_bytes(document: object) -> bytes:
    """As Go writes it, without spaces."""
    return json.dumps(document, separators=(",", ":")).encode("ascii")
