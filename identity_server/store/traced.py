"""The Store port with a span around each command and query; put in place only when calls are traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from identity_server.domain.state import State
from identity_server.ports import Store, UnitOfWork
from spiffe_core.runtime.tracing import span
from spiffe_core.runtime.watch import Watch

T = TypeVar("T")


class TracedStore:
    """Passes everything on to `store`. A span lasts until COMMIT, and until memory has the change."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def state(self) -> Watch[State]:
        """The latest state."""
        return self._store.state

    async def execute(self, command: Callable[[UnitOfWork], T]) -> T:
        """Run a command."""
        with span("store.execute"):
            return await self._store.execute(command)

    async def read(self, query: Callable[[UnitOfWork], T]) -> T:
        """Run a query."""
        with span("store.read"):
            return await self._store.read(query)
