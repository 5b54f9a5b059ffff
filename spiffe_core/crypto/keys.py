"""Asymmetric keys: which kinds exist here, how they are written down, and which public keys are believed.

Three policies: `check_public_key` says which keys we certify (SPIRE's kinds), `check_verification_key` which keys may
verify something, where foreign trust domains choose, and `check_authority_key` which keys may sign certificates: those
and, as an experiment, ML-DSA (FIPS 204, RFC 9881). All look at numbers only and refuse before any signature is checked
with the key.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import hmac
import math
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias, TypeGuard

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
)
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509 import SubjectKeyIdentifier

from spiffe_core.errors import InvalidCertificate

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
MlDsaPrivateKey: TypeAlias = mldsa.MLDSA44PrivateKey | mldsa.MLDSA65PrivateKey | mldsa.MLDSA87PrivateKey
MlDsaPublicKey: TypeAlias = mldsa.MLDSA44PublicKey | mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey
AuthorityKey: TypeAlias = PrivateKey | MlDsaPrivateKey
"""What may sign certificates."""
AuthorityPublicKey: TypeAlias = PublicKey | MlDsaPublicKey

_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, CryptographyDeprecationWarning)

MAX_PRIVATE_KEY_BYTES = 16 * 1024
MAX_PUBLIC_KEY_BYTES = 4 * 1024

_CERTIFIED_CURVES = frozenset({"secp256r1", "secp384r1"})
_VERIFIED_CURVES = _CERTIFIED_CURVES | {"secp521r1"}
_MIN_RSA_BITS = 2048
_MAX_CERTIFIED_RSA_BITS = 4096
_MAX_VERIFIED_RSA_BITS = 8192
_MIN_RSA_EXPONENT = 65537
_MAX_RSA_EXPONENT = 2**31 - 1  # the largest that Go's crypto/rsa can use
_FERMAT_ROUNDS = 100


class KeyKind(enum.Enum):
    """The kinds of key pairs this system makes."""

    EC_P256 = "ec-p256"
    EC_P384 = "ec-p384"
    RSA_2048 = "rsa-2048"
    RSA_4096 = "rsa-4096"
    ML_DSA_44 = "ml-dsa-44"
    ML_DSA_65 = "ml-dsa-65"
    ML_DSA_87 = "ml-dsa-87"

    @property
    def post_quantum(self) -> bool:
        """Whether it is ML-DSA: for authorities only."""
        return self in _ML_DSA


class PrivateKeyDer:
    """An unencrypted PKCS#8 private key that cannot be printed or pickled by accident."""

    __slots__ = ("_der",)

    def __init__(self, der: bytes) -> None:
        self._der = bytes(der)

    def reveal(self) -> bytes:
        """The secret itself; every caller of this is worth a look."""
        return self._der

    def __eq__(self, other: object) -> bool:
        return hmac.compare_digest(self._der, other._der) if isinstance(other, PrivateKeyDer) else NotImplemented

    def __hash__(self) -> int:
        return hash((PrivateKeyDer, hashlib.sha256(self._der).digest()))

    def __repr__(self) -> str:
        return "<private key>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("private keys are not pickled")


_ML_DSA: dict[KeyKind, type[MlDsaPrivateKey]] = {
    KeyKind.ML_DSA_44: mldsa.MLDSA44PrivateKey,
    KeyKind.ML_DSA_65: mldsa.MLDSA65PrivateKey,
    KeyKind.ML_DSA_87: mldsa.MLDSA87PrivateKey,
}


def ml_dsa_kind(key: AuthorityPublicKey) -> KeyKind | None:
    """Which kind of ML-DSA key this is; None if it is none."""
    public: dict[KeyKind, type[MlDsaPublicKey]] = {
        KeyKind.ML_DSA_44: mldsa.MLDSA44PublicKey,
        KeyKind.ML_DSA_65: mldsa.MLDSA65PublicKey,
        KeyKind.ML_DSA_87: mldsa.MLDSA87PublicKey,
    }
    return next((kind for kind, made in public.items() if isinstance(key, made)), None)


def generate_authority_key(kind: KeyKind) -> AuthorityKey:
    """Make a new key pair of any kind, for an authority."""
    return _ML_DSA[kind].generate() if kind in _ML_DSA else generate(kind)


def generate(kind: KeyKind) -> PrivateKey:
    """Make a new key pair for a leaf or for tokens. RSA takes 50 to 300 ms: not on the event loop."""
    if kind.post_quantum:
        raise ValueError(f"{kind.value} keys are for authorities only")
    if kind is KeyKind.EC_P256:
        return ec.generate_private_key(ec.SECP256R1())
    if kind is KeyKind.EC_P384:
        return ec.generate_private_key(ec.SECP384R1())
    return rsa.generate_private_key(_MIN_RSA_EXPONENT, 4096 if kind is KeyKind.RSA_4096 else 2048)


