"""The loop behind every stream: first message, changes, re-attestation, limits, ends."""

import asyncio
import os
from contextlib import aclosing, contextmanager

import pytest

from spiffe_core.errors import Exhausted, Unauthenticated, Unavailable
from spiffe_core.selectors import Selector
from spiffe_core.wire.peer import ProcessHandle, UnixPeer
from tests.doubles.scripted_backend import ScriptedBackend, WorkloadCa
from workload_api.streams import StreamLimits, Streams

OTHER = frozenset({Selector("unix", "uid:2000")})


@pytest.fixture(scope="module")
def ca():
    return WorkloadCa()


@pytest.fixture
def peer():
    return caller(1000)


def caller(uid):
    return UnixPeer(os.getpid(), uid, 1000, ProcessHandle(os.getpid(), 2))


@contextmanager
def living(uid):
    """This process, seen as another user, through a pidfd of its own."""
    handle = ProcessHandle(os.getpid(), os.pidfd_open(os.getpid()))
    try:
        yield UnixPeer(os.getpid(), uid, 1000, handle)
    finally:
        handle.close()


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_present_state_comes_at_once_after_one_attestation(ca, peer):
    """WAPI-11."""
    backend = ScriptedBackend(ca.view("/a"))
    async with aclosing(Streams(backend).follow(peer)) as views:
        assert await anext(views) is backend.watch(backend.selectors).value
    assert backend.attested == [peer]


async def test_each_change_is_sent_after_reading_the_process_again(ca, peer):
    """A20, WAPI-10."""
    first, second = ca.view("/a"), ca.view("/b")
    backend = ScriptedBackend(first)
    async with aclosing(Streams(backend).follow(peer)) as views:
        assert await anext(views) is first
        coming = asyncio.ensure_future(anext(views))
        await settle()
        assert not coming.done()
        assert len(backend.attested) == 1
        backend.publish(second)
        assert await coming is second
        assert len(backend.attested) == 2


async def test_an_equal_state_is_neither_sent_nor_attested(ca, peer):
    view = ca.view("/a")
    again = type(view)(view.x509_svids, view.bundle, view.federated)
    backend = ScriptedBackend(view)
    async with aclosing(Streams(backend).follow(peer)) as views:
        await anext(views)
        coming = asyncio.ensure_future(anext(views))
        await settle()
        backend.publish(again)
        await settle()
        assert not coming.done()
        assert len(backend.attested) == 1
        newest = ca.view("/a", "/b")
        backend.publish(newest)
        assert await coming is newest


async def test_changed_selectors_change_what_is_followed(ca, peer):
    """N-A-31, S13: the process runs another program; its old identity is not served again."""
    old, old_rotated, new = ca.view("/old"), ca.view("/old"), ca.view("/new")
    backend = ScriptedBackend(old)
    before = backend.selectors
    backend.publish(new, OTHER)
    async with aclosing(Streams(backend).follow(peer)) as views:
        assert await anext(views) is old
        backend.selectors = OTHER
        backend.publish(old_rotated, before)
        assert await anext(views) is new
        assert backend.subscribed == 1
        backend.publish(ca.view("/old"), before)
        newer = ca.view("/new")
        backend.publish(newer, OTHER)
        assert await anext(views) is newer
    assert backend.subscribed == 0


async def test_a_slow_reader_gets_the_newest_state_only(ca, peer):
    """N-A-35."""
    backend = ScriptedBackend(ca.view("/a"))
    async with aclosing(Streams(backend).follow(peer)) as views:
        await anext(views)
        for _ in range(50):
            backend.publish(ca.view("/a"))
        newest = ca.view("/z")
        backend.publish(newest)
        assert await anext(views) is newest
        assert len(backend.attested) == 2


async def test_a_state_that_is_not_known_yet_is_waited_for(ca, peer):
    backend = ScriptedBackend(None)
    async with aclosing(Streams(backend).follow(peer)) as views:
        coming = asyncio.ensure_future(anext(views))
        await settle()
        view = ca.view("/a")
        backend.publish(view)
        assert await coming is view
        assert len(backend.attested) == 2, "time has passed since the first reading"


async def test_waiting_for_the_first_state_is_bounded(peer):
    """WEP-21: Unavailable, not PermissionDenied."""
    streams = Streams(ScriptedBackend(None), StreamLimits(first_message_seconds=0.01))
    with pytest.raises(Unavailable, match="not known yet"):
        await anext(streams.follow(peer))
    assert streams.open == 0


async def test_a_process_that_died_meanwhile_gets_nothing(ca, peer):
    """N-A-32, S12."""
    backend = ScriptedBackend(ca.view("/a"))
    async with aclosing(Streams(backend).follow(peer)) as views:
        await anext(views)
        backend.troubles.append(Unauthenticated("the calling process has ended"))
        backend.publish(ca.view("/b"))
        with pytest.raises(Unauthenticated):
            await anext(views)
    assert backend.subscribed == 0


