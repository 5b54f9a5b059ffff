"""Telling a program that its files are new: a command without a shell, or a signal to the process in a pid file."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from spiffe_core.errors import Unavailable

_MAX_PID_BYTES = 32
_MAX_OUTPUT = 2000
_CHUNK = 64 * 1024
"""What a pipe holds (`man 7 pipe`)."""
_LAST_SECONDS = 2.0
"""For a command to bring to an end what it is at when nobody waits for it any more."""
_NOBODY = 2**22 + 1
"""No process has this number: 0 and less would be a whole group."""


async def run_command(words: Sequence[str], seconds: float) -> None:
    """Run a command and wait for it; what it leaves running, such as a daemon it has started, is not waited for.

    It has a process group of its own, which is killed with it when it takes too long, and asked to end before that when
    this call is cancelled.

    Raises:
        Unavailable: it could not be started, failed, or did not end in time (it is killed then).
    """
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    said = _LastWords(reading)
    try:
        os.set_blocking(writing, True)  # for the command; the other end does not wait
        try:
            process = await asyncio.create_subprocess_exec(
                *words, stdin=subprocess.DEVNULL, stdout=writing, stderr=writing, start_new_session=True
            )
        except OSError as error:
            raise Unavailable(f"{words[0]}: could not be started: {error.strerror}") from None
        finally:
            os.close(writing)
        try:
            async with asyncio.timeout(seconds):
                code = await process.wait()
        except TimeoutError:
            _end(process.pid, signal.SIGKILL)
            await process.wait()
            raise Unavailable(f"{words[0]}: did not end within {seconds:g} s and was killed") from None
        except asyncio.CancelledError:
            _end(process.pid, signal.SIGTERM)
            try:
                async with asyncio.timeout(_LAST_SECONDS):
                    await process.wait()
            except TimeoutError:
                _end(process.pid, signal.SIGKILL)
            raise
        if code:
            raise Unavailable(f"{words[0]}: ended with exit code {code}: {said.text()}")
    finally:
        said.close()


class _LastWords:
    """The end of what a command writes, read as it comes so that it never waits for us. Owns the descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._kept = b""
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def text(self) -> str:
        """What it was, once the command has ended: all the pipe holds now, for what it left running may never stop."""
        self._read()
        return self._kept.decode(errors="replace").strip()

    def close(self) -> None:
        """Read no more."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self._kept = (self._kept + data)[-_MAX_OUTPUT:]


def _end(group: int, how: signal.Signals) -> None:
    """End a command, and what it has started in its process group."""
    with suppress(ProcessLookupError):
        os.killpg(group, how)


def send_signal(name: str, pid_file: Path) -> None:
    """Signal the process whose number stands in `pid_file`.

    Raises:
        Unavailable: there is no such file, number or process.
    """
    try:
        with pid_file.open("rb") as file:
            pid = max(int(file.read(_MAX_PID_BYTES).strip()), 0)
        os.kill(pid or _NOBODY, signal.Signals[f"SIG{name}"])
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds no process number"
        raise Unavailable(f"{pid_file}: no process to signal: {reason}; is the program running?") from None
