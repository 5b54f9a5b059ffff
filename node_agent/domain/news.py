"""What the server pushed, and what it makes of what the agent holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spiffe_core.bundle import BundleSet, TrustBundle
from spiffe_core.entry import RegistrationEntry
from spiffe_core.spiffe_id import TrustDomain


@dataclass(frozen=True, slots=True)
class News:
    """One whole delta. `unreadable` are entries that were sent and break a rule: they are left out."""

    position: str
    """Where the agent is once it has applied this; opaque."""
    entries: tuple[RegistrationEntry, ...] = ()
    removed: frozenset[str] = frozenset()
    unreadable: frozenset[str] = frozenset()
    all_entries: bool = False
    own: TrustBundle | None = None
    """The trust domain's own bundle, if it changed."""
    federated: tuple[TrustBundle, ...] = ()
    removed_bundles: frozenset[TrustDomain] = frozenset()
    all_bundles: bool = False

    @property
    def empty(self) -> bool:
        """True if only the position is new."""
        changes = self.entries or self.removed or self.unreadable or self.federated or self.removed_bundles
        return not (changes or self.all_entries or self.all_bundles or self.own is not None)

    def entries_after(self, held: Mapping[str, RegistrationEntry]) -> dict[str, RegistrationEntry]:
        """The entries of now. A version that cannot be read takes the place of the one before, so it is not served."""
        gone = self.removed | self.unreadable
        kept = {} if self.all_entries else {key: entry for key, entry in held.items() if key not in gone}
        kept.update((entry.id, entry) for entry in self.entries)
        return kept

    def bundles_after(self, held: BundleSet) -> BundleSet:
        """The bundles of now."""
        kept: dict[TrustDomain, TrustBundle] = {}
        if not self.all_bundles:
            kept = {name: bundle for name, bundle in held.federated.items() if name not in self.removed_bundles}
        kept.update((bundle.trust_domain, bundle) for bundle in self.federated)
        return BundleSet(held.own if self.own is None else self.own, kept)
