"""Who gets what: implements `workload_api.backend.WorkloadBackend` over what was synchronised and fetched.

One `Watch` for each distinct set of selectors that someone follows. A change marks the sets it can concern; `publish`
makes their views anew, in slices so that the loop is never held long, and publishes those that really differ.

An SVID past its end is in no view beside one that is good. When all have ended the view keeps them: the Workload API
then answers Unavailable for SVIDs and goes on with bundles, instead of saying that nothing matches (reliability R21).
An entry with `store_svid` is in no view (SPIRE serves those through SVIDStore only).
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from node_agent.domain.entry_cache import AudienceIndex, EntryDiff, EntryIndex, difference
from node_agent.domain.idle_svids import IdleSvids
from node_agent.services.steady_time import SteadyTime
from spiffe_core.bundle import BundleSet, TrustBundle
from spiffe_core.clock import Clock
from spiffe_core.entitlement import unique_hints
from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import NoIdentityIssued, Unavailable
from spiffe_core.runtime.watch import Watch
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire.peer import UnixPeer
from workload_api.backend import VisibleBundles, WorkloadView, X509Identity

log = logging.getLogger(__name__)

_SLICE_SECONDS = 0.002
Audience = frozenset[Selector]


@dataclass(frozen=True, slots=True)
class HeldSvid:
    """A workload's SVID, and what decides how long it is kept."""

    identity: X509Identity
    not_after: datetime
    anchor: bytes
    authority_ids: frozenset[str]


@dataclass(slots=True)
class _Following:
    """One set of selectors, and how many follow it."""

    watch: Watch[WorkloadView | None]
    followers: int = 0


