"""The server's half: starts the workers, hands them orders, and starts them again when they end.

Theory of operation. Each worker has one task that starts the process, reads its answers, and, however that ends, kills
and reaps it and starts the next after a pause that doubles up to `LONGEST_PAUSE`. A batch that a worker does not
answer, because it died or hangs for `ANSWER_SECONDS`, is given back to the caller as None: the caller signs it itself.
At most `SEATS` batches wait at a worker, so that it has the next one when it is done with one and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence

from identity_server.domain.leaf_order import LeafOrder, SignedLeaf, SigningKey
from identity_server.signing.frames import PREFIX, decode, key_frame, leaves_of, sign_frame, sizes
from spiffe_core.clock import Clock
from spiffe_core.crypto.keys import to_pkcs8
from spiffe_core.runtime.offload import Offload
from spiffe_core.runtime.supervise import spawn

log = logging.getLogger(__name__)

SEATS = 4
ANSWER_SECONDS = 5.0
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
STEADY_SECONDS = 60.0
"""A worker that lived so long may start again at once."""
END_SECONDS = 2.0

Orders = Sequence[tuple[LeafOrder, bytes]]
Leaves = list[SignedLeaf | None]


class SigningWorkers:
    """Implements `ports.LeafSigners`. Belongs to the event loop."""

    def __init__(self, count: int, clock: Clock, *, first_pause: float = FIRST_PAUSE) -> None:
        self._clock = clock
        self._first_pause = first_pause
        self._offload = Offload("signing", 2 * count)
        self._workers = [_Worker(number, self._offload) for number in range(count)]
        self._tasks: set[asyncio.Task[None]] = set()
        self._seats = asyncio.Semaphore(count * SEATS)
        self.signed = 0
        """How many leaves the workers signed."""

    def start(self) -> None:
        """Start the processes, without waiting for them."""
        for worker in self._workers:
            spawn(self._keep(worker), f"signing worker {worker.number}", self._tasks)

    @property
    def ready(self) -> int:
        """How many workers take orders now."""
        return sum(worker.open for worker in self._workers)

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that take orders now."""
        return tuple(worker.process.pid for worker in self._workers if worker.open and worker.process is not None)

    @contextlib.asynccontextmanager
    async def seat(self) -> AsyncIterator[None]:
        """Wait for room at a worker."""
        async with self._seats:
            yield

    async def sign(self, key: SigningKey, taken: frozenset[str], orders: Orders) -> Leaves | None:
        """Have these signed, within a `seat`; None if no worker did, and in the answer for each that was not signed."""
        able = [worker for worker in self._workers if worker.open]
        if not able:
            return None
        worker = min(able, key=lambda one: len(one.waiting))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                leaves = await worker.sign(key, taken, orders)
        except TimeoutError:
            log.error(  # noqa: TRY400  # the message says it all
                "signing worker %d does not answer and is ended; the server signs by itself", worker.number
            )
            worker.end()
            return None
        if leaves is None or len(leaves) != len(orders):
            return None
        self.signed += sum(leaf is not None for leaf in leaves)
        return leaves

    async def close(self) -> None:
        """End all workers."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _keep(self, worker: _Worker) -> None:
        pause = self._first_pause
        while True:
            started = self._clock.monotonic()
            try:
                await worker.run()
            except (OSError, ValueError, LookupError, TypeError) as error:
                log.warning("signing worker %d failed: %s", worker.number, error)
            if self._clock.monotonic() - started > STEADY_SECONDS:
                pause = self._first_pause
            log.warning(
                "signing worker %d ended; the server signs by itself, and starts it again in %.1f s",
                worker.number,
                pause,
            )
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


class _Worker:
    """One process after another, in one place."""

    def __init__(self, number: int, offload: Offload) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.waiting: dict[int, asyncio.Future[Leaves | None]] = {}
        self._offload = offload
        self._writer: asyncio.StreamWriter | None = None
        self._told: tuple[SigningKey, frozenset[str]] | None = None
        self._count = 0

    @property
    def open(self) -> bool:
        """Whether it takes orders."""
        return self._writer is not None and not self._writer.transport.is_closing()

    async def sign(self, key: SigningKey, taken: frozenset[str], orders: Orders) -> Leaves | None:
        """Send to an `open` worker, and wait for the answer; None if the process ends before."""
        assert self._writer is not None
        frames = b""
        if self._told is None or self._told[0] is not key or self._told[1] is not taken:
            frames = key_frame(key, to_pkcs8(key.key).reveal(), taken)
            self._told = (key, taken)
        self._count += 1
        number = self._count
        answer: asyncio.Future[Leaves | None] = asyncio.get_running_loop().create_future()
        self.waiting[number] = answer
        try:
            # one write: the first of two may find the process gone and close the transport under the second
            self._writer.write(frames + sign_frame(number, orders))
            return await answer
        finally:
            self.waiting.pop(number, None)

    async def run(self) -> None:
        """Start a process and read its answers until it ends; nothing of it is left then."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                # on the loop's own thread: a worker is killed with the *thread* that started it (PR_SET_PDEATHSIG),
                # and a pool's thread ends when it is idle; it takes some milliseconds, once
                self.process = _start(theirs.fileno())
            reader, self._writer = await asyncio.open_connection(sock=ours)
            while True:
                body, head = sizes(await reader.readexactly(PREFIX.size))
                number, leaves = leaves_of(decode(await reader.readexactly(body), head))
                answer = self.waiting.pop(number, None)
                if answer is not None and not answer.done():
                    answer.set_result(leaves)
        except asyncio.IncompleteReadError:
            return
        finally:
            await self._clean_up(ours)

    def end(self) -> None:
        """Kill the process; `run` sees it."""
        if self.process is not None:
            self.process.kill()

    async def _clean_up(self, ours: socket.socket) -> None:
        writer, self._writer, self._told = self._writer, None, None
        for answer in self.waiting.values():
            if not answer.done():
                answer.set_result(None)
        if writer is not None:
            writer.transport.abort()
        ours.close()
        process, self.process = self.process, None
        if process is not None:
            await asyncio.shield(self._offload(_reap, process))


def _start(descriptor: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-I", "-m", "identity_server.signing.worker", str(descriptor)]
    return subprocess.Popen(  # noqa: S603  # our own interpreter and module
        argv, pass_fds=(descriptor,), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env={}, close_fds=True
    )


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Its socket is closed, so it ends by itself; one that does not is killed."""
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
