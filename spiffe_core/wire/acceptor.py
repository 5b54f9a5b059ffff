"""Takes connections off a listening socket; none that was taken is ever left open by whoever stops listening."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from spiffe_core.errors import IdentityError, VerificationFailed
from spiffe_core.networks import network_of
from spiffe_core.runtime.certificate_dates import dates_of
from spiffe_core.runtime.supervise import spawn
from spiffe_core.wire.refusal_lines import RefusalLines

log = logging.getLogger(__name__)

_AT_ONCE = 8
"""In one round of the loop: a thousand that come together must not become one long round."""
_PAUSE_SECONDS = 0.1
_BUSY_SECONDS = 0.01
_GONE_BEFORE_IT_WAS_TAKEN = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EINTR})


class Acceptor:
    """Listens from the moment it is made until `close`. Belongs to the event loop's thread.

    What is refused is told in the log as far as `refusal_lines` has room, and counted in `refused`.

    Each connection is let in by a task of its own, kept in `tasks`. While `busy` says so, told how many of these have
    yet to begin, none is taken: they wait in the kernel's queue, in order. One is accepted and handed on in one step of
    the loop: a listener that waits for `sock_accept` loses the connection if it is cancelled at that very moment.
    """

    def __init__(
        self,
        listener: socket.socket,
        admit: Callable[[socket.socket], Awaitable[None]],
        *,
        tasks: set[asyncio.Task[Any]],
        refused: Counter[str],
        on_no_room: Callable[[OSError], None] = lambda _: None,
        busy: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._listener = listener
        self._admit = admit
        self._tasks = tasks
        self._refused = refused
        self._on_no_room = on_no_room
        self._lines = RefusalLines()
        self._full = RefusalLines(most=1)
        self._busy = busy
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._listen()

    def close(self) -> None:
        """Take no more; the listening socket stays its owner's."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._loop.remove_reader(self._listener)

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._ready)

    def _ready(self) -> None:
        for taken in range(_AT_ONCE):
            if self._busy(taken):
                self._rest(_BUSY_SECONDS)
                return
            try:
                connection, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _GONE_BEFORE_IT_WAS_TAKEN:
                    continue
                self._wait_for_room(error)
                return
            connection.setblocking(False)
            self._take(connection, address)

    def _take(self, connection: socket.socket, address: object) -> None:
        """A task that is cancelled before its first step closes nothing by itself."""

        def done(task: asyncio.Task[Any]) -> None:
            if task.cancelled():
                connection.close()

        spawn(self._let_in(connection, address), "admit", self._tasks).add_done_callback(done)

    def _wait_for_room(self, error: OSError) -> None:
        self._refused["out of descriptors"] += 1
        self._on_no_room(error)
        if self._full.room("", self._loop.time()) is not None:
            log.warning("cannot accept: %s; raise the open files limit (ulimit -n)", error.strerror)
        self._rest(_PAUSE_SECONDS)

    def _rest(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(seconds, self._listen)

    async def _let_in(self, connection: socket.socket, address: object) -> None:
        try:
            await self._admit(connection)
        except IdentityError as error:
            self._refused[error.kind.value] += 1
            level = logging.WARNING if isinstance(error, VerificationFailed) else logging.INFO
            self._say(level, address, error.public, error.facts)
            connection.close()
        except ssl.SSLCertVerificationError as error:
            self._refused["certificate"] += 1
            advice = "it is of a trust domain, or an authority, that is not known here"
            if dates_of(error) is not None:
                advice = "compare the clocks of both machines"
            why = f"the client's certificate is not believed ({error.verify_message}): {advice}"
            self._say(logging.WARNING, address, why, {})
            connection.close()
        except (OSError, TimeoutError) as error:
            self._refused["broken"] += 1
            log.debug("connection broke before it was admitted: %r", error)
            connection.close()
        except BaseException:
            connection.close()
            raise

    def _say(self, level: int, address: object, why: str, facts: Mapping[str, object]) -> None:
        """One line, if there is room: nobody has proven anything, and whoever connects over and over fills no log."""
        host, port = address[:2] if isinstance(address, tuple) else ("", 0)
        unsaid = self._lines.room(network_of(host) if host else "", self._loop.time())
        if unsaid is None:
            return
        more = {**facts, "address": f"{host}:{port}"} if host else dict(facts)
        if unsaid:
            more["refusals_without_a_line"] = unsaid
        log.log(level, "connection refused: %s", why, extra={"facts": more})
