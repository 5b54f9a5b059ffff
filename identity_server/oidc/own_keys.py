"""The keys of the server itself: what its memory knows, which every server of one database does."""

from __future__ import annotations

from collections.abc import Callable

from identity_server.domain.oidc_documents import Documents, Provider, render
from spiffe_core.bundle import BundleSet, JwtAuthority
from spiffe_core.errors import Unavailable


class OwnKeys:
    """The documents of the newest bundle, made anew only when its JWT keys are others."""

    def __init__(self, provider: Provider, bundles: Callable[[], BundleSet | None]) -> None:
        self._provider = provider
        self._bundles = bundles
        self._made: tuple[tuple[JwtAuthority, ...], Documents] | None = None

    def current(self) -> Documents:
        """What is served now.

        Raises:
            Unavailable: the server has no bundle yet.
        """
        bundles = self._bundles()
        if bundles is None:
            raise Unavailable("the keys are not known yet")
        keys = bundles.own.jwt_authorities
        if self._made is None or self._made[0] is not keys:
            same = self._made is not None and self._made[0] == keys
            self._made = (keys, self._made[1] if same and self._made is not None else render(self._provider, keys))
        return self._made[1]
