"""The Java key store of before PKCS#12 (JKS), for programs that read nothing else: a key entry, trusted certificates.

Its protection is SHA-1 of the password, so the file's mode is what protects the key; Java itself advises PKCS#12. The
layout is that of `sun.security.provider.JavaKeyStore` and `KeyProtector`: big-endian numbers, Java's strings, a SHA-1
of password, magic words and content at the end. The key is hidden under a key stream made of password and salt. A salt
that came twice with two keys would show both, so it is made of the key: each key has its own, and the same content
gives the same bytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from spiffe_core.crypto.keys import PrivateKeyDer
from spiffe_core.errors import ConfigError

KEY_ALIAS: Final = "svid"
"""Java looks aliases up in lower case."""
AUTHORITY_ALIAS: Final = "authority-{}"
NOT_ASCII: Final = "jks_password_file: must hold ASCII characters"
_MAGIC, _VERSION = 0xFEEDFEED, 2
_PRIVATE, _TRUSTED = 1, 2
_WORDS = b"Mighty Aphrodite"
_SALT_BYTES = 20
_ALGORITHM = bytes.fromhex("300e060a2b060104012a021101010500")
"""AlgorithmIdentifier of Sun's key protector, 1.3.6.1.4.1.42.2.17.1.1, with NULL parameters."""


def key_store(
    chain: Sequence[bytes], key: PrivateKeyDer, roots: Iterable[bytes], password: str, *, created: datetime
) -> bytes:
    """A store with the identity under `svid` and each authority under `authority-N`. Certificates are DER.

    Raises:
        ConfigError: the password is not ASCII, which Java's tools could not type.
    """
    if not password.isascii():
        raise ConfigError(NOT_ASCII, field="jks_password_file")
    secret = password.encode("utf-16-be")
    moment = int(created.timestamp() * 1000)
    hidden = _protected(key.reveal(), secret)
    entries = [
        struct.pack(">I", _PRIVATE) + _text(KEY_ALIAS) + struct.pack(">qI", moment, len(hidden)) + hidden,
        struct.pack(">I", len(chain)) + b"".join(map(_certificate, chain)),
    ]
    trusted = list(dict.fromkeys(roots))
    for number, root in enumerate(trusted):
        entries.append(struct.pack(">I", _TRUSTED) + _text(AUTHORITY_ALIAS.format(number)) + struct.pack(">q", moment))
        entries.append(_certificate(root))
    content = struct.pack(">III", _MAGIC, _VERSION, 1 + len(trusted)) + b"".join(entries)
    return content + _sha1(secret + _WORDS + content)


def _protected(plain: bytes, secret: bytes) -> bytes:
    """An EncryptedPrivateKeyInfo: salt, key under the stream, and a SHA-1 by which a wrong password is noticed."""
    salt = block = hashlib.sha256(b"jks salt" + plain).digest()[:_SALT_BYTES]
    stream = b""
    while len(stream) < len(plain):
        block = _sha1(secret + block)
        stream += block
    hidden = bytes(one ^ other for one, other in zip(plain, stream, strict=False))
    return _der(0x30, _ALGORITHM + _der(0x04, salt + hidden + _sha1(secret + plain)))


def _certificate(der: bytes) -> bytes:
    return _text("X.509") + struct.pack(">I", len(der)) + der


def _text(text: str) -> bytes:
    return struct.pack(">H", len(text)) + text.encode("ascii")


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:  # noqa: PLR2004  # DER's short form
        return bytes((tag, size)) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def _sha1(data: bytes) -> bytes:
    return hashlib.sha1(data, usedforsecurity=False).digest()
