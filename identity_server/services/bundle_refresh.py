"""Use-case: keep the bundles of other trust domains fresh (SPIFFE Federation sections 4 and 6).

Theory of operation. `tick` looks at the relationships (those of the configuration file, and those in the state for the
other trust domains) and starts a task for each bundle that is due; no task waits for another, so a peer that is slow or
down delays nobody else. `run` ticks whenever a relationship changes, a fetch ends or the next one is due. What came is
stored only if it differs from what is stored, by a command that decides once more inside its transaction: a
relationship that was ended or changed meanwhile gets nothing (N-F-19), and an older bundle never replaces a newer one
(FED-09).

Every server of a shared database polls by itself. One elected poller would save requests and bring a lease whose holder
may die, while fetching twice does no harm: the transaction lets the newest bundle win, and an equal one writes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

from identity_server.domain.audit import BundleChanged
from identity_server.domain.bundle_refresh import RefreshState, pause_after
from identity_server.domain.federation import FederationRelationship
from identity_server.domain.state import State
from identity_server.ports import AuditLog, BundleFetcher, Store, UnitOfWork
from identity_server.services.audited import audited
from identity_server.services.federated_bundles import warn_of_shared_keys
from spiffe_core.bundle import MIN_POLL, Succession, TrustBundle, succeed
from spiffe_core.bundle_document import LoadedBundle
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError, NotFound, Unavailable
from spiffe_core.runtime.supervise import Supervisor
from spiffe_core.spiffe_id import TrustDomain

log = logging.getLogger(__name__)

ACTOR = "refresh"
LONGEST_PAUSE = 3600.0


@dataclass(slots=True, eq=False)
class _Peer:
    """One relationship's fetches."""

    relationship: FederationRelationship
    due: float
    state: RefreshState = field(default_factory=RefreshState)
    task: asyncio.Task[None] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class Refreshed:
    """A relationship, how its fetches go on this server, and whether it comes from the configuration file."""

    relationship: FederationRelationship
    state: RefreshState
    static: bool
    bundle: TrustBundle | None


