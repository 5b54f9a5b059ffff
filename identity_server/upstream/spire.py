"""The `spire` upstream: this server is nested below another Muniment or SPIRE server of its trust domain.

Who we are is said by an agent of the upstream server, over its Workload API: an X.509-SVID whose entry is a downstream
one. With it the upstream signs our CA and takes our JWT keys. Its bundle is read again every few seconds, and at once
when the agent has something new, so that roots added, tainted or withdrawn above arrive here in seconds (spire_features
section 2.5). While agent or server are away nothing is taken back: what was signed goes on being good.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from identity_server.domain.upstream import MAX_ROOTS, UpstreamCa, UpstreamView
from identity_server.settings_upstream_network import UpstreamSpireSection
from identity_server.upstream.nested_server import NestedServer
from spiffe_core.bundle import JwtAuthority, TrustBundle, WitAuthority
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError, Internal, Kind, Unavailable
from spiffe_core.runtime.supervise import spawn
from spiffe_core.runtime.watch import Watch
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.x509_svid import X509Svid
from workload_api.client import Backoff, Redacted, WorkloadApiClient
from workload_api.x509_context import X509Context

POLL_SECONDS = 5.0
"""How often the upstream's bundle is read, as SPIRE's plug-in does."""
READY_SECONDS = 4.0
"""How long a request waits for the agent's first word: less than the core waits for a key to be published."""
OLDER_POLLS = 12
"""A bundle older than the one in force comes from a server that is behind; so many in a row mean it was set back."""
BACKOFF = Backoff(first=0.5, longest=15.0)

log = logging.getLogger(__name__)


