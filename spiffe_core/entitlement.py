"""Who is entitled to what, and why: the one decision engine of server and agent.

The server asks which entries an agent may act for: `applicable` finds the node aliases, `reachable` follows parents.
The agent asks which entries a workload matches: `matching` for the answer, `explain` for the answer with its reasons,
`unique_hints` for what may be shown in one response. The only rule about selectors is that all of an entry's selectors
must be among those held; an entry without selectors matches nobody.

The functions take any record with the attributes they name, so the server can use its compact records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from spiffe_core.selectors import Selector, canonical


class Identified(Protocol):
    """Anything with an entry ID."""

    @property
    def id(self) -> str:
        """The entry ID."""
        ...


class Selective(Identified, Protocol):
    """An entry that is matched by its selectors."""

    @property
    def selectors(self) -> AbstractSet[Selector]:
        """What must be held."""
        ...


class Hinted(Identified, Protocol):
    """An entry with a hint and an age."""

    @property
    def hint(self) -> str:
        """The hint, "" for none."""
        ...

    @property
    def created_at(self) -> int:
        """Unix seconds."""
        ...


E = TypeVar("E")
S = TypeVar("S", bound=Selective)
H = TypeVar("H", bound=Hinted)
_by_id = attrgetter("id")


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether what is held covers what is required, and by which selectors it fails or goes beyond."""

    matched: bool
    missing: tuple[Selector, ...] = ()
    surplus: tuple[Selector, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict(Generic[E]):
    """A judgement about one entry."""

    entry: E
    matched: bool
    missing: tuple[Selector, ...] = ()
    surplus: tuple[Selector, ...] = ()


@dataclass(frozen=True, slots=True)
class Granted(Generic[E]):
    """An entry an agent may act for, and the path of the parent through which it was reached."""

    entry: E
    parent: str


def covers(held: AbstractSet[Selector], required: AbstractSet[Selector]) -> bool:
    """Whether every required selector is held. Requiring nothing is a mistake, not an open door."""
    return bool(required) and required <= held


def judge(required: AbstractSet[Selector], held: AbstractSet[Selector]) -> Judgement:
    """`covers` with its reasons: `missing` are required and not held, `surplus` held and not required."""
    return Judgement(covers(held, required), canonical(required - held), canonical(held - required))


def matching(entries: Iterable[S], selectors: AbstractSet[Selector]) -> tuple[S, ...]:
    """The entries a workload with `selectors` is entitled to, by entry ID; the first is its default identity."""
    return tuple(sorted((entry for entry in entries if covers(selectors, entry.selectors)), key=_by_id))


def explain(entries: Iterable[S], selectors: AbstractSet[Selector]) -> tuple[Verdict[S], ...]:
    """A verdict on every entry, by entry ID. Agrees with `matching`."""
    verdicts = []
    for entry in sorted(entries, key=_by_id):
        found = judge(entry.selectors, selectors)
        verdicts.append(Verdict(entry, found.matched, found.missing, found.surplus))
    return tuple(verdicts)


def unique_hints(entries: Iterable[H]) -> tuple[H, ...]:
    """Drop entries that repeat a hint: the oldest keeps it, the lower ID among equals. Order is kept."""
    given = tuple(entries)
    keeper: dict[str, H] = {}
    for entry in given:
        known = keeper.get(entry.hint)
        if known is None or (entry.created_at, entry.id) < (known.created_at, known.id):
            keeper[entry.hint] = entry
    return tuple(entry for entry in given if not entry.hint or keeper[entry.hint] is entry)


def applicable(
    aliases: Iterable[E], node_selectors: AbstractSet[Selector], selectors_of: Callable[[E], AbstractSet[Selector]]
) -> tuple[E, ...]:
    """The node aliases that apply to a node: those whose selectors are all among the node's."""
    return tuple(alias for alias in aliases if covers(node_selectors, selectors_of(alias)))


def reachable_parents(
    start: Iterable[str], children: Callable[[str], Iterable[E]], path_of: Callable[[E], str]
) -> tuple[str, ...]:
    """Every path that acts as a parent: `start`, the paths of their children, and so on until nothing is new.

    Each path is asked for once, so a cycle ends by itself and the work is bounded by the number of entries.
    """
    paths = dict.fromkeys(start)
    waiting = list(paths)
    while waiting:
        for entry in children(waiting.pop()):
            path = path_of(entry)
            if path not in paths:
                paths[path] = None
                waiting.append(path)
    return tuple(paths)


def reachable(
    start: Iterable[str], children: Callable[[str], Iterable[E]], path_of: Callable[[E], str]
) -> tuple[Granted[E], ...]:
    """The entries below `start` (an agent's own path and those of its aliases), children of children included."""
    return tuple(
        Granted(entry, parent) for parent in reachable_parents(start, children, path_of) for entry in children(parent)
    )
