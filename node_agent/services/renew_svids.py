"""Keeps every workload SVID fresh: makes keys, asks the server for certificates, checks and serves them.

Renewal has its own timer, independent of the sync poll: an SVID that lives twelve seconds is replaced after about six.
Several lanes take batches from one plan; one lane is kept for entries that someone waits for, so that nobody queues
behind a background batch. A call that fails as a whole closes a gate for all lanes for a short, growing while and
halves the batch; an entry the server refuses gets a back-off of its own. A wrong answer is refused and the old SVID
stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from node_agent.domain.entry_cache import EntryDiff, stamp_of
from node_agent.domain.issued import Issued, SoundAuthorities, check_issued
from node_agent.domain.renewal import renewal_of
from node_agent.domain.svid_plan import LONGEST_BACKOFF, BatchSize, SvidPlan
from node_agent.ports import IdentityServer, SvidAnswer, SvidRequest
from node_agent.services.membership import Membership
from node_agent.services.steady_time import SteadyTime
from node_agent.services.workload_svids import HeldSvid, WorkloadSvids
from spiffe_core.bundle import TrustBundle
from spiffe_core.clock import Clock
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, PrivateKeyDer, generate, to_pkcs8
from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import AgentRefused, IdentityError, Reason, VerificationFailed
from spiffe_core.runtime.offload import Offload
from spiffe_core.runtime.slices import Slices
from spiffe_core.runtime.supervise import Supervisor
from workload_api.backend import X509Identity

log = logging.getLogger(__name__)

LANES = 4
FIRST_GATE = 0.5
LONGEST_GATE = 15.0


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A key and the request for its certificate."""

    entry: RegistrationEntry
    key: PrivateKeyDer
    csr: bytes


