"""What stands in the certificates this server signs (spire_features section 14; X509-SVID sections 2 to 4).

A `Plan` is everything a certificate will say, decided before any DER exists: `plan_leaf` and `plan_ca` make it,
`issuance` builds from it, `lint` compares the result with it. Times are whole unix seconds.

Deviations from SPIRE, settled in architecture A4: EC leaves carry digitalSignature only, RSA leaves keyEncipherment
too; a common name is set only when it fits into the 64 characters of X.520.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from spiffe_core.crypto.keys import (
    AuthorityPublicKey,
    MlDsaPublicKey,
    PublicKey,
    check_public_key,
    is_ec,
    spki_der,
    subject_key_id,
)
from spiffe_core.errors import InvalidRequest, Unavailable
from spiffe_core.spiffe_id import SpiffeId, TrustDomain

BACKDATE_SECONDS = 10
MAX_COMMON_NAME = 64
MAX_SERIAL = 2**128 - 1
MAX_DNS_NAMES = 1_000


class Profile(enum.Enum):
    """What a certificate is for."""

    WORKLOAD = "workload"
    AGENT = "agent"
    SERVER = "server"
    CA = "ca"


def subject_name(
    country: Sequence[str] = ("US",), organization: Sequence[str] = ("SPIRE",), common_name: str = ""
) -> x509.Name:
    """A subject in SPIRE's order: countries, organisations, common name; empty parts are left out.

    Raises:
        InvalidRequest: with `field` "subject", naming the rule of X.520 that a part breaks.
    """
    if any(text and not (text.isascii() and text.isalpha()) for text in country):
        raise InvalidRequest("subject: a country is two ASCII letters (ISO 3166)", field="subject")
    parts = [(NameOID.COUNTRY_NAME, text) for text in country]
    parts += [(NameOID.ORGANIZATION_NAME, text) for text in organization]
    parts.append((NameOID.COMMON_NAME, common_name))
    try:
        return x509.Name([x509.NameAttribute(oid, text) for oid, text in parts if text])
    except ValueError as error:
        raise InvalidRequest(f"subject: {error}", field="subject") from error


LEAF_SUBJECT = subject_name()
CA_SUBJECT = subject_name(organization=("SPIFFE",))


def downstream_subject(parent: x509.Name, depth: int) -> x509.Name:
    """The subject of a downstream CA: its parent's, with SPIRE's organisational unit `DOWNSTREAM-n` (section 14)."""
    ours = {NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.SERIAL_NUMBER}
    unit = x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, f"DOWNSTREAM-{depth}")
    return x509.Name([*(part for part in parent if part.oid not in ours), unit])


@dataclass(frozen=True, slots=True)
class Parent:
    """What a certificate takes from the authority above it."""

    trust_domain: TrustDomain
    name: x509.Name
    name_der: bytes
    key_id: bytes
    not_after: int
    public_key: AuthorityPublicKey
    spki: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything one certificate will say.

    `parent` is None for a self-signed authority; an authority below another has one.
    """

    profile: Profile
    spiffe_id: SpiffeId
    public_key: AuthorityPublicKey
    spki: bytes = field(repr=False)
    key_id: bytes
    subject: x509.Name
    dns_names: tuple[str, ...]
    serial: int
    not_before: int
    not_after: int
    parent: Parent | None

    @property
    def is_ca(self) -> bool:
        """Whether this is an authority rather than a leaf."""
        return self.profile is Profile.CA

    @property
    def issuer(self) -> x509.Name:
        """The issuer's name; its own for a self-signed authority."""
        return self.subject if self.parent is None else self.parent.name

    @property
    def signing_key(self) -> AuthorityPublicKey:
        """The public half of the key that will sign."""
        return self.public_key if self.parent is None else self.parent.public_key


def plan_leaf(
    profile: Profile,
    parent: Parent,
    spiffe_id: SpiffeId,
    public_key: PublicKey,
    *,
    ttl: int,
    now: int,
    serial: int,
    dns_names: tuple[str, ...] = (),
    subject: x509.Name | None = None,
    at_least_until: int = 0,
    spki: bytes = b"",
) -> Plan:
    """Plan a leaf for `spiffe_id`, which comes from the registration and never from a request (S20).

    It ends `ttl` seconds from `now`, not before `at_least_until`, and never after its issuer (S37). `spki` is the key's
    encoding, where the caller has it already.

    Raises:
        InvalidRequest: the id, key, ttl or names may not be in such a leaf.
        Unavailable: the issuer has expired.
    """
    _check_leaf_id(profile, parent.trust_domain, spiffe_id)
    check_public_key(public_key, field="public_key")
    if ttl <= 0:
        raise InvalidRequest("ttl: must be a positive number of seconds", field="ttl")
    if len(dns_names) > MAX_DNS_NAMES:
        raise InvalidRequest(f"dns_names: at most {MAX_DNS_NAMES} names", field="dns_names")
    not_after = min(max(now + ttl, at_least_until), parent.not_after)
    if not_after <= now:
        raise Unavailable("the signing authority has expired; a new one is being prepared, try again shortly")
    if subject is None:
        subject = LEAF_SUBJECT
        if profile is Profile.WORKLOAD and dns_names and len(dns_names[0]) <= MAX_COMMON_NAME:
            subject = subject_name(common_name=dns_names[0])
    spki = spki or spki_der(public_key)
    return Plan(
        profile=profile,
        spiffe_id=spiffe_id,
        public_key=public_key,
        spki=spki,
        key_id=subject_key_id(public_key, spki),
        subject=subject,
        dns_names=dns_names,
        serial=_checked_serial(serial),
        not_before=now - BACKDATE_SECONDS,
        not_after=not_after,
        parent=parent,
    )


