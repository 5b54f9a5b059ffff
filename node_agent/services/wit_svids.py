"""WIT-SVIDs for workloads (incubating standard, opt-in): fetched while someone follows them, each with its own key.

One task keeps the tokens of one followed set of selectors current: it asks for what is missing or half-way through its
life, publishes the complete set, and rests until the entitlement changes or the next token is due. A key belongs to one
token of one SPIFFE ID (WIT-43); several processes with the same identity share both (WIT-16).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric import ec

from node_agent.domain.entry_cache import Stamp, stamp_of
from node_agent.domain.issued_wit import check_issued_wit
from node_agent.domain.svid_plan import LARGEST_BATCH
from node_agent.ports import IdentityServer, WitRequest
from node_agent.services.membership import Membership
from node_agent.services.steady_time import SteadyTime
from node_agent.services.workload_svids import WorkloadSvids
from spiffe_core.bundle import TrustBundle
from spiffe_core.clock import Clock
from spiffe_core.crypto.jwk import key_to_jwk, private_key_to_jwk
from spiffe_core.crypto.keys import spki_der
from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import AgentRefused, IdentityError, Reason, Unavailable, VerificationFailed
from spiffe_core.runtime.supervise import spawn
from spiffe_core.runtime.watch import Watch
from spiffe_core.selectors import Selector
from spiffe_core.wit_svid import WitSvid
from workload_api.backend import WitIdentity, WitView, WorkloadView

log = logging.getLogger(__name__)

ALGORITHM = "ES256"
FIRST_RETRY = 1.0
LONGEST_RETRY = 30.0
_JITTER = 0.1


@dataclass(frozen=True, slots=True)
class _Held:
    """A token that proved itself, the version of its entry, the key that signed it, and its times (steady line)."""

    identity: WitIdentity
    stamp: Stamp
    key_id: str
    renew_at: float
    ends_at: float


@dataclass(slots=True)
class _Following:
    """One set of selectors, how many follow it, and what keeps its tokens current."""

    watch: Watch[WitView | None]
    wake: asyncio.Event
    followers: int = 0
    keeper: asyncio.Task[None] | None = None


class WitSvids:
    """Implements `workload_api.backend.WitBackend`. Belongs to the event loop's thread."""

    def __init__(
        self,
        *,
        server: IdentityServer,
        membership: Membership,
        workloads: WorkloadSvids,
        clock: Clock,
        steady: SteadyTime,
        draw: Callable[[], float],
    ) -> None:
        self._server, self._membership, self._workloads = server, membership, workloads
        self._clock, self._steady, self._draw = clock, steady, draw
        self._held: dict[str, _Held] = {}
        self._following: dict[frozenset[Selector], _Following] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking = asyncio.Lock()

    @contextmanager
    def subscribe_wit(self, selectors: frozenset[Selector]) -> Iterator[Watch[WitView | None]]:
        """Follow the WIT-SVIDs `selectors` are entitled to."""
        following = self._following.get(selectors)
        if following is None:
            following = self._following[selectors] = _Following(Watch(None), asyncio.Event())
            following.keeper = spawn(self._keep(selectors, following), "keep WIT-SVIDs", self._tasks)
        following.followers += 1
        try:
            yield following.watch
        finally:
            following.followers -= 1
            if not following.followers:
                del self._following[selectors]
                if following.keeper is not None:
                    following.keeper.cancel()
                self._tidy()

    def follow_bundle(self, bundle: TrustBundle) -> None:
        """Drop what a key signed that is tainted in, or gone from, `bundle`; it is fetched anew at once."""
        sound = {one.key_id for one in bundle.wit_authorities if not one.tainted}
        doomed = [entry_id for entry_id, held in self._held.items() if held.key_id not in sound]
        for entry_id in doomed:
            del self._held[entry_id]
        if doomed:
            log.warning("dropped %d WIT-SVIDs of tainted or removed keys", len(doomed))
            self._wake_all()

    def forget(self) -> None:
        """Drop every key and token: the agent was banned (architecture A19)."""
        self._held.clear()
        for following in self._following.values():
            following.watch.publish(WitView())
        self._wake_all()

    async def _keep(self, selectors: frozenset[Selector], following: _Following) -> None:
        """Live as long as someone follows."""
        retry = 0.0
        with self._workloads.subscribe(selectors) as entitlement:
            while True:
                following.wake.clear()
                version = entitlement.version
                wanted = self._workloads.matching(selectors)
                if following.watch.value is not None:  # what was withdrawn goes at once, however long the server takes
                    _publish(following, self._view(wanted)[0])
                try:
                    await self._fetch_missing(wanted)
                    retry = 0.0
                except IdentityError as error:
                    retry = min(max(FIRST_RETRY, retry * 2), LONGEST_RETRY)
                    log.warning("WIT-SVIDs could not be fetched, trying again in %.0f s: %s", retry, error.public)
                view, due = self._view(self._workloads.matching(selectors))
                _publish(following, view)
                if retry:
                    due = self._steady.now() + retry * (1 + _JITTER * self._draw())
                await self._rest(due, following.wake, entitlement, version)

    async def _rest(
        self, until: float | None, wake: asyncio.Event, entitlement: Watch[WorkloadView | None], version: int
    ) -> None:
        """Until something changed, or a token is due."""
        change = spawn(_wake_at_change(entitlement, version, wake), "entitlement", set())
        try:
            while not wake.is_set() and (until is None or self._steady.now() < until):
                await self._steady.wait(until, wake, keep=True)
        finally:
            change.cancel()

    async def _fetch_missing(self, wanted: Sequence[RegistrationEntry]) -> None:
        async with self._asking:  # one caller at a time: two sets that share an entry then share its token
            missing = [entry for entry in wanted if self._is_missing(entry)]
            for start in range(0, len(missing), LARGEST_BATCH):
                await self._fetch(missing[start : start + LARGEST_BATCH])

    def _is_missing(self, entry: RegistrationEntry) -> bool:
        held = self._held.get(entry.id)
        return held is None or held.stamp != stamp_of(entry) or self._steady.now() >= held.renew_at

    async def _fetch(self, entries: Sequence[RegistrationEntry]) -> None:
        keys = [ec.generate_private_key(ec.SECP256R1()) for _ in entries]
        requests = [
            WitRequest(entry.id, spki_der(key.public_key()), ALGORITHM)
            for entry, key in zip(entries, keys, strict=True)
        ]
        generation = self._membership.session.generation
        try:
            answers = await self._server.issue_wits(requests)
        except AgentRefused as error:
            self._membership.refused(error.refusal, generation)
            raise
        failures = []
        for entry, key, answer in zip(entries, keys, answers, strict=True):
            try:
                if isinstance(answer, IdentityError):
                    raise answer
                await self._hold(entry, key, answer)
            except IdentityError as error:
                failures.append(error)
        if failures:
            raise Unavailable(f"{len(failures)} of {len(entries)} WIT-SVIDs: {failures[0].public}")

    async def _hold(self, entry: RegistrationEntry, key: ec.EllipticCurvePrivateKey, answer: WitSvid) -> None:
        confirmed = {**key_to_jwk(key.public_key()), "alg": ALGORITHM}
        key_id, end = await self._checked(answer.token, entry, confirmed)
        present = self._workloads.entries.get(entry.id)
        if present is None or present.spiffe_id != entry.spiffe_id or self._workloads.banned:
            return  # withdrawn while the request was under way
        now = self._steady.now()
        life = end - self._clock.now().timestamp()
        jwk = json.dumps({**private_key_to_jwk(key), "alg": ALGORITHM}, separators=(",", ":"))
        identity = WitIdentity(entry.spiffe_id, answer.token, jwk, present.hint)
        renew_at = now + life / 2 * (1 + _JITTER * self._draw())
        if any(one.key_id == key_id and one.tainted for one in self._workloads.bundles.own.wit_authorities):
            renew_at = min(renew_at, now + FIRST_RETRY)  # its key was tainted while the answer was under way
        self._held[entry.id] = _Held(identity, stamp_of(entry), key_id, renew_at, now + life)

    async def _checked(self, token: str, entry: RegistrationEntry, confirmed: dict[str, str]) -> tuple[str, int]:
        def check(bundle: TrustBundle) -> tuple[str, int]:
            now = self._clock.now()
            return check_issued_wit(token, expected=entry.spiffe_id, confirmed=confirmed, bundle=bundle, now=now)

        try:
            return check(self._workloads.bundles.own)
        except VerificationFailed as failure:
            if failure.reason is not Reason.UNKNOWN_AUTHORITY:
                raise
            return check(await self._server.fetch_bundle())  # signed by a key newer than the bundle at hand

    def _view(self, wanted: Sequence[RegistrationEntry]) -> tuple[WitView | None, float | None]:
        """What may be handed out now, and when to look again. None when there is an identity but no token yet.

        The token of a name that an entry no longer has is not served for an instant longer.
        """
        now = self._steady.now()
        held = [(self._held[entry.id], entry) for entry in wanted if entry.id in self._held]
        good = [(one, entry) for one, entry in held if now < one.ends_at and one.identity.spiffe_id == entry.spiffe_id]
        due = min((one.renew_at for one, _ in good), default=None)
        if wanted and not good:
            return None, due
        return WitView(tuple(replace(one.identity, hint=entry.hint) for one, entry in good)), due

    def _tidy(self) -> None:
        """Forget tokens that have ended, and those of entries that are gone."""
        now, entries = self._steady.now(), self._workloads.entries
        self._held = {name: one for name, one in self._held.items() if now < one.ends_at and name in entries}

    def _wake_all(self) -> None:
        for following in self._following.values():
            following.wake.set()


def _publish(following: _Following, view: WitView | None) -> None:
    if view != following.watch.value:
        following.watch.publish(view)


async def _wake_at_change(entitlement: Watch[WorkloadView | None], version: int, wake: asyncio.Event) -> None:
    await entitlement.changed(version)
    wake.set()
