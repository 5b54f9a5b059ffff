"""Which signature algorithms are believed: ECDSA and RSA (PKCS#1 v1.5 or PSS) with SHA-256, SHA-384 or SHA-512.

Under an authority whose key is ML-DSA, its one algorithm (RFC 9881 section 2).
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import mldsa
from cryptography.x509.oid import SignatureAlgorithmOID

from spiffe_core.crypto.keys import AuthorityPublicKey, MlDsaPublicKey, is_ec

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
_ML_DSA: dict[type, x509.ObjectIdentifier] = {
    mldsa.MLDSA44PublicKey: SignatureAlgorithmOID.ML_DSA_44,
    mldsa.MLDSA65PublicKey: SignatureAlgorithmOID.ML_DSA_65,
    mldsa.MLDSA87PublicKey: SignatureAlgorithmOID.ML_DSA_87,
}
_HASHES = frozenset({"sha256", "sha384", "sha512"})


def signature_allowed(
    signed: x509.Certificate | x509.CertificateSigningRequest | x509.CertificateRevocationList,
    signer: AuthorityPublicKey,
) -> bool:
    """Whether `signed` names an allowed algorithm that fits the signer's kind of key."""
    elliptic = is_ec(signer)
    if not elliptic and isinstance(
        signer, MlDsaPublicKey
    ):  # one algorithm for each kind of key, and no hash of its own
        return any(isinstance(signer, kind) and signed.signature_algorithm_oid == oid for kind, oid in _ML_DSA.items())
    allowed = _ECDSA if elliptic else _RSA
    if signed.signature_algorithm_oid not in allowed:
        return False
    try:
        algorithm = signed.signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm):
        return False
    return algorithm is not None and algorithm.name in _HASHES
