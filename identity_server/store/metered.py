"""The Store port with a stopwatch: each step of a repository is counted and timed under SPIRE's datastore names.

A wrapper around the port, so that neither the store nor its users know of it; it is put in place only when metrics are
collected. What is timed is the step inside its transaction, on the thread that runs it, not the wait for COMMIT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, cast

from identity_server.domain.state import State
from identity_server.ports import Store, UnitOfWork
from identity_server.repositories import (
    AgentRepository,
    AuthorityRepository,
    BundleRepository,
    EntryRepository,
    JoinTokenRepository,
    OrderRepository,
    ProgressRepository,
    RelationshipRepository,
    ServerRepository,
)
from spiffe_core.errors import IdentityError
from spiffe_core.runtime.metrics import Metrics, status_word
from spiffe_core.runtime.watch import Watch

T = TypeVar("T")

NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    "entries": {
        "get": "registration_entry_fetch",
        "many": "registration_entry_fetch",
        "similar": "registration_entry_list",
        "page": "registration_entry_list",
        "expired": "registration_entry_list",
        "count": "registration_entry_count",
        "add": "registration_entry_create",
        "replace": "registration_entry_update",
        "remove": "registration_entry_delete",
    },
    "agents": {
        "get": "node_fetch",
        "put": "node_update",
        "remove": "node_delete",
        "page": "node_list",
        "count": "node_count",
    },
    "join_tokens": {
        "add": "join_token_create",
        "get": "join_token_fetch",
        "redeem": "join_token_redeem",
        "remove": "join_token_delete",
        "prune": "join_token_prune",
    },
    "bundles": {
        "get": "bundle_fetch",
        "put": "bundle_set",
        "remove": "bundle_delete",
        "page": "bundle_list",
        "count": "bundle_count",
    },
    "relationships": {
        "get": "federation_relationship_fetch",
        "put": "federation_relationship_set",
        "remove": "federation_relationship_delete",
        "page": "federation_relationship_list",
    },
    "authorities": {
        "of_server": "ca_journal_fetch",
        "get": "ca_journal_fetch",
        "of_kind": "ca_journal_fetch",
        "put": "ca_journal_set",
        "remove": "ca_journal_prune",
    },
}
"""Repository -> method -> SPIRE's name of the operation; methods that are not in it are not timed."""


class MeteredStore:
    """Passes everything on to `store`."""

    def __init__(self, store: Store, metrics: Metrics, monotonic: Callable[[], float]) -> None:
        self._store = store
        self._metrics = metrics
        self._monotonic = monotonic

    @property
    def state(self) -> Watch[State]:
        """The latest state."""
        return self._store.state

    async def execute(self, command: Callable[[UnitOfWork], T]) -> T:
        """Run a command whose steps are timed."""
        return await self._store.execute(lambda uow: command(self._timed(uow)))

    async def read(self, query: Callable[[UnitOfWork], T]) -> T:
        """Run a query whose steps are timed."""
        return await self._store.read(lambda uow: query(self._timed(uow)))

    def _timed(self, uow: UnitOfWork) -> UnitOfWork:
        return _TimedUnitOfWork(uow, self._metrics, self._monotonic)


class _TimedUnitOfWork:
    """The repositories, each behind a stopwatch."""

    __slots__ = ("_metrics", "_monotonic", "_uow")

    def __init__(self, uow: UnitOfWork, metrics: Metrics, monotonic: Callable[[], float]) -> None:
        self._uow, self._metrics, self._monotonic = uow, metrics, monotonic

    @property
    def entries(self) -> EntryRepository:
        return cast("EntryRepository", self._timed("entries", self._uow.entries))

    @property
    def agents(self) -> AgentRepository:
        return cast("AgentRepository", self._timed("agents", self._uow.agents))

    @property
    def join_tokens(self) -> JoinTokenRepository:
        return cast("JoinTokenRepository", self._timed("join_tokens", self._uow.join_tokens))

    @property
    def bundles(self) -> BundleRepository:
        return cast("BundleRepository", self._timed("bundles", self._uow.bundles))

    @property
    def relationships(self) -> RelationshipRepository:
        return cast("RelationshipRepository", self._timed("relationships", self._uow.relationships))

    @property
    def authorities(self) -> AuthorityRepository:
        return cast("AuthorityRepository", self._timed("authorities", self._uow.authorities))

    @property
    def orders(self) -> OrderRepository:
        return self._uow.orders

    @property
    def servers(self) -> ServerRepository:
        return self._uow.servers

    @property
    def progress(self) -> ProgressRepository:
        return self._uow.progress

    def _timed(self, name: str, repository: object) -> _Timed:
        return _Timed(repository, NAMES[name], self._metrics, self._monotonic)

    def __getattr__(self, name: str) -> Any:
        """What a unit of work has besides its repositories."""
        return getattr(self._uow, name)


class _Timed:
    """One repository behind a stopwatch."""

    __slots__ = ("_metrics", "_monotonic", "_names", "_repository")

    def __init__(
        self, repository: object, names: Mapping[str, str], metrics: Metrics, monotonic: Callable[[], float]
    ) -> None:
        self._repository, self._names, self._metrics, self._monotonic = repository, names, metrics, monotonic

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._repository, name)
        metric = self._names.get(name)
        if metric is None:
            return method

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = self._monotonic()
            status = "Unknown"
            try:
                found = method(*args, **kwargs)
                status = "OK"
            except IdentityError as error:
                status = status_word(error.kind)
                raise
            finally:
                self._metrics.observe(f"datastore_{metric}", self._monotonic() - began, status=status)
            return found

        return timed
