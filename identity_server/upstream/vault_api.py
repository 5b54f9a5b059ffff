"""Vault's HTTP API as far as a CA below it needs it: logging in, keeping the token alive, and asking with it.

The paths and fields are those of the documented API that Vault and OpenBao share. Four ways to log in: a token in a
file, AppRole, a TLS client certificate, a Kubernetes service account. A token is renewed at two thirds of its life; one
that cannot be renewed is replaced by a new login (for a token file: by what the file holds then) before it ends.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from identity_server.settings_upstream_network import UpstreamVaultSection
from identity_server.upstream.https_client import CALL_SECONDS, Answer, HttpsClient
from spiffe_core.clock import Clock
from spiffe_core.crypto.keys import to_pkcs8
from spiffe_core.errors import ConfigError, IdentityError, Unavailable
from spiffe_core.runtime.offload import Offload
from spiffe_core.runtime.pem_material import read_pem_certificates, read_pem_key
from spiffe_core.runtime.secret_file import read_secret
from spiffe_core.wire.tls import TlsIdentity, load_identity

RENEW_AT = 2 / 3
"""The part of a token's life after which it is renewed."""
SPENT_SECONDS = 5.0
"""A token with less left (of a short life: a tenth of it) is not used any more."""
MAX_LEASE_SECONDS = 10 * 365 * 86_400
MAX_SECRET_BYTES = 16 * 1024
MAX_TEXT = 300
"""Characters of a foreign error text that are passed on."""

_REDIRECTS = range(300, 400)
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Token:
    """A client token. `lease` is its life in seconds from `since` (monotonic), 0 for one without end."""

    value: str = field(repr=False)
    lease: int
    renewable: bool
    since: float

    def spent(self, now: float) -> bool:
        """Whether it ends too soon to be used."""
        return self.lease > 0 and self.since + self.lease - now < min(SPENT_SECONDS, self.lease / 10)

    def renewal_in(self, now: float) -> float:
        """Seconds until it should be renewed or replaced."""
        return float("inf") if self.lease == 0 else max(0.0, self.since + self.lease * RENEW_AT - now)


