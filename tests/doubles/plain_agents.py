"""Agents in their thousands: as little client as a server can be asked by, over real TLS connections.

One connection carries one call: preface, one request, and everything up to the status. Each agent has an address of its
own on loopback, as nodes have, so that limits by address count them apart.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from pathlib import Path

import hpack
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4
ATTEST = "/spire.api.server.agent.v1.Agent/AttestAgent"
SYNC = "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries"


class Refused(Exception):
    """The call ended with another status than 0."""


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def header_block(path):
    fields = [(":method", "POST"), (":scheme", "https"), (":path", path), (":authority", "server")]
    fields += [("content-type", "application/grpc"), ("te", "trailers")]
    return hpack.Encoder().encode(fields)


def request(path, message):
    body = b"\0" + len(message).to_bytes(4, "big") + message
    return (
        PREFACE
        + frame(SETTINGS, 0, 0)
        + frame(HEADERS, END_HEADERS, 1, header_block(path))
        + frame(DATA, END_STREAM, 1, body)
    )


async def answered(reader):
    """The message of the one call of a connection; raises Refused."""
    decoder, body, facts = hpack.Decoder(), b"", {}
    while "grpc-status" not in facts:
        head = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        if head[3] == HEADERS:
            facts.update(decoder.decode(payload))
        elif head[3] == DATA:
            body += payload
        elif head[3] in {RST, GOAWAY}:
            raise Refused(f"frame {head[3]}: {payload!r}")
    if facts["grpc-status"] != "0":
        raise Refused(f"{facts['grpc-status']}: {facts.get('grpc-message')}")
    return body[5:]


class PlainAgent:
    """One node: a join token, a key, then a certificate."""

    def __init__(self, number, port, folder: Path):
        self.address = f"127.0.{1 + number // 250}.{1 + number % 250}"
        self.port = port
        self.key = generate(KeyKind.EC_P256)
        self._file = folder / f"agent-{number}.pem"
        self._context = bare_context()

    async def attest(self, token):
        """Join, and keep the certificate."""
        params = agent_pb2.AttestAgentRequest(
            params={
                "data": {"type": "join_token", "payload": token.encode()},
                "params": {"csr": build_csr(self.key, spiffe_id=None)},
            }
        )
        answer = agent_pb2.AttestAgentResponse.FromString(await self._call(ATTEST, params))
        chain = answer.result.svid.cert_chain
        secret = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self._file.write_bytes(
            secret + b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in chain)
        )
        self._context = bare_context()
        self._context.load_cert_chain(self._file)
        return answer.result.svid.id.path

    async def sync(self):
        """Connect as the agent it is and ask for its entries."""
        answer = await self._call(SYNC, entry_pb2.GetAuthorizedEntriesRequest())
        return entry_pb2.GetAuthorizedEntriesResponse.FromString(answer).entries

    async def _call(self, path, message):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self._context, local_addr=(self.address, 0), ssl_handshake_timeout=55
        )
        try:
            writer.write(request(path, message.SerializeToString()))
            return await answered(reader)
        finally:
            writer.transport.abort()


def bare_context():
    """TLS without asking who the server is, which is not what these agents are for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context
