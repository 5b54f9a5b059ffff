"""FetchX509SVID over a socket of one's own, without gRPC: for callers that share, pass on or inherit their connection."""

import re
import select
import socket
import struct
import time

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived

from spiffe_core.wire._gen import workload_pb2

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/SpiffeWorkloadAPI/FetchX509SVID"),
    (":authority", "localhost"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
    ("workload.spiffe.io", "true"),
]


class RawCall:
    """The bytes of one call, and what comes back: SPIFFE IDs, a gRPC status, or the end of the connection."""

    def __init__(self):
        self._h2 = H2Connection(H2Configuration(client_side=True))
        self._h2.initiate_connection()
        self._stream = None
        self._message = b""
        self.outcome = None

    @classmethod
    def listening(cls):
        """What another process asked, as one that only reads the answer sees it."""
        call = cls()
        call.request()
        return call

    @classmethod
    def going_on(cls):
        """A connection that was greeted already, by this process before it began anew."""
        call = cls()
        call.hello()
        return call

    def hello(self):
        """The preface."""
        return self._h2.data_to_send()

    def request(self, method="FetchX509SVID"):
        """One more call on the connection; also what is owed to the server."""
        self._stream = self._h2.get_next_available_stream_id()
        self._message, self.outcome = b"", None
        named = dict(HEADERS) | {":path": f"/SpiffeWorkloadAPI/{method}"}
        self._h2.send_headers(self._stream, list(named.items()))
        self._h2.send_data(self._stream, struct.pack(">BI", 0, 0), end_stream=True)
        return self._h2.data_to_send()

    def feed(self, data):
        """Take in what the server sent; what is owed in return."""
        if not data:
            self.outcome = self.outcome or {"closed": True}
            return b""
        for event in self._h2.receive_data(data):
            if getattr(event, "stream_id", None) != self._stream:
                continue
            if isinstance(event, DataReceived):
                self._message += event.data
                self._whole()
            elif isinstance(event, (ResponseReceived, TrailersReceived)):
                fields = dict(event.headers)
                if b"grpc-status" in fields:
                    self.outcome = {
                        "status": int(fields[b"grpc-status"]),
                        "text": fields.get(b"grpc-message", b"").decode(),
                    }
            elif isinstance(event, (StreamEnded, StreamReset)):
                self.outcome = self.outcome or {"closed": True}
        return self._h2.data_to_send()

    def _whole(self):
        if len(self._message) >= 5 and len(self._message) >= 5 + struct.unpack(">I", self._message[1:5])[0]:
            response = workload_pb2.X509SVIDResponse.FromString(self._message[5:])
            self.outcome = {"ids": sorted(re.sub("^spiffe://[^/]*", "", svid.spiffe_id) for svid in response.svids)}


def read(call, connection, seconds=20.0, *, answer=True):
    """Read until there is an outcome. Without `answer` nothing is written in return."""
    end = time.monotonic() + seconds
    while call.outcome is None:
        left = end - time.monotonic()
        if left <= 0 or not select.select([connection], [], [], left)[0]:
            return {"silent": True}
        try:
            owed = call.feed(connection.recv(65536))
            if answer and owed:
                connection.sendall(owed)
        except OSError:
            call.outcome = {"closed": True}
    return call.outcome


def settled(call, connection, seconds=20.0):
    """Greet and wait for the server's own greeting: from then on the connection is accepted."""
    connection.sendall(call.hello())
    assert select.select([connection], [], [], seconds)[0]
    connection.sendall(call.feed(connection.recv(65536)))


def connected(path):
    """A blocking connection to the Unix socket at `path`."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


def fetch(path, seconds=20.0):
    """Connect and ask as an honest caller does."""
    with connected(path) as connection:
        call = RawCall()
        try:
            connection.sendall(call.hello() + call.request())
        except (BrokenPipeError, ConnectionResetError):
            return {"closed": True}
        return read(call, connection, seconds)
