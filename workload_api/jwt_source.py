"""JwtSource: tokens at hand for whoever is called, and keys to verify the tokens of those who call.

async with JwtSource() as source:
    token = await source.token("https://api.example.org")       # cached, renewed ahead
    caller = await source.validate(received, "https://me.example.org")
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

from spiffe_core.bundle import TrustBundle
from spiffe_core.clock import Clock, SystemClock
from spiffe_core.crypto.jose import read_compact, read_object
from spiffe_core.errors import Forbidden, IdentityError, Internal, InvalidRequest, Unavailable
from spiffe_core.jwt_svid import check_audience
from spiffe_core.jwt_verify import VerifiedJwtSvid, verify_jwt_svid
from spiffe_core.runtime.supervise import spawn
from spiffe_core.runtime.watch import Watch
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from workload_api.client import FetchedJwt, Redacted, WorkloadApiClient

log = logging.getLogger(__name__)

MOST_TOKENS = 1000
FIRST_RETRY, LONGEST_RETRY = 1.0, 30.0
FETCH_SECONDS = 10.0
_JITTER = 0.1


class _Key(NamedTuple):
    """What a token is held for. The order of audiences means nothing."""

    audience: tuple[str, ...]
    spiffe_id: SpiffeId | None


@dataclass(slots=True)
class _Held:
    """A token and its times, in unix seconds. `used`: somebody took it since it came."""

    token: FetchedJwt = field(repr=False)
    ends_at: float
    renew_at: float
    retry: float = FIRST_RETRY
    used: bool = False


class JwtSource:
    """Holds tokens and bundles while it is open (`async with`).

    A token is handed out until half of its life is over. One that somebody took is replaced before anybody has to wait
    for it; an agent that is away changes nothing until it ends. At most `most` tokens are held, those used longest ago
    go first. A token with a `jti` is meant to be told apart from others: each call gets a new one. When the agent takes
    the identity away, tokens and bundles are dropped at once (WAPI-41).
    """

    def __init__(
        self,
        client: WorkloadApiClient | None = None,
        *,
        clock: Clock | None = None,
        draw: Callable[[], float] | None = None,
        most: int = MOST_TOKENS,
    ) -> None:
        if most < 1:
            raise ValueError("most: at least one token is held")
        self._own_client = client is None
        self._client = client or WorkloadApiClient()
        self._clock = clock or SystemClock()
        self._draw = draw or _jitter
        self._most = most
        self._held: OrderedDict[_Key, _Held] = OrderedDict()
        self._under_way: dict[_Key, asyncio.Task[FetchedJwt]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._wake = asyncio.Event()
        self._ended = False
        self._taken_away = 0
        self.updates: Watch[Mapping[TrustDomain, TrustBundle] | None] = Watch(None)
        """The newest bundles, None while there are none."""
        self.last_error: IdentityError | None = None

    def __len__(self) -> int:
        return len(self._held)

    async def __aenter__(self) -> Self:
        spawn(self._follow(), "jwt source bundles", self._tasks)
        spawn(self._refresh(), "jwt source tokens", self._tasks)
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

    async def token(self, audience: str | Iterable[str], *, spiffe_id: SpiffeId | None = None) -> FetchedJwt:
        """A token for these audiences: of the default identity, or of the one that is named.

        Raises:
            Forbidden: no identity is issued to this process, or not this one.
            Unavailable: the agent cannot be reached and no token is held that is good still.
            InvalidRequest: the request, or what came, may not be used.
        """
        named = check_audience((audience,) if isinstance(audience, str) else audience)
        key = _Key(tuple(sorted(named)), spiffe_id)
        held = self._held.get(key)
        now = self._now()
        if held is not None:
            self._held.move_to_end(key)
            if now < held.renew_at:
                held.used = True
                return held.token
        try:
            return await asyncio.shield(self._fetch(key))
        except Forbidden:
            self._held.pop(key, None)
            raise
        except IdentityError:
            if held is None or self._held.get(key) is not held or self._now() >= held.ends_at:
                raise
            held.used = True
            return held.token

    async def validate(self, token: str, audience: str | Iterable[str], *, timeout: float = 30.0) -> VerifiedJwtSvid:  # noqa: ASYNC109  # said in the error as well
        """Who presents `token`, which must be for one of the names this process answers to; verified here.

        Raises:
            VerificationFailed: it proves nothing; says why.
            IdentityError: there are no bundles to verify with, nor did any come within `timeout` seconds.
        """
        bundles = await self.wait_ready(timeout)
        names = (audience,) if isinstance(audience, str) else tuple(audience)
        return verify_jwt_svid(token, bundles.get, audience=names, now=self._clock.now())

    async def wait_ready(self, timeout: float = 30.0) -> Mapping[TrustDomain, TrustBundle]:  # noqa: ASYNC109  # said in the error as well
        """Wait for the first bundles.

        Raises:
            IdentityError: why there will be none, or why there were none within `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                while self.updates.value is None and not self._ended:
                    await self.updates.changed(self.updates.version)
        except TimeoutError:
            raise self.last_error or Unavailable(f"the agent gave no bundles within {timeout:g} s") from None
        return self.bundles

    @property
    def bundles(self) -> Mapping[TrustDomain, TrustBundle]:
        """The newest bundles, with their JWT keys alone.

        Raises:
            IdentityError: there are none.
        """
        bundles = self.updates.value
        if bundles is None:
            raise self.last_error or Unavailable("the agent has sent no bundles yet; await wait_ready() first")
        return bundles

    def _fetch(self, key: _Key) -> asyncio.Task[FetchedJwt]:
        """The request for this token that is under way, or a new one."""
        task = self._under_way.get(key)
        if task is None:
            task = spawn(self._fetch_and_hold(key), "fetch a JWT-SVID", self._tasks)
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._fetched(key, done))
        return task

    def _fetched(self, key: _Key, task: asyncio.Task[FetchedJwt]) -> None:
        del self._under_way[key]
        self._wake.set()
        if not task.cancelled():
            task.exception()  # whoever waited has heard it; asyncio need not report it again

    async def _fetch_and_hold(self, key: _Key) -> FetchedJwt:
        taken_away = self._taken_away
        fetched = await self._client.fetch_jwt(key.audience, spiffe_id=key.spiffe_id, timeout=FETCH_SECONDS)
        token = fetched[0]
        claims = read_object(read_compact(token.token).payload, "payload")
        ends_at = claims.get("exp")
        now = self._now()
        named = claims.get("sub") == str(token.spiffe_id) and key.spiffe_id in {None, token.spiffe_id}
        if not isinstance(ends_at, int | float) or isinstance(ends_at, bool) or not math.isfinite(ends_at) or not named:
            raise InvalidRequest("the agent's token is of another identity or says no end")
        if ends_at <= now:
            raise Unavailable("the agent gave a token that has ended; are the clocks right?")
        if "jti" not in claims and taken_away == self._taken_away:
            renew_at = now + (ends_at - now) / 2 * (1 + _JITTER * self._draw())
            self._held[key] = _Held(token, ends_at, renew_at)
            self._held.move_to_end(key)
            while len(self._held) > self._most:
                self._held.popitem(last=False)
        return token

    async def _refresh(self) -> None:
        """Replace tokens that were taken, before they are asked for again; drop those that have ended."""
        while True:
            now = self._now()
            for key, held in list(self._held.items()):
                if now >= held.ends_at:
                    del self._held[key]
                elif now >= held.renew_at and held.used and key not in self._under_way:
                    self._fetch(key).add_done_callback(partial(self._refreshed, key, held))
            waits = [
                held.ends_at if key in self._under_way or now >= held.renew_at else held.renew_at
                for key, held in self._held.items()
            ]
            self._wake.clear()
            pause = asyncio.timeout(max(min(waits) - now, 0.0) if waits else None)
            try:
                async with pause:
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _refreshed(self, key: _Key, held: _Held, _task: asyncio.Task[FetchedJwt]) -> None:
        """One that could not be replaced is tried again later."""
        if self._held.get(key) is held:
            held.renew_at = self._now() + held.retry * (1 + _JITTER * self._draw())
            held.retry = min(held.retry * 2, LONGEST_RETRY)

    async def _follow(self) -> None:
        try:
            async with aclosing(self._client.watch_jwt_bundles(self._heard)) as updates:
                async for update in updates:
                    if isinstance(update, Redacted):
                        self._taken_away += 1
                        self._held.clear()
                        self.updates.publish(None)
                    else:
                        self.last_error = None
                        self.updates.publish(update)
        except IdentityError as error:
            self._end(error)
        except Exception as error:
            log.exception("the JWT source stopped")
            self._end(Internal("the JWT source stopped; see the log", error=repr(error)))

    def _heard(self, error: IdentityError) -> None:
        self.last_error = error

    def _end(self, error: IdentityError) -> None:
        """No bundles will come any more. Those that are held stay."""
        self.last_error, self._ended = error, True
        self.updates.publish(self.updates.value)

    def _now(self) -> float:
        return self._clock.now().timestamp()


def _jitter() -> float:
    return secrets.SystemRandom().uniform(-1.0, 1.0)
