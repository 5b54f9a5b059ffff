"""A Vault server over real HTTPS, after its documented API: logins, tokens, sign-intermediate, and faults on request."""

from __future__ import annotations

import json
import secrets
import ssl
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from spiffe_core.crypto.keys import KeyKind, generate
from tests.authority import CA_USAGE, SpiffeTestCA, certify

ROLE_ID, SECRET_ID, ROLE, JWT = "role-1", "secret-id-of-the-test", "muniment", "header.payload.signature"


def pem(*ders):
    return "".join(ssl.DER_cert_to_PEM_cert(der) for der in ders)


class SimulatedVault:
    """`troubles` are answered first, one for each request: (status, body, headers) or a function of the handler.

    `tokens` maps a client token to when it ends (unix time). `asked` lists (method, path, headers, body).
    """

    def __init__(self, folder: Path, *, lease=3600, renewable=True, mount="pki", max_ttl=30 * 86_400):
        self.folder, self.lease, self.renewable, self.mount, self.max_ttl = folder, lease, renewable, mount, max_ttl
        self.tls = SpiffeTestCA("vault.test")
        self.root = SpiffeTestCA("pki.test", uris=(), subject=(("O", "Root"), ("CN", "root")))
        self.issuer = self.root
        self.tokens: dict[str, float] = {}
        self.asked: list[tuple[str, str, dict[str, str], dict]] = []
        self.troubles: list = []
        self.forbidden = False
        self.client_roots: bytes | None = None
        self.namespace = ""
        self.server: ThreadingHTTPServer | None = None
        self.port = 0
        (folder / "vault-ca.pem").write_text(pem(self.tls.der))

    def new_token(self):
        token = "hvs." + secrets.token_urlsafe(24)
        self._grant(token)
        return token

    def _grant(self, token):
        """For a minute longer than is told, so that a busy machine's test is not late."""
        self.tokens[token] = time.time() + self.lease + 60  # noqa: TID251  # a double has no clock

    def intermediate(self, **spoil):
        """Sign with an intermediate below the root from now on."""
        self.issuer = self.root.intermediate(
            "pki.test", uris=(), subject=(("O", "Between"), ("CN", secrets.token_hex(4))), **spoil
        )

    def replace_root(self):
        """The mount gets a new issuer that is a root."""
        self.issuer = self.root = SpiffeTestCA("pki.test", uris=(), subject=(("O", "Root"), ("CN", "second")))

    def requests(self, ending):
        return [one for one in self.asked if one[1].endswith(ending)]

    @contextmanager
    def serving(self):
        leaf_key = generate(KeyKind.EC_P256)
        leaf = certify(
            leaf_key,
            signer=self.tls.key,
            issuer=self.tls.certificate,
            now=self.tls.now,
            dns=("localhost",),
            subject=(("CN", "localhost"),),
        )
        file = self.folder / "vault.pem"
        key = leaf_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        file.write_text(key + pem(leaf))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        if self.client_roots is not None:
            context.verify_mode = ssl.CERT_OPTIONAL
            context.load_verify_locations(cadata=self.client_roots)
        vault = self

        class Handler(_Handler):
            pass

        Handler.vault = vault
        self.server = _Server(("127.0.0.1", self.port), Handler, context)
        self.port = self.server.server_address[1]
        thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join()

    def answer(self, handler, method, path, body):
        if path.startswith("/v1/auth/") and path.endswith("/login"):
            return self._login(handler, path.split("/")[3], body)
        token = handler.headers.get("X-Vault-Token", "")
        there = {
            ("GET", "/v1/auth/token/lookup-self"): self._look_up,
            ("POST", "/v1/auth/token/renew-self"): self._renew,
            ("POST", f"/v1/{self.mount}/root/sign-intermediate"): lambda _: self._signed(body),
        }.get((method, path))
        if there is None or self.namespace != handler.headers.get("X-Vault-Namespace", ""):
            return 404, {"errors": ["no handler for route"]}
        if self.tokens.get(token, 0) <= time.time():  # noqa: TID251
            return 403, {"errors": ["permission denied", f"invalid token {token}"]}
        return there(token)

    def _look_up(self, token):
        return 200, {"data": {"id": token, "ttl": self.lease, "renewable": self.renewable}}

    def _renew(self, token):
        if not self.renewable:
            return 400, {"errors": ["lease is not renewable"]}
        self._grant(token)
        return 200, {"auth": self._auth(token)}

    def _auth(self, token):
        return {"client_token": token, "lease_duration": self.lease, "renewable": self.renewable}

    def _login(self, handler, mount, body):
        good = {
            "approle": body == {"role_id": ROLE_ID, "secret_id": SECRET_ID},
            "kubernetes": body == {"role": ROLE, "jwt": JWT},
            "cert": bool(handler.connection.getpeercert(binary_form=True)),
        }
        if not good.get(mount):
            return 400, {"errors": [f"invalid role or secret ID {body.get('secret_id')}"]}
        return 200, {"auth": self._auth(self.new_token())}

    def _signed(self, body):
        if self.forbidden:
            return 403, {"errors": ["1 error occurred:\n\t* permission denied\n\n"]}
        request = x509.load_pem_x509_csr(body["csr"].encode())
        now = datetime.now(UTC).replace(microsecond=0)  # noqa: TID251
        ttl = int(str(body.get("ttl", "3600s")).removesuffix("s"))
        ends = now + timedelta(seconds=min(ttl, self.max_ttl))
        if "not_after" in body:
            ends = datetime.strptime(body["not_after"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        der = certify(
            _Public(request.public_key()),
            signer=self.issuer.key,
            issuer=self.issuer.certificate,
            now=now,
            subject=tuple((_SHORT[one.oid], one.value) for one in request.subject if one.oid in _SHORT),
            uris=names.get_values_for_type(x509.UniformResourceIdentifier),
            ca=True,
            usage=CA_USAGE,
            eku=None,
            not_after=ends,
        )
        above = (*self.issuer.chain, self.root.der) if self.issuer is not self.root else (self.root.der,)
        return 200, {
            "data": {
                "certificate": pem(der).strip(),
                "issuing_ca": pem(self.issuer.der).strip(),
                "ca_chain": [pem(one).strip() for one in (der, *above)],
                "serial_number": "01",
                "expiration": int(ends.timestamp()),
            },
            "warnings": ["no AIA fields"],
        }


_SHORT = {
    x509.NameOID.COUNTRY_NAME: "C",
    x509.NameOID.ORGANIZATION_NAME: "O",
    x509.NameOID.COMMON_NAME: "CN",
    x509.NameOID.SERIAL_NUMBER: "serialNumber",
}


class _Public:
    """What `certify` needs of a key whose private half is elsewhere."""

    def __init__(self, public):
        self._public = public

    def public_key(self):
        return self._public


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address, handler, context):
        self._context = context
        super().__init__(address, handler)

    def finish_request(self, request, client_address):
        request.settimeout(20)
        with self._context.wrap_socket(request, server_side=True) as secure:
            super().finish_request(secure, client_address)

    def handle_error(self, request, client_address):
        """A client that goes away is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    vault: SimulatedVault

    def do_GET(self):
        self._serve()

    def do_POST(self):
        self._serve()

    def _serve(self):
        size = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(size)
        body = json.loads(raw) if raw else {}
        vault = self.vault
        vault.asked.append((self.command, self.path, dict(self.headers), body))
        trouble = vault.troubles.pop(0) if vault.troubles else None
        if callable(trouble):
            trouble(self)
            return
        status, answer, *more = trouble or vault.answer(self, self.command, self.path, body)
        self.reply(status, answer if isinstance(answer, bytes) else json.dumps(answer).encode(), *more)

    def reply(self, status, data, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Nothing on stderr."""