def to_pkcs8(key: AuthorityKey) -> PrivateKeyDer:
    """The key as unencrypted PKCS#8 DER, which is what the Workload API hands out."""
    return PrivateKeyDer(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))


def from_pkcs8(der: bytes | PrivateKeyDer, *, field: str = "private_key") -> PrivateKey:
    """Read an unencrypted PKCS#8 DER key of a kind we use; SEC1, PKCS#1, PEM and encrypted keys are refused.

    Raises:
        InvalidCertificate: with `field`; the message never holds key material.
    """
    key = _read_pkcs8(der, field)
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise InvalidCertificate(f"{field}: must be an EC or RSA key", field=field)
    check_public_key(key.public_key(), field=field)
    return key


def authority_from_pkcs8(der: bytes | PrivateKeyDer, *, field: str) -> AuthorityKey:
    """As `from_pkcs8`, and ML-DSA keys too (RFC 9881 section 6).

    Raises:
        InvalidCertificate: with `field`; the message never holds key material.
    """
    key = _read_pkcs8(der, field)
    return key if isinstance(key, MlDsaPrivateKey) else from_pkcs8(der, field=field)


def _read_pkcs8(der: bytes | PrivateKeyDer, field: str) -> object:
    data = der.reveal() if isinstance(der, PrivateKeyDer) else der
    if len(data) > MAX_PRIVATE_KEY_BYTES:
        raise InvalidCertificate(f"{field}: has more than {MAX_PRIVATE_KEY_BYTES} bytes", field=field)
    if not _is_pkcs8(data):
        raise InvalidCertificate(f"{field}: is not an unencrypted PKCS#8 key in DER", field=field)
    try:
        return load_der_private_key(data, None)
    except _UNREADABLE:
        # The cause is dropped: its text could quote the input.
        raise InvalidCertificate(f"{field}: is not a readable PKCS#8 private key", field=field) from None


def spki_der(public_key: AuthorityPublicKey) -> bytes:
    """The public key as SubjectPublicKeyInfo DER."""
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def from_spki(der: bytes, *, field: str = "public_key") -> PublicKey:
    """Read a SubjectPublicKeyInfo DER public key that may verify signatures.

    Raises:
        InvalidCertificate: with `field`.
    """
    if len(der) > MAX_PUBLIC_KEY_BYTES:
        raise InvalidCertificate(f"{field}: has more than {MAX_PUBLIC_KEY_BYTES} bytes", field=field)
    try:
        key = load_der_public_key(der)
    except _UNREADABLE:
        raise InvalidCertificate(f"{field}: is not a SubjectPublicKeyInfo in DER", field=field) from None
    checked = check_verification_key(key, field=field)
    if spki_der(checked) != der:  # PKCS#1, compressed points and other second spellings of one key
        raise InvalidCertificate(f"{field}: is not a SubjectPublicKeyInfo in its one DER form", field=field)
    return checked


@functools.lru_cache(maxsize=256)
def _is_kind(made: Any, kind: Any) -> bool:
    """The library's keys are what abstract classes were told of; asking each time is a twentieth of issuing an SVID."""
    return issubclass(made, kind)


def is_ec(key: object) -> TypeGuard[ec.EllipticCurvePublicKey]:
    """Whether this is an EC public key, which nearly every key is."""
    made: Any = type(key)
    return _is_kind(made, ec.EllipticCurvePublicKey)


def is_ec_private(key: object) -> TypeGuard[ec.EllipticCurvePrivateKey]:
    """Whether this is an EC private key, which nearly every authority's is."""
    made: Any = type(key)
    return _is_kind(made, ec.EllipticCurvePrivateKey)


