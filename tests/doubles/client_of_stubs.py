"""The agent's client of a server, over real gRPC to servicers that a test writes."""

from contextlib import asynccontextmanager

import grpc
import grpc.aio

from node_agent.server_client import ServerClient
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire.services import handlers
from spiffe_core.wire.status import ErrorInterceptor
from tests.builders import TD

SERVICES = {
    "Agent": agent_pb2,
    "Bundle": bundle_pb2,
    "Entry": entry_pb2,
    "SVID": svid_pb2,
}


class PlainDialer:
    """A Dialer without TLS: a channel to one address."""

    def __init__(self, address):
        self._address = address
        self._channel = None
        self.last_error = None

    async def start(self):
        self._channel = grpc.aio.insecure_channel(self._address)

    def channel(self):
        return self._channel

    def answered(self, *, available):
        pass

    def fell_silent(self):
        pass

    async def renew(self):
        await self.close()
        await self.start()

    async def close(self):
        await self._channel.close()


@asynccontextmanager
async def client_of(tmp_path, **implementations):
    """A client whose server answers as `implementations` (service name -> object) say."""
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    tables = [handlers(SERVICES[name].DESCRIPTOR.services_by_name[name], one) for name, one in implementations.items()]
    server.add_generic_rpc_handlers(tuple(tables))
    address = f"unix:{tmp_path}/s"
    server.add_insecure_port(address)
    await server.start()
    client = ServerClient(TD, anonymous=PlainDialer(address), member=PlainDialer(address))
    await client.start()
    try:
        yield client
    finally:
        await client.close()
        await server.stop(0)
