"""Use-cases: the trust bundle of our own trust domain, and how many bundles there are."""

from __future__ import annotations

from identity_server.ports import Store
from spiffe_core.bundle import TrustBundle
from spiffe_core.errors import NotFound


class TrustBundles:
    """Answers from the latest state."""

    def __init__(self, *, store: Store) -> None:
        self._store = store

    def own(self) -> TrustBundle:
        """The bundle of the server's own trust domain."""
        bundles = self._store.state.value.bundles
        if bundles is None:
            raise NotFound("bundle not found")
        return bundles.own

    async def count(self) -> int:
        """How many bundles are stored, our own included."""
        return await self._store.read(lambda uow: uow.bundles.count())
