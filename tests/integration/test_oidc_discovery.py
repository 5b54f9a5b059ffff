"""OIDC discovery as verifiers see it: served by a server over HTTPS, plain HTTP and a Unix socket, and by a provider alone."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from identity_server.oidc.sources import ask_once
from identity_server.oidc.standalone import Standalone
from identity_server.settings import from_mapping as server_settings
from identity_server.settings_oidc import from_mapping
from identity_server.web.listener import WebLimits
from spiffe_core.bundle_document import load_token_keys
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.jose import read_compact, signature_is_good
from spiffe_core.errors import ConfigError
from spiffe_core.runtime.supervise import Supervisor
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from tests.doubles.https_reader import Reader, connected, get
from tests.doubles.live_server import TD, live_server, spiffe_id
from tests.doubles.web_certificate import trusting, write_web_certificate
from tests.tokens import parts

CONFIGURATION = "/.well-known/openid-configuration"
ISSUER = "https://example.org"
SETTLED = 61.0
"""A new authority waits less than a minute for those who have not heard of it (architecture A15)."""


@contextlib.asynccontextmanager
async def over_unix(path):
    reader = Reader(*await asyncio.open_unix_connection(path))
    try:
        yield reader
    finally:
        await reader.close()


def served_over_https(folder, **over):
    write_web_certificate(folder)
    files = {"cert_file_path": str(folder / "web.pem"), "key_file_path": str(folder / "web.key")}
    return {"serving_cert_file": {**files, "addr": "127.0.0.1:0"}, **over}


@contextlib.asynccontextmanager
async def discovering_server(oidc, **jwt):
    async with live_server(oidc=oidc, jwt={"issuer": ISSUER, **jwt}) as live:
        live.places = [one.address for one in live.server.published.web.endpoints]
        yield live


async def keys_at(place, context=None):
    async with connected(place, context, "localhost" if context else None) as reader:
        answer = await reader.ask("/keys")
    assert answer.status == 200, answer.body
    return {key["kid"]: key for key in json.loads(answer.body)["keys"]}


async def test_a_server_serves_the_same_documents_on_every_listener(tmp_path):
    """Issue 6, item 5: HTTPS with files, plain HTTP on loopback, and a Unix socket for a web server in front."""
    socket = tmp_path / "run" / "oidc.sock"
    oidc = served_over_https(tmp_path, insecure_addr="127.0.0.1:0", listen_socket_path=str(socket))
    async with discovering_server(oidc) as live:
        tls, plain, _ = live.places
        async with connected(tls, trusting(tmp_path), "localhost") as one, connected(plain) as two:
            async with over_unix(socket) as three:
                answers = [
                    [(await reader.ask(path)).body for path in (CONFIGURATION, "/keys")] for reader in (one, two, three)
                ]
        assert answers[0] == answers[1] == answers[2]
        configuration, keys = map(json.loads, answers[0])
        assert (configuration["issuer"], configuration["jwks_uri"]) == (ISSUER, f"{ISSUER}/keys")
        assert [key["kid"] for key in keys["keys"]] == [one.key_id for one in live.state.bundles.own.jwt_authorities]
        assert socket.exists()
    assert not socket.exists()


async def test_a_token_is_verified_with_the_published_keys_alone(tmp_path):
    """The `kid` and `iss` of a token lead to its key, before and after a rotation; RSA where it was asked for."""
    async with discovering_server({"insecure_addr": "127.0.0.1:0"}, key_type="rsa-2048") as live:
        (place,) = live.places

        async def minted():
            request = svid_pb2.MintJWTSVIDRequest(id=spiffe_id("/web"), audience=["aws"])
            return (await live.svid.MintJWTSVID(request, timeout=20)).svid.token

        first = await minted()
        new = await live.local.PrepareJWTAuthority(localauthority_pb2.PrepareJWTAuthorityRequest(), timeout=20)
        coming = new.prepared_authority.authority_id
        assert coming in await keys_at(place), "published before it signs"
        live.clock.move(SETTLED)
        activate = localauthority_pb2.ActivateJWTAuthorityRequest(authority_id=coming)
        await live.local.ActivateJWTAuthority(activate, timeout=20)
        second = await minted()
        keys = await keys_at(place)
        for token in (first, second):
            header, claims = parts(token)
            assert claims["iss"] == ISSUER
            assert (
                (keys[header["kid"]]["alg"], keys[header["kid"]]["use"]) == (header["alg"], "sig") == ("RS256", "sig")
            )
            jwk = {name: value for name, value in keys[header["kid"]].items() if name not in {"use", "alg"}}
            (authority,) = load_token_keys(json.dumps({"keys": [jwk]}).encode(), TD, "jwt-svid").bundle.jwt_authorities
            assert signature_is_good(read_compact(token), header["alg"], authority.key)
        assert parts(first)[0]["kid"] != parts(second)[0]["kid"] == coming


async def test_a_revoked_key_is_gone_at_once(tmp_path):
    async with discovering_server({"insecure_addr": "127.0.0.1:0"}) as live:
        (place,) = live.places
        (old,) = await keys_at(place)
        prepared = await live.local.PrepareJWTAuthority(localauthority_pb2.PrepareJWTAuthorityRequest(), timeout=20)
        live.clock.move(SETTLED)
        for call, authority_id in (
            ("ActivateJWTAuthority", prepared.prepared_authority.authority_id),
            ("TaintJWTAuthority", old),
            ("RevokeJWTAuthority", old),
        ):
            request = getattr(localauthority_pb2, f"{call}Request")(authority_id=authority_id)
            await getattr(live.local, call)(request, timeout=20)
        assert list(await keys_at(place)) == [prepared.prepared_authority.authority_id]


async def test_without_jwt_svids_there_are_no_keys(tmp_path):
    """As in SPIRE: 501."""
    async with discovering_server({"insecure_addr": "127.0.0.1:0"}, disabled=True) as live:
        async with connected(live.places[0]) as reader:
            answer = await reader.ask("/keys")
        assert (answer.status, answer.headers["access-control-allow-origin"] if answer.status == 200 else "") == (
            501,
            "",
        )


@pytest.mark.parametrize(
    ("issuer", "oidc", "said"),
    [
        ("", {"insecure_addr": "127.0.0.1:0"}, "jwt.issuer must be set for [oidc]"),
        ("me", {"insecure_addr": "127.0.0.1:0"}, 'jwt.issuer: must begin with "https://"'),
        ("http://example.org", {"insecure_addr": "127.0.0.1:0"}, 'jwt.issuer: must begin with "https://"'),
        (ISSUER, {}, "name where to listen"),
        (ISSUER, {"insecure_addr": "127.0.0.1:0", "jwks_uri": "keys"}, "jwks_uri"),
        (ISSUER, {"serving_cert_file": {"cert_file_path": "/a"}}, "key_file_path: is required"),
    ],
)
def test_names_that_verifiers_would_not_believe_stop_the_start(issuer, oidc, said):
    with pytest.raises(ConfigError) as refused:
        server_settings({"trust_domain": "example.org", "jwt": {"issuer": issuer}, "oidc": oidc})
    assert said in refused.value.public


async def test_a_taken_address_names_its_key(tmp_path):
    async with discovering_server({"insecure_addr": "127.0.0.1:0"}) as live:
        taken = f"127.0.0.1:{live.places[0][1]}"
        with pytest.raises(ConfigError, match=r"oidc\.insecure_addr") as refused:
            async with discovering_server({"insecure_addr": taken}):
                pass
        assert refused.value.field == "oidc.insecure_addr"


@contextlib.asynccontextmanager
async def alone(document):
    """A provider that stands alone, with its loops."""
    made = Standalone(from_mapping(document), SystemClock(), WebLimits())
    try:
        made.open()
        async with Supervisor() as tasks:
            made.start(tasks)
            yield made
            tasks.stop()
    finally:
        await made.close()


async def test_a_provider_alone_serves_a_servers_keys_and_goes_on_without_it(tmp_path):
    """503 before the first answer, the server's own bytes after it, and the last ones while it is away."""
    admin = tmp_path / "server" / "run" / "admin.sock"
    document = {
        "jwt_issuer": ISSUER,
        **served_over_https(tmp_path),
        "server_api": {"address": str(admin), "poll_interval": "1s"},
        "health_checks": {"listener_enabled": True, "bind_port": 0},
    }
    async with alone(document) as provider:
        place = provider.web.endpoints[0].address

        async def status(path="/keys"):
            return (await get(place, path)).status

        async def ready():
            async with connected(provider.monitor.health_address) as reader:
                answer = await reader.ask("/ready")
            return answer.status, json.loads(answer.body)["keys"]["state"]

        assert await status() == await status(CONFIGURATION) == 503
        assert await ready() == (500, "failed")
        async with live_server(tmp_path / "server", jwt={"issuer": ISSUER}) as live:
            async with asyncio.timeout(20):
                while await ready() != (200, "ok"):
                    await asyncio.sleep(0.05)
            assert sorted(await keys_at(place, trusting(tmp_path))) == sorted(
                one.key_id for one in live.state.bundles.own.jwt_authorities
            )
        await ask_once(provider.source, provider.held)
        assert await status() == 200
        assert await ready() == (200, "degraded")
        async with connected(provider.monitor.health_address) as reader:
            assert (await reader.ask("/live")).status == 200


def test_a_provider_alone_has_to_listen_somewhere(tmp_path):
    settings = from_mapping({"jwt_issuer": ISSUER, "file": {"path": "/b.json"}})
    with pytest.raises(ConfigError, match="where to listen"):
        Standalone(settings, SystemClock(), WebLimits())
