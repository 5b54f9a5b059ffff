"""From a plan to a signature: build, lint, and only then let the key sign exactly what was linted.

`prepare` builds the certificate with a recording key: it looks like the authority's key to the builder, keeps the bytes
it is asked to sign (the TBSCertificate) and answers with a dummy signature. The result is linted. What passes becomes a
`ReadyToSign`, a ticket good for one signature; `sign` redeems it with the real key and assembles the certificate around
the very bytes that were linted. The real key may live in a token or a KMS: it needs `public_key` and `sign` only.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NoReturn, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import Buffer

from identity_server.domain.lint import Finding, LintFailed, contents, elements, lint
from identity_server.domain.profiles import Parent, Plan, extensions
from spiffe_core.crypto.keys import (
    AuthorityKey,
    AuthorityPublicKey,
    MlDsaPrivateKey,
    MlDsaPublicKey,
    is_ec,
    is_ec_private,
    spki_der,
)
from spiffe_core.errors import CorruptState, InvalidId
from spiffe_core.spiffe_id import SpiffeId

# Algorithm identifiers (DER): RFC 5758 section 3.2 (ECDSA, no parameters), RFC 4055 section 5 (RSA, NULL parameters).
_ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
_ECDSA_SHA384 = bytes.fromhex("300a06082a8648ce3d040303")
_RSA_SHA256 = bytes.fromhex("300d06092a864886f70d01010b0500")
# RFC 9881 section 2: ML-DSA, no parameters.
_ML_DSA: dict[type[MlDsaPublicKey], bytes] = {
    mldsa.MLDSA44PublicKey: bytes.fromhex("300b0609608648016503040311"),
    mldsa.MLDSA65PublicKey: bytes.fromhex("300b0609608648016503040312"),
    mldsa.MLDSA87PublicKey: bytes.fromhex("300b0609608648016503040313"),
}
_DUMMY_ML_DSA_SIGNATURE = bytes(2420)
_DUMMY_ECDSA_SIGNATURE = bytes.fromhex("3006020101020101")
_DUMMY_RSA_SIGNATURE = bytes(256)
_P384_BITS = 384
_WITH_P384 = (ec.ECDSA(hashes.SHA384()), _ECDSA_SHA384)
_WITH_P256 = (ec.ECDSA(hashes.SHA256()), _ECDSA_SHA256)
_ANOTHER_KIND = "the key is of another kind than the one the certificate names as its signer"
_SEQUENCE, _BIT_STRING = 0x30, 0x03
_SHORT_FORM = 0x80


class ReadyToSign:
    """Says: these bytes passed the lint of this plan. Buys one signature."""

    __slots__ = ("_tbs", "plan")

    def __init__(self, plan: Plan, tbs: bytes) -> None:
        self.plan = plan
        self._tbs = [tbs]

    def redeem(self) -> bytes:
        """The bytes to sign; a second call raises (`list.pop` is atomic, so also across threads)."""
        try:
            return self._tbs.pop()
        except IndexError:
            raise RuntimeError("this ticket was already used: every signature needs a lint of its own") from None

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ticket cannot be copied")


def prepare(plan: Plan) -> ReadyToSign:
    """Build and lint the certificate of a plan.

    Raises:
        LintFailed: it broke a rule; the facts name all of them.
    """
    recorder = _recorder(plan.signing_key)
    builder = (
        x509.CertificateBuilder()
        .issuer_name(plan.issuer)
        .subject_name(plan.subject)
        .public_key(plan.public_key)
        .serial_number(plan.serial)
        .not_valid_before(datetime.fromtimestamp(plan.not_before, UTC))
        .not_valid_after(datetime.fromtimestamp(plan.not_after, UTC))
    )
    for value, critical in extensions(plan):
        builder = builder.add_extension(value, critical)
    built = builder.sign(recorder, _hash_for(plan.signing_key))
    return admit(plan, built.public_bytes(Encoding.DER), recorder.recorded)


def admit(plan: Plan, der: bytes, to_be_signed: bytes) -> ReadyToSign:
    """Lint a certificate that carries a dummy signature; `to_be_signed` is what its signer was given.

    Raises:
        LintFailed: it broke a rule.
    """
    findings = lint(der, plan, _algorithm_of(plan.signing_key))
    if not findings and elements(contents(der))[0] != to_be_signed:
        findings = (Finding("RFC5280-4.1", "what would be signed is not what was linted"),)
    if findings:
        raise LintFailed(findings)
    return ReadyToSign(plan, to_be_signed)


def sign(ticket: ReadyToSign, key: AuthorityKey) -> bytes:
    """Redeem a ticket: the finished certificate (DER) of exactly the linted bytes."""
    tbs = ticket.redeem()
    signer = ticket.plan.signing_key
    if is_ec(signer):
        how, identifier = _WITH_P384 if signer.key_size == _P384_BITS else _WITH_P256
        if not is_ec_private(key):
            raise CorruptState(_ANOTHER_KIND)
        signature = key.sign(tbs, how)
    else:
        signature, identifier = _other_signature(tbs, signer, key), _algorithm_of(signer)
    return der_element(_SEQUENCE, tbs + identifier + der_element(_BIT_STRING, b"\0" + signature))


def _other_signature(tbs: bytes, signer: AuthorityPublicKey, key: AuthorityKey) -> bytes:
    """By an RSA or an ML-DSA authority."""
    if isinstance(signer, MlDsaPublicKey) is not isinstance(key, MlDsaPrivateKey) or is_ec_private(key):
        raise CorruptState(_ANOTHER_KIND)
    if isinstance(key, MlDsaPrivateKey):
        return key.sign(tbs)
    return cast("rsa.RSAPrivateKey", key).sign(tbs, padding.PKCS1v15(), hashes.SHA256())


def parent_of(certificate: bytes) -> Parent:
    """What leaves below this authority take from it.

    Raises:
        CorruptState: the certificate is not one of our profile's authorities.
    """
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        key = parsed.public_key()
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        key_id = parsed.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        spiffe_id = SpiffeId.parse(uri)
    except (ValueError, x509.ExtensionNotFound, InvalidId) as error:
        raise CorruptState(f"authority journal: a certificate cannot be used: {error}; restore the database") from error
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | MlDsaPublicKey) or spiffe_id.path:
        raise CorruptState("authority journal: a certificate is not an authority of ours; restore the database")
    return Parent(
        trust_domain=spiffe_id.trust_domain,
        name=parsed.subject,
        name_der=parsed.subject.public_bytes(),
        key_id=key_id,
        not_after=int(parsed.not_valid_after_utc.timestamp()),
        public_key=key,
        spki=spki_der(key),
    )


class _EcRecorder:
    """Passes for an EC private key where certificates are built; see the module's docstring."""

    recorded = b""

    def sign(self, data: Buffer, algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:  # noqa: ARG002  # pyca's
        self.recorded = bytes(data)
        return _DUMMY_ECDSA_SIGNATURE


class _RsaRecorder:
    """Passes for an RSA private key."""

    recorded = b""

    def sign(self, data: Buffer, pad: object, algorithm: object) -> bytes:  # noqa: ARG002  # pyca's signature
        self.recorded = bytes(data)
        return _DUMMY_RSA_SIGNATURE


class _MlDsaRecorder:
    """Passes for an ML-DSA private key, whose public half the builder asks for."""

    recorded = b""

    def __init__(self, public_key: AuthorityPublicKey) -> None:
        self._public_key = public_key

    def public_key(self) -> AuthorityPublicKey:
        return self._public_key

    def sign(self, data: Buffer, context: Buffer | None = None) -> bytes:  # noqa: ARG002  # pyca's signature
        self.recorded = bytes(data)
        return _DUMMY_ML_DSA_SIGNATURE


class _MlDsa44Recorder(_MlDsaRecorder):
    """For one parameter set each: the builder takes the algorithm from the class."""


class _MlDsa65Recorder(_MlDsaRecorder):
    pass


class _MlDsa87Recorder(_MlDsaRecorder):
    pass


mldsa.MLDSA44PrivateKey.register(_MlDsa44Recorder)
mldsa.MLDSA65PrivateKey.register(_MlDsa65Recorder)
mldsa.MLDSA87PrivateKey.register(_MlDsa87Recorder)
ec.EllipticCurvePrivateKey.register(_EcRecorder)
rsa.RSAPrivateKey.register(_RsaRecorder)


def _recorder(key: AuthorityPublicKey) -> Any:
    match key:
        case mldsa.MLDSA44PublicKey():
            return _MlDsa44Recorder(key)
        case mldsa.MLDSA65PublicKey():
            return _MlDsa65Recorder(key)
        case mldsa.MLDSA87PublicKey():
            return _MlDsa87Recorder(key)
    return _EcRecorder() if isinstance(key, ec.EllipticCurvePublicKey) else _RsaRecorder()


def _hash_for(key: AuthorityPublicKey) -> hashes.SHA256 | hashes.SHA384 | None:
    if is_ec(key):
        return hashes.SHA384() if key.key_size == _P384_BITS else hashes.SHA256()
    return None if isinstance(key, MlDsaPublicKey) else hashes.SHA256()


def _algorithm_of(key: AuthorityPublicKey) -> bytes:
    if is_ec(key):
        return _ECDSA_SHA384 if key.key_size == _P384_BITS else _ECDSA_SHA256
    for kind, identifier in _ML_DSA.items():
        if isinstance(key, kind):
            return identifier
    return _RSA_SHA256


def der_element(tag: int, body: bytes) -> bytes:
    """One DER element (X.690 section 8.1.3)."""
    return der_header(tag, len(body)) + body


@lru_cache(maxsize=4096)
def der_header(tag: int, size: int) -> bytes:
    """What stands before `size` bytes to make them a DER element: its tag and the shortest form of its length."""
    if size < _SHORT_FORM:
        return bytes((tag, size))
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, _SHORT_FORM | len(length))) + length
