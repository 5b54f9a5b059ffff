"""A stream of requests and answers, on which the server's last word is heard although a request came too late.

A server that has said all it wants ends the stream: it refuses before it reads anything, or has sent all there is. If
that end arrives while a request is being written, grpc.aio fails the write with an INTERNAL of its own and counts the
call as done: `read()` then repeats that INTERNAL, although answers are still there to be read and the server's status
takes its place once they are. Reading by iteration gets them. Only a status that was there before the write failed is
lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc.aio

from spiffe_core.errors import Unavailable

LAST_WORD_LOOKS, LAST_WORD_SECONDS = 50, 0.01
"""How often, and how far apart, a call is asked what the server ended it with."""
END: Final = grpc.aio.EOF


class Exchange:
    """One call, spoken to and listened to by one task. Nobody else reads from it."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._answers: AsyncIterator[Any] = aiter(call)
        self._late: tuple[object, object] | None = None

    async def say(self, request: Any) -> None:
        """Send a request. Why it could not be sent is told by the next answer."""
        try:
            await self._call.write(request)
        except asyncio.InvalidStateError:  # the end was there before we began to write
            return
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INTERNAL:  # any other is the server's, or the connection's
                self._late = error.code(), error.details()

    async def hear(self) -> Any:
        """The next answer; `END` if the server ended the stream without an error.

        Raises:
            AioRpcError: what it ended the stream with.
            Unavailable: it ended the stream while a request was on its way, and gRPC lost what it ended it with.
        """
        try:
            return await anext(self._answers)
        except StopAsyncIteration:
            return END
        except grpc.aio.AioRpcError as error:
            if (error.code(), error.details()) != self._late:
                raise
        for _ in range(LAST_WORD_LOOKS):
            if (await self._call.code(), await self._call.details()) != self._late:
                return await self._call.read()  # raises the status of a call that is done, unless that is OK
            await asyncio.sleep(LAST_WORD_SECONDS)
        raise Unavailable("the server ended the stream while a request was on its way")

    async def done(self) -> None:
        """Nothing more will be said."""
        await self._call.done_writing()

    def cancel(self) -> None:
        """End the call; nothing happens if it has ended."""
        self._call.cancel()
