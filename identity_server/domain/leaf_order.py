"""A leaf that was authorised and is not signed yet, and the one function that turns it into a certificate.

Whoever decides (the issuer) makes a `LeafOrder`; whoever holds the key (the issuer itself, or a worker process) calls
`signed`. Nothing of an order is taken from the request but the key, which the requester proved to hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography import x509

from identity_server.domain.body import Bodies
from identity_server.domain.issuance import ReadyToSign, sign
from identity_server.domain.profiles import Parent, Profile, plan_leaf
from spiffe_core.crypto.keys import AuthorityKey, SubjectKey
from spiffe_core.errors import InvalidCsr
from spiffe_core.spiffe_id import SpiffeId


@dataclass(frozen=True, slots=True)
class LeafOrder:
    """Everything about one leaf but its key. Times in whole seconds; `ttl` is never 0 here."""

    profile: Profile
    spiffe_id: SpiffeId
    ttl: int
    now: int
    serial: int
    at_least_until: int = 0
    dns_names: tuple[str, ...] = ()
    subject: x509.Name | None = None


@dataclass(frozen=True, slots=True)
class SignedLeaf:
    """The certificate (DER) and its end."""

    der: bytes
    not_after: int


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An authority's certificate (DER) and key, and what leaves below it take from it."""

    certificate: bytes = field(repr=False)
    parent: Parent
    key: AuthorityKey = field(repr=False)
    bodies: Bodies = field(default_factory=Bodies, compare=False, repr=False)


def signed(by: SigningKey, order: LeafOrder, key: SubjectKey, taken: frozenset[str]) -> SignedLeaf:
    """Plan, build, lint, and only then sign; `taken` are the key identifiers (hex) of authorities (N-C-07).

    Raises:
        InvalidRequest: the id, key, names or ttl may not be certified; names the field.
        Unavailable: the authority has expired.
        LintFailed: the certificate broke a rule.
    """
    return finished(by, prepared(by, order, key, taken))


def prepared(by: SigningKey, order: LeafOrder, key: SubjectKey, taken: frozenset[str]) -> ReadyToSign:
    """Everything of `signed` but the signature."""
    plan = plan_leaf(
        order.profile,
        by.parent,
        order.spiffe_id,
        key.public_key,
        ttl=order.ttl,
        now=order.now,
        serial=order.serial,
        dns_names=order.dns_names,
        subject=order.subject,
        at_least_until=order.at_least_until,
        spki=key.spki,
    )
    if plan.key_id.hex() in taken:
        raise InvalidCsr("public_key: this is the key of a signing authority; make a new key", field="public_key")
    return by.bodies.prepare(plan)


def finished(by: SigningKey, ticket: ReadyToSign) -> SignedLeaf:
    """The signature under what was prepared for this very key."""
    return SignedLeaf(sign(ticket, by.key), ticket.plan.not_after)
