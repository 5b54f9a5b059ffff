"""How old revisions are, learnt by looking: the log itself holds no times."""

from __future__ import annotations

from collections import deque

MARKS = 1_000


class LogAge:
    """Remembers where the head stood at some moments. Forgotten at a restart, which only prunes later."""

    __slots__ = ("_marks",)

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque(maxlen=MARKS)

    def note(self, now: float, revision: int) -> None:
        """At monotonic time `now` the head stood at `revision`."""
        self._marks.append((now, revision))

    def newest_before(self, moment: float) -> int:
        """The newest revision known to be older than `moment`; 0 if none is."""
        return max((revision for seen, revision in self._marks if seen <= moment), default=0)
