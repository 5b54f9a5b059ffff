"""Strict doors on real sockets: everything an ordinary door carries, and nothing that another process wrote (S14, S15)."""

import asyncio
import os
import socket
import subprocess
import sys
import time

import grpc
import pytest

from attestors.holders import Held, far_end, holders, why_not
from spiffe_core.errors import Unavailable
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.connection import image_of
from spiffe_core.wire.front_door import FrontDoor, Limits
from spiffe_core.wire.sockets import PrivateDirectory
from tests.doubles.door_service import serve
from tests.doubles.privileges import need_root
from tests.doubles.raw_call import RawCall


@pytest.fixture
def folder():
    directory = PrivateDirectory.make()
    yield directory.path
    for left in directory.path.glob("*"):
        left.unlink()
    directory.close()


@pytest.fixture
async def door(folder):
    door = FrontDoor(limits=Limits(stall_seconds=0.3, buffer_bytes=64 * 1024), strict=True)
    _, server = await serve(door)
    door.listen_unix(folder / "api.sock")
    yield door
    await server.stop(0)
    await door.close()


async def until(condition, seconds=20.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def test_calls_streams_and_large_messages_pass(door, folder):
    async with unix_channel(folder / "api.sock") as channel:
        echo = channel.unary_unary("/door.Test/Echo")
        for size in (1, 100_000, 3_000_000):
            assert len(await echo(b"x" * size)) == size
        assert await asyncio.gather(*(echo(bytes([n]) * 50_000) for n in range(20)))
        stream = channel.unary_stream("/door.Test/Stream")(b"")
        assert (await stream.read()).startswith(b"unix ")
        stream.cancel()
        del stream  # grpcio keeps the connection of a call that somebody holds
    await until(lambda: door.open_connections == 0)
    assert door.refused.total() == 0


async def test_a_peer_that_reads_nothing_is_cut_off_in_time(door, folder):
    """R45, N-A-35: what waits for it is bounded, as with ordinary doors."""
    loop = asyncio.get_running_loop()
    ping = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b"12345678"
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.setblocking(False)
        stuck.connect(str(folder / "api.sock"))
        await loop.sock_sendall(stuck, RawCall().hello())
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            async with asyncio.timeout(30):
                while True:
                    await loop.sock_sendall(stuck, ping * 200)
    await until(lambda: door.open_connections == 0)


async def test_noise_and_sudden_ends_leave_nothing_behind(door, folder):
    """N-A-08, S52: descriptors and splices are given back."""
    before = len(os.listdir("/proc/self/fd"))
    for noise in (b"", b"GET / HTTP/1.1\r\n\r\n", RawCall().hello(), RawCall().hello() + b"\xff" * 100):
        _, writer = await asyncio.open_unix_connection(folder / "api.sock")
        writer.write(noise)
        await writer.drain()
        writer.close()
    await until(lambda: not door._splices)
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_descriptors_that_a_caller_sends_along_are_not_taken(door, folder):
    """Whoever sends descriptors does not fill our table with them."""
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(folder / "api.sock"))
        for _ in range(10):
            socket.send_fds(caller, [RawCall().hello() if _ == 0 else b""], [0, 1, 2])
        await until(lambda: door.open_connections == 1)
        assert len(os.listdir("/proc/self/fd")) <= before + 8
    await until(lambda: door.open_connections == 0)


async def test_what_another_process_writes_ends_the_connection(door, folder):
    """S15: also if the one that connected has written before, in the same moment."""
    hello = RawCall().hello()
    with socket.socket(socket.AF_UNIX) as ours:
        ours.connect(str(folder / "api.sock"))
        ours.sendall(hello)
        code = "import socket, sys; socket.socket(fileno=int(sys.argv[1])).sendall(b'x' * 9)"
        subprocess.run([sys.executable, "-c", code, str(ours.fileno())], pass_fds=[ours.fileno()], check=True)
        await until(lambda: door.refused["another writer"] == 1)
        await until(lambda: door.open_connections == 0)
    async with unix_channel(folder / "api.sock") as channel:
        assert await channel.unary_unary("/door.Test/Echo")(b"x") == b"x"


async def test_a_refused_call_reaches_its_caller(door, folder):
    async with unix_channel(folder / "api.sock") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await channel.unary_unary("/door.Test/Nothing")(b"")
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_holders_are_found_wherever_the_socket_went():
    """S15: by inheritance; and not after it was closed."""
    need_root()
    assert why_not() == ""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        inode = os.fstat(ours.fileno()).st_ino
        assert far_end(inode, os.getpid()) == os.fstat(theirs.fileno()).st_ino
        argv = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(argv, pass_fds=[theirs.fileno()], **options) as child:
            child.stdout.readline()
            asked = Held(inode, child.pid)
            found = holders([asked], time.monotonic() + 20)
            child.communicate()
        assert found == {asked: {child.pid}}
        asked = Held(inode, os.getpid())
        theirs.close()
        assert holders([asked], time.monotonic() + 20) == {asked: frozenset()}


def test_a_search_that_takes_too_long_ends_with_a_refusal():
    need_root()
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs, pytest.raises(Unavailable, match="too long"):
        holders([Held(os.fstat(ours.fileno()).st_ino, os.getpid())], time.monotonic() - 1)


def test_an_agent_that_cannot_look_is_not_strict():
    """A user's agent would refuse everybody, or nobody: it says so and does not start."""
    need_root()
    code = (
        "import os; from attestors.holders import why_not; "
        "assert why_not() == ''; os.setgid(54321); os.setuid(54321); print(why_not())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "CAP_SYS_PTRACE" in said.stdout


def test_the_same_program_started_again_is_another_image():
    """S13: code and stack lie elsewhere after each execve."""
    code = "import os, sys; print(flush=True); sys.stdin.readline(); os.execv(sys.executable, [sys.executable, '-c', 'print(flush=True); import sys; sys.stdin.read()'])"  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        before = image_of(child.pid)
        assert before == image_of(child.pid)
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        after = image_of(child.pid)
        child.communicate()
    assert before.link == after.link
    assert before.layout != after.layout
