"""What is registered for this node: the difference of two snapshots, and who in it matches a workload.

The decision whether an entry matches is `spiffe_core.entitlement`'s. `EntryIndex` only narrows down which entries are
worth asking about: each entry stands under one of its own selectors, the one fewest entries share, because a workload
that lacks that selector cannot match.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from spiffe_core.entitlement import matching
from spiffe_core.entry import RegistrationEntry
from spiffe_core.selectors import Selector


class Stamp(NamedTuple):
    """What tells two versions of an entry apart. A deleted and re-created entry may repeat its revision (R47)."""

    revision_number: int
    created_at: int


def stamp_of(entry: RegistrationEntry) -> Stamp:
    """The version of `entry`."""
    return Stamp(entry.revision_number, entry.created_at)


@dataclass(frozen=True, slots=True)
class Listing:
    """What the server says this agent may act for.

    `present` are the ids of all of it; `entries` holds at least those that are new or differ from what was known.
    """

    present: frozenset[str]
    entries: tuple[RegistrationEntry, ...]


@dataclass(frozen=True, slots=True)
class EntryDiff:
    """How one snapshot becomes the next. `changed` pairs the old version with the new one."""

    added: tuple[RegistrationEntry, ...] = ()
    changed: tuple[tuple[RegistrationEntry, RegistrationEntry], ...] = ()
    removed: tuple[RegistrationEntry, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def touched(self) -> Iterable[RegistrationEntry]:
        """Every version of every entry that is concerned."""
        yield from self.added
        for old, new in self.changed:
            yield old
            yield new
        yield from self.removed


def to_fetch(known: Mapping[str, Stamp], seen: Mapping[str, Stamp]) -> list[str]:
    """The ids whose entry must be fetched: new ones, and those whose revision or creation time differs."""
    return sorted(entry_id for entry_id, stamp in seen.items() if known.get(entry_id) != stamp)


def merge(known: Mapping[str, RegistrationEntry], listing: Listing) -> Mapping[str, RegistrationEntry]:
    """The next snapshot: what was known and is still present, overlaid with what was fetched.

    It is `known` itself if that is all.
    """
    if not listing.entries and known.keys() <= listing.present:
        return known
    merged = {entry_id: entry for entry_id, entry in known.items() if entry_id in listing.present}
    merged.update((entry.id, entry) for entry in listing.entries if entry.id in listing.present)
    return merged


def difference(old: Mapping[str, RegistrationEntry], new: Mapping[str, RegistrationEntry]) -> EntryDiff:
    """What changed from `old` to `new`; each part in the order of entry ids."""
    added = tuple(new[entry_id] for entry_id in sorted(new.keys() - old.keys()))
    removed = tuple(old[entry_id] for entry_id in sorted(old.keys() - new.keys()))
    changed = tuple(
        (old[entry_id], new[entry_id])
        for entry_id in sorted(old.keys() & new.keys())
        if old[entry_id] is not new[entry_id] and old[entry_id] != new[entry_id]
    )
    return EntryDiff(added, changed, removed)


MOST_FOUND = 1024
"""Answers that are kept until the snapshot changes."""


class EntryIndex:
    """Finds the entries that match a set of selectors without asking every entry."""

    def __init__(self) -> None:
        self._anchor: dict[str, Selector] = {}
        self._under: dict[Selector, dict[str, RegistrationEntry]] = {}
        self._found: dict[frozenset[Selector], tuple[RegistrationEntry, ...]] = {}

    def apply(self, diff: EntryDiff) -> None:
        """Follow one change of the snapshot."""
        if diff:
            self._found.clear()
        for entry in diff.removed:
            self._drop(entry.id)
        for _, entry in diff.changed:
            self._drop(entry.id)
            self._put(entry)
        for entry in diff.added:
            self._put(entry)

    def matching(self, selectors: frozenset[Selector]) -> tuple[RegistrationEntry, ...]:
        """The entries whose selectors are all among `selectors`, in the order of their ids."""
        found = self._found.get(selectors)
        if found is None:
            candidates = [entry for selector in selectors for entry in self._under.get(selector, {}).values()]
            if len(self._found) >= MOST_FOUND:
                self._found.clear()
            found = self._found[selectors] = tuple(matching(candidates, selectors))
        return found

    def _put(self, entry: RegistrationEntry) -> None:
        anchor = min(entry.selectors, key=lambda selector: (len(self._under.get(selector, ())), selector))
        self._anchor[entry.id] = anchor
        self._under.setdefault(anchor, {})[entry.id] = entry

    def _drop(self, entry_id: str) -> None:
        anchor = self._anchor.pop(entry_id, None)
        if anchor is None:
            return
        bucket = self._under[anchor]
        del bucket[entry_id]
        if not bucket:
            del self._under[anchor]


class AudienceIndex:
    """Finds the selector sets an entry matches: the other direction of `EntryIndex`."""

    def __init__(self) -> None:
        self._having: dict[Selector, set[frozenset[Selector]]] = {}

    def add(self, audience: frozenset[Selector]) -> None:
        """Begin to follow a set of selectors."""
        for selector in audience:
            self._having.setdefault(selector, set()).add(audience)

    def discard(self, audience: frozenset[Selector]) -> None:
        """End it."""
        for selector in audience:
            having = self._having.get(selector)
            if having is not None:
                having.discard(audience)
                if not having:
                    del self._having[selector]

    def matched_by(self, entry: RegistrationEntry) -> list[frozenset[Selector]]:
        """The followed sets that hold all of the entry's selectors."""
        smallest = min((self._having.get(selector, set()) for selector in entry.selectors), key=len)
        return [audience for audience in smallest if entry.selectors <= audience]
