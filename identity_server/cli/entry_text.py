"""A registration entry as a person reads it."""

from __future__ import annotations

from spiffe_core.terminal.printing import Row, spiffe_id_text, timestamp
from spiffe_core.wire._gen.spire.api.types import entry_pb2

COLUMNS = ("Entry ID", "SPIFFE ID", "Parent ID", "Selectors", "X509-SVID TTL")


def ttl(seconds: int) -> str:
    """A TTL, where 0 stands for the server's own."""
    return str(seconds) if seconds else "default"


def block(entry: entry_pb2.Entry) -> list[Row]:
    """The lines of one entry; what is not set is left out, the labels are SPIRE's."""
    rows: list[Row] = [
        ("Entry ID", entry.id or "(none)"),
        ("SPIFFE ID", spiffe_id_text(entry.spiffe_id)),
        ("Parent ID", spiffe_id_text(entry.parent_id)),
        ("Revision", str(entry.revision_number)),
    ]
    if entry.downstream:
        rows.append(("Downstream", "true"))
    rows += [("X509-SVID TTL", ttl(entry.x509_svid_ttl)), ("JWT-SVID TTL", ttl(entry.jwt_svid_ttl))]
    if entry.expires_at:
        rows.append(("Expiration time", timestamp(entry.expires_at)))
    rows += [("Selector", f"{selector.type}:{selector.value}") for selector in entry.selectors]
    rows += [("FederatesWith", name) for name in entry.federates_with]
    rows += [("DNS name", name) for name in entry.dns_names]
    if entry.admin:
        rows.append(("Admin", "true"))
    if entry.store_svid:
        rows.append(("StoreSvid", "true"))
    if entry.hint:
        rows.append(("Hint", entry.hint))
    if entry.additional_attributes.disable_x509_svid_prefetch:
        rows.append(("X509 prefetch", "off"))
    if entry.additional_attributes.jwt_svid_include_jti:
        rows.append(("JWT jti claim", "true"))
    return rows


def cells(entry: entry_pb2.Entry) -> list[str]:
    """One row of a table under COLUMNS."""
    return [
        entry.id,
        spiffe_id_text(entry.spiffe_id),
        spiffe_id_text(entry.parent_id),
        "\n".join(f"{selector.type}:{selector.value}" for selector in entry.selectors),
        ttl(entry.x509_svid_ttl),
    ]
