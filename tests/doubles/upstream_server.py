"""An upstream SPIFFE server and its agent in this process: real sockets and TLS, answers as a test says."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from google.protobuf.message_factory import GetMessageClass

from spiffe_core.bundle import BundleSet, JwtAuthority, TrustBundle, WitAuthority, X509Authority
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.csr import parse_csr
from spiffe_core.errors import Forbidden
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire.convert_bundle import (
    bundle_to_proto,
    jwt_authorities_from_proto,
    jwt_authorities_to_proto,
    wit_authorities_from_proto,
    wit_authorities_to_proto,
)
from spiffe_core.wire.door_server import private_server
from spiffe_core.wire.front_door import FrontDoor
from spiffe_core.wire.services import handlers
from spiffe_core.wire.status import ErrorInterceptor
from spiffe_core.wire.tls import ServerTls, TlsIdentity
from tests.authority import CA_USAGE, certify
from tests.doubles.scripted_backend import ScriptedBackend, WorkloadCa
from tests.doubles.workload_endpoint import workload_endpoint

BUNDLE = bundle_pb2.DESCRIPTOR.services_by_name["Bundle"]
SVID = svid_pb2.DESCRIPTOR.services_by_name["SVID"]
NESTED = "/nested"


class _Public:
    def __init__(self, public):
        self._public = public

    def public_key(self):
        return self._public


class UpstreamDouble:
    """`downstream` says which SPIFFE IDs may have CAs signed. `troubles` are raised first, one for each call.

    `answers` holds finished bytes that are sent in place of an answer, by method.
    """

    def __init__(self, trust_domain="example.org"):
        self.ca = WorkloadCa(trust_domain)
        self.roots = {self.ca.der: False}
        self.jwt: tuple[JwtAuthority, ...] = ()
        self.wit: tuple[WitAuthority, ...] = ()
        self.sequence = 1
        self.downstream = {f"spiffe://{trust_domain}{NESTED}"}
        self.backend = ScriptedBackend(self.ca.view(NESTED))
        self.troubles: list[Exception] = []
        self.answers: dict[str, bytes] = {}
        self.calls: list[tuple[str, str]] = []
        self.gate: asyncio.Event | None = None
        self.port = 0
        self.socket = None

    @property
    def bundle(self):
        roots = tuple(X509Authority(der, tainted=tainted) for der, tainted in self.roots.items())
        return TrustBundle(self.ca.trust_domain, roots, self.jwt, self.wit, sequence=self.sequence, refresh_hint=300)

    def publish(self, **change):
        """A changed bundle at the server; the agent hears of it only by `tell_agent`."""
        for name, value in change.items():
            setattr(self, name, value)
        self.sequence += 1

    def tell_agent(self, *paths):
        self.backend.publish(self.ca.view(*(paths or (NESTED,)), bundle=self.bundle))

    def called(self, method):
        return [caller for name, caller in self.calls if name == method]

    async def begin(self, method, context):
        caller = str(self.door.caller_of(context).spiffe_id)
        self.calls.append((method, caller))
        if self.gate is not None:
            await self.gate.wait()
        if self.troubles:
            raise self.troubles.pop(0)
        if method != "GetBundle" and caller not in self.downstream:
            raise Forbidden("authorization denied for method")
        return self.answers.get(method)

    async def GetBundle(self, _request, context):
        return await self.begin("GetBundle", context) or bundle_to_proto(self.bundle)

    async def PublishJWTAuthority(self, request, context):
        spoiled = await self.begin("PublishJWTAuthority", context)
        if spoiled is not None:
            return spoiled
        self.publish(jwt=(*self.jwt, *jwt_authorities_from_proto([request.jwt_authority])))
        return bundle_pb2.PublishJWTAuthorityResponse(jwt_authorities=jwt_authorities_to_proto(self.jwt))

    async def PublishWITAuthority(self, request, context):
        spoiled = await self.begin("PublishWITAuthority", context)
        if spoiled is not None:
            return spoiled
        self.publish(wit=(*self.wit, *wit_authorities_from_proto([request.wit_authority])))
        return bundle_pb2.PublishWITAuthorityResponse(wit_authorities=wit_authorities_to_proto(self.wit))

    async def NewDownstreamX509CA(self, request, context):
        spoiled = await self.begin("NewDownstreamX509CA", context)
        if spoiled is not None:
            return spoiled
        csr = parse_csr(request.csr)
        der = certify(
            _Public(csr.public_key),
            signer=self.ca.key,
            issuer=self.ca.certificate,
            now=SystemClock().now(),
            uris=csr.uri_sans,
            ca=True,
            usage=CA_USAGE,
            eku=None,
        )
        return svid_pb2.NewDownstreamX509CAResponse(
            ca_cert_chain=[der, *self.ca.chain], x509_authorities=list(self.roots)
        )

    @asynccontextmanager
    async def server(self):
        """Serve the API with TLS; leaving the block takes the server away, and it can be entered again."""
        own = self.ca.issue(SpiffeId(self.ca.trust_domain, "/spire/server"))
        self.door = FrontDoor()
        server = private_server(self.door, [handlers(BUNDLE, self), handlers(SVID, self)], [ErrorInterceptor()])
        await server.start()
        tls = ServerTls(lambda: TlsIdentity(own.chain, own.key), lambda: BundleSet(self.bundle), SystemClock().now)
        _, self.port = self.door.listen_tcp("127.0.0.1", self.port, tls)
        try:
            yield self
        finally:
            await server.stop(0)
            await self.door.close()

    @asynccontextmanager
    async def agent(self):
        """Serve the Workload API."""
        async with workload_endpoint(self.backend) as endpoint:
            self.socket = endpoint.path
            yield endpoint


def spoiled(message, **fields):
    """The bytes of an answer that says something else."""
    return GetMessageClass(message.DESCRIPTOR)(**fields).SerializeToString()
