"""A Workload API endpoint on a Unix socket, behind the real front door, over whatever backend a test scripts."""

import shutil
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message_factory import GetMessageClass

from spiffe_core.clock import SystemClock
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.door_server import private_server
from spiffe_core.wire.front_door import FrontDoor
from spiffe_core.wire.services import Stub
from spiffe_core.wire.status import ErrorInterceptor
from workload_api.service import WorkloadApi, WorkloadApiSettings

HEADER = (("workload.spiffe.io", "true"),)
SERVICE = workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]


@dataclass
class Endpoint:
    """A running endpoint. `stub` and `channel` belong to one plain client."""

    path: Path
    door: FrontDoor
    api: WorkloadApi
    channel: object
    stub: Stub

    @property
    def address(self):
        return f"unix://{self.path}"

    def x509_svids(self, metadata=HEADER, **options):
        return self.stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=metadata, **options)

    def call(self, name, metadata=HEADER, **fields):
        """A call of any method."""
        method = SERVICE.methods_by_name[name]
        return getattr(self.stub, name)(GetMessageClass(method.input_type)(**fields), metadata=metadata)

    def x509_bundles(self, metadata=HEADER, **options):
        return self.stub.FetchX509Bundles(workload_pb2.X509BundlesRequest(), metadata=metadata, **options)


@asynccontextmanager
async def workload_endpoint(backend, *, clock=None, service=None, jwt=None, wit=None, also=(), **settings):
    """Serve `backend`, with the profiles `jwt` and `wit` if given and what `also` builds of (api, door) (or another `service` with the same methods) until the block is left."""
    folder = Path(tempfile.mkdtemp(prefix="mwa", dir="/tmp"))  # short enough for a socket path, whatever TMPDIR is
    folder.chmod(0o755)
    door = FrontDoor()
    api = WorkloadApi(
        backend,
        door.caller_of,
        clock or SystemClock(),
        jwt=jwt,
        wit=wit,
        settings=WorkloadApiSettings(**settings),
        cut=lambda peer: door.close_where(lambda other: other is peer),
    )
    handler = api.handler() if service is None else service
    server = private_server(door, [handler, *(build(api, door) for build in also)], [ErrorInterceptor()])
    await server.start()
    door.listen_unix(folder / "api.sock")
    channel = unix_channel(folder / "api.sock")
    try:
        yield Endpoint(folder / "api.sock", door, api, channel, Stub(channel, SERVICE))
    finally:
        await channel.close()
        api.drain()
        await server.stop(1)
        await door.close()
        shutil.rmtree(folder)
