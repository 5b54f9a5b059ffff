"""Calls that carry how much of the log their caller has seen (architecture A8; `spiffe_core.wire.positions`).

Stands behind the access check and before every limit that counts. Only agents of this trust domain are waited for; a
position that cannot be read is no position. Every call that has the key is told where this server is when it is over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from identity_server.domain.agents import AGENT_PREFIX
from identity_server.domain.history import Position
from identity_server.rpc.caller import Context, Handler, current_caller
from identity_server.services.abreast import Abreast
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire.positions import POSITION, position_in
from spiffe_core.wire.services import CALL_KINDS, HANDLER_FACTORIES


class PositionInterceptor(grpc.aio.ServerInterceptor):
    """Asks `Abreast` before each call of an agent that carries a position."""

    def __init__(self, abreast: Abreast, trust_domain: TrustDomain) -> None:
        self._abreast = abreast
        self._trust_domain = trust_domain

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the handler of one call, whichever of the four kinds it is."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        kind = (handler.request_streaming, handler.response_streaming)
        behaviour = getattr(handler, CALL_KINDS[kind])
        return HANDLER_FACTORIES[kind](
            self._streaming(behaviour) if handler.response_streaming else self._single(behaviour),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _single(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def held(request: Any, context: Context) -> Any:
            carried = position_in(context.invocation_metadata())
            if carried is None:
                return await behaviour(request, context)
            await self._reached(carried)
            response = await behaviour(request, context)
            self._tell(context)
            return response

        return held

    def _streaming(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def held(request: Any, context: Context) -> AsyncIterator[Any]:
            carried = position_in(context.invocation_metadata())
            if carried is not None:
                await self._reached(carried)
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response
            if carried is not None:
                self._tell(context)

        return held

    async def _reached(self, carried: str) -> None:
        """Wait for what the call carries."""
        who, position = current_caller().spiffe_id, Position.parse(carried)
        ours = who is not None and who.trust_domain == self._trust_domain and who.path.startswith(AGENT_PREFIX)
        if position is not None and who is not None and ours:
            await self._abreast.reached(who.path, position)

    def _tell(self, context: Context) -> None:
        already = tuple(context.trailing_metadata() or ())
        context.set_trailing_metadata((*already, (POSITION, str(self._abreast.position))))
