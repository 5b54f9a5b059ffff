"""Which entries come closest to matching, and what a workload has in place of what they ask for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile

from spiffe_core.entitlement import Verdict
from spiffe_core.entry import RegistrationEntry
from spiffe_core.mending import named
from spiffe_core.selector_kinds import slot_of
from spiffe_core.selectors import Selector

NEAREST = 3
"""So many of the entries that come closest are shown."""

Miss = Verdict[RegistrationEntry]


def nearest_of(verdicts: Sequence[Miss]) -> list[Miss]:
    """Those that miss the least; of equals those with a counterpart of what is missing, then by id."""

    def distance(one: Miss) -> tuple[int, int, str]:
        apart = sum(counterpart(selector, one.surplus) is None for selector in one.missing)
        return len(one.missing), apart, one.entry.id

    return sorted((one for one in verdicts if not one.matched), key=distance)[:NEAREST]


def is_close(miss: Miss) -> bool:
    """Whether the workload has anything of what the entry asks for, or something in the place of it."""
    return len(miss.missing) < len(miss.entry.selectors) or any(
        counterpart(selector, miss.surplus) is not None for selector in miss.missing
    )


def counterpart(missing: Selector, surplus: Iterable[Selector]) -> Selector | None:
    """What the workload has in place of `missing`: about the same thing, another value; of several the most alike."""
    slot = slot_of(missing)
    there = [one for one in surplus if slot_of(one) == slot]
    return max(there, key=lambda one: _alike(one.value, missing.value), default=None)


def told(miss: Miss) -> Iterable[str]:
    """The lines about one of them."""
    yield f"nearest: {named(miss.entry)}"
    for selector in miss.missing:
        there = counterpart(selector, miss.surplus)
        yield f"  asks for {selector}" + (f"; there is {there}" if there is not None else "; there is no such selector")


def _alike(left: str, right: str) -> int:
    """How long their beginnings and their ends are the same."""
    return _shared(left, right) + _shared(left[::-1], right[::-1])


def _shared(left: str, right: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