def key_digest(public_key: AuthorityPublicKey) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo: the name of a key that nobody can forge."""
    return hashlib.sha256(spki_der(public_key)).digest()


P256_SPKI_PREFIX = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
"""SubjectPublicKeyInfo of a P-256 key up to the 64 bytes of its coordinates (RFC 5480 section 2)."""
P256_SPKI_BYTES = len(P256_SPKI_PREFIX) + 64


def is_p256_spki(der: bytes) -> bool:
    """Whether this is laid out as a P-256 key is in DER, with both coordinates; the point may still be invalid.

    A key has one such encoding, so bytes of this form from which a key could be read are what `spki_der` makes of it.
    """
    return len(der) == P256_SPKI_BYTES and der.startswith(P256_SPKI_PREFIX)


@dataclass(frozen=True, slots=True)
class SubjectKey:
    """A public key to be certified, beside its SubjectPublicKeyInfo: encoding it takes longer than copying it."""

    public_key: PublicKey
    spki: bytes = field(repr=False)

    @classmethod
    def of(cls, public_key: PublicKey) -> SubjectKey:
        """A key of which only the object is there."""
        return cls(public_key, spki_der(public_key))


def subject_key_id(public_key: AuthorityPublicKey, spki: bytes = b"") -> bytes:
    """SHA-1 of the SubjectPublicKeyInfo's bit string (RFC 5280 section 4.2.1.2, method 1).

    `spki` spares the usual P-256 key an encoding when the caller has it already.
    """
    if is_p256_spki(spki):
        return hashlib.sha1(spki[len(P256_SPKI_PREFIX) - 1 :], usedforsecurity=False).digest()
    return SubjectKeyIdentifier.from_public_key(public_key).digest


def check_public_key(key: object, *, field: str) -> PublicKey:
    """The policy for keys we certify: P-256, P-384, RSA of 2048 to 4096 bits that are not known to be weak.

    Raises:
        InvalidCertificate: with `field`, naming the rule.
    """
    return _check(key, _CERTIFIED_CURVES, _MAX_CERTIFIED_RSA_BITS, field)


def check_verification_key(key: object, *, field: str) -> PublicKey:
    """The policy for keys that only verify: as `check_public_key`, and P-521 and RSA up to 8192 bits.

    Raises:
        InvalidCertificate: with `field`, naming the rule.
    """
    return _check(key, _VERIFIED_CURVES, _MAX_VERIFIED_RSA_BITS, field)


def check_authority_key(key: object, *, field: str) -> AuthorityPublicKey:
    """The policy for keys that sign certificates: as `check_verification_key`, and ML-DSA of any parameter set.

    Raises:
        InvalidCertificate: with `field`, naming the rule.
    """
    return key if isinstance(key, MlDsaPublicKey) else check_verification_key(key, field=field)


def _check(key: object, curves: frozenset[str], max_bits: int, field: str) -> PublicKey:
    if is_ec(key):
        if key.curve.name not in curves:
            raise InvalidCertificate(f"{field}: the curve {key.curve.name} is not allowed; use P-256", field=field)
        return key
    if not isinstance(key, rsa.RSAPublicKey):
        raise InvalidCertificate(f"{field}: must be an EC or RSA key; use EC P-256", field=field)
    if not _MIN_RSA_BITS <= key.key_size <= max_bits:
        raise InvalidCertificate(
            f"{field}: RSA keys have {_MIN_RSA_BITS} to {max_bits} bits, this one {key.key_size}", field=field
        )
    numbers = key.public_numbers()
    if numbers.e % 2 == 0 or not _MIN_RSA_EXPONENT <= numbers.e <= _MAX_RSA_EXPONENT:
        raise InvalidCertificate(
            f"{field}: the RSA exponent must be odd and from {_MIN_RSA_EXPONENT} to {_MAX_RSA_EXPONENT}", field=field
        )
    if weakness := _rsa_weakness(numbers.n):
        raise InvalidCertificate(f"{field}: the RSA modulus {weakness}; make a new key", field=field)
    return key


def _primes_below(limit: int) -> tuple[int, ...]:
    return tuple(n for n in range(2, limit) if all(n % d for d in range(2, math.isqrt(n) + 1)))


_SMALL_PRIMES = math.prod(_primes_below(752))
_FINGERPRINT_PRIMES = tuple(p for p in _primes_below(168) if p > 2)  # noqa: PLR2004  # two divides every even number
_FINGERPRINTS = tuple((p, frozenset(pow(65537, i, p) for i in range(p))) for p in _FINGERPRINT_PRIMES)


def _rsa_weakness(modulus: int) -> str:
    """Why the modulus can be factored cheaply, or "": small factors, CVE-2017-15361 (ROCA), primes close together."""
    if math.gcd(modulus, _SMALL_PRIMES) != 1:
        return "has a small factor"
    if all(modulus % prime in residues for prime, residues in _FINGERPRINTS):
        return "has the fingerprint of a broken generator (CVE-2017-15361)"
    root = math.isqrt(modulus)
    for candidate in range(root + 1, root + 1 + _FERMAT_ROUNDS):
        rest = candidate * candidate - modulus
        if math.isqrt(rest) ** 2 == rest:
            return "is the product of two primes close together"
    return ""


def _is_pkcs8(data: bytes) -> bool:
    """Whether `data` begins as PrivateKeyInfo: SEQUENCE { INTEGER 0 or 1, SEQUENCE ... } (RFC 5208, RFC 5958)."""
    if len(data) < 2 or data[0] != 0x30:  # noqa: PLR2004  # DER tags and lengths
        return False
    header = 2 if data[1] < 0x80 else 2 + (data[1] & 0x7F)  # noqa: PLR2004  # DER tags and lengths
    return data[header : header + 4] in {b"\x02\x01\x00\x30", b"\x02\x01\x01\x30"}
