"""The front door on a Unix socket: callers are whom the kernel says, and nobody else gets in (architecture A5)."""

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial

import grpc
import pytest

from spiffe_core.errors import Unauthenticated
from spiffe_core.runtime import unix_sockets
from spiffe_core.runtime.unix_sockets import read_credentials
from spiffe_core.wire import peer as peer_module
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.front_door import FrontDoor, Limits
from spiffe_core.wire.peer import peer_pidfd_supported, unix_peer
from spiffe_core.wire.sockets import PrivateDirectory
from tests.doubles.door_service import serve

CLIENT = """
import grpc, os, sys
channel = grpc.insecure_channel(sys.argv[1])
try:
    print(channel.unary_unary("/door.Test/Who")(b"", timeout=10).decode(), os.getpid())
except grpc.RpcError as error:
    print(error.code().name, os.getpid())
"""


@pytest.fixture
async def folder():
    directory = PrivateDirectory.make()  # short enough for a socket path, whatever TMPDIR is
    directory.path.chmod(0o755)
    yield directory.path
    for left in directory.path.glob("*"):
        left.unlink()
    directory.close()


@asynccontextmanager
async def door_at(path, **limits):
    door = FrontDoor(limits=Limits(**limits))
    service, server = await serve(door)
    door.listen_unix(path)
    try:
        yield door, service
    finally:
        await server.stop(0)
        await door.close()


async def run_client(target):
    """Another process of the same user calls `target`; returns its words."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENT, target, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    return out.decode().split()


async def until(condition, seconds=10.0):
    """Await a condition that another task or process makes true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def test_the_peer_name_trick_works_with_this_grpcio(folder):
    """The canary: grpcio reports the abstract name its client end is bound to. Undocumented, so it is watched here."""
    async with door_at(folder / "api.sock") as (door, _), unix_channel(folder / "api.sock") as channel:
        told = await channel.unary_unary("/door.Test/Who")(b"")
        assert told == f"unix {os.getpid()} {os.getuid()} {os.getgid()}".encode()
        assert door.open_connections == 1
    assert door.open_connections == 0


async def test_another_process_is_known_by_its_own_number(folder):
    """WEP-17, WEP-18: the kernel names the caller, without its help."""
    async with door_at(folder / "api.sock"):
        kind, pid, uid, _gid, own = await run_client(f"unix:{folder / 'api.sock'}")
        assert (kind, pid, int(uid)) == ("unix", own, os.getuid())


async def test_a_second_process_of_the_same_user_is_unknown_on_the_private_listener(folder):
    """A5: the private listener is reachable for the same user, and answers it nothing on any service."""
    async with door_at(folder / "api.sock") as (door, service):
        assert (await run_client(door.private_target))[0] == "UNAUTHENTICATED"
        assert door.refused["unknown name"] == 1
        async with grpc.aio.insecure_channel(door.private_target) as channel:
            for method, payload in (("Who", b""), ("Echo", b"x")):
                with pytest.raises(grpc.aio.AioRpcError) as refusal:
                    await channel.unary_unary(f"/door.Test/{method}")(payload)
                assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                async for _ in channel.unary_stream("/door.Test/Stream")(b""):
                    pytest.fail("nothing may be said to an unknown name")
            assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert service.streams == 0


async def test_a_live_name_cannot_be_bound_twice_and_a_dead_one_is_forgotten(folder):
    """A5: names are visible in /proc/net/unix; knowing one is of no use."""
    async with door_at(folder / "api.sock") as (door, _), unix_channel(folder / "api.sock") as channel:
        await channel.unary_unary("/door.Test/Who")(b"")
        (name,) = door._links
        with open("/proc/net/unix") as table:
            assert f"@{name}" in table.read()
        thief = socket.socket(socket.AF_UNIX)
        with thief, pytest.raises(OSError, match="in use"):
            thief.bind("\0" + name)
        await channel.close()
        await until(lambda: name not in door._links)
        called = asyncio.get_running_loop().create_future()
        thief = socket.socket(socket.AF_UNIX)
        with thief:
            await until(lambda: bound(thief, name))
            thief.connect(door.private_target.removeprefix("unix:"))

            class Stolen:
                def peer(self):
                    return "unix-abstract:" + name

            with pytest.raises(Unauthenticated):
                door.caller_of(Stolen())
        called.cancel()


def bound(endpoint, name):
    try:
        endpoint.bind("\0" + name)
    except OSError:
        return False
    return True


