"""spiffe.broker.API: identities of workloads for brokers that name them (SPIFFE Broker API; spire_wire section 6.6).

Checks come in one order: security header, caller, kind of reference, reference, entitlement, work. The caller is known
by the SVID of its connection, which is looked at again before each message: it must not have ended, and the authority
it was believed for must still be one of its trust domain. Entries with `admin` or `downstream` are never given away
(reliability S23). Answers have the Workload API's fields and numbers, so they are made where that one's are.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from google.rpc import status_pb2 as rpc_status_pb2

from attestors.api import KubernetesObject
from node_agent.domain.brokers import PROCESS, Brokers, Origin
from node_agent.services.jwt_svids import JwtSvids
from node_agent.services.referenced import Process, Reference, ReferencedWorkloads
from node_agent.services.workload_svids import WorkloadSvids
from spiffe_core.clock import Clock
from spiffe_core.entitlement import unique_hints
from spiffe_core.errors import (
    Exhausted,
    Forbidden,
    IdentityError,
    InvalidRequest,
    NoIdentityIssued,
    NotFound,
    Unauthenticated,
    Unimplemented,
)
from spiffe_core.wire._gen import brokerapi_pb2 as pb
from spiffe_core.wire.peer import TlsPeer
from spiffe_core.wire.services import handlers
from spiffe_core.wire.status import DETAILS_TRAILER, STATUS
from workload_api.backend import WorkloadView
from workload_api.token_answers import jwt_bundles_response, jwt_svid_response, wanted_audience, wanted_id
from workload_api.x509_answers import x509_bundles_response, x509_svid_response

SERVICE = pb.DESCRIPTOR.services_by_name["API"]
HEADER = ("broker.spiffe.io", "true")
ERROR_DOMAIN = "spiffe.io"
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""What gRPC clients accept unless they are told otherwise."""
MAX_NAME_BYTES = 512
"""Of each part of a Kubernetes reference; Kubernetes' own names end at 253."""
_REFERENCE = "reference"


class BrokerApi:
    """Serves brokers. Belongs to the event loop's thread.

    `cut` closes the connection of a broker whose SVID is not believed any longer; it comes back with a new one.
    """

    def __init__(
        self,
        workloads: WorkloadSvids,
        references: ReferencedWorkloads,
        jwt: JwtSvids | None,
        caller_of: Callable[[Any], object],
        brokers: Brokers,
        clock: Clock,
        *,
        jwt_key_use: bool = False,
        cut: Callable[[TlsPeer], object] = lambda _: None,
    ) -> None:
        self._workloads, self._references, self._jwt = workloads, references, jwt
        self._caller_of, self._brokers, self._clock = caller_of, brokers, clock
        self._jwt_bundles = partial(jwt_bundles_response, key_use=jwt_key_use)
        self._cut = cut

    def handler(self) -> grpc.GenericRpcHandler:
        """For the gRPC server behind the broker endpoint's front door."""
        return handlers(SERVICE, self)

    def SubscribeToX509SVID(self, request: Any, context: Any) -> AsyncIterator[bytes]:
        """The X.509-SVIDs of the workload with keys and bundles, again at each change."""
        return self._stream(request, context, lambda view: x509_svid_response(view, self._clock.now()))

    def SubscribeToX509Bundles(self, request: Any, context: Any) -> AsyncIterator[bytes]:
        """The bundles the workload may verify peers with, again at each change."""
        return self._stream(request, context, x509_bundles_response)

    async def FetchJWTSVID(self, request: Any, context: Any) -> bytes:
        """A token for the audiences asked for, of each identity of the workload or of one."""
        _require_header(context)
        peer = self._caller(context)
        self._require_jwt()
        with _explained(context):
            audience, requested = wanted_audience(request.audience), wanted_id(request.spiffe_id)
            reference = self._reference(request, peer)
            async with self._references.call(reference) as selectors:
                entries = unique_hints(self._workloads.delegable(selectors))
                wanted = [one for one in entries if requested in {None, one.spiffe_id}]
                svids = await self._require_jwt().tokens_of(wanted, audience)
                self._authorise(peer)
        return _sendable(jwt_svid_response(svids))

    def SubscribeToJWTBundles(self, request: Any, context: Any) -> AsyncIterator[bytes]:
        """The JWT keys of the trust domains the workload may verify, again at each change."""
        return self._stream(request, context, self._jwt_bundles, token=True)

    def require_local_broker(self, context: Any) -> None:
        """Whether the caller may look at what is served here.

        Raises:
            InvalidRequest, Unauthenticated, Forbidden: the header is missing, it is no broker, or it comes over TCP.
        """
        _require_header(context)
        peer = self._caller(context)
        if peer.spiffe_id not in self._brokers or not peer.local:
            raise Forbidden("server reflection is for brokers, over the Unix socket")

    async def _stream(
        self, request: Any, context: Any, render: Callable[[WorkloadView], bytes], *, token: bool = False
    ) -> AsyncGenerator[bytes, None]:
        _require_header(context)
        peer = self._caller(context)
        if token:
            self._require_jwt()
        last = b""
        with _explained(context):
            reference = self._reference(request, peer)
            follow = self._references.follow(reference, partial(self._authorise, peer))
            async with aclosing(follow) as views:
                async for view in views:
                    if not view.x509_svids:
                        raise NoIdentityIssued
                    message = _sendable(render(view))
                    if message != last:
                        last = message
                        yield message

    def _caller(self, context: Any) -> TlsPeer:
        peer = self._caller_of(context)
        if not isinstance(peer, TlsPeer) or peer.spiffe_id is None:
            raise Unauthenticated("brokers are known by the SVID of their connection; present one")
        self._authorise(peer)
        return peer

    def _authorise(self, peer: TlsPeer) -> None:
        """The SVID of the connection is good still.

        Raises:
            Unauthenticated: it has ended, or its authority was removed.
        """
        bundle = None if peer.spiffe_id is None else self._workloads.bundles.get(peer.spiffe_id.trust_domain)
        believed = bundle is not None and peer.anchor in bundle.x509_roots
        if not believed or peer.not_after is None or peer.not_after <= self._clock.now():
            self._cut(peer)
            raise Unauthenticated("the SVID of this connection is not believed any longer; connect with a new one")

    def _reference(self, request: Any, peer: TlsPeer) -> Reference:
        """The reference of a request, once this broker may use it.

        Raises:
            Forbidden: it may not.
            InvalidRequest: it is missing, malformed or of another kind.
        """
        sent = request.reference.reference
        self._brokers.check(peer.spiffe_id, sent.type_url, Origin(peer.local, _same_machine(peer)))
        if sent.type_url == PROCESS:
            pid = _unpacked(sent, pb.WorkloadPIDReference()).pid
            if pid <= 0:
                raise InvalidRequest("pid: must be positive", field=_REFERENCE)
            return Process(pid)
        return _kubernetes(_unpacked(sent, pb.KubernetesObjectReference()))

    def _require_jwt(self) -> JwtSvids:
        if self._jwt is None:
            raise Unimplemented("the JWT profile is not offered here")
        return self._jwt


