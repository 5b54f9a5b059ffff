"""Addresses in the agent's settings: servers, hosts and the paths of Unix sockets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

from spiffe_core.runtime.settings import FilePath, parsed_by
from spiffe_core.spiffe_id import SpiffeId

MAX_SOCKET_PATH_BYTES = 107
"""`sockaddr_un.sun_path` holds 108 bytes, the last one zero."""
LARGEST_PORT = 65535
MAX_SERVERS = 32
_HOST = re.compile(r"[A-Za-z0-9_.:-]{1,253}")
_WITH_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+)):([0-9]{1,5})")


def _host(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise ValueError('must be a host name or an IP address, for example "identity.example.org"')
    return text


def server_address(text: str, port: int) -> tuple[str, int]:
    """A host name or an IP address, with `port` unless it names its own: `HOST:PORT`, `[IPV6]:PORT`."""
    found = _WITH_PORT.fullmatch(text)
    host = text if found is None else found[1] or found[2]
    port = port if found is None else int(found[3])
    if not 1 <= port <= LARGEST_PORT:
        raise ValueError(f"{text}: the port must lie between 1 and {LARGEST_PORT}")
    return _host(host), port


def _listed(value: object) -> object:
    """One text, which may hold several addresses with commas between them, or a list."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return tuple(value) if isinstance(value, list) else value


def _servers(texts: tuple[str, ...]) -> tuple[str, ...]:
    if not 0 < len(texts) <= MAX_SERVERS:
        raise ValueError(f"must name between 1 and {MAX_SERVERS} servers")
    for text in texts:
        server_address(text, LARGEST_PORT)
    return texts


def _one_or_all(texts: tuple[str, ...]) -> str | tuple[str, ...]:
    return texts[0] if len(texts) == 1 else texts


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def _socket(path: Path) -> Path:
    size = len(str(_absolute(path)).encode())
    if size > MAX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"is {size} bytes long and Unix socket paths end at {MAX_SOCKET_PATH_BYTES}; choose a shorter directory"
        )
    return path


Host = Annotated[str, AfterValidator(_host)]
AbsolutePath = Annotated[FilePath, AfterValidator(_absolute)]
SocketPath = Annotated[FilePath, AfterValidator(_socket)]
Delegate = Annotated[SpiffeId, parsed_by(SpiffeId.parse), PlainSerializer(str)]
ServerAddresses = Annotated[
    tuple[str, ...], BeforeValidator(_listed), AfterValidator(_servers), PlainSerializer(_one_or_all)
]
