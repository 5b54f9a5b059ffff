"""Commands that mend what is wrong with an entry, ready to be pasted into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from spiffe_core.entry import RegistrationEntry
from spiffe_core.selectors import Selector, canonical


def selector_flags(selectors: Iterable[Selector]) -> str:
    """As `entry create` and `entry update` take them."""
    return " ".join(f"-selector {shlex.quote(str(one))}" for one in canonical(selectors))


def update_command(entry: RegistrationEntry, *, parent: str = "", selectors: Iterable[Selector] = ()) -> str:
    """Replaces the entry with one that differs in its parent, or in its selectors, and in nothing else.

    `entry update` resets what it is not given, so everything that the entry has is in the command.
    """
    names = f"-entryID {entry.id} -parentID {parent or entry.parent_id} -spiffeID {entry.spiffe_id}"
    wanted = selector_flags(frozenset(selectors) or entry.selectors)
    return " ".join(("identity-server entry update", names, wanted, *_kept(entry)))


def _kept(entry: RegistrationEntry) -> Iterator[str]:
    """What of an entry is not at its default, except its names and selectors."""
    for flag, number in (
        ("x509SVIDTTL", entry.x509_svid_ttl),
        ("jwtSVIDTTL", entry.jwt_svid_ttl),
        ("entryExpiry", entry.expires_at),
    ):
        if number:
            yield f"-{flag} {number}"
    yield from (f"-federatesWith {one}" for one in entry.federates_with)
    yield from (f"-dns {one}" for one in entry.dns_names)
    if entry.hint:
        yield f"-hint {shlex.quote(entry.hint)}"
    for flag, on in (
        ("admin", entry.admin),
        ("downstream", entry.downstream),
        ("storeSVID", entry.store_svid),
        ("disableX509SVIDPrefetch", entry.disable_x509_svid_prefetch),
        ("jwtSVIDIncludeJTI", entry.jwt_svid_include_jti),
    ):
        if on:
            yield f"-{flag}"


def create_command(parent: str, spiffe_id: str, selectors: Iterable[Selector]) -> str:
    """Makes an entry."""
    return f"identity-server entry create -parentID {parent} -spiffeID {spiffe_id} {selector_flags(selectors)}".rstrip()


def named(entry: RegistrationEntry) -> str:
    """An entry as people find it."""
    return f"entry {entry.id} ({entry.spiffe_id})"
