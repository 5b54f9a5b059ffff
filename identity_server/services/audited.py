"""Around every change: one line before it, one line with what became of it (architecture A16).

The first line is flushed before the effect and refuses the change when it cannot be written. The second is queued: by
then the change has happened or has not, and its line cannot alter that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from identity_server.domain.audit import BEGUN, AuditEvent, AuthorityChanged
from identity_server.domain.authority import Authority
from identity_server.ports import AuditLog
from spiffe_core.errors import IdentityError

E = TypeVar("E", bound=AuditEvent)
R = TypeVar("R")


@contextmanager
def audited(audit: AuditLog, *events: AuditEvent) -> Iterator[None]:
    """Record that `events` begin, run the block, record what became of them: they share one fate.

    Raises:
        Unavailable: the audit log cannot be written; the block does not run.
    """
    _begin(audit, events)
    try:
        yield
    except BaseException as error:
        audit.record(*[event.ended(error) for event in events])
        raise
    audit.record(*[event.ended() for event in events])


async def audited_batch(
    audit: AuditLog,
    events: Sequence[E],
    act: Callable[[], Awaitable[list[R]]],
    told: Callable[[E, R], E] | None = None,
) -> list[R]:
    """Record that `events` begin, act, record what became of each by its answer, in order.

    `told` adds what only the answer knows; a refusal among the answers is the reason of its event.
    """
    _begin(audit, events)
    try:
        answers = await act()
    except BaseException as error:
        audit.record(*[event.ended(error) for event in events])
        raise
    known = events if told is None else [told(event, answer) for event, answer in zip(events, answers, strict=True)]
    refusals = (answer if isinstance(answer, IdentityError) else None for answer in answers)
    audit.record(*[event.ended(refusal) for event, refusal in zip(known, refusals, strict=True)])
    return answers


def changed(change: str, about: Authority, actor: str = "") -> AuthorityChanged:
    """The event of a change of one authority; without an actor it is the schedule's."""
    return AuthorityChanged(
        change=change,
        authority_id=about.authority_id,
        not_after=about.not_after,
        slot=about.key_slot,
        server_id=about.server_id,
        actor=actor,
    )


def _begin(audit: AuditLog, events: Sequence[AuditEvent]) -> None:
    audit.record(*[event.told(BEGUN) for event in events])
