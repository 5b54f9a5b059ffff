"""Private keys that stay in a token: they look like `cryptography`'s keys and forward what they are asked to sign.

SoftHSM 2.6 and many tokens know ECDSA over a finished hash only, so the hash is made here and the token's r || s
(PKCS#11 2.40 section 6.3.1) becomes the DER of RFC 3279 section 2.2.3. RSA is hashed in the token (SHA256_RSA_PKCS).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

import pkcs11.util.ec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.utils import Buffer
from pkcs11 import Attribute, Mechanism

from spiffe_core.crypto.keys import KeyKind, PublicKey, check_public_key

RawSign: TypeAlias = Callable[[bytes, Mechanism], bytes]
"""Signs the bytes in the token with the mechanism. Raises Unavailable."""

CURVES = {KeyKind.EC_P256: "secp256r1", KeyKind.EC_P384: "secp384r1"}
RSA_BITS = {KeyKind.RSA_2048: 2048, KeyKind.RSA_4096: 4096}
_RSA_MECHANISMS = {
    "sha256": Mechanism.SHA256_RSA_PKCS,
    "sha384": Mechanism.SHA384_RSA_PKCS,
    "sha512": Mechanism.SHA512_RSA_PKCS,
}


class _TokenKey:
    """What both kinds share. Nothing of the private half is ever here."""

    def __init__(self, name: str, public_key: Any, raw_sign: RawSign) -> None:
        self._name, self._public_key, self._raw_sign = name, public_key, raw_sign

    @property
    def key_size(self) -> int:
        """Bits of the modulus or of the curve's order."""
        size: int = self._public_key.key_size
        return size

    def __repr__(self) -> str:
        return f"<key in a token: {self._name}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys in a token are not pickled")

    def private_numbers(self) -> NoReturn:
        """Refused: the key does not leave the token."""
        raise TypeError("the key does not leave the token")

    def private_bytes(self, *_: object, **__: object) -> NoReturn:
        """Refused: the key does not leave the token."""
        raise TypeError("the key does not leave the token")


class EcTokenKey(_TokenKey):
    """Passes for an `EllipticCurvePrivateKey` wherever something is signed."""

    @property
    def curve(self) -> ec.EllipticCurve:
        """The key's curve."""
        curve: ec.EllipticCurve = self._public_key.curve
        return curve

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        key: ec.EllipticCurvePublicKey = self._public_key
        return key

    def sign(self, data: Buffer, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """An ECDSA signature over the hash of `data`, in DER."""
        algorithm = signature_algorithm.algorithm
        if not isinstance(signature_algorithm, ec.ECDSA) or not isinstance(algorithm, hashes.HashAlgorithm):
            raise TypeError("a key in a token signs ECDSA over data it hashes itself")
        digest = hashes.Hash(algorithm)
        digest.update(data)
        return der_signature(self._raw_sign(digest.finalize(), Mechanism.ECDSA), self.key_size)


class RsaTokenKey(_TokenKey):
    """Passes for an `RSAPrivateKey` wherever something is signed with PKCS#1 v1.5."""

    def public_key(self) -> rsa.RSAPublicKey:
        """The public half."""
        key: rsa.RSAPublicKey = self._public_key
        return key

    def sign(self, data: Buffer, pad: object, algorithm: object) -> bytes:
        """An RSASSA-PKCS1-v1_5 signature over `data`."""
        if not isinstance(pad, padding.PKCS1v15) or not isinstance(algorithm, hashes.HashAlgorithm):
            raise TypeError("a key in a token signs PKCS#1 v1.5 over data it hashes itself")
        return self._raw_sign(bytes(data), _RSA_MECHANISMS[algorithm.name])


ec.EllipticCurvePrivateKey.register(EcTokenKey)
rsa.RSAPrivateKey.register(RsaTokenKey)


def token_key(name: str, public_key: PublicKey, raw_sign: RawSign) -> Any:
    """The stand-in for the private half of `public_key`."""
    made = EcTokenKey if isinstance(public_key, ec.EllipticCurvePublicKey) else RsaTokenKey
    return made(name, public_key, raw_sign)


def der_signature(raw: bytes, bits: int) -> bytes:
    """Turn r || s into the SEQUENCE of two INTEGERs.

    Raises:
        ValueError: it is not two numbers of the curve's size.
    """
    size = (bits + 7) // 8
    if len(raw) != 2 * size:
        raise ValueError(f"the token's signature has {len(raw)} bytes instead of {2 * size}")
    return encode_dss_signature(int.from_bytes(raw[:size]), int.from_bytes(raw[size:]))


def read_public_key(found: Any) -> PublicKey:
    """The public key that a token's object describes, held to the policy for keys we certify.

    Raises:
        InvalidCertificate: it is of a kind we do not use.
        ValueError: it cannot be read.
    """
    if found.key_type is pkcs11.KeyType.RSA:
        return check_public_key(_rsa_public_key(found), field="public_key")
    if found.key_type is not pkcs11.KeyType.EC:
        raise ValueError("the token's key is neither EC nor RSA")
    return check_public_key(load_der_public_key(pkcs11.util.ec.encode_ec_public_key(found)), field="public_key")


def _rsa_public_key(found: Any) -> rsa.RSAPublicKey:
    exponent = int.from_bytes(found[Attribute.PUBLIC_EXPONENT])
    return rsa.RSAPublicNumbers(exponent, int.from_bytes(found[Attribute.MODULUS])).public_key()
