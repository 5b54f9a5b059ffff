"""Ending idle streams: when the server goes down, and when they have lasted too long (architecture A7, A9).

A bidirectional handler waits for its client most of the time. Its requests are wrapped so that the wait also ends when
the drain begins, with Unavailable "restarting" instead of a cut; a message that is already being answered is answered.

Connections are left open for push streams long after they take no new calls; every other stream ends with Unavailable
at the age that a connection of SPIRE's services may have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from identity_server.rpc.caller import Context, Handler
from spiffe_core.errors import Unavailable
from spiffe_core.runtime.supervise import spawn
from spiffe_core.wire.services import CALL_KINDS, HANDLER_FACTORIES


class Drain:
    """Set once, when the server goes down. Belongs to the event loop."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()

    @property
    def begun(self) -> bool:
        """True once the server is going down."""
        return self._begun.is_set()

    def begin(self) -> None:
        """Tell every waiting stream."""
        self._begun.set()

    async def wait(self) -> None:
        """Return when the drain begins."""
        await self._begun.wait()


class DrainInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the requests of streaming clients. Streams of the methods in `lasting` may last longer than `seconds`."""

    def __init__(self, drain: Drain, seconds: float, lasting: frozenset[str]) -> None:
        self._drain = drain
        self._seconds = seconds
        self._lasting = lasting

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Leave handlers of single requests alone."""
        handler = await continuation(handler_call_details)
        if handler is None or not (handler.request_streaming and handler.response_streaming):
            return handler
        behaviour = getattr(handler, CALL_KINDS[True, True])
        seconds = None if handler_call_details.method in self._lasting else self._seconds

        async def drained(requests: Any, context: Context) -> AsyncIterator[Any]:
            async with aclosing(behaviour(_until(self._drain, requests, seconds), context)) as responses:
                async for response in responses:
                    yield response

        return HANDLER_FACTORIES[True, True](
            drained,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


async def _until(drain: Drain, requests: AsyncIterator[Any], seconds: float | None) -> AsyncIterator[Any]:
    """The client's messages until it has no more, or until the drain begins or the time is over while none is there."""
    messages = aiter(requests)
    loop = asyncio.get_running_loop()
    end = None if seconds is None else loop.time() + seconds
    tasks: set[asyncio.Task[Any]] = set()
    over = spawn(drain.wait(), "drain", tasks)
    try:
        while True:
            coming = spawn(_one(messages), "next request", tasks)
            left = None if end is None else max(end - loop.time(), 0.0)
            await asyncio.wait({coming, over}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                raise Unavailable(
                    "the server is restarting, try again" if over.done() else "the stream is over, open a new one"
                )
            found = coming.result()
            if found is None:
                return
            yield found
    finally:
        for task in list(tasks):
            task.cancel()


async def _one(messages: AsyncIterator[Any]) -> Any:
    return await anext(messages, None)
