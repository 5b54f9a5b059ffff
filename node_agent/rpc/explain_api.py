"""muniment.agent.explain.v1.Explain, on the admin socket; and the ids by which refused workloads are asked about.

A workload that is refused learns a short id and nothing else: selectors, its own and those of entries, may hold secrets
(architecture A10). Whoever may use the admin socket looks the id up.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

import grpc
import grpc.aio

from node_agent.services.explain import Explain
from spiffe_core.errors import InvalidRequest, NoIdentityIssued
from spiffe_core.selectors import Selector
from spiffe_core.wire._gen.muniment.agent.explain.v1 import explain_pb2 as pb
from spiffe_core.wire.convert_explanation import explanation_to_proto
from spiffe_core.wire.peer import UnixPeer
from spiffe_core.wire.services import CALL_KINDS, HANDLER_FACTORIES, handlers

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Explain"]
MAX_SELECTORS: Final = 1_000
MAX_NAME: Final = 512
"""Characters of a namespace and a name; Kubernetes allows 63 and 253."""
REFUSAL_TRAILER: Final = "muniment-refusal"


class ExplainApi:
    """Answers whoever may use the admin socket."""

    def __init__(self, explain: Explain, peer_of: Callable[[Any], object]) -> None:
        self._explain = explain
        self._peer_of = peer_of

    def handler(self) -> grpc.GenericRpcHandler:
        """For the gRPC server behind the admin socket's front door."""
        return handlers(SERVICE, self)

    async def Explain(self, request: Any, context: Any) -> Any:
        """Why a process, or a set of selectors, gets what it gets."""
        match request.WhichOneof("about"):
            case "pid":
                return explanation_to_proto(await self._explain.process(request.pid))
            case "selectors":
                texts = request.selectors.selectors
                if not 0 < len(texts) <= MAX_SELECTORS:
                    raise InvalidRequest(f"selectors: give 1 to {MAX_SELECTORS}", field="selectors")
                return explanation_to_proto(await self._explain.selectors(frozenset(map(Selector.parse, texts))))
            case "pod":
                pod = request.pod
                if not (pod.namespace and pod.name) or len(pod.namespace) + len(pod.name) > MAX_NAME:
                    raise InvalidRequest("pod: name it by namespace and name", field="pod")
                return explanation_to_proto(*await self._explain.pod(pod.namespace, pod.name))
            case "refusal":
                return explanation_to_proto(await self._explain.refusal(request.refusal))
            case "caller":
                peer = self._peer_of(context)
                assert isinstance(peer, UnixPeer), "the admin socket is a Unix socket"
                return explanation_to_proto(await self._explain.caller(peer))
        raise InvalidRequest("give one of pid, pod, selectors, refusal and caller", field="about")


class RefusalIds(grpc.aio.ServerInterceptor):
    """Gives every "no identity issued" of the Workload API an id, in the status text and in a trailer."""

    def __init__(self, peer_of: Callable[[Any], object], refused: Callable[[UnixPeer], Awaitable[str]]) -> None:
        self._peer_of = peer_of
        self._refused = refused

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of one call, whichever of the four kinds it is."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        kind = (handler.request_streaming, handler.response_streaming)
        behaviour = getattr(handler, CALL_KINDS[kind])
        return HANDLER_FACTORIES[kind](
            self._many(behaviour) if handler.response_streaming else self._one(behaviour),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _one(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def answered(request: Any, context: Any) -> Any:
            try:
                return await behaviour(request, context)
            except NoIdentityIssued as refusal:
                raise await self._with_id(refusal, context) from None

        return answered

    def _many(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def answered(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield response
            except NoIdentityIssued as refusal:
                raise await self._with_id(refusal, context) from None

        return answered

    async def _with_id(self, refusal: NoIdentityIssued, context: Any) -> NoIdentityIssued:
        peer = self._peer_of(context)
        if not isinstance(peer, UnixPeer):
            return refusal
        refusal_id = await self._refused(peer)
        context.set_trailing_metadata(((REFUSAL_TRAILER, refusal_id),))
        return NoIdentityIssued(refusal_id, **refusal.facts)
