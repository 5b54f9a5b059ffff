"""X509Source: an identity and its bundles that stay current by themselves.

async with X509Source() as source:
    await source.wait_ready()
    source.svid, source.bundles        # always the newest
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from spiffe_core.bundle import BundleSet
from spiffe_core.clock import Clock, SystemClock
from spiffe_core.errors import IdentityError, Internal, Unavailable
from spiffe_core.runtime.supervise import spawn
from spiffe_core.runtime.watch import Watch
from spiffe_core.x509_svid import X509Svid
from workload_api.client import Redacted, WorkloadApiClient
from workload_api.x509_context import X509Context

log = logging.getLogger(__name__)


class X509Source:
    """Follows the Workload API while it is open (`async with`).

    `pick` chooses among several identities; without it the first, the default identity, is used (WAPI-58).
    A refused message or an agent that is away changes nothing: the last good state stays until it expires. A redaction
    takes effect at once (WAPI-28). `updates` holds the newest state, None while there is none.
    """

    def __init__(
        self,
        client: WorkloadApiClient | None = None,
        *,
        pick: Callable[[X509Context], X509Svid] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._own_client = client is None
        self._client = client or WorkloadApiClient()
        self._pick = pick or _default
        self._clock = clock or SystemClock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended = False
        self.updates: Watch[X509Context | None] = Watch(None)
        self.last_error: IdentityError | None = None

    async def __aenter__(self) -> Self:
        spawn(self._follow(), "x509 source", self._tasks)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._own_client:
            await self._client.close()

    async def wait_ready(self, timeout: float = 30.0) -> X509Context:  # noqa: ASYNC109  # said in the error as well
        """Wait for the first state.

        Raises:
            IdentityError: why there will be none, or why there was none within `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                while self.updates.value is None and not self._ended:
                    await self.updates.changed(self.updates.version)
        except TimeoutError:
            raise self.last_error or Unavailable(f"the agent gave no identity within {timeout:g} s") from None
        return self._state()

    @property
    def svid(self) -> X509Svid:
        """The newest SVID.

        Raises:
            IdentityError: there is none, it was taken away, or it has expired.
        """
        svid = self._pick(self._state())
        if svid.not_after <= self._clock.now():
            raise Unavailable("the SVID has expired and the agent has sent no newer one", spiffe_id=str(svid.spiffe_id))
        return svid

    @property
    def bundles(self) -> BundleSet:
        """The newest bundles.

        Raises:
            IdentityError: there are none.
        """
        return self._state().bundles

    def _state(self) -> X509Context:
        state = self.updates.value
        if state is None:
            raise self.last_error or Unavailable("the agent has sent no identity yet; await wait_ready() first")
        return state

    async def _follow(self) -> None:
        try:
            async with aclosing(self._client.watch_x509(self._heard)) as updates:
                async for update in updates:
                    if isinstance(update, Redacted):
                        self.updates.publish(None)
                    else:
                        self.last_error = None
                        self.updates.publish(update)
        except IdentityError as error:
            self._end(error)
        except Exception as error:
            log.exception("the X.509 source stopped")
            self._end(Internal("the X.509 source stopped; see the log", error=repr(error)))

    def _heard(self, error: IdentityError) -> None:
        self.last_error = error

    def _end(self, error: IdentityError) -> None:
        """Nothing more will come. What is held stays good until it expires."""
        self.last_error, self._ended = error, True
        self.updates.publish(self.updates.value)


def _default(context: X509Context) -> X509Svid:
    return context.default
