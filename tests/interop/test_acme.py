"""The bundle endpoint's web certificate from a real ACME authority, pebble (issue 6, item 1; RFC 8555, RFC 8737)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import stat
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.stack import LocalStack
from identity_server.domain.web_certificate import FIRST_PAUSE_SECONDS
from spiffe_core.errors import IdentityError, Unavailable
from tests.doubles.https_reader import connected, get, unchecked
from tests.doubles.live_server import LiveServer, live_server
from tests.interop.pebble import Pebble

NAME = "bundle.example.org"
WAIT_SECONDS = 40.0


@pytest.fixture(scope="module")
def pebble(folder: Path) -> Iterator[Pebble]:
    authority = Pebble(folder, refused_nonces=20)
    try:
        yield authority
    finally:
        authority.close()


@contextlib.asynccontextmanager
async def endpoint(folder: Path, pebble: Pebble, *, http: bool = False, **over: Any) -> AsyncIterator[LiveServer]:
    acme = {
        "domain_name": NAME,
        "email": "ops@example.org",
        "directory_url": pebble.directory_url,
        "ca_file": str(pebble.ca_file),
        "tos_accepted": True,
        **({"http01": {"address": "127.0.0.1", "port": pebble.http_port}} if http else {}),
        **over,
    }
    section = {"address": "127.0.0.1", "port": pebble.tls_port, "profile": {"https_web": {"acme": acme}}}
    async with live_server(folder, federation={"bundle_endpoint": section}) as live:
        live.web = live.server.published.web.endpoints[0].address
        live.certificate = live.server.published.web.endpoints[0].chores[0]
        bundle = live.server.published.bundle
        while bundle.watch.value is not live.state.bundles.own:
            await bundle.tick()
        yield live


async def served(live: LiveServer, pebble: Pebble) -> int:
    """The status of the bundle over TLS that believes the authority's root and the name, as any web client does."""
    context = ssl.create_default_context(cadata=pebble.root)
    async with connected(live.web, context, server_hostname=NAME) as reader:
        return (await reader.ask()).status


