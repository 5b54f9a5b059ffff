"""How far one name is from another, for "did you mean".

Levenshtein's distance with neighbours swapped as one step (optimal string alignment), and a limit that bounds the work.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

LONGEST: Final = 512
"""Longer names are not compared."""
_SHARE: Final = 3
"""A name is close to another if about one in so many characters differs at most: `lable` is to `label`."""

_FARTHEST: Final = 8
"""However long a name is, so many characters differ at most: two random names of one shape are not close."""


def edit_distance(left: str, right: str, limit: int) -> int | None:
    """How many characters to put in, take out, replace or swap; None if more than `limit`, or a name is too long.

    Only the band of `limit` around the diagonal is looked at, and nothing more once two rows are beyond it.
    """
    if abs(len(left) - len(right)) > limit or max(len(left), len(right)) > LONGEST:
        return None
    start = 0
    shorter = min(len(left), len(right))
    while start < shorter and left[start] == right[start]:
        start += 1
    left, right = left[start:], right[start:]
    while left and right and left[-1] == right[-1]:
        left, right = left[:-1], right[:-1]
    beyond = limit + 1
    before: list[int] = []
    row = [at if at <= limit else beyond for at in range(len(right) + 1)]
    for above, letter in enumerate(left, 1):
        first, last = max(1, above - limit), min(len(right), above + limit)
        new = [beyond] * (len(right) + 1)
        if above <= limit:
            new[0] = above
        for at in range(first, last + 1):
            change = row[at - 1] + (letter != right[at - 1])
            new[at] = min(change, row[at] + 1, new[at - 1] + 1, beyond)
            if before and at > 1 and left[above - 2] == right[at - 1] and left[above - 1] == right[at - 2]:
                new[at] = min(new[at], before[at - 2] + 1)
        before, row = row, new
        if min(row) >= beyond and min(before) >= beyond:
            return None
    return row[-1] if row[-1] <= limit else None


def closest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate nearest to `name`, the first of equals; None if none is close. Capitals hardly count."""
    limit = min(max(1, (len(name) + 1) // _SHARE), _FARTHEST)
    best, plain = None, name.lower()
    for candidate in candidates:
        apart = edit_distance(plain, candidate.lower(), limit)
        if apart is not None and (best is None or apart <= limit):
            best, limit = candidate, apart - 1
            if limit < 0:
                break
    return best
