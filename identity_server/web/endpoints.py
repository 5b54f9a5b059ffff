"""All addresses of one daemon that answer HTTP, opened and closed together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from spiffe_core.runtime.supervise import Supervisor

log = logging.getLogger(__name__)


class Listener(Protocol):
    """What is opened and closed: a `WebListener`, which is imported only where an endpoint is configured."""

    def listen(self, host: str, port: int, *, field: str) -> tuple[str, int]:
        """Begin to answer; the address that was bound. Raises ConfigError."""
        ...

    def listen_unix(self, path: Path) -> None:
        """Begin to answer on a Unix socket that everybody on this machine may connect to. Raises ConfigError."""
        ...

    def stop(self) -> None:
        """Let nobody new in."""
        ...

    async def close(self) -> None:
        """Stop, and end every connection."""
        ...


class Chore(Protocol):
    """What an endpoint has to be kept up with: certificate files, an ACME account."""

    @property
    def trouble(self) -> str:
        """What is wrong and for whom to mend; "" while all is well."""
        ...

    async def keep(self) -> None:
        """Until cancelled."""
        ...


@dataclass(slots=True)
class Endpoint:
    """One address, or with `path` a Unix socket. `field` is its place in the configuration, `name` is for the log."""

    name: str
    listener: Listener
    host: str
    port: int
    field: str
    chores: Sequence[Chore] = ()
    address: tuple[str, int] = ("", 0)
    path: Path | None = None


class WebEndpoints:
    """Belongs to the event loop's thread."""

    def __init__(self, endpoints: Sequence[Endpoint] = (), chores: Sequence[Chore] = ()) -> None:
        self.endpoints = tuple(endpoints)
        self._chores = tuple(chores)

    def troubles(self) -> tuple[str, ...]:
        """What is wrong with any of them; read on other threads too."""
        common = [chore.trouble for chore in self._chores if chore.trouble]
        own = [f"{one.name}: {chore.trouble}" for one in self.endpoints for chore in one.chores if chore.trouble]
        return (*common, *own)

    def open(self) -> None:
        """Begin to answer on each address.

        Raises:
            ConfigError: an address cannot be bound.
        """
        for one in self.endpoints:
            if one.path is not None:
                one.listener.listen_unix(one.path)
                log.info("%s on unix://%s", one.name, one.path)
            else:
                one.address = one.listener.listen(one.host, one.port, field=one.field)
                log.info("%s on %s:%d", one.name, *one.address)

    async def keep(self) -> None:
        """Do the chores of all, until cancelled."""
        async with Supervisor() as tasks:
            for chore in self._chores:
                tasks.start(chore.keep(), "published")
            for one in self.endpoints:
                for chore in one.chores:
                    tasks.start(chore.keep(), one.name)
            await asyncio.Event().wait()

    def stop(self) -> None:
        """Let nobody new in."""
        for one in self.endpoints:
            one.listener.stop()

    async def close(self) -> None:
        """Stop, and end every connection."""
        await asyncio.gather(*(one.listener.close() for one in self.endpoints))
