"""Who is calling: from the connection the front door authenticated to a `Caller` that the access table let in.

`AccessInterceptor` runs before every handler, also for methods this server does not offer, and leaves the caller for
`current_caller()`. A handler never looks at the transport.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref

import grpc
import grpc.aio

from identity_server.domain.access import Caller, CallerKind
from identity_server.services.admission import Admissions, Presented
from spiffe_core.runtime.request_id import note_caller
from spiffe_core.wire.peer import Peer, TlsPeer
from spiffe_core.wire.services import CALL_KINDS, HANDLER_FACTORIES

_CALLER: ContextVar[Caller] = ContextVar("caller")

if TYPE_CHECKING:  # generic only to the type checker
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    Context = grpc.aio.ServicerContext
    Handler = grpc.RpcMethodHandler


def current_caller() -> Caller:
    """The caller of the RPC being served."""
    return _CALLER.get()


def presented_by(peer: Peer) -> Presented:
    """What a connection's other end presented, without the transport's words."""
    if isinstance(peer, TlsPeer):
        return Presented(
            origin=peer.address,
            spiffe_id=peer.spiffe_id,
            serial=peer.serial,
            not_after=peer.not_after,
            anchor=peer.anchor,
            address=peer.address.rpartition(":")[0],
        )
    return Presented(origin=f"pid {peer.pid}, uid {peer.uid}", local=True)


class _Connection:
    """What is known of the other end of one connection, put together at its first call.

    Does not keep its peer alive.
    """

    __slots__ = ("_admitted", "facts", "presented")

    def __init__(self, peer: Peer) -> None:
        self.presented = presented_by(peer)
        self.facts: Mapping[str, object] = caller_facts(peer)
        self._admitted: dict[CallerKind, Mapping[str, object]] = {}

    def facts_as(self, kind: CallerKind) -> Mapping[str, object]:
        """The facts for the audit log, with what it was let in as: the same object for every call of that kind."""
        facts = self._admitted.get(kind)
        if facts is None:
            facts = self._admitted[kind] = {"as": kind.value, **self.facts}
        return facts


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Asks `Admissions` before each call."""

    def __init__(self, peer_of: Callable[[Context], Peer], admissions: Admissions) -> None:
        self._peer_of = peer_of
        self._admissions = admissions
        self._connections: dict[int, tuple[ref[TlsPeer], _Connection]] = {}
        """Those of TLS that are open and have called, by the identity of their peer, which takes its entry with it."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the handler of one call, whichever of the four kinds it is."""
        handler = await continuation(handler_call_details)
        if handler is None:  # no such service or method: gRPC answers UNIMPLEMENTED
            return None
        kind = (handler.request_streaming, handler.response_streaming)
        behaviour = getattr(handler, CALL_KINDS[kind])
        method: str = handler_call_details.method
        return HANDLER_FACTORIES[kind](
            self._streaming(method, behaviour) if handler.response_streaming else self._single(method, behaviour),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _single(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def guarded(request: Any, context: Context) -> Any:
            _CALLER.set(await self._admitted(method, context))
            return await behaviour(request, context)

        return guarded

    def _streaming(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
            _CALLER.set(await self._admitted(method, context))
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response

        return guarded

    async def _admitted(self, method: str, context: Context) -> Caller:
        peer = self._peer_of(context)
        connection = self._connection(peer)
        note_caller(connection.facts)
        caller = await self._admissions.admit(method, connection.presented)
        note_caller(connection.facts_as(caller.kind))
        return caller

    def _connection(self, peer: Peer) -> _Connection:
        """A certificate says the same for as long as its connection lasts.

        A local process may become another program.
        """
        if not isinstance(peer, TlsPeer):
            return _Connection(peer)
        known = self._connections.get(id(peer))
        if known is None:
            is_over = ref(peer, partial(self._forget, id(peer)))
            known = self._connections[id(peer)] = is_over, _Connection(peer)
        return known[1]

    def _forget(self, number: int, _: ref[TlsPeer]) -> None:
        self._connections.pop(number, None)


def caller_facts(peer: Peer) -> dict[str, object]:
    """Who called from where, for the audit log: the local process with its user and program, or ID and address."""
    if isinstance(peer, TlsPeer):
        known = {"spiffe_id": str(peer.spiffe_id or ""), "serial": peer.serial}
        return {"address": peer.address, **{name: text for name, text in known.items() if text}}
    program = peer.program
    return {"pid": peer.pid, "uid": peer.uid, "gid": peer.gid, **({"path": program} if program else {})}