class VaultApi:
    """One Vault server with one login. Belongs to the event loop."""

    def __init__(self, section: UpstreamVaultSection, clock: Clock, *, seconds: float = CALL_SECONDS) -> None:
        self._section, self._clock = section, clock
        host, port = section.place
        self._client = HttpsClient(host, port, self._context, seconds=seconds)
        self._files = Offload("upstream-vault-files", 1)
        self._secrets: tuple[str, ...] = ()
        self._token: Token | None = None
        self._busy = asyncio.Lock()
        self.fresh = asyncio.Event()
        """Set at each login: whoever keeps the token alive has to look again."""

    async def check(self) -> None:
        """Read the files that the settings name.

        Raises:
            ConfigError: one cannot be used.
        """
        await self._files(self._context)
        await self._files(self._credentials)

    async def write(self, path: str, body: Mapping[str, object]) -> Mapping[str, Any]:
        """POST with a token; the answer's `data`. Of a token that is refused a new one is tried, once.

        Raises:
            Unavailable: Vault cannot be reached or refuses; names the reason.
        """
        token = await self.token()
        answer = await self._ask("POST", path, body, token.value)
        if answer.status == HTTPStatus.FORBIDDEN and await self._replaced(token):
            answer = await self._ask("POST", path, body, (await self.token()).value)
        if answer.status != HTTPStatus.OK:
            raise self._refused(answer, path)
        return self._object(answer.document, "data", path)

    async def token(self) -> Token:
        """The token in force, after a login if there is none."""
        async with self._busy:
            now = self._clock.monotonic()
            if self._token is None or self._token.spent(now):
                self._token = None
                self._token = await self._login()
                self.fresh.set()
            return self._token

    async def keep_alive(self) -> float:
        """Renew the token if it is time to; seconds until it will be time again, infinite if never.

        A token that cannot be renewed is dropped: the next request logs in. The token of a file is looked up even if
        nothing is to be signed for days, since it would end meanwhile.

        Raises:
            Unavailable: the renewal failed; the token stays in force until it ends.
        """
        if self._section.token_auth is not None:
            await self.token()
        async with self._busy:
            token, now = self._token, self._clock.monotonic()
            if token is None:
                return float("inf")
            if token.renewal_in(now) > 0:
                return token.renewal_in(now)
            if not token.renewable:
                self._token = None
                return float("inf")
            answer = await self._ask("POST", "auth/token/renew-self", {}, token.value)
            if answer.status != HTTPStatus.OK:
                if answer.status in {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN}:
                    self._token = None
                raise self._refused(answer, "auth/token/renew-self")
            auth = self._object(answer.document, "auth", "auth/token/renew-self")
            renewed = Token(token.value, self._lease(auth, "lease_duration"), auth.get("renewable") is True, now)
            # At the end of its longest life Vault grants less each time: then a new login is due.
            self._token = renewed if renewed.lease == 0 or renewed.lease * 2 > token.lease else None
            return renewed.renewal_in(now) if self._token is not None else float("inf")

    async def _replaced(self, refused: Token) -> bool:
        """Drop the token that was refused; whether another can be had."""
        async with self._busy:
            if self._token is not None and self._token.value == refused.value:
                self._token = None
        return self._section.token_auth is None or (await self._given())["token"] != refused.value

    async def _given(self) -> dict[str, str]:
        """The credentials as they are now; those that cannot be read may be there soon."""
        try:
            return await self._files(self._credentials)
        except ConfigError as error:
            raise Unavailable(error.public) from None

    async def _login(self) -> Token:
        given = await self._given()
        now = self._clock.monotonic()
        section = self._section
        if section.token_auth is not None:
            return await self._looked_up(given["token"], now)
        if section.approle_auth is not None:
            mount = section.approle_auth.mount
        elif section.cert_auth is not None:
            mount = section.cert_auth.mount
        else:
            assert section.kubernetes_auth is not None, "the settings demand one way to log in"
            mount = section.kubernetes_auth.mount
        path = f"auth/{mount}/login"
        self._secrets = tuple(given[name] for name in ("secret_id", "jwt") if name in given)
        answer = await self._ask("POST", path, given, "")
        if answer.status != HTTPStatus.OK:
            raise self._refused(answer, path)
        auth = self._object(answer.document, "auth", path)
        value = auth.get("client_token")
        if not isinstance(value, str) or not _usable(value):
            raise self._unreadable(path, "auth.client_token")
        self._secrets = (*self._secrets, value)
        return Token(value, self._lease(auth, "lease_duration"), auth.get("renewable") is True, now)

    async def _looked_up(self, value: str, now: float) -> Token:
        self._secrets = (value,)
        answer = await self._ask("GET", "auth/token/lookup-self", None, value)
        if answer.status != HTTPStatus.OK:
            raise self._refused(answer, "auth/token/lookup-self")
        data = self._object(answer.document, "data", "auth/token/lookup-self")
        return Token(value, self._lease(data, "ttl"), data.get("renewable") is True, now)

    def _credentials(self) -> dict[str, str]:
        """The body of the login, with the secrets as the files have them now.

        Raises:
            ConfigError: a file cannot be used.
        """
        section = self._section
        if section.token_auth is not None:
            return {"token": _secret(section.token_auth.token_file, "token_auth.token_file")}
        if section.approle_auth is not None:
            secret = _secret(section.approle_auth.secret_id_file, "approle_auth.secret_id_file")
            return {"role_id": section.approle_auth.role_id, "secret_id": secret}
        if section.kubernetes_auth is not None:
            where = section.kubernetes_auth.token_file
            token = _secret(where, "kubernetes_auth.token_file", others=True)  # Kubernetes decides its mode
            return {"role": section.kubernetes_auth.role, "jwt": token}
        assert section.cert_auth is not None, "the settings demand one way to log in"
        return {"name": section.cert_auth.role} if section.cert_auth.role else {}

    def _context(self) -> ssl.SSLContext:
        """TLS as the settings and the files say now.

        Raises:
            ConfigError: a file cannot be used.
        """
        section = self._section
        context = ssl.create_default_context() if section.ca_file is None else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if section.ca_file is not None:
            roots = read_pem_certificates(section.ca_file, field="upstream.vault.ca_file")
            context.load_verify_locations(cadata=b"".join(roots))
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if section.insecure_skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if section.cert_auth is not None:
            where = "upstream.vault.cert_auth"
            chain = read_pem_certificates(section.cert_auth.client_cert_file, field=f"{where}.client_cert_file")
            key = read_pem_key(section.cert_auth.client_key_file, field=f"{where}.client_key_file")
            try:
                load_identity(context, TlsIdentity(chain, to_pkcs8(key)))
            except ssl.SSLError:
                raise ConfigError(
                    f"{where}.client_key_file: {section.cert_auth.client_key_file} is not the key of the certificate "
                    f"in {section.cert_auth.client_cert_file}",
                    field=f"{where}.client_key_file",
                ) from None
        return context

    async def _ask(self, method: str, path: str, body: Mapping[str, object] | None, token: str) -> Answer:
        headers = {"X-Vault-Request": "true"}
        if token:
            headers["X-Vault-Token"] = token
        if self._section.namespace:
            headers["X-Vault-Namespace"] = self._section.namespace
        try:
            return await self._client.ask(method, f"/v1/{path}", headers, body)
        except IdentityError as error:
            raise Unavailable(f"upstream vault: {error.public}", upstream=self._client.place) from None

    def _refused(self, answer: Answer, path: str) -> Unavailable:
        """What a status means, and what to do about it."""
        told = self._told(answer)
        place = self._client.place
        if answer.status in _REDIRECTS:
            text = (
                f"{place} answers with a redirect, which is not followed; "
                "name the active server in upstream.vault.address"
            )
        elif answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
            text = f"{place} is sealed or in maintenance: unseal it{told}"
        elif answer.status == HTTPStatus.FORBIDDEN and path.startswith("auth/"):
            text = f"{place} refuses the login at {path}: check the credentials and the role in [upstream.vault]{told}"
        elif answer.status == HTTPStatus.FORBIDDEN:
            text = f"{place} forbids {path}: the token's policy must have the capability `update` there{told}"
        elif answer.status == HTTPStatus.NOT_FOUND:
            text = f"{place} has nothing at {path}: check the mounts and the namespace in [upstream.vault]{told}"
        else:
            text = f"{place} answered {path} with status {answer.status}{told}"
        return Unavailable(f"upstream vault: {text}", upstream=place, status=answer.status)

    def _told(self, answer: Answer) -> str:
        """Vault's own words: printable, short, and without any secret of ours."""
        errors = answer.document.get("errors")
        if not isinstance(errors, list):
            return ""
        text = "; ".join(error.strip() for error in errors[:3] if isinstance(error, str))
        for secret in self._secrets:
            text = text.replace(secret, "***") if secret else text
        text = _UNPRINTABLE.sub(" ", text).strip()
        return f" ({text[:MAX_TEXT]})" if text else ""

    def _object(self, document: Mapping[str, Any], name: str, path: str) -> Mapping[str, Any]:
        found = document.get(name)
        if not isinstance(found, dict):
            raise self._unreadable(path, name)
        return found

    def _lease(self, holder: Mapping[str, Any], name: str) -> int:
        lease = holder.get(name)
        if not isinstance(lease, int) or isinstance(lease, bool) or not 0 <= lease <= MAX_LEASE_SECONDS:
            raise self._unreadable("the login", name)
        return lease

    def _unreadable(self, path: str, name: str) -> Unavailable:
        return Unavailable(f"upstream vault: the answer of {self._client.place} to {path} lacks a sound `{name}`")


def _secret(path: Path, name: str, *, others: bool = False) -> str:
    field_name = f"upstream.vault.{name}"
    value = read_secret(path, field=field_name, max_bytes=MAX_SECRET_BYTES, others_may_read=others)
    if not _usable(value):
        raise ConfigError(f"{field_name}: {path} must hold one line of printable text", field=field_name)
    return value


def _usable(value: str) -> bool:
    """Whether it may stand in a header."""
    return 0 < len(value) <= MAX_SECRET_BYTES and not _UNPRINTABLE.search(value) and " " not in value
