"""How often a caller may ask (architecture A17): token buckets in virtual time, and a bounded, fair queue behind them.

Theory of operation. A bucket of `burst` tokens that fills at `per_second` is one number: the moment at which it will be
full again. Taking `n` tokens moves that moment by `n / per_second`; the caller waits until the moment is no further
away than a whole bucket (the generic cell rate algorithm, ITU-T I.371). So callers of one key are served in order of
arrival, callers of different keys do not touch each other, a bucket that is full is the same as none, and nothing runs
in the background.

Who would have to wait too long is refused and takes nothing. When very many wait altogether, only those keys are
refused that hold more than their share of the places.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

from spiffe_core.errors import Exhausted, TooFast

MOST_KEYS = 65_536
"""So many buckets are remembered; the one unused for longest is forgotten first."""
MOST_WAITING = 4_096
_LEAST_DELAY = 0.05


@dataclass(frozen=True, slots=True)
class Rate:
    """So many units a second, and so many at once after a rest."""

    per_second: float
    burst: int


@dataclass(frozen=True, slots=True)
class Ticket:
    """A place in the queue: how long to wait, and what was taken."""

    key: str
    units: int
    wait: float


class FairQueue:
    """Buckets by key. Every moment is an argument, from one monotonic clock."""

    def __init__(
        self, rate: Rate, *, longest_wait: float, most_waiting: int = MOST_WAITING, most_keys: int = MOST_KEYS
    ) -> None:
        self._rate = rate
        self._longest_wait = longest_wait
        self._most_waiting = most_waiting
        self._most_keys = most_keys
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._places: Counter[str] = Counter()
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """How many callers wait now."""
        return self._waiting

    @property
    def keys(self) -> int:
        """How many buckets are remembered."""
        return len(self._full_at)

    def enter(self, key: str, units: int, now: float, *, patience: float | None = None) -> Ticket:
        """Take `units` for `key`; wait as long as the ticket says, then `leave`. `patience` is the caller's own limit.

        Raises:
            Exhausted: more units than the bucket ever holds.
            TooFast: the wait would be too long, or too many wait; nothing was taken.
        """
        rate = self._rate
        if units > rate.burst:
            raise Exhausted(f"rate ({units}) exceeds burst size ({rate.burst}); send smaller batches")
        full_at = max(self._full_at.get(key, 0.0), now) + units / rate.per_second
        wait = full_at - now - rate.burst / rate.per_second
        if wait <= 0.0:
            self._remember(key, full_at)
            return Ticket(key, units, 0.0)
        limit = self._longest_wait if patience is None else min(self._longest_wait, patience)
        if wait > limit or self._crowded(key):
            raise TooFast("too many requests; try again later", retry_after=max(wait, _LEAST_DELAY))
        self._remember(key, full_at)
        self._places[key] += 1
        self._waiting += 1
        return Ticket(key, units, wait)

    def leave(self, ticket: Ticket, now: float, *, unused: bool = False) -> None:
        """Give up the place in the queue; with `unused`, also what was taken (the caller went away while waiting)."""
        if ticket.wait > 0.0:
            self._waiting -= 1
            self._places[ticket.key] -= 1
            if not self._places[ticket.key]:
                del self._places[ticket.key]
        if unused and ticket.key in self._full_at:
            full_at = self._full_at[ticket.key] - ticket.units / self._rate.per_second
            if full_at > now:
                self._full_at[ticket.key] = full_at
            else:
                del self._full_at[ticket.key]

    def charge(self, key: str, units: int, now: float) -> None:
        """Take `units` more, after the fact: later callers of this key wait for them."""
        if units > 0:
            self._remember(key, max(self._full_at.get(key, 0.0), now) + units / self._rate.per_second)

    def _crowded(self, key: str) -> bool:
        """True if the queue is full and this key has its share of it, or if it is full twice over."""
        if self._waiting < self._most_waiting:
            return False
        share = max(1, self._most_waiting // max(1, len(self._places)))
        return self._places[key] >= share or self._waiting >= 2 * self._most_waiting

    def _remember(self, key: str, full_at: float) -> None:
        self._full_at[key] = full_at
        self._full_at.move_to_end(key)
        if len(self._full_at) > self._most_keys:
            self._full_at.popitem(last=False)
