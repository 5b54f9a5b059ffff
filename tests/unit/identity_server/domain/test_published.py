"""Where authorities stand in the bundle (R31, WIT-36, TDB): one answer for each kind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest

from identity_server.domain.authority import Authority, AuthorityKind, Status
from identity_server.domain.published import (
    PRUNE_AFTER,
    ends_at,
    expired_ids,
    published_ids,
    tainted_ids,
    with_published,
    with_tainted,
    without_published,
)
from spiffe_core.bundle import JwtAuthority, TrustBundle
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import Internal
from spiffe_core.spiffe_id import TrustDomain
from tests.authority import SpiffeTestCA

TD = TrustDomain("example.org")
END = datetime(2030, 1, 1, tzinfo=UTC)
KINDS: tuple[AuthorityKind, ...] = get_args(AuthorityKind)


def make(kind: AuthorityKind, name: str, end: datetime = END) -> Authority:
    if kind == "x509":
        ca = SpiffeTestCA("example.org", name=name, not_before=END - timedelta(days=3), not_after=end)
        (key_id,) = published_ids(TrustBundle(TD).with_x509_authority(ca.der), "x509")
        material = ca.der
    else:
        key_id, material = name, spki_der(generate(KeyKind.EC_P256).public_key())
    seconds = int(end.timestamp())
    return Authority(key_id, "s1", "A", Status.PREPARED, material, seconds - 100, seconds, seconds - 100, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_an_authority_is_published_tainted_and_withdrawn_among_its_kind(kind: AuthorityKind) -> None:
    """Each change raises the sequence; the other kinds are untouched; a repetition changes nothing."""
    authority = make(kind, "one")
    start = with_published(TrustBundle(TD), make(kind, "other"))
    bundle = with_published(start, authority)
    assert authority.authority_id in published_ids(bundle, kind)
    assert all(not published_ids(bundle, other) for other in KINDS if other != kind)
    assert ends_at(bundle, kind, authority.authority_id) == authority.not_after
    assert with_published(bundle, authority) is bundle
    marked = with_tainted(bundle, kind, authority.authority_id)
    assert (tainted_ids(bundle, kind), tainted_ids(marked, kind)) == (frozenset(), {authority.authority_id})
    gone = without_published(marked, kind, authority.authority_id)
    assert published_ids(gone, kind) == published_ids(start, kind)
    assert [start.sequence + 1, start.sequence + 2, start.sequence + 3] == [
        bundle.sequence,
        marked.sequence,
        gone.sequence,
    ]
    assert published_ids(None, kind) == tainted_ids(None, kind) == frozenset()
    assert ends_at(None, kind, "one") == 0


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_expired_a_day_ago_leaves_the_bundle(kind: AuthorityKind) -> None:
    """FED-04, R31: whichever server's it is; never one that is still in force."""
    shifts = {"gone": timedelta(0), "fresh": timedelta(seconds=2), "kept": timedelta(days=-1)}
    made = {name: make(kind, name, END + shift) for name, shift in shifts.items()}
    bundle = TrustBundle(TD)
    for one in made.values():
        bundle = with_published(bundle, one)
    now = int(END.timestamp()) + PRUNE_AFTER + 1
    keep = frozenset({made["kept"].authority_id})
    assert expired_ids(bundle, kind, now, keep=keep) == (made["gone"].authority_id,)
    assert expired_ids(bundle, kind, now - 1, keep=keep) == ()


def test_a_key_without_a_known_end_is_never_pruned() -> None:
    """A downstream server may publish one (`expires_at` 0)."""
    key = JwtAuthority("k", spki_der(generate(KeyKind.EC_P256).public_key()))
    bundle = TrustBundle(TD).with_jwt_authority(key)
    assert expired_ids(bundle, "jwt", 2**40, keep=frozenset()) == ()


def test_a_key_id_never_names_a_jwt_and_a_wit_key() -> None:
    """WIT-36: the publisher refuses."""
    bundle = with_published(TrustBundle(TD), make("jwt", "same"))
    with pytest.raises(Internal, match="names another key"):
        with_published(bundle, make("wit", "same"))
