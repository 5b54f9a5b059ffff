"""Use-case: the trust bundle is put in every place the settings name, at the start, on each change, and after failures.

Each place has a task and a thread of its own: one that is slow or away holds up no other, and none of them holds up the
server. A place is given the newest bundle only; what changed while it was busy is skipped. An empty bundle is never
published. Once an hour the bundle is looked after though nothing changed, because somebody may have deleted it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from identity_server.domain.publication import Outcome, TargetState, pause_after, publication_of
from identity_server.ports import PublishOrder
from spiffe_core.bundle import TrustBundle
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError, Kind
from spiffe_core.runtime.offload import Offload
from spiffe_core.runtime.supervise import Supervisor
from spiffe_core.runtime.watch import Watch

log = logging.getLogger(__name__)

LOOK_AFTER_SECONDS = 3600.0

Observe = Callable[[str, float, Kind | None], None]


@dataclass(slots=True)
class _Target:
    """One place and how it stands."""

    order: PublishOrder
    offload: Offload
    published: TrustBundle | None = None
    published_at: float = 0.0
    behind_since: float | None = None
    failures: int = 0
    error: str = ""


class PublishBundle:
    """Belongs to the event loop; `states` may be called from any thread."""

    def __init__(
        self,
        *,
        watch: Watch[Any],
        newest: Callable[[], TrustBundle | None],
        orders: Sequence[PublishOrder],
        clock: Clock,
        jitter: Callable[[], float],
        observe: Observe = lambda _name, _seconds, _failure: None,
        pause: Callable[[int, float], float] = pause_after,
    ) -> None:
        self._watch = watch
        self._newest = newest
        """The bundle to publish, None while there is none; it changes with `watch` only."""
        self._clock = clock
        self._jitter = jitter
        self._observe = observe
        """Told the name of the place, how long a try took, and the kind of its failure."""
        self._pause = pause
        self._targets = tuple(_Target(one, Offload(f"publish-{one.name}", 1)) for one in orders)

    async def keep_up(self) -> None:
        """Publish until cancelled."""
        async with Supervisor() as tasks:
            for target in self._targets:
                tasks.start(self._follow(target), f"publishing {target.order.name}")

    def states(self) -> tuple[TargetState, ...]:
        """How each place stands now."""
        now = self._clock.monotonic()
        return tuple(
            TargetState(
                name=one.order.name,
                place=one.order.target.place,
                sequence=one.published.sequence if one.published is not None else None,
                behind_seconds=max(0.0, now - one.behind_since) if one.behind_since is not None else 0.0,
                error=one.error,
            )
            for one in self._targets
        )

    async def _follow(self, target: _Target) -> None:
        watch = self._watch
        while True:
            version = watch.version
            bundle = self._newest()
            if bundle is not None and not bundle.is_empty and self._is_due(target, bundle):
                await self._try(target, bundle)
                if target.failures:
                    await asyncio.sleep(self._pause(target.failures, self._jitter()))
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AFTER_SECONDS):
                    await watch.changed(version)

    def _is_due(self, target: _Target, bundle: TrustBundle) -> bool:
        stale = self._clock.monotonic() - target.published_at >= LOOK_AFTER_SECONDS
        return target.published is not bundle or stale

    async def _try(self, target: _Target, bundle: TrustBundle) -> None:
        order, began = target.order, self._clock.monotonic()
        if target.behind_since is None and target.published is not bundle:
            target.behind_since = began
        try:
            ours = publication_of(bundle, order.format, order.refresh_hint)
            outcome = await target.offload(order.target.put, ours)
        except IdentityError as error:
            self._failed(target, error)
            self._observe(order.name, self._clock.monotonic() - began, error.kind)
            return
        if target.failures or outcome is Outcome.WRITTEN:
            log.info(
                "the trust bundle is published: %s",
                order.target.place,
                extra={"facts": {"publisher": order.name, "sequence": bundle.sequence, "outcome": outcome.value}},
            )
        target.published, target.published_at = bundle, self._clock.monotonic()
        target.failures, target.error, target.behind_since = 0, "", None
        self._observe(order.name, target.published_at - began, None)

    def _failed(self, target: _Target, error: IdentityError) -> None:
        if target.behind_since is None:
            target.behind_since = self._clock.monotonic()
        target.failures += 1
        if error.public != target.error:
            target.error = error.public
            log.warning(
                "the trust bundle cannot be published yet and will be tried again: %s",
                error.public,
                extra={"facts": {"publisher": target.order.name, **error.facts}},
            )
