"""HTTP/2 as the standard has it, behind our door as without it (S57; RFC 9113, RFC 7541).

The door passes bytes on, counts frames and joins sockets, and must change nothing about what gRPC says to its peers. Each
case is the frames of one connection, and what becomes of that: "alive" if a PING after them is answered, "over" if the
connection ends, with GOAWAY or without. Left out is where gRPC resets the call alone and goes on.
"""

import asyncio
import contextlib
import ssl
from contextlib import asynccontextmanager

import grpc
import pytest

from spiffe_core.wire.channels import server_options
from spiffe_core.wire.front_door import FrontDoor
from tests.doubles.door_service import DoorService, serve
from tests.doubles.floods import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    HEADER_BLOCK,
    HEADERS,
    PING,
    PREFACE,
    RST,
    SETTINGS,
    WINDOW,
    frame,
)
from tests.doubles.tls_domain import listening

DATA, PRIORITY, GOAWAY, ACK = 0, 2, 7, 1
HELLO = PREFACE + frame(SETTINGS, 0, 0)
LAST = b"lastping"
BEGUN = frame(HEADERS, 0, 1, HEADER_BLOCK)  # its header block goes on
CALL = frame(HEADERS, END_HEADERS, 1, HEADER_BLOCK)


def setting(identifier, value):
    return frame(SETTINGS, 0, 0, identifier.to_bytes(2) + value.to_bytes(4))


def continued(block=b"", flags=END_HEADERS, stream=1):
    return frame(CONTINUATION, flags, stream, block)


CASES = {
    "3.4 another preface": (b"INVALID CONNECTION PREFACE\r\n\r\n", "over"),
    "3.4 the preface and nothing else": (HELLO, "alive"),
    "4.1 a frame of a type nobody knows": (HELLO + frame(0xFF, 0, 0, bytes(8)), "alive"),
    "4.3 a header block that is none": (HELLO + frame(HEADERS, END_HEADERS, 1, b"\xff" * 5), "over"),
    "4.3 a priority inside a header block": (HELLO + BEGUN + frame(PRIORITY, 0, 1, bytes(5)) + continued(), "over"),
    "4.3 another stream inside a header block": (HELLO + BEGUN + frame(HEADERS, END_HEADERS, 3, HEADER_BLOCK), "over"),
    "5.1 a continuation on an idle stream": (HELLO + continued(HEADER_BLOCK), "over"),
    "5.1 a continuation of a closed block": (HELLO + CALL + frame(RST, 0, 1, bytes(3) + b"\x08") + continued(), "over"),
    "5.5 an unknown frame inside a header block": (HELLO + BEGUN + frame(0x16, 0, 0, bytes(8)) + continued(), "over"),
    "6.4 a reset of three bytes": (HELLO + CALL + frame(RST, 0, 1, bytes(3)), "over"),
    "6.5 an acknowledgement with a payload": (HELLO + frame(SETTINGS, ACK, 0, b"\x00"), "over"),
    "6.5 settings of a stream": (HELLO + frame(SETTINGS, 0, 1, b"\x00\x03\x00\x00\x00\x64"), "over"),
    "6.5 settings cut short": (HELLO + frame(SETTINGS, 0, 0, b"\x00\x03\x00"), "over"),
    "6.5.2 push neither on nor off": (HELLO + setting(2, 2), "over"),
    "6.5.2 a window above the maximum": (HELLO + setting(4, 2**31), "over"),
    "6.5.2 frames below the minimum": (HELLO + setting(5, 2**14 - 1), "over"),
    "6.5.2 frames above the maximum": (HELLO + setting(5, 2**24), "over"),
    "6.5.2 a setting that nobody knows": (HELLO + setting(0xFF, 1), "alive"),
    "6.7 a ping": (HELLO + frame(PING, 0, 0, bytes(8)), "alive"),
    "6.7 an answer to no ping": (HELLO + frame(PING, ACK, 0, b"invalid!"), "alive"),
    "6.7 a ping of six bytes": (HELLO + frame(PING, 0, 0, bytes(6)), "over"),
    "6.9 a window that does not grow": (HELLO + frame(WINDOW, 0, 0, bytes(4)), "over"),
    "6.9 a window of three bytes": (HELLO + frame(WINDOW, 0, 0, bytes(3)), "over"),
    "6.10 a block followed by data": (HELLO + BEGUN + frame(DATA, END_STREAM, 1, b"test"), "over"),
    "6.10 a continuation of the connection": (HELLO + BEGUN + continued(stream=0), "over"),
    "6.10 a continuation of a whole block": (HELLO + CALL + continued(), "over"),
    "7 a reset for a reason nobody knows": (HELLO + CALL + frame(RST, 0, 1, b"\0\0\0\xff"), "alive"),
    "7541 2.3.3 an index that stands for nothing": (
        HELLO + frame(HEADERS, END_HEADERS, 1, HEADER_BLOCK + b"\xc6"),
        "over",
    ),
    "7541 6.1 the index nought": (HELLO + frame(HEADERS, END_HEADERS, 1, HEADER_BLOCK + b"\x80"), "over"),
    "7541 6.3 a table larger than allowed": (
        HELLO + frame(HEADERS, END_HEADERS, 1, b"\x3f\xe1\xff\x03" + HEADER_BLOCK),
        "over",
    ),
}


