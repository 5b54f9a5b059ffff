"""Rows to values and back, and nothing else.

Text is stored as UTF-8 bytes, verbatim. Sets that are only ever read whole are JSON documents. A row that does not
make a valid value was not written by us: it is refused by name, never repaired (CorruptState).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from json.encoder import encode_basestring as _quoted
from typing import Any, TypeVar, cast

from sqlalchemy import Row

from identity_server.domain.agents import AttestedAgent
from identity_server.domain.authority import Authority, AuthorityKind, SlotName, Status
from identity_server.domain.federation import EndpointProfile, FederationRelationship
from identity_server.domain.join_tokens import JoinToken
from spiffe_core.bundle import JwtAuthority, TrustBundle, WitAuthority, X509Authority
from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import CorruptState, IdentityError
from spiffe_core.selectors import Selector, canonical, selector_digest
from spiffe_core.spiffe_id import SpiffeId, TrustDomain

Values = dict[str, Any]
T = TypeVar("T")
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_EMPTY_LIST = b"[]"


def digest(data: str | bytes) -> bytes:
    """The SHA-256 that stands in for a long key."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).digest()


@functools.lru_cache(maxsize=8192)
def digest_of_selector(selector: Selector) -> bytes:
    """The SHA-256 that stands in for one selector; most selectors stand in many entries."""
    return selector_digest((selector,))


ENTRY_COLUMNS = (
    "id",
    "similarity",
    "spiffe_id",
    "spiffe_id_digest",
    "parent_id",
    "parent_id_digest",
    "selectors",
    "selectors_digest",
    "x509_svid_ttl",
    "jwt_svid_ttl",
    "federates_with",
    "admin",
    "downstream",
    "expires_at",
    "dns_names",
    "revision_number",
    "store_svid",
    "hint",
    "created_at",
    "disable_x509_svid_prefetch",
    "jwt_svid_include_jti",
    "row_key",
)
"""The columns of `entry` in the order in which `entry_values` gives them; the row key comes last."""


def entry_values(entry: RegistrationEntry) -> Values:
    """The columns of an entry, without its row key."""
    spiffe_id = str(entry.spiffe_id).encode()
    parent_id, parent_id_digest = _stored_parent_id(entry.parent_id)
    return {
        "id": entry.id.encode(),
        "similarity": entry.similarity,
        "spiffe_id": spiffe_id,
        "spiffe_id_digest": digest(spiffe_id),
        "parent_id": parent_id,
        "parent_id_digest": parent_id_digest,
        "selectors": _selectors_document(entry.ordered_selectors),
        "selectors_digest": entry.selectors_digest,
        "x509_svid_ttl": entry.x509_svid_ttl,
        "jwt_svid_ttl": entry.jwt_svid_ttl,
        "federates_with": _list_document(domain.name for domain in entry.federates_with),
        "admin": entry.admin,
        "downstream": entry.downstream,
        "expires_at": entry.expires_at,
        "dns_names": _list_document(entry.dns_names),
        "revision_number": entry.revision_number,
        "store_svid": entry.store_svid,
        "hint": entry.hint.encode(),
        "created_at": entry.created_at,
        "disable_x509_svid_prefetch": entry.disable_x509_svid_prefetch,
        "jwt_svid_include_jti": entry.jwt_svid_include_jti,
    }


def entry_of(row: Row[Any]) -> RegistrationEntry:
    """The entry in a row of `entry`."""
    return stored_value("entry", row.id, lambda: _entry(row))


def _entry(row: Row[Any]) -> RegistrationEntry:
    return RegistrationEntry(
        id=row.id.decode(),
        spiffe_id=SpiffeId.parse(row.spiffe_id.decode()),
        parent_id=_parent_id(row.parent_id),
        selectors=_selectors(row.selectors),
        x509_svid_ttl=row.x509_svid_ttl,
        jwt_svid_ttl=row.jwt_svid_ttl,
        federates_with=_trust_domains(row.federates_with),
        admin=row.admin,
        downstream=row.downstream,
        expires_at=row.expires_at,
        dns_names=() if row.dns_names == _EMPTY_LIST else tuple(json.loads(row.dns_names)),
        revision_number=row.revision_number,
        store_svid=row.store_svid,
        hint=row.hint.decode(),
        created_at=row.created_at,
        disable_x509_svid_prefetch=row.disable_x509_svid_prefetch,
        jwt_svid_include_jti=row.jwt_svid_include_jti,
    )


