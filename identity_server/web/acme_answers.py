"""What ACME authorities' validators find: tokens over HTTP (RFC 8555 section 8.3), certificates by ALPN (RFC 8737)."""

from __future__ import annotations

import hashlib
import ssl
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from identity_server.web.client_hello import ClientHello
from identity_server.web.documents import Document, Scope
from identity_server.web.tls import web_context
from spiffe_core.crypto.keys import KeyKind, generate, to_pkcs8
from spiffe_core.wire.tls import TlsIdentity

PROTOCOL = "acme-tls/1"
_PATH = "/.well-known/acme-challenge/"
_ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_LIFE = timedelta(days=1)


class AcmeAnswers:
    """Belongs to the event loop. Empty but for the minutes in which a certificate is ordered."""

    def __init__(self) -> None:
        self._tokens: dict[str, Document] = {}
        self._contexts: dict[bytes, ssl.SSLContext] = {}

    @property
    def waiting(self) -> bool:
        """Whether a validator may come over TLS."""
        return bool(self._contexts)

    def answer_http(self, token: str, key_authorization: str) -> None:
        """From now on the token's path answers with the key authorization."""
        self._tokens[_PATH + token] = Document(
            key_authorization.encode("ascii"), "application/octet-stream", cache="no-store"
        )

    def answer_tls(self, domain: str, key_authorization: str, now: datetime) -> None:
        """From now on answer the protocol `acme-tls/1` with a certificate that holds the key authorization's hash."""
        self._contexts[domain.lower().encode("ascii")] = web_context(
            _challenge_identity(domain, key_authorization, now), PROTOCOL
        )

    def clear(self) -> None:
        """Answer nobody any more."""
        self._tokens.clear()
        self._contexts.clear()

    def find(self, scope: Scope) -> Document | None:
        """The document at a path of HTTP-01."""
        return self._tokens.get(scope["path"])

    def context_for(self, hello: ClientHello) -> ssl.SSLContext | None:
        """The context for a validator; None for everybody else."""
        if hello.protocols != (PROTOCOL.encode(),):
            return None
        return self._contexts.get(hello.server_name.lower())


def _challenge_identity(domain: str, key_authorization: str, now: datetime) -> TlsIdentity:
    key = generate(KeyKind.EC_P256)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    name = x509.Name([])
    digest = hashlib.sha256(key_authorization.encode("ascii")).digest()
    octets = bytes([4, len(digest)]) + digest  # an OCTET STRING in DER
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LIFE)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(domain)]), critical=True)
        .add_extension(x509.UnrecognizedExtension(_ACME_IDENTIFIER, octets), critical=True)
        .sign(key, hashes.SHA256())
    )
    return TlsIdentity((certificate.public_bytes(Encoding.DER),), to_pkcs8(key))
