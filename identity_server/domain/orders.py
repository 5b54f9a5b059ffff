"""Orders to all servers: one step of a forced rotation for everyone who shares the database (architecture A15).

An order is written once, with an errand for each server it concerns. Each server carries out its errands in the order
in which they were given and reports; one that is down does so when it returns. "destroy" is written by the servers
themselves, together with each revocation: the private key goes where it is kept, whoever revoked its authority.

An errand is done or failed for good; what fails for want of the database or of time stays waiting.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from identity_server.domain.authority import Authority, AuthorityKind, Status
from spiffe_core.errors import PreconditionFailed

OrderVerb: TypeAlias = Literal["prepare", "activate", "taint", "revoke", "destroy"]

MAX_FINISHED = 64
"""So many orders are kept; older ones go once nobody waits for them."""
MAX_ORDERS = 1024
"""Beyond so many the oldest goes, also if somebody is waited for."""
MAX_DETAIL = 1024
MAX_ACTOR = 1024


class ErrandStatus(enum.Enum):
    """How far one server is with an order."""

    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"
    GIVEN_UP = "given up"


@dataclass(frozen=True, slots=True)
class Order:
    """What everybody concerned is to do. `created_at` is in unix seconds.

    `authority_id` and `key_digest` (SHA-256 of the SubjectPublicKeyInfo) name the key that is to be destroyed.
    """

    order_id: str
    kind: AuthorityKind
    verb: OrderVerb
    actor: str
    created_at: int
    authority_id: str = ""
    key_digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Errand:
    """One server's part in an order."""

    server_id: str
    status: ErrandStatus = ErrandStatus.WAITING
    detail: str = ""
    finished_at: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """An order with everybody's errands."""

    order: Order
    errands: tuple[Errand, ...]

    @property
    def finished(self) -> bool:
        """Whether nobody is waited for."""
        return all(one.status is not ErrandStatus.WAITING for one in self.errands)


def concerned(authorities: Iterable[Authority], own: str, now: int) -> tuple[str, ...]:
    """The servers an order concerns: this one, and all that have an authority of the kind in force."""
    others = {one.server_id for one in authorities if one.status is not Status.OLD and one.not_after > now}
    return tuple(sorted(others | {own}))


def require_tainted_everywhere(kind: AuthorityKind, orders: Iterable[Progress]) -> None:
    """Before an order to revoke: whoever still has to taint would go on to revoke in the same breath.

    Its agents would lose their connections before they could renew.

    Raises:
        PreconditionFailed: names the servers that are waited for.
    """
    late = sorted(
        {
            errand.server_id
            for progress in orders
            if (progress.order.kind, progress.order.verb) == (kind, "taint")
            for errand in progress.errands
            if errand.status is ErrandStatus.WAITING
        }
    )
    if late:
        raise PreconditionFailed(
            f"not every server has tainted its old authority yet; waiting for {', '.join(late)}. Start those servers "
            "again, or give up one that will not come back with `localauthority give-up-server`; a single authority "
            "can be revoked by its id meanwhile",
            servers=late,
        )


def key_digest(spki: bytes) -> bytes:
    """How an order names a key."""
    return hashlib.sha256(spki).digest()
