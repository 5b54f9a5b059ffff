"""Bounded calls over D-Bus on a Unix socket, for attestors that ask a service manager (D-Bus specification 0.43).

The messages are jeepney's; the socket, its deadlines and its bounds are ours. A connection is made
for one attestation and closed after it. Nothing is exported, no signal is subscribed to, and what was not asked for is
passed over; descriptors that the other side sends are dropped by the kernel, because none is ever received.
"""

from __future__ import annotations

import socket
import time
from array import array
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from jeepney import DBusAddress, HeaderFields, Message, MessageFlag, MessageType, new_method_call
from jeepney.auth import BEGIN, NEGOTIATE_UNIX_FD, make_auth_external
from jeepney.low_level import calc_msg_size

from spiffe_core.errors import Unavailable
from spiffe_core.runtime.unix_sockets import peer_credentials

MAX_MESSAGE = 256 * 1024
"""Largest message that is read; the specification allows 128 MiB."""
MAX_PASSED_OVER = 64
"""Messages that are not the awaited answer before the other side is given up."""
_FIRST = 16  # the part of a header that says how long the message is
_MAX_SAID = 1024
_ANSWERS = 2
_LEAST_SECONDS = 0.05
T = TypeVar("T")
_BUS = DBusAddress("/org/freedesktop/DBus", bus_name="org.freedesktop.DBus", interface="org.freedesktop.DBus")


class ErrorReply(Exception):
    """A method call was answered with an error; `name` is its D-Bus error name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Connection:
    """An authenticated connection, used by one thread. `bus`: it leads to a message bus, not to the service itself."""

    __slots__ = ("_bus", "_deadline", "_path", "_serial", "_socket", "passes_descriptors", "peer_pid")

    def __init__(self, path: str, deadline: float, *, bus: bool) -> None:
        """Connect and authenticate as this process's user. `deadline` is `time.monotonic()` seconds, for everything.

        Raises:
            Unavailable: nobody answers in time, or refuses us; says who and why.
        """
        self._path, self._deadline, self._bus = path, deadline, bus
        self._serial = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._in_time()
            self._socket.connect(path)
            self.peer_pid = peer_credentials(self._socket).pid
            self.passes_descriptors = self._authenticate()
            if bus:
                self.call(new_method_call(_BUS, "Hello"))
        except ErrorReply as error:
            self.close()
            raise Unavailable(f"{path}: refuses the agent: {error.name}") from None
        except OSError as error:
            self.close()
            raise self._failed(error) from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def call(self, message: Message) -> tuple[Any, ...]:
        """Call one method; what it returns. A descriptor in the message is duplicated into it.

        Raises:
            ErrorReply: the answer is an error.
            Unavailable: there is no answer in time, or it cannot be read.
        """
        try:
            self._serial += 1
            self._send(message, self._serial)
            for _ in range(MAX_PASSED_OVER):
                answer = self._receive()
                fields = answer.header.fields
                if fields.get(HeaderFields.reply_serial) != self._serial:
                    continue
                if answer.header.message_type is MessageType.error:
                    raise ErrorReply(str(fields.get(HeaderFields.error_name, "an error without a name")))
                return tuple(answer.body)
        except OSError as error:
            raise self._failed(error) from None
        raise Unavailable(f"{self._path}: does not answer what it was asked")

    def _send(self, message: Message, serial: int) -> None:
        message.header.flags |= MessageFlag.no_auto_start
        if not self._bus:
            message.header.fields.pop(HeaderFields.destination, None)
        descriptors = array("i")
        data = message.serialise(serial=serial, fds=descriptors)
        self._in_time()
        sent = 0
        if descriptors:
            sent = self._socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        if sent < len(data):
            self._in_time()
            self._socket.sendall(data[sent:])

    def _receive(self) -> Message:
        first = self._exactly(_FIRST)
        size = self._read(calc_msg_size, first)
        if size > MAX_MESSAGE:
            raise Unavailable(f"{self._path}: sent a message of more than {MAX_MESSAGE} bytes")
        return self._read(Message.from_buffer, first + self._exactly(size - _FIRST))

    def _read(self, parse: Callable[[bytes], T], data: bytes) -> T:
        try:
            return parse(data)
        except Exception as error:  # noqa: BLE001  # the parser raises what Python raises: KeyError, struct.error, ...
            raise Unavailable(f"{self._path}: sent a message that cannot be read", error=repr(error)) from None

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            data += self._some(size - len(data))
        return bytes(data)

    def _some(self, most: int) -> bytes:
        self._in_time()
        data = self._socket.recv(most)
        if not data:
            raise ConnectionResetError("the connection was closed")
        return data

    def _authenticate(self) -> bool:
        """Authenticate by the socket's credentials; whether descriptors can be passed.

        Everything is said at once, as sd-bus does, and both answers are awaited. systemd's own socket needs that: it
        forgets a message that arrives together with BEGIN, and hangs up on a descriptor that does.
        """
        self._in_time()
        self._socket.sendall(b"\0" + make_auth_external() + NEGOTIATE_UNIX_FD + BEGIN)
        said = b""
        while said.count(b"\r\n") < _ANSWERS and not said.startswith(b"REJECTED"):
            if len(said) > _MAX_SAID:
                raise Unavailable(f"{self._path}: is no D-Bus socket")
            said += self._some(_MAX_SAID)
        authenticated, _, descriptors = said.partition(b"\r\n")
        if not authenticated.startswith(b"OK "):
            raise Unavailable(f"{self._path}: refuses to authenticate the agent")
        return descriptors == b"AGREE_UNIX_FD\r\n"

    def _in_time(self) -> None:
        """Let the next step take no longer than what is left.

        Raises:
            Unavailable: nothing is left.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Unavailable(f"{self._path}: did not answer in time")
        self._socket.settimeout(max(left, _LEAST_SECONDS))

    def _failed(self, error: OSError) -> Unavailable:
        return Unavailable(f"{self._path}: cannot be asked: {error.strerror or str(error) or type(error).__name__}")
