"""SPIFFE IDs, selectors and X.509-SVIDs as messages, both ways.

Every `..._from_proto` is total: any message the peer can send gives a value or an InvalidRequest that names the field
and the rule. Counts are checked before anything is looped over.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Final

from spiffe_core.errors import InvalidCertificate, InvalidId, InvalidRequest, InvalidSelector
from spiffe_core.selectors import Selector, canonical
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire._gen.spire.api.types import selector_pb2, spiffeid_pb2, x509svid_pb2

MAX_SELECTORS: Final = 1000
"""In filters and node records. An entry may have fewer."""
MAX_CHAIN: Final = 10
MAX_CERTIFICATE_BYTES: Final = 64 * 1024


def check_count(field: str, count: int, limit: int, error: type[InvalidRequest] = InvalidRequest) -> None:
    """Refuse a list that is too long before it is looped over."""
    if count > limit:
        raise error(f"{field}: at most {limit} are allowed, got {count}", field=field)


def trust_domain_from_proto(name: str, *, field: str = "trust_domain") -> TrustDomain:
    """A trust domain named in a request, as `example.org` or `spiffe://example.org`."""
    if not name:
        raise InvalidId(f"{field}: is missing", field=field)
    return TrustDomain.parse(name, field=field)


def spiffe_id_from_proto(message: spiffeid_pb2.SPIFFEID, *, field: str = "spiffe_id") -> SpiffeId:
    """A SPIFFE ID; the path may be empty, which is the ID of the trust domain itself."""
    return _spiffe_id(message.trust_domain, message.path, field)


def repeated_id_from_proto(message: spiffeid_pb2.SPIFFEID, *, field: str) -> SpiffeId:
    """The same of one that stands in many messages, as a parent does: the latest are remembered."""
    return _remembered_id(message.trust_domain, message.path, field)


def _spiffe_id(name: str, path: str, field: str) -> SpiffeId:
    if not name and not path:
        raise InvalidId(f"{field}: is missing", field=field)
    try:
        trust_domain = _trust_domain(name)
    except InvalidId:
        trust_domain = trust_domain_from_proto(name, field=f"{field}.trust_domain")  # refused again, by its name
    if path and not path.startswith("/"):
        raise InvalidId(f"{field}.path: must begin with a slash", field=f"{field}.path")
    return SpiffeId.of(trust_domain, path, field=field)


_remembered_id = functools.lru_cache(maxsize=1024)(_spiffe_id)
"""What is refused is not kept."""

_trust_domain = functools.lru_cache(maxsize=1024)(trust_domain_from_proto)
"""Trust domains are few; a name that is refused is not kept."""


def spiffe_id_to_proto(spiffe_id: SpiffeId) -> spiffeid_pb2.SPIFFEID:
    """A SPIFFE ID as a message."""
    return spiffeid_pb2.SPIFFEID(trust_domain=spiffe_id.trust_domain.name, path=spiffe_id.path)


def selectors_from_proto(
    messages: Sequence[selector_pb2.Selector], *, field: str = "selectors", limit: int = MAX_SELECTORS
) -> frozenset[Selector]:
    """A set of selectors, possibly empty."""
    check_count(field, len(messages), limit, InvalidSelector)
    found: list[Selector] = []
    for message in messages:
        try:
            found.append(Selector(message.type, message.value))
        except InvalidRequest as refusal:
            where = f"{field}[{len(found)}]"
            raise InvalidSelector(f"{where}: {refusal.public}", field=where) from None
    return frozenset(found)


def selectors_to_proto(selectors: Iterable[Selector]) -> list[selector_pb2.Selector]:
    """A set of selectors in canonical order, so that one set always has the same bytes."""
    return [selector_pb2.Selector(type=selector.type, value=selector.value) for selector in canonical(selectors)]


def x509_svid_to_proto(
    chain: Sequence[bytes], spiffe_id: SpiffeId, expires_at: int, hint: str = ""
) -> x509svid_pb2.X509SVID:
    """An X.509-SVID: DER certificates leaf first, and the leaf's notAfter in unix seconds."""
    return x509svid_pb2.X509SVID(cert_chain=chain, id=spiffe_id_to_proto(spiffe_id), expires_at=expires_at, hint=hint)


def chain_from_proto(message: x509svid_pb2.X509SVID, *, field: str = "svid") -> tuple[bytes, ...]:
    """The certificates of an X.509-SVID, counted and sized, not yet parsed."""
    field = f"{field}.cert_chain"
    if not message.cert_chain:
        raise InvalidCertificate(f"{field}: is missing", field=field)
    check_count(field, len(message.cert_chain), MAX_CHAIN, InvalidCertificate)
    return tuple(certificate_from_proto(der, field=f"{field}[{index}]") for index, der in enumerate(message.cert_chain))


def certificate_from_proto(der: bytes, *, field: str) -> bytes:
    """One DER certificate, sized and not yet parsed."""
    if not der:
        raise InvalidCertificate(f"{field}: is missing", field=field)
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise InvalidCertificate(f"{field}: has more than {MAX_CERTIFICATE_BYTES} bytes", field=field)
    return der
