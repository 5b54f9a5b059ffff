"""Workload Endpoint addresses (SPIFFE Workload Endpoint section 4): `unix:///path` or `tcp://ip:port`.

Read byte by byte, before any connection: nothing is decoded, resolved or normalised. Choices where the standard leaves
one: `unix:/path` is read like `unix:///path` and always printed in the long form; a path may not hold percent-encoding,
dot segments or empty segments, so that one socket has one address; an IPv6 zone is refused.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from spiffe_core.errors import InvalidAddress
from spiffe_core.runtime.unix_sockets import MAX_SOCKET_PATH_BYTES
from spiffe_core.spiffe_id import shown

ENVIRONMENT_VARIABLE = "SPIFFE_ENDPOINT_SOCKET"
MAX_ADDRESS_BYTES = 4096
MAX_PORT = 65535

_FIELD = "endpoint_socket"
_EXAMPLE = "unix:///run/agent/api.sock or tcp://127.0.0.1:8089"
_PORT = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket by its absolute path."""

    path: str

    def __post_init__(self) -> None:
        _check_path(self.path)

    def __str__(self) -> str:
        return f"unix://{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP endpoint by IP literal and port."""

    ip: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int

    def __post_init__(self) -> None:
        if not 0 < self.port <= MAX_PORT:
            raise _wrong(f"the port must lie between 1 and {MAX_PORT}", str(self.port))

    @property
    def is_local(self) -> bool:
        """Whether only processes of this machine can reach it."""
        return self.ip.is_loopback

    def __str__(self) -> str:
        host = f"[{self.ip}]" if self.ip.version == 6 else str(self.ip)  # noqa: PLR2004  # IPv6
        return f"tcp://{host}:{self.port}"


Address: TypeAlias = UnixAddress | TcpAddress


def parse_address(text: str) -> Address:
    """Read an address.

    Raises:
        InvalidAddress: naming the rule.
    """
    if not text:
        raise _wrong("the address is empty", text)
    if len(text) > MAX_ADDRESS_BYTES:
        raise _wrong(f"the address has more than {MAX_ADDRESS_BYTES} bytes", text)
    if text.startswith("unix:"):
        return UnixAddress(_unix_path(text))
    if text.startswith("tcp://"):
        return _tcp(text)
    if text.lower().startswith(("unix:", "tcp:")):
        raise _wrong("the scheme is written in lower case and followed by '//'", text)
    raise _wrong("the scheme must be unix or tcp", text)


def endpoint_address(explicit: str | None, environ: Mapping[str, str]) -> Address:
    """The address to use: what was configured, else SPIFFE_ENDPOINT_SOCKET.

    Raises:
        InvalidAddress: it is wrong, or there is none.
    """
    if explicit is not None:
        return parse_address(explicit)
    text = environ.get(ENVIRONMENT_VARIABLE)
    if text is None:
        raise InvalidAddress(
            f"no Workload API address: set {ENVIRONMENT_VARIABLE} to one such as {_EXAMPLE}", field=_FIELD
        )
    return parse_address(text)


def require_local(address: Address, *, allow_remote: bool = False) -> Address:
    """Refuse to serve on an address other machines can reach, unless the operator insists (Endpoint section 3).

    Raises:
        InvalidAddress: the address is not local.
    """
    if isinstance(address, TcpAddress) and not address.is_local and not allow_remote:
        raise _wrong("a Workload API served over TCP must stay on a loopback address", str(address))
    return address


def _unix_path(text: str) -> str:
    path = text.removeprefix("unix:")
    if path.startswith("//"):
        authority, slash, _ = path[2:].partition("/")
        if authority:
            raise _wrong("a unix address has no authority; write three slashes", text)
        if not slash:
            raise _wrong("the socket path is missing", text)
        path = path[2:]
    if not path.startswith("/"):
        raise _wrong("the socket path must be absolute", text)
    return path


def _check_path(path: str) -> None:
    if not path.startswith("/") or path == "/":
        raise _wrong("the socket path must be absolute and name a socket", path)
    for character, what in (("?", "query"), ("#", "fragment"), ("%", "percent-encoding")):
        if character in path:
            raise _wrong(f"a {what} is not allowed in a unix address", path)
    if not path.isprintable():
        raise _wrong("the socket path must not have control characters and be valid UTF-8", path)
    if any(segment in {"", ".", ".."} for segment in path[1:].split("/")):
        raise _wrong("the socket path must not have empty segments, '.' or '..'", path)
    if len(path.encode()) > MAX_SOCKET_PATH_BYTES:
        raise _wrong(f"a socket path has at most {MAX_SOCKET_PATH_BYTES} bytes on Linux; choose a shorter one", path)


def _tcp(text: str) -> TcpAddress:
    rest = text.removeprefix("tcp://")
    for character, what in (("/", "path"), ("?", "query"), ("#", "fragment"), ("@", "user information")):
        if character in rest:
            raise _wrong(f"a tcp address has no {what}", text)
    host, colon, port = rest.rpartition(":")
    if rest.startswith("["):
        host, bracket, tail = rest[1:].partition("]")
        colon, port = tail[:1], tail[1:]
        if not bracket or (tail and colon != ":"):
            raise _wrong("an IPv6 address stands in brackets, then ':' and the port", text)
    elif ":" in host:
        raise _wrong("an IPv6 address stands in brackets", text)
    if not colon or not port:
        raise _wrong("the port is missing", text)
    if not _PORT.fullmatch(port):
        raise _wrong(f"the port must be a number between 1 and {MAX_PORT}", text)
    if "%" in host:
        raise _wrong("an IPv6 zone is not supported", text)
    try:
        ip = ipaddress.IPv6Address(host) if rest.startswith("[") else ipaddress.IPv4Address(host)
    except ValueError:
        raise _wrong("the host must be an IP address, not a name", text) from None
    return TcpAddress(ip, int(port))


def _wrong(rule: str, text: str) -> InvalidAddress:
    return InvalidAddress(f"{_FIELD}: {rule}; use {_EXAMPLE}, got {shown(text)}", field=_FIELD)
