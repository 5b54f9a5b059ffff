"""What an administrator may ask of a list: filters, how selector sets are compared, and pages.

The comparisons are SPIRE's (spire_wire section 3). SUBSET and ANY share at least one member with what was given, so
a record with nothing to compare matches neither.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import SpiffeId, TrustDomain

T = TypeVar("T")


class Match(enum.Enum):
    """How a record's set is compared with the given one; the numbers are MatchBehavior's."""

    EXACT = 0
    """The two sets are equal."""
    SUBSET = 1
    """Every member of the record's set was given."""
    SUPERSET = 2
    """The record's set has every given member."""
    ANY = 3
    """The two sets share a member."""


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which registration entries to list. None means: not asked; several conditions must all hold."""

    spiffe_id: SpiffeId | None = None
    parent_id: SpiffeId | None = None
    selectors: frozenset[Selector] | None = None
    selectors_match: Match = Match.EXACT
    federates_with: frozenset[TrustDomain] | None = None
    federates_with_match: Match = Match.EXACT
    hint: str | None = None
    downstream: bool | None = None


@dataclass(frozen=True, slots=True)
class AgentFilter:
    """Which agents to list. None means: not asked; several conditions must all hold. Times are unix seconds."""

    attestation_type: str | None = None
    selectors: frozenset[Selector] | None = None
    selectors_match: Match = Match.EXACT
    banned: bool | None = None
    can_reattest: bool | None = None
    expires_before: int | None = None


def query_name(wanted: EntryFilter | AgentFilter) -> str:
    """A short name that two questions share only if they ask the same; every server gives the same one.

    A page token carries it, so that a list is continued with the question it was begun with (S58).
    """
    parts = [type(wanted).__name__]
    for item in fields(wanted):
        value = getattr(wanted, item.name)
        if isinstance(value, frozenset):
            value = sorted(map(str, value))  # sets have no order that two processes share
        parts.append(str(value) if isinstance(value, SpiffeId) else repr(value))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list in the order of creation. `next_token` continues it; "" says that this was the last page."""

    items: tuple[T, ...]
    next_token: str = ""

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)
