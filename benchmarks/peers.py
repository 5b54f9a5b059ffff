"""Bundle endpoints of many trust domains in one process: PORT/0, PORT/1, ... each serve the bundle of one.

    python -m benchmarks.peers PORT CERTIFICATE KEY COUNT

`/hang` takes a request and never answers it, as a peer does that is overloaded or cut off.
"""

from __future__ import annotations

import asyncio
import sys

import uvicorn

from spiffe_core.bundle_document import dump_bundle
from spiffe_core.crypto.keys import KeyKind, generate
from tests.authority import SpiffeTestCA

SIGNER = generate(KeyKind.EC_P256)


def document(number: int) -> bytes:
    """The bundle of one trust domain."""
    return dump_bundle(SpiffeTestCA(f"peer-{number}.test", key=SIGNER).bundle(sequence=1))


def serve(port: int, certificate: str, key: str, count: int) -> None:
    documents = {f"/{number}": document(number) for number in range(count)}

    async def app(scope: dict[str, str], _receive: object, send: object) -> None:
        body = documents.get(scope["path"])
        if body is None:
            await asyncio.Event().wait()
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        loop="uvloop",
        lifespan="off",
        access_log=False,
        log_level="error",
    )


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
