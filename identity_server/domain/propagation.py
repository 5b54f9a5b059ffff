"""What changed for one agent: from what it was sent last to the state of now.

A stream of the push service keeps `Sent`, which shares everything with the state it was taken from, and makes a `Delta`
whenever it can write. A slow agent therefore skips states and is never queued for (architecture A9). The difference is
always taken between two values, never replayed from events: whatever made an entry come or go, an alias, a parent three
levels up, a restored backup, the agent ends with exactly what it is authorised for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from identity_server.domain.entry_record import EntryRecord
from identity_server.domain.history import Position
from identity_server.domain.state import State
from spiffe_core.bundle import TrustBundle
from spiffe_core.spiffe_id import TrustDomain

Stamps = Mapping[str, tuple[int, int]]
"""Entry id -> (revision number, creation time in unix seconds): what an agent says it holds."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What an agent holds once it has applied everything up to `position`."""

    position: Position
    entries: Mapping[str, EntryRecord] = field(repr=False)
    domains: frozenset[TrustDomain]
    """The trust domains whose bundles it may see: its own, and those its entries federate with."""
    bundles: Mapping[TrustDomain, TrustBundle] = field(repr=False)
    """Of these, the bundles there are."""
    own: TrustDomain


@dataclass(frozen=True, slots=True)
class Delta:
    """The way from one `Sent` to the next."""

    entries: tuple[EntryRecord, ...] = ()
    removed: tuple[str, ...] = ()
    bundles: tuple[TrustBundle, ...] = ()
    removed_bundles: tuple[TrustDomain, ...] = ()
    all_entries: bool = False
    all_bundles: bool = False

    def __bool__(self) -> bool:
        whole = self.all_entries or self.all_bundles
        return whole or bool(self.entries or self.removed or self.bundles or self.removed_bundles)


def everything(state: State, agent_path: str) -> tuple[Sent, Delta]:
    """For an agent that holds nothing."""
    now = _present(state, agent_path, None)
    return now, Delta(
        tuple(now.entries.values()), bundles=tuple(now.bundles.values()), all_entries=True, all_bundles=True
    )


def compared(state: State, agent_path: str, held: Stamps) -> tuple[Sent, Delta]:
    """For an agent of whom only the stamps of its entries are known.

    A deleted and re-created entry may repeat its revision number, not its creation time (R47).
    """
    now = _present(state, agent_path, None)
    differing = (one for one in now.entries.values() if held.get(one.id) != (one.revision_number, one.created_at))
    gone = tuple(entry_id for entry_id in held if entry_id not in now.entries)
    return now, Delta(tuple(differing), gone, tuple(now.bundles.values()), all_bundles=True)


def since(sent: Sent, state: State, agent_path: str, touched: Collection[str] | None) -> tuple[Sent, Delta]:
    """For an agent whose `sent` is known.

    `touched` are the ids of the only entries that may have come, gone or changed; None if that is not known.
    """
    before = sent.entries
    entries = state.authorised(agent_path)
    if entries is before:
        candidates: Iterable[str] = ()
    else:
        candidates = touched if touched is not None else {**before, **entries}
    changed: list[EntryRecord] = []
    removed: list[str] = []
    for entry_id in candidates:
        old, new = before.get(entry_id), entries.get(entry_id)
        if new is None:
            if old is not None:
                removed.append(entry_id)
        elif new is not old and (old is None or new.wire != old.wire):
            changed.append(new)
    federated = any(one.federates_with for one in changed) or any(
        before[entry_id].federates_with for entry_id in (*removed, *(one.id for one in changed)) if entry_id in before
    )
    now = _present(state, agent_path, None if federated else sent.domains)
    bundles = tuple(bundle for name, bundle in now.bundles.items() if sent.bundles.get(name) != bundle)
    gone = tuple(name for name in sent.bundles if name not in now.bundles)
    return now, Delta(tuple(changed), tuple(removed), bundles, gone)


def _present(state: State, agent_path: str, domains: frozenset[TrustDomain] | None) -> Sent:
    entries = state.authorised(agent_path)
    if domains is None:
        domains = frozenset((state.trust_domain, *(name for one in entries.values() for name in one.federates_with)))
    bundles = {name: bundle for name in domains if (bundle := state.trust_bundles.get(name)) is not None}
    return Sent(state.position, entries, domains, bundles, state.trust_domain)
