"""A program on a file system that its user answers for, and that stops answering (S18, S40, N-A-25)."""

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from attestors.workload.unix import UnixAttestor
from node_agent.services.attest_workload import AttestWorkload
from spiffe_core.clock import SystemClock
from spiffe_core.errors import Unavailable
from spiffe_core.wire.peer import ProcessHandle, UnixPeer
from tests.doubles.fuse import OneProgram, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "mount"
    folder.mkdir()
    served = OneProgram(folder, Path(shutil.which("sleep")).read_bytes())
    yield served
    served.close()


@pytest.fixture
def peer(files):
    """A process that runs the program of the file system."""
    child = subprocess.Popen([str(files.program), "60"], stdin=subprocess.DEVNULL)
    peer = UnixPeer(child.pid, os.geteuid(), os.getegid(), ProcessHandle(child.pid, os.pidfd_open(child.pid)))
    yield peer
    files.go_on.set()
    child.kill()
    child.wait()
    peer.process.close()


def test_a_file_system_that_stops_answering_never_holds_up_the_loop(files, peer):
    """A7: what is asked at once needs no answer of it, and says nothing about its file: that takes a thread."""
    attestor = UnixAttestor()
    found = attestor.attest(peer, time.monotonic() + 20)
    assert any(one.value == f"path:{files.program}" for one in found.selectors)
    assert any(one.value.startswith("sha256:") for one in found.selectors)
    files.hold.set()
    answers = []
    asking = threading.Thread(target=lambda: answers.append(attestor.attest_at_once(peer)), daemon=True)
    asking.start()
    asking.join(20)
    assert answers == [None]
    assert not files.held.is_set(), "the file system was asked"


async def test_its_caller_waits_for_its_own_budget_and_nobody_else(files, peer):
    """A7, S40: the reading hangs on a thread; another process is answered meanwhile."""
    attest = AttestWorkload([UnixAttestor()], clock=SystemClock(), budget=0.3)
    own = UnixPeer(os.getpid(), os.geteuid(), os.getegid(), ProcessHandle(os.getpid(), os.pidfd_open(os.getpid())))
    files.hold.set()
    with pytest.raises(Unavailable):
        await attest(peer)
    assert files.held.is_set()
    assert await attest(own)
    own.process.close()
