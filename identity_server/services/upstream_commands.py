"""What happens to upstream roots inside one transaction: follow the upstream's view, taint a root, take one out.

The journal of all servers says which roots somebody still signs below. Those are neither tainted nor taken out: whoever
signs below one has to be given another first (spire_features section 20).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from identity_server.domain.authority import Authority, AuthorityKind, Forget, Slots, Status, decide
from identity_server.domain.federation import with_published_key
from identity_server.domain.orders import Order
from identity_server.domain.published import (
    published_ids,
    signing_ids,
    tainted_ids,
    with_roots,
    with_tainted,
    without_published,
)
from identity_server.domain.upstream import UpstreamView
from identity_server.ports import UnitOfWork
from spiffe_core.bundle import JwtAuthority, TrustBundle, WitAuthority
from spiffe_core.crypto.certificates import read_certificate
from spiffe_core.errors import Conflict, Internal, InvalidRequest, NotFound
from spiffe_core.spiffe_id import TrustDomain

FIELD = "subject_key_id"
NOT_VALID = "provided subject key id is not valid"


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Key identifiers that the upstream showed as tainted and shows no more."""

    x509: frozenset[str] = frozenset()
    jwt: frozenset[str] = frozenset()
    wit: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Followed:
    """The bundle as the upstream wants it, and the ids of what could not be followed: key ids that name other keys."""

    bundle: TrustBundle
    conflicts: tuple[str, ...] = ()


def followed(bundle: TrustBundle, view: UpstreamView, withdrawn: Withdrawn, in_force: frozenset[str]) -> Followed:
    """Our bundle with the upstream's authorities and taints, withdrawn tainted ones gone; the same if nothing is new.

    `in_force` are the roots that somebody signs below: they stay, and stay untainted, until nobody does.
    """
    after = with_roots(bundle, (one.der for one in view.x509_authorities))
    conflicts = []
    published: tuple[JwtAuthority | WitAuthority, ...] = (*view.jwt_authorities, *view.wit_authorities)
    for key in published:
        try:
            after = with_published_key(after, key)
        except Conflict:
            conflicts.append(key.key_id)
    bad: dict[AuthorityKind, set[str]] = {
        "x509": {one.key_id for one in view.x509_authorities if one.tainted} - in_force,
        "jwt": {one.key_id for one in view.jwt_authorities if one.tainted}.difference(conflicts),
        "wit": {one.key_id for one in view.wit_authorities if one.tainted}.difference(conflicts),
    }
    for kind, ids in bad.items():
        for key_id in sorted(ids):
            after = with_tainted(after, kind, key_id)
    gone: dict[AuthorityKind, frozenset[str]] = {
        "x509": withdrawn.x509 - in_force,
        "jwt": withdrawn.jwt,
        "wit": withdrawn.wit,
    }
    for kind, withdrawn_ids in gone.items():
        for key_id in sorted(withdrawn_ids & tainted_ids(after, kind)):
            after = without_published(after, kind, key_id)
    if after is not bundle:
        after = replace(after, sequence=bundle.sequence + 1)
    return Followed(after, tuple(conflicts))


def follow(uow: UnitOfWork, trust_domain: TrustDomain, view: UpstreamView, withdrawn: Withdrawn, now: int) -> Followed:
    """Store what `followed` says."""
    stored = uow.bundles.get(trust_domain)
    bundle = stored if stored is not None else TrustBundle(trust_domain)
    found = followed(bundle, view, withdrawn, anchors_in_force(uow.authorities.of_kind("x509"), now))
    if found.bundle is not bundle:
        uow.bundles.put(found.bundle)
    return found


def anchors_in_force(authorities: Iterable[Authority], now: int) -> frozenset[str]:
    """The roots below which an authority of any server signs or will sign."""
    return frozenset(
        one.anchor_id for one in authorities if one.anchor_id and one.status is not Status.OLD and one.not_after > now
    )


def taint_root(uow: UnitOfWork, trust_domain: TrustDomain, server_id: str, key_id: str, now: int) -> str:
    """Mark a root as no longer to be relied on; its id in the bundle. Repeating it changes nothing.

    Raises:
        InvalidRequest: nobody's old authority was signed below it, or somebody signs below it still.
    """
    bundle, root = _chosen(uow, trust_domain, server_id, key_id, now)
    if root in signing_ids(bundle, "x509"):
        uow.bundles.put(bundle.with_x509_tainted(root))
    return root


def revoke_root(
    uow: UnitOfWork,
    trust_domain: TrustDomain,
    server_id: str,
    key_id: str,
    now: int,
    destroy: Callable[[Authority], Order],
) -> str:
    """Take a tainted root out of the bundle, and have the keys of the authorities below it destroyed; its id.

    Raises:
        InvalidRequest: as for tainting.
        Internal: it is not tainted.
    """
    bundle, root = _chosen(uow, trust_domain, server_id, key_id, now)
    if root not in tainted_ids(bundle, "x509"):
        raise Internal("failed to revoke X.509 upstream authority: it is not tainted; taint it first")
    for row in uow.authorities.of_kind("x509"):
        if row.anchor_id == root and row.status is Status.OLD:
            order = destroy(row)
            for event in decide(Slots.of(uow.authorities.of_server(row.server_id)), Forget(row.authority_id), now):
                uow.authorities.remove(event.authority.authority_id)
            uow.orders.add(order, (row.server_id,))
    uow.bundles.put(bundle.without_x509_authority(root))
    return root


def issuer_id(authority: Authority) -> str:
    """The hex key identifier of who signed an authority: SPIRE's upstream authority ID; "" if it is self-signed."""
    if not authority.upstream_chain:
        return ""
    above = read_certificate(authority.certificate).authority_key_id
    return above.hex() if above is not None else authority.anchor_id


def _chosen(
    uow: UnitOfWork, trust_domain: TrustDomain, server_id: str, key_id: str, now: int
) -> tuple[TrustBundle, str]:
    """The bundle, and the root that `key_id` names, by its own identifier or by that of an old authority's issuer."""
    bundle = uow.bundles.get(trust_domain)
    if bundle is None:
        raise NotFound("bundle not found")
    rows = uow.authorities.of_kind("x509")
    roots = {one.anchor_id for one in rows if one.anchor_id and key_id in (one.anchor_id, issuer_id(one))}
    if key_id in published_ids(bundle, "x509"):
        roots.add(key_id)
    for one in rows:
        if one.anchor_id not in roots or one.status is Status.OLD or one.not_after <= now:
            continue
        if one.server_id != server_id:
            raise InvalidRequest(
                f"{NOT_VALID}: server {one.server_id} still signs below it; rotate there first (--all-servers)",
                field=FIELD,
            )
        if one.status is Status.ACTIVE:
            raise InvalidRequest(
                f"{NOT_VALID}: unable to use upstream authority singing current authority", field=FIELD
            )
        raise InvalidRequest(
            f"{NOT_VALID}: only upstream authorities signing an old authority can be used", field=FIELD
        )
    roots &= published_ids(bundle, "x509")
    if len(roots) != 1:
        raise InvalidRequest(f"{NOT_VALID}: upstream authority didn't sign the old local authority", field=FIELD)
    return bundle, roots.pop()
