"""uvicorn with nothing but an application of two messages, which answers every request with the bytes of a file.

python -m benchmarks.bare_uvicorn PORT CERTIFICATE KEY FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

PORT, CERTIFICATE, KEY, FILE = sys.argv[1:]
BODY = Path(FILE).read_bytes()
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))],
}
REST = {"type": "http.response.body", "body": BODY}


async def app(_scope: object, _receive: object, send: object) -> None:
    await send(START)
    await send(REST)


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(PORT),
        ssl_certfile=CERTIFICATE,
        ssl_keyfile=KEY,
        loop="uvloop",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
