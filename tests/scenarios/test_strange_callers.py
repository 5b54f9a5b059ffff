"""Callers that are not what they seem, before real agents (S10, S16, S17, N-A-32, N-A-34)."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.demo.stack import BIN, Daemon, LocalStack
from spiffe_core.wire.sockets import PrivateDirectory
from tests.doubles.privileges import need_namespaces, need_root
from tests.doubles.raw_call import RawCall, fetch, read

USER, OTHER = 54321, 54322
ROOT = Path(__file__).parents[2]
PERL = shutil.which("perl")
ASK = "import sys; from tests.doubles.raw_call import fetch; print(fetch(sys.argv[1]))"
RELAY = """
use IO::Socket::UNIX;
$| = 1; my ($path) = $ARGV[0] =~ /(.*)/;
my $s = IO::Socket::UNIX->new(Peer => $path) or die "$!";
sysread(STDIN, my $ask, 65536); syswrite($s, $ask);
while (sysread($s, my $part, 65536)) { syswrite(STDOUT, $part); }
"""


def until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"it did not happen within {seconds:.0f} s"
        time.sleep(0.01)


ENTRIES = {
    "/root": "unix:uid:0",
    "/user": f"unix:uid:{USER}",
    "/other": f"unix:uid:{OTHER}",
    "/nobody": "unix:uid:65534",
}


@pytest.fixture(scope="module")
def usual():
    need_root()
    with LocalStack("strange.test", sync_interval="200ms") as stack:
        stack.folder.chmod(0o711)  # other users are to reach the sockets
        stack.start_server()
        for path, selector in ENTRIES.items():
            stack.register(path, selector)
        stack.trusted = shutil.copy(shutil.which("sleep"), stack.folder / "trusted")
        stack.register("/trusted", f"unix:path:{stack.trusted}")
        stack.prepare_join()
        stack.start_agent()
        until(lambda: fetch(stack.api_socket).get("ids") == ["/root"])
        yield stack


@contextmanager
def another_agent(stack, name, *prefix):
    """One more node below the same server, whose agent is begun by `prefix`; it and its socket."""
    folder = stack.folder / name
    folder.mkdir(0o755)
    stack.prepare_join()
    for file in ("bundle.pem", "token"):
        shutil.copy2(stack.folder / file, folder)
    config = folder / "agent.toml"
    config.write_text(stack.agent_config.read_text().replace(str(stack.folder), str(folder)))
    daemon = Daemon([*prefix, str(BIN / "node-agent"), "run", "--config", str(config)], folder / "agent.log")
    try:
        until(lambda: "joined the trust domain" in daemon.log.read_text())
        yield daemon, folder / "agent" / "api.sock"
    finally:
        daemon.stop()


class Relay:
    """A caller in another program: what it is sent goes to the agent, and what the agent says comes back."""

    def __init__(self, path, *argv, **options):
        command = [*argv, str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)

    def fileno(self):
        return self.process.stdout.fileno()

    def recv(self, size):
        return os.read(self.fileno(), size)

    def sendall(self, data):
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def fetch(self):
        call = RawCall()
        try:
            self.sendall(call.hello() + call.request())
            return read(call, self, answer=False)
        finally:
            self.process.kill()
            self.process.communicate()


def need_perl():
    if PERL is None:
        pytest.skip("perl, a program with an interpreter that others than root may run, is missing")


def test_numbers_are_used_again_until_the_dead_connectors_belongs_to_another():
    """S10, N-A-32, A5: the fork loop, with the kernel's pidfd and as on kernels that have none."""
    need_root()
    need_namespaces("--pid", "--fork", "--mount-proc")
    folder = PrivateDirectory.make()
    path = folder.path / "reuse.sock"
    argv = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-m", "tests.doubles.pid_reuse", str(path)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=55, check=False)
    finally:
        path.unlink(missing_ok=True)
        folder.close()
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert set(said["verdicts"].values()) == {"the calling process has ended"}, said


