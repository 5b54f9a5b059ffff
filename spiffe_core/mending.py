"""Commands that mend what is wrong with an entry, ready to be pasted into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from spiffe_core.entry import RegistrationEntry
from spiffe_core.selectors import Selector, canonical


def selector_flags(selectors: Iterable[Selector]) -> str:
    """As `entry create` and `entry update` take them."""
    return " ".join(f"-selector {shlex.quote(str(one))}" for one in canonical(selectors))


def update_command(entry: RegistrationEntry, *, parent: str = "", selectors: Iterable[Selector] = ()) -> str:
    """Replaces the entry with one that differs in its parent, or in its selectors."""
    return (
        f"identity-server entry update -entryID {entry.id} -parentID {parent or entry.parent_id} "
        f"-spiffeID {entry.spiffe_id} {selector_flags(frozenset(selectors) or entry.selectors)}"
    )


def create_command(parent: str, spiffe_id: str, selectors: Iterable[Selector]) -> str:
    """Makes an entry."""
    return f"identity-server entry create -parentID {parent} -spiffeID {spiffe_id} {selector_flags(selectors)}".rstrip()


def named(entry: RegistrationEntry) -> str:
    """An entry as people find it."""
    return f"entry {entry.id} ({entry.spiffe_id})"
