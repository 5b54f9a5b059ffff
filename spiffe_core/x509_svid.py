"""X509-SVIDs: the rules a leaf must keep (X509-SVID sections 2 to 5), and an SVID together with its key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from spiffe_core.crypto.certificates import CertificateFacts, public_key_of, read_certificate
from spiffe_core.crypto.keys import PrivateKeyDer, check_public_key, from_pkcs8, spki_der
from spiffe_core.errors import InvalidCertificate, InvalidId, Reason, VerificationFailed
from spiffe_core.spiffe_id import SpiffeId

MAX_CHAIN = 10


def leaf_spiffe_id(cert: x509.Certificate) -> SpiffeId:
    """The SPIFFE ID of a certificate: its one URI SAN, with a path.

    Raises:
        VerificationFailed: NO_SPIFFE_ID, BAD_SPIFFE_ID or MALFORMED.
    """
    return spiffe_id_of(_facts(cert))


def check_leaf(cert: x509.Certificate) -> SpiffeId:
    """Check the rules for leaves and return the SPIFFE ID. Signature, dates and trust are not looked at.

    Raises:
        VerificationFailed: with the reason.
    """
    return check_leaf_facts(_facts(cert))


def check_leaf_facts(facts: CertificateFacts) -> SpiffeId:
    """`check_leaf` for a certificate that is already read."""
    # To treat a certificate as a leaf SVID (X509-SVID sections 2, 4 and 5.2) we must know that
    #   1. it is not a signing certificate: cA false, neither keyCertSign nor cRLSign
    #   2. keyUsage is present, critical, and allows digital signatures
    #   3. it has exactly one URI SAN, which is a SPIFFE ID with a path
    if facts.is_ca:  # (1)
        raise VerificationFailed("the leaf is a CA certificate (X509-SVID 5.2)", Reason.NOT_A_LEAF)
    usage = facts.key_usage
    if usage is not None and (usage.key_cert_sign or usage.crl_sign):
        raise VerificationFailed("the leaf may sign certificates or CRLs (X509-SVID 5.2)", Reason.NOT_A_LEAF)
    if usage is None or not facts.key_usage_critical:  # (2)
        raise VerificationFailed("the leaf has no critical keyUsage (X509-SVID 4.3)", Reason.KEY_USAGE)
    if not usage.digital_signature:
        raise VerificationFailed("the leaf's keyUsage lacks digitalSignature (X509-SVID 4.3)", Reason.KEY_USAGE)
    return spiffe_id_of(facts)  # (3)


def spiffe_id_of(facts: CertificateFacts) -> SpiffeId:
    """`leaf_spiffe_id` for a certificate that is already read."""
    names = facts.alternative_names
    uris = names.get_values_for_type(x509.UniformResourceIdentifier) if names is not None else []
    if not uris:
        raise VerificationFailed("the certificate has no URI SAN (X509-SVID 2)", Reason.NO_SPIFFE_ID)
    if len(uris) > 1:
        raise VerificationFailed("the certificate has more than one URI SAN (X509-SVID 2)", Reason.BAD_SPIFFE_ID)
    try:
        spiffe_id = SpiffeId.parse(uris[0], field="URI SAN")
    except InvalidId as refusal:
        raise VerificationFailed(refusal.public, Reason.BAD_SPIFFE_ID) from None
    if not spiffe_id.path:
        raise VerificationFailed("URI SAN: the SPIFFE ID of a leaf has a path (X509-SVID 5.2)", Reason.BAD_SPIFFE_ID)
    return spiffe_id


@dataclass(frozen=True, slots=True)
class X509Svid:
    """An X509-SVID that its holder may use: certificates leaf first without the root, and the leaf's private key.

    Made by `load`. `not_before` and `not_after` are the leaf's.
    """

    spiffe_id: SpiffeId
    chain: tuple[bytes, ...] = field(repr=False)
    key: PrivateKeyDer
    not_before: datetime
    not_after: datetime
    hint: str = ""

    @classmethod
    def load(cls, chain: Sequence[bytes], key: bytes | PrivateKeyDer, *, hint: str = "") -> X509Svid:
        """Read and check an SVID of our own.

        Raises:
            InvalidCertificate: with the field `chain` or `key`.
        """
        # To use an SVID we must know that
        #   1. there is a chain of a sane length and every certificate in it can be read
        #   2. the first is a leaf by SPIFFE's rules
        #   3. each certificate is signed by the next
        #   4. the key is an unencrypted PKCS#8 key and belongs to the leaf
        # Whether anybody trusts the chain, and whether it is valid now, is asked by whoever verifies it.
        if not 0 < len(chain) <= MAX_CHAIN:  # (1)
            raise InvalidCertificate(f"chain: must have 1 to {MAX_CHAIN} certificates", field="chain")
        facts = [read_certificate(der, field="chain") for der in chain]
        try:
            spiffe_id = check_leaf_facts(facts[0])  # (2)
        except VerificationFailed as refusal:
            raise InvalidCertificate(f"chain: {refusal.public}", field="chain", reason=refusal.reason) from None
        _check_signatures(facts)  # (3)
        secret = key if isinstance(key, PrivateKeyDer) else PrivateKeyDer(key)
        private = from_pkcs8(secret, field="key")  # (4)
        leaf_key = check_public_key(public_key_of(facts[0], field="chain"), field="chain")
        if spki_der(private.public_key()) != spki_der(leaf_key):
            raise InvalidCertificate("key: is not the private key of the leaf certificate", field="key")
        return cls(spiffe_id, tuple(bytes(der) for der in chain), secret, facts[0].not_before, facts[0].not_after, hint)


def _check_signatures(facts: Sequence[CertificateFacts]) -> None:
    for child, parent in pairwise(facts):
        try:
            child.certificate.verify_directly_issued_by(parent.certificate)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            raise InvalidCertificate("chain: a certificate is not signed by the next one", field="chain") from None


def _facts(cert: x509.Certificate) -> CertificateFacts:
    try:
        return read_certificate(cert.public_bytes(Encoding.DER))
    except InvalidCertificate as refusal:
        raise VerificationFailed(refusal.public, Reason.MALFORMED) from None
