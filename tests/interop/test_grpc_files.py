"""gRPC's own file watcher with what `node-agent files` writes (issue 4, item 7; integrations section 8)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo.stack import BIN, Daemon, LocalStack
from tests.interop.peers import Program, until
from tests.interop.test_go_spiffe import built as built  # noqa: PLC0414  # a fixture
from tests.interop.test_nginx import Rotator, configuration

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60, func_only=True)]

ROTATIONS = 10


@pytest.fixture(scope="module")
def stack(built: Path) -> Iterator[LocalStack]:
    del built
    with LocalStack("files.test", sync_interval="100ms") as started:
        started.start()
        yield started


def watcher_configuration(folder: Path) -> Path:
    """As the `config` of a file_watcher in an xDS bootstrap: the bundle map in both spellings."""
    tls = folder / "tls"
    path = folder / "watcher.json"
    document = {
        "certificate_file": f"{tls}/svid.pem",
        "private_key_file": f"{tls}/svid.key",
        "ca_certificate_file": f"{tls}/bundle.pem",
        "spiffe_trust_bundle_map_file": f"{tls}/map.json",
        "spiffe_bundle_map_file": f"{tls}/map.json",
        "refresh_interval": "0.05s",
    }
    path.write_text(json.dumps(document))
    return path


def test_grpc_go_watches_the_files_through_rotations(built: Path, stack: LocalStack, tmp_path: Path) -> None:
    """Server and client take each new certificate from the files; every call on a new connection is mutual TLS."""
    rotator = Rotator(stack)
    writer = Daemon(
        [str(BIN / "node-agent"), "files", "--config", str(configuration(tmp_path, stack, ["/bin/true"]))],
        tmp_path / "files.log",
    )
    try:
        certificate = tmp_path / "tls" / "svid.pem"
        until(certificate.exists, pause=0.02)
        env = {**os.environ, "GRPC_EXPERIMENTAL_XDS_MTLS_SPIFFE": "true"}
        words = ["files", str(watcher_configuration(tmp_path)), str(ROTATIONS + 1)]
        with Program([str(built), *words], env=env, log=tmp_path / "go.log") as client:
            serials = set()
            for number in range(ROTATIONS + 1):
                if number:
                    rotator.rotate()
                found = client.hear("served")
                assert found["spiffe_id"] == "spiffe://files.test/web"
                serials.add(found["serial"])
            assert client.wait() == 0
            assert len(serials) == ROTATIONS + 1
            assert "mismatch" not in client.log.read_text()
    finally:
        writer.stop()
        rotator.close()
