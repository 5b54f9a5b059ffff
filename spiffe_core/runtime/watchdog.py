"""Watches the event loop from a thread of its own: a loop that is held up serves nobody (architecture A7, R16).

Theory of operation. The thread asks the loop for a sign of life and waits for it. If none comes within a second it logs
where the loop's thread stands (functions and lines, no values); after five seconds the loop counts as blocked until it
answers. `lag` and `blocked` may be read by any thread, so that a health page served by another thread tells the truth
while the loop cannot.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType

log = logging.getLogger(__name__)

BEAT_SECONDS = 0.25
SLOW_SECONDS = 1.0
BLOCKED_SECONDS = 5.0
_SECOND_LOOK_SECONDS = 0.05
"""After a pause of the whole process both threads wake at once; the loop gets this moment before it is accused."""
_STACK_FRAMES = 24


class Watchdog:
    """Start it on the loop that is to be watched; `close` may be called from anywhere."""

    def __init__(
        self,
        monotonic: Callable[[], float],
        *,
        beat: float = BEAT_SECONDS,
        slow: float = SLOW_SECONDS,
        blocked: float = BLOCKED_SECONDS,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._monotonic = monotonic
        self._beat, self._slow, self._blocked = beat, slow, blocked
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched = 0
        self._answered = threading.Event()
        self._closing = threading.Event()
        self._alive = alive
        """Called on the watching thread each time the loop has answered."""
        self._thread: threading.Thread | None = None
        self._asked_at: float | None = None
        self._last_lag = 0.0
        self.blocks = 0
        """How often the loop was held up for longer than `slow`."""

    @property
    def lag(self) -> float:
        """How long the loop takes to answer: the last time, or so far if it has not answered yet."""
        asked_at = self._asked_at
        return self._last_lag if asked_at is None else max(self._last_lag, self._monotonic() - asked_at)

    @property
    def blocked(self) -> bool:
        """True while the loop has not answered for `blocked` seconds."""
        asked_at = self._asked_at
        return asked_at is not None and self._monotonic() - asked_at > self._blocked

    def start(self) -> None:
        """Begin to watch the running loop and the thread it runs on."""
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Watch no more. May be called twice, and without `start`."""
        self._closing.set()
        self._answered.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(self._slow)

    def _run(self) -> None:
        while not self._closing.wait(self._beat):
            self._answered.clear()
            asked_at = self._asked_at = self._monotonic()
            try:
                self._ask()
            except RuntimeError:  # the loop is closed: there is nothing to watch any more
                self._asked_at = None
                return
            if not self._answered.wait(self._slow) and not self._answered.wait(_SECOND_LOOK_SECONDS):
                self._held_up(asked_at)
            self._last_lag = self._monotonic() - asked_at
            self._asked_at = None
            if not self._closing.is_set():
                self._alive()

    def _ask(self) -> None:
        assert self._loop is not None, "start() comes first"
        self._loop.call_soon_threadsafe(self._answered.set)

    def _held_up(self, asked_at: float) -> None:
        """Say where the loop hangs, once, and again when it counts as blocked; then wait for it."""
        self.blocks += 1
        self._say("the event loop is held up", asked_at, logging.WARNING)
        told = False
        while not self._answered.wait(self._beat):
            if not told and self.blocked:
                told = True
                self._say("the event loop is blocked; this process serves nobody", asked_at, logging.CRITICAL)
        if not self._closing.is_set():
            log.warning("the event loop was held up for %.1f s", self._monotonic() - asked_at)

    def _say(self, text: str, asked_at: float, level: int) -> None:
        frame = _frame_of(self._watched)
        stack = "".join(traceback.format_stack(frame, _STACK_FRAMES)) if frame is not None else ""
        facts = {"seconds": round(self._monotonic() - asked_at, 1), "stack": stack}
        log.log(level, "%s", text, extra={"facts": facts})


def _frame_of(thread: int) -> FrameType | None:
    """What a thread is at.

    A garbage collection that begins inside `sys._current_frames` can stop every thread for ever when another one is
    being started at that moment (CPython 3.11, gh-106883): it is kept from beginning.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames().get(thread)  # noqa: SLF001  # documented, and the only way
    finally:
        if collecting:
            gc.enable()
