"""Agents that are killed, stopped or misplaced, as real processes (R3, R5, R6, R43, N-A-38, S70, S71)."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import time
from collections import Counter
from contextlib import contextmanager

import grpc
import pytest

from deploy.demo.stack import BIN, LocalStack
from spiffe_core.errors import Unavailable
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.services import Stub
from tests.doubles.cpu_time import cpu_seconds, ended_children
from workload_api.client import METADATA, WorkloadApiClient
from workload_api.service import SERVICE

OWN = f"unix:uid:{os.getuid()}"


def agents_of(stack):
    return [agent["id"]["path"] for agent in stack.admin_json("agent", "list")["agents"]]


def wait_for_change(path, before, seconds=20.0):
    """Return at the very moment the file is replaced."""
    deadline = time.monotonic() + seconds
    while path.stat().st_ino == before:
        assert time.monotonic() < deadline, "the state was never stored anew"
        time.sleep(0.0005)


@pytest.mark.slow
def test_kill_9_at_the_moment_of_rotation_loses_nothing():
    """R3: killed right after the new SVID was stored, again and again; the token is used up, so no attestation helps."""
    with LocalStack("crash.test", server='[svid]\nagent_ttl = "12s"', sync_interval="300ms") as stack:
        stack.start()
        (identity,) = agents_of(stack)
        state = stack.folder / "agent-data" / "agent-state.json"
        for _ in range(3):
            wait_for_change(state, state.stat().st_ino)
            stack.agent.kill()
            begin = time.monotonic()
            stack.start_agent()
            assert time.monotonic() - begin < 5
        assert agents_of(stack) == [identity]
        assert "joined the trust domain" not in stack.agent.tail(1000).partition("restored")[2]


async def test_streams_survive_a_kill_9_of_the_agent():
    """R5: clients come back by themselves and are served within seconds; the same node identity, no stampede."""
    with LocalStack("crash.test", sync_interval="300ms") as stack:
        await asyncio.to_thread(stack.start)
        stack.register("/web", OWN)
        async with WorkloadApiClient(f"unix://{stack.api_socket}") as client:
            updates = client.watch_x509()
            first = await next_context(updates)
            stack.agent.kill()
            begin = time.monotonic()
            stack.spawn_agent()
            again = await next_context(updates)
            assert time.monotonic() - begin < 10
            assert again.svids[0].spiffe_id == first.svids[0].spiffe_id
            assert again.svids[0].key != first.svids[0].key
            await updates.aclose()


async def next_context(updates):
    async with asyncio.timeout(20):
        async for context in updates:
            if hasattr(context, "svids"):
                return context
    raise AssertionError("the watch ended")


@pytest.mark.slow
async def test_sigterm_with_a_thousand_idle_streams_takes_less_than_a_second():
    """R6: each of the thousand streams ends Unavailable with "restarting"; exit code 0."""
    with LocalStack("stop.test", sync_interval="300ms") as stack:
        await asyncio.to_thread(stack.start)
        stack.register("/web", OWN)
        async with WorkloadApiClient(f"unix://{stack.api_socket}") as client:
            updates = client.watch_x509()
            await next_context(updates)
            await updates.aclose()
        channels = [unix_channel(stack.api_socket) for _ in range(10)]
        stubs = [Stub(channel, SERVICE) for channel in channels]
        streams = [
            stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=METADATA) for stub in stubs for _ in range(100)
        ]
        await asyncio.gather(*(stream.read() for stream in streams))
        begin, used = time.monotonic(), ended_children() + cpu_seconds(stack.agent.pid)
        stack.agent.process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(stack.agent.process.wait, 20)
        took, used = time.monotonic() - begin, ended_children() - used
        codes = Counter([await stream.code() for stream in streams])
        ends = Counter([await stream.details() for stream in streams])
        for channel in channels:
            await channel.close()
        assert code == 0
        assert codes == {grpc.StatusCode.UNAVAILABLE: 1000}
        assert ends == {"restarting": 1000}
        # A7's one second, as work: tests beside this one make it longer, a wait for the streams' own ends would too.
        assert used < 1.0, f"{used:.2f} s of CPU"
        assert took < 5, took


def test_a_restart_takes_no_attestation_and_leaves_private_files():
    """R43, S70: the token file may even be gone; directory 0700, files 0600, socket directory 0755."""
    before = os.umask(0)
    try:
        with LocalStack("restart.test", sync_interval="300ms") as stack:
            stack.start()
            assert stack.agent.stop() == 0
            (stack.folder / "token").unlink()
            stack.start_agent()
            data = stack.folder / "agent-data"
            assert stat.S_IMODE(data.stat().st_mode) == 0o700
            assert {stat.S_IMODE(one.stat().st_mode) for one in data.iterdir()} == {0o600}
            assert stat.S_IMODE(stack.api_socket.parent.stat().st_mode) == 0o755
            assert stat.S_IMODE(stack.api_socket.stat().st_mode) == 0o777
    finally:
        os.umask(before)


@pytest.fixture
def lonely():
    """A stack without a server: enough to start an agent that waits for one."""
    with LocalStack("lonely.test", agent="insecure_bootstrap = true") as stack:
        text = stack.agent_config.read_text()
        stack.agent_config.write_text(text.replace(f'trust_bundle_path = "{stack.folder}/bundle.pem"\n', ""))
        yield stack


def start(stack):
    argv = [str(BIN / "node-agent"), "run", "--config", str(stack.agent_config)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)


@contextmanager
def regular_file(path):
    path.write_text("precious")
    yield


@contextmanager
def link(path):
    path.symlink_to("/tmp/elsewhere")
    yield


@contextmanager
def live_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield


@pytest.mark.parametrize(
    ("plant", "text"),
    [(regular_file, "is not a socket"), (link, "symbolic link"), (live_socket, "in use by another running process")],
)
def test_what_stands_at_the_sockets_path_is_left_alone_and_named(lonely, plant, text):
    """N-A-38, S71: exit code 1, the path, the rule."""
    lonely.api_socket.parent.mkdir(mode=0o755)
    with plant(lonely.api_socket):
        before = lonely.api_socket.lstat()
        done = start(lonely)
        after = lonely.api_socket.lstat()
    assert done.returncode == 1
    assert str(lonely.api_socket) in done.stderr
    assert text in done.stderr
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)


def test_a_state_file_that_was_damaged_stops_the_agent_and_stays(lonely):
    """R8: never a silent new identity."""
    data = lonely.folder / "agent-data"
    data.mkdir(mode=0o700)
    state = data / "agent-state.json"
    state.write_text("{")
    state.chmod(0o600)
    done = start(lonely)
    assert done.returncode == 1
    assert str(state) in done.stderr
    assert state.read_text() == "{"


async def test_an_agent_without_its_server_is_up_and_says_so(lonely):
    """N-A-24, R25-like: the socket answers Unavailable, the process stays, SIGTERM ends it in order."""
    agent = lonely.spawn_agent()
    async with WorkloadApiClient(f"unix://{lonely.api_socket}") as client:
        async with asyncio.timeout(15):
            while "serving workloads of" not in agent.tail(100):
                await asyncio.sleep(0.02)
        with pytest.raises(Unavailable, match="first synchronisation"):
            await client.fetch_x509()
    assert agent.stop() == 0
    assert not lonely.api_socket.exists()
    assert "INSECURE" in agent.tail(100)
