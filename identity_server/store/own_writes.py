"""What the writer of this process has just written, for the follower of this process.

Theory of operation. The writer knows from which position to which its transaction moves the log, and the content of
most of what it writes. It leaves that here *before* COMMIT. The follower reads the head as ever; if the way from its
own position to that head consists of such transactions and of nothing else, the log in between and the rows need not
be read again. Positions are compared whole, tokens included, and a token is random for each revision: a transaction
that was rolled back, repeated, lost by a restore or overtaken by another server's is simply no part of the way.

What is left here is bounded: a follower that is too far behind reads the log.
"""

from __future__ import annotations

import threading
from typing import Final

from identity_server.domain.history import Position

MAX_SUBJECTS: Final = 10_000
"""So many changed subjects are kept at the most; with more, all are forgotten."""


class Unread:
    """In the place of a subject's content: it has to be read."""


UNREAD: Final = Unread()
Subject = tuple[int, bytes]
Changes = dict[Subject, object]
"""What became of each subject: its value, None if it was deleted, or UNREAD."""


class OwnWrites:
    """Transactions by the position they lead to. The writer adds, the follower takes, each on a thread of its own."""

    def __init__(self, most: int = MAX_SUBJECTS) -> None:
        self._most = most
        self._steps: dict[Position, tuple[Position, Changes]] = {}
        self._subjects = 0
        self._guard = threading.Lock()

    def add(self, before: Position, after: Position, changes: Changes) -> None:
        """A transaction is about to be committed. Never call it for one whose log has gaps in `changes`."""
        with self._guard:
            if self._subjects + len(changes) > self._most:
                self._forget()
            if len(changes) > self._most:
                return
            self._steps[after] = (before, changes)
            self._subjects += len(changes)

    def take(self, known: Position, head: Position) -> Changes | None:
        """Everything that was changed on the way from `known` to `head`; None if it must be read from the log.

        Whatever is not newer than `head` is forgotten.
        """
        with self._guard:
            way: list[Changes] = []
            at = head
            while at != known:
                step = self._steps.pop(at, None)
                if step is None:
                    break
                at, changes = step
                way.append(changes)
            newer = {after: step for after, step in self._steps.items() if after.revision > head.revision}
            self._forget()
            for after, step in newer.items():
                self._steps[after] = step
                self._subjects += len(step[1])
        if at != known:
            return None
        merged: Changes = {}
        for changes in reversed(way):
            merged.update(changes)
        return merged

    def _forget(self) -> None:
        self._steps.clear()
        self._subjects = 0