class WorkloadSvids:
    """The agent's cache, as workloads see it. Belongs to the event loop's thread.

    `on_demand` is called with the ids of entries that someone follows and whose SVID is not held. `idle` bounds how
    many SVIDs are held that nobody follows.
    """

    def __init__(
        self,
        trust_domain: TrustDomain,
        attestation: Callable[[UnixPeer], Awaitable[frozenset[Selector]]],
        *,
        clock: Clock,
        steady: SteadyTime,
        idle: int = 1000,
    ) -> None:
        self._attestation = attestation
        self._clock = clock
        self._steady = steady
        self._bundles = BundleSet(TrustBundle(trust_domain))
        self._index = EntryIndex()
        self._audiences = AudienceIndex()
        self._following: dict[Audience, _Following] = {}
        self._held: dict[str, HeldSvid] = {}
        self._idle = IdleSvids(idle)
        self._refused: dict[str, str] = {}
        self._expiries: list[tuple[float, int, str, HeldSvid]] = []
        self._expiry_order = 0
        self._dirty: dict[Audience, None] = {}
        self._publishing = asyncio.Lock()
        self._published: Watch[None] = Watch(None)
        self._snapshot: Mapping[str, RegistrationEntry] = {}
        self.entries: Mapping[str, RegistrationEntry] = {}
        self.ready = False
        self.banned = False
        self.on_demand: Callable[[Iterable[str]], None] = lambda _: None
        self.on_evicted: Callable[[Iterable[str]], None] = lambda _: None
        """Called with the ids of entries whose SVIDs were given up, because nobody follows them and they were too
        many."""
        self.bundle_updates: Watch[BundleSet] = Watch(self._bundles)
        """Every bundle this agent knows, again at each change."""
        self.on_bundle: list[Callable[[TrustBundle], None]] = []
        """Called with the own trust domain's bundle when it changed."""
        self.on_ban: list[Callable[[], None]] = []
        """Called when everything must be forgotten at once."""

    # What workloads ask (WorkloadBackend)

    async def attest(self, peer: UnixPeer) -> frozenset[Selector]:
        """The caller's selectors, read from the kernel now.

        Raises NoIdentityIssued in a banned agent, whoever calls.
        """
        if self.banned:
            raise NoIdentityIssued
        if not self.ready:
            raise Unavailable("the agent has not finished its first synchronisation with the server; try again")
        return await self._attestation(peer)

    @contextmanager
    def subscribe(self, selectors: frozenset[Selector]) -> Iterator[Watch[WorkloadView | None]]:
        """Follow what `selectors` are entitled to."""
        following = self._following.get(selectors)
        if following is None:
            following = _Following(Watch(None))
            following.watch.value = self._view(selectors, None)
            self._following[selectors] = following
            self._audiences.add(selectors)
        following.followers += 1
        matched = self._index.matching(selectors)
        for entry in matched:
            self._idle.take(entry.id)
        missing = [entry.id for entry in matched if entry.id not in self._held]
        if missing and not self.banned:
            self.on_demand(missing)
        try:
            yield following.watch
        finally:
            following.followers -= 1
            if not following.followers:
                del self._following[selectors]
                self._audiences.discard(selectors)
                self._dirty.pop(selectors, None)
                self._leave(self._index.matching(selectors), selectors)

    def matching(self, selectors: frozenset[Selector]) -> list[RegistrationEntry]:
        """The entries `selectors` are entitled to now, the default identity first, hints unique."""
        return [] if self.banned else list(unique_hints(self._index.matching(selectors)))

    @property
    def known(self) -> Mapping[str, RegistrationEntry]:
        """Every entry this agent is authorised for, those that it does not serve included."""
        return self._snapshot

    def delegable(self, selectors: frozenset[Selector]) -> list[RegistrationEntry]:
        """The entries a delegate may act for: never one that gives power over the trust domain (reliability S23)."""
        matched = [] if self.banned else self._index.matching(selectors)
        return [entry for entry in matched if not entry.admin and not entry.downstream]

    def delegable_view(self, selectors: frozenset[Selector]) -> WorkloadView | None:
        """As `delegable`, with SVIDs, hints unique; None while they are on their way."""
        matched = unique_hints(self.delegable(selectors))
        identities, _ = self._identities(matched)
        if matched and not identities:
            return None
        return WorkloadView(identities, self._bundles.own, self._federated_of(matched))

    def visible(self, selectors: frozenset[Selector]) -> VisibleBundles:
        """The bundles `selectors` may see, whether or not SVIDs are at hand."""
        matched = self.matching(selectors)
        return VisibleBundles(bool(matched), self._bundles.own, self._federated_of(matched))

    # What synchronisation and renewal say

    @property
    def bundles(self) -> BundleSet:
        """The bundles in force."""
        return self._bundles

    def held(self, entry_id: str) -> HeldSvid | None:
        """The SVID of an entry, if there is one."""
        return self._held.get(entry_id)

    @property
    def held_count(self) -> int:
        """How many SVIDs are held."""
        return len(self._held)

    @property
    def followed_count(self) -> int:
        """How many SVIDs are held that someone follows."""
        return len(self._held) - len(self._idle)

    def evict(self, entry_id: str) -> None:
        """Give up an SVID that nobody follows and that is not to be renewed."""
        self._held.pop(entry_id, None)
        self._idle.take(entry_id)

    def all_held(self) -> list[tuple[str, HeldSvid]]:
        """Every SVID with its entry's id."""
        return list(self._held.items())

    def is_followed(self, entry: RegistrationEntry) -> bool:
        """Whether someone's selectors match the entry now."""
        return bool(self._audiences.matched_by(entry))

    def replace_entries(self, entries: Mapping[str, RegistrationEntry], bundles: BundleSet) -> EntryDiff:
        """Take over a new snapshot; returns how it differs. `publish` makes it visible."""
        diff = EntryDiff()
        if entries is not self._snapshot:
            served = {entry_id: entry for entry_id, entry in entries.items() if not entry.store_svid}
            diff = difference(self.entries, served)
            self._snapshot, self.entries = entries, served
        self._index.apply(diff)
        for entry in diff.removed:
            self.evict(entry.id)
            self._refused.pop(entry.id, None)
        for old, new in diff.changed:
            if old.spiffe_id != new.spiffe_id:
                self.evict(new.id)  # the old name must not be served for an instant longer
            elif old.hint != new.hint and new.id in self._held:
                self._held[new.id] = _with_hint(self._held[new.id], new.hint)
            if old.selectors != new.selectors:  # others may follow it now, or nobody
                self._idle.take(new.id)
                self._leave([new], None)
        for entry in diff.touched():
            self._mark(entry)
        self._replace_bundles(bundles)
        self.ready = True
        return diff

    def store(self, entry_id: str, svid: HeldSvid) -> None:
        """Serve a new SVID for an entry."""
        self._held[entry_id] = svid
        self._refused.pop(entry_id, None)
        self._expiry_order += 1
        heapq.heappush(self._expiries, (self._steady.at(svid.not_after), self._expiry_order, entry_id, svid))
        entry = self.entries[entry_id]
        self._mark(entry)
        self._leave([entry], None)

    def refuse(self, entry_ids: Iterable[str], why: str = "") -> None:
        """The SVIDs of these entries could not be had for now: nobody's first message waits for them any longer."""
        for entry_id in entry_ids:
            if entry_id not in self.entries:
                continue
            if entry_id not in self._refused:
                self._mark(self.entries[entry_id])
            self._refused[entry_id] = why

    def why_refused(self, entry_id: str) -> str:
        """Why an entry has no new SVID; "" if it was not refused one."""
        return self._refused.get(entry_id, "")

    def expire(self, renewing: Container[str] = ()) -> float | None:
        """Note what has ended; returns when the next SVID ends, on the steady line.

        What has ended, is followed by nobody and is not being renewed is dropped.
        """
        now, wall = self._steady.now(), self._clock.now()
        while self._expiries and (self._expiries[0][0] <= now or self._expiries[0][3].not_after <= wall):
            _, _, entry_id, svid = heapq.heappop(self._expiries)
            if self._held.get(entry_id) is not svid:
                continue
            entry = self.entries[entry_id]
            if entry_id not in renewing and not self.is_followed(entry):
                self.evict(entry_id)
            self._mark(entry)
            spiffe_id = str(svid.identity.spiffe_id)
            log.error("an SVID ended before it could be renewed", extra={"facts": {"spiffe_id": spiffe_id}})
        return self._expiries[0][0] if self._expiries else None

    def ban(self) -> None:
        """End every stream and forget every key, at once (architecture A19)."""
        self.banned = True
        self._held.clear()
        self._idle.clear()
        self._expiries.clear()
        self._dirty.clear()
        for audience, following in list(self._following.items()):
            following.watch.publish(self._view(audience, None))
        for listener in self.on_ban:
            listener()

    async def publish(self) -> None:
        """Make what changed visible to those who follow it."""
        async with self._publishing:
            loop = asyncio.get_running_loop()
            until = loop.time() + _SLICE_SECONDS
            while self._dirty:
                audience = next(iter(self._dirty))
                del self._dirty[audience]
                following = self._following.get(audience)
                if following is None:
                    continue
                present = following.watch.value
                view = self._view(audience, present)
                if view != present:
                    following.watch.publish(view)
                if loop.time() > until:
                    await asyncio.sleep(0)
                    until = loop.time() + _SLICE_SECONDS
            self._published.publish(None)

    async def replaced(self, before: Mapping[str, HeldSvid | None]) -> None:
        """Return once each of these entries has another SVID than before, cannot have one for now, or is gone."""
        while True:
            version = self._published.version
            if not any(
                entry_id in self.entries and entry_id not in self._refused and self._held.get(entry_id) is svid
                for entry_id, svid in before.items()
            ):
                return
            await self._published.changed(version)

    def _view(self, audience: Audience, present: WorkloadView | None) -> WorkloadView | None:
        """What `audience` may have now; None while its first SVIDs are on their way or none can be had."""
        if self.banned:  # differs from every view before, so that streams that only wait for an entry end as well
            return WorkloadView((), TrustBundle(self._bundles.own.trust_domain))
        matched = unique_hints(self._index.matching(audience))
        identities, awaited = self._identities(matched)
        if matched and (not identities or (awaited and present is None)):
            return None
        return WorkloadView(identities, self._bundles.own, self._federated_of(matched))

    def _identities(self, matched: Iterable[RegistrationEntry]) -> tuple[tuple[X509Identity, ...], bool]:
        """The SVIDs at hand that are good, or if none is those that have ended; whether some are on their way."""
        valid: list[X509Identity] = []
        ended: list[X509Identity] = []
        awaited = False
        now = self._clock.now()
        for entry in matched:
            svid = self._held.get(entry.id)
            if svid is not None:
                (valid if svid.not_after > now else ended).append(svid.identity)
            elif entry.id not in self._refused:
                awaited = True
        return tuple(valid or ended), awaited

    def _federated_of(self, matched: Iterable[RegistrationEntry]) -> tuple[TrustBundle, ...]:
        names = {name for entry in matched for name in entry.federates_with}
        known = (self._bundles.federated.get(name) for name in sorted(names))
        return tuple(bundle for bundle in known if bundle is not None)

    def _leave(self, entries: Iterable[RegistrationEntry], holder: Audience | None) -> None:
        """Those of `entries` whose SVIDs nobody follows are idle; what is too much of that is given up."""
        for entry in entries:
            if entry.id in self._held and not self.is_followed(entry):
                self._idle.leave(entry.id, holder)
        evicted = self._idle.overflow()
        for entry_id in evicted:
            del self._held[entry_id]
        if evicted:
            self.on_evicted(evicted)

    def _mark(self, entry: RegistrationEntry) -> None:
        for audience in self._audiences.matched_by(entry):
            self._dirty[audience] = None

    def _replace_bundles(self, bundles: BundleSet) -> None:
        old, self._bundles = self._bundles, bundles
        if bundles.own != old.own or bundles.federated != old.federated:
            self._dirty.update(dict.fromkeys(self._following))
            self.bundle_updates.publish(bundles)
        if bundles.own != old.own:
            for listener in self.on_bundle:
                listener(bundles.own)


def _with_hint(svid: HeldSvid, hint: str) -> HeldSvid:
    identity = X509Identity(svid.identity.spiffe_id, svid.identity.chain, svid.identity.key, hint)
    return HeldSvid(identity, svid.not_after, svid.anchor, svid.authority_ids)
