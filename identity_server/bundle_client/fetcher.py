"""One fetch of a foreign bundle, on a thread: GET, redirects, the profile's TLS, and bounds on size and time.

The time counts for the whole fetch with all its redirects, so neither a slow name server nor a peer that drips holds
anything for longer (reliability S61). Each fetch begins at the configured URL: no redirect is remembered (FED-35).
No cookie, header or query of ours is sent; what an endpoint answers ends up in a bundle or nowhere, and no message
quotes it (S60).
"""

from __future__ import annotations

import asyncio
import http
import http.client
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from identity_server.bundle_client import endpoint_tls as tls
from identity_server.bundle_client.resolution import Resolve, checked_addresses, system_addresses
from identity_server.domain.bundle_refresh import MAX_REDIRECTS, REDIRECTS, redirect_target
from identity_server.domain.federation import FederationRelationship
from identity_server.domain.invitation import require_pinned
from identity_server.domain.reachability import AddressPolicy
from spiffe_core.bundle import TrustBundle
from spiffe_core.bundle_document import MAX_DOCUMENT_BYTES, LoadedBundle, load_bundle
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError, InvalidBundle, Unavailable
from spiffe_core.runtime.https_client import Answer, Exchange, TlsTarget, cause_of
from spiffe_core.runtime.offload import Offload
from spiffe_core.spiffe_id import TrustDomain

FETCH_SECONDS = 15.0
MAX_FETCHES = 32
"""So many endpoints are asked at the same time; whoever comes later waits for a place."""
WEB_CONTEXT_SECONDS = 600.0
"""For so long the system's authorities are kept in memory: reading them takes longer than a fetch."""

_THREADS = 2 * MAX_FETCHES
"""More than fetches: a thread that waits for a name server is free only when that gives up."""
_PORT = 443
_SAFE = "/:=&?~#+!$,;'@()*[]%-._"
_JSON = "json"

