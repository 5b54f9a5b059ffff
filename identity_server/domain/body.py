"""Pre-encoded bodies: the ordinary leaf, several times faster than the builder and no less checked.

Nearly every leaf of one authority is the same but for its serial number, validity, key and SPIFFE ID. A `Body` learns
the rest from one certificate that the builder made and the full lint passed, and encodes the next ones around it. Each
result is decoded again, by other code than wrote it, and compared with its plan before it becomes a ticket: what does
not change must be what the full lint passed, what does change must be what was planned. Whatever is out of the ordinary
(DNS names, a subject of its own, RSA or P-384 keys, dates from 2050 on) goes through the builder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from identity_server.domain.body_shape import Shape
from identity_server.domain.issuance import ReadyToSign, der_element, der_header, prepare
from identity_server.domain.lint import Finding, LintFailed, contents, elements
from identity_server.domain.profiles import LEAF_SUBJECT, MAX_SERIAL, Parent, Plan
from spiffe_core.crypto.keys import P256_SPKI_BYTES, P256_SPKI_PREFIX

_UTC_TIME_ENDS = int(datetime(2050, 1, 1, tzinfo=UTC).timestamp())
_SAN_OID = bytes.fromhex("0603551d11")
_SKI_START = bytes.fromhex("301d0603551d0e04160414")
_SKI_BYTES = len(_SKI_START) + 20
_SEQUENCE, _INTEGER, _OCTET_STRING, _UTC_TIME, _EXTENSIONS, _URI = 0x30, 0x02, 0x04, 0x17, 0xA3, 0x86
_SKI_AT, _AKI_AT = 3, 4
_UTC_TIME_CENTURY_TURN = 50
_POINT_AT = len(P256_SPKI_PREFIX) - 1


def fits(plan: Plan) -> bool:
    """Whether `plan` is the ordinary leaf that a body can encode."""
    return (
        plan.parent is not None
        and not plan.is_ca
        and not plan.dns_names
        and plan.subject is LEAF_SUBJECT
        and len(plan.spki) == P256_SPKI_BYTES
        and plan.spki.startswith(P256_SPKI_PREFIX)
        and 0 <= plan.not_before < plan.not_after < _UTC_TIME_ENDS
    )


@dataclass(frozen=True, slots=True)
class Body:
    """What the ordinary leaves of one authority have in common, as DER. Made by `learn` only."""

    parent: Parent
    version: bytes
    algorithm_and_issuer: bytes
    subject: bytes
    before_key_id: bytes
    between: bytes
    constants: tuple[bytes, ...]
    shape: Shape

    @classmethod
    def learn(cls, plan: Plan, tbs: bytes) -> Body:
        """Take the constant parts from a body that the builder made and the full lint passed."""
        assert plan.parent is not None
        assert fits(plan)
        version, _, algorithm, issuer, _, subject, _, extensions = elements(contents(tbs))
        listed = elements(contents(contents(extensions)))
        before_key_id = b"".join(listed[:_SKI_AT])
        body = cls(
            parent=plan.parent,
            version=version,
            algorithm_and_issuer=algorithm + issuer,
            subject=subject,
            before_key_id=before_key_id,
            between=listed[_AKI_AT],
            constants=(version, algorithm, issuer, subject, *listed[:_SKI_AT], listed[_AKI_AT]),
            shape=Shape.of(plan.parent, version, algorithm + issuer, subject, before_key_id, listed[_AKI_AT]),
        )
        if body.encode(plan) != tbs:
            raise LintFailed((Finding("RFC5280-4.1", "the builder's own body cannot be encoded again"),))
        return body

    def prepare(self, plan: Plan) -> ReadyToSign:
        """Encode, check, and hand out the ticket for one signature.

        Raises:
            LintFailed: the encoding does not say what was planned.
        """
        tbs = self.encode(plan)
        if not self.shape.says(tbs, plan):
            raise LintFailed(
                tuple(self.lint(tbs, plan))
                or (Finding("RFC5280-4.1", "is not in the shape that passed the full lint"),)
            )
        return ReadyToSign(plan, tbs)

    def encode(self, plan: Plan) -> bytes:
        """The TBSCertificate (RFC 5280 section 4.1) of a plan that fits."""
        serial = plan.serial.to_bytes(plan.serial.bit_length() // 8 + 1)
        name = str(plan.spiffe_id).encode("ascii")
        san = _before_name(len(name))
        extensions = len(self.before_key_id) + _SKI_BYTES + len(self.between) + len(san) + len(name)
        rest = b"".join(
            (
                self.version,
                der_header(_INTEGER, len(serial)),
                serial,
                self.algorithm_and_issuer,
                _validity(plan.not_before, plan.not_after),
                self.subject,
                plan.spki,
                _before_extensions(extensions),
                self.before_key_id,
                _SKI_START,
                plan.key_id,
                self.between,
                san,
                name,
            )
        )
        return der_header(_SEQUENCE, len(rest)) + rest

    def lint(self, tbs: bytes, plan: Plan) -> Iterator[Finding]:
        """Everything in an encoded body that is not as planned, or not as in the body the full lint passed.

        Element by element, for those who want to know why `Shape.says` said no.
        """
        try:
            read = _Read.of(tbs)
        except (ValueError, IndexError) as error:
            yield Finding("RFC5280-4.1", f"cannot be parsed: {error}")
            return
        if read.constants != self.constants:
            yield Finding("RFC5280-4.1", "a constant part is not the one that passed the full lint")
        if plan.parent is not self.parent:
            yield Finding("RFC5280-4.1", "the body is another authority's")
        if read.serial != plan.serial or not 1 <= plan.serial <= MAX_SERIAL:
            yield Finding("RFC5280-4.1", "serial number is not the planned one in [1, 2^128-1]")
        if (read.not_before, read.not_after) != (plan.not_before, plan.not_after):
            yield Finding("S37", "validity is not the planned seconds")
        if not plan.not_before < plan.not_after <= self.parent.not_after:
            yield Finding("S37", "ends before it starts or after its issuer")
        yield from self._key(read, plan)
        yield from self._name(read, plan)

    def _key(self, read: _Read, plan: Plan) -> Iterator[Finding]:
        if read.spki != plan.spki:
            yield Finding("RFC5280-4.1", "public key is not the planned one")
        if read.spki == self.parent.spki:
            yield Finding("N-C-07", "the key is the issuer's own")
        if read.key_id != _SKI_START + hashlib.sha1(read.spki[_POINT_AT:], usedforsecurity=False).digest():
            yield Finding("RFC5280-4.2", "subject key identifier is not the key's")

    def _name(self, read: _Read, plan: Plan) -> Iterator[Finding]:
        if len(read.names) != 1 or read.names[0][0] != _URI:
            yield Finding("X509-01", "there is not exactly one URI name, in a non-critical extension (X509-05)")
        elif contents(read.names[0]) != str(plan.spiffe_id).encode("ascii"):
            yield Finding("X509-34", "the name is not the planned SPIFFE ID")
        if not plan.spiffe_id.path:
            yield Finding("X509-04", "a leaf's SPIFFE ID has a path")
        if plan.spiffe_id.trust_domain != self.parent.trust_domain:
            yield Finding("X509-10", "the SPIFFE ID is not in the issuer's trust domain")


@dataclass(frozen=True, slots=True)
class _Read:
    """A body taken apart again."""

    constants: tuple[bytes, ...]
    serial: int
    not_before: int
    not_after: int
    spki: bytes
    key_id: bytes
    names: tuple[bytes, ...]

    @classmethod
    def of(cls, tbs: bytes) -> _Read:
        """Raises ValueError or IndexError for what is not shaped like a body."""
        version, serial, algorithm, issuer, validity, subject, spki, extensions = _inside(_SEQUENCE, tbs)
        (listed,) = _inside(_EXTENSIONS, extensions)
        usage, purposes, constraints, key_id, above, san = _inside(_SEQUENCE, listed)
        not_before, not_after = _inside(_SEQUENCE, validity)
        oid, value = _inside(_SEQUENCE, san)
        (names,) = _inside(_OCTET_STRING, value)
        if serial[0] != _INTEGER or oid != _SAN_OID:
            raise ValueError("a field is not what stands at its place")
        return cls(
            constants=(version, algorithm, issuer, subject, usage, purposes, constraints, above),
            serial=int.from_bytes(contents(serial), signed=True),
            not_before=_seconds(not_before),
            not_after=_seconds(not_after),
            spki=spki,
            key_id=key_id,
            names=_inside(_SEQUENCE, names),
        )


class Bodies:
    """Prepares plans of one authority: by its body where that fits, else by the builder."""

    __slots__ = ("_body",)

    def __init__(self) -> None:
        self._body: Body | None = None

    def prepare(self, plan: Plan) -> ReadyToSign:
        """The ticket for one signature over the body of `plan`.

        Raises:
            LintFailed: it broke a rule.
        """
        if not fits(plan):
            return prepare(plan)
        body = self._body
        if body is not None and body.parent is plan.parent:
            return body.prepare(plan)
        ticket = prepare(plan)
        tbs = ticket.redeem()
        self._body = Body.learn(plan, tbs)
        return ReadyToSign(plan, tbs)


def _inside(tag: int, element: bytes) -> tuple[bytes, ...]:
    if element[0] != tag:
        raise ValueError("a field has another tag")
    return elements(contents(element))


@lru_cache(maxsize=4096)
def _before_name(size: int) -> bytes:
    """The extension for subject alternative names up to the bytes of the one name, a URI (RFC 5280 section 4.2.1.6)."""
    head = b""
    for tag in (_URI, _SEQUENCE, _OCTET_STRING):
        head = der_header(tag, size + len(head)) + head
    head = _SAN_OID + head
    return der_header(_SEQUENCE, size + len(head)) + head


def _before_extensions(size: int) -> bytes:
    inner = der_header(_SEQUENCE, size)
    return der_header(_EXTENSIONS, size + len(inner)) + inner


@lru_cache(maxsize=4096)
def _validity(not_before: int, not_after: int) -> bytes:
    return der_element(_SEQUENCE, _utc_time(not_before) + _utc_time(not_after))


def _utc_time(moment: int) -> bytes:
    return der_element(_UTC_TIME, datetime.fromtimestamp(moment, UTC).strftime("%y%m%d%H%M%SZ").encode("ascii"))


@lru_cache(maxsize=4096)
def _seconds(element: bytes) -> int:
    """A UTCTime in unix seconds (RFC 5280 section 4.1.2.5.1). Raises ValueError for anything else."""
    text = contents(element)
    if element[0] != _UTC_TIME or len(text) != len(b"YYMMDDHHMMSSZ") or text[-1:] != b"Z" or not text[:-1].isdigit():
        raise ValueError("validity is not in UTCTime")
    year, month, day, hour, minute, second = (int(text[at : at + 2]) for at in range(0, 12, 2))
    if year >= _UTC_TIME_CENTURY_TURN:
        raise ValueError("validity lies in another century")
    return int(datetime(2000 + year, month, day, hour, minute, second, tzinfo=UTC).timestamp())
