"""Certificates and private keys that an operator provides as PEM files: read anew whenever they are needed.

Files are followed through symbolic links (that is how Kubernetes and ACME clients replace them); what counts is the
file that was opened. Messages name the setting and the path and never quote what was read.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.utils import CryptographyDeprecationWarning

from spiffe_core.crypto.certificates import read_certificate
from spiffe_core.crypto.keys import PrivateKey, check_verification_key
from spiffe_core.errors import ConfigError, InvalidCertificate

MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_KEY_FILE_BYTES = 64 * 1024
MAX_CERTIFICATES = 1000
OTHERS = 0o007
"""Access by everybody: what a key file may never allow."""
GROUP_AND_OTHERS = 0o077
"""Access by anybody but the owner."""

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def read_pem_certificates(path: Path, *, field: str) -> tuple[bytes, ...]:
    """The certificates in a PEM file as DER, in order; at least one. Text between them is passed over.

    Raises:
        ConfigError: with `field`, naming the path.
    """
    data = _read(path, field, MAX_FILE_BYTES, 0)
    blocks = _PEM.findall(data)
    if not blocks or len(blocks) > MAX_CERTIFICATES:
        raise ConfigError(f"{field}: {path} must hold 1 to {MAX_CERTIFICATES} certificates in PEM", field=field)
    found = []
    for number, block in enumerate(blocks, 1):
        try:
            der = x509.load_pem_x509_certificate(block).public_bytes(Encoding.DER)
            found.append(read_certificate(der, field=field).der)
        except (ValueError, InvalidCertificate, x509.InvalidVersion, CryptographyDeprecationWarning):
            raise ConfigError(f"{field}: certificate {number} in {path} cannot be read", field=field) from None
    return tuple(found)


def read_pem_key(path: Path, *, field: str, refused_mode: int = GROUP_AND_OTHERS) -> PrivateKey:
    """The private key in a PEM file (PKCS#8, PKCS#1 or SEC 1, not encrypted), EC or RSA of an allowed kind.

    Raises:
        ConfigError: with `field`, naming the path: it cannot be read, allows what `refused_mode` names, or is no such
            key.
    """
    data = _read(path, field, MAX_KEY_FILE_BYTES, refused_mode)
    try:
        key = load_pem_private_key(data, None)
    except TypeError:
        raise ConfigError(f"{field}: {path} is encrypted; store the key unencrypted, mode 0600", field=field) from None
    except (ValueError, UnsupportedAlgorithm, CryptographyDeprecationWarning):
        # The cause is dropped: its text could quote the file.
        raise ConfigError(f"{field}: {path} holds no private key in PEM", field=field) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ConfigError(f"{field}: {path} must hold an EC or RSA key", field=field)
    try:
        check_verification_key(key.public_key(), field=field)
    except InvalidCertificate as error:
        raise ConfigError(f"{error.public} ({path})", field=field) from None
    return key


def file_stamp(path: Path) -> tuple[int, int, int, int]:
    """Changes whenever the file is replaced or rewritten; zeros while there is none."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0, 0)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _read(path: Path, field: str, limit: int, refused_mode: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{field}: {path} is not a regular file", field=field)
            if status.st_mode & refused_mode:
                raise ConfigError(
                    f"{field}: {path} holds a private key and has mode {stat.S_IMODE(status.st_mode):04o}; "
                    "chmod 0600 it",
                    field=field,
                )
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{field}: {path} cannot be read: {error.strerror}", field=field) from None
    if len(data) > limit:
        raise ConfigError(f"{field}: {path} is larger than {limit} bytes", field=field)
    return data
