"""Tokens for tests, good and spoiled, made without the code under test: an independent little JOSE."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

SHA = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


def b64(data: bytes | str) -> str:
    return base64.urlsafe_b64encode(data.encode() if isinstance(data, str) else data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of a token, unverified."""
    header, claims, _ = token.split(".")
    return json.loads(unb64(header)), json.loads(unb64(claims))


def raw_signature(key: Any, algorithm: str, data: bytes) -> bytes:
    """The signature of RFC 7518 section 3 for any algorithm, allowed or not."""
    if algorithm == "none":
        return b""
    if algorithm.startswith("HS"):
        return hmac.new(key, data, hashlib.sha256).digest()
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    digest = SHA.get(algorithm[-3:], hashes.SHA256())
    if isinstance(key, rsa.RSAPrivateKey):
        pad: Any = padding.PSS(padding.MGF1(digest), digest.digest_size) if algorithm[0] == "P" else padding.PKCS1v15()
        return key.sign(data, pad, digest)
    size = (key.curve.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
    return r.to_bytes(size) + s.to_bytes(size)


def token(key: Any, header: Any, claims: Any, *, algorithm: str = "") -> str:
    """A signed token; header and claims are objects, or text that stands there as it is."""
    shown = header if isinstance(header, str) else json.dumps(header)
    said = claims if isinstance(claims, str) else json.dumps(claims)
    data = f"{b64(shown)}.{b64(said)}"
    chosen = algorithm or header["alg"]
    return f"{data}.{b64(raw_signature(key, chosen, data.encode()))}"
