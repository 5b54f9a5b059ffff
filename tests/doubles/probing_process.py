"""A process with many streams of FetchX509SVID that says each second what it holds: `probing_process.py SOCKET UID STREAMS`.

One line of JSON a second: how many streams it has, how many hold an SVID, how many hold only one that has expired, how
many seconds the SVID that ends first has left, and how many messages came so far. It comes back to an agent that went
away, as workloads do.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import ClassVar

from cryptography import x509

from benchmarks.raw_client import RawConnection, request_headers
from spiffe_core.clock import SystemClock
from spiffe_core.wire._gen import workload_pb2
from workload_api.x509_context import split_der

FETCH = request_headers("/SpiffeWorkloadAPI/FetchX509SVID")
PAUSE = 0.3


class Probe:
    """One stream and what came of it last."""

    ends: ClassVar[dict[bytes, float]] = {}

    def __init__(self, path: Path) -> None:
        self.path, self.held_until, self.messages = path, None, 0
        self._over = asyncio.Event()

    async def run(self) -> None:
        while True:
            self._over.clear()
            try:
                connection = await RawConnection.open(
                    self.path, self._heard, lambda _: self._over.set(), self._over.set
                )
            except OSError:
                await asyncio.sleep(PAUSE)
                continue
            connection.call(FETCH, b"")
            await self._over.wait()
            connection.close()
            await asyncio.sleep(PAUSE)

    def _heard(self, _stream: int, message: bytes) -> None:
        self.messages += 1
        if message not in self.ends:
            if len(self.ends) > 100:
                self.ends.clear()
            svids = workload_pb2.X509SVIDResponse.FromString(message).svids
            leaves = [split_der(one.x509_svid, field="x509_svid")[0] for one in svids]
            self.ends[message] = max(
                x509.load_der_x509_certificate(one).not_valid_after_utc.timestamp() for one in leaves
            )
        self.held_until = self.ends[message]


async def main(path: Path, streams: int) -> None:
    probes = [Probe(path) for _ in range(streams)]
    running = [asyncio.ensure_future(probe.run()) for probe in probes]
    while not any(task.done() for task in running):
        await asyncio.sleep(1)
        now = SystemClock().now().timestamp()
        left = [probe.held_until - now for probe in probes if probe.held_until is not None]
        report = {
            "streams": streams,
            "held": len(left),
            "expired": sum(seconds <= 0 for seconds in left),
            "least": round(min(left, default=0.0), 1),
            "messages": sum(probe.messages for probe in probes),
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    user = int(sys.argv[2])
    if user != os.geteuid():
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[3])))
