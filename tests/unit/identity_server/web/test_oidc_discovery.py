"""What each request to the discovery provider gets (spire_features 21, integrations 13)."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from identity_server.domain.oidc_documents import Authority, Documents, Provider, render
from identity_server.web.oidc_discovery import OidcDiscovery
from spiffe_core.bundle import JwtAuthority
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import Unavailable

CONFIGURATION = "/.well-known/openid-configuration"
HOST = "oidc.example.org"
PROVIDER = Provider((Authority(HOST),))
DOCUMENTS = render(PROVIDER, [JwtAuthority("k1", spki_der(generate(KeyKind.EC_P256).public_key()))])


class Asking:
    """One application, asked without a network."""

    def __init__(self, current: Documents | Exception = DOCUMENTS, provider: Provider = PROVIDER, **over: Any) -> None:
        self.current = current
        self.application = OidcDiscovery(provider, self._now, **over)

    def _now(self) -> Documents:
        if isinstance(self.current, Exception):
            raise self.current
        return self.current

    async def __call__(
        self, path: str, method: str = "GET", hosts: tuple[str, ...] = (HOST,), **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        sent: list[Any] = []

        async def receive() -> Any:
            raise AssertionError("a body is never read")

        async def send(message: Any) -> None:
            sent.append(message)

        named = [(b"host", host.encode("latin-1")) for host in hosts]
        named += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": named}
        await self.application(scope, receive, send)
        start, body = sent
        return start["status"], {name.decode(): value.decode() for name, value in start["headers"]}, body["body"]


@pytest.mark.parametrize(
    ("path", "body", "cache"),
    [
        (CONFIGURATION, DOCUMENTS.configuration[HOST], "public, max-age=300"),
        ("/keys", DOCUMENTS.keys, "public, no-cache"),
    ],
)
async def test_both_documents_may_be_read_by_everybody(path: str, body: bytes, cache: str) -> None:
    status, headers, found = await Asking()(path)
    assert (status, found) == (200, body)
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == str(len(body))
    assert headers["access-control-allow-origin"] == "*"
    assert headers["cache-control"] == cache
    assert (await Asking()(path, "HEAD"))[:2] == (200, headers)


async def test_who_has_the_keys_already_gets_no_bytes_until_they_change() -> None:
    """RFC 9110 section 13.1.2; a rotation is another entity."""
    asking = Asking()
    _, headers, _ = await asking("/keys")
    status, repeated, body = await asking("/keys", if_none_match=headers["etag"])
    assert (status, body) == (304, b"")
    assert repeated["access-control-allow-origin"] == "*"
    asking.current = render(PROVIDER, [JwtAuthority("k2", spki_der(generate(KeyKind.EC_P384).public_key()))])
    status, changed, body = await asking("/keys", if_none_match=headers["etag"])
    assert (status, body) == (200, asking.current.keys)
    assert changed["etag"] != headers["etag"]


@pytest.mark.parametrize("hosts", [(), ("evil.test",), (HOST, HOST), (HOST, "evil.test"), ("oidc.example.org:8443",)])
@pytest.mark.parametrize("path", [CONFIGURATION, "/keys"])
async def test_an_unknown_or_unclear_host_is_refused(path: str, hosts: tuple[str, ...]) -> None:
    """Deny by default: nobody makes us tell an issuer that the settings do not list."""
    status, headers, body = await Asking()(path, hosts=hosts)
    assert status == 400
    assert b"evil" not in body
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "TRACE", "get"])
async def test_documents_are_read_only(method: str) -> None:
    assert (await Asking()("/keys", method))[0] == 405


async def test_a_browser_may_ask_beforehand() -> None:
    """The CORS protocol's preflight: reading is allowed from anywhere, with a conditional header."""
    status, headers, body = await Asking()("/keys", "OPTIONS", origin="https://app.test")
    assert (status, body) == (204, b"")
    assert headers["access-control-allow-origin"] == "*"
    assert headers["access-control-allow-methods"] == "GET, HEAD"
    assert headers["access-control-allow-headers"] == "if-none-match"


@pytest.mark.parametrize("path", ["/", "", "/keys/", "/KEYS", "/.well-known/", "/oidc/keys", "/keys\0", "//keys"])
async def test_there_is_nothing_else(path: str) -> None:
    for method in ("GET", "OPTIONS"):
        assert (await Asking()(path, method))[0] in {404, 405}


async def test_a_prefix_stands_before_both_paths() -> None:
    asking = Asking(provider=Provider((Authority(HOST),), path_prefix="/oidc"))
    asking.current = render(asking.application._provider, [])
    assert json.loads((await asking(f"/oidc{CONFIGURATION}"))[2])["issuer"] == f"https://{HOST}/oidc"
    assert (await asking("/oidc/keys"))[0] == 501
    assert (await asking("/keys"))[0] == 404


async def test_no_keys_yet_and_no_keys_at_all_are_different_answers() -> None:
    """Not known now: come again. An empty set: this trust domain issues no JWT-SVIDs, as in SPIRE."""
    for path in (CONFIGURATION, "/keys"):
        status, headers, body = await Asking(Unavailable("the keys are not known now"))(path)
        assert (status, body) == (503, b'{"error":"the keys are not known now"}')
        assert headers["cache-control"] == "no-store"
    assert (await Asking(render(PROVIDER, []))("/keys"))[0] == 501
    assert (await Asking(render(PROVIDER, []))(CONFIGURATION))[0] == 200


async def test_what_a_proxy_says_counts_only_where_a_proxy_was_announced() -> None:
    asked = {"hosts": ("internal.test",), "x_forwarded_host": HOST}
    assert (await Asking()("/keys", **asked))[0] == 400
    behind = Asking(forwarded_host=True)
    assert (await behind("/keys", **asked))[0] == 200
    assert (await behind("/keys"))[0] == 200
    assert (await behind("/keys", x_forwarded_host="evil.test"))[0] == 400


async def test_requests_are_logged_if_wanted_and_never_at_length(caplog: pytest.LogCaptureFixture) -> None:
    asking = Asking(log_requests=True)
    with caplog.at_level(logging.INFO):
        await asking("/keys", hosts=("x" * 5000,))
        await asking("/keys", "OPTIONS")
        await Asking()("/keys")
    facts: list[dict[str, Any]] = [record.facts for record in caplog.records]  # type: ignore[attr-defined]
    assert [(one["method"], one["path"], one["status"]) for one in facts] == [
        ("GET", "/keys", 400),
        ("OPTIONS", "/keys", 204),
    ]
    assert len(json.dumps(facts)) < 1000