Trusted = Callable[[TrustDomain], TrustBundle | None]


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What the settings say about fetching."""

    policy: AddressPolicy = field(default_factory=AddressPolicy)
    ca_file: Path | None = None
    redirects: int = MAX_REDIRECTS
    seconds: float = FETCH_SECONDS


class HttpsBundleFetcher:
    """The `BundleFetcher` of a server. Belongs to the event loop; its fetches run on threads."""

    def __init__(self, limits: ClientLimits, clock: Clock, *, resolve: Resolve = system_addresses) -> None:
        self._limits, self._clock, self._resolve = limits, clock, resolve
        self._offload = Offload("bundle-fetch", _THREADS)
        self._room = asyncio.Semaphore(MAX_FETCHES)
        self._web = _WebContexts(limits.ca_file)

    async def fetch(self, relationship: FederationRelationship, trusted: Trusted) -> LoadedBundle:
        """The bundle that the endpoint serves now.

        Raises:
            Unavailable: there is no answer, or none that may be believed.
        """

        def act(fetch: _Fetch) -> LoadedBundle:
            expected = relationship.endpoint_spiffe_id
            if expected is None:
                return fetch.document(self._web_target)
            context = tls.spiffe_context(expected, trusted)
            check = tls.require_svid(expected, trusted, self._clock.now)
            return fetch.document(lambda host, port, at: TlsTarget(host, port, context, addresses=at, check=check))

        return await self._run(relationship, act)

    async def fetch_pinned(self, relationship: FederationRelationship, pins: frozenset[str]) -> LoadedBundle:
        """The bundle that the endpoint serves now, believed because all its keys are among `pins`.

        Raises:
            Unavailable: as `fetch`; also if a key is not among the pins, or the SVID shown is not of one of them.
        """

        def act(fetch: _Fetch) -> LoadedBundle:
            expected = relationship.endpoint_spiffe_id
            if expected is None:
                loaded = fetch.document(self._web_target)
                require_pinned(loaded.bundle, pins)
                return loaded
            chains: list[list[bytes]] = []
            context, keep = tls.unverified_context(), tls.chain_keeper(chains)
            loaded = fetch.document(lambda host, port, at: TlsTarget(host, port, context, addresses=at, check=keep))
            require_pinned(loaded.bundle, pins)
            for chain in chains:
                tls.require_pinned_svid(expected, loaded.bundle, chain, self._clock.now())
            return loaded

        return await self._run(relationship, act)

    async def _run(self, relationship: FederationRelationship, act: Callable[[_Fetch], LoadedBundle]) -> LoadedBundle:
        async with self._room:
            fetch = _Fetch(relationship, self._limits, self._resolve, time.monotonic() + self._limits.seconds)
            try:
                async with asyncio.timeout(self._limits.seconds):
                    return await self._offload(act, fetch)
            except TimeoutError:
                raise Unavailable(
                    f"{fetch.place}: the bundle did not arrive within {self._limits.seconds:g} s"
                ) from None
            finally:
                fetch.abort()

    def _web_target(self, host: str, port: int, addresses: tuple[str, ...]) -> TlsTarget:
        return TlsTarget(host, port, self._web.current(), addresses=addresses)


class _WebContexts:
    """The context of https_web, read again every ten minutes. Two threads may read it at once; neither is wrong."""

    def __init__(self, ca_file: Path | None) -> None:
        self._ca_file = ca_file
        self._read_at = float("-inf")

    def current(self) -> ssl.SSLContext:
        now = time.monotonic()
        if now - self._read_at > WEB_CONTEXT_SECONDS:
            self._context = tls.web_context(self._ca_file)
            self._read_at = now
        return self._context


class _Fetch:
    """One fetch on one thread; `abort` may be called from any other."""

    def __init__(
        self, relationship: FederationRelationship, limits: ClientLimits, resolve: Resolve, deadline: float
    ) -> None:
        self._relationship, self._limits = relationship, limits
        self._resolve, self._deadline = resolve, deadline
        self._exchange: Exchange | None = None
        self._over = False
        self.place = urlsplit(relationship.endpoint_url).hostname or ""

    def document(self, target: Callable[[str, int, tuple[str, ...]], TlsTarget]) -> LoadedBundle:
        """Follow redirects to the document and read it."""
        url, seen = self._relationship.endpoint_url, set[str]()
        while True:
            seen.add(url)
            answer = self._asked(url, target)
            if answer.status not in REDIRECTS:
                return self._loaded(answer)
            if len(seen) > self._limits.redirects:
                raise Unavailable(f"{self.place}: redirects more than {self._limits.redirects} times")
            url = redirect_target(url, answer.location)
            if url in seen:
                raise Unavailable(f"{self.place}: redirects in a circle")

    def abort(self) -> None:
        """Stop, wherever the thread is."""
        self._over = True
        if self._exchange is not None:
            self._exchange.abort()

    def _asked(self, url: str, target: Callable[[str, int, tuple[str, ...]], TlsTarget]) -> Answer:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORT
        self.place = host
        addresses = checked_addresses(host, port, self._limits.policy, self._resolve)
        if self._over:
            raise Unavailable(f"{host}: given up")
        self._exchange = Exchange(deadline=self._deadline, limit=MAX_DOCUMENT_BYTES)
        path = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else "")
        try:
            return self._exchange.run(target(host, port, addresses), "GET", path)
        except IdentityError as refusal:
            raise Unavailable(f"{host}: {refusal.public}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unavailable(f"{host}: {cause_of(error)}") from None

    def _loaded(self, answer: Answer) -> LoadedBundle:
        if answer.status != http.HTTPStatus.OK:
            raise Unavailable(f"{self.place}: answered with status {answer.status} instead of a bundle")
        try:
            loaded = load_bundle(answer.body, self._relationship.trust_domain)
        except InvalidBundle as refusal:
            raise Unavailable(f"{self.place}: the answer is no bundle: {refusal.public}") from None
        if _JSON in answer.content_type.lower():
            return loaded
        return LoadedBundle(loaded.bundle, (*loaded.warnings, "the endpoint does not call its answer JSON"))
