"""A web certificate for this machine in PEM files, of a private CA."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.authority import SpiffeTestCA


def write_web_certificate(folder: Path, *names: str, ca: SpiffeTestCA | None = None) -> SpiffeTestCA:
    """`web.pem`, `web.key` and the CA's `web-ca.pem` in `folder`, for `names`, localhost and 127.0.0.1."""
    ca = ca or SpiffeTestCA("web.test", uris=())
    loopback = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = ca.issue("spiffe://web.test/x", uris=(), dns=("localhost", *names), other_names=loopback)
    key = folder / "web.key"
    key.touch(mode=0o600)
    key.write_bytes(made.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "web.pem").write_text("".join(map(ssl.DER_cert_to_PEM_cert, made.chain)))
    (folder / "web-ca.pem").write_text(ssl.DER_cert_to_PEM_cert(ca.der))
    return ca


def trusting(folder: Path) -> ssl.SSLContext:
    """A client's context that believes this CA alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=folder / "web-ca.pem")
    return context
