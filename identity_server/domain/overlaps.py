"""Entries of one parent that meet in one workload: the same selectors, or one's selectors among the other's.

Each entry stands under the selector of its own that the fewest have. An entry whose selectors are among those of
another one is found there, so an entry is compared with those under its own selectors only. The whole is bounded by
`MAX_COMPARISONS`; what is beyond it is not compared, and said so.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from spiffe_core.entry import RegistrationEntry
from spiffe_core.selectors import Selector

MAX_COMPARISONS: Final = 5_000_000
MOST_TOLD: Final = 3
"""So many others are told of one entry."""


class Relation(enum.Enum):
    """How an entry stands to another one of the same parent."""

    SAME = "same"
    """The same selectors, another SPIFFE ID."""
    SHADOWED = "shadowed"
    """The other asks for less and gives the same SPIFFE ID."""
    OVERLAP = "overlap"
    """The other asks for less and gives another SPIFFE ID."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """`entry` as it stands to `other`."""

    entry: RegistrationEntry
    other: RegistrationEntry
    relation: Relation


class Overlaps:
    """The entries of one parent, in the order given."""

    def __init__(self, entries: Iterable[RegistrationEntry]) -> None:
        self._given = given = list(entries)
        common = Counter(selector for entry in given for selector in entry.selectors)
        self._under: dict[Selector, list[RegistrationEntry]] = {}
        self._same: dict[frozenset[Selector], list[RegistrationEntry]] = {}
        for entry in given:
            rarest = min(entry.selectors, key=lambda one: (common[one], one))
            self._same.setdefault(entry.selectors, []).append(entry)
            if len(self._same[entry.selectors]) <= MOST_TOLD + 1:  # of very many equals the first are enough
                self._under.setdefault(rarest, []).append(entry)
        self._left = MAX_COMPARISONS
        self.gave_up = False

    def of(self, entry: RegistrationEntry, *, both: bool = False) -> list[Overlap]:
        """What is to be said of `entry`, at most `MOST_TOLD` things.

        Of two with the same selectors the one with the greater id is told of. `both`: also what is to be said of others
        because of this entry; for a few entries, because each is compared with all.
        """
        found = islice(chain(self._found(entry, both=both), self._because_of(entry) if both else ()), MOST_TOLD)
        return list(found)

    def _because_of(self, entry: RegistrationEntry) -> Iterator[Overlap]:
        for other in self._given:
            if entry.selectors < other.selectors and not _told_apart(entry, other):
                same = other.spiffe_id == entry.spiffe_id
                yield Overlap(other, entry, Relation.SHADOWED if same else Relation.OVERLAP)

    def _found(self, entry: RegistrationEntry, *, both: bool) -> Iterator[Overlap]:
        for other in self._same[entry.selectors][: MOST_TOLD + 1]:
            if (both or other.id < entry.id) and other.spiffe_id != entry.spiffe_id and not _told_apart(entry, other):
                yield Overlap(entry, other, Relation.SAME)
        for selector in sorted(entry.selectors):
            candidates = self._under.get(selector, ())
            if self._left < len(candidates):
                self.gave_up = True
                return
            self._left -= len(candidates)
            for other in candidates:
                if other.selectors < entry.selectors and not _told_apart(entry, other):
                    same = other.spiffe_id == entry.spiffe_id
                    yield Overlap(entry, other, Relation.SHADOWED if same else Relation.OVERLAP)


def _told_apart(one: RegistrationEntry, other: RegistrationEntry) -> bool:
    """Whether this is meant: workloads choose by hint, an SVID differs, or what is not served as one does not meet."""
    if one.store_svid != other.store_svid or (one.hint and other.hint and one.hint != other.hint):
        return True
    return one.spiffe_id == other.spiffe_id and _svid_of(one) != _svid_of(other)


def _svid_of(entry: RegistrationEntry) -> tuple[object, ...]:
    return (
        entry.x509_svid_ttl,
        entry.jwt_svid_ttl,
        entry.dns_names,
        entry.federates_with,
        entry.hint,
        entry.jwt_svid_include_jti,
    )
