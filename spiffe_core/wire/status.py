"""The one table between kinds of failure and the codes of gRPC and HTTP, and what applies it on either side.

On the way out `ErrorInterceptor` turns an IdentityError into a status: the code, the public text, the kind in the
trailer `muniment-kind`, and for a refused agent the details on which agents act (spire_wire section 2), for a caller
that was too fast google.rpc.RetryInfo. Anything else becomes INTERNAL with a random reference that also stands in the
log beside the traceback, and nothing more. On the way in `from_rpc_error` gives back the error of the same kind.
"""

from __future__ import annotations

import inspect
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any, Final, NoReturn, Protocol

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from google.rpc import status_pb2 as rpc_status_pb2

from spiffe_core.errors import (
    AgentRefused,
    Conflict,
    Exhausted,
    Forbidden,
    IdentityError,
    Internal,
    InvalidRequest,
    Kind,
    NotFound,
    PreconditionFailed,
    Refusal,
    TooFast,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from spiffe_core.wire._gen.spire.api.types import status_pb2
from spiffe_core.wire.services import CALL_KINDS, HANDLER_FACTORIES

STATUS: Final[dict[Kind, tuple[grpc.StatusCode, int]]] = {
    Kind.INVALID: (grpc.StatusCode.INVALID_ARGUMENT, 400),
    Kind.UNAUTHENTICATED: (grpc.StatusCode.UNAUTHENTICATED, 401),
    Kind.FORBIDDEN: (grpc.StatusCode.PERMISSION_DENIED, 403),
    Kind.NOT_FOUND: (grpc.StatusCode.NOT_FOUND, 404),
    Kind.CONFLICT: (grpc.StatusCode.ALREADY_EXISTS, 409),
    Kind.PRECONDITION: (grpc.StatusCode.FAILED_PRECONDITION, 412),
    Kind.EXHAUSTED: (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    Kind.UNAVAILABLE: (grpc.StatusCode.UNAVAILABLE, 503),
    Kind.UNIMPLEMENTED: (grpc.StatusCode.UNIMPLEMENTED, 501),
    Kind.INTERNAL: (grpc.StatusCode.INTERNAL, 500),
}

KIND_TRAILER: Final = "muniment-kind"
DETAILS_TRAILER: Final = "grpc-status-details-bin"
OK: Final = "OK"
"""The text of an item of a batch that went well."""
MAX_TEXT: Final = 1024
"""Bytes of public text that are sent; percent-encoding triples them, and peers accept 8 KiB of trailers."""

_KINDS: Final[dict[grpc.StatusCode, Kind]] = {
    **{code: kind for kind, (code, _) in STATUS.items()},
    grpc.StatusCode.DEADLINE_EXCEEDED: Kind.UNAVAILABLE,
    grpc.StatusCode.CANCELLED: Kind.UNAVAILABLE,
    grpc.StatusCode.ABORTED: Kind.UNAVAILABLE,
    grpc.StatusCode.OUT_OF_RANGE: Kind.INVALID,
}

_ERRORS: Final[dict[Kind, Callable[[str], IdentityError]]] = {
    Kind.INVALID: InvalidRequest,
    Kind.UNAUTHENTICATED: Unauthenticated,
    Kind.FORBIDDEN: Forbidden,
    Kind.NOT_FOUND: NotFound,
    Kind.CONFLICT: Conflict,
    Kind.PRECONDITION: PreconditionFailed,
    Kind.EXHAUSTED: Exhausted,
    Kind.UNAVAILABLE: Unavailable,
    Kind.UNIMPLEMENTED: Unimplemented,
    Kind.INTERNAL: Internal,
}

_LOG = logging.getLogger(__name__)


def kind_of(code: grpc.StatusCode) -> Kind:
    """The kind of failure that a gRPC status code means to a caller; a code nobody planned for is INTERNAL."""
    return _KINDS.get(code, Kind.INTERNAL)


def item_status(error: IdentityError | None) -> status_pb2.Status:
    """The status of one item of a batch. Both fields are always filled: Go clients read them unasked."""
    if error is None:
        return status_pb2.Status(code=0, message=OK)
    return status_pb2.Status(code=_number(STATUS[error.kind][0]), message=_text(error))


def _number(code: grpc.StatusCode) -> int:
    number: int = code.value[0]
    return number


def _text(error: IdentityError) -> str:
    text = error.public or error.kind.value
    raw = text.encode(errors="replace")
    return text if len(raw) <= MAX_TEXT else f"{raw[: MAX_TEXT - 3].decode(errors='ignore')}..."


def trailers(error: IdentityError) -> tuple[tuple[str, str | bytes], ...]:
    """What travels beside the status code and the text."""
    kind: tuple[str, str | bytes] = (KIND_TRAILER, error.kind.value)
    message: Message
    if isinstance(error, AgentRefused):
        message = status_pb2.PermissionDeniedDetails(reason=error.refusal.name)
    elif isinstance(error, TooFast):
        message = info = error_details_pb2.RetryInfo()
        info.retry_delay.FromMilliseconds(max(1, round(error.retry_after * 1000)))
    else:
        return (kind,)
    details = AnyMessage()
    details.Pack(message)
    rich = rpc_status_pb2.Status(code=_number(STATUS[error.kind][0]), message=_text(error), details=[details])
    return (kind, (DETAILS_TRAILER, rich.SerializeToString()))


_LATE = "Deadline Exceeded"
"""What gRPC itself says when the time a call was given is over."""


class RpcFailure(Protocol):
    """What blocking and asynchronous RPC errors have in common."""

    def code(self) -> grpc.StatusCode:
        """The status."""
        ...

    def details(self) -> str | None:
        """The text beside it."""
        ...

    def trailing_metadata(self) -> Iterable[Any] | None:
        """What else came with it."""
        ...


def from_rpc_error(error: RpcFailure) -> IdentityError:
    """The error that the other side raised, as far as it may be known here."""
    code = error.code()
    text = error.details() or code.name.lower().replace("_", " ")
    if text == _LATE:
        text = "there was no answer in time"
    metadata = dict(error.trailing_metadata() or ())
    if code is grpc.StatusCode.PERMISSION_DENIED:
        refusal = _refusal(metadata.get(DETAILS_TRAILER))
        if refusal is not None:
            return AgentRefused(refusal)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        retry_after = _retry_after(metadata.get(DETAILS_TRAILER))
        if retry_after is not None:
            return TooFast(text, retry_after=retry_after)
    return _ERRORS[_kind_sent(metadata.get(KIND_TRAILER), code)](text)


def _kind_sent(value: object, code: grpc.StatusCode) -> Kind:
    """The kind in the trailer when it fits the code, else what the code alone says."""
    for kind, (own_code, _) in STATUS.items():
        if value == kind.value and own_code is code:
            return kind
    return kind_of(code)


def _refusal(value: object) -> Refusal | None:
    """The reason in the rich status; None when there is none that an agent could act on."""
    details = status_pb2.PermissionDeniedDetails()
    try:
        return Refusal(details.reason) if _unpacked(value, details) else None
    except (DecodeError, ValueError):
        return None


def _retry_after(value: object) -> float | None:
    """The delay of google.rpc.RetryInfo in seconds; None when there is none."""
    info = error_details_pb2.RetryInfo()
    try:
        return max(0.0, info.retry_delay.ToMilliseconds() / 1000) if _unpacked(value, info) else None
    except (DecodeError, ValueError):
        return None


def _unpacked(value: object, into: Message) -> bool:
    """Whether the rich status has a detail of this type; it is then read `into` the message."""
    if not isinstance(value, bytes):
        return False
    rich = rpc_status_pb2.Status.FromString(value)
    return any(item.Is(into.DESCRIPTOR) and item.Unpack(into) for item in rich.details)


Behaviour = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Any]


def random_reference() -> str:
    """Sixteen hexadecimal digits that connect an answer with its line in the log."""
    return secrets.token_hex(8)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns what a handler raises into a status. It must be the outermost interceptor."""

    def __init__(self, reference: Callable[[], str] = random_reference) -> None:
        self._reference = reference

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of one call, whichever of the four kinds it is."""
        method = handler_call_details.method
        try:
            handler = await continuation(handler_call_details)
        except Exception as error:  # noqa: BLE001  # an inner interceptor's refusal must reach the caller as a status
            return grpc.stream_stream_rpc_method_handler(self._raising(method, error))
        if handler is None:  # no such method: gRPC itself answers UNIMPLEMENTED
            return None
        kind = (handler.request_streaming, handler.response_streaming)
        return HANDLER_FACTORIES[kind](
            self._guard(method, getattr(handler, CALL_KINDS[kind])),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _guard(self, method: str, behaviour: Behaviour) -> Behaviour:
        async def one(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                return await behaviour(request, context)
            except Exception as error:  # noqa: BLE001  # the last handler before the wire
                await self._refuse(method, context, error)

        async def many(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield response
            except Exception as error:  # noqa: BLE001  # the last handler before the wire
                await self._refuse(method, context, error)

        return many if inspect.isasyncgenfunction(behaviour) else one

    def _raising(self, method: str, error: Exception) -> Behaviour:
        async def refuse(_request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            await self._refuse(method, context, error)

        return refuse

    async def _refuse(self, method: str, context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
        if isinstance(error, grpc.aio.AbortError):  # the handler has said it itself
            raise error
        if isinstance(error, IdentityError):
            _LOG.debug("%s refused: %s", method, error.public, extra={"kind": error.kind.value, "facts": error.facts})
            await context.abort(STATUS[error.kind][0], _text(error), _with(context, error))
        reference = self._reference()
        _LOG.error("%s failed, reference %s", method, reference, exc_info=error)
        internal = Internal(f"internal error, reference {reference}")
        await context.abort(grpc.StatusCode.INTERNAL, internal.public, _with(context, internal))


def _with(context: grpc.aio.ServicerContext[Any, Any], error: IdentityError) -> tuple[tuple[str, str | bytes], ...]:
    """The error's trailers after those that were set before it: `abort` alone would drop them."""
    return (*(context.trailing_metadata() or ()), *trailers(error))
