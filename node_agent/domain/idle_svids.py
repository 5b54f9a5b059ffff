"""SVIDs that are held and that nobody follows: at most so many, shared out so that no workload can fill the place.

An SVID someone follows is never given up and takes none of this room. One that is left behind belongs to who left it;
one that was fetched ahead belongs to nobody. When there are too many, the holder that has the most gives up the one it
left longest ago. So a holder with no more than its fair share loses nothing, however many others leave behind, and a
workload that matches thousands of entries cannot push out everybody else's (spire_features section 16.5: SPIRE's
`x509_svid_cache_max_size`, which a single stream can use up).
"""

from __future__ import annotations

from collections import OrderedDict

from spiffe_core.selectors import Selector

Holder = frozenset[Selector] | None
"""Who left it: a set of selectors, or None for what was fetched ahead."""


class IdleSvids:
    """Entry ids by holder. Every operation takes constant time."""

    def __init__(self, most: int) -> None:
        if most < 0:
            raise ValueError("most: is not negative")
        self._most = most
        self._holder: dict[str, Holder] = {}
        self._left: dict[Holder, OrderedDict[str, None]] = {}
        self._by_size: dict[int, OrderedDict[Holder, None]] = {}
        self._largest = 0

    def __len__(self) -> int:
        return len(self._holder)

    def __contains__(self, entry_id: object) -> bool:
        return entry_id in self._holder

    def leave(self, entry_id: str, holder: Holder) -> None:
        """Nobody follows this one any more; it counts as used just now. What was there already stays where it is."""
        if entry_id in self._holder:
            return
        self._holder[entry_id] = holder
        left = self._left.setdefault(holder, OrderedDict())
        left[entry_id] = None
        self._resized(holder, len(left) - 1, len(left))

    def take(self, entry_id: str) -> None:
        """Somebody follows it, or it is not held any longer; one that is not idle is passed over."""
        if entry_id not in self._holder:
            return
        holder = self._holder.pop(entry_id)
        left = self._left[holder]
        del left[entry_id]
        if not left:
            del self._left[holder]
        self._resized(holder, len(left) + 1, len(left))

    def overflow(self) -> list[str]:
        """Take out what is too many; the ids, in the order in which they are given up."""
        given_up: list[str] = []
        while len(self._holder) > self._most:
            holder = next(iter(self._by_size[self._largest]))
            given_up.append(next(iter(self._left[holder])))
            self.take(given_up[-1])
        return given_up

    def clear(self) -> None:
        """Forget everything."""
        self._holder.clear()
        self._left.clear()
        self._by_size.clear()
        self._largest = 0

    def _resized(self, holder: Holder, before: int, after: int) -> None:
        """Keep holders by how many they have, and the largest number known."""
        if before:
            same = self._by_size[before]
            del same[holder]
            if not same:
                del self._by_size[before]
        if after:
            self._by_size.setdefault(after, OrderedDict())[holder] = None
        if after > self._largest or self._largest not in self._by_size:
            self._largest = after
