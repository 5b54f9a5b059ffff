"""A broker: calls of the SPIFFE Broker API over real mutual TLS, on TCP or on the Unix socket."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress

from google.protobuf.any_pb2 import Any as AnyMessage

from node_agent.rpc.broker_api import HEADER, SERVICE
from spiffe_core.clock import SystemClock
from spiffe_core.wire._gen import brokerapi_pb2 as pb
from spiffe_core.wire.dialer import Dialer
from spiffe_core.wire.server_proof import DialTrust
from spiffe_core.wire.services import Stub
from spiffe_core.wire.tls import TlsIdentity

METADATA = (HEADER,)


def packed(message):
    reference = AnyMessage()
    reference.Pack(message)
    return pb.WorkloadReference(reference=reference)


def process(pid):
    return packed(pb.WorkloadPIDReference(pid=pid))


def pods(*, namespace="", name="", uid="", plural="pods", group="core"):
    message = pb.KubernetesObjectReference(type={"plural": plural, "group": group}, uid=uid)
    if namespace or name:
        message.key.namespace, message.key.name = namespace, name
    return packed(message)


class Broker:
    """A connected broker."""

    def __init__(self, dialer):
        self.dialer = dialer
        self.stub = Stub(dialer.channel(), SERVICE)

    def svids(self, reference, metadata=METADATA):
        return self.stub.SubscribeToX509SVID(pb.SubscribeToX509SVIDRequest(reference=reference), metadata=metadata)

    def bundles(self, reference, metadata=METADATA):
        request = pb.SubscribeToX509BundlesRequest(reference=reference)
        return self.stub.SubscribeToX509Bundles(request, metadata=metadata)

    def jwt_bundles(self, reference, metadata=METADATA):
        request = pb.SubscribeToJWTBundlesRequest(reference=reference)
        return self.stub.SubscribeToJWTBundles(request, metadata=metadata)

    def tokens(self, reference, audience=("db",), spiffe_id="", metadata=METADATA):
        request = pb.FetchJWTSVIDRequest(reference=reference, audience=audience, spiffe_id=spiffe_id)
        return self.stub.FetchJWTSVID(request, metadata=metadata, timeout=20)


@asynccontextmanager
async def broker(address, svid, agent_id, bundle_of):
    """A broker with `svid` (anything with chain and key, or None) that expects `agent_id` at a socket path or an address."""
    async with _reachable(address) as (host, port):
        dialer = Dialer(
            host,
            port,
            trust=lambda: DialTrust(agent_id, bundle_of),
            identity=lambda: None if svid is None else TlsIdentity(tuple(svid.chain), svid.key),
            now=SystemClock().now,
        )
        await dialer.start()
        try:
            yield Broker(dialer)
        finally:
            await dialer.close()


@asynccontextmanager
async def _reachable(address):
    """The address itself, or a local port that leads to the Unix socket at this path."""
    if isinstance(address, tuple):
        yield address
        return
    pumps = set()

    async def pump(reader, writer):
        with suppress(ConnectionError, asyncio.CancelledError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def join(reader, writer):
        pumps.add(asyncio.current_task())
        with suppress(ConnectionError, asyncio.CancelledError):  # a cancelled callback would be logged as a failure
            far_reader, far_writer = await asyncio.open_unix_connection(str(address))
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        writer.close()

    server = await asyncio.start_server(join, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
