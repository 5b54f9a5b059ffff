"""Calls to the server: their errors in our words, and the position that they carry and bring back (architecture A8)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor

from node_agent.domain.bearings import Bearings
from node_agent.ports import ServerUnproven, TurnedAway
from spiffe_core.errors import IdentityError, Reason, Unauthenticated, Unavailable, Unbelieved, VerificationFailed
from spiffe_core.wire.dialer import Dialer
from spiffe_core.wire.positions import NONE, POSITION, position_in
from spiffe_core.wire.services import Stub
from spiffe_core.wire.status import from_rpc_error

CALL_SECONDS = 30.0


class Calls:
    """Calls over one dialer. Belongs to the event loop's thread; several may share the bearings."""

    def __init__(self, dialer: Dialer, bearings: Bearings) -> None:
        self.dialer = dialer
        self.bearings = bearings

    async def ask(self, service: ServiceDescriptor, method: str, request: Any, *, seconds: float | None = None) -> Any:
        """One request, one answer, within CALL_SECONDS unless it is to be sooner.

        A stream does not bring a position back: the call that follows it does.

        Raises:
            IdentityError: what the server refused it with, or why it was not reached.
        """
        carried = self.bearings.newest
        with translated(self.dialer):
            call = self._begin(service, method)(request, timeout=seconds or CALL_SECONDS, metadata=self._carried())
            answer = received(await call)
            told = position_in(await call.trailing_metadata())
        if told is not None:
            self.bearings.told(told, carried)
        return answer

    def open(self, service: ServiceDescriptor, method: str, *, endless: bool = False) -> Any:
        """A stream that was begun, of CALL_SECONDS unless it is to have no end."""
        seconds = None if endless else CALL_SECONDS
        return self._begin(service, method)(timeout=seconds, metadata=self._carried())

    def _begin(self, service: ServiceDescriptor, method: str) -> Any:
        return getattr(Stub(self.dialer.channel(), service), method)

    def _carried(self) -> tuple[tuple[str, str], ...]:
        return ((POSITION, self.bearings.newest or NONE),)


def received(message: Any) -> Any:
    """A message that arrived. Of bytes that are no message gRPC makes None, and a line in its own log."""
    if message is None:
        raise Unavailable("the server's answer cannot be read")
    return message


@contextlib.contextmanager
def translated(dialer: Dialer) -> Iterator[None]:
    """Errors of gRPC as ours. When no connection came about, the dialer knows why better than gRPC does."""
    try:
        yield
        dialer.answered(available=True)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            dialer.fell_silent()
        translated = from_rpc_error(error)
        unavailable = isinstance(translated, Unavailable)
        if unavailable and dialer.last_error is not None:
            raise _unreached(dialer.last_error) from error
        if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            dialer.answered(available=not unavailable)
        raise translated from error
    except (asyncio.InvalidStateError, grpc.aio.UsageError) as error:
        raise Unavailable("the connection to the server ended during the call") from error


def _unreached(why: IdentityError) -> Unavailable:
    """Why there is no connection, told apart from the causes that another bundle, or another SVID, may end."""
    if isinstance(why, Unauthenticated):
        return TurnedAway(why.public, **why.facts)
    if not isinstance(why, VerificationFailed):
        return Unavailable(why.public, **why.facts)
    if why.reason is Reason.UNKNOWN_AUTHORITY:
        return ServerUnproven(why.public, **why.facts)
    return Unbelieved(why.public, why.reason, **why.facts)
