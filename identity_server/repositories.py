"""What commands and queries need of the database: the repositories inside one transaction.

Commands and queries are plain functions of a `UnitOfWork`. A command reads, decides, and raises an `IdentityError`
*before its first write*: it shares its transaction with other callers' commands, so a refusal must leave nothing
behind. It may be run again after a transient failure of the database, so it has no effect but through its unit of
work, and it never waits, signs or calls plug-ins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from identity_server.domain.agent_progress import ProgressRecord
from identity_server.domain.agents import AttestedAgent
from identity_server.domain.authority import Authority, AuthorityKind
from identity_server.domain.federation import FederationRelationship
from identity_server.domain.join_tokens import JoinToken
from identity_server.domain.listing import AgentFilter, EntryFilter, Page
from identity_server.domain.orders import Errand, Order, Progress
from identity_server.domain.server_settings import ServerRecord
from spiffe_core.bundle import TrustBundle
from spiffe_core.entry import RegistrationEntry
from spiffe_core.spiffe_id import TrustDomain


class EntryRepository(Protocol):
    """Registration entries."""

    def get(self, entry_id: str) -> RegistrationEntry | None:
        """The entry, or None."""
        ...

    def many(self, ids: Sequence[str]) -> dict[str, RegistrationEntry]:
        """The entries that exist among `ids`."""
        ...

    def similar(self, entries: Sequence[RegistrationEntry]) -> dict[bytes, RegistrationEntry]:
        """Similarity digest -> the stored entry that has it, for those of `entries` that have one stored."""
        ...

    def add(self, entries: Sequence[RegistrationEntry]) -> None:
        """Store new entries; Conflict if an id is taken or a similar entry exists.

        That refusal may come from `Store.execute` after the command returned: ask `many` and `similar` before.
        """
        ...

    def replace(self, entries: Sequence[RegistrationEntry]) -> None:
        """Overwrite existing entries; NotFound if one does not exist, Conflict if another one is similar."""
        ...

    def remove(self, ids: Sequence[str]) -> None:
        """Delete entries; ids that do not exist are passed over."""
        ...

    def page(self, wanted: EntryFilter, after: str = "", limit: int = 0) -> Page[RegistrationEntry]:
        """Entries in order of creation, beginning after the page token `after`; `limit` 0 means all of them."""
        ...

    def count(self, wanted: EntryFilter) -> int:
        """How many entries there are."""
        ...

    def federating(self, trust_domains: Sequence[TrustDomain]) -> dict[TrustDomain, int]:
        """How many entries federate with each of these trust domains; those with which none does are left out."""
        ...

    def expired(self, now: int, limit: int) -> list[RegistrationEntry]:
        """At most `limit` entries whose `expires_at` is set and before `now`, oldest expiry first."""
        ...


class AgentRepository(Protocol):
    """Attested agents, by the path of their SPIFFE ID."""

    def get(self, path: str) -> AttestedAgent | None:
        """The agent, or None."""
        ...

    def put(self, agent: AttestedAgent) -> None:
        """Store or overwrite."""
        ...

    def remove(self, path: str) -> None:
        """Delete; an unknown path is passed over."""
        ...

    def page(self, wanted: AgentFilter, after: str = "", limit: int = 0) -> Page[AttestedAgent]:
        """Agents in order of their first attestation, beginning after the page token `after`; `limit` 0 means all."""
        ...

    def count(self, wanted: AgentFilter) -> int:
        """How many agents there are."""
        ...


class JoinTokenRepository(Protocol):
    """Join tokens, by the SHA-256 of the token (architecture A18)."""

    def add(self, token: JoinToken) -> None:
        """Store; Conflict if the digest exists."""
        ...

    def get(self, digest: bytes) -> JoinToken | None:
        """The token's record, or None."""
        ...

    def redeem(self, digest: bytes, key_digest: bytes, now: int, grace: int) -> bool:
        """One conditional UPDATE: bind the token to a key.

        True if it was unredeemed and unexpired, or if the same key redeemed it less than `grace` seconds ago.
        """
        ...

    def remove(self, digest: bytes) -> None:
        """Delete; an unknown digest is passed over."""
        ...

    def prune(self, before: int) -> int:
        """Delete tokens that expired before this unix second, at most 1,000; how many were deleted."""
        ...


class BundleRepository(Protocol):
    """Trust bundles: our own and those we federate with."""

    def get(self, trust_domain: TrustDomain) -> TrustBundle | None:
        """The bundle, or None."""
        ...

    def stored(self, trust_domains: Sequence[TrustDomain]) -> frozenset[TrustDomain]:
        """Those of these trust domains whose bundle there is."""
        ...

    def put(self, bundle: TrustBundle) -> None:
        """Store or overwrite."""
        ...

    def remove(self, trust_domains: Sequence[TrustDomain]) -> None:
        """Delete; trust domains without a bundle are passed over."""
        ...

    def page(self, besides: TrustDomain, after: str = "", limit: int = 0) -> Page[TrustBundle]:
        """The bundles of all trust domains but `besides`, by name, beginning after the page token `after`."""
        ...

    def count(self) -> int:
        """How many bundles are stored."""
        ...


