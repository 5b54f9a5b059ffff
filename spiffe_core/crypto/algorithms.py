"""Which signature algorithms are believed: ECDSA and RSA (PKCS#1 v1.5 or PSS) with SHA-256, SHA-384 or SHA-512."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import SignatureAlgorithmOID

from spiffe_core.crypto.keys import PublicKey

_ECDSA = frozenset(
    {
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,
        SignatureAlgorithmOID.ECDSA_WITH_SHA512,
    }
)
_RSA = frozenset(
    {
        SignatureAlgorithmOID.RSA_WITH_SHA256,
        SignatureAlgorithmOID.RSA_WITH_SHA384,
        SignatureAlgorithmOID.RSA_WITH_SHA512,
        SignatureAlgorithmOID.RSASSA_PSS,
    }
)
_HASHES = frozenset({"sha256", "sha384", "sha512"})


def signature_allowed(signed: x509.Certificate | x509.CertificateSigningRequest, signer: PublicKey) -> bool:
    """Whether `signed` names an allowed algorithm that fits the signer's kind of key."""
    allowed = _ECDSA if isinstance(signer, ec.EllipticCurvePublicKey) else _RSA
    if signed.signature_algorithm_oid not in allowed:
        return False
    try:
        algorithm = signed.signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm):
        return False
    return algorithm is not None and algorithm.name in _HASHES
