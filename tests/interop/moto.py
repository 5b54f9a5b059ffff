"""moto's server, an S3 of its own process, from the environment of foreign programs."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.demo.stack import Daemon, NotStarted, free_port
from tests.interop.peers import ROOT, lacking

START_SECONDS = 60.0
REGION = "eu-central-1"


@contextmanager
def moto_server(folder: Path) -> Iterator[str]:
    """The URL of an empty one; skips where the foreign environment has none."""
    program = ROOT / ".venv-foreign" / "bin" / "moto_server"
    if not os.access(program, os.X_OK):
        lacking("foreign", "moto is not installed; make .venv-foreign/.installed")
    url = f"http://127.0.0.1:{(port := free_port())}"
    daemon = Daemon([str(program), "-H", "127.0.0.1", "-p", str(port)], folder / "moto.log")
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(url):
            if daemon.process.poll() is not None or time.monotonic() > deadline:
                raise NotStarted(f"moto is not ready; its log ends:\n{daemon.tail()}")
            time.sleep(0.1)
        yield url
    finally:
        daemon.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/moto-api/", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False


def s3(url: str) -> Any:
    """A client with credentials of its own, for the tests."""
    import botocore.session

    return botocore.session.Session().create_client(
        "s3", region_name=REGION, endpoint_url=url, aws_access_key_id="tester", aws_secret_access_key="tester-secret"
    )
