"""A registration entry as the hot registry keeps it: few bytes, because there are hundreds of thousands."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, field

from identity_server.domain.agents import SERVER_PATH
from spiffe_core.entry import RegistrationEntry
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import TrustDomain


@dataclass(frozen=True, slots=True)
class Traits:
    """What few entries have. Entries without any share one value: a slot less costs 8 bytes an entry."""

    federates_with: tuple[TrustDomain, ...] = ()
    admin: bool = False
    downstream: bool = False
    node_selectors: frozenset[Selector] = frozenset()
    """Of an alias, the selectors a node must have; empty for every other entry."""


_PLAIN = Traits()


@dataclass(frozen=True, slots=True)
class EntryRecord:
    """A registration entry as the hot registry keeps it: wire bytes and what decisions need."""

    id: str
    wire: bytes = field(repr=False)
    path: str
    parent: str
    revision_number: int
    created_at: int
    traits: Traits = _PLAIN

    @property
    def alias(self) -> bool:
        """True if this entry gives nodes a further name instead of being an identity for workloads."""
        return self.parent == SERVER_PATH

    @property
    def federates_with(self) -> tuple[TrustDomain, ...]:
        """The trust domains whose bundles come with this identity."""
        return self.traits.federates_with

    @property
    def admin(self) -> bool:
        """True if it makes its holder an administrator."""
        return self.traits.admin

    @property
    def downstream(self) -> bool:
        """True if it makes its holder a downstream server."""
        return self.traits.downstream

    @property
    def node_selectors(self) -> frozenset[Selector]:
        """Of an alias, the selectors a node must have."""
        return self.traits.node_selectors


@functools.lru_cache(maxsize=1024)
def _shared(seconds: int) -> int:
    """Entries made in one second share the number: 32 bytes an entry."""
    return seconds


def record_of(entry: RegistrationEntry, wire: bytes) -> EntryRecord:
    """The record of an entry whose encoded wire message is `wire`."""
    parent = sys.intern(entry.parent_id.path)
    traits = Traits(
        federates_with=entry.federates_with,
        admin=entry.admin,
        downstream=entry.downstream,
        node_selectors=entry.selectors if parent == SERVER_PATH else frozenset(),
    )
    return EntryRecord(
        id=entry.id,
        wire=wire,
        path=entry.spiffe_id.path,
        parent=parent,
        revision_number=entry.revision_number,
        created_at=_shared(entry.created_at),
        traits=_PLAIN if traits == _PLAIN else traits,
    )