async def outcome(reader, writer, said):
    """Say it, with a PING at the end; whether that is answered."""
    writer.write(said + frame(PING, 0, 0, LAST))
    try:
        async with asyncio.timeout(30):
            while True:
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3]))
                if head[3] == GOAWAY:
                    return "over"
                if (head[3], head[4] & ACK, payload) == (PING, ACK, LAST):
                    return "alive"
    except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
        return "over"
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def bare(folder):
    """gRPC without a door."""
    server = grpc.aio.server(options=server_options(max_connection_age=None))
    door = FrontDoor()
    server.add_generic_rpc_handlers([DoorService(door).handler()])
    server.add_insecure_port(f"unix:{folder}/bare.sock")
    await server.start()
    try:
        yield lambda: asyncio.open_unix_connection(f"{folder}/bare.sock")
    finally:
        await server.stop(0)
        await door.close()


@asynccontextmanager
async def unix(folder):
    door = FrontDoor()
    _, server = await serve(door)
    door.listen_unix(folder / "api.sock")
    try:
        yield lambda: asyncio.open_unix_connection(f"{folder}/api.sock")
    finally:
        await server.stop(0)
        await door.close()


@asynccontextmanager
async def tls(_folder):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    async with listening() as domain:
        yield lambda: asyncio.open_connection("127.0.0.1", domain.port, ssl=context)


@pytest.mark.parametrize("place", [bare, unix, tls], ids=lambda place: place.__name__)
async def test_every_connection_ends_or_goes_on_as_the_standard_says(place, tmp_path):
    """S57: RFC 9113 and RFC 7541 by section; the first place is gRPC itself, which the door must not be worse than."""
    wrong = {}
    async with place(tmp_path) as connect:
        for name, (said, expected) in CASES.items():
            found = await outcome(*await connect(), said)
            if found != expected:
                wrong[name] = found
    assert wrong == {}


@pytest.mark.parametrize("place", [unix, tls], ids=lambda place: place.__name__)
async def test_a_call_that_comes_byte_by_byte_is_answered(place, tmp_path):
    """S57, RFC 9113 section 4.1: frames have no place in the stream of bytes that reads could rely on."""
    said = HELLO + CALL + frame(DATA, END_STREAM, 1, b"\0\0\0\0\x04echo")
    async with place(tmp_path) as connect:
        reader, writer = await connect()
        for at in range(len(said)):
            writer.write(said[at : at + 1])
            await writer.drain()
        answer = b""
        async with asyncio.timeout(30):
            while b"\0\0\0\0\x04echo" not in answer:
                answer += await reader.read(4096)
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
