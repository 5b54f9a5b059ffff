"""PEM for programs that read it (RFC 7468): certificates one after the other, keys as unencrypted PKCS#8."""

from __future__ import annotations

import base64
from collections.abc import Iterable

from spiffe_core.crypto.keys import PrivateKeyDer

_LINE = 64


def certificates_pem(certificates: Iterable[bytes]) -> bytes:
    """DER certificates as PEM blocks."""
    return b"".join(_block(b"CERTIFICATE", der) for der in certificates)


def private_key_pem(key: PrivateKeyDer) -> bytes:
    """A private key as one PEM block. A secret."""
    return _block(b"PRIVATE KEY", key.reveal())


def _block(label: bytes, der: bytes) -> bytes:
    body = base64.b64encode(der)
    lines = b"\n".join(body[start : start + _LINE] for start in range(0, len(body), _LINE))
    return b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (label, lines, label)
