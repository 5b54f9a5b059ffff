"""Two and three servers rotate, publish and prune at the same moment: R30, R31 on real PostgreSQL and MariaDB."""

import asyncio
import itertools
from contextlib import AsyncExitStack

import pytest

from identity_server.keys import MemoryKeys
from tests.databases import SHARED_KINDS, running_store, url_of
from tests.doubles.authority_rig import authorities_of, consistent, stored
from tests.doubles.clock import FakeClock

ROUNDS = 200
HOUR = 3600


@pytest.fixture(params=SHARED_KINDS)
def url(request, tmp_path):
    return url_of(request.param, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("servers", [2, 3])
@pytest.mark.parametrize("part", range(2))
async def test_servers_rotate_and_prune_at_the_same_moment(url, servers, part):
    """R30, R31: 200 rounds in two parts. No root is lost, only what expired leaves, nobody signs what is not stored."""
    clock, names = FakeClock(), [f"server-{number}" for number in range(servers)]
    clock.advance(part * 1000)
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(running_store(url, server_id=name, clock=clock)) for name in names]
        keys = [MemoryKeys() for _ in names]
        every = [authorities_of(*parts) for parts in zip(stores, names, itertools.repeat(clock), keys, strict=False)]
        await asyncio.gather(*(one.start() for one in every))
        made: dict[str, int] = {one.active.authority_id: one.active.not_after for one in every}
        for round_ in range(ROUNDS // 2):
            fresh = await asyncio.gather(*(one.prepare("x509", "test") for one in every))
            made.update({one.authority_id: one.not_after for one in fresh})
            clock.advance(61)
            await asyncio.gather(
                *(one.activate("x509", new.authority_id, "test") for one, new in zip(every, fresh, strict=True))
            )
            clock.advance(4 * HOUR)
            await asyncio.gather(*(one.tick() for one in every))
            assert [one.last_error for one in every] == [None] * servers, round_
            now = clock.now().timestamp()
            for one, name, own in zip(every, names, keys, strict=True):
                journal, published = await stored(stores[0], name)
                consistent(journal, published, own)
                assert one.active.authority_id in published
            assert {one for one, end in made.items() if end > now} <= published, "a root in force was lost"
        assert len(published) < len(made), "expired roots were removed meanwhile"
