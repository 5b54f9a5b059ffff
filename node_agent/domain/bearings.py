"""How much of the server's history this agent has seen: the newest position that any server told it (architecture A8).

Every call carries it, so that a server which is behind the one that told it waits, instead of answering from a past in
which this agent, its certificate or its entries do not exist yet.
"""

from __future__ import annotations

from typing import Final

_PARTS: Final = 3


def _place(text: str) -> tuple[int, int] | None:
    """(epoch, revision) of a position; None for anything else."""
    parts = text.split(".")
    if len(parts) != _PARTS or not text.isascii() or not all(part.isdecimal() for part in parts):
        return None
    return int(parts[0]), int(parts[1])


def newer(known: str, told: str, carried: str) -> str:
    """What is known once an answer to a call that carried `carried` has `told` the server's position.

    A server that answers from before what the call carried has looked: the database itself is not that far, since it
    was restored from a backup or lost its last revisions. What it tells counts then.
    """
    was, now, asked = _place(known), _place(told), _place(carried)
    if now is None:
        return known
    if was is None or now > was or (asked is not None and now < asked and known == carried):
        return told
    return known


class Bearings:
    """The newest position. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self.newest = ""

    def told(self, position: str, carried: str = "") -> None:
        """A server said where it is, in answer to a call that carried a position."""
        self.newest = newer(self.newest, position, carried)

    def reset(self, position: str = "") -> None:
        """What the push stream says counts as it stands; an agent that joins anew has seen nothing."""
        self.newest = position
