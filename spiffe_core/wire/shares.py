"""How much of a door one caller may take, so that whoever takes all his share leaves the others theirs (S50, S51)."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Hashable
from typing import Any, Final

from spiffe_core.errors import Exhausted
from spiffe_core.networks import network_of
from spiffe_core.wire.peer import TlsPeer

FEWEST: Final = 16
MOST_OF_ONE_ID: Final = 64
"""A node or a controller has one or two connections, each with a hundred streams of some 35 KB of our memory."""
SLOW_SECONDS: Final = 1.0
"""A handshake that has taken longer gives way to a new one when there is no room for both."""
ENOUGH_IN_A_SECOND: Final = 64
"""So many handshakes that end show that places become free by themselves: a crowd of agents, perhaps of slow ones."""


class Shares:
    """Counts what each owner holds."""

    def __init__(self) -> None:
        self._held: Counter[Hashable] = Counter()

    def take(self, wanted: dict[Hashable, int]) -> bool:
        """One more for each owner in `wanted`, unless one of them holds as many as it says there.

        Tells whether it was taken.
        """
        if any(self._held[owner] >= most for owner, most in wanted.items()):
            return False
        self._held.update(wanted.keys())
        return True

    def of_tls(self, peer: TlsPeer, connections: int) -> dict[Hashable, int]:
        """Take what one more connection of `peer` counts against, of so many connections altogether.

        An eighth for one SPIFFE ID, `MOST_OF_ONE_ID` at most. Those without a certificate, who may be anybody, have
        half of all together, and an eighth for one address (of IPv6, for one /64): with it taken, no node of that
        address can join, and every node that has is served.

        Raises:
            Exhausted: it holds as much already.
        """
        eighth = max(connections // 8, FEWEST)
        wanted: dict[Hashable, int] = {peer.spiffe_id: min(eighth, MOST_OF_ONE_ID)}
        if peer.spiffe_id is None:
            network = network_of(peer.address.rpartition(":")[0])
            wanted = {"anonymous": max(connections // 2, FEWEST), ("anonymous", network): eighth}
        if not self.take(wanted):
            raise Exhausted("too many connections of this client are open", address=peer.address)
        return wanted

    def give(self, owners: dict[Hashable, int]) -> None:
        """What `take` took."""
        for owner in owners:
            self._held[owner] -= 1
            if not self._held[owner]:
                del self._held[owner]


class Handshakes:
    """Those under way, the oldest first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._begun: OrderedDict[asyncio.Task[Any], float] = OrderedDict()
        self._kept_waiting: set[asyncio.Task[Any]] = set()
        self._second = 0.0
        self._ended = 0
        self._ended_before = 0

    def __len__(self) -> int:
        return len(self._begun) + len(self._kept_waiting)

    def full(self, now: float, coming: int = 0) -> bool:
        """There is no room beside those who are `coming`, and nobody slow has to make it.

        We keep them waiting then, or they have only just come, or places become free by themselves: a crowd, not peers
        that hold what they do not use.
        """
        return len(self) + coming >= self._most and self._slow(now) is None

    def begin(self, task: asyncio.Task[Any], now: float) -> bool:
        """`task` begins one; a slow one may be cancelled to make room. Whether there is room."""
        if len(self) >= self._most:
            slow = self._slow(now)
            if slow is None:
                return False
            del self._begun[slow]
            slow.cancel()
        self._begun[task] = now
        return True

    def _slow(self, now: float) -> asyncio.Task[Any] | None:
        """The one that has to give way, if any has to."""
        oldest, since = next(iter(self._begun.items()), (None, now))
        self._count_on(now)
        if now - since < SLOW_SECONDS or max(self._ended, self._ended_before) >= ENOUGH_IN_A_SECOND:
            return None
        return oldest

    def _count_on(self, now: float) -> None:
        """Begin a new second once one is over."""
        seconds = now - self._second
        if seconds >= 1.0:
            self._ended_before = self._ended if seconds < 2.0 else 0  # noqa: PLR2004  # else it was not the second before
            self._ended, self._second = 0, now

    def keep_waiting(self, task: asyncio.Task[Any]) -> None:
        """The peer has spoken and it is for us to go on: nobody's slowness but ours, so it gives way to none."""
        if self._begun.pop(task, None) is not None:
            self._kept_waiting.add(task)

    def go_on(self, task: asyncio.Task[Any], now: float) -> None:
        """From now on it is for the peer to be quick."""
        self._kept_waiting.discard(task)
        self._begun[task] = now

    def end(self, task: asyncio.Task[Any], now: float) -> None:
        """It is over, well or not."""
        if task in self._begun or task in self._kept_waiting:  # else it had to give way
            self._count_on(now)
            self._ended += 1
        self._begun.pop(task, None)
        self._kept_waiting.discard(task)
