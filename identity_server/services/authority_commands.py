"""What happens to authorities inside one transaction: decide by what is stored, then write journal and bundle together.

These functions run on the store's writer thread. Journal and bundle change in one commit, so that no server ever sees
an authority ACTIVE whose public half is not published. `taint` and `revoke` take any authority of any server, also one
whose server is gone (architecture A15): the bundle says whether it exists, the journal whether it is still in force.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import get_args

from identity_server.domain.authority import (
    Activate,
    Authority,
    AuthorityKind,
    Command,
    Event,
    Forget,
    Forgotten,
    Prepared,
    Retire,
    Retired,
    Slots,
    Status,
    Taint,
    decide,
)
from identity_server.domain.orders import Errand, ErrandStatus, Order
from identity_server.domain.published import (
    expired_ids,
    published_ids,
    signing_ids,
    tainted_ids,
    with_published,
    with_tainted,
    without_published,
)
from identity_server.domain.rotation import expired_authorities
from identity_server.ports import UnitOfWork
from spiffe_core.bundle import TrustBundle
from spiffe_core.errors import Internal, InvalidRequest, Unavailable
from spiffe_core.spiffe_id import TrustDomain

KINDS: tuple[AuthorityKind, ...] = get_args(AuthorityKind)
WORDS: dict[AuthorityKind, str] = {"x509": "X.509", "jwt": "JWT", "wit": "WIT"}


def carry_out(
    uow: UnitOfWork, server_id: str, trust_domain: TrustDomain, kind: AuthorityKind, command: Command, now: int
) -> tuple[Event, ...]:
    """One command to the slots of one server."""
    slots = Slots.of(uow.authorities.of_server(server_id), kind)
    bundle = uow.bundles.get(trust_domain)
    if isinstance(command, Activate):
        command = replace(command, bundle=signing_ids(bundle, kind))
    events = decide(slots, command, now)
    for event in events:
        if isinstance(event, Forgotten):
            uow.authorities.remove(event.authority.authority_id)
            continue
        if isinstance(event, Prepared):
            before = bundle if bundle is not None else TrustBundle(trust_domain)
            stored = with_published(before, event.authority, event.roots)
            _check_birth(uow, stored, event)
            if event.replaced is not None:
                uow.authorities.remove(event.replaced.authority_id)
            uow.bundles.put(stored)
        uow.authorities.put(event.authority)
    return events


def _check_birth(uow: UnitOfWork, bundle: TrustBundle, event: Prepared) -> None:
    """What an upstream authority chose for us may neither be tainted nor belong to somebody already."""
    new = event.authority
    if new.anchor_id and new.anchor_id not in signing_ids(bundle, new.kind):
        raise Unavailable(
            f"the upstream authority signs below the root {new.anchor_id}, which is tainted here; "
            "let it sign below another"
        )
    holder = uow.authorities.get(new.authority_id)
    if holder is not None and holder != event.replaced:
        raise Internal("the key identifier of a new authority names another one already", authority_id=new.authority_id)


def prune(
    uow: UnitOfWork, server_id: str, trust_domain: TrustDomain, kinds: Iterable[AuthorityKind], now: int
) -> tuple[str, ...]:
    """Take what expired a day ago out of the journal of this server and out of the bundle, whosever it was (R31).

    `kinds` are those this server leads; what is in force among them stays. The ids that left the bundle.
    """
    journal = uow.authorities.of_server(server_id)
    bundle = uow.bundles.get(trust_domain)
    expired = {kind: expired_ids(bundle, kind, now, keep=in_force(journal, kind, kinds)) for kind in KINDS}
    for one in expired_authorities(journal, now):
        for event in decide(Slots.of(journal, one.kind), Forget(one.authority_id), now):
            uow.authorities.remove(event.authority.authority_id)
    removed = tuple(authority_id for ids in expired.values() for authority_id in ids)
    if bundle is not None and removed:
        for kind, ids in expired.items():
            for authority_id in ids:
                bundle = without_published(bundle, kind, authority_id)
        uow.bundles.put(bundle)
    return removed


def in_force(journal: Iterable[Authority], kind: AuthorityKind, kinds: Iterable[AuthorityKind]) -> frozenset[str]:
    """The ids under which authorities of one kind that sign or will sign stand in the bundle.

    There are none if the kind is switched off.
    """
    if kind not in kinds:
        return frozenset()
    return frozenset(one.published_as for one in journal if one.kind == kind and one.status is not Status.OLD)


def taint(
    uow: UnitOfWork, trust_domain: TrustDomain, kind: AuthorityKind, authority_id: str, now: int
) -> Authority | None:
    """Mark an authority as no longer to be relied on, in the bundle and in its server's journal; its journal row.

    Raises:
        InvalidRequest: there is none with this id, or it signs, or it is about to.
    """
    bundle, row = uow.bundles.get(trust_domain), _row(uow, kind, authority_id)
    if row is not None and row.status is Status.ACTIVE:
        raise InvalidRequest("unable to taint current local authority", field="authority_id")
    if bundle is None or authority_id not in published_ids(bundle, kind):
        raise InvalidRequest("unexpected authority ID", field="authority_id")
    if row is not None and row.status is Status.PREPARED:
        raise InvalidRequest("only Old local authorities can be tainted, this one is Prepared", field="authority_id")
    if row is not None:
        for event in decide(_slots_of(uow, row), Taint(authority_id), now):
            uow.authorities.put(event.authority)
    uow.bundles.put(with_tainted(bundle, kind, authority_id))
    return row


def revoke(
    uow: UnitOfWork,
    trust_domain: TrustDomain,
    kind: AuthorityKind,
    authority_id: str,
    now: int,
    destroy: Callable[[Authority], Order],
) -> Authority | None:
    """Take a tainted authority out of the bundle and empty its slot; its journal row.

    Its server gets the order to destroy the key in the same commit: a crash in between loses neither (architecture
    A15).

    Raises:
        InvalidRequest: there is none with this id, or it signs, or it is about to.
        Internal: it is not tainted.
    """
    bundle, row = uow.bundles.get(trust_domain), _row(uow, kind, authority_id)
    if row is not None and row.status is not Status.OLD:
        word = "current" if row.status is Status.ACTIVE else "prepared"
        raise InvalidRequest(f"invalid authority ID: unable to use the {word} authority", field="authority_id")
    if bundle is None or authority_id not in published_ids(bundle, kind):
        raise InvalidRequest("invalid authority ID: no such authority in the bundle", field="authority_id")
    if authority_id not in tainted_ids(bundle, kind):
        raise Internal(f"failed to revoke {WORDS[kind]} authority: it is not tainted; taint it first")
    if row is not None:
        order = destroy(row)
        for event in decide(_slots_of(uow, row), Forget(authority_id), now):
            uow.authorities.remove(event.authority.authority_id)
        uow.orders.add(order, (row.server_id,))
    uow.bundles.put(without_published(bundle, kind, authority_id))
    return row


def every_authority(uow: UnitOfWork) -> tuple[Authority, ...]:
    """The journal of all servers."""
    return tuple(one for kind in KINDS for one in uow.authorities.of_kind(kind))


def retire_server(uow: UnitOfWork, server_id: str, now: int) -> tuple[Authority, ...]:
    """Nobody waits for this server any more, and what it signs with becomes old; the authorities that did."""
    journal = uow.authorities.of_server(server_id)
    retired: list[Authority] = []
    for one in journal:
        for event in decide(Slots.of(journal, one.kind), Retire(one.authority_id), now):
            assert isinstance(event, Retired)
            uow.authorities.put(event.authority)
            retired.append(event.authority)
    for order in uow.orders.waiting_for(server_id):
        if order.verb != "destroy":  # should it come back after all, revoked keys are destroyed still
            uow.orders.report(order.order_id, Errand(server_id, ErrandStatus.GIVEN_UP, "", now))
    return tuple(retired)


def forget_spent(uow: UnitOfWork, spent: Iterable[Authority], now: int) -> None:
    """Take old authorities of another server out of the journal."""
    for one in spent:
        for event in decide(_slots_of(uow, one), Forget(one.authority_id), now):
            uow.authorities.remove(event.authority.authority_id)


def _row(uow: UnitOfWork, kind: AuthorityKind, authority_id: str) -> Authority | None:
    row = uow.authorities.get(authority_id)
    return row if row is not None and row.kind == kind else None


def _slots_of(uow: UnitOfWork, row: Authority) -> Slots:
    return Slots.of(uow.authorities.of_server(row.server_id), row.kind)
