"""Use-case: our trust bundle as other trust domains are given it, with a sequence number that only grows.

Nothing is published before its number is written down beside the server (`domain/bundle_sequence.py`). While a bundle
with a lower number is in memory, after a restored backup, the one published last stands until the number was raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from typing import Protocol

from identity_server.domain.bundle_sequence import CONFIRM_SECONDS, Published, sequence_to_publish
from identity_server.ports import Store, UnitOfWork
from spiffe_core.bundle import TrustBundle
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError, Unavailable
from spiffe_core.runtime.watch import Watch
from spiffe_core.spiffe_id import TrustDomain

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0


class SequenceMemory(Protocol):
    """What remembers the published number beside the server, where a restored database cannot reach it."""

    async def read(self) -> Published | None:
        """What was written last; None if nothing was, or it cannot be read."""
        ...

    async def write(self, published: Published) -> None:
        """Durably. Raises Unavailable."""
        ...


class PublishedBundle:
    """Belongs to the event loop. `watch` has the bundle to serve, None until the first one may be published."""

    def __init__(
        self, *, store: Store, memory: SequenceMemory, clock: Clock, trust_domain: TrustDomain, refresh_hint: int
    ) -> None:
        self._store, self._memory, self._clock = store, memory, clock
        self._trust_domain, self._refresh_hint = trust_domain, refresh_hint
        self._known: Published | None = None
        """The last number this server knows to have been in force."""
        self._written: Published | None = None
        self._read = False
        self._hinted = False
        self.watch: Watch[TrustBundle | None] = Watch(None)
        self.trouble = ""

    def current(self) -> TrustBundle:
        """The bundle to serve.

        Raises:
            Unavailable: none may be published yet.
        """
        if self.watch.value is None:
            raise Unavailable("the bundle is not ready to be published yet; try again in a moment")
        return self.watch.value

    async def keep(self) -> None:
        """Publish each change as soon as memory knows of it. Lives until cancelled."""
        state = self._store.state
        while True:
            version, seen = state.version, state.value.bundles
            pause: float = CONFIRM_SECONDS
            try:
                await self.tick()
                self.trouble = ""
            except IdentityError as error:
                pause = RETRY_SECONDS
                if self.trouble != error.public:
                    log.warning("the trust bundle cannot be published yet, trying again: %s", error.public)
                self.trouble = error.public
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    while seen is state.value.bundles:
                        version = await state.changed(version)

    async def tick(self) -> None:
        """Publish what memory holds, once its number allows it.

        Raises:
            Unavailable: the number can be neither stored nor written down now.
        """
        if not self._read:
            self._known = self._written = await self._memory.read()
            self._read = True
        bundles = self._store.state.value.bundles
        if bundles is None:
            return
        bundle, now = bundles.own, int(self._clock.now().timestamp())
        wanted = sequence_to_publish(bundle.sequence, self._known, now)
        if wanted != bundle.sequence or (bundle.refresh_hint != self._refresh_hint and not self._hinted):
            await self._raise(bundle, wanted)
            self._hinted = True  # once: servers whose settings differ do not overrule each other for ever
            return  # the state that follows brings it here again
        self._known = Published(bundle.sequence, now)
        if self._stale(self._known):
            await self._memory.write(self._known)
            self._written = self._known
        if bundle is not self.watch.value:
            self.watch.publish(bundle)

    def _stale(self, known: Published) -> bool:
        """Whether what was written down is not what is known."""
        written = self._written
        return (
            written is None or written.sequence != known.sequence or known.seen_at - written.seen_at >= CONFIRM_SECONDS
        )

    async def _raise(self, bundle: TrustBundle, wanted: int) -> None:
        if self._known is not None and self._known.sequence > bundle.sequence:
            log.warning(
                "the database's trust bundle has sequence %d and %d was published: a backup was restored; "
                "going on at %d",
                bundle.sequence,
                self._known.sequence,
                wanted,
            )
        changed = await self._store.execute(lambda uow: self._store_raised(uow, wanted))
        if changed is None:
            raise Unavailable("the database has no trust bundle")
        # what it has to be from now on is the database's word again, which this server has just given
        self._known = Published(changed.sequence, int(self._clock.now().timestamp()))

    def _store_raised(self, uow: UnitOfWork, wanted: int) -> TrustBundle | None:
        before = uow.bundles.get(self._trust_domain)
        if before is None:
            return None
        after = before.with_refresh_hint(self._refresh_hint)
        if after.sequence < wanted:
            after = replace(after, sequence=wanted)
        if after is not before:
            uow.bundles.put(after)
        return after
