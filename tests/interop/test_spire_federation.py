"""A Muniment domain federated with a stock SPIRE domain: its endpoint in both profiles, asked by our client (issue 6, FED-13)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from deploy.demo.stack import free_port
from spiffe_core.crypto.keys import from_pkcs8
from tests.authority import SpiffeTestCA
from tests.doubles.bundle_endpoint import WebIdentity
from tests.doubles.federated_stacks import FederatedStack
from tests.interop.spire import StockServer, spire_binaries

pytestmark = pytest.mark.slow

STOCK_ID = "spiffe://stock.test/spire/server"


def stock(folder: Path, profile: str) -> tuple[StockServer, str]:
    """A stock server whose bundle endpoint has this profile, and its URL."""
    port = free_port()
    endpoint = f'bundle_endpoint {{ address = "127.0.0.1" port = {port} refresh_hint = "1m" {profile} }}'
    server = StockServer(spire_binaries(), folder, "stock.test", settings=f"federation {{ {endpoint} }}")
    return server.start(), f"https://127.0.0.1:{port}/"


@pytest.fixture
def spiffe_peer(folder: Path) -> Iterator[tuple[StockServer, str]]:
    server, url = stock(folder, 'profile "https_spiffe" {}')
    yield server, url
    server.close()


def document(server: StockServer) -> dict[str, object]:
    return json.loads(server.command("bundle", "show", "-format", "spiffe"))  # type: ignore[no-any-return]  # JSON


def roots_of(server: StockServer) -> set[bytes]:
    keys: Any = document(server)["keys"]
    return {base64.b64decode(key["x5c"][0]) for key in keys if key["use"] == "x509-svid"}


@pytest.fixture
def ours() -> Iterator[FederatedStack]:
    with FederatedStack("ours.test") as started:
        started.start_server()
        yield started


def test_a_stock_servers_bundle_is_fetched_by_its_svid(
    ours: FederatedStack, spiffe_peer: tuple[StockServer, str], folder: Path
) -> None:
    """FED-13, FED-37, FED-42, FED-43: https_spiffe, its first bundle from out of band; its new authority arrives."""
    server, url = spiffe_peer
    first = folder / "stock.json"
    first.write_text(json.dumps(document(server)))
    where = ("-trustDomain", "stock.test", "-bundleEndpointURL", url, "-bundleEndpointProfile", "https_spiffe")
    bundle = ("-trustDomainBundlePath", str(first), "-trustDomainBundleFormat", "spiffe")
    ours.admin("federation", "create", *where, "-endpointSpiffeID", STOCK_ID, *bundle)
    ours.admin("federation", "refresh", "-id", "stock.test")
    before = ours.keys_of("stock.test")
    assert before == roots_of(server)
    server.command("localauthority", "x509", "prepare")
    ours.admin("federation", "refresh", "-id", "stock.test")
    assert ours.keys_of("stock.test") == roots_of(server) > before
    assert ours.state_of("stock.test").error == ""
    ours.admin("federation", "update", *where, "-endpointSpiffeID", "spiffe://stock.test/other")
    with pytest.raises(RuntimeError, match=r"did not prove to be spiffe://stock\.test/other"):
        ours.admin("federation", "refresh", "-id", "stock.test")


def test_a_stock_servers_bundle_is_fetched_by_its_web_certificate(folder: Path) -> None:
    """FED-13, FED-21, FED-31: https_web needs nothing but URL, profile and name; the authority comes from `ca_file`."""
    web = SpiffeTestCA("web.test", uris=())
    identity = WebIdentity(web)
    pem = web.certificate.public_bytes(Encoding.PEM)
    (folder / "ca.pem").write_bytes(pem)
    (folder / "web.pem").write_bytes(x509.load_der_x509_certificate(identity.chain[0]).public_bytes(Encoding.PEM))
    key = from_pkcs8(identity.key).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "web.key").write_bytes(key)
    files = f'cert_file_path = "{folder}/web.pem" key_file_path = "{folder}/web.key" file_sync_interval = "1h"'
    server, url = stock(folder, f'profile "https_web" {{ serving_cert_file {{ {files} }} }}')
    try:
        where = ("-trustDomain", "stock.test", "-bundleEndpointURL", url, "-bundleEndpointProfile", "https_web")
        with FederatedStack("ours.test", client=f'ca_file = "{folder}/ca.pem"') as ours:
            ours.start_server()
            ours.admin("federation", "create", *where)
            ours.admin("federation", "refresh", "-id", "stock.test")
            assert ours.keys_of("stock.test") == roots_of(server)
        with FederatedStack("strict.test") as strict:
            strict.start_server()
            strict.admin("federation", "create", *where)
            with pytest.raises(RuntimeError, match="is not believed"):
                strict.admin("federation", "refresh", "-id", "stock.test")
    finally:
        server.close()
