"""grpcio's xDS client and server with what `node-agent files` writes (issue 4, item 7; integrations section 8)."""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from deploy.demo.stack import BIN, Daemon, LocalStack, free_port
from tests.interop.peers import HERE, ROOT, Program, lacking, until
from tests.interop.test_nginx import Rotator, configuration

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60, func_only=True)]

ID = "spiffe://xds.test/web"
ROTATIONS = 2
BOTH = ("ca_certificate_file", "spiffe_bundle_map_file", "spiffe_trust_bundle_map_file")
FORMS = {
    "the authorities": (("ca_certificate_file",), False),
    "both spellings of the map, not switched on": (BOTH, False),
    "both spellings of the map, switched on": (BOTH, True),
    "the map alone, switched on": (("spiffe_bundle_map_file",), True),
}
NAMES = {"ca_certificate_file": "bundle.pem"}


@pytest.fixture(scope="module")
def python() -> str:
    """The interpreter of the foreign environment."""
    if not list(ROOT.glob(".venv-foreign/lib/python3*/site-packages/envoy/service/discovery/v3")):
        lacking("foreign", "xds-protos is not installed; make .venv-foreign/.installed")
    return str(ROOT / ".venv-foreign" / "bin" / "python")


@pytest.fixture(scope="module")
def stack(python: str) -> Iterator[LocalStack]:
    del python
    with LocalStack("xds.test", sync_interval="100ms") as started:
        started.start()
        yield started


@pytest.fixture(scope="module")
def tls(stack: LocalStack) -> Iterator[tuple[Path, Rotator]]:
    """The directory that is written, and what has it written again."""
    rotator = Rotator(stack)
    words = ["files", "--config", str(configuration(stack.folder, stack, ["/bin/true"]))]
    writer = Daemon([str(BIN / "node-agent"), *words], stack.folder / "files.log")
    try:
        folder = stack.folder / "tls"
        until((folder / "svid.pem").exists, pause=0.02)
        yield folder, rotator
    finally:
        writer.stop()
        rotator.close()


def watcher(tls: Path, folder: Path, keys: tuple[str, ...]) -> Path:
    """The `config` of a file_watcher; the files are looked at every second, which is as often as grpcio does."""
    document = {
        "certificate_file": f"{tls}/svid.pem",
        "private_key_file": f"{tls}/svid.key",
        **{key: f"{tls}/{NAMES.get(key, 'map.json')}" for key in keys},
        "refresh_interval": "1s",
    }
    path = folder / "watcher.json"
    path.write_text(json.dumps(document))
    return path


def written(tls: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((tls / "svid.pem").read_bytes())


def presented(port: int) -> int:
    """The serial number of what the backend presents now."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain) as connection,
    ):
        der = connection.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der).serial_number


def rotated(peer: Program, port: int, files: tuple[Path, Rotator]) -> None:
    """A new SVID is written, and both sides use it: all files are read together, so they have the bundle of now too."""
    tls, rotator = files
    before = written(tls)
    rotator.rotate()
    until(lambda: written(tls) != before, pause=0.02)
    found = peer.hear("served")
    assert found == {"event": "served", "spiffe_id": ID, "serial": f"{written(tls).serial_number:x}"}
    until(lambda: presented(port) == written(tls).serial_number, pause=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_grpcio_calls_and_serves_through_rotations_without_a_failed_call(
    python: str, stack: LocalStack, tls: tuple[Path, Rotator], tmp_path: Path, form: str
) -> None:
    """Two SVIDs after the other, then a new authority and an SVID of it; who has another SPIFFE ID is refused."""
    keys, enabled = FORMS[form]
    port, script = free_port(), HERE / "grpcio_xds.py"
    env = {**os.environ, "GRPC_EXPERIMENTAL_XDS_MTLS_SPIFFE": str(enabled).lower()}
    words = [str(watcher(tls[0], tmp_path, keys)), str(port), ID, "spiffe://xds.test/else"]
    with Program([python, "-P", str(script), *words], env=env, log=tmp_path / "grpcio.log", told=True) as peer:
        assert peer.hear("served")["spiffe_id"] == ID
        for _ in range(ROTATIONS):
            rotated(peer, port, tls)
        new = stack.admin_json("localauthority", "x509", "prepare")["prepared_authority"]["authority_id"]
        rotated(peer, port, tls)
        stack.admin("localauthority", "x509", "activate", "-authorityID", new)
        rotated(peer, port, tls)
        issuer = written(tls[0]).extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        assert issuer.key_identifier is not None
        assert issuer.key_identifier.hex() == new
        peer.tell("other")
        assert "SAN" in peer.hear("failed")["text"]
        peer.tell("end")
        ended = peer.hear("ended")
        assert ended["failed"] == []
        assert ended["calls"] > 20
        assert peer.wait() == 0
