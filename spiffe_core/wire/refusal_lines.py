"""Which refused connections get a line in the log: enough for a person, too few for a stranger to fill a disk with."""

from __future__ import annotations

from typing import Final

LINES: Final = 20
"""So many of one listener in a window, whoever they are about."""
WINDOW_SECONDS: Final = 60.0


class RefusalLines:
    """A line in a window for each address (of IPv6, each /64), and `most` for all. What is left out is counted."""

    def __init__(self, *, most: int = LINES, seconds: float = WINDOW_SECONDS) -> None:
        self._most, self._seconds = most, seconds
        self._until = float("-inf")
        self._written = 0
        self._told: set[str] = set()
        self._unsaid = 0

    def room(self, network: str, now: float) -> int | None:
        """None if nothing is to be written; else how many were left out since the last line.

        "" stands for whoever has no address: processes of this machine, of whom the window's lines are the only bound.
        """
        if now >= self._until:
            self._until = now + self._seconds
            self._written = 0
            self._told.clear()
        if self._written >= self._most or network in self._told:
            self._unsaid += 1
            return None
        self._written += 1
        if network:
            self._told.add(network)
        unsaid, self._unsaid = self._unsaid, 0
        return unsaid
