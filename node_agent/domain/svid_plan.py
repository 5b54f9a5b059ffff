"""Which SVID to fetch next: a priority queue of entry ids with a back-off for each.

Times are seconds on the steady line. An id is planned (`schedule`), handed out once (`take`), and planned again when
the outcome is known (`schedule` after success, `failed` after a refusal). Ids someone is waiting for go first
(`hurry`); a back-off is not hurried.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

FIRST_BACKOFF = 1.0
LONGEST_BACKOFF = 25.0
LARGEST_BATCH = 500
"""Requests in one BatchNewX509SVID call (spire_features section 16.2)."""


@dataclass(slots=True)
class _Item:
    at: float
    failures: int = 0
    taken: bool = False


class SvidPlan:
    """Due times of entry ids, earliest first."""

    def __init__(self) -> None:
        self._items: dict[str, _Item] = {}
        self._heap: list[tuple[float, str]] = []
        self._waiting: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, entry_id: object) -> bool:
        return entry_id in self._items

    def schedule(self, entry_id: str, at: float) -> None:
        """Plan (or plan anew) an id at `at`, with no failures to its name."""
        self._put(entry_id, _Item(at))

    def hasten(self, entry_id: str, at: float) -> None:
        """Make a planned id due at `at` if that is earlier.

        One that is under way, in back-off or unknown is left alone.
        """
        item = self._items.get(entry_id)
        if item is not None and not item.taken and not item.failures and at < item.at:
            self._put(entry_id, _Item(at))

    def hurry(self, entry_id: str) -> None:
        """Someone waits for this id: among what is due it goes first."""
        if entry_id in self._items and not self._items[entry_id].taken:
            self._waiting[entry_id] = None

    def drop(self, entry_id: str) -> None:
        """Forget an id."""
        self._items.pop(entry_id, None)
        self._waiting.pop(entry_id, None)

    def put_back(self, entry_id: str, at: float, *, waiting: bool = False) -> None:
        """Return an id whose request never got an answer: not its fault, so its failures stay as they are."""
        item = self._items.get(entry_id)
        if item is not None and item.taken:
            self._put(entry_id, _Item(at, item.failures))
            if waiting:
                self._waiting[entry_id] = None

    def failed(self, entry_id: str, now: float, *, jitter: float, longest: float = LONGEST_BACKOFF) -> float:
        """Plan an id anew after the server refused it; returns the seconds until then."""
        item = self._items.get(entry_id)
        if item is None:
            return 0.0
        grown = FIRST_BACKOFF * 2.0 ** min(item.failures, 20)
        wait = max(FIRST_BACKOFF, min(grown, longest, LONGEST_BACKOFF)) * (1 + 0.1 * jitter)
        self._put(entry_id, _Item(now + wait, item.failures + 1))
        return wait

    def take(self, now: float, limit: int, *, waiting_only: bool = False) -> list[str]:
        """Up to `limit` ids that are due: first those someone waits for, then the longest due."""
        taken: list[str] = []
        for entry_id in list(self._waiting):
            if len(taken) == limit:
                return taken
            item = self._items[entry_id]
            if item.at <= now:
                del self._waiting[entry_id]
                item.taken = True
                taken.append(entry_id)
        while not waiting_only and len(taken) < limit:
            at = self._earliest()
            if at is None or at > now:
                break
            _, entry_id = heapq.heappop(self._heap)
            self._items[entry_id].taken = True
            self._waiting.pop(entry_id, None)
            taken.append(entry_id)
        return taken

    def next_at(self, *, waiting_only: bool = False) -> float | None:
        """When the next id is due; None when none is planned."""
        if waiting_only:
            return min((self._items[entry_id].at for entry_id in self._waiting), default=None)
        return self._earliest()

    def _put(self, entry_id: str, item: _Item) -> None:
        self._items[entry_id] = item
        heapq.heappush(self._heap, (item.at, entry_id))
        if len(self._heap) > 64 + 4 * len(self._items):
            self._heap = [(item.at, entry_id) for entry_id, item in self._items.items() if not item.taken]
            heapq.heapify(self._heap)

    def _earliest(self) -> float | None:
        """The due time on top of the heap, once entries that were planned anew, taken or dropped are gone from it."""
        while self._heap:
            at, entry_id = self._heap[0]
            item = self._items.get(entry_id)
            if item is not None and not item.taken and item.at == at:
                return at
            heapq.heappop(self._heap)
        return None


@dataclass(slots=True)
class BatchSize:
    """How many requests to put in one call: halved when a call fails, doubled when one succeeds."""

    size: int = LARGEST_BATCH

    def call_failed(self) -> None:
        """The whole call failed: perhaps it was too large or too slow."""
        self.size = max(1, self.size // 2)

    def call_succeeded(self) -> None:
        """It worked."""
        self.size = min(LARGEST_BATCH, self.size * 2)
