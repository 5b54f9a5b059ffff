"""gRPC server reflection, versions v1 and v1alpha: which services this socket has, and what their messages look like.

Only the files that describe the services served here are known to it. They are told under the names their authors gave
them: the folder in which our copies lie is left out. No security header is asked for, tools cannot send it
(architecture A4, D8); nothing here depends on who calls.

A dialogue is bounded in time and in questions, and their number is, for nobody is attested and nothing else bounds
them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Final

import grpc
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass

from spiffe_core.errors import Exhausted, Unavailable
from spiffe_core.wire._gen.grpc.reflection.v1 import reflection_pb2 as v1
from spiffe_core.wire._gen.grpc.reflection.v1alpha import reflection_pb2 as v1alpha
from spiffe_core.wire.services import handlers

SERVICES: Final = tuple(one.DESCRIPTOR.services_by_name["ServerReflection"] for one in (v1, v1alpha))
DIALOGUE_SECONDS: Final = 60.0
MOST_QUESTIONS: Final = 1000
MOST_DIALOGUES: Final = 256
_OWN_FOLDER: Final = "spiffe_core/wire/_gen/"
_INVALID_ARGUMENT: Final = int(grpc.StatusCode.INVALID_ARGUMENT.value[0])
_NOT_FOUND: Final = int(grpc.StatusCode.NOT_FOUND.value[0])


class Catalogue:
    """The services of one socket and every file they need; `also`, files of what they carry as Any. Never changes."""

    def __init__(self, services: Iterable[ServiceDescriptor], also: Iterable[FileDescriptor] = ()) -> None:
        served = list(services)
        self.services = sorted(service.full_name for service in served)
        self._files: dict[str, FileDescriptor] = {}
        self._symbols: dict[str, str] = {}
        self._closures: dict[str, tuple[bytes, ...]] = {}
        for file in (*(service.file for service in served), *also):
            self._take(file)

    def file_named(self, name: str) -> Sequence[bytes] | None:
        """The file of that name followed by all it imports, serialized; None if it describes nothing served here."""
        file = self._files.get(name)
        if file is None:
            return None
        if name not in self._closures:
            found: dict[str, bytes] = {}
            _gather(file, found)
            self._closures[name] = tuple(found.values())
        return self._closures[name]

    def file_of(self, symbol: str) -> Sequence[bytes] | None:
        """As `file_named`, for the file that defines a service, method, message, field, enum or enum value."""
        name = self._symbols.get(symbol)
        return None if name is None else self.file_named(name)

    def is_message(self, name: str) -> bool:
        """Whether there is a message of that full name."""
        home = self._files.get(self._symbols.get(name, ""))
        return home is not None and any(
            found.full_name == name for found in _messages(home.message_types_by_name.values())
        )

    def _take(self, file: FileDescriptor) -> None:
        name = _public_name(file.name)
        if name in self._files:
            return
        self._files[name] = file
        for symbol in _symbols(file):
            self._symbols[symbol] = name
        for needed in file.dependencies:
            self._take(needed)


class Reflection:
    """Serves both versions. `drain` ends every dialogue. Belongs to the event loop's thread."""

    def __init__(
        self,
        services: Iterable[ServiceDescriptor],
        also: Iterable[FileDescriptor] = (),
        *,
        seconds: float = DIALOGUE_SECONDS,
    ) -> None:
        self._catalogue = Catalogue([*services, *SERVICES], also)
        self._seconds = seconds
        self._waiting: set[asyncio.Timeout] = set()
        self._open = 0
        self._draining = False

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """For the gRPC server behind the front door."""
        return [handlers(service, self) for service in SERVICES]

    def drain(self) -> None:
        """Shut down: end every dialogue now."""
        self._draining = True
        for scope in self._waiting:
            scope.reschedule(asyncio.get_running_loop().time())

    async def ServerReflectionInfo(self, requests: AsyncIterator[Any], _context: Any) -> AsyncGenerator[Any, None]:
        """An answer to each question, in order."""
        if self._open >= MOST_DIALOGUES:
            raise Exhausted("too many of these calls are open; try again in a minute")
        self._open += 1
        try:
            async with aclosing(self._answers(requests)) as answers:
                async for answer in answers:
                    yield answer
        finally:
            self._open -= 1

    async def _answers(self, requests: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        end = asyncio.get_running_loop().time() + self._seconds
        for _ in range(MOST_QUESTIONS):
            request = await self._next(requests, end)
            if request is None:
                return
            yield _answer(self._catalogue, request)
        raise Exhausted(f"{MOST_QUESTIONS} questions are enough for one call; make another")

    async def _next(self, requests: AsyncIterator[Any], end: float) -> Any:
        """The next question, None after the last. The wait has an end, and `drain` moves it to the present."""
        self._refuse_when_draining()
        scope = asyncio.timeout_at(end)
        self._waiting.add(scope)
        try:
            async with scope:
                return await anext(requests, None)
        except TimeoutError:
            self._refuse_when_draining()
            raise Unavailable("this call has lasted long enough; make another") from None
        finally:
            self._waiting.discard(scope)

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise Unavailable("restarting")


def _answer(catalogue: Catalogue, request: Any) -> Any:
    """The response to one request, in the request's own version."""
    kind = GetMessageClass(request.DESCRIPTOR.file.message_types_by_name["ServerReflectionResponse"])
    response = kind(valid_host=request.host, original_request=request)
    wanted = request.WhichOneof("message_request")
    fill = _QUESTIONS.get(wanted)
    if fill is None:
        _refuse(response, _INVALID_ARGUMENT, "the request asks nothing")
    else:
        fill(catalogue, getattr(request, wanted), response)
    return response


def _list(catalogue: Catalogue, _asked: str, response: Any) -> None:
    response.list_services_response.SetInParent()
    for name in catalogue.services:
        response.list_services_response.service.add(name=name)


def _by_name(catalogue: Catalogue, name: str, response: Any) -> None:
    _files(response, catalogue.file_named(name), "no such file describes a service that is served here")


def _by_symbol(catalogue: Catalogue, symbol: str, response: Any) -> None:
    _files(response, catalogue.file_of(symbol), "no service that is served here has or uses this symbol")


def _by_extension(_catalogue: Catalogue, _asked: Any, response: Any) -> None:
    _refuse(response, _NOT_FOUND, "the services that are served here use no extensions")


def _extensions_of(catalogue: Catalogue, name: str, response: Any) -> None:
    if catalogue.is_message(name):
        response.all_extension_numbers_response.base_type_name = name
    else:
        _refuse(response, _NOT_FOUND, "no service that is served here uses this message")


_QUESTIONS: Final[dict[str | None, Callable[[Catalogue, Any, Any], None]]] = {
    "list_services": _list,
    "file_by_filename": _by_name,
    "file_containing_symbol": _by_symbol,
    "file_containing_extension": _by_extension,
    "all_extension_numbers_of_type": _extensions_of,
}


def _files(response: Any, found: Sequence[bytes] | None, missing: str) -> None:
    if found is None:
        _refuse(response, _NOT_FOUND, missing)
    else:
        response.file_descriptor_response.file_descriptor_proto.extend(found)


def _refuse(response: Any, code: int, text: str) -> None:
    response.error_response.error_code = code
    response.error_response.error_message = text


def _public_name(name: str) -> str:
    return name.removeprefix(_OWN_FOLDER)


def _gather(file: FileDescriptor, found: dict[str, bytes]) -> None:
    """`file`, then all that it imports, each once."""
    name = _public_name(file.name)
    if name in found:
        return
    message = FileDescriptorProto()
    file.CopyToProto(message)
    message.name = name
    message.dependency[:] = [_public_name(one) for one in message.dependency]
    found[name] = message.SerializeToString(deterministic=True)
    for needed in file.dependencies:
        _gather(needed, found)


def _symbols(file: FileDescriptor) -> Iterable[str]:
    for service in file.services_by_name.values():
        yield service.full_name
        yield from (method.full_name for method in service.methods)
    enums = list(file.enum_types_by_name.values())
    for message in _messages(file.message_types_by_name.values()):
        yield message.full_name
        yield from (field.full_name for field in message.fields)
        yield from (oneof.full_name for oneof in message.oneofs)
        enums += message.enum_types
    for enum in enums:
        yield enum.full_name
        yield from _values(enum)


def _messages(messages: Iterable[Descriptor]) -> Iterable[Descriptor]:
    for message in messages:
        yield message
        yield from _messages(message.nested_types)


def _values(enum: EnumDescriptor) -> Iterable[str]:
    """Values stand beside their enum, not in it (as in C++)."""
    scope = enum.full_name.rpartition(".")[0]
    return (f"{scope}.{value.name}" if scope else value.name for value in enum.values)