def agent_values(agent: AttestedAgent) -> Values:
    """The columns of an agent, without its row key."""
    spiffe_id = str(agent.spiffe_id).encode()
    return {
        "digest": digest(spiffe_id),
        "spiffe_id": spiffe_id,
        "attestation_type": agent.attestation_type.encode(),
        "serial": agent.serial.encode(),
        "expires_at": agent.expires_at,
        "new_serial": agent.new_serial.encode(),
        "new_expires_at": agent.new_expires_at,
        "selectors": _selectors_document(canonical(agent.selectors)),
        "selectors_digest": selector_digest(agent.selectors),
        "can_reattest": agent.can_reattest,
        "agent_version": agent.agent_version.encode(),
    }


def agent_of(row: Row[Any]) -> AttestedAgent:
    """The agent in a row of `agent`."""
    return stored_value(
        "agent",
        row.spiffe_id,
        lambda: AttestedAgent(
            spiffe_id=SpiffeId.parse(row.spiffe_id.decode()),
            attestation_type=row.attestation_type.decode(),
            serial=row.serial.decode(),
            expires_at=row.expires_at,
            new_serial=row.new_serial.decode(),
            new_expires_at=row.new_expires_at,
            selectors=_selectors(row.selectors),
            can_reattest=row.can_reattest,
            agent_version=row.agent_version.decode(),
        ),
    )


def join_token_values(token: JoinToken) -> Values:
    """The columns of a join token."""
    return {
        "digest": token.digest,
        "alias_path": token.alias_path.encode(),
        "expires_at": token.expires_at,
        "redeemed_key": token.redeemed_key,
        "redeemed_at": token.redeemed_at,
    }


def join_token_of(row: Row[Any]) -> JoinToken:
    """The join token in a row of `join_token`."""
    return JoinToken(
        digest=bytes(row.digest),
        alias_path=row.alias_path.decode(),
        expires_at=row.expires_at,
        redeemed_key=bytes(row.redeemed_key),
        redeemed_at=row.redeemed_at,
    )


def bundle_values(bundle: TrustBundle) -> Values:
    """The columns of a trust bundle."""
    document = {
        "x509": [{"der": _b64(one.der), "tainted": one.tainted} for one in bundle.x509_authorities],
        "jwt": [_key_document(one) for one in bundle.jwt_authorities],
        "wit": [_key_document(one) for one in bundle.wit_authorities],
        "sequence": bundle.sequence,
        "refresh_hint": bundle.refresh_hint,
    }
    return {"trust_domain": bundle.trust_domain.name.encode(), "document": _json(document)}


def bundle_of(row: Row[Any]) -> TrustBundle:
    """The trust bundle in a row of `bundle`."""

    def read() -> TrustBundle:
        document = json.loads(row.document)
        return TrustBundle(
            trust_domain=TrustDomain(row.trust_domain.decode()),
            x509_authorities=tuple(
                X509Authority(base64.b64decode(one["der"]), tainted=one["tainted"]) for one in document["x509"]
            ),
            jwt_authorities=tuple(JwtAuthority(**_key_fields(one)) for one in document["jwt"]),
            wit_authorities=tuple(WitAuthority(**_key_fields(one)) for one in document["wit"]),
            sequence=document["sequence"],
            refresh_hint=document["refresh_hint"],
        )

    return stored_value("bundle", row.trust_domain, read)


def relationship_values(relationship: FederationRelationship) -> Values:
    """The columns of a federation relationship, without its row key."""
    return {
        "trust_domain": relationship.trust_domain.name.encode(),
        "endpoint_url": relationship.endpoint_url.encode(),
        "profile": relationship.profile.value.encode(),
        "endpoint_spiffe_id": str(relationship.endpoint_spiffe_id or "").encode(),
    }


