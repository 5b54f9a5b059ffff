"""Rate limits at the door of the use-cases (architecture A17; SPIRE's rows in spire_features section 8.3).

Attestation is counted by network address, signing by the agent that calls, in certificate requests rather than calls.
What else an agent may ask has a wide limit of its own, so that one that was broken into keeps neither the database nor
the event loop from the others. Callers on the admin socket are never held up. A caller that is a little too fast waits
up to `wait_seconds`; one that is much too fast gets ResourceExhausted with google.rpc.RetryInfo. What fails its
verification costs ten times as much.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Self

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from identity_server.domain.rates import FairQueue, Rate
from identity_server.rpc.caller import Context, Handler
from spiffe_core.clock import Clock
from spiffe_core.errors import Exhausted, IdentityError, Kind
from spiffe_core.networks import network_of
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire.peer import Peer, TlsPeer
from spiffe_core.wire.services import CALL_KINDS, HANDLER_FACTORIES

FAILURE_COST = 10
"""A verification that fails costs this many units: whoever guesses is slowed down first."""
_FAILURES = frozenset({Kind.INVALID, Kind.UNAUTHENTICATED, Kind.FORBIDDEN, Kind.PRECONDITION})
_INVALID_ARGUMENT = 3
_AGENT = "/spire.api.server.agent.v1.Agent/"
_SVID = "/spire.api.server.svid.v1.SVID/"
_BUNDLE = "/spire.api.server.bundle.v1.Bundle/"
_ENTRY = "/spire.api.server.entry.v1.Entry/"

ATTESTING: Final = frozenset({_AGENT + "AttestAgent"})
SIGNING: Final[dict[str, Callable[[Any], int]]] = {
    _AGENT + "RenewAgent": lambda _: 1,
    _SVID + "BatchNewX509SVID": lambda data: _count(svid_pb2.BatchNewX509SVIDRequest, data),
    _SVID + "BatchNewWITSVID": lambda data: _count(svid_pb2.BatchNewWITSVIDRequest, data),
    _SVID + "NewJWTSVID": lambda _: 1,
    _SVID + "NewDownstreamX509CA": lambda _: 1,
    _BUNDLE + "PublishJWTAuthority": lambda _: 1,
    _BUNDLE + "PublishWITAuthority": lambda _: 1,
}
"""Method -> how many signatures a request, still unread, asks for."""
_BATCHES: Final = frozenset({_SVID + "BatchNewX509SVID", _SVID + "BatchNewWITSVID"})
"""Of those with a limit, the methods that answer each item for itself."""
LOOKUPS: Final[dict[str, int]] = {
    _BUNDLE + "GetFederatedBundle": 1,
    _AGENT + "PostStatus": 5,
    _ENTRY + "GetAuthorizedEntries": 5,
    _ENTRY + "SyncAuthorizedEntries": 5,
    "/muniment.server.explain.v1.Explain/Elsewhere": 25,
}
"""Method -> what it costs of `LOOKUP_RATE`. Each may read the database, write it, or render very many entries."""
LOOKUP_RATE: Final = Rate(500.0, 2_500)
"""For each agent, a second: a hundred times what a busy one asks for."""


@dataclass(frozen=True, slots=True)
class ThrottleSettings:
    """The rates in force; None switches a limit off."""

    attestation: Rate | None
    signing: Rate | None
    wait_seconds: float
    lookups: Rate | None = None


class Throttle:
    """Holds callers up, or turns them away. Belongs to the event loop. `refused` counts by the name of the limit."""

    def __init__(self, settings: ThrottleSettings, clock: Clock) -> None:
        self._clock = clock
        self._attestation = _queue(settings.attestation, settings.wait_seconds)
        self._signing = _queue(settings.signing, settings.wait_seconds)
        self._lookups = _queue(settings.lookups, settings.wait_seconds)
        self.refused: Counter[str] = Counter()

    @property
    def _queues(self) -> tuple[FairQueue | None, ...]:
        return self._attestation, self._signing, self._lookups

    @property
    def waiting(self) -> int:
        """How many calls are being held up now."""
        return sum(queue.waiting for queue in self._queues if queue is not None)

    async def admitted(self, method: str, peer: Peer, request: Any, patience: float | None) -> Charge:
        """Wait for the caller's turn; failures inside the block that the charge guards cost more.

        Raises:
            TooFast, Exhausted: it is not the caller's turn for too long, or never.
        """
        row = self._row(method, peer, request)
        if row is None:
            return Charge(_free)
        name, queue, key, units = row
        try:
            ticket = queue.enter(key, units, self._clock.monotonic(), patience=patience)
        except Exhausted:
            self.refused[name] += 1
            raise
        if ticket.wait > 0.0:
            slept = False
            try:
                await self._clock.sleep(ticket.wait)
                slept = True
            finally:
                queue.leave(ticket, self._clock.monotonic(), unused=not slept)
        return Charge(lambda units: queue.charge(key, units, self._clock.monotonic()))

    def _row(self, method: str, peer: Peer, request: Any) -> tuple[str, FairQueue, str, int] | None:
        """What limit a call falls under, under what key, for how much; None for calls without a limit."""
        if not isinstance(peer, TlsPeer):
            return None
        if method in ATTESTING:
            if self._attestation is None:
                return None
            return "attestation", self._attestation, network_of(_host(peer.address)), 1
        cost = LOOKUPS.get(method)
        if cost is not None:
            return None if self._lookups is None else ("lookups", self._lookups, _key_of(peer), cost)
        units = SIGNING.get(method)
        if units is None or self._signing is None:
            return None
        return "signing", self._signing, _key_of(peer), units(request)


class Charge:
    """What a call turned out to cost besides: how many verifications failed in it. Guards the block of the call."""

    __slots__ = ("_pay", "failures")

    def __init__(self, pay: Callable[[int], None]) -> None:
        self._pay = pay
        self.failures = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, IdentityError):
            self.failures += error.kind in _FAILURES
        if self.failures:
            self._pay(self.failures * (FAILURE_COST - 1))

    def look_at(self, response: Any) -> None:
        """Count the items of a batch that were refused as invalid."""
        for result in response.results:
            self.failures += result.status.code == _INVALID_ARGUMENT


class ThrottleInterceptor(grpc.aio.ServerInterceptor):
    """Asks `Throttle` before each call that has a limit.

    Stands behind the access check: who may not call costs nobody.
    """

    def __init__(self, peer_of: Callable[[Context], Peer], throttle: Throttle) -> None:
        self._peer_of = peer_of
        self._throttle = throttle

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Leave handlers of methods without a limit alone."""
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or not (method in ATTESTING or method in SIGNING or method in LOOKUPS):
            return handler
        kind = (handler.request_streaming, handler.response_streaming)
        behaviour = getattr(handler, CALL_KINDS[kind])
        return HANDLER_FACTORIES[kind](
            self._streaming(method, behaviour) if handler.response_streaming else self._single(method, behaviour),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _single(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def held(request: Any, context: Context) -> Any:
            peer = self._peer_of(context)
            with await self._throttle.admitted(method, peer, request, context.time_remaining()) as charge:
                response = await behaviour(request, context)
                if method in _BATCHES:
                    charge.look_at(response)
                return response

        return held

    def _streaming(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def held(request: Any, context: Context) -> AsyncIterator[Any]:
            peer = self._peer_of(context)
            with await self._throttle.admitted(method, peer, request, context.time_remaining()):
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield response

        return held


def _free(_units: int) -> None:
    """Calls without a limit owe nothing."""


def _queue(rate: Rate | None, wait: float) -> FairQueue | None:
    return None if rate is None else FairQueue(rate, longest_wait=wait)


def _key_of(peer: TlsPeer) -> str:
    return str(peer.spiffe_id or peer.address)


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _count(kind: type[svid_pb2.BatchNewX509SVIDRequest | svid_pb2.BatchNewWITSVIDRequest], data: Any) -> int:
    """How many items a batch holds; a request that cannot be read counts as one, the handler refuses it."""
    if not isinstance(data, bytes):
        return max(1, len(data.params))
    try:
        return max(1, len(kind.FromString(data).params))
    except DecodeError:
        return 1
