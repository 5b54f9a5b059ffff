"""The last look at a certificate before a key signs it: does the DER say what was planned, and may it be said?

`lint` parses the finished encoding (under a dummy signature), never the builder's objects, so that a fault in the
encoder or in a pre-encoded body is seen as well. To be signed a certificate must pass all of:

    RFC5280-4.1   version 3; serial, issuer, subject and public key byte for byte as planned; serial positive and of at
                  most 128 bits; both algorithm identifiers equal and those of the signing key
    RFC5280-4.2   exactly the planned extensions; SKI of the subject's key; AKI of the parent, absent when self-signed
    X509-01/-34   exactly one URI SAN, the planned SPIFFE ID, before the planned DNS names and nothing else (X509-03)
    X509-04/-09   a leaf's SPIFFE ID has a path, an authority's has none; X509-10: same trust domain as the issuer
    X509-05       SAN critical exactly if the subject is empty
    X509-14/-15   basic constraints present and critical: cA for authorities (no path length), not for leaves
    X509-18..-25  key usage present, critical; leaf: digitalSignature (RSA also keyEncipherment) and no more;
                  authority: keyCertSign and cRLSign and no more
    X509-26..-29  leaf: extended key usage serverAuth and clientAuth; authority: none
    S37           validity to the second as planned; it starts before it ends, and ends no later than its issuer
    N-C-07        a key is not its issuer's key, unless the certificate is self-signed
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from identity_server.domain.profiles import (
    CA_CONSTRAINTS,
    CA_USAGE,
    LEAF_CONSTRAINTS,
    LEAF_PURPOSES,
    MAX_SERIAL,
    Plan,
    leaf_usage,
)
from spiffe_core.errors import Internal

MAX_CERTIFICATE_BYTES = 64 * 1024
_TBS_FIELDS = 8
_LONG_FORM = 0x80
_MAX_LENGTH_BYTES = 3

_LEAF_EXTENSIONS = frozenset(
    {
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)
_CA_EXTENSIONS = _LEAF_EXTENSIONS - {ExtensionOID.EXTENDED_KEY_USAGE}
_ROOT_EXTENSIONS = _CA_EXTENSIONS - {ExtensionOID.AUTHORITY_KEY_IDENTIFIER}


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken rule."""

    rule: str
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.what}"


class LintFailed(Internal):
    """A certificate we built breaks its profile, so it was not signed: a fault of ours, not of the caller."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        super().__init__(
            "the certificate broke its profile and was not signed", findings=[str(one) for one in findings]
        )
        self.findings = findings


def lint(der: bytes, plan: Plan, signature_algorithm: bytes) -> tuple[Finding, ...]:
    """All that is wrong with the certificate `der`, whose signature is not looked at; empty when it may be signed.

    `signature_algorithm` is the AlgorithmIdentifier (DER) that the signing key uses.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        return (
            Finding("RFC5280-4.1", f"has {len(der)} bytes, at most {MAX_CERTIFICATE_BYTES} are verified by anyone"),
        )
    try:
        tbs, algorithm, _ = elements(contents(der))
        certificate = x509.load_der_x509_certificate(der)
        found = {extension.oid: extension for extension in certificate.extensions}
        return (
            *_fields(certificate, tbs, algorithm, plan, signature_algorithm),
            *_validity(certificate, plan),
            *_extension_set(found, plan),
            *_names(found, plan),
            *_usages(found, plan),
        )
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        return (Finding("RFC5280-4.1", f"cannot be parsed: {error}"),)


_Found: TypeAlias = dict[x509.ObjectIdentifier, x509.Extension[x509.ExtensionType]]


def _fields(certificate: x509.Certificate, tbs: bytes, outer: bytes, plan: Plan, algorithm: bytes) -> Iterator[Finding]:
    rule = "RFC5280-4.1"
    fields = elements(contents(tbs))
    if len(fields) != _TBS_FIELDS or certificate.version is not x509.Version.v3:
        yield Finding(rule, "is not a version 3 certificate without unique identifiers")
        return
    _, _, inner, issuer, _, subject, spki, _ = fields
    if certificate.serial_number != plan.serial or not 1 <= plan.serial <= MAX_SERIAL:
        yield Finding(rule, "serial number is not the planned one in [1, 2^128-1]")
    if subject != plan.subject.public_bytes():
        yield Finding(rule, "subject is not the planned one")
    if issuer != (subject if plan.parent is None else plan.parent.name_der):
        yield Finding(rule, "issuer is not the signing authority's subject")
    if spki != plan.spki:
        yield Finding(rule, "public key is not the planned one")
    if not inner == outer == algorithm:
        yield Finding(rule, "the algorithm identifiers are not both those of the signing key")
    if plan.parent is not None and plan.spki == plan.parent.spki:
        yield Finding("N-C-07", "the key is the issuer's own")


def _validity(certificate: x509.Certificate, plan: Plan) -> Iterator[Finding]:
    if certificate.not_valid_before_utc.timestamp() != plan.not_before:
        yield Finding("S37", "notBefore is not the planned second")
    if certificate.not_valid_after_utc.timestamp() != plan.not_after:
        yield Finding("S37", "notAfter is not the planned second")
    if plan.not_after <= plan.not_before:
        yield Finding("S37", "ends before it starts")
    if plan.parent is not None and plan.not_after > plan.parent.not_after:
        yield Finding("S37", "ends after its issuer")


