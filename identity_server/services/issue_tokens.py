"""Use-cases: JWT-SVIDs and WIT-SVIDs for workloads, asked for by agents, and tokens minted for administrators.

The SPIFFE ID comes from the registration entry (or, when minting, from the administrator) and is never in a request of
an agent. Each token is audited before it leaves; the record holds everything about it but the token itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from identity_server.domain.access import Caller
from identity_server.domain.audit import DONE, TokenIssued
from identity_server.domain.entry_record import EntryRecord
from identity_server.domain.minting import check_subject
from identity_server.ports import AuditLog
from identity_server.services.entitlements import Entitlements
from identity_server.services.token_issuer import Issued, JwtIssuer, WitIssuer
from spiffe_core.clock import Clock
from spiffe_core.errors import Exhausted, IdentityError, InvalidRequest, Unimplemented
from spiffe_core.jwt_svid import JwtSvid, check_audience
from spiffe_core.runtime.tracing import span
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wit_svid import ConfirmationKey, WitSvid

MAX_BATCH = 500
SLICE_SECONDS = 0.004
"""For so long signing may hold the loop before other calls get their turn (architecture A7)."""
MAX_TTL = 2**31 - 1

T = TypeVar("T", JwtIssuer, WitIssuer)


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """What of a registration entry goes into a token: its TTL (0 = default) and whether it has an id."""

    ttl: int
    with_jti: bool


@dataclass(frozen=True, slots=True)
class WantedWit:
    """One item of a batch: which entry, for which key with which algorithm."""

    entry_id: str
    public_key: bytes
    algorithm: str


class IssueTokens:
    """Signs tokens for those who may have them. Belongs to the event loop."""

    def __init__(
        self,
        *,
        entitlements: Entitlements,
        jwt: JwtIssuer | None,
        wit: WitIssuer | None,
        terms_of: Callable[[bytes], TokenTerms],
        clock: Clock,
        audit: AuditLog,
        trust_domain: TrustDomain,
    ) -> None:
        self._entitlements = entitlements
        self._jwt, self._wit = jwt, wit
        self._terms_of = terms_of
        self._clock, self._audit = clock, audit
        self._trust_domain = trust_domain

    async def jwt_for_entry(self, caller: Caller, entry_id: str, audience: Sequence[str]) -> JwtSvid:
        """A JWT-SVID for an entry the agent is authorised for.

        Raises:
            Unimplemented: JWT-SVIDs are switched off.
            InvalidRequest: no entry or no audience is named.
            NotFound: the entry does not exist or is not this agent's.
        """
        issuer = _switched_on(self._jwt, "JWT")
        named = check_audience(audience)
        if not entry_id:
            raise InvalidRequest("missing entry ID", field="entry_id")
        record = self._entitlements.find(caller, entry_id)
        if record is None:
            raise (await self._entitlements.refusals(caller, [entry_id], "NewJWTSVID"))[entry_id]
        terms = self._terms_of(record.wire)
        with span("sign.jwt_svid"):
            svid, issued = issuer.issue(self._id_of(record), named, ttl=terms.ttl, with_jti=terms.with_jti)
        self._record("jwt_svid", caller, svid, issued, named, record)
        return svid

    def mint_jwt(self, caller: Caller, subject: Callable[[], SpiffeId], audience: Sequence[str], ttl: int) -> JwtSvid:
        """A JWT-SVID for whatever identity an administrator names; `subject` reads it once that matters."""
        issuer = _switched_on(self._jwt, "JWT")
        named = check_audience(audience)
        spiffe_id = subject()
        check_subject(spiffe_id, self._trust_domain)
        with span("sign.jwt_svid"):
            svid, issued = issuer.issue(spiffe_id, named, ttl=_checked_ttl(ttl))
        self._record("jwt_svid", caller, svid, issued, named)
        return svid

    def mint_wit(
        self, caller: Caller, subject: Callable[[], SpiffeId], public_key: bytes, algorithm: str, ttl: int
    ) -> WitSvid:
        """A WIT-SVID for whatever identity and key an administrator names."""
        issuer = _switched_on(self._wit, "WIT")
        spiffe_id = subject()
        check_subject(spiffe_id, self._trust_domain)
        key = ConfirmationKey.read(public_key, algorithm)
        with span("sign.wit_svid"):
            svid, issued = issuer.issue(spiffe_id, key, ttl=_checked_ttl(ttl))
        self._record("wit_svid", caller, svid, issued)
        return svid

    async def wits_for_entries(self, caller: Caller, wanted: Sequence[WantedWit]) -> list[WitSvid | IdentityError]:
        """WIT-SVIDs for entries the agent is authorised for; one answer for each item, in order (S27)."""
        issuer = _switched_on(self._wit, "WIT")
        if not wanted:
            raise InvalidRequest("missing parameters", field="params")
        if len(wanted) > MAX_BATCH:
            raise Exhausted(f"rate ({len(wanted)}) exceeds burst size ({MAX_BATCH}); send smaller batches")
        answers: list[WitSvid | IdentityError | None] = []
        started = self._clock.monotonic()
        with span("sign.wit_svid"):
            for item in wanted:
                answers.append(self._attempt(issuer, caller, item))
                if self._clock.monotonic() - started > SLICE_SECONDS:
                    await self._clock.sleep(0)
                    started = self._clock.monotonic()
        unknown = [item.entry_id for item, answer in zip(wanted, answers, strict=True) if answer is None]
        refusals = await self._entitlements.refusals(caller, unknown, "BatchNewWITSVID") if unknown else {}
        return [
            refusals[item.entry_id] if answer is None else answer for item, answer in zip(wanted, answers, strict=True)
        ]

    def _attempt(self, issuer: WitIssuer, caller: Caller, item: WantedWit) -> WitSvid | IdentityError | None:
        """Sign one item by the latest state; None if memory does not know that the agent may have the entry."""
        try:
            if not item.entry_id:
                raise InvalidRequest("missing entry ID", field="params.entry_id")
            key = ConfirmationKey.read(item.public_key, item.algorithm)
            record = self._entitlements.find(caller, item.entry_id)
            if record is None:
                return None
            svid, issued = issuer.issue(self._id_of(record), key)
            self._record("wit_svid", caller, svid, issued, record=record)
        except IdentityError as error:
            self._entitlements.refused(caller, item.entry_id, "BatchNewWITSVID", error)
            return error
        return svid

    def _id_of(self, record: EntryRecord) -> SpiffeId:
        return SpiffeId(self._trust_domain, record.path)

    def _record(
        self,
        profile: str,
        caller: Caller,
        svid: JwtSvid | WitSvid,
        issued: Issued,
        audience: tuple[str, ...] = (),
        record: EntryRecord | None = None,
    ) -> None:
        """Queued before the token leaves (architecture A16)."""
        self._audit.record(
            TokenIssued(
                profile=profile,
                spiffe_id=str(svid.spiffe_id),
                key_id=issued.key_id,
                expires_at=svid.expires_at,
                actor=caller.actor,
                audience=audience,
                jti=issued.jti,
                entry_id=record.id if record is not None else "",
                revision_number=record.revision_number if record is not None else None,
                outcome=DONE,
            )
        )


def _switched_on(issuer: T | None, what: str) -> T:
    if issuer is None:
        raise Unimplemented(f"{what} functionality is disabled")
    return issuer


def _checked_ttl(ttl: int) -> int:
    if not 0 <= ttl <= MAX_TTL:
        raise InvalidRequest(f"ttl must lie between 0 (the default) and {MAX_TTL} seconds", field="ttl")
    return ttl