class RelationshipRepository(Protocol):
    """Federation relationships: where foreign bundles are fetched."""

    def get(self, trust_domain: TrustDomain) -> FederationRelationship | None:
        """The relationship, or None."""
        ...

    def put(self, relationship: FederationRelationship) -> None:
        """Store or overwrite."""
        ...

    def remove(self, trust_domain: TrustDomain) -> None:
        """Delete; an unknown trust domain is passed over."""
        ...

    def page(self, after: str = "", limit: int = 0) -> Page[FederationRelationship]:
        """Relationships in order of creation, beginning after the page token `after`; `limit` 0 means all of them."""
        ...


class AuthorityRepository(Protocol):
    """The journal of signing authorities, of every server (architecture A15)."""

    def of_server(self, server_id: str) -> tuple[Authority, ...]:
        """The authorities of one server, oldest first."""
        ...

    def get(self, authority_id: str) -> Authority | None:
        """The authority of whichever server, or None."""
        ...

    def of_kind(self, kind: AuthorityKind) -> tuple[Authority, ...]:
        """The authorities of one kind, of every server."""
        ...

    def put(self, authority: Authority) -> None:
        """Store or overwrite."""
        ...

    def remove(self, authority_id: str) -> None:
        """Delete; an unknown id is passed over."""
        ...


class OrderRepository(Protocol):
    """Orders to all servers and what each has done about them (architecture A15)."""

    def add(self, order: Order, servers: Sequence[str]) -> None:
        """Store an order with an errand for each of these servers; the oldest finished ones beyond the bound go."""
        ...

    def waiting_for(self, server_id: str) -> tuple[Order, ...]:
        """The orders this server has not carried out, in the order in which they were given."""
        ...

    def get(self, order_id: str) -> Progress | None:
        """An order with its errands, or None."""
        ...

    def all(self) -> tuple[Progress, ...]:
        """Every order that is kept, newest first."""
        ...

    def report(self, order_id: str, errand: Errand) -> None:
        """Store what a server has done; an unknown order and one that concerns the server no more are passed over."""
        ...


class ServerRepository(Protocol):
    """What each server that shares the database has written down about itself (reliability R39)."""

    def all(self) -> tuple[ServerRecord, ...]:
        """The servers that wrote last, newest first, at most `MAX_RECORDS`."""
        ...

    def put(self, record: ServerRecord) -> None:
        """Store or overwrite."""
        ...

    def forget(self, before: int) -> None:
        """Delete the records of servers that wrote last before this unix second, at most `MAX_RECORDS` of them."""
        ...


class ProgressRepository(Protocol):
    """What each server that shares the database has written down about how far its agents are (architecture A9)."""

    def others(self, besides: str, since: int, known: Mapping[str, bytes]) -> tuple[ProgressRecord, ...]:
        """What all servers but one wrote, if not before this unix second.

        `known` are the digests of members that the caller has, by server: those are left out.
        """
        ...

    def put(self, record: ProgressRecord, *, tell: bool) -> None:
        """Store or overwrite. With `tell` all servers know at once; without, whoever looks."""
        ...

    def remove(self, server_id: str) -> None:
        """Delete what a server wrote, and have the others know at once; an unknown one is passed over."""
        ...

    def forget(self, before: int) -> None:
        """Delete what was written before this unix second, of at most `MAX_RECORDS` servers. Nobody is told."""
        ...


class UnitOfWork(Protocol):
    """The repositories inside one transaction. Read-only properties, so that adapters may be stricter."""

    @property
    def entries(self) -> EntryRepository:
        """Registration entries."""
        ...

    @property
    def agents(self) -> AgentRepository:
        """Attested agents."""
        ...

    @property
    def join_tokens(self) -> JoinTokenRepository:
        """Join tokens."""
        ...

    @property
    def bundles(self) -> BundleRepository:
        """Trust bundles."""
        ...

    @property
    def relationships(self) -> RelationshipRepository:
        """Federation relationships."""
        ...

    @property
    def authorities(self) -> AuthorityRepository:
        """Signing authorities."""
        ...

    @property
    def orders(self) -> OrderRepository:
        """Orders to all servers."""
        ...

    @property
    def servers(self) -> ServerRepository:
        """The servers that share the database."""
        ...

    @property
    def progress(self) -> ProgressRepository:
        """How far the agents of each server are."""
        ...
