"""Use-cases: X.509-SVIDs for workloads, asked for by agents, and SVIDs minted for administrators.

The SPIFFE ID of a workload's SVID comes from the registration entry and from nowhere else; of the request only the
public key is taken (S20). Every request's signature is verified. A batch is answered item by item: each item gets its
own key, its own ID and its own error (S27), and the loop is given back after every few milliseconds of signing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from identity_server.domain.access import Caller
from identity_server.domain.audit import DONE, SvidIssued
from identity_server.domain.entry_record import EntryRecord
from identity_server.domain.leaf_order import LeafOrder
from identity_server.domain.minting import check_mint
from identity_server.domain.profiles import Profile
from identity_server.ports import AuditLog, LeafSigners
from identity_server.services.entitlements import Entitlements
from identity_server.services.issuer import IssuedX509, Issuer, Prepared
from spiffe_core.clock import Clock
from spiffe_core.crypto.csr import MAX_CSR_BYTES, parse_csr, proven_key
from spiffe_core.crypto.keys import SubjectKey
from spiffe_core.errors import Exhausted, IdentityError, Internal, InvalidCsr, InvalidRequest, Unavailable
from spiffe_core.runtime.supervise import spawn
from spiffe_core.runtime.tracing import span
from spiffe_core.spiffe_id import SpiffeId, TrustDomain

MAX_BATCH = 500
"""SPIRE's signing burst; its agents never send more."""
SLICE_SECONDS = 0.004
"""For so long signing may hold the loop before other calls get their turn (architecture A7)."""
MOST_TOGETHER = 16
"""So many items are signed in one slice at the most, however quick that is."""
MAX_TTL = 2**31 - 1


