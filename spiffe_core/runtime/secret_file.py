"""Secrets that an operator or another program puts into a file: read anew whenever they are needed.

Files are followed through symbolic links, which is how Kubernetes and template tools replace them. Messages name the
setting and the path and never quote what was read.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from spiffe_core.errors import ConfigError

OTHERS = 0o007
"""Access by everybody."""


def read_secret(path: Path, *, field: str, max_bytes: int, others_may_read: bool = False) -> str:
    """The text in a file without the line ends that follow it.

    Raises:
        ConfigError: with `field`, naming the path: it cannot be read, is empty, too large, not text, or open to
            everybody.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{field}: {path} is not a regular file", field=field)
            if status.st_mode & OTHERS and not others_may_read:
                raise ConfigError(
                    f"{field}: {path} holds a secret and has mode {stat.S_IMODE(status.st_mode):04o}; chmod 0600 it",
                    field=field,
                )
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"{field}: {path} cannot be read: {error.strerror}", field=field) from None
    if not 0 < len(data) <= max_bytes:
        raise ConfigError(f"{field}: {path} must have 1 to {max_bytes} bytes", field=field)
    try:
        return data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{field}: {path} is not text", field=field) from None
