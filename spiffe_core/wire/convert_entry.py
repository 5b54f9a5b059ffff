"""Registration entries as messages, both ways, and what masks do to them."""

from __future__ import annotations

from spiffe_core.entry import (
    MAX_DNS_NAMES,
    MAX_FEDERATES_WITH,
    MAX_SELECTORS,
    RegistrationEntry,
    check_membership,
)
from spiffe_core.errors import InvalidEntry, InvalidRequest
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire._gen.spire.api.types import entry_pb2
from spiffe_core.wire.convert_ids import (
    check_count,
    repeated_id_from_proto,
    selectors_from_proto,
    selectors_to_proto,
    spiffe_id_from_proto,
    spiffe_id_to_proto,
    trust_domain_from_proto,
)
from spiffe_core.wire.masks import flagged, masked, overlay

SERVER_FIELDS = ("revision_number", "created_at")
"""What only the server writes, whatever a request or its mask says."""


def entry_to_proto(entry: RegistrationEntry) -> entry_pb2.Entry:
    """The complete entry. Equal entries have equal bytes."""
    message = entry_pb2.Entry(
        id=entry.id,
        spiffe_id=spiffe_id_to_proto(entry.spiffe_id),
        parent_id=spiffe_id_to_proto(entry.parent_id),
        selectors=selectors_to_proto(entry.selectors),
        x509_svid_ttl=entry.x509_svid_ttl,
        federates_with=[trust_domain.name for trust_domain in entry.federates_with],
        admin=entry.admin,
        downstream=entry.downstream,
        expires_at=entry.expires_at,
        dns_names=entry.dns_names,
        revision_number=entry.revision_number,
        store_svid=entry.store_svid,
        jwt_svid_ttl=entry.jwt_svid_ttl,
        hint=entry.hint,
        created_at=entry.created_at,
    )
    if entry.disable_x509_svid_prefetch or entry.jwt_svid_include_jti:
        message.additional_attributes.disable_x509_svid_prefetch = entry.disable_x509_svid_prefetch
        message.additional_attributes.jwt_svid_include_jti = entry.jwt_svid_include_jti
    return message


def entry_from_proto(message: entry_pb2.Entry, *, trust_domain: TrustDomain, new_id: str = "") -> RegistrationEntry:
    """The entry that a request describes, checked for a server of `trust_domain`.

    `new_id` is used when the message has no id. `revision_number` and `created_at` are read as they are; a server
    that takes an entry from a client sets its own.

    Raises:
        InvalidEntry: naming the field and the rule.
    """
    try:
        entry = _read(message, new_id)
        check_membership(entry, trust_domain)
    except InvalidEntry:
        raise
    except InvalidRequest as refusal:
        raise InvalidEntry(refusal.public, field=refusal.field) from None
    return entry


def _read(message: entry_pb2.Entry, new_id: str) -> RegistrationEntry:
    federates_with, dns_names = message.federates_with, message.dns_names
    check_count("federates_with", len(federates_with), MAX_FEDERATES_WITH, InvalidEntry)
    check_count("dns_names", len(dns_names), MAX_DNS_NAMES, InvalidEntry)
    special = message.additional_attributes if message.HasField("additional_attributes") else None
    return RegistrationEntry(
        id=message.id or new_id,
        spiffe_id=spiffe_id_from_proto(message.spiffe_id, field="spiffe_id"),
        parent_id=repeated_id_from_proto(message.parent_id, field="parent_id"),
        selectors=selectors_from_proto(message.selectors, limit=MAX_SELECTORS),
        x509_svid_ttl=message.x509_svid_ttl,
        jwt_svid_ttl=message.jwt_svid_ttl,
        federates_with=tuple(
            [
                trust_domain_from_proto(name, field=f"federates_with[{index}]")
                for index, name in enumerate(federates_with)
            ]
        ),
        admin=message.admin,
        downstream=message.downstream,
        expires_at=message.expires_at,
        dns_names=tuple(dns_names),
        revision_number=message.revision_number,
        store_svid=message.store_svid,
        hint=message.hint,
        created_at=message.created_at,
        disable_x509_svid_prefetch=special is not None and special.disable_x509_svid_prefetch,
        jwt_svid_include_jti=special is not None and special.jwt_svid_include_jti,
    )


def mask_entry(message: entry_pb2.Entry, mask: entry_pb2.EntryMask | None) -> entry_pb2.Entry:
    """A copy with the id and the fields that `mask` asks for; None asks for all."""
    return masked(message, mask, "id")


def apply_entry_mask(
    existing: RegistrationEntry,
    incoming: entry_pb2.Entry,
    mask: entry_pb2.EntryMask | None,
    *,
    trust_domain: TrustDomain,
) -> RegistrationEntry:
    """What BatchUpdateEntry makes of `existing`: the fields in `mask` are replaced, zero values included.

    None replaces all. The id, the revision number and the creation time stay those of `existing`; the caller counts
    the revision up.

    Raises:
        InvalidEntry: naming the field and the rule.
    """
    bits = flagged(entry_pb2.EntryMask() if mask is None else mask)
    wanted = tuple(bit.name for bit in entry_pb2.EntryMask.DESCRIPTOR.fields) if mask is None else bits
    fields = tuple(field for field in wanted if field not in SERVER_FIELDS)
    return entry_from_proto(overlay(entry_to_proto(existing), incoming, fields), trust_domain=trust_domain)
