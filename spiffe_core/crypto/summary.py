"""A certificate as people are shown it: who, until when, under which subject."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID

from spiffe_core.errors import InvalidId
from spiffe_core.spiffe_id import SpiffeId

_NAMES = {NameOID.SERIAL_NUMBER: "SERIALNUMBER"}
"""What RFC 4514 has no short name for and stands in the subject of every authority; SPIRE shows it so."""


@dataclass(frozen=True, slots=True)
class CertificateSummary:
    """`expires_at` is in unix seconds, `subject` in RFC 4514's notation; an authority need not have a SPIFFE ID."""

    spiffe_id: SpiffeId | None
    expires_at: int
    subject: str


def summary_of(der: bytes) -> CertificateSummary:
    """Read one of our own certificates.

    Raises:
        ValueError: it is not a certificate.
    """
    certificate = x509.load_der_x509_certificate(der)
    end = int(certificate.not_valid_after_utc.timestamp())
    return CertificateSummary(_spiffe_id(certificate), end, certificate.subject.rfc4514_string(_NAMES))


def _spiffe_id(certificate: x509.Certificate) -> SpiffeId | None:
    """The SPIFFE ID of a leaf or an authority; a root need not have one."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        return SpiffeId.parse(uris[0]) if len(uris) == 1 else None
    except (x509.ExtensionNotFound, ValueError, InvalidId):
        return None
