"""Certificate revocation lists: DER in, values that can say no out (RFC 5280 section 5).

SPIFFE has a place for them in the Workload API and asks nothing of clients; SVIDs are short-lived, and an authority
that is revoked leaves its bundle. Whoever checks them all the same (`BundleSet.revocations`) takes a list as a reason
to refuse, never as a reason to believe: a list that is old, or of an authority nobody asked about, changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from spiffe_core.crypto.algorithms import signature_allowed
from spiffe_core.crypto.certificates import CertificateFacts
from spiffe_core.crypto.keys import AuthorityPublicKey
from spiffe_core.errors import InvalidBundle

MAX_LISTS = 100
MAX_LIST_BYTES = 1024 * 1024

_UNREADABLE = (ValueError, TypeError, x509.InvalidVersion, x509.DuplicateExtension, UnsupportedAlgorithm)


@dataclass(frozen=True, slots=True)
class RevocationList:
    """One complete list. Two of the same bytes are equal."""

    der: bytes = field(repr=False)
    listed: x509.CertificateRevocationList = field(init=False, compare=False, repr=False)
    issuer: x509.Name = field(init=False, compare=False)

    def __post_init__(self) -> None:
        listed, issuer = _read(self.der)
        object.__setattr__(self, "listed", listed)
        object.__setattr__(self, "issuer", issuer)

    def revokes(self, certificate: CertificateFacts, issuer: CertificateFacts, key: AuthorityPublicKey) -> bool:
        """Whether `issuer`, whose key is `key`, has said in this list that `certificate` is not to be believed."""
        # To refuse a certificate for a list (RFC 5280 section 6.3.3) we must know that
        #   1. its issuer is the issuer of the certificate, and names it by its serial number
        #   2. the issuer may sign lists: cRLSign, if it has a keyUsage
        #   3. the issuer's key made the signature, with an algorithm that is allowed
        if self.issuer != issuer.subject:  # (1)
            return False
        if self.listed.get_revoked_certificate_by_serial_number(certificate.certificate.serial_number) is None:
            return False
        if issuer.key_usage is not None and not issuer.key_usage.crl_sign:  # (2)
            return False
        try:
            return signature_allowed(self.listed, key) and self.listed.is_signature_valid(key)  # (3)
        except (TypeError, UnsupportedAlgorithm):  # a kind of key that this library checks no lists with
            return False


def revocation_lists(lists: Sequence[bytes], *, name: str = "crl") -> tuple[RevocationList, ...]:
    """The lists that came in a field called `name`.

    Raises:
        InvalidBundle: one of them cannot be read, or there are too many; none may then be used.
    """
    if len(lists) > MAX_LISTS:
        raise InvalidBundle(f"{name}: must have at most {MAX_LISTS} elements", field=name)
    found: list[RevocationList] = []
    for number, der in enumerate(lists):
        try:
            found.append(RevocationList(der))
        except InvalidBundle as refusal:
            at = f"{name}[{number}]"
            raise InvalidBundle(f"{at}: {refusal.public}", field=at) from None
    return tuple(found)


def _read(der: bytes) -> tuple[x509.CertificateRevocationList, x509.Name]:
    """A list of one issuer about its own certificates, wholly understood, and that issuer, read when asked for.

    A critical extension says that the list is something else: a delta, or one about other issuers' certificates.
    """
    if len(der) > MAX_LIST_BYTES:
        raise InvalidBundle(f"a revocation list has more than {MAX_LIST_BYTES} bytes")
    try:
        listed = x509.load_der_x509_crl(der)
        issuer = listed.issuer
        critical = [extension.oid.dotted_string for extension in listed.extensions if extension.critical]
    except _UNREADABLE:
        raise InvalidBundle("is not a readable revocation list in DER") from None
    if critical:
        raise InvalidBundle(f"the critical extension {critical[0]} of a revocation list is not understood")
    return listed, issuer
