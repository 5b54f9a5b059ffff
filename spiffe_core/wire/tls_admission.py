"""What the front door does with TLS: a context for each handshake, and who the client has proven to be after it."""

from __future__ import annotations

import ssl
from dataclasses import replace

from spiffe_core.bundle import BundleSet
from spiffe_core.crypto.certificates import read_certificate
from spiffe_core.errors import Unauthenticated
from spiffe_core.wire.peer import TlsPeer
from spiffe_core.wire.tls import ServerTls, TlsIdentity, server_context, verified_svid


class TlsContexts:
    """The TLS context of the present identity and bundles; made anew only when one of them changed."""

    def __init__(self, tls: ServerTls) -> None:
        self.tls = tls
        self._made_of: tuple[TlsIdentity, BundleSet] | None = None
        self._context: ssl.SSLContext | None = None

    def current(self) -> ssl.SSLContext:
        """The context for the next handshake."""
        identity, bundles = self.tls.identity(), self.tls.bundles()
        known = self._made_of
        if self._context is None or known is None or known[0] is not identity or known[1] is not bundles:
            roots = (der for bundle in bundles.all() for der in bundle.x509_roots)
            self._context = server_context(identity, roots, anonymous=self.tls.anonymous)
            self._made_of = (identity, bundles)
        return self._context


def tls_peer(stranger: TlsPeer, tls: ssl.SSLObject, settings: ServerTls) -> TlsPeer:
    """`stranger` with what its handshake has proven.

    Raises:
        IdentityError: the handshake proves nothing that is believed here, or its owner does not let the client in.
    """
    address = stranger.address
    if tls.session_reused:
        raise Unauthenticated("resumed TLS sessions are not believed", address=address)
    if tls.selected_alpn_protocol() != "h2":
        raise Unauthenticated("the client does not speak HTTP/2", address=address)
    svid = verified_svid(tls, settings.bundles().get, now=settings.now(), purpose="client")
    if svid is None:
        if not settings.anonymous:
            raise Unauthenticated("the client presented no certificate", address=address)
        return stranger
    serial = str(read_certificate(svid.leaf_der).certificate.serial_number)
    peer = replace(
        stranger,
        spiffe_id=svid.spiffe_id,
        leaf=svid.leaf_der,
        serial=serial,
        not_after=svid.not_after,
        anchor=svid.anchor_der,
    )
    settings.admit(peer)
    return peer