def _require_header(context: Any) -> None:
    """Exactly one `broker.spiffe.io: true` (SPIFFE Broker Endpoint section 3), before anything else is looked at."""
    key, value = HEADER
    if [found for name, found in context.invocation_metadata() or () if name == key] != [value]:
        raise InvalidRequest("security header missing from request", field=key)


def _unpacked(sent: AnyMessage, into: Any) -> Any:
    try:
        into.MergeFromString(sent.value)
    except DecodeError:
        raise InvalidRequest(f"reference: is not a {into.DESCRIPTOR.full_name} message", field=_REFERENCE) from None
    return into


def _kubernetes(sent: Any) -> KubernetesObject:
    """SPIFFE Broker API section 3.1.3.

    Raises:
        InvalidRequest: a part is missing or of absurd length.
    """
    wanted = KubernetesObject(sent.type.plural, sent.type.group, sent.key.namespace, sent.key.name, sent.uid)
    parts = (wanted.plural, wanted.group, wanted.namespace, wanted.name, wanted.uid)
    problem = ""
    if any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        problem = f"no part may have more than {MAX_NAME_BYTES} bytes"
    elif not wanted.plural or not wanted.group:
        problem = "type.plural and type.group are required; the group of core resources is called core"
    elif sent.HasField("key") and not wanted.name:
        problem = "key.name is required with a key"
    elif not wanted.name and not wanted.uid:
        problem = "key or uid is required"
    if problem:
        raise InvalidRequest(f"reference: {problem}", field=_REFERENCE)
    return wanted


def _same_machine(peer: TlsPeer) -> bool:
    """Whether a TCP connection came over the loopback interface."""
    host = peer.address.rpartition(":")[0].partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return peer.local
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _sendable(message: bytes) -> bytes:
    if len(message) > MAX_MESSAGE_BYTES:
        raise Exhausted(
            f"the response has {len(message)} bytes, more than {MAX_MESSAGE_BYTES}: federate with fewer trust domains, "
            "or give the workload fewer identities"
        )
    return message


@contextmanager
def _explained(context: Any) -> Any:
    """Send google.rpc.ErrorInfo beside what section 4.8 names a reason for."""
    try:
        yield
    except IdentityError as error:
        reason = _reason(error)
        if reason:
            info: Message = error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN)
            details = AnyMessage()
            details.Pack(info)
            code: int = STATUS[error.kind][0].value[0]
            rich = rpc_status_pb2.Status(code=code, message=error.public, details=[details])
            context.set_trailing_metadata(((DETAILS_TRAILER, rich.SerializeToString()),))
        raise


def _reason(error: IdentityError) -> str:
    if isinstance(error, NoIdentityIssued):
        return "WORKLOAD_NOT_ENTITLED"
    if isinstance(error, NotFound):
        return "WORKLOAD_NOT_FOUND"
    if isinstance(error, InvalidRequest) and error.field not in {"audience", "spiffe_id"}:
        return "WORKLOAD_REFERENCE_INVALID"
    return ""