def relationship_of(row: Row[Any]) -> FederationRelationship:
    """The federation relationship in a row of `federation_relationship`."""
    return stored_value(
        "federation_relationship",
        row.trust_domain,
        lambda: FederationRelationship(
            trust_domain=TrustDomain(row.trust_domain.decode()),
            endpoint_url=row.endpoint_url.decode(),
            profile=EndpointProfile(row.profile.decode()),
            endpoint_spiffe_id=(
                SpiffeId.parse(row.endpoint_spiffe_id.decode()) if bytes(row.endpoint_spiffe_id) else None
            ),
        ),
    )


def authority_values(authority: Authority) -> Values:
    """The columns of an authority, without its row key."""
    return {
        "authority_id": authority.authority_id.encode(),
        "server_id": authority.server_id.encode(),
        "kind": authority.kind.encode(),
        "slot": authority.slot.encode(),
        "status": authority.status.value.encode(),
        "certificate": authority.certificate,
        "upstream_chain": _list_document(_b64(der) for der in authority.upstream_chain),
        "issued_at": authority.issued_at,
        "not_after": authority.not_after,
        "published_at": authority.published_at,
        "tainted": authority.tainted,
        "anchor_id": authority.anchor_id.encode(),
    }


def authority_of(row: Row[Any]) -> Authority:
    """The authority in a row of `authority`."""
    return stored_value(
        "authority",
        row.authority_id,
        lambda: Authority(
            authority_id=row.authority_id.decode(),
            server_id=row.server_id.decode(),
            kind=cast("AuthorityKind", row.kind.decode()),
            slot=cast("SlotName", row.slot.decode()),
            status=Status(row.status.decode()),
            certificate=bytes(row.certificate),
            upstream_chain=tuple(base64.b64decode(one) for one in json.loads(row.upstream_chain)),
            issued_at=row.issued_at,
            not_after=row.not_after,
            published_at=row.published_at,
            tainted=row.tainted,
            anchor_id=(row.anchor_id or b"").decode(),
        ),
    )


def stored_value(table: str, key: bytes, read: Callable[[], T]) -> T:
    """Run `read`; anything a broken row makes it raise becomes CorruptState with the table and the key."""
    try:
        return read()
    except (IdentityError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CorruptState(
            f"database: the row {key!r} of table {table} was not written by this program; restore it from a backup",
            cause=str(error),
        ) from error


def _json(value: object) -> bytes:
    return _JSON.encode(value).encode()


def _list_document(items: Iterable[str]) -> bytes:
    listed = list(items)
    return _json(listed) if listed else _EMPTY_LIST


def _selectors_document(selectors: Iterable[Selector]) -> bytes:
    """Selectors in canonical order. The encoder is set up anew for each document it is given; text alone needs none."""
    return f"[{','.join([f'[{_quoted(one.type)},{_quoted(one.value)}]' for one in selectors])}]".encode()


def _selectors(document: bytes) -> frozenset[Selector]:
    return frozenset(Selector(kind, value) for kind, value in json.loads(document))


def _trust_domains(document: bytes) -> tuple[TrustDomain, ...]:
    return () if document == _EMPTY_LIST else tuple(TrustDomain(name) for name in json.loads(document))


@functools.lru_cache(maxsize=1024)
def _stored_parent_id(parent_id: SpiffeId) -> tuple[bytes, bytes]:
    """A parent as it is stored, and its digest."""
    text = str(parent_id).encode()
    return text, digest(text)


@functools.lru_cache(maxsize=4096)
def _parent_id(text: bytes) -> SpiffeId:
    """Parents repeat: parsing each once saves a fifth of a large load."""
    return SpiffeId.parse(text.decode())


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _key_document(key: JwtAuthority | WitAuthority) -> dict[str, object]:
    return {
        "key_id": key.key_id,
        "public_key": _b64(key.public_key),
        "expires_at": key.expires_at,
        "tainted": key.tainted,
    }


def _key_fields(document: Mapping[str, Any]) -> Values:
    return {
        "key_id": document["key_id"],
        "public_key": base64.b64decode(document["public_key"]),
        "expires_at": document["expires_at"],
        "tainted": document["tainted"],
    }
