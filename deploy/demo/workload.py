"""The workloads of the demo: ordinary programs that ask the Workload API who they are. One JSON line per event."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import datetime
from typing import Any

from cryptography import x509

from spiffe_core.clock import SystemClock
from spiffe_core.errors import IdentityError
from spiffe_core.spiffe_id import SpiffeId
from workload_api.client import WorkloadApiClient
from workload_api.sources import X509Source
from workload_api.tls import TlsStream, connect_tls, exactly, start_server
from workload_api.x509_context import X509Context

CLOCK = SystemClock()


def say(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def told(context: X509Context) -> dict[str, Any]:
    """What there is to show of an identity."""
    svid = context.default
    leaf = x509.load_der_x509_certificate(svid.chain[0])
    roots = context.bundles.own.x509_authorities

    def left(moment: datetime) -> float:
        return round((moment - CLOCK.now()).total_seconds(), 1)

    return {
        "spiffe_id": str(svid.spiffe_id),
        "serial": f"{leaf.serial_number:x}",
        "seconds_left": left(leaf.not_valid_after_utc),
        "authorities": [{"key_id": root.key_id, "seconds_left": left(root.not_after)} for root in roots],
    }


async def greet(source: X509Source, port: int, peer: SpiffeId) -> None:
    async with await connect_tls("127.0.0.1", port, source, exactly(peer)) as stream:
        stream.writer.write(b"hello, who is there?\n")
        await stream.writer.drain()
        answer = (await stream.reader.readline()).decode().strip()
        version = stream.writer.get_extra_info("ssl_object").version()
        say("greeted", peer=str(stream.peer), tls=version, answer=answer)


async def serve(visitor: SpiffeId) -> None:
    """A server that talks to one SPIFFE ID and to nobody else."""
    async with X509Source() as source:
        say("identity", **told(await source.wait_ready(20)))

        async def handle(stream: TlsStream) -> None:
            await stream.reader.readline()
            stream.writer.write(f"{source.svid.spiffe_id}, and you are {stream.peer}\n".encode())
            await stream.writer.drain()

        async with await start_server(handle, "127.0.0.1", 0, source, exactly(visitor)) as server:
            say("listening", port=server.address[1])
            await asyncio.Event().wait()


async def visit(port: int, server: SpiffeId) -> None:
    """A client: greets, waits for its SVID to rotate on the open stream, greets again."""
    async with X509Source() as source:
        first = await source.wait_ready(20)
        say("identity", **told(first))
        await greet(source, port, server)
        serial = told(first)["serial"]
        async for context in source.updates.updates():
            if context is not None and told(context)["serial"] != serial:
                say("rotated", **told(context))
                break
        await greet(source, port, server)


async def knock() -> None:
    """A process that no registration entry matches."""
    async with WorkloadApiClient() as client:
        try:
            say("identity", **told(await client.fetch_x509()))
        except IdentityError as refusal:
            say("refused", kind=refusal.kind.value, text=refusal.public)


def main() -> None:
    role, *rest = sys.argv[1:]
    if role == "serve":
        asyncio.run(serve(SpiffeId.parse(rest[0])))
    elif role == "visit":
        asyncio.run(visit(int(rest[0]), SpiffeId.parse(rest[1])))
    else:
        asyncio.run(knock())


if __name__ == "__main__":
    main()