def _extension_set(found: _Found, plan: Plan) -> Iterator[Finding]:
    rule = "RFC5280-4.2"
    if found.keys() != _planned_extensions(plan):
        yield Finding(rule, "extensions are missing or surplus")
    subject_key = found.get(ExtensionOID.SUBJECT_KEY_IDENTIFIER)
    if subject_key is None or subject_key.critical or subject_key.value != x509.SubjectKeyIdentifier(plan.key_id):
        yield Finding(rule, "subject key identifier is not the key's")
    if plan.parent is not None:
        above = found.get(ExtensionOID.AUTHORITY_KEY_IDENTIFIER)
        wanted = x509.AuthorityKeyIdentifier(plan.parent.key_id, None, None)
        if above is None or above.critical or above.value != wanted:
            yield Finding(rule, "authority key identifier is not the issuer's")
    constraints = found.get(ExtensionOID.BASIC_CONSTRAINTS)
    rule, wanted_constraints = ("X509-14", CA_CONSTRAINTS) if plan.is_ca else ("X509-15", LEAF_CONSTRAINTS)
    if constraints is None or (constraints.value, constraints.critical) != wanted_constraints:
        yield Finding(rule, "basic constraints are not those of the profile")


def _planned_extensions(plan: Plan) -> frozenset[x509.ObjectIdentifier]:
    if not plan.is_ca:
        return _LEAF_EXTENSIONS
    return _ROOT_EXTENSIONS if plan.parent is None else _CA_EXTENSIONS


def _names(found: _Found, plan: Plan) -> Iterator[Finding]:
    extension = found.get(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    if extension is None or not isinstance(extension.value, x509.SubjectAlternativeName):
        yield Finding("X509-01", "there is no subject alternative name")
        return
    names = list(extension.value)
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    if len(uris) != 1:
        yield Finding("X509-01", f"there are {len(uris)} URI names instead of one")
    elif uris[0] != str(plan.spiffe_id) or not isinstance(names[0], x509.UniformResourceIdentifier):
        yield Finding("X509-34", "the first name is not the planned SPIFFE ID")
    others = tuple(name.value if isinstance(name, x509.DNSName) else None for name in names[1:])
    if others != plan.dns_names:
        yield Finding("X509-03", "the other names are not the planned DNS names")
    if extension.critical is not (not plan.subject.rdns):
        yield Finding("X509-05", "must be critical exactly if the subject is empty")
    if plan.is_ca and plan.spiffe_id.path:
        yield Finding("X509-09", "an authority's SPIFFE ID has no path")
    if not plan.is_ca and not plan.spiffe_id.path:
        yield Finding("X509-04", "a leaf's SPIFFE ID has a path")
    if plan.parent is not None and plan.spiffe_id.trust_domain != plan.parent.trust_domain:
        yield Finding("X509-10", "the SPIFFE ID is not in the issuer's trust domain")


def _usages(found: _Found, plan: Plan) -> Iterator[Finding]:
    usage = found.get(ExtensionOID.KEY_USAGE)
    wanted = CA_USAGE if plan.is_ca else leaf_usage(plan.public_key)
    if usage is None:
        yield Finding("X509-18", "there is no key usage")
    else:
        if not usage.critical:
            yield Finding("X509-19", "key usage is not critical")
        if usage.value != wanted[0]:
            rule = "X509-20/-25" if plan.is_ca else "X509-22/-23/-24"
            yield Finding(rule, "key usage is not that of the profile")
    purposes = found.get(ExtensionOID.EXTENDED_KEY_USAGE)
    if plan.is_ca:
        if purposes is not None:
            yield Finding("X509-29", "an authority has no extended key usage here")
    elif purposes is None:
        yield Finding("X509-26", "there is no extended key usage")
    elif (purposes.value, purposes.critical) != LEAF_PURPOSES:
        yield Finding("X509-28", "extended key usage is not serverAuth and clientAuth")


def contents(element: bytes) -> bytes:
    """What is inside one DER element that is all of `element`."""
    start, end = _bounds(element, 0)
    if end != len(element):
        raise ValueError("bytes after the element")
    return element[start:end]


def elements(data: bytes) -> tuple[bytes, ...]:
    """The DER elements that follow each other in `data`, each with its header."""
    found: list[bytes] = []
    position = 0
    while position < len(data):
        _, end = _bounds(data, position)
        found.append(data[position:end])
        position = end
    return tuple(found)


def _bounds(data: bytes, position: int) -> tuple[int, int]:
    """Where the contents of the element at `position` start and end (X.690 section 8.1.3, definite lengths)."""
    if position + 2 > len(data):
        raise ValueError("truncated element")
    start, length = position + 2, data[position + 1]
    if length >= _LONG_FORM:
        count = length - _LONG_FORM
        start, length = start + count, int.from_bytes(data[start : start + count])
        if not 1 <= count <= _MAX_LENGTH_BYTES or start > len(data):
            raise ValueError("unusable length")
        if length < _LONG_FORM or length.bit_length() <= 8 * (count - 1):
            raise ValueError("a length is not in its shortest form")
    if start + length > len(data):
        raise ValueError("truncated element")
    return start, start + length
