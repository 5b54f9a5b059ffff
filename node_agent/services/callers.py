"""Whether a connection is still that of the process that made it (architecture A5, A20; reliability cases S13 to S15).

Attestation says what a process is *now*. Two things lie between that and whoever reads the answer: the process may have
started another program since it connected, and others may hold its connection. Without `strict` the identity is that of
the process that connected, whoever else holds its socket, and a change of its program is logged. With `strict` an
answer needs that the process

    1. runs the program it ran when it connected (another execve of the same program counts as a change),
    2. whose file was neither removed nor replaced since it started,
    3. and alone holds its end of the connection.

They are asked after the attestors, so that what these have read was still true. A process that starts a child holds
everything twice between fork and exec; so the third question is asked again for a moment before it is answered with no.
Whoever *writes* into a connection that is not his is caught by the front door (`spiffe_core.wire.witness`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from attestors.holders import Held
from spiffe_core.clock import Clock
from spiffe_core.errors import Unauthenticated
from spiffe_core.runtime.offload import Offload
from spiffe_core.runtime.supervise import spawn
from spiffe_core.selectors import Selector
from spiffe_core.wire.connection import Connection, Image, image_of, link_of
from spiffe_core.wire.peer import UnixPeer

log = logging.getLogger(__name__)

Attest = Callable[[UnixPeer], Awaitable[frozenset[Selector]]]
Scan = Callable[[Collection[Held], float], Mapping[Held, frozenset[int]]]

SECOND_LOOKS = (0.02, 0.1, 0.3)
"""Seconds before each further look at who holds a connection."""
SCAN_SECONDS = 5.0
_DELETED = " (deleted)"
_MOST_TOLD = 1024


class Holders:
    """Who holds a connection. All who ask while a pass over /proc is under way share the next one."""

    def __init__(self, scan: Scan, clock: Clock) -> None:
        self._scan = scan
        self._clock = clock
        self._offload = Offload("holders", 1)
        self._asked: dict[Held, asyncio.Future[frozenset[int]]] = {}
        self._passes: set[asyncio.Task[None]] = set()

    async def of(self, held: Held) -> frozenset[int]:
        """The processes that hold its far end, read after this call began.

        Raises:
            Unavailable: it cannot be told.
        """
        answer = self._asked.get(held)
        if answer is None:
            answer = self._asked[held] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(_look_at)
        if not self._passes:
            spawn(self._work(), "who holds connections", self._passes)
        return await asyncio.shield(answer)

    async def _work(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            try:
                found = await self._offload(self._scan, list(asked), self._clock.monotonic() + SCAN_SECONDS)
            except Exception as error:  # noqa: BLE001  # carried to those who asked
                for answer in asked.values():
                    answer.set_exception(error)
            else:
                for held, answer in asked.items():
                    answer.set_result(found[held])


class Callers:
    """Attestation, followed by a look at the connection. `holders` is given in strict mode only."""

    def __init__(
        self,
        attest: Attest,
        holders: Holders | None = None,
        *,
        image: Callable[[int], Image | None] = image_of,
        link: Callable[[int], str | None] = link_of,
        second_looks: Sequence[float] = SECOND_LOOKS,
    ) -> None:
        self._attest = attest
        self._holders = holders
        self._image = image
        self._link = link
        self._second_looks = second_looks
        self._told: OrderedDict[Connection, None] = OrderedDict()

    async def __call__(self, peer: UnixPeer) -> frozenset[Selector]:
        """The selectors of `peer`, read now.

        Raises:
            Unauthenticated: the process has ended; in strict mode also: it is not, or not alone, what it was.
            Unavailable: it could not be read.
        """
        selectors = await self._attest(peer)
        if self._holders is None:
            self._tell_of_change(peer)
            return selectors
        try:
            await self._require_alone(peer, self._holders)
            self._require_same_program(peer)
        except Unauthenticated as refusal:
            log.info("caller refused: %s", refusal.public, extra={"facts": {"uid": peer.uid} | refusal.facts})
            raise
        peer.require_alive()
        return selectors

    async def _require_alone(self, peer: UnixPeer, holders: Holders) -> None:
        if peer.connection is None:  # named by a delegate, not connected
            return
        held = Held(peer.connection.inode, peer.pid)
        found = await holders.of(held)
        for pause in self._second_looks:
            if found <= {peer.pid}:
                break
            await asyncio.sleep(pause)
            found = await holders.of(held)
        if found == {peer.pid}:
            return
        if found <= {peer.pid}:
            raise Unauthenticated("the process that connected does not hold the connection any more", pid=peer.pid)
        raise Unauthenticated(
            "another process holds this connection as well; each process must make its own, and close it on exec",
            pid=peer.pid,
            holders=sorted(found),
        )

    def _require_same_program(self, peer: UnixPeer) -> None:
        now = self._image(peer.pid)
        if now is None:
            raise Unauthenticated("the program of the calling process cannot be seen", pid=peer.pid)
        if peer.connection is not None and peer.connection.image != now:
            raise Unauthenticated(
                "the calling process has started another program since it connected; connect again", pid=peer.pid
            )
        if now.link.endswith(_DELETED):
            raise Unauthenticated(
                "the program of the calling process was removed or replaced since it started; restart the process",
                pid=peer.pid,
            )

    def _tell_of_change(self, peer: UnixPeer) -> None:
        """Log, once for a connection, that its process runs another program than when it connected."""
        made = peer.connection
        if made is None or made.image is None:
            return
        now = self._link(peer.pid)
        if now in {None, made.image.link} or made in self._told:
            return
        self._told[made] = None
        if len(self._told) > _MOST_TOLD:
            self._told.popitem(last=False)
        log.warning(
            "a process runs another program than when it connected; strict = true would refuse it",
            extra={"facts": {"pid": peer.pid, "uid": peer.uid, "connected_as": made.image.link, "now": now}},
        )


def _look_at(answer: asyncio.Future[frozenset[int]]) -> None:
    """Take note of how an answer came out that nobody waited for any more."""
    if not answer.cancelled():
        answer.exception()
