"""Use-case: what is wrong with registration entries.

One look at a time, on a thread: a state never changes under it.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from identity_server.domain.entry_lint import Decode, Report, Rules, lint
from identity_server.domain.lint_codes import LintCode
from identity_server.ports import Store
from spiffe_core.clock import Clock
from spiffe_core.runtime.offload import Offload


class LintEntries:
    """Belongs to the event loop. `types` are the types of selectors that the attestors known here make."""

    def __init__(self, *, store: Store, clock: Clock, types: Collection[str]) -> None:
        self._store = store
        self._clock = clock
        self._types = frozenset(types)
        self._offload = Offload("lint", 1)

    async def of(self, decode: Decode, only: Collection[str] | None, ignored: frozenset[LintCode]) -> Report:
        """Look at all entries, or at those with the ids `only`; `decode` reads an entry's finished bytes."""
        rules = Rules(self._clock.now().timestamp(), self._types, ignored)
        return await self._offload(partial(lint, self._store.state.value, rules, decode, only))
