"""Where an authority stands in a trust bundle, by its kind: the one place that knows which list and which id that is.

An X.509 authority is published as its certificate and known by its subject key identifier; a JWT or WIT authority as a
public key under its key id. Everything here is a pure function of a bundle.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from identity_server.domain.authority import Authority, AuthorityKind
from spiffe_core.bundle import JwtAuthority, TrustBundle, WitAuthority, X509Authority
from spiffe_core.errors import Internal

PRUNE_AFTER = 86_400
"""Seconds an expired authority stays in the bundle (spire_features section 13.1)."""


def published_ids(bundle: TrustBundle | None, kind: AuthorityKind) -> frozenset[str]:
    """The ids of the authorities of one kind that stand in `bundle`."""
    return frozenset(one.key_id for one in _listed(bundle, kind))


def tainted_ids(bundle: TrustBundle | None, kind: AuthorityKind) -> frozenset[str]:
    """The ids of those that are tainted."""
    return frozenset(one.key_id for one in _listed(bundle, kind) if one.tainted)


def signing_ids(bundle: TrustBundle | None, kind: AuthorityKind) -> frozenset[str]:
    """The ids of those that may sign: published, and not tainted."""
    return frozenset(one.key_id for one in _listed(bundle, kind) if not one.tainted)


def ends_at(bundle: TrustBundle | None, kind: AuthorityKind, authority_id: str) -> int:
    """When a published authority expires, in unix seconds; 0 if that is unknown."""
    return max((_end(one) for one in _listed(bundle, kind) if one.key_id == authority_id), default=0)


def with_roots(bundle: TrustBundle, roots: Iterable[bytes]) -> TrustBundle:
    """The bundle with these roots in it: one change, however many they are."""
    after = bundle
    for root in roots:
        after = after.with_x509_authority(root)
    return bundle if after is bundle else replace(after, sequence=bundle.sequence + 1)


def with_published(bundle: TrustBundle, authority: Authority, roots: tuple[bytes, ...] = ()) -> TrustBundle:
    """The bundle with this authority in it, or with the `roots` above it if there are some.

    Raises:
        Internal: its key id already names a token key of the other kind (WIT-36).
    """
    if authority.kind == "x509":
        return with_roots(bundle, roots or (authority.certificate,))
    other: AuthorityKind = "wit" if authority.kind == "jwt" else "jwt"
    if authority.authority_id in published_ids(bundle, other):
        raise Internal("a new key id names another key of the bundle already", authority_id=authority.authority_id)
    values = (authority.authority_id, authority.certificate, authority.not_after)
    if authority.kind == "jwt":
        return bundle.with_jwt_authority(JwtAuthority(*values))
    return bundle.with_wit_authority(WitAuthority(*values))


def without_published(bundle: TrustBundle, kind: AuthorityKind, authority_id: str) -> TrustBundle:
    """The bundle without this authority."""
    if kind == "x509":
        return bundle.without_x509_authority(authority_id)
    return bundle.without_jwt_authority(authority_id) if kind == "jwt" else bundle.without_wit_authority(authority_id)


def with_tainted(bundle: TrustBundle, kind: AuthorityKind, authority_id: str) -> TrustBundle:
    """The bundle with this authority marked as no longer to be relied on."""
    if kind == "x509":
        return bundle.with_x509_tainted(authority_id)
    return bundle.with_jwt_tainted(authority_id) if kind == "jwt" else bundle.with_wit_tainted(authority_id)


def expired_ids(bundle: TrustBundle | None, kind: AuthorityKind, now: int, *, keep: frozenset[str]) -> tuple[str, ...]:
    """The ids of authorities that expired more than a day ago, except those in `keep`. Unknown ends never expire."""
    return tuple(
        one.key_id
        for one in _listed(bundle, kind)
        if one.key_id not in keep and _end(one) and _end(one) + PRUNE_AFTER < now
    )


def _listed(
    bundle: TrustBundle | None, kind: AuthorityKind
) -> tuple[X509Authority, ...] | tuple[JwtAuthority, ...] | tuple[WitAuthority, ...]:
    if bundle is None:
        return ()
    if kind == "x509":
        return bundle.x509_authorities
    return bundle.jwt_authorities if kind == "jwt" else bundle.wit_authorities


def _end(one: X509Authority | JwtAuthority | WitAuthority) -> int:
    return int(one.not_after.timestamp()) if isinstance(one, X509Authority) else one.expires_at
