"""Streams while not everybody who was asked about the process could tell: a kubelet that restarts (A20, issue 4 item 3)."""

import asyncio
import os
from contextlib import aclosing, suppress

import pytest

from spiffe_core.errors import Unavailable
from spiffe_core.selectors import PartialSelectors, Selector
from spiffe_core.wire.peer import ProcessHandle, UnixPeer
from tests.doubles.scripted_backend import ScriptedBackend, WorkloadCa
from workload_api import streams
from workload_api.streams import Streams

USER = frozenset({Selector("unix", "uid:1000")})
POD = USER | {Selector("k8s", "ns:shop")}
PARTIAL = PartialSelectors(USER)


@pytest.fixture(scope="module")
def ca():
    return WorkloadCa()


@pytest.fixture
def peer():
    return UnixPeer(os.getpid(), 1000, 1000, ProcessHandle(os.getpid(), 2))


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Pauses of a test's length; a stream that is held is held for longer than any test takes."""
    for name, seconds in {"FIRST_REREAD": 0.02, "LONGEST_REREAD": 0.02, "HOLD_PAUSE": 0.01, "HOLD": 600.0}.items():
        monkeypatch.setattr(streams, f"{name}_SECONDS", seconds)


async def until(fact):
    async with asyncio.timeout(20):
        while not fact():
            await asyncio.sleep(0.005)


def backend_of(ca, selectors):
    made = ScriptedBackend(ca.view("/user"), USER)
    made.publish(ca.view("/user", "/pod"), POD)
    made.selectors = selectors
    return made


async def test_what_is_missing_comes_by_itself_when_all_can_tell_again(ca, peer):
    """Otherwise it would come with the next rotation, half a lifetime later, or with wait_for_identity never."""
    backend = backend_of(ca, PARTIAL)
    async with aclosing(Streams(backend).follow(peer)) as views:
        assert await anext(views) is backend.watch(USER).value
        coming = asyncio.ensure_future(anext(views))
        await until(lambda: len(backend.attested) > 3)
        assert not coming.done()
        backend.selectors = POD
        assert await coming is backend.watch(POD).value
        whole = len(backend.attested)
        coming = asyncio.ensure_future(anext(views))
        await asyncio.sleep(0.1)
        assert len(backend.attested) == whole  # nobody asks again once all could tell
        coming.cancel()
        with suppress(asyncio.CancelledError):
            await coming


async def test_an_identity_is_not_taken_away_by_a_moment_in_which_somebody_could_not_tell(ca, peer):
    """The rotated SVID comes when the kubelet is back, and nothing in between says that it is gone."""
    backend = backend_of(ca, POD)
    async with aclosing(Streams(backend).follow(peer)) as views:
        await anext(views)
        backend.selectors = PARTIAL
        backend.publish(ca.view("/user", "/pod"), POD)
        coming = asyncio.ensure_future(anext(views))
        await until(lambda: len(backend.attested) > 4)
        assert not coming.done()
        backend.selectors = POD
        assert await coming is backend.watch(POD).value


async def test_after_that_moment_what_cannot_be_told_is_withdrawn(ca, peer, monkeypatch):
    """It fails closed."""
    monkeypatch.setattr(streams, "HOLD_SECONDS", 0.05)
    backend = backend_of(ca, POD)
    async with aclosing(Streams(backend).follow(peer)) as views:
        await anext(views)
        backend.selectors = PARTIAL
        backend.publish(ca.view("/user", "/pod"), POD)
        assert await anext(views) is backend.watch(USER).value
        backend.selectors = POD
        assert await anext(views) is backend.watch(POD).value


async def test_selectors_that_all_could_tell_are_withdrawn_at_once(ca, peer):
    """N-A-31: a process that left its pod is not in doubt."""
    backend = backend_of(ca, POD)
    async with aclosing(Streams(backend).follow(peer)) as views:
        await anext(views)
        backend.selectors = USER
        backend.publish(ca.view("/user", "/pod"), POD)
        assert await anext(views) is backend.watch(USER).value


async def test_what_is_new_is_told_although_somebody_cannot_tell(ca, peer):
    backend = backend_of(ca, PARTIAL)
    async with aclosing(Streams(backend).follow(peer)) as views:
        await anext(views)
        newer = ca.view("/user")
        backend.publish(newer, USER)
        assert await anext(views) is newer


async def test_an_agent_that_stops_does_not_wait_for_the_doubt_to_end(ca, peer):
    backend = backend_of(ca, POD)
    following = Streams(backend)
    async with aclosing(following.follow(peer)) as views:
        await anext(views)
        backend.selectors = PARTIAL
        backend.publish(ca.view("/user", "/pod"), POD)
        coming = asyncio.ensure_future(anext(views))
        await until(lambda: len(backend.attested) > 2)
        following.drain()
        with pytest.raises(Unavailable, match="restarting"):
            await coming
    assert following.open == 0
