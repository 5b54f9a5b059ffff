"""A small HTTP/1.1 reader over asyncio streams: raw requests out, parsed answers back, every connection closed."""

import asyncio
import contextlib
import ssl
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict
    body: bytes


class Reader:
    """One connection; `ask` may be called again on it."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @property
    def tls(self):
        return self.writer.get_extra_info("ssl_object")

    async def ask(self, path="/", method="GET", headers=(), body=b""):
        lines = [f"{method} {path} HTTP/1.1", "Host: example.org", *(f"{name}: {value}" for name, value in headers)]
        return await self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body, method)

    async def raw(self, data, method="GET"):
        self.writer.write(data)
        await self.writer.drain()
        async with asyncio.timeout(20):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *rest = head.split("\r\n")
            headers = dict(line.lower().split(": ", 1) if ": " in line else (line, "") for line in rest if line)
            status = int(first.split(" ")[1])
            length = 0 if method == "HEAD" or status == 304 else int(headers.get("content-length", 0))
            return Answer(status, headers, await self.reader.readexactly(length))

    async def ended(self):
        """Wait until the other side hangs up; what came before that."""
        async with asyncio.timeout(30):
            try:
                return await self.reader.read()
            except (ConnectionError, ssl.SSLError):
                return b""

    async def close(self):
        self.writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(5):
                await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def connected(address, context=None, server_hostname=None):
    """A connection to `address`; TLS if there is a context, which checks nothing by default."""
    over = {"ssl": context, "server_hostname": server_hostname} if context is not None else {}
    streams = await asyncio.wait_for(asyncio.open_connection(*address, **over), 20)
    reader = Reader(*streams)
    try:
        yield reader
    finally:
        await reader.close()


def unchecked():
    """A client's context that believes everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def get(address, path="/", *, context=None, method="GET", headers=(), body=b""):
    """One request on a connection of its own, over TLS that checks nothing unless a context is given."""
    async with connected(address, context or unchecked()) as reader:
        return await reader.ask(path, method, headers, body)
