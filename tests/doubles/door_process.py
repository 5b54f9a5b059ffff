"""`python -m tests.doubles.door_process PATH`: the door service as a process of its own, so that its CPU can be measured.

Says on which port it listens with TLS, too.
"""

import asyncio
import sys
from pathlib import Path

import uvloop

from spiffe_core.bundle import BundleSet
from spiffe_core.clock import SystemClock
from spiffe_core.wire.front_door import FrontDoor
from spiffe_core.wire.tls import ServerTls, TlsIdentity
from tests.authority import SpiffeTestCA
from tests.doubles.door_service import serve


async def main(path: Path) -> None:
    ca = SpiffeTestCA("example.org")
    svid = ca.issue("spiffe://example.org/spire/server")
    identity, bundles = TlsIdentity(svid.chain, svid.key), BundleSet(ca.bundle(), {})
    door = FrontDoor()
    held = await serve(door)  # a gRPC server that nobody holds stops
    door.listen_unix(path)
    _, port = door.listen_tcp("127.0.0.1", 0, ServerTls(lambda: identity, lambda: bundles, SystemClock().now))
    print(f"ready {port}", flush=True)
    await asyncio.Event().wait()
    del held


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
