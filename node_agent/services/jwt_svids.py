"""JWT-SVIDs for workloads: asked of the server once for each entry and audience, then served from memory.

A token is served until half of its life is over. One that someone used is replaced ahead of that moment in the
background, so that whoever asks finds one that is fresh. One that nobody used is replaced when it is asked for; if the
server does not answer soon, the old one is served as long as it is good (spire_features 17.3). Several callers who ask
for the same token wait for one request; requests beyond what is asked at once queue up, for as long as somebody waits.

What the server sends is verified like anybody's token before it is handed out, with the bundle that workloads verify it
with. A token that a tainted key signed is dropped at once. Entries with `jwt_svid_include_jti` get a token of their own
for every call: their tokens are meant to be told apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from node_agent.domain.entry_cache import stamp_of
from node_agent.domain.token_cache import HeldToken, TokenCache, TokenKey
from node_agent.ports import IdentityServer
from node_agent.services.membership import Membership
from node_agent.services.steady_time import SteadyTime
from node_agent.services.workload_svids import WorkloadSvids
from spiffe_core.bundle import TrustBundle
from spiffe_core.clock import Clock
from spiffe_core.crypto.jose import read_compact
from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import (
    AgentRefused,
    IdentityError,
    NoIdentityIssued,
    NotFound,
    Reason,
    Unavailable,
    VerificationFailed,
)
from spiffe_core.jwt_svid import JwtSvid
from spiffe_core.jwt_verify import MAX_LEEWAY, verify_jwt_svid
from spiffe_core.runtime.supervise import spawn
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import SpiffeId, TrustDomain

log = logging.getLogger(__name__)

REQUESTS_AT_ONCE = 16
REFRESHES_AT_ONCE = 4
MOST_PER_ENTRY = 100
PATIENCE_SECONDS = 10.0
"""How long a caller waits for a token when there is none."""
PATIENCE_WITH_TOKEN_SECONDS = 2.0
"""How long it waits when an older one is good still."""
FIRST_RETRY = 1.0
LONGEST_RETRY = 30.0
_JITTER = 0.1


class JwtSvids:
    """Implements `workload_api.backend.JwtBackend`. Belongs to the event loop's thread.

    `on_unknown_authority` asks for a new bundle: the server signs with a key not seen yet.
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
        most: int = 1000,
    ) -> None:
        self._server, self._membership, self._workloads = server, membership, workloads
        self._clock, self._steady, self._draw = clock, steady, draw
        self._cache = TokenCache(most=most, most_per_entry=MOST_PER_ENTRY)
        self._requests = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self._refreshes = asyncio.Semaphore(REFRESHES_AT_ONCE)
        self._under_way: dict[TokenKey, asyncio.Task[JwtSvid]] = {}
        self._tasks: set[asyncio.Task[JwtSvid]] = set()
        self._callers: Counter[TokenKey] = Counter()
        self._queued: set[TokenKey] = set()
        self._due: list[tuple[float, TokenKey]] = []
        self._retry = FIRST_RETRY
        self._wake = asyncio.Event()
        self.on_unknown_authority: Callable[[], None] = lambda: None
        membership.on_change.append(self._wake.set)

    def __len__(self) -> int:
        return len(self._cache)

    async def jwt_svids(
        self, selectors: frozenset[Selector], audience: tuple[str, ...], requested: SpiffeId | None
    ) -> tuple[JwtSvid, ...]:
        """One token for each identity, or for `requested` alone; see `JwtBackend`."""
        matching = self._workloads.matching(selectors)
        return await self.tokens_of([one for one in matching if requested in {None, one.spiffe_id}], audience)

    async def tokens_of(self, entries: Sequence[RegistrationEntry], audience: tuple[str, ...]) -> tuple[JwtSvid, ...]:
        """One token for each entry, in order.

        Raises:
            NoIdentityIssued: there is no entry, or it was withdrawn meanwhile.
            Unavailable: a token could not be had.
        """
        if not entries:
            raise NoIdentityIssued
        if len(entries) == 1:
            return (await self._token(entries[0], audience),)
        return tuple(await asyncio.gather(*(self._token(entry, audience) for entry in entries)))

    def follow_bundle(self, bundle: TrustBundle) -> None:
        """Drop what a key signed that is tainted in, or gone from, `bundle`."""
        sound = {one.key_id for one in bundle.jwt_authorities if not one.tainted}
        dropped = self._cache.drop_where(lambda _, token: token.key_id not in sound)
        if dropped:
            log.warning("dropped %d JWT-SVIDs of tainted or removed keys", dropped)

    def forget(self) -> None:
        """Drop everything: the agent was banned (architecture A19)."""
        self._cache.clear()
        self._due.clear()

    async def run(self) -> None:
        """Replace used tokens ahead of time, until cancelled."""
        while True:
            next_at = None  # nothing can be fetched by an agent that is no member, however long it has been due
            if self._membership.session.is_member:
                now = self._steady.now()
                while self._due and self._due[0][0] <= now:
                    _, key = heapq.heappop(self._due)
                    self._refresh(key, now)
                next_at = self._due[0][0] if self._due else None
            await self._steady.wait(next_at, self._wake)

    async def _token(self, entry: RegistrationEntry, audience: tuple[str, ...]) -> JwtSvid:
        if entry.jwt_svid_include_jti:
            async with self._patience(PATIENCE_SECONDS):
                return _with_hint(await self._ask(entry, audience), entry.hint)
        key = TokenKey(entry.id, tuple(sorted(audience)))
        held = self._cache.get(key)
        now = self._steady.now()
        if held is not None and (held.stamp != stamp_of(entry) or self._has_ended(held)):
            self._cache.drop(key)
            held = None
        if held is not None:
            held.used = True
            if now < held.renew_at:
                return held.svid
        try:
            with self._waiting_for(key):
                async with self._patience(PATIENCE_SECONDS if held is None else PATIENCE_WITH_TOKEN_SECONDS):
                    return await asyncio.shield(self._fetch(key, entry, self._requests))
        except IdentityError as error:
            if held is None or self._cache.peek(key) is not held or self._has_ended(held):
                raise _could_not(error) from error
            log.info("serving an older JWT-SVID: %s", error.public, extra={"facts": {"entry_id": entry.id}})
            return held.svid

    @contextlib.contextmanager
    def _waiting_for(self, key: TokenKey) -> Iterator[None]:
        """A request whose turn has not come when the last who waits for it leaves is not made: its place is free."""
        self._callers[key] += 1
        try:
            yield
        finally:
            self._callers[key] -= 1
            if not self._callers[key]:
                del self._callers[key]
                if key in self._queued:
                    self._queued.discard(key)
                    self._under_way.pop(key).cancel()

    @contextlib.asynccontextmanager
    async def _patience(self, seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise Unavailable("could not fetch JWT-SVID: the server did not answer in time") from None

    def _fetch(self, key: TokenKey, entry: RegistrationEntry, lane: asyncio.Semaphore) -> asyncio.Task[JwtSvid]:
        """The request for this token that is under way, or a new one."""
        task = self._under_way.get(key)
        if task is None:
            task = spawn(self._fetch_and_hold(key, entry, lane), "fetch a JWT-SVID", self._tasks)
            self._under_way[key] = task
            self._queued.add(key)
            task.add_done_callback(lambda done: self._ended(key, done))
        return task

    def _ended(self, key: TokenKey, task: asyncio.Task[JwtSvid]) -> None:
        if self._under_way.get(key) is task:
            del self._under_way[key]
            self._queued.discard(key)
        if not task.cancelled():
            task.exception()  # whoever waited has heard it; asyncio need not report it again

    async def _fetch_and_hold(self, key: TokenKey, entry: RegistrationEntry, lane: asyncio.Semaphore) -> JwtSvid:
        async with lane:
            self._queued.discard(key)
            svid = _with_hint(await self._ask(entry, key.audience), entry.hint)
        present = self._workloads.entries.get(entry.id)
        if present is None or present.spiffe_id != entry.spiffe_id or self._workloads.banned:
            raise NoIdentityIssued  # withdrawn while the request was under way
        now, wall = self._steady.now(), self._clock.now().timestamp()
        life = max(svid.expires_at - wall, 0.0)
        renew_at = now + life / 2 * (1 + _JITTER * self._draw())
        key_id = str(read_compact(svid.token).header.get("kid", ""))
        if any(one.key_id == key_id and one.tainted for one in self._workloads.bundles.own.jwt_authorities):
            return svid  # its key was tainted while the answer was under way: good for now, not to be held
        self._cache.put(key, HeldToken(svid, stamp_of(entry), key_id, renew_at, now + life))
        self._plan(key, renew_at)
        self._retry = FIRST_RETRY
        return svid

    async def _ask(self, entry: RegistrationEntry, audience: tuple[str, ...]) -> JwtSvid:
        generation = self._membership.session.generation
        try:
            svid = await self._server.new_jwt_svid(entry.id, audience)
        except AgentRefused as error:
            self._membership.refused(error.refusal, generation)
            raise
        try:
            _check(svid, entry, audience, self._workloads.bundles.own, self._clock)
        except VerificationFailed as failure:
            if failure.reason not in {Reason.UNKNOWN_AUTHORITY, Reason.NO_BUNDLE, Reason.EMPTY_BUNDLE}:
                raise
            self.on_unknown_authority()  # signed by a key that is newer than the bundle at hand
            _check(svid, entry, audience, await self._server.fetch_bundle(), self._clock)
        return svid

    def _refresh(self, key: TokenKey, now: float) -> None:
        """Replace a token that was used since it came; one that nobody used waits until it is asked for."""
        held = self._cache.peek(key)
        entry = self._workloads.entries.get(key.entry_id)
        if held is None or entry is None or not held.used or now < held.renew_at:
            return
        task = self._fetch(key, entry, self._refreshes)
        self._queued.discard(key)  # wanted, whoever leaves
        task.add_done_callback(lambda done: self._refreshed(key, held, done))

    def _refreshed(self, key: TokenKey, held: HeldToken, task: asyncio.Task[JwtSvid]) -> None:
        if task.cancelled() or task.exception() is None:
            return
        self._retry = min(self._retry * 2, LONGEST_RETRY)
        now = self._steady.now()
        if now < held.ends_at and self._cache.peek(key) is held:
            self._plan(key, now + self._retry * (1 + _JITTER * self._draw()))

    def _plan(self, key: TokenKey, at: float) -> None:
        heapq.heappush(self._due, (at, key))
        if len(self._due) > 64 + 4 * len(self._cache):
            self._due = [(due, one) for due, one in self._due if self._cache.peek(one) is not None]
            heapq.heapify(self._due)
        self._wake.set()

    def _has_ended(self, held: HeldToken) -> bool:
        return self._steady.now() >= held.ends_at or self._clock.now().timestamp() >= held.svid.expires_at


def _check(
    svid: JwtSvid, entry: RegistrationEntry, audience: tuple[str, ...], bundle: TrustBundle, clock: Clock
) -> None:
    """Hold an answer against what was asked for (reliability R42).

    Raises:
        VerificationFailed: naming what is wrong.
    """

    def own(trust_domain: TrustDomain) -> TrustBundle | None:
        return bundle if trust_domain == bundle.trust_domain else None

    verified = verify_jwt_svid(svid.token, own, audience=audience, now=clock.now(), leeway=MAX_LEEWAY)
    if verified.spiffe_id != entry.spiffe_id:
        raise VerificationFailed(f"the server's token is not for {entry.spiffe_id}", Reason.UNEXPECTED_ID)
    if set(verified.audience) != set(audience):
        raise VerificationFailed("the server's token has other audiences", Reason.UNEXPECTED_AUDIENCE)
    if int(verified.expires_at) != svid.expires_at:
        raise VerificationFailed("the server's token ends at another time than the server says", Reason.BAD_CLAIM)


def _with_hint(svid: JwtSvid, hint: str) -> JwtSvid:
    return JwtSvid(svid.token, svid.spiffe_id, svid.audience, svid.issued_at, svid.expires_at, hint)


def _could_not(error: IdentityError) -> IdentityError:
    """What the workload is told: Unavailable, unless it is not entitled (any more)."""
    if isinstance(error, NoIdentityIssued):
        return error
    if isinstance(error, NotFound):
        return NoIdentityIssued()
    text = error.public if error.public.startswith("could not fetch") else f"could not fetch JWT-SVID: {error.public}"
    return Unavailable(text, **error.facts)
