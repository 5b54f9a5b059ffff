"""Envoy's secret discovery service, version 3, on the Workload API's socket (spire_wire section 6.2).

The same rules hold as for the Workload API: the process that connected is attested, read again before each answer, and
bounded in what it may hold open. Envoy cannot send the security header, so none is asked for (architecture A4, D8).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc

from spiffe_core.bundle import TrustBundle
from spiffe_core.clock import Clock
from spiffe_core.errors import InvalidRequest, Unauthenticated
from spiffe_core.runtime.supervise import spawn
from spiffe_core.wire._gen.envoy import secret_discovery_pb2 as discovery
from spiffe_core.wire._gen.envoy import secret_pb2
from spiffe_core.wire.peer import UnixPeer
from spiffe_core.wire.services import handlers
from workload_api.backend import WorkloadView
from workload_api.sds_secrets import SdsNames, Secrets, wants_validator
from workload_api.sds_stream import DeltaStream, Nonce, WorldStream, check_names, resources_of, world_response
from workload_api.streams import Streams

SERVICE = discovery.DESCRIPTOR.services_by_name["SecretDiscoveryService"]
CARRIED = (secret_pb2.DESCRIPTOR,)
"""What its messages carry as Any."""
Protocol = TypeVar("Protocol", WorldStream, DeltaStream)


class SecretDiscovery:
    """Serves the proxies on one agent. Belongs to the event loop's thread.

    `streams` are shared with the Workload API: one bound on what a user holds open. `entitled_only`: a proxy to which
    no entry matches is refused everything; otherwise it may have the own trust domain's bundle. `wait`: a name that
    leads to nothing yet is answered when it does, instead of refused.
    """

    def __init__(
        self,
        streams: Streams,
        caller_of: Callable[[Any], object],
        clock: Clock,
        nonce: Nonce,
        *,
        names: SdsNames | None = None,
        entitled_only: bool = True,
        wait: bool = False,
    ) -> None:
        self._streams, self._caller_of, self._clock, self._nonce = streams, caller_of, clock, nonce
        self._names = names or SdsNames()
        self._entitled_only, self._wait = entitled_only, wait

    def handler(self) -> grpc.GenericRpcHandler:
        """For the gRPC server behind the front door."""
        return handlers(SERVICE, self)

    async def StreamSecrets(
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncGenerator[discovery.DiscoveryResponse, None]:
        """Everything asked for, whole, again at each change."""
        world = WorldStream(self._nonce)
        async with aclosing(self._served(world, requests, context)) as due:
            async for secrets in due:
                try:
                    response = world.answer(secrets)
                except InvalidRequest:
                    if not self._wait:
                        raise
                    world.owed = False
                    continue
                yield response

    async def DeltaSecrets(
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncGenerator[discovery.DeltaDiscoveryResponse, None]:
        """What changed, resource by resource."""
        delta = DeltaStream(self._nonce)
        async with aclosing(self._served(delta, requests, context)) as due:
            async for secrets in due:
                response = delta.answer(secrets)
                if response is not None:
                    yield response

    async def FetchSecrets(self, request: Any, context: Any) -> discovery.DiscoveryResponse:
        """Everything asked for, once."""
        check_names(request.resource_names)
        async with aclosing(self._streams.follow(self._caller(context))) as views:
            view = await anext(views)
        secrets = self._secrets(view, request.node)
        return world_response(resources_of(secrets, request.resource_names), request.type_url)

    async def _served(
        self, protocol: Protocol, requests: AsyncIterator[Any], context: Any
    ) -> AsyncGenerator[Secrets, None]:
        """The secrets of the newest state, each time `protocol` owes an answer; ends when the proxy has no more to say.

        Two things are awaited side by side, and neither is ever abandoned half-way: the proxy's next request and the
        next state of what it is entitled to.
        """
        tasks: set[asyncio.Task[Any]] = set()
        incoming = aiter(requests)
        view: WorkloadView | None = None
        async with aclosing(self._streams.follow(self._caller(context))) as views:
            asking = spawn(_next(incoming), "SDS request", tasks)
            looking = spawn(_next(views), "SDS state", tasks)
            try:
                while True:
                    await asyncio.wait({asking, looking}, return_when=asyncio.FIRST_COMPLETED)
                    if looking.done():
                        view = looking.result()
                        protocol.state_changed()
                        looking = spawn(_next(views), "SDS state", tasks)
                    if asking.done():
                        request = asking.result()
                        if request is None:
                            return
                        protocol.request(request)
                        asking = spawn(_next(incoming), "SDS request", tasks)
                    if protocol.owed and view is not None:
                        yield self._secrets(view, protocol.node)
            finally:
                asking.cancel()
                looking.cancel()
                await asyncio.gather(asking, looking, return_exceptions=True)

    def _secrets(self, view: WorkloadView, node: discovery.Node) -> Secrets:
        if self._entitled_only and not view.x509_svids:
            view = WorkloadView((), TrustBundle(view.bundle.trust_domain))  # not even the own bundle
        return Secrets(view, self._names, validator=wants_validator(node, self._names), now=self._clock.now())

    def _caller(self, context: Any) -> UnixPeer:
        peer = self._caller_of(context)
        if not isinstance(peer, UnixPeer):
            raise Unauthenticated("secrets are for processes of this machine, over the agent's Unix socket")
        return peer


async def _next(source: AsyncIterator[Any]) -> Any:
    """The next item; None when there is none."""
    return await anext(source, None)
