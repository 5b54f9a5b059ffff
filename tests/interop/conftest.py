"""One trust domain for each file of tests, and room for its programs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo.stack import LocalStack


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A directory with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="muniment-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, folder: Path) -> Iterator[LocalStack]:
    """Our server and our agent, with an entry for each of the file's WORKLOADS: the program of that name in `folder`.

    The entries are there before the agent joins, so that nobody has to wait for a sync.
    """
    settings = getattr(request.module, "agent_settings", lambda _: "")(folder)
    with LocalStack("interop.test", sync_interval="500ms", agent=settings) as started:
        started.start_server()
        for name in request.module.WORKLOADS:
            selectors = (f"unix:path:{folder / name}", f"unix:uid:{os.getuid()}")
            started.register(f"/{name}", *selectors, ttl=request.module.TTL)
        started.prepare_join()
        started.start_agent()
        yield started