def plan_ca(
    trust_domain: TrustDomain,
    public_key: AuthorityPublicKey,
    *,
    lifetime: int,
    now: int,
    serial: int,
    subject: x509.Name = CA_SUBJECT,
    parent: Parent | None = None,
) -> Plan:
    """Plan an authority for `trust_domain`, self-signed or below `parent`, which it does not outlive.

    Its subject ends with its serial number, as SPIRE's does, so that no two authorities have one name.

    Raises:
        InvalidRequest: the key or the lifetime may not be in an authority.
        Unavailable: the parent has expired.
    """
    if is_ec(public_key) or not isinstance(public_key, MlDsaPublicKey):
        check_public_key(public_key, field="public_key")
    if lifetime <= 0:
        raise InvalidRequest("ca.ttl: must be a positive number of seconds", field="ca.ttl")
    not_after = now + lifetime
    if parent is not None:
        not_after = min(not_after, parent.not_after)
        if not_after <= now:
            raise Unavailable("the signing authority has expired; a new one is needed before it can sign others")
    numbered = x509.NameAttribute(NameOID.SERIAL_NUMBER, str(_checked_serial(serial)))
    unnumbered = [part for part in subject if part.oid != NameOID.SERIAL_NUMBER]
    return Plan(
        profile=Profile.CA,
        spiffe_id=trust_domain.id,
        public_key=public_key,
        spki=spki_der(public_key),
        key_id=subject_key_id(public_key),
        subject=x509.Name([*unnumbered, numbered]),
        dns_names=(),
        serial=serial,
        not_before=now - BACKDATE_SECONDS,
        not_after=not_after,
        parent=parent,
    )


def extensions(plan: Plan) -> tuple[tuple[x509.ExtensionType, bool], ...]:
    """The extensions of a certificate with their criticality, in the order they are written."""
    subject_key = (x509.SubjectKeyIdentifier(plan.key_id), False)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(plan.spiffe_id))]
    if plan.parent is None:
        return (CA_USAGE, CA_CONSTRAINTS, subject_key, (x509.SubjectAlternativeName(names), False))
    above = (x509.AuthorityKeyIdentifier(plan.parent.key_id, None, None), False)
    if plan.is_ca:
        return (CA_USAGE, CA_CONSTRAINTS, subject_key, above, (x509.SubjectAlternativeName(names), False))
    names.extend(map(x509.DNSName, plan.dns_names))
    return (
        leaf_usage(plan.public_key),
        LEAF_PURPOSES,
        LEAF_CONSTRAINTS,
        subject_key,
        above,
        (x509.SubjectAlternativeName(names), not plan.subject.rdns),  # X509-05
    )


def leaf_usage(public_key: AuthorityPublicKey) -> tuple[x509.KeyUsage, bool]:
    """Key usage of a leaf with this key (X509-22 to X509-24, architecture A4)."""
    return RSA_LEAF_USAGE if not is_ec(public_key) and isinstance(public_key, rsa.RSAPublicKey) else EC_LEAF_USAGE


def _usage(
    *, signature: bool = False, encipherment: bool = False, cert_sign: bool = False, crl_sign: bool = False
) -> tuple[x509.KeyUsage, bool]:
    bits = x509.KeyUsage(
        digital_signature=signature,
        content_commitment=False,
        key_encipherment=encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
    return bits, True


CA_USAGE = _usage(cert_sign=True, crl_sign=True)
EC_LEAF_USAGE = _usage(signature=True)
RSA_LEAF_USAGE = _usage(signature=True, encipherment=True)
CA_CONSTRAINTS = (x509.BasicConstraints(ca=True, path_length=None), True)
LEAF_CONSTRAINTS = (x509.BasicConstraints(ca=False, path_length=None), True)
LEAF_PURPOSES = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False)


def _check_leaf_id(profile: Profile, trust_domain: TrustDomain, spiffe_id: SpiffeId) -> None:
    if spiffe_id.trust_domain != trust_domain:
        raise InvalidRequest(f"spiffe_id: must be in the trust domain {trust_domain}", field="spiffe_id")
    if not spiffe_id.path:
        raise InvalidRequest("spiffe_id: an SVID needs a path after the trust domain (X509-04)", field="spiffe_id")
    if not _may_name(profile, spiffe_id):
        raise InvalidRequest(
            f"spiffe_id: {spiffe_id.path} cannot be in a certificate of the {profile.value} profile; "
            "/spire is reserved for the server and agents",
            field="spiffe_id",
        )


def _may_name(profile: Profile, spiffe_id: SpiffeId) -> bool:
    if profile is Profile.WORKLOAD:
        return not spiffe_id.is_reserved
    if profile is Profile.AGENT:
        return spiffe_id.path.startswith("/spire/agent/")
    return profile is Profile.SERVER and spiffe_id.path == "/spire/server"


def _checked_serial(serial: int) -> int:
    if not 1 <= serial <= MAX_SERIAL:
        raise InvalidRequest("serial: must be in [1, 2^128-1]", field="serial")
    return serial
