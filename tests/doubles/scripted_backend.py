"""A WorkloadBackend that does what a test says, and identities in the shape a backend hands out."""

import asyncio
from contextlib import contextmanager
from datetime import timedelta

from spiffe_core.errors import NoIdentityIssued
from spiffe_core.runtime.watch import Watch
from spiffe_core.selectors import Selector
from tests.authority import SpiffeTestCA
from workload_api.backend import VisibleBundles, WorkloadView, X509Identity

DEFAULT = frozenset({Selector("unix", "uid:1000")})


class WorkloadCa(SpiffeTestCA):
    """A test CA that also makes what the Workload API serves."""

    def identity(self, path="/workload", *, hint="", seconds=3600, **spoil):
        """One identity; `seconds` is how long it is still valid."""
        made = self.issue(f"spiffe://{self.trust_domain}{path}", ttl=timedelta(seconds=seconds), **spoil)
        return X509Identity(made.spiffe_id, made.chain, made.key, hint)

    def view(self, *paths, federated=(), bundle=None):
        """A view with one fresh identity per path."""
        return WorkloadView(tuple(self.identity(path) for path in paths), bundle or self.bundle(), federated)


class ScriptedBackend:
    """Implements WorkloadBackend. `selectors` is what every caller is; `troubles` are raised first, one per attestation."""

    def __init__(self, view=None, selectors=DEFAULT):
        self.selectors = selectors
        self.troubles = []
        self.attested = []
        self.watches = {selectors: Watch(view)}
        self.subscribed = 0
        self.gate = None

    def publish(self, view, selectors=None):
        self.watch(selectors or self.selectors).publish(view)

    def watch(self, selectors):
        return self.watches.setdefault(selectors, Watch(None))

    async def attest(self, peer):
        self.attested.append(peer)
        if self.gate is not None:
            await self.gate.wait()
        else:
            await asyncio.sleep(0)
        if self.troubles:
            raise self.troubles.pop(0)
        return self.selectors

    def visible(self, selectors):
        view = self.watch(selectors).value
        return VisibleBundles(bool(view.x509_svids), view.bundle, view.federated if view.x509_svids else ())

    @contextmanager
    def subscribe(self, selectors):
        self.subscribed += 1
        try:
            yield self.watch(selectors)
        finally:
            self.subscribed -= 1


class ScriptedTokens:
    """Implements JwtBackend and WitBackend. `svids` are what every caller may have; `troubles` are raised first."""

    def __init__(self, *svids, wits=None):
        self.svids = svids
        self.wits = Watch(wits)
        self.asked = []
        self.troubles = []
        self.gate = None

    async def jwt_svids(self, selectors, audience, requested):
        self.asked.append((audience, requested))
        if self.gate is not None:
            await self.gate.wait()
        if self.troubles:
            raise self.troubles.pop(0)
        found = tuple(one for one in self.svids if requested in {None, one.spiffe_id})
        if not found:
            raise NoIdentityIssued
        return found

    @contextmanager
    def subscribe_wit(self, selectors):
        yield self.wits
