"""spire.api.agent.delegatedidentity.v1.DelegatedIdentity, on the admin socket (spire_wire section 6.3).

A delegate (a node-wide proxy, say) gets identities of workloads it names by process or by selectors. It must itself be
a workload whose SPIFFE ID the operator lists in `authorized_delegates`; that is looked at again before each message,
with the process read anew. Entries with `admin` or `downstream` are never given away (reliability S23).

With a process, its selectors are read anew before each message as well, and the stream ends with the process. With
selectors the delegate is believed: whoever is authorised speaks for every workload of this node.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from node_agent.services.jwt_svids import JwtSvids
from node_agent.services.workload_svids import HeldSvid, WorkloadSvids
from spiffe_core.bundle import BundleSet, TrustBundle
from spiffe_core.bundle_document import dump_token_keys
from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import (
    Forbidden,
    InvalidRequest,
    NoIdentityIssued,
    NotFound,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from spiffe_core.jwt_svid import JwtSvid
from spiffe_core.runtime.watch import Watch
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire import convert
from spiffe_core.wire._gen.spire.api.agent.delegatedidentity.v1 import delegatedidentity_pb2 as pb
from spiffe_core.wire._gen.spire.api.types import jwtsvid_pb2
from spiffe_core.wire.peer import UnixPeer, named_process
from spiffe_core.wire.services import handlers
from workload_api.backend import WorkloadView
from workload_api.streams import Streams
from workload_api.token_answers import wanted_audience

SERVICE = pb.DESCRIPTOR.services_by_name["DelegatedIdentity"]
ATTESTATION_FAILED = "workload attestation failed"


@dataclass(frozen=True, slots=True)
class _View:
    """The state a stream's next message is made from: the selectors, and what is followed for them."""

    selectors: frozenset[Selector]
    view: WorkloadView | None


