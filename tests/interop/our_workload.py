"""A workload that uses our own library: what other projects' clients talk mutual TLS with.

serve PEER        greet everyone who proves to be PEER, until killed
dial PORT PEER    greet the server at PORT, which has to be PEER
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from cryptography import x509

from spiffe_core.errors import IdentityError
from spiffe_core.spiffe_id import SpiffeId
from workload_api.sources import X509Source
from workload_api.tls import TlsStream, connect_tls, exactly, start_server


def say(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


async def serve(peer: SpiffeId) -> None:
    async with X509Source() as source:
        await source.wait_ready(20)

        async def handle(stream: TlsStream) -> None:
            hello = (await stream.reader.readline()).decode().strip()
            leaf = x509.load_der_x509_certificate(source.svid.chain[0])
            say("greeted", peer=str(stream.peer), hello=hello, serial=f"{leaf.serial_number:x}")
            stream.writer.write(f"you are {stream.peer}\n".encode())
            await stream.writer.drain()

        async with await start_server(handle, "127.0.0.1", 0, source, exactly(peer)) as server:
            say("listening", port=server.address[1], spiffe_id=str(source.svid.spiffe_id))
            await asyncio.Event().wait()


async def dial(port: int, peer: SpiffeId) -> None:
    async with X509Source() as source:
        await source.wait_ready(20)
        try:
            async with await connect_tls("127.0.0.1", port, source, exactly(peer)) as stream:
                stream.writer.write(b"hello from our library\n")
                await stream.writer.drain()
                answer = (await stream.reader.readline()).decode().strip()
                if not answer:
                    say("refused", text="the server closed the connection")
                    return
                tls = stream.writer.get_extra_info("ssl_object").version()
                say("greeted", peer=str(stream.peer), tls=tls, answer=answer)
        except (IdentityError, OSError) as error:
            say("refused", text=str(error))


def main() -> None:
    mode, *words = sys.argv[1:]
    if mode == "serve":
        asyncio.run(serve(SpiffeId.parse(words[0])))
    else:
        asyncio.run(dial(int(words[0]), SpiffeId.parse(words[1])))


if __name__ == "__main__":
    main()
