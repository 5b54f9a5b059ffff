"""A real node agent in this process, joined to a real server over its real sockets."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from grpc_health.v1 import health_pb2

from node_agent.bootstrap import build
from node_agent.rpc.health import SERVICE as HEALTH
from node_agent.settings import from_mapping
from spiffe_core.runtime.supervise import Supervisor
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.services import Stub
from workload_api.client import METADATA, WorkloadApiClient
from workload_api.service import SERVICE as WORKLOAD_API

OWN = (("unix", f"uid:{os.getuid()}"),)


class LiveAgent:
    """A running agent, a Workload API client of its, and what a test looks at."""

    def __init__(self, agent, client, channel):
        self.agent = agent
        self.client = client
        self._health = Stub(channel, HEALTH)
        self._api = Stub(channel, WORKLOAD_API)

    @asynccontextmanager
    async def admin(self, service):
        """A stub of a service on the admin socket."""
        async with unix_channel(self.agent.settings.admin_socket) as channel:
            yield Stub(channel, service)

    @property
    def path(self):
        svid = self.agent.membership._node.state.svid
        return svid.spiffe_id.path if svid else ""

    async def health(self):
        response = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)

    def x509_stream(self):
        """A raw FetchX509SVID stream."""
        return self._api.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=METADATA)

    async def until(self, condition, seconds=20.0):
        """Look again and again: for what has no event of its own to wait for."""
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)

    async def until_joined(self):
        await self.until(lambda: self.agent.membership.session.is_member and self.agent.workloads.ready)

    def sync_now(self):
        self.agent.synchronize.request()


def pem_bundle(live, folder):
    """The server's bundle as the operator carries it to the node."""
    path = Path(folder) / "bundle.pem"
    roots = live.state.bundles.own.x509_roots
    path.write_bytes(b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in roots))
    return path


def token_file(folder, token):
    path = Path(folder) / "token"
    path.write_text(token)
    path.chmod(0o600)
    return path


@asynccontextmanager
async def agent_folder():
    """A short path for sockets, whatever TMPDIR is."""
    folder = Path(tempfile.mkdtemp(prefix="mag", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@asynccontextmanager
async def live_agent(folder, address, *, clock=None, workload_attestors=None, **settings):
    """An agent with all its loops, for a server at `address`."""
    host, port = address
    document = {
        "trust_domain": "example.org",
        "data_dir": str(folder / "state"),
        "socket_path": str(folder / "run" / "api.sock"),
        "admin_socket_path": str(folder / "admin" / "admin.sock"),
        "server_address": host,
        "server_port": port,
        "sync_interval": "200ms",
        **settings,
    }
    agent = build(from_mapping(document), clock=clock, attestors=workload_attestors)
    try:
        await agent.open()
        async with Supervisor() as tasks:
            agent.start(tasks)
            socket = agent.settings.socket_path
            async with unix_channel(socket) as channel, WorkloadApiClient(f"unix://{socket}") as client:
                yield LiveAgent(agent, client, channel)
            await agent.drain()
            tasks.stop()
    finally:
        await agent.close()
