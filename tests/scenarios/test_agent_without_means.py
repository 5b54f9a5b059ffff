"""Agents that run out of descriptors or disk, as real processes (R11, R13, R14).

Each has what it needs again at the end, and serves within a minute, by itself.
"""

import os
import resource
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager

import pytest

from tests.doubles.cpu_time import cpu_seconds
from tests.doubles.shifted_clock import ShiftedStack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120, func_only=True)]


def descriptors(pid):
    return {int(name) for name in os.listdir(f"/proc/{pid}/fd")}


def test_an_agent_out_of_descriptors_neither_ends_nor_spins_and_comes_back():
    """R14: no descriptor for a caller, for /proc, for the server or for its state; then there are some again."""
    with ShiftedStack(pop=True, shifted=False) as stack:
        stack.begin()
        pid = stack.agent.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        stack.server.stop()
        stack.until(lambda: stack.health()["agent.sync"]["state"] == "degraded")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(descriptors(pid)) + 3, limits[1]))
        with ExitStack() as callers:
            for _ in range(32):
                caller = callers.enter_context(socket.socket(socket.AF_UNIX))
                caller.connect(str(stack.api_socket))
            stack.until(lambda: "cannot accept" in stack.agent.tail(1000))
            stack.start_server()
            before = cpu_seconds(pid)
            time.sleep(3)
            assert cpu_seconds(pid) - before < 1.5
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        stack.until(lambda: stack.health()["agent.sync"]["state"] == "ok")
        assert stack.until(stack.svid)


@contextmanager
def small_disk(path):
    """A file system of its own, of 128 KiB, at `path`."""
    path.mkdir(mode=0o700, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k,mode=0700", "none", path], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting a file system takes root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def mount(*words):
    subprocess.run(["mount", *words], check=True)


def test_an_agent_whose_disk_fails_serves_on_and_stores_when_it_can():
    """R11, R13: evicted while the disk is full, and again while it is read-only, it attests from memory."""
    with ShiftedStack(pop=True, shifted=False) as stack, small_disk(stack.folder / "agent-data") as disk:
        stack.begin()
        filler = disk / "filler"
        with unstored(stack, disk / "agent-state.json"):
            with pytest.raises(OSError, match="space"):
                filler.write_bytes(bytes(1 << 20))
            evict_and_return(stack)
            filler.unlink()
        with unstored(stack, disk / "agent-state.json"):
            mount("--bind", disk, disk)  # over it, because its lock is open for writing
            mount("-o", "remount,bind,ro", disk)
            evict_and_return(stack)
            subprocess.run(["umount", disk], check=True)
        stack.agent.stop()


@contextmanager
def unstored(stack, state):
    """What is stored before differs from what is stored after; meanwhile nothing was."""
    stored = state.read_bytes()
    yield
    stack.until(lambda: stack.health()["agent.state"]["state"] == "ok")
    assert state.read_bytes() != stored


def evict_and_return(stack):
    """The server forgets the agent, which has to get a new SVID that it cannot store."""
    stack.evict(stack.agents()[0].id.path)
    stack.until(stack.agents)
    stack.until(lambda: stack.health()["agent.state"]["state"] == "degraded")
    assert "a restart would lose it" in stack.health()["agent.state"]["trouble"]
    stack.until(lambda: stack.health()["agent.svid"]["phase"] == "joined")
    assert stack.svid()
