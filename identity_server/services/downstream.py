"""Use-case: a CA certificate for a downstream server, which signs in our trust domain with it (spire_wire section 5.4).

Who may have one says a registration entry with the downstream flag. Of the request only the key is taken: the
certificate carries the trust domain's own ID and our subject, and is good for no longer than our authority. A request
that claims another ID is refused: its sender believes to get what it will not (X509-09).
"""

from __future__ import annotations

from dataclasses import dataclass

from identity_server.domain.access import Caller
from identity_server.domain.audit import DONE, SvidIssued
from identity_server.ports import AuditLog, Store
from identity_server.services.issuer import Issuer
from spiffe_core.crypto.csr import parse_csr
from spiffe_core.errors import InvalidCsr, InvalidRequest, NotFound

MAX_TTL = 2**31 - 1


@dataclass(frozen=True, slots=True)
class DownstreamCa:
    """Certificates in DER: the new CA and those above it without the root, and the trust domain's roots."""

    chain: tuple[bytes, ...]
    roots: tuple[bytes, ...]


class Downstream:
    """Signs CAs. Belongs to the event loop."""

    def __init__(self, *, issuer: Issuer, store: Store, audit: AuditLog, ca_ttl: int) -> None:
        self._issuer, self._store, self._audit, self._ca_ttl = issuer, store, audit, ca_ttl

    def new_ca(self, caller: Caller, csr_der: bytes, preferred_ttl: int) -> DownstreamCa:
        """Sign a CA for the request's key; `preferred_ttl` 0 is our own, which nothing exceeds.

        Raises:
            InvalidCsr: the request cannot be read, its key is weak, or it claims another ID than a CA's.
            PreconditionFailed: what is above us allows no CA below ours.
            Unavailable: no authority is active.
        """
        if not csr_der:
            raise InvalidRequest("missing CSR", field="csr")
        try:
            csr = parse_csr(csr_der)
        except InvalidCsr as error:
            raise InvalidCsr(f"malformed CSR: {error.public}", field="csr") from None
        bundles = self._store.state.value.bundles
        if bundles is None:
            raise NotFound("bundle not found")
        own_id = str(bundles.own.trust_domain.id)
        if any(uri != own_id for uri in csr.uri_sans):
            raise InvalidCsr(
                f"malformed CSR: a CA's SPIFFE ID is that of its trust domain, {own_id}, without a path", field="csr"
            )
        if not 0 <= preferred_ttl <= MAX_TTL:
            raise InvalidRequest(
                f"preferred_ttl must lie between 0 (the default) and {MAX_TTL} seconds", field="preferred_ttl"
            )
        issued = self._issuer.issue_ca(csr.public_key, min(preferred_ttl or self._ca_ttl, self._ca_ttl))
        self._audit.record(
            SvidIssued(
                profile="downstream",
                spiffe_id=str(issued.spiffe_id),
                serial=issued.serial,
                not_after=issued.not_after,
                actor=caller.actor,
                outcome=DONE,
            )
        )
        return DownstreamCa(issued.chain, bundles.own.x509_roots)
