"""Places in settings files: absolute paths, paths of Unix sockets, hosts. Both daemons check them by these rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator

from spiffe_core.runtime.settings import FilePath
from spiffe_core.runtime.unix_sockets import MAX_SOCKET_PATH_BYTES

MAX_HOST: Final = 253
_HOST = re.compile(r"[A-Za-z0-9._:-]+")


def is_host(text: str) -> bool:
    """Whether `text` has the letters of a host name or an IP address, and not too many of them."""
    return len(text) <= MAX_HOST and _HOST.fullmatch(text) is not None


def check_host(text: str) -> str:
    """Give `text` back if it may be a host; raise ValueError with the rule if not."""
    if len(text) > MAX_HOST:
        raise ValueError(f"has {len(text)} characters, and a host name has at most {MAX_HOST}")
    if not is_host(text):
        raise ValueError('must be a host name or an IP address, for example "identity.example.org" or "192.0.2.1"')
    return text


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


Host = Annotated[str, AfterValidator(check_host)]
AbsolutePath = Annotated[FilePath, AfterValidator(_absolute)]
SocketPath = Annotated[FilePath, AfterValidator(_socket)]
