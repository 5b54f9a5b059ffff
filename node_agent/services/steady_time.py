"""A line of time that only goes forward: no jump of the wall clock makes a storm of renewals or stops them.

Deadlines are kept in seconds on this line. It follows the monotonic clock, and when the wall clock leaps ahead of it
(the machine slept, or its clock was set forward) the line leaps too, so that what became due meanwhile is done at
once. When the wall clock is set back the line goes on as before (reliability R17 to R19).
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime

from spiffe_core.clock import Clock

log = logging.getLogger(__name__)

_TOLERANCE = 2.0
_WORTH_A_WORD = 60.0
"""A jump of so many seconds is told to the operator: certificates soon seem to be out of their time."""
_SLICE = 5.0
"""Waits are cut to this length: a timer of the event loop does not see the machine sleep."""


class SteadyTime:
    """Seconds that never go back, and how a wall-clock moment lies on that line now."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._leaped = 0.0
        self._offset = self._wall() - clock.monotonic()

    def now(self) -> float:
        """The present on the line."""
        drift = self._wall() - self._clock.monotonic() - self._offset
        if abs(drift) > _TOLERANCE:
            self._offset += drift
            self._leaped += max(drift, 0.0)
            if abs(drift) > _WORTH_A_WORD:
                text = "clock jump: this machine's clock moved by %+.0f s and shows %s (or the machine slept)"
                log.warning(text, drift, f"{self._clock.now():%Y-%m-%dT%H:%M:%SZ}")
        return self._clock.monotonic() + self._leaped

    def peek(self) -> float:
        """The present on the line, for any thread: what leapt since `now` was last asked counts, and is not noted."""
        drift = self._wall() - self._clock.monotonic() - self._offset
        return self._clock.monotonic() + self._leaped + (drift if drift > _TOLERANCE else 0.0)

    def monotonic(self) -> float:
        """The monotonic clock, for what only measures."""
        return self._clock.monotonic()

    def at(self, moment: datetime) -> float:
        """Where a wall-clock moment lies, going by the wall clock as it is now."""
        return self.now() + (moment - self._clock.now()).total_seconds()

    def wall_seconds(self) -> int:
        """The wall clock, in unix seconds."""
        return int(self._wall())

    async def wait(self, until: float | None, wake: asyncio.Event, *, keep: bool = False) -> None:
        """Return when the line reaches `until` (None: some seconds) or `wake` is set, or sooner.

        `wake` is cleared unless `keep` says that the caller will. Others get a turn in any case: whoever asks again and
        again for a moment that has passed wastes time, and does not stop the process.
        """
        seconds = _SLICE if until is None else min(max(until - self.now(), 0.0), _SLICE)
        if wake.is_set() or seconds <= 0:
            await asyncio.sleep(0)
        else:
            try:
                async with asyncio.timeout(seconds):
                    await wake.wait()
            except TimeoutError:
                return
        if not keep:
            wake.clear()

    def _wall(self) -> float:
        return self._clock.now().timestamp()
