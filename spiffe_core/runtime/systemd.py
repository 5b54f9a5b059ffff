"""Telling systemd how the daemon is: ready, stopping, and signs of life for its watchdog (sd_notify(3)).

A sign of life is sent only after the event loop answered, so systemd restarts a daemon whose loop hangs. Without
NOTIFY_SOCKET in the environment nothing is sent.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping

MOST_STATUS_BYTES = 200
_SHARE = 3
"""Signs of life come so many times within the time that the watchdog allows (sd_watchdog_enabled(3) asks for two)."""


class SystemdNotifier:
    """Sends datagrams to the service manager. Any thread may call it; nothing it does can fail or block."""

    def __init__(self, environ: Mapping[str, str], monotonic: Callable[[], float]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self._monotonic = monotonic
        self._pause = _watchdog_seconds(environ) / _SHARE
        self._last = float("-inf")

    def ready(self, status: str) -> None:
        """The daemon lets callers in."""
        self._send(f"READY=1\nSTATUS={_one_line(status)}\n")

    def stopping(self) -> None:
        """The daemon goes down in an orderly way."""
        self._send("STOPPING=1\nSTATUS=stopping\n")

    def alive(self) -> None:
        """The event loop has just answered; told to systemd as often as its watchdog needs it."""
        now = self._monotonic()
        if self._pause and now - self._last >= self._pause:
            self._last = now
            self._send("WATCHDOG=1\n")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(text.encode(), self._address)


def _watchdog_seconds(environ: Mapping[str, str]) -> float:
    """How long the service manager waits for a sign of life; 0 if it does not, or means another process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) / 1_000_000 if text.isascii() and text.isdigit() else 0.0


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MOST_STATUS_BYTES]
