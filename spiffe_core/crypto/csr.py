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
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import NameOID

from spiffe_core.crypto.algorithms import signature_allowed
from spiffe_core.crypto.keys import PrivateKey, PublicKey, SubjectKey, check_public_key, is_ec, is_p256_spki, spki_der
from spiffe_core.errors import InvalidCertificate, InvalidCsr
from spiffe_core.spiffe_id import SpiffeId

MAX_CSR_BYTES = 16 * 1024
_LONG_FORM = 0x80
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
    request, key = _proven(der, field)
    uri_sans, dns_names = _names(request, field)
    try:
        subject = request.subject
    except ValueError:
        raise InvalidCsr(f"{field}: the subject cannot be read", field=field) from None
    return Csr(key.public_key, hashlib.sha256(key.spki).digest(), key.spki, uri_sans, dns_names, subject)


def proven_key(der: bytes, *, field: str = "csr") -> SubjectKey:
    """Read and check a request of which only the key is wanted: whoever signs by an entry ignores its names anyway.

    Raises:
        InvalidCsr: with `field`; the message names the rule.
    """
    return _proven(der, field)[1]


def _proven(der: bytes, field: str) -> tuple[x509.CertificateSigningRequest, SubjectKey]:
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
    info, spki = _info_and_key(der)
    public_key = _public_key(request, spki, field)  # (3)
    _check_algorithm(request, public_key, field)  # (4)
    if not _signature_good(request, info, public_key):  # (5)
        raise InvalidCsr(f"{field}: the signature does not verify with the request's own key", field=field)
    return request, SubjectKey(public_key, spki if is_p256_spki(spki) else spki_der(public_key))


def _info_and_key(der: bytes) -> tuple[bytes, bytes]:
    """CertificationRequestInfo, which is what was signed, and the SubjectPublicKeyInfo in it (RFC 2986 section 4.1).

    For bytes that were found to be a request: its DER is sound. Writing both again from what was read takes longer than
    all that is checked before the signature.
    """
    start = _inside(der, 0)
    end = _after(der, start)
    subject = _after(der, _inside(der, start))
    key = _after(der, subject)
    return der[start:end], der[key : _after(der, key)]


def _inside(der: bytes, at: int) -> int:
    """Where the contents of the element at `at` start (X.690 section 8.1.3)."""
    length = der[at + 1]
    return at + 2 if length < _LONG_FORM else at + 2 + length - _LONG_FORM


def _after(der: bytes, at: int) -> int:
    """Where it ends."""
    length, start = der[at + 1], at + 2
    if length < _LONG_FORM:
        return start + length
    first, start = start, start + length - _LONG_FORM
    return start + int.from_bytes(der[first:start])


def _public_key(request: x509.CertificateSigningRequest, spki: bytes, field: str) -> PublicKey:
    """The key in `spki`: what is certified in the end are these bytes, so the usual key is read from nothing else."""
    try:
        if is_p256_spki(spki):
            return check_public_key(load_der_public_key(spki), field=field)
        read = check_public_key(request.public_key(), field=field)
    except InvalidCertificate as refusal:
        raise InvalidCsr(refusal.public, field=field) from None
    except (ValueError, UnsupportedAlgorithm, CryptographyDeprecationWarning):
        raise InvalidCsr(f"{field}: the public key cannot be read; use EC P-256", field=field) from None
    if is_ec(read) and spki_der(read) != spki:  # RFC 5480 section 2.1.1; CVE-2020-0601 is what parameters can lead to
        raise InvalidCsr(f"{field}: an EC key must name its curve and be uncompressed", field=field)
    return read


def _check_algorithm(request: x509.CertificateSigningRequest, public_key: PublicKey, field: str) -> None:
    if not signature_allowed(request, public_key):
        raise InvalidCsr(
            f"{field}: the signature algorithm {request.signature_algorithm_oid.dotted_string} is not allowed for this "
            "key; use ECDSA or RSA with SHA-256, SHA-384 or SHA-512",
            field=field,
        )


def _signature_good(request: x509.CertificateSigningRequest, info: bytes, public_key: PublicKey) -> bool:
    """Whether the request's own key made its signature; an EC key is not decoded a second time for it (15 % less)."""
    algorithm = request.signature_hash_algorithm
    if not is_ec(public_key) or algorithm is None:
        return request.is_signature_valid
    try:
        public_key.verify(request.signature, info, _ECDSA[algorithm.name])
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
