"""Which of several servers a client talks to: one at a time, in its own order, moving on when one does not answer.

A service is given as names and ports; a name may stand for several addresses. Each client sorts the addresses by a
digest of its seed and the address (rendezvous hashing): the order is the same at every dial, differs from client to
client, and hardly changes when a server is added, so that many clients spread evenly. Of a name with addresses of both
families those of the family that the resolver puts first come first (RFC 6724).

Where a connection is open, new ones go there too. Otherwise the first address of the order is dialled that did not fail
lately; one that failed rests, longer each time, and is still tried when all others have failed.

Servers and clients are often started together, and the client is ready first. So for a client's first seconds, until
it has reached a server, one that nobody listens at yet is no failure: it is dialled again a moment later.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

log = logging.getLogger(__name__)

MAX_NAMES: Final = 32
MAX_PLACES: Final = 64
RESOLVE_SECONDS: Final = 5.0
FIRST_REST: Final = 1.0
LONGEST_REST: Final = 60.0
JITTER: Final = 0.2
LONGEST_HESITATION: Final = 1.0
SHORTEST_PAUSE: Final = 0.02
PAUSE_SHARE: Final = 0.05
"""Of the time waited so far: whoever waits for a server that is starting waits hardly longer than that takes."""
PATIENCE: Final = 3
"""So many calls in a row may end with "unavailable" before the next server is tried."""


@dataclass(frozen=True, slots=True)
class Place:
    """One address of a server, and the name it was found by."""

    name: str
    port: int
    address: str
    family: int
    scope: int = 0
    """Of a link-local IPv6 address, the interface."""
    rank: int = 0
    """0 for the family that the resolver put first."""

    @property
    def target(self) -> tuple[str, int] | tuple[str, int, int, int]:
        """As a socket of its family takes it."""
        return (self.address, self.port, 0, self.scope) if self.family == socket.AF_INET6 else (self.address, self.port)

    def __str__(self) -> str:
        """Name and port, with the address if it is another text."""
        return f"{self.name}:{self.port}" + ("" if self.address == self.name else f" ({self.address})")


def in_order(places: Iterable[Place], seed: bytes) -> list[Place]:
    """The places in the order of the client with this seed."""

    def key(place: Place) -> tuple[int, bytes]:
        return place.rank, hashlib.sha256(seed + f"|{place.address}|{place.port}".encode()).digest()

    return sorted(places, key=key)


class Servers:
    """The servers of one client. Belongs to the event loop; several dialers may share it.

    `draw` gives a number in [-1, 1] for the jitter of rests and moves. For `starting_seconds` from the first dial a
    server may still be starting.
    """

    def __init__(
        self,
        names: Sequence[tuple[str, int]],
        *,
        seed: bytes = b"",
        draw: Callable[[], float] = lambda: 0.0,
        starting_seconds: float = 0.0,
    ) -> None:
        if not 0 < len(names) <= MAX_NAMES:
            raise ValueError(f"between 1 and {MAX_NAMES} servers are named")
        self._names = tuple(dict.fromkeys(names))
        self._seed = seed
        self._draw = draw
        self._starting_seconds = starting_seconds
        self._begun: float | None = None
        self._found: dict[tuple[str, int], tuple[Place, ...]] = {}
        self._failures: dict[Place, tuple[int, float]] = {}
        self._open: Counter[Place] = Counter()
        self._unavailable = 0
        self.current: Place | None = None
        """Where the newest connection went."""

    def __str__(self) -> str:
        return ", ".join(f"{name}:{port}" for name, port in self._names)

    async def order(self) -> list[Place]:
        """Where to dial now, first to last.

        Raises:
            OSError: no name stands for an address, and none did before.
        """
        answers = await asyncio.gather(*map(self._resolved, self._names), return_exceptions=True)
        places: list[Place] = []
        trouble: BaseException | None = None
        for answer in answers:
            if isinstance(answer, BaseException):
                trouble = trouble or answer
            else:
                places += answer
        places = in_order(dict.fromkeys(places), self._seed)[:MAX_PLACES]
        if not places:
            raise trouble or OSError("the server's name stands for no address")
        self._failures = {place: rest for place, rest in self._failures.items() if place in places}
        return self.sorted(places, asyncio.get_running_loop().time())

    def sorted(self, places: Sequence[Place], now: float) -> list[Place]:
        """Places in this client's order, as they are to be tried now."""

        def key(place: Place) -> tuple[bool, float]:
            until = self._failures.get(place, (0, 0.0))[1]
            rests = until > now
            return rests, until if rests else -float(place == self.current and self._open[place] > 0)

        return sorted(places, key=key)

    def opened(self, place: Place) -> None:
        """A connection was made."""
        self._failures.pop(place, None)
        self._open[place] += 1
        self._unavailable = 0
        if place != self.current:
            log.info("connected to the server at %s", place)
        self.current = place

    def closed(self, place: Place) -> None:
        """A connection is gone."""
        self._open[place] -= 1
        if self._open[place] <= 0:
            del self._open[place]

    def failed(self, place: Place | None = None) -> None:
        """A place, or the one where the newest connection went, did not answer: it rests for a while."""
        place = place or self.current
        if place is None:
            return
        times = min(self._failures.get(place, (0, 0.0))[0] + 1, 30)
        rest = min(LONGEST_REST, FIRST_REST * 2.0 ** (times - 1)) * (1 + JITTER * self._draw())
        self._failures[place] = times, asyncio.get_running_loop().time() + rest
        self._unavailable = 0

    def pause(self, now: float) -> float | None:
        """Seconds until servers that all refuse connections are dialled again; None if that counts as a failure."""
        self._begun = now if self._begun is None else self._begun
        waited = now - self._begun
        if self.current is not None or waited >= self._starting_seconds:
            return None
        return max(SHORTEST_PAUSE, waited * PAUSE_SHARE) * (1 + JITTER * self._draw())

    def hesitation(self, place: Place) -> float:
        """Seconds to wait before a move to another server, so that not all clients of one that died come at once."""
        return 0.0 if self.current in {None, place} else LONGEST_HESITATION * abs(self._draw())

    def answered(self, *, available: bool) -> bool:
        """How a call over an open connection ended; True if other servers are to be tried instead of this one."""
        self._unavailable = 0 if available else self._unavailable + 1
        if self._unavailable < PATIENCE or not self.several:
            return False
        log.warning("the server at %s goes on answering that it is unavailable: trying another one", self.current)
        self.failed()
        return True

    @property
    def several(self) -> bool:
        """Whether there is more than one address, as far as is known."""
        return sum(map(len, self._found.values())) > 1

    async def _resolved(self, name: tuple[str, int]) -> tuple[Place, ...]:
        """The addresses of one name; those it had before while it cannot be resolved."""
        host, port = name
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError):
            if name not in self._found:
                raise
            return self._found[name]
        families = list(dict.fromkeys(int(one[0]) for one in found))
        places = tuple(_place(name, one, families) for one in found)
        self._found[name] = places
        return places


def _place(name: tuple[str, int], found: tuple[Any, ...], families: list[int]) -> Place:
    """One row of getaddrinfo's answer."""
    family, address = int(found[0]), found[4]
    scope = int(address[3]) if family == socket.AF_INET6 else 0
    return Place(*name, str(address[0]), family, scope, families.index(family))
