"""The agent's own state in memory, and its copy on disk."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

from node_agent.domain.node_state import NodeState
from node_agent.ports import StateStore
from spiffe_core.bundle import TrustBundle
from spiffe_core.errors import IdentityError, PreconditionFailed, Unavailable
from spiffe_core.runtime.offload import Offload
from spiffe_core.spiffe_id import TrustDomain

log = logging.getLogger(__name__)


class NodeRecord:
    """Holds the present `NodeState`; changes are stored one after the other. Belongs to the event loop's thread.

    `anchors` proves the server in place of the state's bundle while the agent bootstraps. `trouble` says why the state
    could not be stored, "" when it is.
    """

    def __init__(self, state: NodeState, store: StateStore, offload: Offload) -> None:
        self.state = state
        self.unsaved = False
        self.anchors: TrustBundle | None = None
        self.trouble = ""
        self._store = store
        self._offload = offload
        self._order = asyncio.Lock()
        self._forgotten = False

    def anchors_of(self, trust_domain: TrustDomain) -> TrustBundle | None:
        """What proves the server to an agent that attests: the believed bundle, or what it bootstraps with."""
        own = trust_domain == self.state.trust_domain
        return self.anchors if own and self.anchors is not None else self.state.bundle_of(trust_domain)

    async def store_then_use(self, **changes: Any) -> None:
        """Take `changes` into use once they are on disk.

        Raises:
            IdentityError: they could not be stored; nothing changed.
        """
        async with self._order:
            state = replace(self.state, **changes)
            await self._save(state)
            self.state = state
            self.unsaved = False

    async def use_then_store(self, **changes: Any) -> None:
        """Take `changes` into use now and store them as soon as the disk allows (a full disk stops nothing, R11)."""
        if self._forgotten:
            raise _forgotten()
        self.state = replace(self.state, **changes)
        self.unsaved = True
        await self.store_if_unsaved()

    async def store_if_unsaved(self) -> None:
        """Try again what could not be stored."""
        async with self._order:
            if not self.unsaved:
                return
            state = self.state
            try:
                await self._save(state)
            except IdentityError as error:
                text = "the agent's state could not be stored, a restart would lose it: %s"
                log.error(text, error.public)  # noqa: TRY400  # the text says it all
                return
            self.unsaved = self.state is not state

    def forget(self) -> None:
        """Drop keys and SVIDs from memory at once and take no more in; `erase` removes the copy."""
        self._forgotten = True
        self.state = NodeState(self.state.trust_domain, bundle=self.state.bundle)
        self.unsaved = False
        self.trouble = ""

    async def erase(self) -> None:
        """Delete the copy on disk."""
        async with self._order:
            await self._offload(self._store.clear)

    async def _save(self, state: NodeState) -> None:
        """Write, unless all was forgotten before or meanwhile (the erasure that follows removes what was written)."""
        if self._forgotten:
            raise _forgotten()
        try:
            await self._offload(self._store.save, state)
        except IdentityError as error:
            self.trouble = error.public
            raise Unavailable(f"the agent's state cannot be stored: {error.public}") from error
        self.trouble = ""
        if self._forgotten:
            raise _forgotten()


def _forgotten() -> PreconditionFailed:
    return PreconditionFailed("this agent is banned and keeps no keys")
