"""OIDC discovery over HTTP: the configuration and the keys, for each Host that is ours (spire_features section 21).

    {prefix}/.well-known/openid-configuration
    {prefix}/keys

Finished bytes like every document here. Both are public, so any web page may read them (CORS); a Host that the settings
do not list is refused, because the document would name an issuer we are not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from identity_server.domain.oidc_documents import KEYS, WELL_KNOWN, Documents, Provider
from identity_server.web.documents import Document, Headers, Message, Receive, Scope, Send, Site
from spiffe_core.errors import InvalidRequest, Unimplemented

log = logging.getLogger(__name__)

CONFIGURATION_CACHE = "public, max-age=300"
"""Only an operator changes the configuration. The keys are asked for again each time: a rotation must not wait."""
KEYS_CACHE = "public, no-cache"
MAX_SHOWN = 200
_DOCUMENTS = {WELL_KNOWN: "configuration", KEYS: "keys"}
"""How the two are called where answers are counted; every other path is "other"."""

_OPEN: Headers = ((b"access-control-allow-origin", b"*"),)
_PREFLIGHT: Headers = (
    *_OPEN,
    (b"access-control-allow-methods", b"GET, HEAD"),
    (b"access-control-allow-headers", b"if-none-match"),
    (b"access-control-max-age", b"86400"),
    (b"allow", b"GET, HEAD, OPTIONS"),
)


class OidcDiscovery:
    """The ASGI application. `current` is asked at each request, answers from memory, and may raise Unavailable.

    `forwarded_host`: the provider stands behind a proxy that says in X-Forwarded-Host what it was asked for.
    `answered` is told of each answer: which document was asked for, and the status.
    """

    def __init__(
        self,
        provider: Provider,
        current: Callable[[], Documents],
        *,
        forwarded_host: bool = False,
        log_requests: bool = False,
        answered: Callable[[str, int], None] | None = None,
    ) -> None:
        self._provider = provider
        self._current = current
        self._forwarded_host = forwarded_host
        self._log_requests = log_requests
        self._answered = answered
        self._paths = {provider.prefix + WELL_KNOWN: WELL_KNOWN, provider.prefix + KEYS: KEYS}
        self._usual = {str(domain).encode(): str(domain) for domain in provider.domains}
        self._made: tuple[Documents, dict[str, Document], Document] | None = None
        self._site = Site(self.find)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        sending = self._logged(scope, send) if self._log_requests else send
        if self._answered is not None:
            sending = self._counted(scope, sending, self._answered)
        if scope.get("method") == "OPTIONS" and scope["path"] in self._paths:
            await sending({"type": "http.response.start", "status": 204, "headers": _PREFLIGHT})
            await sending({"type": "http.response.body", "body": b""})
        else:
            await self._site(scope, receive, sending)

    def find(self, scope: Scope) -> Document | None:
        """The document of a request; None at paths that are not ours.

        Raises:
            InvalidRequest: the Host is not one of the domains.
            Unavailable: there are no keys now.
            Unimplemented: the trust domain has none.
        """
        name = self._paths.get(scope["path"])
        if name is None:
            return None
        hosts = self._hosts(scope)
        domain = self._domain_of(hosts[0]) if len(hosts) == 1 else None
        if domain is None:
            raise InvalidRequest("this host is not one of the provider's domains")
        documents, configuration, keys = self._finished()
        if name == WELL_KNOWN:
            return configuration[domain]
        if not documents.key_ids:
            raise Unimplemented("this trust domain issues no JWT-SVIDs")
        return keys

    def _finished(self) -> tuple[Documents, dict[str, Document], Document]:
        documents = self._current()
        if self._made is None or self._made[0] is not documents:
            configuration = {
                domain: Document(body, cache=CONFIGURATION_CACHE, extra=_OPEN)
                for domain, body in documents.configuration.items()
            }
            self._made = documents, configuration, Document(documents.keys, cache=KEYS_CACHE, extra=_OPEN)
        return self._made

    def _hosts(self, scope: Scope) -> list[bytes]:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if self._forwarded_host:
            forwarded = [value for name, value in headers if name == b"x-forwarded-host"]
            if forwarded:
                return forwarded
        return [value for name, value in headers if name == b"host"]

    def _domain_of(self, host: bytes) -> str | None:
        """The domain that a Host names; nearly every caller writes it as the settings do."""
        return self._usual.get(host) or self._provider.domain_of(host.decode("latin-1").strip())

    def _counted(self, scope: Scope, send: Send, answered: Callable[[str, int], None]) -> Send:
        document = _DOCUMENTS.get(self._paths.get(scope["path"], ""), "other")

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered(document, int(message["status"]))
            await send(message)

        return sending

    def _logged(self, scope: Scope, send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                hosts = b",".join(self._hosts(scope)).decode("latin-1")
                facts = {"method": scope["method"][:MAX_SHOWN], "path": scope["path"][:MAX_SHOWN]}
                log.info(
                    "answered %d",
                    message["status"],
                    extra={"facts": {**facts, "host": hosts[:MAX_SHOWN], "status": int(message["status"])}},
                )
            await send(message)

        return sending
