"""Selectors: facts about a workload or a node, written `type:value`.

The type has no colon, the value may have many: `k8s:pod-label:app:web` has type `k8s`. A set of selectors is matched
by the subset test and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

from spiffe_core.errors import InvalidSelector

MAX_TYPE_BYTES = 128
MAX_VALUE_BYTES = 8192
_PARTS = attrgetter("type", "value")


@dataclass(frozen=True, slots=True, order=True)
class Selector:
    """One fact. The order is by type, then value, by code point."""

    type: str
    value: str

    def __post_init__(self) -> None:
        if not self.type:
            raise InvalidSelector("selector type: is empty; write type:value", field="selectors.type")
        if ":" in self.type:
            raise InvalidSelector("selector type: must not contain ':'", field="selectors.type")
        if not self.value:
            raise InvalidSelector("selector value: is empty; write type:value", field="selectors.value")
        if len(self.type) > MAX_TYPE_BYTES or not self.type.isascii():
            _check_size(self.type, MAX_TYPE_BYTES, "type")
        if len(self.value) > MAX_VALUE_BYTES or not self.value.isascii():
            _check_size(self.value, MAX_VALUE_BYTES, "value")

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Read `type:value`; the first colon separates.

        Raises:
            InvalidSelector: naming `selectors.type` or `selectors.value`.
        """
        kind, colon, value = text.partition(":")
        if not colon:
            raise InvalidSelector(
                "selector: has no ':'; write type:value, for example unix:uid:1000", field="selectors"
            )
        return cls(kind, value)

    def __str__(self) -> str:
        return f"{self.type}:{self.value}"


class PartialSelectors(frozenset[Selector]):
    """What is known of a process while not everybody who was asked could tell. Equal to any set with the same members.

    Fewer selectors never match more, so it is used like any other set, and read again before long.
    """

    __slots__ = ()


def canonical(selectors: Iterable[Selector]) -> tuple[Selector, ...]:
    """The set as a sorted tuple without repetition."""
    return tuple(sorted(set(selectors), key=_PARTS))


def selector_digest(selectors: Iterable[Selector]) -> bytes:
    """SHA-256 over the canonical set. Every part is written with its length, so two sets never look alike."""
    return digest_in_order(canonical(selectors))


def digest_in_order(selectors: Iterable[Selector]) -> bytes:
    """The same of selectors that are in canonical order already."""
    parts = [part.encode() for selector in selectors for part in (selector.type, selector.value)]
    return hashlib.sha256(
        b"".join([sized for part in parts for sized in (len(part).to_bytes(4, "big"), part)])
    ).digest()


def _check_size(text: str, limit: int, part: str) -> None:
    field = f"selectors.{part}"
    # A character is at least one byte: the cheap test comes first, so that a huge value is not encoded at all.
    if len(text) > limit:
        raise InvalidSelector(f"selector {part}: has more than {limit} bytes", field=field)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidSelector(f"selector {part}: is not valid UTF-8", field=field) from None
    if size > limit:
        raise InvalidSelector(f"selector {part}: has more than {limit} bytes", field=field)