class RenewSvids:
    """The renewal loop. Belongs to the event loop's thread.

    `prefetch` bounds how many entries nobody follows get an SVID in advance. `refusals` counts answers that were
    refused, by reason. `availability` is how long an SVID is to be good for when it is replaced. `on_unknown_authority`
    asks for a new bundle: the server signs with an authority not seen yet.
    """

    def __init__(
        self,
        *,
        server: IdentityServer,
        membership: Membership,
        workloads: WorkloadSvids,
        clock: Clock,
        steady: SteadyTime,
        draw: Callable[[], float],
        offload: Offload,
        key_kind: KeyKind = KeyKind.EC_P256,
        prefetch: int = 1000,
        availability: timedelta | None = None,
    ) -> None:
        self._server = server
        self._membership = membership
        self._workloads = workloads
        self._clock = clock
        self._steady = steady
        self._draw = draw
        self._offload = offload
        self._kind = key_kind
        self._prefetch = prefetch
        self._availability = availability
        self._plan = SvidPlan()
        self._batch = BatchSize()
        self._slices = Slices()
        self._gate = 0.0
        self._failures = 0
        self._wakes = [asyncio.Event() for _ in range(LANES + 1)]
        self.refusals: Counter[str] = Counter()
        self._doomed: set[str] = set()
        self._judged: tuple[TrustBundle, SoundAuthorities] | None = None
        self.on_unknown_authority: Callable[[], None] = lambda: None
        workloads.on_demand = self.demand
        workloads.on_evicted = self._evicted
        membership.on_change.append(self.resume)

    def reconcile(self, diff: EntryDiff) -> None:
        """Plan what a new snapshot of entries asks for."""
        now = self._steady.now()
        for entry in diff.removed:
            self._plan.drop(entry.id)
        for _, entry in diff.changed:
            if entry.id in self._plan or self._wanted(entry):
                self._plan.schedule(entry.id, now)
        for entry in diff.added:
            if self._wanted(entry):
                self._plan.schedule(entry.id, now)
                if self._workloads.is_followed(entry):
                    self._plan.hurry(entry.id)
        self._wake_all()

    def demand(self, entry_ids: Iterable[str]) -> None:
        """Someone waits for the SVIDs of these entries."""
        now = self._steady.now()
        for entry_id in entry_ids:
            if entry_id not in self._plan:
                self._plan.schedule(entry_id, now)
            self._plan.hurry(entry_id)
        self._wake_all()

    def replace_compromised(self, bundle: TrustBundle) -> int:
        """Make every SVID due that depends on an authority tainted in, or gone from, `bundle`; returns how many."""
        sound = SoundAuthorities.of(bundle)
        now = self._steady.now()
        doomed = [
            entry_id
            for entry_id, svid in self._workloads.all_held()
            if not sound.carry(svid.anchor, svid.authority_ids)
        ]
        for entry_id in doomed:
            self._plan.hasten(entry_id, now)
        if doomed:
            self._doomed.update(doomed)
            log.warning("replacing %d SVIDs of tainted or removed authorities", len(doomed))
            self._wake_all()
        return len(doomed)

    def resume(self) -> None:
        """The server is reachable (again): do not wait for the gate."""
        self._gate = 0.0
        self._wake_all()

    async def run(self) -> None:
        """Live until cancelled."""
        async with Supervisor() as lanes:
            for number in range(LANES):
                lanes.start(self._lane(number), f"renew lane {number}")
            lanes.start(self._watch_expiry(), "SVID expiry")

    async def renew_due(self, *, waiting_only: bool = False) -> int:
        """Fetch one batch of what is due; returns its size."""
        ids = self._plan.take(self._steady.now(), self._batch.size, waiting_only=waiting_only)
        wanted = [self._workloads.entries[entry_id] for entry_id in ids if self._still_wanted(entry_id)]
        if not wanted:
            return 0
        generation = self._membership.session.generation
        try:
            await self._renew(wanted)
        except AgentRefused as error:
            self._close_gate(wanted, error)
            self._membership.refused(error.refusal, generation)
        except IdentityError as error:
            self._batch.call_failed()
            self._close_gate(wanted, error)
        else:
            self._batch.call_succeeded()
            self._failures = 0
        await self._workloads.publish()
        return len(wanted)

    async def _lane(self, number: int) -> None:
        waiting_only = number == 0
        while True:
            now = self._steady.now()
            if self._membership.session.is_member and now >= self._gate:
                if await self.renew_due(waiting_only=waiting_only):
                    continue
                at = self._plan.next_at(waiting_only=waiting_only)
            else:
                at = self._gate if now < self._gate else now + FIRST_GATE
            await self._steady.wait(at, self._wakes[number])

    async def _watch_expiry(self) -> None:
        while True:
            next_end = self._workloads.expire(self._plan)
            await self._workloads.publish()
            await self._steady.wait(next_end, self._wakes[LANES])

    async def _renew(self, wanted: list[RegistrationEntry]) -> None:
        prepared = await self._prepare(wanted)
        answers = await self._server.issue_svids([SvidRequest(one.entry.id, one.csr) for one in prepared])
        bundle = self._workloads.bundles.own
        now = self._clock.now()
        renewed: list[str] = []

        def take(pair: tuple[_Prepared, SvidAnswer]) -> None:
            if self._workloads.banned:  # everything was forgotten meanwhile
                return
            one, answer = pair
            outcome = _check(one, answer, bundle, now)
            self._settle(one, outcome)
            if isinstance(outcome, Issued):
                renewed.append(one.entry.id)

        await self._slices.each(take, zip(prepared, answers, strict=True))
        self._wakes[LANES].set()
        self._tell_when_replaced(renewed)

    async def _prepare(self, wanted: list[RegistrationEntry]) -> list[_Prepared]:
        """Keys and requests: RSA keys, which take long and let go of the interpreter, on a thread."""
        if self._kind in {KeyKind.EC_P256, KeyKind.EC_P384}:
            return await self._slices.each(partial(_prepared, self._kind), wanted)
        return await self._offload(lambda: [_prepared(self._kind, entry) for entry in wanted])

    def _tell_when_replaced(self, renewed: Iterable[str]) -> None:
        """Say so when no SVID is left that was to be replaced."""
        if not self._doomed:
            return
        self._doomed.difference_update(renewed)
        self._doomed.intersection_update(self._workloads.entries)
        if not self._doomed:
            log.info("replaced all SVIDs of tainted or removed authorities")

    def _settle(self, prepared: _Prepared, outcome: Issued | IdentityError) -> None:
        entry = prepared.entry
        present = self._workloads.entries.get(entry.id)
        if present is None:
            self._plan.drop(entry.id)
            return
        if isinstance(outcome, IdentityError):
            self._item_failed(entry, outcome)
            return
        if stamp_of(present) != stamp_of(entry):  # the entry changed while the request was under way
            self._plan.schedule(entry.id, self._steady.now())
            if present.spiffe_id != entry.spiffe_id:
                return
        now = self._clock.now()
        svid = outcome.svid
        self._workloads.store(entry.id, held_svid(outcome, present.hint))
        if stamp_of(present) == stamp_of(entry):
            at = renewal_of(now, svid.not_after, jitter=self._draw(), availability=self._availability)
            renewal = self._steady.at(at)
            if not self._sound().carry(outcome.anchor, outcome.authority_ids):  # tainted while the answer was under way
                renewal = min(renewal, self._steady.now() + FIRST_GATE)
            self._plan.schedule(entry.id, renewal)

    def _sound(self) -> SoundAuthorities:
        """What of the bundle in force an SVID may depend on; read once for each bundle."""
        bundle = self._workloads.bundles.own
        if self._judged is None or self._judged[0] is not bundle:
            self._judged = bundle, SoundAuthorities.of(bundle)
        return self._judged[1]

    def _item_failed(self, entry: RegistrationEntry, error: IdentityError) -> None:
        longest = LONGEST_BACKOFF
        held = self._workloads.held(entry.id)
        if held is not None:
            longest = (held.not_after - self._clock.now()).total_seconds() / 4
        self._plan.failed(entry.id, self._steady.now(), jitter=self._draw(), longest=longest)
        self._workloads.refuse([entry.id], error.public)
        if isinstance(error, VerificationFailed):
            self.refusals[error.reason.value] += 1
            if error.reason in {Reason.UNKNOWN_AUTHORITY, Reason.NO_BUNDLE, Reason.EMPTY_BUNDLE}:
                self.on_unknown_authority()
        else:
            self.refusals[error.kind.value] += 1
        facts = {"entry_id": entry.id, "spiffe_id": str(entry.spiffe_id)}
        log.warning("no new SVID: %s", error.public, extra={"facts": facts})

    def _close_gate(self, wanted: list[RegistrationEntry], error: IdentityError) -> None:
        now = self._steady.now()
        grown = min(FIRST_GATE * 1.5**self._failures, LONGEST_GATE) * (1 + 0.2 * self._draw())
        self._failures = min(self._failures + 1, 20)
        self._gate = max(self._gate, now + grown)
        for entry in wanted:
            self._plan.put_back(entry.id, now, waiting=self._workloads.held(entry.id) is None)
        self._workloads.refuse((entry.id for entry in wanted), error.public)
        log.warning("SVIDs could not be renewed, trying again in %.1f s: %s", grown, error.public)

    def _wanted(self, entry: RegistrationEntry) -> bool:
        if self._workloads.is_followed(entry):
            return True
        return not entry.disable_x509_svid_prefetch and self._spare < self._prefetch

    def _still_wanted(self, entry_id: str) -> bool:
        """An SVID fetched for someone who left is not renewed for ever when there are too many of them."""
        entry = self._workloads.entries.get(entry_id)
        if entry is None:
            self._plan.drop(entry_id)
            return False
        if self._workloads.is_followed(entry):
            return True
        if entry.disable_x509_svid_prefetch or self._spare > self._prefetch:
            self._plan.drop(entry_id)
            self._workloads.evict(entry_id)  # held without a plan it would end in the hands of who comes for it next
            return False
        return True

    @property
    def _spare(self) -> int:
        """How many SVIDs are planned beside those that someone follows."""
        return len(self._plan) - self._workloads.followed_count

    def _evicted(self, entry_ids: Iterable[str]) -> None:
        for entry_id in entry_ids:
            self._plan.drop(entry_id)

    def _wake_all(self) -> None:
        for wake in self._wakes:
            wake.set()


def _prepared(kind: KeyKind, entry: RegistrationEntry) -> _Prepared:
    key = generate(kind)
    return _Prepared(entry, to_pkcs8(key), build_csr(key, spiffe_id=entry.spiffe_id))


def _check(prepared: _Prepared, answer: SvidAnswer, bundle: TrustBundle, now: datetime) -> Issued | IdentityError:
    if isinstance(answer, IdentityError):
        return answer
    wanted = prepared.entry.spiffe_id
    try:
        return check_issued(
            answer,
            key=prepared.key,
            expected=lambda found: found == wanted,
            expected_text=str(wanted),
            bundle=bundle,
            now=now,
        )
    except IdentityError as error:
        return error


def held_svid(issued: Issued, hint: str) -> HeldSvid:
    """An SVID that proved itself, as workloads will see it. The hint is the entry's (spire_wire section 5.4)."""
    svid = issued.svid
    identity = X509Identity(svid.spiffe_id, svid.chain, svid.key, hint)
    return HeldSvid(identity, svid.not_after, issued.anchor, issued.authority_ids)