class BundleRefresh:
    """Belongs to the event loop.

    `on_fetched` is told of each fetch whether it worked and how long it took, in seconds; `on_updated` of each new
    bundle.
    """

    def __init__(
        self,
        *,
        store: Store,
        audit: AuditLog,
        clock: Clock,
        fetcher: BundleFetcher,
        jitter: Callable[[], float],
        static: Sequence[FederationRelationship] = (),
        floor: timedelta = MIN_POLL,
        on_fetched: Callable[[bool, float], None] = lambda _worked, _seconds: None,
        on_updated: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._audit, self._clock = store, audit, clock
        self._fetcher, self._jitter, self._floor = fetcher, jitter, floor
        self._static = {one.trust_domain: one for one in static}
        self._on_fetched, self._on_updated = on_fetched, on_updated
        self._peers: dict[TrustDomain, _Peer] = {}
        self._wake = asyncio.Event()

    @property
    def static(self) -> Mapping[TrustDomain, FederationRelationship]:
        """The relationships of the configuration file. They come before stored ones with the same trust domain."""
        return self._static

    def relationships(self) -> dict[TrustDomain, FederationRelationship]:
        """Those in force, by trust domain; never one with our own."""
        state = self._store.state.value
        merged = {**state.relationships, **self._static}
        merged.pop(state.trust_domain, None)
        return merged

    def report(self) -> list[Refreshed]:
        """How things stand with each relationship in force, by name."""
        bundles = self._store.state.value.bundles
        return [
            Refreshed(
                one,
                self._peers[name].state if name in self._peers else RefreshState(),
                name in self._static,
                bundles.get(name) if bundles is not None else None,
            )
            for name, one in sorted(self.relationships().items())
        ]

    async def refresh(self, trust_domain: TrustDomain) -> None:
        """Fetch a bundle now, whenever it is due.

        Raises:
            NotFound: there is no relationship with this trust domain.
            Unavailable: the bundle could not be fetched or stored; says why.
        """
        relationship = self.relationships().get(trust_domain)
        if relationship is None:
            raise NotFound(f'no relationship with trust domain "{trust_domain}"')
        peer = self._peer(relationship)
        await self._attempt(peer)
        self._wake.set()
        if peer.state.error:
            raise Unavailable(f"the bundle of {trust_domain} was not refreshed: {peer.state.error}")

    def accepted(self, trust_domain: TrustDomain, warnings: tuple[str, ...]) -> None:
        """Somebody else fetched the bundle and stored it: whatever was wrong before is over."""
        relationship = self.relationships().get(trust_domain)
        if relationship is not None:
            peer = self._peer(relationship)
            peer.state = peer.state.worked(self._clock.now(), warnings)
            self._schedule(peer)
            self._wake.set()

    def tick(self, tasks: Supervisor) -> float:
        """Start the fetches that are due; the seconds until the next one is."""
        current = self.relationships()
        for name in [name for name in self._peers if current.get(name) != self._peers[name].relationship]:
            self._forget(name)
        now, pause = self._clock.monotonic(), LONGEST_PAUSE
        for relationship in current.values():
            peer = self._peer(relationship)
            if peer.task is not None:
                continue
            if peer.due <= now:
                peer.task = tasks.start(self._attempt(peer), f"bundle of {relationship.trust_domain}")
                peer.task.add_done_callback(partial(self._ended, peer))
            else:
                pause = min(pause, peer.due - now)
        return pause

    async def run(self) -> None:
        """Fetch for ever."""
        watch = self._store.state
        seen = watch.value.relationships

        def notice(state: State) -> None:
            nonlocal seen
            if state.relationships is not seen:
                seen = state.relationships
                self._wake.set()

        watch.listeners.append(notice)
        try:
            async with Supervisor() as tasks:
                while True:
                    self._wake.clear()
                    pause = self.tick(tasks)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self._wake.wait()
        finally:
            watch.listeners.remove(notice)

    def _peer(self, relationship: FederationRelationship) -> _Peer:
        known = self._peers.get(relationship.trust_domain)
        if known is not None and known.relationship == relationship:
            return known
        self._forget(relationship.trust_domain)
        made = _Peer(relationship, self._clock.monotonic())
        self._peers[relationship.trust_domain] = made
        return made

    def _forget(self, trust_domain: TrustDomain) -> None:
        """End a relationship's fetches, also one under way: its answer is not wanted any more."""
        peer = self._peers.pop(trust_domain, None)
        if peer is not None and peer.task is not None:
            peer.task.cancel()

    def _ended(self, peer: _Peer, _task: asyncio.Task[Any]) -> None:
        peer.task = None
        self._wake.set()

    async def _attempt(self, peer: _Peer) -> None:
        """Fetch and store; whatever happens is noted in the peer's state."""
        async with peer.lock:
            began = self._clock.monotonic()
            try:
                fetched = await self._fetcher.fetch(peer.relationship, self._trusted)
                taken = await self._taken(peer.relationship, fetched.bundle)
                if taken is not None:  # else the relationship was ended meanwhile
                    self._worked(peer, fetched, taken)
            except IdentityError as error:
                self._failed(peer, error.public)
            except Exception:
                # What strangers send must not end this server, not even by our own mistake.
                log.exception("the bundle of %s could not be read", peer.relationship.trust_domain)
                self._failed(peer, "internal error, see the log of the server")
            self._on_fetched(not peer.state.error, self._clock.monotonic() - began)
            self._schedule(peer)

    def _schedule(self, peer: _Peer) -> None:
        bundle = self._trusted(peer.relationship.trust_domain)
        pause = pause_after(bundle, peer.state.failures, self._jitter(), self._floor)
        peer.due = self._clock.monotonic() + pause.total_seconds()
        peer.state = replace(peer.state, next_at=self._clock.now() + pause)

    def _trusted(self, trust_domain: TrustDomain) -> TrustBundle | None:
        bundles = self._store.state.value.bundles
        return bundles.get(trust_domain) if bundles is not None else None

    async def _taken(self, relationship: FederationRelationship, fetched: TrustBundle) -> Succession | None:
        """Put what was fetched in force; None if nobody wants it any more."""
        name = relationship.trust_domain
        stored = self._trusted(name)
        if stored is not None:
            succession = succeed(stored, fetched)
            if succession.bundle == stored:
                return succession
        static = self._static.get(name) == relationship
        with audited(self._audit, BundleChanged(change="refresh", trust_domain=str(name), actor=ACTOR)):
            taken = await self._store.execute(
                partial(_store, relationship=relationship, fetched=fetched, static=static)
            )
        if taken is not None:
            self._on_updated()
            known = self._store.state.value.bundles
            if known is not None:
                warn_of_shared_keys([taken.bundle], known.all())
        return taken

    def _worked(self, peer: _Peer, fetched: LoadedBundle, taken: Succession) -> None:
        relationship = peer.relationship
        if taken.bundle.sequence > fetched.bundle.sequence > 0:
            raise Unavailable(
                f"the endpoint serves an older bundle: {taken.warning}. If its owner restored a backup, ask for an "
                "invitation and accept it, or set the bundle with `bundle set`"
            )
        warnings = (*fetched.warnings, *([taken.warning] if taken.warning else ()))
        if warnings and warnings != peer.state.warnings:
            log.warning("the bundle of %s is odd: %s", relationship.trust_domain, "; ".join(warnings))
        peer.state = peer.state.worked(self._clock.now(), warnings)
        log.info(
            "fetched the bundle of %s",
            relationship.trust_domain,
            extra={"facts": _facts(relationship, "fetched", taken.bundle.sequence)},
        )

    def _failed(self, peer: _Peer, error: str) -> None:
        peer.state = peer.state.failed(self._clock.now(), error)
        log.warning(
            "the bundle of %s was not refreshed, the last one stays in force: %s",
            peer.relationship.trust_domain,
            error,
            extra={"facts": {**_facts(peer.relationship, "failed"), "failures": peer.state.failures}},
        )


def _store(
    uow: UnitOfWork, *, relationship: FederationRelationship, fetched: TrustBundle, static: bool
) -> Succession | None:
    if not static and uow.relationships.get(relationship.trust_domain) != relationship:
        return None
    stored = uow.bundles.get(relationship.trust_domain)
    taken = Succession(fetched) if stored is None else succeed(stored, fetched)
    uow.bundles.put(taken.bundle)
    return taken


def _facts(relationship: FederationRelationship, outcome: str, sequence: int | None = None) -> dict[str, object]:
    """What is logged of each fetch (FED-48)."""
    known = {} if sequence is None else {"sequence": sequence}
    return {
        "trust_domain": str(relationship.trust_domain),
        "url": relationship.endpoint_url,
        "profile": relationship.profile.value,
        "outcome": outcome,
        **known,
    }
