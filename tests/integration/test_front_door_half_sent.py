"""Requests whose end never comes: gRPC holds them without asking anybody, so the door counts them (S51, S53)."""

import asyncio
import contextlib

import pytest

from spiffe_core.runtime import unix_sockets
from spiffe_core.runtime.unix_sockets import read_credentials
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.front_door import FrontDoor, Limits
from spiffe_core.wire.http2_meter import Rates
from spiffe_core.wire.sockets import PrivateDirectory
from tests.doubles.door_service import serve
from tests.doubles.floods import END_HEADERS, END_STREAM, HEADER_BLOCK, HEADERS, PING, PREFACE, SETTINGS, frame

USER, MOST, SECONDS = 4242, 5, 20.0
DATA = 0


def read_as_user(raw):
    """SO_PEERCRED as another user's process would show: root's requests are not counted."""
    return read_credentials(raw)._replace(uid=USER)


@pytest.fixture
async def door(monkeypatch):
    monkeypatch.setattr(unix_sockets, "read_credentials", read_as_user)
    directory = PrivateDirectory.make()
    directory.path.chmod(0o755)
    door = FrontDoor(limits=Limits(rates=Rates(unfinished=MOST)))
    _, server = await serve(door)
    door.listen_unix(directory.path / "api.sock")
    yield directory.path / "api.sock"
    await server.stop(0)
    await door.close()
    for left in directory.path.glob("*"):
        left.unlink()
    directory.close()


@contextlib.asynccontextmanager
async def connected(path):
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(PREFACE + frame(SETTINGS, 0, 0))
    try:
        yield reader, writer
    finally:
        writer.close()


def half_sent(count, first=1):
    return b"".join(frame(HEADERS, END_HEADERS, first + 2 * number, HEADER_BLOCK) for number in range(count))


async def answers(reader, writer, mark):
    """Whether a PING is answered; False once the connection is over."""
    writer.write(frame(PING, 0, 0, mark))
    async with asyncio.timeout(SECONDS):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(mark)
            return True
    return False


async def test_who_leaves_too_many_requests_half_sent_is_cut_and_a_connection_that_ends_makes_room(door):
    async with connected(door) as (reader, writer), connected(door) as (second, second_writer):
        writer.write(half_sent(MOST))
        assert await answers(reader, writer, b"all-five")
        second_writer.write(half_sent(1))
        assert not await answers(second, second_writer, b"one-more")
        writer.write(frame(DATA, END_STREAM, 1, bytes(5)))
        assert await answers(reader, writer, b"one-ends")
        async with connected(door) as (third, third_writer):
            third_writer.write(half_sent(1))
            assert await answers(third, third_writer, b"has-room")
    async with asyncio.timeout(SECONDS):
        while True:  # until both ends are noticed
            async with connected(door) as (reader, writer):
                writer.write(half_sent(MOST))
                if await answers(reader, writer, b"all-gone"):
                    break


def smuggled(stream):
    """A call whose message claims to be long, under a number that means the same stream (RFC 9113 section 4.1)."""
    return (
        frame(HEADERS, END_HEADERS, stream, HEADER_BLOCK)
        + frame(DATA, 0, stream | 2**31, b"\0\0\x0f")
        + frame(DATA, 0, stream, bytes(5))
    )


async def test_a_request_under_another_spelling_of_its_stream_is_counted_all_the_same(door):
    """gRPC holds such a call: it does not read the number's highest bit."""
    async with connected(door) as (reader, writer):
        writer.write(b"".join(smuggled(1 + 2 * number) for number in range(MOST)))
        assert await answers(reader, writer, b"all-five")
        writer.write(smuggled(1 + 2 * MOST))
        assert not await answers(reader, writer, b"one-more")


async def test_streams_of_requests_that_the_server_ended_are_not_held_against_a_client(door):
    """RFC 9113 section 8.1: a client whose stream was answered to the end resets what it has not finished itself."""
    async with unix_channel(door) as channel:
        for _ in range(4 * MOST):
            call = channel.stream_stream("/door.Test/First")()
            await call.write(b"here")
            assert await call.read() == b"here"
            assert (await call.code()).name == "OK"
