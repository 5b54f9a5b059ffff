"""Where the ACME account's key and the certificate are kept: the data directory's folder `acme`, files of mode 0600."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from spiffe_core.crypto.keys import KeyKind, generate, spki_der, to_pkcs8
from spiffe_core.errors import IdentityError, Unavailable
from spiffe_core.runtime.durable import private_directory, read_private, write_durably
from spiffe_core.wire.tls import TlsIdentity

log = logging.getLogger(__name__)

MAX_BYTES = 256 * 1024
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class WebCertificate:
    """A certificate with its key, as it is presented."""

    identity: TlsIdentity = field(repr=False)
    not_before: datetime
    not_after: datetime


def certificate_of(key: ec.EllipticCurvePrivateKey, chain_pem: bytes, domain: str, now: datetime) -> WebCertificate:
    """The certificate in a PEM chain, leaf first, if it is one for this key, this name and this moment.

    Raises:
        Unavailable: naming what does not fit.
    """
    try:
        chain = [x509.load_pem_x509_certificate(block) for block in _PEM.findall(chain_pem[:MAX_BYTES])]
        leaf = chain[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        fits = spki_der(key.public_key()) == spki_der(leaf.public_key())  # type: ignore[arg-type]  # or it does not fit
    except (ValueError, IndexError, TypeError, x509.ExtensionNotFound, IdentityError):
        raise Unavailable("the certificate cannot be read") from None
    if not fits:
        raise Unavailable("the certificate is for another key")
    if domain.lower() not in {name.lower() for name in names.get_values_for_type(x509.DNSName)}:
        raise Unavailable(f"the certificate does not name {domain}")
    if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
        raise Unavailable("the certificate is not valid now")
    identity = TlsIdentity(tuple(one.public_bytes(Encoding.DER) for one in chain), to_pkcs8(key))
    return WebCertificate(identity, leaf.not_valid_before_utc, leaf.not_valid_after_utc)


class AcmeStore:
    """Blocks; for threads. One account for each directory and one certificate for each name."""

    def __init__(self, folder: Path, directory_url: str, domain: str) -> None:
        self._folder, self._domain = folder, domain
        digest = hashlib.sha256(directory_url.encode()).hexdigest()[:16]
        self._account = folder / f"account-{digest}.pem"
        self._certificate = folder / f"certificate-{domain.lower()}-{digest}.pem"

    def account_key(self) -> ec.EllipticCurvePrivateKey:
        """The account's key, made when there is none.

        Raises:
            CorruptState: the file cannot be used.
        """
        private_directory(self._folder)
        try:
            data = read_private(self._account, max_bytes=MAX_BYTES)
        except FileNotFoundError:
            key = new_key()
            write_durably(self._account, key_pem(key))
            return key
        try:
            known = load_pem_private_key(data, None)
        except (ValueError, TypeError):
            known = None
        if not isinstance(known, ec.EllipticCurvePrivateKey):
            raise Unavailable(f"{self._account} holds no key; delete it to register anew")
        return known

    def load(self, now: datetime) -> WebCertificate | None:
        """The certificate that was kept, if it can still be presented."""
        try:
            data = read_private(self._certificate, max_bytes=MAX_BYTES)
            key = load_pem_private_key(data, None)
            if isinstance(key, ec.EllipticCurvePrivateKey):
                return certificate_of(key, data, self._domain, now)
        except FileNotFoundError:
            return None
        except (IdentityError, ValueError, TypeError) as error:
            log.info("%s is not used, a new certificate is ordered: %s", self._certificate, error)
        return None

    def save(self, key: ec.EllipticCurvePrivateKey, chain_pem: bytes) -> None:
        """Key and chain in one file, so that neither is ever there without the other."""
        write_durably(self._certificate, key_pem(key) + chain_pem)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key for an account or a certificate."""
    key = generate(KeyKind.EC_P256)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as it is written down."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