async def test_a_connector_that_died_before_accept_is_refused(folder):
    """S10, N-A-32: what the kernel hands out for a dead connector is refused, whoever has its number by now."""
    if not peer_pidfd_supported():
        pytest.skip("this kernel has no SO_PEERPIDFD")
    path = folder / "api.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        code = f"import socket, os; s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r}); os._exit(0)"
        subprocess.run([sys.executable, "-c", code], check=True)
        connection, _ = listener.accept()
        with connection, pytest.raises(Unauthenticated, match="has ended"):
            unix_peer(connection)


async def test_a_dead_connector_is_refused_on_kernels_without_peer_pidfd_too(folder, monkeypatch):
    """S10, A5: the fallback opens the pidfd after accept and compares start time and uid."""
    monkeypatch.setattr(peer_module, "_SO_PEERPIDFD", 9999)
    assert not peer_pidfd_supported()
    path = folder / "api.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            connection, _ = listener.accept()
            with connection:
                known = unix_peer(connection)
                assert (known.pid, known.uid) == (os.getpid(), os.getuid())
                known.require_alive()
                known.process.close()
        code = f"import socket, os; s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r}); os._exit(0)"
        subprocess.run([sys.executable, "-c", code], check=True)
        connection, _ = listener.accept()
        with connection, pytest.raises(Unauthenticated, match="has ended"):
            unix_peer(connection)


async def test_a_number_taken_over_by_another_process_is_noticed_by_the_fallback(folder, monkeypatch):
    """S11: start times before and after differ when the number changed hands."""
    monkeypatch.setattr(peer_module, "_SO_PEERPIDFD", 9999)
    answers = iter([("100", os.getuid()), ("200", os.getuid())])
    monkeypatch.setattr(peer_module, "_start_and_uid", lambda _pid: next(answers))
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs, pytest.raises(Unauthenticated):
        unix_peer(ours)


async def test_a_process_that_ends_later_is_known_to_be_gone(folder):
    """S12: `require_alive` after every read is what makes a read worth anything."""
    path = folder / "api.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        code = f"import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r}); sys.stdin.read()"
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
        connection, _ = listener.accept()
        with connection:
            known = unix_peer(connection)
            known.require_alive()
            process.communicate()
            with pytest.raises(Unauthenticated):
                known.require_alive()
            known.process.close()


async def test_one_process_may_be_asked_about_from_several_threads_at_once(folder):
    """The loop and attestors' threads all ask the same handle; poll objects may not be shared between them."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        known = unix_peer(ours)

        def ask():
            return all(known.process.alive() for _ in range(2000))

        assert all(await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(4))))
        known.process.close()
        assert not known.process.alive()


async def test_one_user_cannot_take_every_connection(folder, monkeypatch):
    """S51: the cap is per uid, and a connection that ends makes room."""
    monkeypatch.setattr(unix_sockets, "read_credentials", partial(read_as, 4242))
    async with door_at(folder / "api.sock", connections_per_uid=3) as (door, _):
        held = [await asyncio.open_unix_connection(folder / "api.sock") for _ in range(3)]
        await until(lambda: door.open_connections == 3)
        reader, writer = await asyncio.open_unix_connection(folder / "api.sock")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        assert door.refused["too many connections"] == 1
        writer.close()
        held.pop()[1].close()
        await until(lambda: door.open_connections == 2)
        _, writer = await asyncio.open_unix_connection(folder / "api.sock")
        await until(lambda: door.open_connections == 3)
        for _, open_writer in [*held, (None, writer)]:
            open_writer.close()


def read_as(uid, raw):
    """SO_PEERCRED as another user's process would show (root's connections are not capped)."""
    return read_credentials(raw)._replace(uid=uid)


async def test_a_peer_that_says_nothing_and_one_that_reads_nothing_cost_little_and_end(folder):
    """R45, N-A-35: what waits for a peer that does not read is bounded, and it is cut off after `stall_seconds`."""
    async with door_at(folder / "api.sock", stall_seconds=0.3, buffer_bytes=16 * 1024) as (door, _):
        stuck = socket.socket(socket.AF_UNIX)
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.setblocking(False)
        stuck.connect(str(folder / "api.sock"))
        with stuck:
            await until(lambda: door.open_connections == 1)
            # Settings acknowledged for ever: grpcio answers every ping; the peer never reads the answers.
            preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
            ping = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b"12345678"
            loop = asyncio.get_running_loop()

            async def flood():
                await loop.sock_sendall(stuck, preface)
                while door.open_connections:
                    await loop.sock_sendall(stuck, ping * 200)

            with pytest.raises((ConnectionError, BrokenPipeError)):
                async with asyncio.timeout(20):
                    await flood()
                    raise ConnectionResetError
        await until(lambda: door.open_connections == 0)
        async with unix_channel(folder / "api.sock") as channel:
            assert await channel.unary_unary("/door.Test/Echo")(b"still here") == b"still here"


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        os.urandom(4096),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 512,
    ],
    ids=["http1", "tls-hello", "random", "bad-frames"],
)
async def test_what_is_not_http2_is_closed_and_others_are_served(folder, noise):
    """N-A-08: an SSRF's HTTP/1.1, a TLS hello, noise."""
    async with door_at(folder / "api.sock"):
        reader, writer = await asyncio.open_unix_connection(folder / "api.sock")
        writer.write(noise)
        await asyncio.wait_for(reader.read(), 20)
        writer.close()
        async with unix_channel(folder / "api.sock") as channel:
            assert await channel.unary_unary("/door.Test/Echo")(b"x") == b"x"