class SpireUpstream:
    """An upstream authority that is a server like this one. Belongs to the event loop."""

    name = "spire"

    def __init__(
        self,
        section: UpstreamSpireSection,
        *,
        trust_domain: TrustDomain,
        clock: Clock,
        jitter: Callable[[], float] | None = None,
        poll_seconds: float = POLL_SECONDS,
        ready_seconds: float = READY_SECONDS,
    ) -> None:
        self._trust_domain, self._clock = trust_domain, clock
        self._jitter = jitter or secrets.SystemRandom().random
        self._poll_seconds, self._ready_seconds = poll_seconds, ready_seconds
        self._socket = section.workload_api_socket
        self._agent = WorkloadApiClient(
            f"unix://{self._socket}", environ={}, clock=clock, backoff=BACKOFF, jitter=self._jitter
        )
        self._server = NestedServer(
            section.server_address,
            section.server_port,
            trust_domain=trust_domain,
            identity=self._svid,
            bundle=self._agents_bundle,
            clock=clock,
        )
        self._identity: Watch[X509Context | None] = Watch(None)
        self._agent_error: IdentityError | None = None
        self._wake = asyncio.Event()
        self._bundle: TrustBundle | None = None
        self._older = 0
        self._written = 0  # how often this server changed the upstream's bundle: a read that began before is void
        self._view: Watch[UpstreamView] = Watch(UpstreamView())
        self._tasks: set[asyncio.Task[Any]] = set()
        self._told = ""

    @property
    def view(self) -> Watch[UpstreamView]:
        """What the upstream's bundle holds."""
        return self._view

    async def start(self) -> None:
        """Begin to follow agent and server; neither needs to be there yet."""
        await self._server.start()
        spawn(self._follow_agent(), "upstream identity", self._tasks)
        spawn(self._follow_bundle(), "upstream bundle", self._tasks)

    async def mint_x509_ca(self, csr: bytes, ttl: int) -> UpstreamCa:
        """Have the upstream sign a CA certificate. Its roots are those of its bundle, which says which are tainted.

        Raises:
            Unavailable: there is no identity to ask with, or the upstream cannot be reached or refuses.
        """
        await self._ready()
        minted = await self._server.new_ca(csr, ttl)
        try:
            await self._refresh()
        except IdentityError as error:  # the certificate came with roots of its own
            log.info("upstream spire: the bundle could not be read after a CA was signed: %s", error.public)
            return minted
        roots = tuple(authority.der for authority in self._view.value.x509_authorities)
        return (
            minted if set(minted.roots) - set(roots) or set(minted.chain) & set(roots) else replace(minted, roots=roots)
        )

    async def publish_jwt_authority(self, authority: JwtAuthority) -> tuple[JwtAuthority, ...]:
        """Have the upstream add our JWT key to the trust domain's bundle.

        Raises:
            Unimplemented: this upstream takes no keys.
            Unavailable: as for a CA.
        """
        await self._ready()
        keys = await self._server.publish(authority)
        self._written += 1
        self._show(replace(self._view.value, jwt_authorities=keys))
        self._wake.set()
        return keys

    async def publish_wit_authority(self, authority: WitAuthority) -> tuple[WitAuthority, ...]:
        """Have the upstream add our WIT key to the trust domain's bundle.

        Raises:
            Unimplemented: this upstream takes no keys, as SPIRE's server does not.
            Unavailable: as for a CA.
        """
        await self._ready()
        keys = await self._server.publish_wit(authority)
        self._written += 1
        self._show(replace(self._view.value, wit_authorities=keys))
        self._wake.set()
        return keys

    async def close(self) -> None:
        """Stop following."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._agent.close()
        await self._server.close()

    def _svid(self) -> X509Svid:
        """Our identity in the upstream's eyes: the default one of our trust domain.

        Raises:
            Unavailable: there is none, and why.
        """
        context = self._identity.value
        if context is None:
            raise self._no_identity()
        for svid in context.svids:
            if svid.spiffe_id.trust_domain == self._trust_domain:
                if svid.not_after <= self._clock.now():
                    raise Unavailable(
                        f"upstream spire: the SVID {svid.spiffe_id} has expired and the agent at {self._socket} gave "
                        "no newer one; see the log of that agent"
                    )
                return svid
        raise Unavailable(
            f"upstream spire: the agent at {self._socket} belongs to trust domain "
            f"{context.default.spiffe_id.trust_domain}, and this server to {self._trust_domain}: name the socket of an "
            "agent of the upstream server in upstream.spire.workload_api_socket"
        )

    def _no_identity(self) -> Unavailable:
        error = self._agent_error
        if error is None:
            return Unavailable(f"upstream spire: the agent at {self._socket} has given no identity yet")
        if error.kind is Kind.FORBIDDEN:
            return Unavailable(
                f"upstream spire: the agent at {self._socket} issues no identity to this server: create its entry on "
                "the upstream server with `identity-server entry create -downstream -spiffeID ID -parentID AGENT "
                "-selector SELECTOR`"
            )
        return Unavailable(f"upstream spire: no identity from the agent at {self._socket}: {error.public}")

    def _agents_bundle(self, trust_domain: TrustDomain) -> TrustBundle | None:
        context = self._identity.value
        return None if context is None else context.bundles.get(trust_domain)

    async def _ready(self) -> None:
        """Wait a little for the first identity, which comes soon after a start."""
        try:
            async with asyncio.timeout(self._ready_seconds):
                while self._identity.value is None:
                    await self._identity.changed(self._identity.version)
        except TimeoutError:
            raise self._no_identity() from None
        self._svid()

    async def _follow_agent(self) -> None:
        failures = 0
        while True:
            try:
                async with aclosing(self._agent.watch_x509(self._agent_failed)) as updates:
                    async for update in updates:
                        failures = 0
                        await self._identified(update)
            except IdentityError as error:  # this agent will never answer; it may be replaced by one that does
                self._agent_failed(error)
            except Exception as error:
                log.exception("upstream spire: following the agent failed")
                self._agent_failed(Internal("following the agent failed; see the log", error=repr(error)))
            await self._clock.sleep(BACKOFF.delay(failures, self._jitter()))
            failures += 1

    def _agent_failed(self, error: IdentityError) -> None:
        self._agent_error = error

    async def _identified(self, update: X509Context | Redacted) -> None:
        """A new identity, a new bundle, or none any more: later calls use it, and the bundle is read at once."""
        if isinstance(update, Redacted):
            self._agent_error = update.error
            self._identity.publish(None)
            log.warning("%s", self._no_identity().public)
        else:
            self._agent_error = None
            self._identity.publish(update)
        await self._server.renew()
        self._wake.set()

    async def _follow_bundle(self) -> None:
        failures = 0
        while True:
            if self._identity.value is None:
                await self._identity.changed(self._identity.version)
                continue
            self._wake.clear()
            try:
                await self._refresh()
                failures = 0
                pause = self._poll_seconds * (1 - 0.2 * self._jitter())
                self._tell("")
            except IdentityError as error:
                pause = BACKOFF.delay(failures, self._jitter())
                failures += 1
                self._tell(error.public)
            except Exception:
                log.exception("upstream spire: following the bundle failed")
                pause = BACKOFF.longest
            await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _refresh(self) -> None:
        """Read the upstream's bundle and show what it holds.

        Raises:
            Unavailable: it cannot be had, or it may not be used.
        """
        while True:
            written = self._written
            bundle = await self._server.bundle()
            if written == self._written:
                break
        if bundle.trust_domain != self._trust_domain:
            raise Unavailable(
                f"upstream spire: the upstream's bundle is of trust domain {bundle.trust_domain}, and this server is "
                f"of {self._trust_domain}; a nested server has the trust domain of its upstream"
            )
        if not 1 <= len(bundle.x509_authorities) <= MAX_ROOTS:
            raise Unavailable(
                f"upstream spire: the upstream's bundle has {len(bundle.x509_authorities)} X.509 authorities, "
                f"1 to {MAX_ROOTS} are taken"
            )
        if self._bundle is not None and bundle.sequence < self._bundle.sequence:
            self._older += 1
            if self._older < OLDER_POLLS:
                log.info("upstream spire: an older bundle (%d) is passed over", bundle.sequence)
                return
            log.warning("upstream spire: the upstream's bundle was set back to sequence %d", bundle.sequence)
        self._older, self._bundle = 0, bundle
        self._show(UpstreamView(bundle.x509_authorities, bundle.jwt_authorities, bundle.wit_authorities))

    def _show(self, view: UpstreamView) -> None:
        if view == self._view.value:
            return
        self._view.publish(view)
        log.info(
            "upstream spire: the trust domain's authorities changed",
            extra={
                "facts": {
                    "x509": [one.key_id for one in view.x509_authorities],
                    "tainted": [one.key_id for one in view.x509_authorities if one.tainted],
                    "jwt": [one.key_id for one in view.jwt_authorities],
                    "wit": [one.key_id for one in view.wit_authorities],
                }
            },
        )

    def _tell(self, failure: str) -> None:
        """Say once that the upstream is away or back, not at every attempt."""
        if failure and failure != self._told:
            log.warning("%s", failure)
        elif self._told and not failure:
            log.info("upstream spire: the upstream's bundle is followed again")
        self._told = failure
