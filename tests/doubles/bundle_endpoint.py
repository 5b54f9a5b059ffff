"""A bundle endpoint on loopback that answers as a test wants: real TLS, then any bytes at any pace."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading

from cryptography import x509

from spiffe_core.crypto.keys import KeyKind, generate, to_pkcs8
from spiffe_core.wire.tls import server_context
from tests.authority import certify

HEAD_LIMIT = 64 * 1024


def answer(body=b"", status=200, **headers):
    """The bytes of one HTTP answer."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    fields = {"content-type": "application/json", "content-length": str(len(body)), **given}
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def redirect(to, status=302):
    """An answer that leads elsewhere."""
    return answer(b"{}", status, location=to)


class Endpoint:
    """`script(path)` gives the bytes to send, or an iterator of them: what it yields is sent piece by piece.

    `identity` is a `TestSvid`, or anything with `chain` and `key`; it may be replaced while the endpoint runs.
    """

    def __init__(self, identity, script):
        self.identity, self.script = identity, script
        self.requests = []
        self.certified = []
        self.ending = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}/bundle"
        self._threads = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self):
        self._acceptor.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        for thread in self._threads:
            thread.join()

    def wait(self, seconds=0.02):
        """Let a little time pass; True once the endpoint is to end."""
        return self.ending.wait(seconds)

    def _accept(self):
        while not self.ending.is_set():
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(plain,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain):
        context = server_context(self.identity, [])
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1"])
        plain.settimeout(20)
        with contextlib.suppress(OSError), plain, context.wrap_socket(plain, server_side=True) as secure:
            head = b""
            while b"\r\n\r\n" not in head and len(head) < HEAD_LIMIT:
                part = secure.recv(4096)
                if not part:
                    return
                head += part
            self.requests.append(head.decode())
            given = self.script(head.split(b" ")[1].decode())
            for piece in (given,) if isinstance(given, bytes) else given:
                secure.sendall(piece)


class WebIdentity:
    """A web certificate for 127.0.0.1 (or the names given), signed by a `SpiffeTestCA`."""

    def __init__(self, ca, *names, **spoil):
        made = generate(KeyKind.EC_P256)
        general = [x509.DNSName(name) for name in names] or [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        der = certify(made, signer=ca.key, issuer=ca.certificate, now=ca.now, other_names=general, **spoil)
        self.chain, self.key = (der,), to_pkcs8(made)
