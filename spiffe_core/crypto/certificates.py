"""X.509 certificates, read once and strictly: DER in, a record of what path validation needs out.

Reading is not believing: nothing here checks a signature, a date or a policy. What cannot be read is refused whole,
because a certificate that two libraries understand differently is worse than none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ObjectIdentifier

from spiffe_core.errors import InvalidCertificate

MAX_CERTIFICATE_BYTES = 64 * 1024

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

MAX_KEPT = 32
"""Certificates that are kept as they were read last."""

_UNREADABLE = (
    ValueError,
    TypeError,  # a name constraint whose address has 4 bytes, say
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    UnsupportedAlgorithm,
    CryptographyDeprecationWarning,
)


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """A certificate and its extensions. An absent extension is None (or empty); nothing is defaulted."""

    certificate: x509.Certificate
    der: bytes
    subject: x509.Name
    issuer: x509.Name
    not_before: datetime
    not_after: datetime
    basic_constraints: x509.BasicConstraints | None
    key_usage: x509.KeyUsage | None
    key_usage_critical: bool
    extended_key_usage: frozenset[ObjectIdentifier] | None
    alternative_names: x509.SubjectAlternativeName | None
    alternative_names_critical: bool
    name_constraints: x509.NameConstraints | None
    subject_key_id: bytes | None
    authority_key_id: bytes | None
    unknown_critical: tuple[str, ...]

    @property
    def is_ca(self) -> bool:
        """Whether basicConstraints says cA=TRUE."""
        return self.basic_constraints is not None and self.basic_constraints.ca

    @property
    def self_issued(self) -> bool:
        """Whether subject and issuer are the same name (RFC 5280 section 3.2)."""
        return self.subject == self.issuer


def read_certificate(der: bytes, *, field: str = "certificate") -> CertificateFacts:
    """Read one certificate: DER, no trailing bytes, no extension twice or before version 3, at most 64 KiB.

    Raises:
        InvalidCertificate: with `field`.
    """
    if not der:
        raise InvalidCertificate(f"{field}: is empty", field=field)
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise InvalidCertificate(f"{field}: has more than {MAX_CERTIFICATE_BYTES} bytes", field=field)
    try:
        return _read(der)
    except _UNREADABLE:
        raise InvalidCertificate(f"{field}: is not a readable X.509 certificate in DER", field=field) from None


@lru_cache(MAX_KEPT)
def _read(der: bytes) -> CertificateFacts:
    """One certificate is looked at several times in a row: for its form, its path and its authorities."""
    return _facts(x509.load_der_x509_certificate(der), der)


def public_key_of(facts: CertificateFacts, *, field: str = "certificate") -> CertificatePublicKeyTypes:
    """The certificate's key, of whatever kind; the policies are in `spiffe_core.crypto.keys`.

    Raises:
        InvalidCertificate: the key cannot be read.
    """
    try:
        return facts.certificate.public_key()
    except _UNREADABLE:
        raise InvalidCertificate(f"{field}: the public key cannot be read", field=field) from None


def key_id_of(facts: CertificateFacts) -> str:
    """The authority ID: the subject key identifier in lower-case hex, computed when the certificate has none.

    Raises:
        InvalidCertificate: the certificate has none and its key cannot be read.
    """
    if facts.subject_key_id is not None:
        return facts.subject_key_id.hex()
    return x509.SubjectKeyIdentifier.from_public_key(public_key_of(facts)).digest.hex()


def _facts(certificate: x509.Certificate, der: bytes) -> CertificateFacts:
    if certificate.version is not x509.Version.v3 and len(certificate.extensions):
        raise ValueError("extensions in a certificate before version 3 (RFC 5280 section 4.1.2.9)")
    found: dict[type[x509.ExtensionType], x509.Extension[x509.ExtensionType]] = {}
    for extension in certificate.extensions:
        found[type(extension.value)] = extension
    key_usage = found.get(x509.KeyUsage)
    names = found.get(x509.SubjectAlternativeName)
    extended = _value(found, x509.ExtendedKeyUsage)
    subject_key = _value(found, x509.SubjectKeyIdentifier)
    authority_key = _value(found, x509.AuthorityKeyIdentifier)
    return CertificateFacts(
        certificate=certificate,
        der=der,
        subject=certificate.subject,
        issuer=certificate.issuer,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        basic_constraints=_value(found, x509.BasicConstraints),
        key_usage=_value(found, x509.KeyUsage),
        key_usage_critical=key_usage is not None and key_usage.critical,
        extended_key_usage=None if extended is None else frozenset(extended),
        alternative_names=_value(found, x509.SubjectAlternativeName),
        alternative_names_critical=names is not None and names.critical,
        name_constraints=_value(found, x509.NameConstraints),
        subject_key_id=None if subject_key is None else subject_key.digest,
        authority_key_id=None if authority_key is None else authority_key.key_identifier,
        unknown_critical=_unknown(certificate.extensions),
    )


# certificatePolicies may be critical: with every policy acceptable and none demanded it cannot fail a path. The
# extensions that demand one (policyConstraints, inhibitAnyPolicy) are not understood here and refused when critical.
_UNDERSTOOD = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.SubjectAlternativeName,
    x509.NameConstraints,
    x509.SubjectKeyIdentifier,
    x509.AuthorityKeyIdentifier,
    x509.CertificatePolicies,
)


def _unknown(extensions: Iterable[x509.Extension[x509.ExtensionType]]) -> tuple[str, ...]:
    return tuple(e.oid.dotted_string for e in extensions if e.critical and not isinstance(e.value, _UNDERSTOOD))


def _value(
    found: Mapping[type[x509.ExtensionType], x509.Extension[x509.ExtensionType]], kind: type[_Extension]
) -> _Extension | None:
    extension = found.get(kind)
    return extension.value if extension is not None and isinstance(extension.value, kind) else None