def kept(live: LiveServer) -> dict[str, int]:
    folder = live.server.settings.data_dir / "acme"
    return {path.name.partition("-")[0]: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@pytest.mark.parametrize("http", [True, False], ids=["http-01", "tls-alpn-01"])
async def test_a_certificate_is_ordered_kept_and_renewed(pebble: Pebble, tmp_path: Path, http: bool) -> None:
    """FED-14, FED-22, FED-23: no handshake before, then a certificate of the authority; a restart orders none."""
    async with endpoint(tmp_path, pebble, http=http) as live:
        with pytest.raises((ssl.SSLError, OSError)):
            await get(live.web)
        assert await live.certificate.attempt() == 0.0, live.certificate.trouble
        assert await served(live, pebble) == 200
        assert kept(live) == {"account": 0o600, "certificate": 0o600}
        first = live.certificate.identity()
    async with endpoint(tmp_path, pebble, http=http) as live:
        assert live.certificate.identity().chain == first.chain
        life = live.certificate.seconds_until_due()
        assert life > 86_400
        live.clock.move(life + 1)
        assert live.certificate.seconds_until_due() == 0.0
        live.clock.move(-life - 1)
        async with connected(live.web, unchecked()) as reader:
            ordering = asyncio.ensure_future(live.certificate.attempt())
            while not ordering.done():  # the old certificate is presented all the while
                assert (await reader.ask()).status == 200
                await asyncio.sleep(0.02)
            assert ordering.result() == 0.0, live.certificate.trouble
        assert live.certificate.identity().chain[0] != first.chain[0]
        assert await served(live, pebble) == 200


def test_a_server_process_gets_its_certificate_by_itself(pebble: Pebble) -> None:
    """FED-14, FED-22: started without one, it orders it (TLS-ALPN-01), and presents it as soon as it is there."""
    text = (
        f'[federation.bundle_endpoint]\naddress = "127.0.0.1"\nport = {pebble.tls_port}\n'
        f'[federation.bundle_endpoint.profile.https_web.acme]\ndomain_name = "{NAME}"\ntos_accepted = true\n'
        f'directory_url = "{pebble.directory_url}"\nca_file = "{pebble.ca_file}"\n'
    )
    context = ssl.create_default_context(cadata=pebble.root)
    with LocalStack("acme.test", server=text) as stack:
        stack.start_server()
        end = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                with (
                    socket.create_connection(("127.0.0.1", pebble.tls_port), timeout=10) as plain,
                    context.wrap_socket(plain, server_hostname=NAME) as tls,
                ):
                    tls.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    assert tls.recv(12) == b"HTTP/1.1 200"
                    return
            except OSError:
                assert time.monotonic() < end, stack.server.tail() if stack.server is not None else ""
                time.sleep(0.05)


async def test_a_name_that_cannot_be_proved_is_told_in_the_authoritys_words(pebble: Pebble, tmp_path: Path) -> None:
    """The other challenge is tried next time, and after a longer pause; what was in force stays."""
    async with endpoint(tmp_path, pebble, http=True) as live:
        live.server.published.web.endpoints[1].listener.stop()
        first = await live.certificate.attempt()
        assert 0.7 * FIRST_PAUSE_SECONDS < first < 1.3 * FIRST_PAUSE_SECONDS
        assert "could not verify the domain name: connection" in live.certificate.trouble
        with pytest.raises(Unavailable, match=r"no web certificate for bundle\.example\.org yet: https://localhost"):
            live.certificate.identity()
        assert await live.certificate.attempt() == 0.0, "the other challenge works"
        before = live.certificate.identity()
        live.server.published.web.endpoints[0].listener.stop()
        live.certificate._settings = replace(live.certificate._settings, domain="other.example.org")
        assert await live.certificate.attempt() > 0.0  # pebble remembers that it believed the first name
        assert live.certificate.identity() is before


async def test_terms_of_service_are_accepted_by_a_person(pebble: Pebble, tmp_path: Path) -> None:
    async with endpoint(tmp_path, pebble, tos_accepted=False) as live:
        assert await live.certificate.attempt() > 0.0
        assert "has terms of service" in live.certificate.trouble
        assert "set acme.tos_accepted = true" in live.certificate.trouble


async def test_an_authority_that_cannot_be_believed_or_reached_is_named(pebble: Pebble, tmp_path: Path) -> None:
    """The server starts all the same, and the endpoint's other parts work."""
    other = tmp_path / "other.pem"
    other.write_text(pebble.root)
    async with endpoint(tmp_path / "a", pebble, ca_file=str(other)) as live:
        await live.certificate.attempt()
        assert "is not believed; name the file of its authority in acme.ca_file" in live.certificate.trouble
    async with endpoint(tmp_path / "b", pebble, directory_url="https://localhost:1/dir") as live:
        await live.certificate.attempt()
        assert live.certificate.trouble == "cannot reach https://localhost:1/dir: ConnectionError"


async def test_a_lost_account_key_is_told_and_a_damaged_certificate_is_ordered_anew(
    pebble: Pebble, tmp_path: Path
) -> None:
    async with endpoint(tmp_path, pebble) as live:
        assert await live.certificate.attempt() == 0.0, live.certificate.trouble
        folder = live.server.settings.data_dir / "acme"
    for path in folder.iterdir():
        path.write_bytes(b"neither key nor certificate")
    async with endpoint(tmp_path, pebble) as live:
        with pytest.raises(IdentityError):
            live.certificate.identity()
        await live.certificate.attempt()
        assert "holds no key; delete it to register anew" in live.certificate.trouble


@pytest.mark.parametrize("http", [True, False], ids=["http-01", "tls-alpn-01"])
async def test_a_discovery_provider_gets_its_certificate_by_itself(pebble: Pebble, tmp_path: Path, http: bool) -> None:
    """Issue 6, item 5: [oidc.acme], for the host of the issuer; verifiers then read the documents over that certificate."""
    issuer = "https://oidc.example.org"
    acme = {
        "directory_url": pebble.directory_url,
        "ca_file": str(pebble.ca_file),
        "tos_accepted": True,
        "addr": f"127.0.0.1:{pebble.tls_port}",
        **({"http01": {"address": "127.0.0.1", "port": pebble.http_port}} if http else {}),
    }
    async with live_server(tmp_path, jwt={"issuer": issuer}, oidc={"acme": acme}) as live:
        endpoint = live.server.published.web.endpoints[0]
        (certificate,) = endpoint.chores
        assert await certificate.attempt() == 0.0, certificate.trouble
        context = ssl.create_default_context(cadata=pebble.root)
        async with connected(endpoint.address, context, server_hostname="oidc.example.org") as reader:
            request = b"GET /.well-known/openid-configuration HTTP/1.1\r\nHost: oidc.example.org\r\n\r\n"
            answer = await reader.raw(request)
        assert (answer.status, issuer.encode() in answer.body) == (200, True)
        assert {path.name.partition("-")[0] for path in (tmp_path / "data" / "acme").iterdir()} == {
            "account",
            "certificate",
        }