async def test_a_stale_caller_loses_its_connection(ca, peer):
    """S13: the next connection is judged afresh."""
    cut = asyncio.get_running_loop().create_future()
    backend = ScriptedBackend(ca.view("/a"))
    backend.troubles.append(Unauthenticated("changed its user"))
    with pytest.raises(Unauthenticated):
        await anext(Streams(backend, cut=cut.set_result).follow(peer))
    assert await cut is peer


async def test_an_attestor_that_fails_ends_the_stream_as_unavailable(ca, peer):
    """N-A-25."""
    cut = []
    backend = ScriptedBackend(ca.view("/a"))
    backend.troubles.append(Unavailable("workload attestation failed"))
    with pytest.raises(Unavailable, match="attestation failed"):
        await anext(Streams(backend, cut=cut.append).follow(peer))
    assert cut == []


async def test_streams_per_user_are_limited_and_root_is_not(ca):
    """N-A-36, S53."""
    streams = Streams(ScriptedBackend(ca.view("/a")), StreamLimits(per_uid=2, total=3))
    held = [streams.follow(caller(uid)) for uid in (1, 1, 2)]
    for views in held:
        await anext(views)
    with pytest.raises(Exhausted):
        await anext(streams.follow(caller(1)))
    with pytest.raises(Exhausted):
        await anext(streams.follow(caller(3)))
    root = streams.follow(caller(0))
    await anext(root)
    assert streams.open == 4
    await held[0].aclose()
    await root.aclose()
    again = streams.follow(caller(1))
    await anext(again)
    for views in (*held, again):
        await views.aclose()
    assert streams.open == 0


async def test_draining_ends_idle_streams_and_refuses_new_ones(ca, peer):
    """R6: with idle streams, shutting down takes no time."""
    streams = Streams(ScriptedBackend(ca.view("/a")))

    async def reader():
        async for _ in streams.follow(peer):
            pass

    readers = [asyncio.ensure_future(reader()) for _ in range(100)]
    await settle()
    assert streams.open == 100
    streams.drain()
    for outcome in await asyncio.gather(*readers, return_exceptions=True):
        assert isinstance(outcome, Unavailable)
        assert outcome.public == "restarting"
    assert streams.open == 0
    with pytest.raises(Unavailable, match="restarting"):
        await anext(streams.follow(peer))


async def test_draining_ends_a_stream_whose_reader_is_slow(ca, peer):
    streams = Streams(ScriptedBackend(ca.view("/a")))
    async with aclosing(streams.follow(peer)) as views:
        await anext(views)
        streams.drain()
        with pytest.raises(Unavailable, match="restarting"):
            await anext(views)


async def test_cancelling_a_reader_is_not_mistaken_for_draining(ca, peer):
    """N-A-37: nothing is left behind."""
    backend = ScriptedBackend(ca.view("/a"))
    streams = Streams(backend)

    async def reader():
        async with aclosing(streams.follow(peer)) as views:
            async for _ in views:
                pass

    task = asyncio.ensure_future(reader())
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (streams.open, backend.subscribed, len(streams._waiting)) == (0, 0, 0)


async def test_cancelling_during_attestation_leaves_nothing(ca, peer):
    backend = ScriptedBackend(ca.view("/a"))
    backend.gate = asyncio.Event()
    streams = Streams(backend)
    task = asyncio.ensure_future(anext(streams.follow(peer)))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (streams.open, backend.subscribed) == (0, 0)


async def test_calls_under_way_are_bounded_for_each_user_but_root(ca):
    """N-A-36: a user's calls beyond the bound are refused; ended ones make room; other users are not concerned."""
    streams = Streams(ScriptedBackend(ca.view("/a")), StreamLimits(calls_per_uid=1))
    with living(1000) as peer, living(2000) as other, living(0) as root:
        async with streams.call(peer) as selectors:
            assert selectors == ScriptedBackend().selectors
            with pytest.raises(Exhausted):
                async with streams.call(peer):
                    pass
            async with streams.call(other), streams.call(root), streams.call(root):
                pass
        async with streams.call(peer):
            pass
        streams.drain()
        with pytest.raises(Unavailable, match="restarting"):
            async with streams.call(peer):
                pass


async def test_no_answer_goes_out_in_place_of_a_process_that_has_ended(ca):
    """N-A-32: the process is asked about again when the answer is ready."""
    streams = Streams(ScriptedBackend(ca.view("/a")))
    with living(1000) as peer, pytest.raises(Unauthenticated):
        async with streams.call(peer):
            peer.process.close()
