"""The sequence number of our published bundle never goes back, whatever happens to the database (TDB-06, decision D19).

Each change of the bundle adds one in the database, which all servers share. A restored backup brings a lower number
back, though. What was published last is therefore also written down beside the server, with the time; when the two do
not agree, or the server cannot know what happened, the bundle gets the unix time as its number before it is published.
Numbers that began as the time stay below it, changes being fewer than seconds; so that number is above all before it.
"""

from __future__ import annotations

from dataclasses import dataclass

AWAY_SECONDS = 3_600
"""For longer than this a server must not have been away to take the database's word."""
CONFIRM_SECONDS = 600
"""So often it is written down that the number still stands."""


@dataclass(frozen=True, slots=True)
class Published:
    """The highest sequence number this server has published, and when that was last true, in unix seconds."""

    sequence: int
    seen_at: int


def sequence_to_publish(stored: int, last: Published | None, now: int) -> int:
    """The number the bundle must have to be published: `stored`, or a higher one to be stored first."""
    if last is not None and last.sequence <= stored and now - last.seen_at <= AWAY_SECONDS:
        return stored
    return max(stored + 1, last.sequence + 1 if last is not None else 0, now)
