"""Where audit lines go: a file, or standard output, whose reader may be slow or gone and must not hold the server up.

A pipe or a socket is asked before each portion whether it takes one, so that no write waits: it is given a moment in
all, however its reader drips, and none any more until it has room by itself. A line of which a part went out is ended
before anything else is written: whoever reads finds whole lines only.
"""

from __future__ import annotations

import os
import select
import stat
import time
from pathlib import Path
from typing import Final

from spiffe_core.errors import ConfigError

STALL_SECONDS: Final = 0.5
"""So long a reader that has kept up may take to make room, over all portions together."""
STDOUT: Final = 1


class CutShort(OSError):
    """Not all was written. `lines`: how many lines went out, or will be ended; `stalled`: nobody reads just now."""

    def __init__(self, reason: str, *, lines: int, stalled: bool) -> None:
        super().__init__(reason)
        self.lines, self.stalled = lines, stalled


class AuditOutput:
    """An open file, or standard output if `path` is None. One thread at a time may use it.

    Raises:
        ConfigError: the file cannot be opened.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor = STDOUT if path is None else _open(path)
        self._asked = not stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._patience = STALL_SECONDS
        """What is left of it; full again once something was written without waiting."""
        self._line, self._rest = b"", b"\n" if path is not None and _is_cut(self._descriptor) else b""
        """The line that was cut short, and what is still to be written of it."""

    def append(self, data: bytes) -> None:
        """Write whole lines.

        Raises:
            CutShort: some of it was not written.
        """
        before, patience = len(self._rest), self._patience
        view = memoryview(self._rest + data)
        done = 0
        try:
            while done < len(view):
                done += os.write(self._descriptor, self._portion(view[done:]))
        except OSError as error:
            if done < before:
                self._rest = self._rest[done:]
                lines = 0
            else:
                lines = self._cut(data, done - before)
            reason = error.strerror or str(error)
            raise CutShort(reason, lines=lines, stalled=isinstance(error, TimeoutError)) from None
        if view:
            self._line = self._rest = b""
            if self._patience == patience:
                self._patience = STALL_SECONDS

    def _cut(self, data: bytes, place: int) -> int:
        """Remember what is to be written of a line that was cut at `place`; how many lines are out by then."""
        start = data.rfind(b"\n", 0, place) + 1
        lines = data.count(b"\n", 0, place)
        if start == place:
            self._line = self._rest = b""
            return lines
        end = data.index(b"\n", place) + 1
        self._line, self._rest = data[start:end], data[place:end]
        return lines + 1

    def _portion(self, view: memoryview) -> memoryview:
        """What may be written now without waiting for whoever reads it."""
        if not self._asked:
            return view
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        if not poll.poll(0):
            started = time.monotonic()
            if self._patience <= 0 or not poll.poll(self._patience * 1000):
                self._patience = 0.0
                raise TimeoutError("nobody reads what is written there")
            self._patience -= time.monotonic() - started
        return view[: select.PIPE_BUF]  # a pipe that takes anything takes so much at once (pipe(7))

    def reopen(self) -> None:
        """Open the file anew, after it was renamed by a log rotator. Standard output stays."""
        if self._path is not None:
            old, self._descriptor = self._descriptor, _open(self._path)
            os.close(old)
            self._rest = self._line or (b"\n" if _is_cut(self._descriptor) else b"")

    def close(self) -> None:
        """Close the file; standard output stays open. May be called twice."""
        if self._path is not None and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _open(path: Path) -> int:
    """Open for appending, mode 0600; a symbolic link or something that is not a file is refused."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise ConfigError(
            f"audit.file: {path}: cannot be opened for appending: {error.strerror}", field="audit.file"
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(f"audit.file: {path}: must be a regular file", field="audit.file")
    return descriptor


def _is_cut(descriptor: int) -> bool:
    """Whether a file ends in the middle of a line: whoever wrote there before was killed on a full disk."""
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