MIN_SHARED = 50
"""Smaller batches are signed here alone: they are done before a worker would be."""
CHUNK = 25
SEATS_EACH = 4
"""So many chunks of one batch may wait at each worker, so that it never waits for us."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What of a registration entry goes into a certificate: its TTL (0 = default) and DNS names."""

    ttl: int
    dns_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One item of a batch: which entry, for which key."""

    entry_id: str
    csr: bytes


Answer = IssuedX509 | IdentityError | None
"""None: memory does not know yet that the agent may have the entry, or nobody has looked."""


class IssueSvids:
    """Signs leaves for those who may have them. Belongs to the event loop."""

    def __init__(
        self,
        *,
        entitlements: Entitlements,
        issuer: Issuer,
        terms_of: Callable[[bytes], Terms],
        clock: Clock,
        audit: AuditLog,
        trust_domain: TrustDomain,
        signers: LeafSigners | None = None,
    ) -> None:
        self._entitlements = entitlements
        self._issuer = issuer
        self._terms_of = terms_of
        self._clock = clock
        self._audit = audit
        self._trust_domain = trust_domain
        self._signers = signers
        self._together = 1
        """So many items make a slice: what the last one took decides, so that a slow key holds the loop for one
        signature."""

    async def for_entries(self, caller: Caller, wanted: Sequence[Wanted]) -> list[IssuedX509 | IdentityError]:
        """Sign for the entries `caller` is authorised for; one answer for each item, in order.

        Raises:
            InvalidRequest: nothing was asked for.
            Exhausted: more than `MAX_BATCH` items.
        """
        if not wanted:
            raise InvalidRequest("missing parameters", field="params")
        if len(wanted) > MAX_BATCH:
            raise Exhausted(f"rate ({len(wanted)}) exceeds burst size ({MAX_BATCH}); send smaller batches")
        answers: list[Answer] = [None] * len(wanted)
        waiting = deque(range(len(wanted)))
        signers = self._signers
        with span("sign.x509_svid"):
            if signers is not None and signers.ready and len(wanted) >= MIN_SHARED:
                shared = deque(range(0, len(wanted), CHUNK))
                waiting.clear()
                tasks: set[asyncio.Task[None]] = set()
                for _ in range(min(signers.ready * SEATS_EACH, len(shared))):
                    spawn(self._by_worker(signers, caller, wanted, answers, shared, waiting), "signing", tasks)
                helpers = list(tasks)
                while shared:
                    at = shared.pop()
                    waiting.extend(range(at, min(at + CHUNK, len(wanted))))
                    await self._inline(caller, wanted, answers, waiting)
                await asyncio.gather(*helpers)
            await self._inline(caller, wanted, answers, waiting)
        unknown = [item.entry_id for item, answer in zip(wanted, answers, strict=True) if answer is None]
        refusals = await self._entitlements.refusals(caller, unknown, "BatchNewX509SVID") if unknown else {}
        return [
            refusals[item.entry_id] if answer is None else answer for item, answer in zip(wanted, answers, strict=True)
        ]

    async def _inline(
        self, caller: Caller, wanted: Sequence[Wanted], answers: list[Answer], waiting: deque[int]
    ) -> None:
        """Sign what waits here and now, giving the loop back after every slice."""
        while waiting:
            numbers = [waiting.popleft() for _ in range(min(self._together, len(waiting)))]
            signed: dict[int, SvidIssued] = {}
            started = self._clock.monotonic()
            try:
                self._group(caller, wanted, answers, numbers, signed)
            finally:
                self._told(caller, wanted, answers, signed)
            each = (self._clock.monotonic() - started) / len(numbers)
            self._together = (
                MOST_TOGETHER if each * MOST_TOGETHER < SLICE_SECONDS else max(1, int(SLICE_SECONDS / each))
            )
            if waiting:
                await self._clock.sleep(0)

    def _group(
        self,
        caller: Caller,
        wanted: Sequence[Wanted],
        answers: list[Answer],
        numbers: list[int],
        signed: dict[int, SvidIssued],
    ) -> None:
        """Sign some items by the latest state; None stays the answer where memory does not know of the agent's entry.

        Each step is taken for all of them before the next: its code and data are still in the processor's caches when
        they are used again, and an SVID costs a tenth less than if it were signed from beginning to end.
        """

        def refuse(number: int, error: IdentityError) -> None:
            self._entitlements.refused(caller, wanted[number].entry_id, "BatchNewX509SVID", error)
            answers[number] = error

        entries, actor = self._entitlements.of(caller), caller.actor
        proven: list[tuple[int, SubjectKey]] = []
        for number in numbers:
            try:
                proven.append((number, _checked(wanted[number])))
            except IdentityError as error:
                refuse(number, error)
        prepared: list[tuple[int, EntryRecord, Prepared]] = []
        for number, key in proven:
            record = entries.get(wanted[number].entry_id)
            if record is None:
                continue
            try:
                prepared.append((number, record, self._issuer.prepare(self._order(record), key)))
            except IdentityError as error:
                refuse(number, _not_signed(error))
        for number, record, ready in prepared:
            try:
                issued = self._sign(ready)
            except IdentityError as error:
                refuse(number, _not_signed(error))
                continue
            answers[number] = issued
            signed[number] = _event(actor, "workload", issued, record)

    def _order(self, record: EntryRecord) -> LeafOrder:
        """What an entry says is to be signed."""
        terms = self._terms_of(record.wire)
        spiffe_id = SpiffeId(self._trust_domain, record.path)
        return self._issuer.order(Profile.WORKLOAD, spiffe_id, ttl=terms.ttl, dns_names=terms.dns_names)

    def _sign(self, prepared: Prepared) -> IssuedX509:
        return self._issuer.finish(prepared)

    def _told(
        self, caller: Caller, wanted: Sequence[Wanted], answers: list[Answer], signed: dict[int, SvidIssued]
    ) -> None:
        """Queue the lines of a slice; what a strict audit log cannot record does not leave."""
        try:
            self._audit.record(*signed.values())
        except Unavailable as error:
            for number in signed:
                self._entitlements.refused(caller, wanted[number].entry_id, "BatchNewX509SVID", error)
                answers[number] = error

    async def _by_worker(
        self,
        signers: LeafSigners,
        caller: Caller,
        wanted: Sequence[Wanted],
        answers: list[Answer],
        shared: deque[int],
        waiting: deque[int],
    ) -> None:
        """Have chunks signed by a worker as long as there are any; what it does not sign waits to be done here."""
        while shared:
            async with signers.seat():
                if not shared:
                    return
                at = shared.popleft()
                numbers = range(at, min(at + CHUNK, len(wanted)))
                await self._chunk(signers, caller, wanted, answers, numbers)
            waiting.extend(number for number in numbers if answers[number] is None)

    async def _chunk(
        self,
        signers: LeafSigners,
        caller: Caller,
        wanted: Sequence[Wanted],
        answers: list[Answer],
        numbers: range,
    ) -> None:
        """Decide here, have it signed there. What was signed by an authority that may not sign any more is dropped."""
        try:
            standing = self._issuer.standing()
            decided = [(number, *found) for number in numbers if (found := self._decide(caller, wanted[number]))]
            orders = [(order, wanted[number].csr) for number, _, order in decided]
            leaves = await signers.sign(standing.key, standing.taken, orders) if orders else None
            if leaves is None or self._issuer.standing() is not standing:
                return
        except Unavailable:
            return
        for (number, record, order), leaf in zip(decided, leaves, strict=True):
            if leaf is not None:
                issued = self._issuer.issued(standing, order, leaf)
                try:
                    self._record(caller, "workload", issued, record)
                    answers[number] = issued
                except Unavailable as error:  # what a strict audit log cannot record does not leave
                    answers[number] = error

    def _decide(self, caller: Caller, item: Wanted) -> tuple[EntryRecord, LeafOrder] | None:
        """What may be signed for this item; None for whatever is not plainly good, which `_attempt` puts into words."""
        if not item.csr or len(item.csr) > MAX_CSR_BYTES:
            return None
        record = self._entitlements.find(caller, item.entry_id)
        if record is None:
            return None
        try:
            return record, self._order(record)
        except IdentityError:
            return None

    def mint(self, caller: Caller, csr_der: bytes, ttl: int) -> IssuedX509:
        """Sign what an administrator's request asks for (spire_wire section 5.4)."""
        if not csr_der:
            raise InvalidRequest("missing CSR", field="csr")
        csr = parse_csr(csr_der)
        spiffe_id = check_mint(csr, self._trust_domain)
        if not 0 <= ttl <= MAX_TTL:
            raise InvalidRequest(f"ttl must lie between 0 (the default) and {MAX_TTL} seconds", field="ttl")
        subject = csr.subject if csr.subject.rdns else None
        with span("sign.x509_svid"):
            issued = self._issuer.issue(
                "workload",
                spiffe_id,
                csr.public_key,
                ttl=ttl,
                dns_names=csr.dns_names,
                subject=subject,
            )
        self._record(caller, "mint", issued)
        return issued

    def _record(self, caller: Caller, profile: str, issued: IssuedX509, record: EntryRecord | None = None) -> None:
        """Queued before the signature leaves (architecture A16)."""
        self._audit.record(_event(caller.actor, profile, issued, record))


def _event(actor: str, profile: str, issued: IssuedX509, record: EntryRecord | None = None) -> SvidIssued:
    return SvidIssued(
        profile=profile,
        spiffe_id=str(issued.spiffe_id),
        serial=issued.serial,
        not_after=issued.not_after,
        actor=actor,
        entry_id=record.id if record is not None else "",
        revision_number=record.revision_number if record is not None else None,
        outcome=DONE,
    )


def _not_signed(error: IdentityError) -> IdentityError:
    """The words of a refusal that came after the request was found good."""
    if isinstance(error, Unavailable | InvalidCsr):
        return error
    return Internal(f"failed to sign X509-SVID: {error.public}", **error.facts)


def _checked(item: Wanted) -> SubjectKey:
    if not item.entry_id:
        raise InvalidRequest("missing entry ID", field="params.entry_id")
    if not item.csr:
        raise InvalidRequest("missing CSR", field="params.csr")
    try:
        return proven_key(item.csr)
    except InvalidCsr as error:
        raise InvalidCsr(f"malformed CSR: {error.public}", field="params.csr") from None
