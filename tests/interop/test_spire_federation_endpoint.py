"""A stock spire-server fetches our bundle from our endpoints, in both profiles, over rotations (issue 6, item 1)."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from deploy.demo.stack import LocalStack, free_port
from spiffe_core.bundle import TrustBundle
from spiffe_core.bundle_document import load_bundle
from spiffe_core.spiffe_id import TrustDomain
from tests.authority import SpiffeTestCA
from tests.interop.spire import Failed, StockServer, spire_binaries

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60, func_only=True)]

TD = "federated.test"
WAIT_SECONDS = 40.0


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    """Of the endpoints with the profiles https_spiffe and https_web."""
    return free_port(), free_port()


@pytest.fixture(scope="module")
def ours(folder: Path, ports: tuple[int, int]) -> Iterator[LocalStack]:
    """Our server with two endpoints: its own X509-SVID at one, a web certificate for localhost at the other."""
    spire_binaries()
    web = SpiffeTestCA("web.test")
    leaf = web.issue("spiffe://web.test/x", uris=(), dns=("localhost",))
    (folder / "web-ca.pem").write_text(ssl.DER_cert_to_PEM_cert(web.der))
    (folder / "web.pem").write_text("".join(map(ssl.DER_cert_to_PEM_cert, leaf.chain)))
    (folder / "web.key").touch(mode=0o600)
    (folder / "web.key").write_bytes(leaf.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    files = f'cert_file_path = "{folder}/web.pem"\nkey_file_path = "{folder}/web.key"\n'
    endpoints = "".join(
        f'[[federation.bundle_endpoint]]\naddress = "127.0.0.1"\nport = {port}\nrefresh_hint = "60s"\n{profile}'
        for port, profile in (
            (ports[0], ""),
            (
                ports[1],
                f"[federation.bundle_endpoint.profile.https_web.serving_cert_file]\n{files}",
            ),
        )
    )
    with LocalStack(TD, server=endpoints) as stack:
        stack.start_server()
        yield stack


@pytest.fixture(scope="module")
def stock(ours: LocalStack, folder: Path) -> Iterator[StockServer]:
    """A stock server of another trust domain, which believes the web certificate's authority."""
    del ours
    server = StockServer(spire_binaries(), folder, "stock.test")
    try:
        yield server.start({"SSL_CERT_FILE": str(folder / "web-ca.pem")})
    finally:
        server.close()


def own(stack: LocalStack) -> TrustBundle:
    return load_bundle(stack.admin("bundle", "show", "-format", "spiffe").encode(), TrustDomain(TD)).bundle


def held(stock: StockServer) -> TrustBundle:
    """Our bundle as the stock server has it."""
    text = stock.command("bundle", "list", "-id", f"spiffe://{TD}", "-format", "spiffe")
    return load_bundle(text.encode(), TrustDomain(TD)).bundle


def refreshed(stock: StockServer, holds: Callable[[TrustBundle], bool]) -> TrustBundle:
    """Have it fetch until it has what is wanted; it takes a new relationship into account when it next looks."""
    end = time.monotonic() + WAIT_SECONDS
    said = ""
    while time.monotonic() < end:
        try:
            stock.command("federation", "refresh", "-id", f"spiffe://{TD}")
            if holds(found := held(stock)):
                return found
            said = "another bundle"
        except Failed as failed:
            said = str(failed)
        time.sleep(0.2)
    assert stock.daemon is not None
    pytest.fail(f"the stock server has no such bundle of ours: {said}\n{stock.daemon.tail(30)}")


def same(ours: TrustBundle) -> Callable[[TrustBundle], bool]:
    return lambda theirs: (
        set(theirs.x509_roots) == set(ours.x509_roots)
        and ({key.key_id for key in theirs.jwt_authorities} == {key.key_id for key in ours.jwt_authorities})
    )


def test_https_spiffe(ours: LocalStack, stock: StockServer, folder: Path, ports: tuple[int, int]) -> None:
    """FED-14, FED-40, N-F-09: the first bundle by hand, each later one over the endpoint, whatever its host is called."""
    bootstrap = folder / "bootstrap.json"
    bootstrap.write_text(ours.admin("bundle", "show", "-format", "spiffe"))
    url = f"https://localhost:{ports[0]}"
    words = ("-trustDomain", TD, "-bundleEndpointURL", url, "-bundleEndpointProfile", "https_spiffe")
    more = ("-endpointSpiffeID", f"spiffe://{TD}/spire/server", "-trustDomainBundlePath", str(bootstrap))
    stock.command("federation", "create", *words, *more, "-trustDomainBundleFormat", "spiffe")
    refreshed(stock, same(own(ours)))
    ours.admin("localauthority", "x509", "prepare")
    rotated = own(ours)
    assert len(rotated.x509_roots) == 2
    refreshed(stock, same(rotated))
    shown = json.loads(stock.command("bundle", "list", "-id", f"spiffe://{TD}", "-output", "json"))
    assert int(shown["refresh_hint"]) == 60
    assert rotated.sequence > 1_700_000_000


def test_https_web(ours: LocalStack, stock: StockServer, ports: tuple[int, int]) -> None:
    """FED-14, FED-23: nothing but the URL is needed."""
    url = f"https://localhost:{ports[1]}"
    words = ("-trustDomain", TD, "-bundleEndpointURL", url, "-bundleEndpointProfile", "https_web")
    stock.command("federation", "update", *words)
    ours.admin("localauthority", "jwt", "prepare")
    rotated = own(ours)
    assert len(rotated.jwt_authorities) == 2
    refreshed(stock, same(rotated))