class DelegatedIdentity:
    """Identities for delegates. Belongs to the event loop's thread."""

    def __init__(
        self,
        workloads: WorkloadSvids,
        jwt: JwtSvids | None,
        streams: Streams,
        caller_of: Callable[[Any], object],
        delegates: Iterable[SpiffeId],
    ) -> None:
        self._workloads, self._jwt, self._streams = workloads, jwt, streams
        self._caller_of = caller_of
        self._delegates = frozenset(delegates)

    def handler(self) -> grpc.GenericRpcHandler:
        """For the gRPC server behind the admin socket's front door."""
        return handlers(SERVICE, self)

    async def SubscribeToX509SVIDs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """The X.509-SVIDs of the workload that is named, with keys, again at each change; an empty list says: none."""
        caller = self._caller(context)
        last: bytes | None = None  # an empty message is one as well
        with _target(request) as target:
            async with aclosing(self._views(caller, target)) as views:
                async for state in views:
                    message = self._svids(state).SerializeToString(deterministic=True)
                    if message != last:
                        last = message
                        yield message

    async def SubscribeToX509Bundles(self, _request: Any, context: Any) -> AsyncIterator[Any]:
        """The X.509 authorities of every trust domain this agent knows, again at each change."""
        async with aclosing(self._bundles(self._caller(context))) as updates:
            async for bundles in updates:
                known = {str(one.trust_domain.id): b"".join(one.x509_roots) for one in bundles if one.x509_roots}
                yield pb.SubscribeToX509BundlesResponse(ca_certificates=known)

    async def FetchJWTSVIDs(self, request: Any, context: Any) -> Any:
        """JWT-SVIDs of the workload that is named."""
        if self._jwt is None:
            raise Unimplemented("the JWT profile is not offered here")
        audience = wanted_audience(request.audience)
        caller = self._caller(context)
        with _target(request) as target:
            async with self._streams.call(caller) as selectors:
                self._require_delegate(selectors)
                wanted = await self._read(target) if isinstance(target, UnixPeer) else target
                svids = await self._jwt.tokens_of(self._workloads.delegable(wanted), audience)
        return pb.FetchJWTSVIDsResponse(svids=[_jwt_to_proto(svid) for svid in svids])

    async def SubscribeToJWTBundles(self, _request: Any, context: Any) -> AsyncIterator[Any]:
        """The JWT keys of every trust domain this agent knows, again at each change."""
        async with aclosing(self._bundles(self._caller(context))) as updates:
            async for bundles in updates:
                known = {str(one.trust_domain.id): dump_token_keys(one.jwt_authorities) for one in bundles}
                yield pb.SubscribeToJWTBundlesResponse(bundles=known)

    async def _views(self, caller: UnixPeer, target: frozenset[Selector] | UnixPeer) -> AsyncGenerator[_View, None]:
        """Each state for the target; both the caller and the target are judged again before each of them."""
        followed = frozenset() if isinstance(target, UnixPeer) else target

        def subscribe(selectors: frozenset[Selector]) -> Any:
            nonlocal followed
            if isinstance(target, UnixPeer):
                followed = selectors
            return self._workloads.subscribe(followed)

        await self._authorise(caller)
        try:
            subject = target if isinstance(target, UnixPeer) else caller
            async with aclosing(self._streams.follow_from(subject, subscribe)) as views:
                async for view in views:
                    await self._authorise(caller)
                    yield _View(followed, view)
        except Unauthenticated as gone:
            raise Unavailable(ATTESTATION_FAILED) from gone

    async def _bundles(self, caller: UnixPeer) -> AsyncGenerator[tuple[TrustBundle, ...], None]:
        @contextmanager
        def subscribe(selectors: frozenset[Selector]) -> Iterator[Watch[BundleSet | None]]:
            self._require_delegate(selectors)
            yield self._workloads.bundle_updates  # type: ignore[misc]  # a watch that never holds None is one that may

        async with aclosing(self._streams.follow_from(caller, subscribe)) as updates:
            async for bundles in updates:
                await self._authorise(caller)
                yield bundles.all()

    def _svids(self, state: _View) -> Any:
        entries = self._workloads.delegable(state.selectors)
        response = pb.SubscribeToX509SVIDsResponse()
        names: set[str] = set()
        for entry in entries:
            held = self._workloads.held(entry.id)
            if held is not None:
                _add(response, entry, held)
                names.update(str(name.id) for name in entry.federates_with)
        response.federates_with.extend(sorted(names))
        return response

    async def _authorise(self, caller: UnixPeer) -> None:
        self._require_delegate(await self._read(caller))

    async def _read(self, peer: UnixPeer) -> frozenset[Selector]:
        """The selectors of a process now."""
        try:
            return await self._workloads.attest(peer)
        except Unauthenticated as gone:
            raise Unavailable(ATTESTATION_FAILED) from gone

    def _require_delegate(self, selectors: frozenset[Selector]) -> None:
        entries = self._workloads.matching(selectors)
        if not entries:
            raise NoIdentityIssued
        if not any(entry.spiffe_id in self._delegates for entry in entries):
            raise Forbidden("caller not configured as an authorized delegate")

    def _caller(self, context: Any) -> UnixPeer:
        peer = self._caller_of(context)
        if not isinstance(peer, UnixPeer):
            raise Unauthenticated("delegates are processes of this machine, over the admin socket")
        return peer


@contextmanager
def _target(request: Any) -> Iterator[frozenset[Selector] | UnixPeer]:
    """The workload a request names: by process, held while the block lasts, or by selectors.

    Raises:
        InvalidRequest: both or neither, or a selector is malformed.
        Unavailable: there is no such process.
    """
    with ExitStack() as held:
        if bool(request.pid) == bool(request.selectors):
            raise InvalidRequest("exactly one of selectors and pid must be given", field="pid")
        if request.selectors:
            yield convert.selectors_from_proto(request.selectors)
            return
        try:
            process = named_process(request.pid)
        except NotFound as error:
            raise Unavailable(f"{ATTESTATION_FAILED}: {error.public}") from error
        held.callback(process.process.close)
        yield process


def _add(response: Any, entry: RegistrationEntry, held: HeldSvid) -> None:
    end = int(held.not_after.timestamp())
    svid = convert.x509_svid_to_proto(held.identity.chain, entry.spiffe_id, end, entry.hint)
    response.x509_svids.add(x509_svid=svid, x509_svid_key=held.identity.key.reveal())


def _jwt_to_proto(svid: JwtSvid) -> jwtsvid_pb2.JWTSVID:
    return jwtsvid_pb2.JWTSVID(
        token=svid.token,
        id=convert.spiffe_id_to_proto(svid.spiffe_id),
        expires_at=svid.expires_at,
        issued_at=svid.issued_at,
        hint=svid.hint,
    )