async def test_running_out_of_descriptors_is_survived(folder):
    """R14: no exit, no busy loop; service returns with the descriptors."""
    async with door_at(folder / "api.sock") as (door, _):
        async with unix_channel(folder / "api.sock") as channel:
            assert await channel.unary_unary("/door.Test/Echo")(b"x") == b"x"
        await until(lambda: door.open_connections == 0)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 2, hard))
        taken = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            client.connect(str(folder / "api.sock"))
            await until(lambda: door.refused["out of descriptors"] > 0)
        finally:
            for descriptor in taken:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        client.close()
        async with unix_channel(folder / "api.sock") as channel:
            assert await channel.unary_unary("/door.Test/Echo")(b"x") == b"x"


async def test_descriptors_do_not_leak_over_many_connections(folder):
    """S52, SPI-01-006: admitted, refused and broken connections all give their descriptors back."""
    async with door_at(folder / "api.sock") as (door, _):

        async def visit():
            _, writer = await asyncio.open_unix_connection(folder / "api.sock")
            writer.close()

        await visit()
        await until(lambda: door.open_connections == 0)
        await asyncio.sleep(0.1)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            await asyncio.gather(*(visit() for _ in range(50)))
        await until(lambda: door.open_connections == 0)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2)


async def test_what_was_said_last_is_passed_on_before_the_door_counts_as_empty(folder):
    """A7: a peer that reads late still gets everything; only then is every connection closed to its last byte."""
    async with door_at(folder / "api.sock", buffer_bytes=8 * 1024 * 1024) as (door, _):
        async with unix_channel(folder / "api.sock") as channel:
            call = asyncio.ensure_future(channel.unary_unary("/door.Test/Echo")(b"x" * 3_000_000))
            assert len(await call) == 3_000_000
            assert not await door.emptied(0.05)
        assert await door.emptied(5)
        assert not door._splices


async def test_a_door_that_stops_accepting_lets_those_inside_finish(folder):
    """A7: the ordered drain."""
    async with door_at(folder / "api.sock") as (door, _), unix_channel(folder / "api.sock") as channel:
        assert await channel.unary_unary("/door.Test/Echo")(b"a") == b"a"
        door.stop_accepting()
        assert not (folder / "api.sock").exists()
        assert await channel.unary_unary("/door.Test/Echo")(b"b") == b"b"


async def test_a_door_that_closes_cuts_those_who_were_only_awaited(folder):
    """A7: a peer that got everything and has not closed its own end keeps no socket of ours open."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        async with door_at(folder / "api.sock") as (door, _):
            client.connect(str(folder / "api.sock"))
            await until(lambda: door.open_connections == 1)
            (splice,) = door._splices
            await until(lambda: splice.near.transport is not None)
            splice.end()
            await until(lambda: splice.far.transport is None)
            assert door._splices == {splice}, "the peer has not closed yet"
            near = splice.near.transport.get_extra_info("socket")
        assert not door._splices
        assert near.fileno() == -1
        while await loop.sock_recv(client, 4096):
            pass


async def test_a_connection_taken_in_the_moment_of_closing_is_closed(folder):
    """A task that is cancelled before it began leaves no descriptor behind."""
    loop = asyncio.get_running_loop()
    door = FrontDoor()
    door.listen_unix(folder / "api.sock")
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        client.connect(str(folder / "api.sock"))
        door._acceptors[0]._ready()
        assert len(door._tasks) == 1
        await door.close()
        assert await asyncio.wait_for(loop.sock_recv(client, 1), 5) == b""
