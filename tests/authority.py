"""A certificate authority for tests that issues good SVIDs by default and spoils one thing at a time by keyword.

What a decent library refuses to build (two extensions of one kind, SHA-1, non-ASCII names) is made by `resigned`, which
replaces bytes of equal length in the signed part and signs again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from spiffe_core.bundle import TrustBundle, X509Authority
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.keys import KeyKind, PrivateKey, PrivateKeyDer, generate, to_pkcs8
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.x509_svid import X509Svid

SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
LEAF_USAGE = frozenset({"digital_signature"})
CA_USAGE = frozenset({"key_cert_sign", "crl_sign"})
LEAF_SUBJECT = (("C", "US"), ("O", "SPIRE"))

_NAME_OIDS = {
    "C": NameOID.COUNTRY_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "CN": NameOID.COMMON_NAME,
    "serialNumber": NameOID.SERIAL_NUMBER,
}
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True)
class TestSvid:
    """An issued leaf with its chain (leaf first, no root) and key."""

    __test__ = False  # not a test class, whatever its name says

    spiffe_id: SpiffeId
    chain: tuple[bytes, ...]
    private_key: PrivateKey

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.chain[0])

    @property
    def key(self) -> PrivateKeyDer:
        return to_pkcs8(self.private_key)

    @property
    def not_after(self) -> datetime:
        return self.leaf.not_valid_after_utc

    @property
    def svid(self) -> X509Svid:
        return X509Svid.load(self.chain, self.key)


class SpiffeTestCA:
    """A root (or, from `intermediate`, a subordinate) CA of one trust domain.

    `now` is the moment of issue; it defaults to the machine's clock so that real TLS handshakes work.
    """

    def __init__(
        self,
        trust_domain: str = "example.org",
        *,
        name: str = "",
        now: datetime | None = None,
        key: PrivateKey | None = None,
        parent: SpiffeTestCA | None = None,
        **spoil: object,
    ) -> None:
        self.trust_domain = TrustDomain(trust_domain)
        self.now = now or (parent.now if parent else SystemClock().now().replace(microsecond=0))
        self.key = key or generate(KeyKind.EC_P256)
        serial_name = name or secrets.token_hex(8)
        profile: dict[str, object] = {
            "subject": (("C", "US"), ("O", "SPIFFE"), ("serialNumber", serial_name)),
            "uris": (f"spiffe://{trust_domain}",),
            "ca": True,
            "usage": CA_USAGE,
            "eku": None,
            "ttl": timedelta(hours=24),
        }
        profile.update(spoil)
        if parent is None:
            self.der = certify(self.key, signer=self.key, issuer=None, now=self.now, **profile)  # type: ignore[arg-type]
            self.chain: tuple[bytes, ...] = ()
        else:
            self.der = certify(self.key, signer=parent.key, issuer=parent.certificate, now=self.now, **profile)  # type: ignore[arg-type]
            self.chain = (self.der, *parent.chain)

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.der)

    def intermediate(self, trust_domain: str = "", *, name: str = "", **spoil: object) -> SpiffeTestCA:
        """A CA signed by this one; the chains of its SVIDs hold its certificate."""
        return SpiffeTestCA(trust_domain or self.trust_domain.name, name=name, parent=self, **spoil)  # type: ignore[arg-type]

    def issue(self, spiffe_id: str | SpiffeId = "", *, key: PrivateKey | None = None, **spoil: object) -> TestSvid:
        """A leaf for `spiffe_id` (default: `/workload` of this trust domain). `spoil`: see `certify`."""
        wanted = SpiffeId.parse(str(spiffe_id or f"spiffe://{self.trust_domain}/workload"))
        leaf_key = key or generate(KeyKind.EC_P256)
        profile: dict[str, object] = {"uris": (str(wanted),), **spoil}
        signer = profile.pop("signer", self.key)
        issuer = profile.pop("issuer", self.certificate)
        leaf = certify(leaf_key, signer=signer, issuer=issuer, now=self.now, **profile)  # type: ignore[arg-type]
        return TestSvid(wanted, (leaf, *self.chain), leaf_key)

    def bundle(self, *others: SpiffeTestCA, sequence: int = 1) -> TrustBundle:
        """A bundle with this root (and those of `others`, which must be of the same trust domain)."""
        roots = tuple(X509Authority(ca.der) for ca in (self, *others))
        return TrustBundle(self.trust_domain, roots, sequence=sequence, refresh_hint=300)


def trusting(*bundles: TrustBundle) -> Callable[[TrustDomain], TrustBundle | None]:
    """A look-up over some bundles, as the verifier takes it."""
    by_name = {bundle.trust_domain: bundle for bundle in bundles}
    return by_name.get


def revoking(
    ca: SpiffeTestCA,
    *revoked: x509.Certificate,
    issued: datetime | None = None,
    algorithm: hashes.HashAlgorithm | None = None,
) -> bytes:
    """A revocation list of `ca`, one day long."""
    made = issued or ca.now
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(made)
        .next_update(made + timedelta(days=1))
    )
    for certificate in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(made)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(ca.key, algorithm or hashes.SHA256()).public_bytes(Encoding.DER)


def certify(
    key: PrivateKey,
    *,
    signer: PrivateKey,
    issuer: x509.Certificate | None,
    now: datetime,
    subject: Sequence[tuple[str, str]] = LEAF_SUBJECT,
    uris: Sequence[str] = (),
    dns: Sequence[str] = (),
    other_names: Sequence[x509.GeneralName] = (),
    san_critical: bool | None = None,
    ca: bool | None = False,
    path_length: int | None = None,
    usage: frozenset[str] | None = LEAF_USAGE,
    usage_critical: bool = True,
    eku: Sequence[ObjectIdentifier] | None = (SERVER_AUTH, CLIENT_AUTH),
    constraints: x509.NameConstraints | None = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    key_ids: bool = True,
    authority_key_id: bytes | None = None,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
    ttl: timedelta = timedelta(hours=1),
    algorithm: hashes.HashAlgorithm | None = None,
    rsa_padding: padding.PSS | padding.PKCS1v15 | None = None,
    issuer_name: x509.Name | None = None,
) -> bytes:
    """One certificate. `issuer` None makes it self-signed; `ca` and `usage` None leave the extension out."""
    own_name = x509.Name([x509.NameAttribute(_NAME_OIDS[short], value) for short, value in subject])
    builder = (
        x509.CertificateBuilder()
        .subject_name(own_name)
        .issuer_name(issuer_name or (issuer.subject if issuer is not None else own_name))
        .public_key(key.public_key())
        .serial_number(secrets.randbits(127) + 1)
        .not_valid_before(not_before or now - timedelta(seconds=10))
        .not_valid_after(not_after or now + ttl)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length), critical=True)
    if usage is not None:
        flags = {flag: flag in usage for flag in _USAGES}
        builder = builder.add_extension(x509.KeyUsage(**flags), critical=usage_critical)
    if eku is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(eku), critical=False)
    names = [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, dns), *other_names]
    if names:
        critical = not subject if san_critical is None else san_critical
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=critical)
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=True)
    if key_ids:
        own_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(own_id, critical=False)
        wanted = authority_key_id
        if wanted is None and issuer is not None:
            wanted = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        if wanted is not None:
            builder = builder.add_extension(x509.AuthorityKeyIdentifier(wanted, None, None), critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    chosen = algorithm or hashes.SHA256()
    return builder.sign(signer, chosen, rsa_padding=rsa_padding).public_bytes(Encoding.DER)  # type: ignore[arg-type]


def resigned(der: bytes, signer: PrivateKey, *changes: tuple[bytes, bytes]) -> bytes:
    """Replace bytes by as many others throughout a certificate or CSR, then sign the result with SHA-256."""
    for old, new in changes:
        assert len(old) == len(new), "lengths in DER would no longer fit"
        assert old in der, "nothing to replace"
        der = der.replace(old, new)
    body = _content(der)
    tbs, rest = _split(body)
    algorithm, _ = _split(rest)
    if isinstance(signer, rsa.RSAPrivateKey):
        signature = signer.sign(tbs, padding.PKCS1v15(), hashes.SHA256())
    else:
        signature = signer.sign(tbs, ec.ECDSA(hashes.SHA256()))
    return tlv(0x30, tbs + algorithm + tlv(0x03, b"\x00" + signature))


def tlv(tag: int, content: bytes) -> bytes:
    """One DER element."""
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + content


def _header(der: bytes) -> tuple[int, int]:
    """(length of the header, length of the content) of the first element."""
    if der[1] < 0x80:
        return 2, der[1]
    octets = der[1] & 0x7F
    return 2 + octets, int.from_bytes(der[2 : 2 + octets], "big")


def _content(der: bytes) -> bytes:
    header, length = _header(der)
    return der[header : header + length]


def _split(der: bytes) -> tuple[bytes, bytes]:
    """The first element with its header, and what follows it."""
    header, length = _header(der)
    return der[: header + length], der[header + length :]


def explicit_spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    """SubjectPublicKeyInfo with P-256's parameters written out (RFC 3279 section 2.3.5), which RFC 5480 forbids."""
    p = 2**256 - 2**224 + 2**192 + 2**96 - 1
    b = "5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b"
    base = (
        "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
        "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
    )
    order = "00ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551"
    field = tlv(0x30, bytes.fromhex("06072a8648ce3d0101") + tlv(0x02, b"\0" + p.to_bytes(32)))
    curve = tlv(0x30, tlv(0x04, (p - 3).to_bytes(32)) + tlv(0x04, bytes.fromhex(b)))
    point, size = tlv(0x04, bytes.fromhex(base)), tlv(0x02, bytes.fromhex(order))
    parameters = tlv(0x30, b"\x02\x01\x01" + field + curve + point + size + b"\x02\x01\x01")
    algorithm = tlv(0x30, bytes.fromhex("06072a8648ce3d0201") + parameters)
    return tlv(0x30, algorithm + tlv(0x03, b"\0" + _raw_point(key, PublicFormat.UncompressedPoint)))


def compressed_spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    """SubjectPublicKeyInfo with one coordinate and the sign of the other."""
    algorithm = tlv(0x30, bytes.fromhex("06072a8648ce3d020106082a8648ce3d030107"))
    return tlv(0x30, algorithm + tlv(0x03, b"\0" + _raw_point(key, PublicFormat.CompressedPoint)))


def _raw_point(key: ec.EllipticCurvePrivateKey, form: PublicFormat) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, form)
