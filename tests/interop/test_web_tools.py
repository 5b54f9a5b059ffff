"""Tools of others hold the bundle endpoint to its own description (schemathesis) and to Mozilla's TLS profile (sslyze)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from ssl import create_default_context

import pytest

from deploy.demo.stack import LocalStack, free_port
from tests.interop.peers import ROOT, lacking

pytestmark = pytest.mark.slow

EXAMPLES = 15
WAIT_SECONDS = 20.0


def program(name: str) -> str:
    path = ROOT / ".venv-foreign" / "bin" / name
    if not os.access(path, os.X_OK):
        lacking("foreign", f"{name} is not installed; make .venv-foreign/.installed")
    return str(path)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The endpoint of a real server process, once it serves."""
    program("schemathesis")
    port = free_port()
    text = f'[federation.bundle_endpoint]\naddress = "127.0.0.1"\nport = {port}\nbundle_map = "all"\n'
    with LocalStack("tools.test", server=text) as stack:
        stack.start_server()
        context = create_default_context()
        context.check_hostname = False
        context.verify_mode = 0  # type: ignore[assignment]
        end = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"https://127.0.0.1:{port}/", context=context, timeout=5):
                    break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.02)
        yield f"127.0.0.1:{port}"


def test_every_answer_is_as_described(address: str, tmp_path: Path) -> None:
    """Issue 6, item 1: OpenAPI for what has parameters; schemathesis passes (statuses, types, schemas, methods)."""
    done = subprocess.run(
        [
            *(program("schemathesis"), "run", f"https://{address}/openapi.json", "--tls-verify=false"),
            *("--max-examples", str(EXAMPLES), "--seed", "1", "--generation-database", "none", "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert found is not None, done.stdout
    assert found[1] == found[2]
    assert int(found[1]) >= EXAMPLES


def test_tls_is_of_mozillas_intermediate_profile(address: str, tmp_path: Path) -> None:
    """FED-15, D16: nothing to find but that the certificate is not for the web, which an X509-SVID is not."""
    report = tmp_path / "report.json"
    done = subprocess.run(
        [program("sslyze"), "--mozilla_config=intermediate", f"--json_out={report}", address],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    findings = [line.strip() for line in done.stdout.partition("Not compliant.")[2].splitlines() if "*" in line]
    assert [line.partition(":")[0] for line in findings] == ["* certificate_path_validation"], done.stdout
    (scanned,) = json.loads(report.read_text())["server_scan_results"]
    curves = scanned["scan_result"]["elliptic_curves"]["result"]["supported_curves"]
    assert {curve["name"] for curve in curves} <= {"X25519", "prime256v1", "secp256r1", "secp384r1", "X25519MLKEM768"}
