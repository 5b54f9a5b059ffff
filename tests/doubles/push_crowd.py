"""Agents in their thousands that hold a push stream open, each over a TLS connection of its own."""

import asyncio
import struct

from spiffe_core.wire._gen.muniment.server.propagation.v1 import propagation_pb2 as pb
from tests.doubles.plain_agents import (
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PREFACE,
    SETTINGS,
    PlainAgent,
    frame,
    header_block,
)

FOLLOW = "/muniment.server.propagation.v1.Propagation/Follow"
ACK, PING, WINDOW_UPDATE = 1, 6, 8


class PushAgent(PlainAgent):
    """One node with an open Follow stream. `messages` counts what it was sent; it acknowledges everything."""

    messages = 0
    bytes = 0

    async def follow(self):
        """Open the stream; returns once the first delta has come. It is read until `leave`."""
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self._context, local_addr=(self.address, 0), ssl_handshake_timeout=55
        )
        self._writer.write(PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, header_block(FOLLOW)))
        self._say(pb.FollowRequest(hello=pb.Hello()))
        self.first = asyncio.Event()
        self.task = asyncio.ensure_future(self._listen())
        waiting = asyncio.ensure_future(self.first.wait())
        await asyncio.wait({self.task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.task.done():
            self.task.result()

    def leave(self):
        self.task.cancel()
        self._writer.transport.abort()

    def _say(self, message):
        body = message.SerializeToString()
        self._writer.write(frame(DATA, 0, 1, b"\0" + len(body).to_bytes(4, "big") + body))

    async def _listen(self):
        body = b""
        while True:
            head = await self._reader.readexactly(9)
            payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
            kind, flags = head[3], head[4]
            if kind == DATA:
                body = self._heard(body + payload)
                grant = struct.pack(">I", max(len(payload), 1))
                self._writer.write(frame(WINDOW_UPDATE, 0, 0, grant) + frame(WINDOW_UPDATE, 0, 1, grant))
            elif kind in {SETTINGS, PING} and not flags & ACK:
                self._writer.write(frame(kind, ACK, 0, payload if kind == PING else b""))
            elif kind == GOAWAY:
                raise ConnectionError(f"the server sent {payload!r}")

    def _heard(self, body):
        while len(body) >= 5 and len(body) >= 5 + int.from_bytes(body[1:5], "big"):
            end = 5 + int.from_bytes(body[1:5], "big")
            message = pb.FollowResponse.FromString(body[5:end])
            body = body[end:]
            self.messages += 1
            self.bytes += end
            if not message.more:
                self._say(pb.FollowRequest(ack=pb.Ack(position=message.position)))
                self.first.set()
        return body
