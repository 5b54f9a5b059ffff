"""Telling a program that its files are new: a command without a shell, or a signal to the process in a pid file."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from spiffe_core.errors import Unavailable

_MAX_PID_BYTES = 32
_MAX_OUTPUT = 2000
_NOBODY = 2**22 + 1
"""No process has this number: 0 and less would be a whole group."""


async def run_command(words: Sequence[str], seconds: float) -> None:
    """Run a command and wait for it.

    Raises:
        Unavailable: it could not be started, failed, or did not end in time (it is killed then).
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        raise Unavailable(f"{words[0]}: could not be started: {error.strerror}") from None
    try:
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise Unavailable(f"{words[0]}: did not end within {seconds:g} s and was killed") from None
    if process.returncode:
        text = output[-_MAX_OUTPUT:].decode(errors="replace").strip()
        raise Unavailable(f"{words[0]}: ended with exit code {process.returncode}: {text}")


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
