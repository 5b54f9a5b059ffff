"""What the use-cases need of the world, as protocols named for the role.

The database is one of them: `Store` runs commands and queries, which see it as the repositories of a `UnitOfWork`
(`identity_server.repositories`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from identity_server.domain.audit import AuditEvent
from identity_server.domain.federation import FederationRelationship
from identity_server.domain.leaf_order import LeafOrder, SignedLeaf, SigningKey
from identity_server.domain.publication import BundleFormat, Outcome, Publication
from identity_server.domain.state import State
from identity_server.domain.upstream import UpstreamCa, UpstreamView
from identity_server.repositories import UnitOfWork
from spiffe_core.bundle import JwtAuthority, TrustBundle, WitAuthority
from spiffe_core.bundle_document import LoadedBundle
from spiffe_core.crypto.keys import AuthorityKey, AuthorityPublicKey, KeyKind
from spiffe_core.runtime.watch import Watch
from spiffe_core.spiffe_id import TrustDomain

__all__ = [
    "AuditLog",
    "BundleFetcher",
    "BundleTarget",
    "KeyManager",
    "LeafSigners",
    "LogLevel",
    "PublishOrder",
    "Store",
    "UnitOfWork",
    "UpstreamAuthority",
]

T = TypeVar("T")


class Store(Protocol):
    """The database and the view of it in memory."""

    @property
    def state(self) -> Watch[State]:
        """The latest state; publishes on the event loop. Only the loop's thread may use the watch."""
        ...

    async def execute(self, command: Callable[[UnitOfWork], T]) -> T:
        """Run on the writer's thread inside a shared transaction; see the module's docstring for a command's duties.

        Returns after COMMIT and after `state` includes the change. The repositories record the events themselves.
        """
        ...

    async def read(self, query: Callable[[UnitOfWork], T]) -> T:
        """Run on a reader's thread in one consistent read snapshot; writing is an error."""
        ...


class KeyManager(Protocol):
    """Private keys of authorities, by slot (architecture A12)."""

    persistent: bool
    """True if keys outlive the process."""
    location: str
    """Where the keys are, for messages."""

    @property
    def trouble(self) -> str:
        """Why a key cannot be used now, "" if all could the last time. A finished value: never waits."""
        ...

    def check(self) -> None:
        """Look whether the keys can be used, for `trouble`. May block; called at every tick of the authorities."""
        ...

    def generate(self, slot: str, kind: KeyKind) -> AuthorityPublicKey:
        """Make a key in `slot`, replacing what was there."""
        ...

    def signer(self, slot: str) -> AuthorityKey | None:
        """The key in `slot`, or something that signs like it; None if the slot is empty."""
        ...

    def delete(self, slot: str) -> None:
        """Empty the slot."""
        ...

    def list(self) -> tuple[str, ...]:
        """The slots that hold a key."""
        ...


class UpstreamAuthority(Protocol):
    """Who signs this server's CA certificate (architecture A15). Belongs to the event loop."""

    name: str
    """The kind, for messages and metrics: disk, spire, vault."""

    @property
    def view(self) -> Watch[UpstreamView]:
        """The authorities the upstream shows, empty until it was reached first; published on the loop."""
        ...

    async def start(self) -> None:
        """Begin to follow the upstream.

        Raises:
            ConfigError: what the settings name cannot be used; waiting would not help.
        """
        ...

    async def mint_x509_ca(self, csr: bytes, ttl: int) -> UpstreamCa:
        """Have a CA certificate signed. `csr` is PKCS#10 in DER; `ttl` is the wish, in seconds.

        Raises:
            Unavailable: the upstream cannot be reached or refuses now; the message names it and the reason.
        """
        ...

    async def publish_jwt_authority(self, authority: JwtAuthority) -> tuple[JwtAuthority, ...]:
        """Hand our JWT key up, so that the whole trust domain verifies our tokens; all keys it has then.

        Raises:
            Unimplemented: this upstream publishes no JWT keys; ours stay local to this server's bundle.
            Unavailable: the upstream cannot be reached or refuses now.
        """
        ...

    async def publish_wit_authority(self, authority: WitAuthority) -> tuple[WitAuthority, ...]:
        """The same for the key that signs our WIT-SVIDs; raises the same."""
        ...

    async def close(self) -> None:
        """Stop following. Calling it twice does nothing."""
        ...


class BundleTarget(Protocol):
    """A place where the trust bundle is put for others to read."""

    place: str
    """What and where it is, for messages."""

    def put(self, ours: Publication) -> Outcome:
        """Put it there unless it is there already. May block, for a bounded time; never called twice at once.

        Raises:
            Unavailable, ConfigError: the place cannot be reached or used now.
            PreconditionFailed: what is there must stay (`domain.publication.may_write`).
        """
        ...


class BundleFetcher(Protocol):
    """Fetches the bundles of other trust domains from their endpoints (SPIFFE Federation section 5.2)."""

    async def fetch(
        self, relationship: FederationRelationship, trusted: Callable[[TrustDomain], TrustBundle | None]
    ) -> LoadedBundle:
        """The bundle that the endpoint serves now; `trusted` holds the bundles by which an SVID it shows is judged.

        Raises:
            Unavailable: there is no answer, or none that may be believed; says which rule it breaks and quotes nothing.
        """
        ...

    async def fetch_pinned(self, relationship: FederationRelationship, pins: frozenset[str]) -> LoadedBundle:
        """The bundle that the endpoint serves now, believed because all its keys are among `pins` (`key_pins`).

        Raises:
            Unavailable: as `fetch`; also if a key is not among the pins, or an SVID is not of a key among them.
        """
        ...


@dataclass(frozen=True, slots=True)
class PublishOrder:
    """What is put where. `refresh_hint` in seconds replaces the bundle's own."""

    name: str
    format: BundleFormat
    refresh_hint: int | None
    target: BundleTarget


class LeafSigners(Protocol):
    """Processes beside this one that verify requests and sign leaves."""

    @property
    def ready(self) -> int:
        """How many of them take orders now."""
        ...

    def seat(self) -> AbstractAsyncContextManager[None]:
        """Wait for room at one of them."""
        ...

    async def sign(
        self, key: SigningKey, taken: frozenset[str], orders: Sequence[tuple[LeafOrder, bytes]]
    ) -> list[SignedLeaf | None] | None:
        """Sign each order for the key of its request, within a `seat`.

        None if that did not happen, and in the answer for each order that was not signed, whatever the reason: the
        caller then does it itself.
        """
        ...


class AuditLog(Protocol):
    """The append-only audit sink (architecture A16)."""

    def record(self, *events: AuditEvent) -> None:
        """Write a line for each, in order. Those about authorities and by administrators are flushed on return."""
        ...


class LogLevel(Protocol):
    """The level of the process's log: panic, fatal, error, warn, info, debug or trace."""

    @property
    def current(self) -> str:
        """The level in force."""
        ...

    @property
    def launch(self) -> str:
        """The level the process was started with."""
        ...

    def turn(self, name: str) -> None:
        """Log what is at least as grave as `name`."""
        ...
