"""Slots: what a key may be called, and how many there may be."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TypeAlias

from spiffe_core.crypto.keys import AuthorityKey
from spiffe_core.errors import InvalidRequest

MAX_SLOTS = 16
_SLOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")

Keys: TypeAlias = dict[str, AuthorityKey]


def well_formed(slot: str) -> bool:
    """Whether `slot` can be the name of one."""
    return _SLOT.fullmatch(slot) is not None


def check_slot(slot: str, taken: Collection[str]) -> None:
    """Refuse a name that is none, and one slot too many beside those that are `taken`.

    Raises:
        InvalidRequest: with `field` "slot".
    """
    if not well_formed(slot):
        raise InvalidRequest(f"slot: {slot!r} is not letters, digits and dashes, at most 64", field="slot")
    if slot not in taken and len(taken) >= MAX_SLOTS:
        raise InvalidRequest(f"slot: all {MAX_SLOTS} slots are taken; delete one first", field="slot")


def with_key(keys: Keys, slot: str, key: AuthorityKey) -> Keys:
    """These keys with `key` in `slot`; `keys` itself is not altered.

    Raises:
        InvalidRequest: the slot's name is none, or all are taken.
    """
    check_slot(slot, keys)
    return {**keys, slot: key}
