from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from identity_server.store.sql_store import SqlStore
from tests.databases import KINDS, running_store, url_of


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return url_of(request.param, tmp_path)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[SqlStore]:
    async with running_store(database_url) as running:
        yield running
