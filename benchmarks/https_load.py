"""A client that asks one https address as fast as it answers; a process of its own, so that it costs the server nothing.

    python -m benchmarks.https_load PORT kept|new SECONDS CONNECTIONS FILE

`kept` asks again on each connection, `new` makes another for each request. Every answer's body is compared with FILE.
Prints {"requests": N, "seconds": S}.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from pathlib import Path

import uvloop

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Client(asyncio.Protocol):
    """One connection; `over` is set when it has been told to stop and the last answer is here."""

    def __init__(self, wanted: bytes, until: float, *, kept: bool) -> None:
        self.wanted, self.until, self.kept = wanted, until, kept
        self.done, self.buffer = 0, b""
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(REQUEST if self.kept else LAST)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found or len(body) < len(self.wanted):
            return
        if body != self.wanted or not head.startswith(b"HTTP/1.1 200"):
            self.finish(ValueError(f"a wrong answer: {head!r}"))
            return
        self.done, self.buffer = self.done + 1, b""
        if self.kept and time.perf_counter() < self.until:
            self.transport.write(REQUEST)
        else:
            self.finish()

    def finish(self, error: Exception | None = None) -> None:
        self.transport.close()
        if not self.over.done():
            if error is None:
                self.over.set_result(None)
            else:
                self.over.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        self.finish(error or ConnectionResetError("the server hung up"))


async def load(port: int, *, kept: bool, seconds: float, connections: int, wanted: bytes) -> dict[str, float]:
    loop, context = asyncio.get_running_loop(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    begun = time.perf_counter()
    until = begun + seconds
    requests = 0

    async def one() -> None:
        nonlocal requests
        while time.perf_counter() < until:
            _, client = await loop.create_connection(
                lambda: Client(wanted, until, kept=kept), "127.0.0.1", port, ssl=context
            )
            await client.over
            requests += client.done

    await asyncio.gather(*(one() for _ in range(connections)))
    return {"requests": requests, "seconds": time.perf_counter() - begun}


if __name__ == "__main__":
    PORT, HOW, SECONDS, CONNECTIONS, FILE = sys.argv[1:]
    print(
        json.dumps(
            uvloop.run(
                load(
                    int(PORT),
                    kept=HOW == "kept",
                    seconds=float(SECONDS),
                    connections=int(CONNECTIONS),
                    wanted=Path(FILE).read_bytes(),
                )
            )
        )
    )
