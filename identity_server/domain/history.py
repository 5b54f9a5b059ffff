"""Where a database stands in its history, and what it means when that is not the history a server knew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from identity_server.domain.authority import Authority
from spiffe_core.bundle import TrustBundle

MAX_POSITION_TEXT = 64
_POSITION_PARTS = 3


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A point in the history of the database: (epoch, revision, token).

    The token is random per revision, so a position of another history (a restored backup, a lost suffix after a
    fail-over) is never mistaken for one of this history.
    """

    epoch: int
    revision: int
    token: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.revision}.{self.token}"

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """The position written as `text`; None if it is none."""
        parts = text.split(".") if len(text) <= MAX_POSITION_TEXT and text.isascii() else []
        if len(parts) != _POSITION_PARTS or not all(part.isdecimal() for part in parts):
            return None
        return cls(*map(int, parts))


BEGINNING: Final = Position(0, 0, 0)
"""Before the first change."""


@dataclass(frozen=True, slots=True)
class HistoryChange:
    """The database's history is not the one this server knew: a restored backup, or a fail-over that lost a suffix.

    What was acknowledged between the two positions may be gone. Active roots must be published again before anything
    is signed, and a person must be told.
    """

    reason: str
    before: Position
    after: Position
    proven: bool
    """True if this server found it out itself, and begins the new history; False if it met one that was begun."""
    authorities: tuple[Authority, ...] = ()
    """This server's authorities as they stood before."""
    bundle: TrustBundle | None = None
    """The own trust bundle as it stood before."""
