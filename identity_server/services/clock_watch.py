"""Notices when the wall clock jumps against the monotonic one (R17, R18)."""

from __future__ import annotations

from identity_server.domain.rotation import clock_jump
from spiffe_core.clock import Clock


class ClockWatch:
    """Remembers when it looked last. One for each who acts on what it says."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._looked: tuple[float, float] | None = None

    def look(self) -> float:
        """By how many seconds the wall clock jumped since the last look, 0.0 if it did not."""
        wall, monotonic = self._clock.now().timestamp(), self._clock.monotonic()
        before, self._looked = self._looked, (wall, monotonic)
        return 0.0 if before is None else clock_jump(wall - before[0], monotonic - before[1])
