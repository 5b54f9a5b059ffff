"""TLS contexts for SPIFFE identities: keys never touch a file, peers are believed for their SPIFFE ID alone.

OpenSSL checks the chain against the union of the loaded roots; `verified_svid` then holds it to the SPIFFE rules and to
the bundle of the peer's *own* trust domain (architecture A5, N-X-18).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from spiffe_core.bundle import BundleSet, TrustBundle
from spiffe_core.crypto.keys import PrivateKeyDer
from spiffe_core.crypto.revocation import RevocationList
from spiffe_core.errors import Reason, VerificationFailed
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire.peer import TlsPeer
from spiffe_core.x509_verify import Purpose, VerifiedX509Svid, verify_x509_svid

_DER = 2  # _ssl.ENCODING_DER
# TLS 1.2 suites of SPIFFE conformance decision D16; TLS 1.3 suites are OpenSSL's own, all AEAD.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """What this side presents: DER certificates leaf first, and the private key."""

    chain: tuple[bytes, ...]
    key: PrivateKeyDer


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What a TLS listener asks at each handshake: its own identity and the bundles it believes, both the newest.

    `identity` must give the same object until it changes. `anonymous`: whether a client without a certificate is let
    in. `admit` is shown each client that has proven an identity, and raises an IdentityError to turn it away.
    """

    identity: Callable[[], TlsIdentity]
    bundles: Callable[[], BundleSet]
    now: Callable[[], datetime]
    anonymous: bool = True
    admit: Callable[[TlsPeer], None] = lambda _: None


def load_identity(context: ssl.SSLContext, identity: TlsIdentity) -> None:
    """Give `context` its certificate and key through anonymous memory, never through a file on disk."""
    key = identity.key.reveal()
    pem = _pem("PRIVATE KEY", key) + b"".join(_pem("CERTIFICATE", der) for der in identity.chain)
    memory = os.memfd_create("tls-identity", os.MFD_CLOEXEC)
    try:
        with os.fdopen(memory, "wb", closefd=False) as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    finally:
        os.ftruncate(memory, 0)
        os.close(memory)


def server_context(identity: TlsIdentity, roots: Iterable[bytes], *, anonymous: bool = True) -> ssl.SSLContext:
    """A listener's context: client certificate asked for, optional if `anonymous`, HTTP/2 only, nothing to resume."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, roots)
    context.verify_mode = ssl.CERT_OPTIONAL if anonymous else ssl.CERT_REQUIRED
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE
    load_identity(context, identity)
    return context


def client_context(identity: TlsIdentity | None, roots: Iterable[bytes] | None) -> ssl.SSLContext:
    """A dialer's context. `roots` None checks nothing: insecure bootstrap, where only the claimed ID is compared."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, roots or ())
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE if roots is None else ssl.CERT_REQUIRED
    if identity is not None:
        load_identity(context, identity)
    return context


def _context(protocol: int, roots: Iterable[bytes]) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(["h2"])
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_TRUSTED_FIRST
    pool = b"".join(roots)
    if pool:
        context.load_verify_locations(cadata=pool)
    return context


def verified_svid(
    tls: ssl.SSLObject | ssl.SSLSocket,
    bundles: Callable[[TrustDomain], TrustBundle | None],
    *,
    now: datetime,
    purpose: Purpose,
    revocations: Sequence[RevocationList] = (),
) -> VerifiedX509Svid | None:
    """The peer's SVID from the chain OpenSSL verified, or None if it presented no certificate.

    Raises:
        VerificationFailed: a certificate came without a verified chain (a resumed session, or a library that did not
            verify), or the chain breaks a SPIFFE rule.
    """
    chain = verified_chain(tls)
    if not chain:
        if tls.getpeercert(binary_form=True) is None and not tls.session_reused:
            return None
        raise VerificationFailed("the certificate was not verified in this handshake", Reason.UNKNOWN_AUTHORITY)
    anchor = chain[-1]
    presented = chain[:-1] or chain
    svid = verify_x509_svid(presented, bundles, now=now, purpose=purpose, revocations=revocations)
    own = bundles(svid.spiffe_id.trust_domain)
    if own is None or anchor not in own.x509_roots:
        raise VerificationFailed("the chain does not end in the peer's own trust domain", Reason.UNKNOWN_AUTHORITY)
    return svid


def verified_chain(tls: ssl.SSLObject | ssl.SSLSocket) -> list[bytes]:
    """The chain OpenSSL built and checked, DER, leaf first, anchor last; empty if it checked none."""
    public: Callable[[], list[bytes]] | None = getattr(tls, "get_verified_chain", None)
    if public is not None:  # Python 3.13
        return list(public())
    inner: Any = tls._sslobj  # type: ignore[union-attr]  # noqa: SLF001  # the only way before Python 3.13 (A5)
    return [bytes(certificate.public_bytes(_DER)) for certificate in inner.get_verified_chain() or ()]


def presented_chain(tls: ssl.SSLObject | ssl.SSLSocket) -> list[bytes]:
    """The chain the peer sent, DER, leaf first, as it came: nothing about it is believed."""
    public: Callable[[], list[bytes]] | None = getattr(tls, "get_unverified_chain", None)
    if public is not None:  # Python 3.13
        return list(public())
    inner: Any = tls._sslobj  # type: ignore[union-attr]  # noqa: SLF001  # the only way before Python 3.13 (A5)
    return [bytes(certificate.public_bytes(_DER)) for certificate in inner.get_unverified_chain() or ()]


def _pem(label: str, der: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(der).replace("CERTIFICATE", label).encode("ascii")
