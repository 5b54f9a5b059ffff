"""Follows the server: entries and bundles, again and again, with back-off when it is away.

A sync reads the authorised entries, the own bundle and the bundles of every trust domain the entries federate with, and
takes all of them over at once. When the server cannot be reached everything stays as it is: workloads keep what they
have until it ends (reliability R20). A bundle without any authority is refused and the old one kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from node_agent.domain.entry_cache import EntryDiff, merge, stamp_of
from node_agent.ports import IdentityServer
from node_agent.services.membership import Membership
from node_agent.services.renew_svids import RenewSvids
from node_agent.services.steady_time import SteadyTime
from node_agent.services.workload_svids import WorkloadSvids
from spiffe_core.bundle import BundleSet, TrustBundle
from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import AgentRefused, Forbidden, IdentityError, InvalidRequest, NotFound, Unimplemented
from spiffe_core.spiffe_id import TrustDomain

log = logging.getLogger(__name__)

LONGEST_BACKOFF = 25.0
"""Seconds between syncs at most while the server is away, before jitter: SPIRE waits up to eight minutes."""
BACKOFF_INTERVALS = 48
FIRST_RETRY = 0.05
FIRST_GROWTH = 1.3
FEDERATED_AT_ONCE = 10
NOT_MEMBER_POLL = 5.0


class Synchronize:
    """The sync loop. Belongs to the event loop's thread. `version` is what PostStatus tells the server."""

    def __init__(
        self,
        *,
        server: IdentityServer,
        membership: Membership,
        workloads: WorkloadSvids,
        renewals: RenewSvids,
        steady: SteadyTime,
        draw: Callable[[], float],
        interval: float,
        version: str,
    ) -> None:
        self._server = server
        self._membership = membership
        self._workloads = workloads
        self._renewals = renewals
        self._steady = steady
        self._draw = draw
        self._interval = interval
        self._version = version
        self._entries: Mapping[str, RegistrationEntry] = {}
        self._failures = 0
        self._announced = False
        self._joined_anew = False
        self._wake = asyncio.Event()
        self._overtaken = 0
        self.rest_until: Callable[[], float] = lambda: 0.0
        """Until when nothing is polled, on the steady line: a push stream is open, or is being opened."""
        self.on_polled: Callable[[], None] = lambda: None
        """Called when the answer to a poll has been taken over."""
        self.synced = False
        """Whether the last attempt worked."""
        self.last_success = 0
        """When an attempt worked last, in unix seconds by the wall clock; 0 if none has."""
        self.synced_at: float | None = None
        """When the last sync worked, by the monotonic clock; None before the first."""
        self.trouble = ""
        """Why the last attempt did not work; "" if it did."""
        self.next_at: float | None = None
        """When the next attempt is made, on the steady line; None while one is under way or the agent is no member."""
        renewals.on_unknown_authority = self.request
        membership.on_change.append(self._membership_changed)

    @property
    def entries(self) -> Mapping[str, RegistrationEntry]:
        """What this agent is authorised for, as far as it knows."""
        return self._entries

    def request(self) -> None:
        """Sync soon instead of at the next interval."""
        self._wake.set()

    wake = request
    """Look again whether to poll."""

    async def run(self) -> None:
        """Live until cancelled."""
        while True:
            self.next_at = None
            now = self._steady.now()
            if not self._membership.session.is_member:
                self.synced = False
                until = now + NOT_MEMBER_POLL
            elif (rest := self.rest_until()) > now:
                until = rest
            else:
                await self.once()
                until = self.next_at = self._steady.now() + self.next_wait()
            await self._rest(until)

    async def once(self) -> bool:
        """One sync; tells whether it worked."""
        generation = self._membership.session.generation
        try:
            diff = await self._sync()
        except IdentityError as error:
            self._failed(error)
            self._membership.failed(error, generation)
            return False
        self.in_touch()
        await self._tell_of(diff)
        return True

    async def take_over(self, entries: Mapping[str, RegistrationEntry], bundles: BundleSet) -> EntryDiff:
        """What the server pushed is in force from now on; the answer to a poll under way is not waited for.

        Raises:
            VerificationFailed: the own bundle holds no authority; everything stays as it was.
        """
        self._overtaken += 1
        diff = await self._use(dict(entries), bundles)
        self.in_touch()
        await self._tell_of(diff)
        return diff

    def in_touch(self) -> None:
        """The server has just been heard."""
        self._membership.answered()
        if self._failures:
            log.info("the server is back")
        if self._failures or not self.synced:
            self._renewals.resume()
        self._failures = 0
        self._joined_anew = False
        self.trouble = ""
        self.synced = True
        self.last_success = self._steady.wall_seconds()
        self.synced_at = self._steady.monotonic()

    async def _tell_of(self, diff: EntryDiff) -> None:
        if diff:
            counts = {"added": len(diff.added), "changed": len(diff.changed), "removed": len(diff.removed)}
            log.info("entries changed", extra={"facts": counts})
        if not self._announced:
            await self._announce()

    def next_wait(self) -> float:
        """Seconds until the next sync: the interval, or 1.5 times longer with each failure, +-10 %.

        Until the first one has worked, workloads wait for it: then from a twentieth of a second, growing slowly, so
        that a server that is just starting is not overlooked for long.
        """
        if self._failures and self.synced_at is None:
            grown = FIRST_RETRY * FIRST_GROWTH ** min(self._failures, 40)
            return min(self._interval, grown) * (1 + 0.1 * self._draw())
        grown = self._interval * 1.5 ** min(self._failures, 40)
        longest = min(LONGEST_BACKOFF, BACKOFF_INTERVALS * self._interval)
        return (min(grown, longest) if self._failures else grown) * (1 + 0.1 * self._draw())

    async def _rest(self, until: float) -> None:
        while self._steady.now() < until and not self._wake.is_set():
            await self._steady.wait(until, self._wake, keep=True)
        self._wake.clear()

    def _membership_changed(self) -> None:
        self._joined_anew = self._joined_anew or not self._membership.session.is_known
        self._failures = 0
        self._announced = False  # a new record on the server knows no version yet
        self._wake.set()

    async def _sync(self) -> EntryDiff:
        begun = self._overtaken
        # a server that forgot this agent may have an older database, whose revision numbers are given out a second time
        trusted = {} if self._joined_anew else self._entries
        known = {entry_id: stamp_of(entry) for entry_id, entry in trusted.items()}
        listing = await self._server.sync_entries(known)
        entries = merge(self._entries, listing)
        own = await self._server.fetch_bundle()
        await self._membership.accept_bundle(own)
        names = {name for entry in entries.values() for name in entry.federates_with} - {own.trust_domain}
        bundles = BundleSet(own, await self._federated(names))
        if self._overtaken != begun:
            return EntryDiff()  # the push stream has said something newer meanwhile
        diff = await self._use(entries, bundles)
        self.on_polled()
        return diff

    async def _use(self, entries: Mapping[str, RegistrationEntry], bundles: BundleSet) -> EntryDiff:
        own = bundles.own
        await self._membership.accept_bundle(own)
        if self._workloads.banned:
            return EntryDiff()
        self._entries = entries
        before = self._workloads.bundles
        changed_bundle = own.x509_authorities != self._workloads.bundles.own.x509_authorities
        diff = self._workloads.replace_entries(entries, bundles)
        self._renewals.reconcile(diff)
        if changed_bundle:
            self._renewals.replace_compromised(own)
        if bundles.own != before.own or bundles.federated != before.federated:
            log.info("bundles changed")
        await self._workloads.publish()
        return diff

    async def _federated(self, names: set[TrustDomain]) -> dict[TrustDomain, TrustBundle]:
        """The bundles of other trust domains. One that cannot be had now stays as it was; one that is gone goes."""
        turn = asyncio.Semaphore(FEDERATED_AT_ONCE)
        present = self._workloads.bundles.federated

        async def fetch(name: TrustDomain) -> TrustBundle | None:
            async with turn:
                try:
                    bundle = await self._server.fetch_federated_bundle(name)
                except AgentRefused:
                    raise
                except (NotFound, Unimplemented):
                    return None
                except (InvalidRequest, Forbidden) as error:
                    log.warning("the bundle of %s cannot be used: %s", name, error.public)
                    return present.get(name)
            return bundle if bundle is None or bundle.trust_domain == name else present.get(name)

        ordered = sorted(names)
        bundles = await asyncio.gather(*(fetch(name) for name in ordered))
        return {name: bundle for name, bundle in zip(ordered, bundles, strict=True) if bundle is not None}

    async def _announce(self) -> None:
        try:
            await self._server.post_status(self._version, self._workloads.bundles.own.sequence)
        except IdentityError as error:
            log.info("the server did not take this agent's status: %s", error.public)
        self._announced = True

    def _failed(self, error: IdentityError) -> None:
        self.synced = False
        self.trouble = error.public
        self._failures = min(self._failures + 1, 1000)
        if self._failures == 1 or self._failures % 10 == 0:
            log.warning("synchronisation failed (%d in a row): %s", self._failures, error.public)
