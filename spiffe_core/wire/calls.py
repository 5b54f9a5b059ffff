"""Around every call: a request id, given back in the trailing metadata, and observers that are told of it.

Observers only look on. They learn the method (which exists here: unknown ones never reach an interceptor's handler),
the status in gRPC's words and how long it took.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from spiffe_core.runtime.metrics import Metrics
from spiffe_core.runtime.request_id import TRAILER, begin_request
from spiffe_core.runtime.tracing import Tracing
from spiffe_core.wire.services import CALL_KINDS, HANDLER_FACTORIES

_WORDS: Final = {
    code.value[0]: "".join(part.capitalize() for part in code.name.split("_"))
    .replace("Ok", "OK")
    .replace("Cancelled", "Canceled")
    for code in grpc.StatusCode
}
"""Status number -> gRPC-Go's name of it, which SPIRE's labels use: "OK", "PermissionDenied"."""
_NUMBERS: Final = {word: number for number, word in _WORDS.items()}
_WORD_STARTS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])")
_SHORT_NAMES: Final = {
    "spire.api.server.logger.v1.Logger": "logger",
    "spire.agent.debug.v1.Debug": "debug",
    "spire.api.agent.delegatedidentity.v1.DelegatedIdentity": "delegated_identity",
    "spire.api.agent.logger.v1.Logger": "logger",
    "SpiffeWorkloadAPI": "workload_api",
    "envoy.service.secret.v3.SecretDiscoveryService": "sds_v3",
}
_UNCOUNTED: Final = frozenset(
    {"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}
)
_EXCEPTIONS: Final = {"SubscribeToX509SVIDs": "subscribe_to_x509_svids"}


class Observer(Protocol):
    """Looks on."""

    def begun(self, method: str) -> None:
        """A call of `/package.Service/Method` begins."""
        ...

    def ended(self, method: str, status: str, seconds: float, reason: str) -> None:
        """It ended; `reason` is the text beside the status."""
        ...


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Stands outside of all others, so that it sees the status that leaves."""

    def __init__(
        self,
        observers: Sequence[Observer] = (),
        monotonic: Callable[[], float] = time.monotonic,
        tracing: Tracing | None = None,
    ) -> None:
        self._observers = tuple(observers)
        self._tracing = tracing
        self._monotonic = monotonic

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
        method: str = handler_call_details.method
        behaviour = getattr(handler, CALL_KINDS[kind])

        async def one(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            end = self._begin(method, context)
            try:
                response = await behaviour(request, context)
            except BaseException as error:
                end(error)
                raise
            end(None)
            return response

        async def many(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            end = self._begin(method, context)
            try:
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield response
            except BaseException as error:
                end(error)
                raise
            end(None)

        return HANDLER_FACTORIES[kind](
            many if inspect.isasyncgenfunction(behaviour) else one,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _begin(
        self, method: str, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Callable[[BaseException | None], None]:
        request_id = begin_request()
        context.set_trailing_metadata(((TRAILER, request_id),))
        finish = None
        if self._tracing is not None and method.rpartition("/")[0].removeprefix("/") not in _UNCOUNTED:
            finish = self._tracing.begin(method, context.invocation_metadata() or (), request_id)
        started = self._monotonic()
        for observer in self._observers:
            observer.begun(method)

        def end(error: BaseException | None) -> None:
            status = _status(error, context)
            if finish is not None:
                finish(status, _NUMBERS[status])
            seconds = self._monotonic() - started
            reason = str(context.details() or "") if status != "OK" else ""
            for observer in self._observers:
                observer.ended(method, status, seconds, reason)

        return end


class CallMetrics:
    """Counts and times every call as SPIRE does: `rpc_<service>_<method>`, with its status."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._names: dict[str, str] = {}

    def begun(self, method: str) -> None:
        """Nothing is counted yet."""

    def ended(self, method: str, status: str, seconds: float, reason: str) -> None:  # noqa: ARG002  # the port's
        """Count."""
        name = self._names.get(method)
        if name is None:
            name = self._names[method] = metric_name(method)
        if name:
            self._metrics.observe(name, seconds, status=status)


def metric_name(method: str) -> str:
    """SPIRE's name of a method's metric, without the daemon's prefix; "" for methods it does not count."""
    service, _, call = method.removeprefix("/").partition("/")
    if service in _UNCOUNTED or not call:
        return ""
    prefix = _SHORT_NAMES.get(service) or _service_name(service)
    return f"rpc_{prefix}_{_EXCEPTIONS.get(call) or _snake(call)}"


def _service_name(service: str) -> str:
    """`spire.api.server.agent.v1.Agent` -> `agent_v1_agent`."""
    parts = service.split(".")
    return "_".join([*parts[-3:-1], _snake(parts[-1])])


def _snake(name: str) -> str:
    return _WORD_STARTS.sub("_", name).lower()


def _status(error: BaseException | None, context: grpc.aio.ServicerContext[Any, Any]) -> str:
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "Canceled"
    code: Any = context.code()
    number = code.value[0] if isinstance(code, grpc.StatusCode) else int(code or 0)
    if error is not None and number == 0:
        return "Unknown"
    return _WORDS.get(number, "Unknown")
