"""The repositories of one transaction."""

from __future__ import annotations

from sqlalchemy import Connection

from identity_server.store.agent_repository import SqlAgents
from identity_server.store.entry_repository import NewEntries, SqlEntries
from identity_server.store.event_log import LogUpkeep, Recorder
from identity_server.store.order_repository import SqlOrders
from identity_server.store.progress_repository import SqlProgress
from identity_server.store.repositories import SqlAuthorities, SqlBundles, SqlJoinTokens, SqlRelationships
from identity_server.store.server_repository import SqlServers
from spiffe_core.spiffe_id import TrustDomain


class SqlUnitOfWork:
    """What a command or query works with. It neither commits nor rolls back: the writer or the reader does."""

    __slots__ = (
        "agents",
        "authorities",
        "bundles",
        "entries",
        "join_tokens",
        "log",
        "orders",
        "progress",
        "relationships",
        "servers",
    )

    def __init__(
        self,
        connection: Connection,
        recorder: Recorder,
        trust_domain: TrustDomain,
        new_entries: NewEntries | None = None,
    ) -> None:
        self.entries = SqlEntries(connection, recorder, new_entries or NewEntries())
        self.agents = SqlAgents(connection, recorder, trust_domain)
        self.join_tokens = SqlJoinTokens(connection, recorder)
        self.bundles = SqlBundles(connection, recorder)
        self.relationships = SqlRelationships(connection, recorder)
        self.authorities = SqlAuthorities(connection, recorder)
        self.orders = SqlOrders(connection, recorder)
        self.servers = SqlServers(connection, recorder)
        self.progress = SqlProgress(connection, recorder)
        self.log = LogUpkeep(connection, recorder)