def test_a_program_that_gets_the_number_of_a_dead_caller_gets_nothing_else_of_it(usual):
    """S10: the whole way. The caller asks, ends, and a trusted program runs under its number when the agent looks."""
    counter = Path("/proc/sys/kernel/ns_last_pid")
    if not counter.exists():
        pytest.skip("this kernel cannot be told which process number comes next (CONFIG_CHECKPOINT_RESTORE)")
    connect = "import socket, sys; socket.socket(fileno=int(sys.argv[1])).connect(sys.argv[2])"
    usual.agent.process.send_signal(signal.SIGSTOP)
    with socket.socket(socket.AF_UNIX) as ours:
        heir = None
        try:
            argv = [sys.executable, "-c", connect, str(ours.fileno()), str(usual.api_socket)]
            with subprocess.Popen(argv, pass_fds=[ours.fileno()]) as connector:
                assert connector.wait(20) == 0
            call = RawCall()
            ours.sendall(call.hello() + call.request())
            for _ in range(500):  # others on this machine start processes, too
                counter.write_text(str(connector.pid - 1))
                heir = subprocess.Popen([usual.trusted, "60"])
                if heir.pid == connector.pid:
                    break
                heir.kill()
                heir.wait()
            assert heir.pid == connector.pid, "the number was never given again"
            usual.agent.process.send_signal(signal.SIGCONT)
            assert read(call, ours) == {"closed": True}
        finally:
            usual.agent.process.send_signal(signal.SIGCONT)
            if heir is not None:
                heir.kill()
                heir.wait()


def test_a_set_user_id_program_is_who_it_became(usual):
    """S16: a real one; the user that started it gets nothing of it, and nothing of its own by it."""
    need_perl()
    program = Path(shutil.copy(PERL, usual.folder / "perl"))
    os.chown(program, USER, USER)
    program.chmod(0o4755)
    if os.statvfs(program).f_flag & os.ST_NOSUID:
        pytest.skip(f"{usual.folder} is on a file system without set-user-ID programs")
    assert program.stat().st_mode & stat.S_ISUID
    script = usual.folder / "relay.pl"
    script.write_text(RELAY)
    assert Relay(usual.api_socket, program, script, user=OTHER, group=OTHER).fetch() == {"ids": ["/user"]}
    assert Relay(usual.api_socket, PERL, script, user=OTHER, group=OTHER).fetch() == {"ids": ["/other"]}


def test_a_process_with_another_effective_user_is_that_user(usual):
    """S16."""
    code = f"import os, sys; from tests.doubles.raw_call import fetch; os.seteuid({USER}); print(fetch(sys.argv[1]))"
    argv = [sys.executable, "-c", code, str(usual.api_socket)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=True, timeout=30)
    assert done.stdout == "{'ids': ['/user']}\n"


def test_root_of_a_user_namespace_is_the_user_that_made_it(usual):
    """S16, N-A-34."""
    need_perl()
    need_namespaces("--user", "--map-root-user")
    script = usual.folder / "relay.pl"
    script.write_text(RELAY)
    argv = ["unshare", "--user", "--map-root-user", PERL, str(script)]
    assert Relay(usual.api_socket, *argv, user=USER, group=USER, extra_groups=[]).fetch() == {"ids": ["/user"]}


def test_a_caller_in_a_pid_namespace_below_is_seen(usual):
    """S17, N-A-34: as containers are, from the node."""
    need_namespaces("--pid", "--fork", "--mount-proc")
    argv = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", ASK, str(usual.api_socket)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=True, timeout=30)
    assert done.stdout == "{'ids': ['/root']}\n"


def test_a_caller_outside_of_the_agents_pid_namespace_is_refused(usual):
    """S17, N-A-34: its number is 0 there; nobody gets an identity by default."""
    need_namespaces("--pid", "--fork", "--mount-proc")
    prefix = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGTERM")
    with another_agent(usual, "pids", *prefix) as (daemon, path):
        assert fetch(path) == {"closed": True}
        inner = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()[0]
        enter = ["nsenter", "--target", inner, "--pid", "--mount", sys.executable, "-c", ASK, str(path)]
        env = os.environ | {"PYTHONPATH": str(ROOT)}

        def served():
            done = subprocess.run(enter, capture_output=True, text=True, env=env, check=True, timeout=30)
            return done.stdout == "{'ids': ['/root']}\n"

        until(served)
        assert fetch(path) == {"closed": True}
        assert "cannot be seen from the agent's PID namespace" in daemon.log.read_text()
        os.kill(int(inner), signal.SIGTERM)
        daemon.process.wait(20)


def test_an_agent_in_a_user_namespace_takes_nobody_for_somebody(usual):
    """S16, N-A-34: users that are not mapped there all look like 65534, which is the number of no entry then."""
    need_perl()
    need_namespaces("--user", "--map-root-user")
    with another_agent(usual, "users", "unshare", "--user", "--map-root-user") as (_, path):
        until(lambda: fetch(path).get("ids") == ["/root"])
        script = usual.folder / "relay.pl"
        script.write_text(RELAY)
        answer = Relay(path, PERL, str(script), user=USER, group=USER, extra_groups=[]).fetch()
        assert answer["status"] == 7
        assert answer["text"].startswith("no identity issued (")
