"""The keys a provider was told last, and what it may do with them while nobody tells it anything.

A source that is away takes nothing from verifiers at first: the last keys are served, and health says so. After `keep`
seconds they are given up, because a key that was revoked meanwhile would still be served. A source that says this
process has no right to the keys is obeyed at once (WAPI-41).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from identity_server.domain.oidc_documents import Documents, Provider, render
from spiffe_core.bundle import JwtAuthority
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError, Unavailable
from spiffe_core.health import Condition, Part

log = logging.getLogger(__name__)

MAX_LOGGED_KEYS = 16


class HeldKeys:
    """Belongs to the event loop's thread; `part`, `count` and `age` may be asked on others, they read finished values.

    `on_change` hears of each new set of documents.
    """

    def __init__(
        self,
        provider: Provider,
        clock: Clock,
        *,
        keep: float,
        on_change: Callable[[Documents], None] = lambda _: None,
    ) -> None:
        self._provider = provider
        self._clock = clock
        self._keep = keep
        self._on_change = on_change
        self._authorities: tuple[JwtAuthority, ...] | None = None
        self._documents: Documents | None = None
        self._confirmed = clock.monotonic()
        self._trouble = ""

    def loaded(self, authorities: Sequence[JwtAuthority]) -> None:
        """The source has told all of its keys."""
        self._confirmed = self._clock.monotonic()
        if self._trouble:
            log.info("the source of the keys answers again")
            self._trouble = ""
        keys = tuple(authorities)
        if keys == self._authorities:
            return
        documents = render(self._provider, keys)
        changed = documents != self._documents
        self._authorities, self._documents = keys, documents
        if changed:
            ids = documents.key_ids
            log.info("keys published: %d", len(ids), extra={"facts": {"key_ids": list(ids[:MAX_LOGGED_KEYS])}})
            self._on_change(documents)

    def failed(self, error: IdentityError) -> None:
        """The source is away, or said something that cannot be used; what is held stays."""
        if not self._trouble:
            log.warning("the source of the keys gives nothing new: %s", error.public, extra={"facts": error.facts})
        self._trouble = error.public

    def taken_away(self, error: IdentityError) -> None:
        """The source says that this process has no right to the keys."""
        self.failed(error)
        if self._documents is not None:
            log.error("the keys are not served any more: %s", error.public)
        self._authorities = self._documents = None

    def current(self) -> Documents:
        """What may be served now.

        Raises:
            Unavailable: there are no keys, or they are too old. The reason is for anybody to read.
        """
        documents = self._documents
        if documents is None:
            raise Unavailable("the keys are not known now")
        if self.age > self._keep:
            raise Unavailable("the keys are too old")
        return documents

    def part(self) -> Part:
        """How it is with the keys: degraded while old ones are served, failed when none are."""
        age, documents = self.age, self._documents
        detail = {"confirmed_seconds_ago": round(age), "keys": len(documents.key_ids) if documents else 0}
        why = f": {self._trouble}" if self._trouble else ""
        if documents is None:
            return Part("keys", Condition.FAILED, f"no keys are known{why}", detail)
        if age > self._keep:
            return Part("keys", Condition.FAILED, f"the keys are too old to be served{why}", detail)
        if self._trouble:
            return Part("keys", Condition.DEGRADED, f"the source gives nothing new{why}", detail)
        return Part("keys", detail=detail)

    @property
    def count(self) -> int:
        """How many keys may be served now."""
        documents = self._documents
        return len(documents.key_ids) if documents is not None and self.age <= self._keep else 0

    @property
    def age(self) -> float:
        """For how many seconds the source has confirmed nothing."""
        return self._clock.monotonic() - self._confirmed
