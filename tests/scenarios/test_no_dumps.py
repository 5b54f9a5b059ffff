"""S72, issue item "core dumps off": neither daemon leaves its keys in a core file or shows its memory to its own user."""

import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.demo.stack import BIN, Daemon, LocalStack
from tests.doubles.privileges import need_root

GROUP = 54322
AS_GROUP = ("setpriv", f"--regid={GROUP}", "--clear-groups")


def core_limit(pid):
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    (core,) = [line for line in lines if line.startswith("Max core file size")]
    return core.split()[4:6]


def dumpable(pid):
    """The files of a process that may not be dumped or traced belong to root's group, whatever its own (proc(5))."""
    return Path(f"/proc/{pid}/environ").stat().st_gid == GROUP


def test_daemons_cannot_be_dumped_or_traced():
    """RLIMIT_CORE is 0 for good, and PR_SET_DUMPABLE keeps others of the same user out; an ordinary process shows both."""
    need_root()
    if not shutil.which("setpriv"):
        pytest.skip("setpriv(1), by which a daemon gets a group of its own, is missing")
    with subprocess.Popen([*AS_GROUP, "sleep", "60"]) as ordinary:
        while Path(f"/proc/{ordinary.pid}/comm").read_text() != "sleep\n":
            assert ordinary.poll() is None
        assert dumpable(ordinary.pid)
        ordinary.kill()
    with LocalStack("dumps.test") as stack:
        server = [*AS_GROUP, str(BIN / "identity-server"), "run", "--config", str(stack.server_config)]
        stack.server = Daemon(server, stack.folder / "server.log")
        stack.server.wait_serving(stack.admin_socket)
        stack.prepare_join()
        agent = [*AS_GROUP, str(BIN / "node-agent"), "run", "--config", str(stack.agent_config)]
        stack.agent = Daemon(agent, stack.folder / "agent.log")
        stack.agent.wait_serving(stack.api_socket)
        for daemon in (stack.server, stack.agent):
            assert core_limit(daemon.pid) == ["0", "0"]
            assert not dumpable(daemon.pid)
