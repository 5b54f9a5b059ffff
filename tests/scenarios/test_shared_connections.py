"""Whose is a connection? Real processes that inherit, pass on and exec with sockets, before a real agent (S12 to S15).

By default the identity is that of the process that connected; `strict = true` wants it to be alone and unchanged.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.demo.stack import LocalStack
from tests.doubles.privileges import need_namespaces, need_root
from tests.doubles.raw_call import RawCall, connected, fetch, read, settled

UNAUTHENTICATED = 16
USER = 54321
SLEEP = shutil.which("sleep")
ROOT = Path(__file__).parents[2]

CONNECT = "import os, socket, sys; s = socket.socket(fileno=int(sys.argv[1])); s.connect(sys.argv[2]); "
TELL = "print('done', flush=True); sys.stdin.readline(); "


@contextmanager
def agent(**settings):
    need_root()
    text = "\n".join(f"{key} = {value}" for key, value in settings.items())
    with LocalStack("callers.test", sync_interval="200ms", agent=text) as stack:
        stack.folder.chmod(0o711)  # other users are to reach the socket
        trusted = stack.folder / "trusted"
        shutil.copy(SLEEP, trusted)
        stack.trusted = trusted
        stack.start()
        stack.register("/trusted", f"unix:path:{trusted}")
        stack.register("/user", f"unix:uid:{USER}")
        stack.register("/root", "unix:uid:0")
        until(lambda: fetch(stack.api_socket).get("ids") == ["/root"])
        yield stack


@pytest.fixture(scope="module")
def usual():
    with agent() as stack:
        yield stack


@pytest.fixture(scope="module")
def strict():
    with agent(strict="true") as stack:
        yield stack


def until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"it did not happen within {seconds:.0f} s"
        time.sleep(0.01)


@contextmanager
def child(code, *arguments, **options):
    """A Python process that says "done" at each of its steps and goes on with a line from us."""
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def step(process):
    assert process.stdout.readline() == b"done\n"


def go_on(process):
    process.stdin.write(b"\n")
    process.stdin.flush()


@contextmanager
def connected_by_a_child(stack, after="sys.stdin.read()", **options):
    """A socket of ours that a child connected: for the kernel it is the child's."""
    ours = socket.socket(socket.AF_UNIX)
    ours.set_inheritable(True)
    code = CONNECT + TELL + after
    arguments = (ours.fileno(), stack.api_socket, stack.trusted)
    with ours, child(code, *arguments, pass_fds=[ours.fileno()], **options) as process:
        step(process)
        yield ours, process


BECOME_TRUSTED = "s.set_inheritable(True); os.execv(sys.argv[3], [sys.argv[3], '60'])"


def runs(process, program):
    return os.path.samefile(f"/proc/{process.pid}/exe", program)


@contextmanager
def stopped(daemon):
    """The daemon sees nothing of what happens in the block until its end."""
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        yield
    finally:
        daemon.process.send_signal(signal.SIGCONT)


def test_by_default_a_shared_socket_speaks_for_the_process_that_connected(usual):
    """S15, N-A-33: as docs/security-model.md says."""
    with connected_by_a_child(usual) as (ours, process):
        call = RawCall()
        ours.sendall(call.hello() + call.request())
        assert read(call, ours) == {"ids": ["/root"]}
        process.kill()
        process.wait()
        ours.sendall(call.request())
        assert read(call, ours) in (
            {"closed": True},
            {"status": UNAUTHENTICATED, "text": "the calling process has ended"},
        )


def test_by_default_an_exec_swap_works_within_a_user_and_is_logged(usual):
    """S14: whoever runs as a user is that user; a path does not tell wills apart. The log tells of the change."""
    with connected_by_a_child(usual, BECOME_TRUSTED) as (ours, process):
        call = RawCall()
        settled(call, ours)
        go_on(process)
        until(lambda: runs(process, usual.trusted))
        ours.sendall(call.request())
        assert read(call, ours) == {"ids": ["/root", "/trusted"]}
    assert "runs another program than when it connected" in usual.agent.log.read_text()


def test_a_process_that_ends_before_it_is_looked_at_gets_nothing(usual):
    """S10, S12, N-A-32: though another still holds its socket and the request was sent in time."""
    with stopped(usual.agent), connected_by_a_child(usual, "pass") as (ours, process):
        call = RawCall()
        ours.sendall(call.hello() + call.request())
        go_on(process)
        process.wait(20)
        kept = ours.dup()
    with kept:
        assert read(call, kept) == {"closed": True}


def test_strict_lets_honest_callers_in(strict):
    """Also those that start children all the time: between fork and exec a child holds everything of its parent's."""
    assert fetch(strict.api_socket) == {"ids": ["/root"]}
    code = "import subprocess, sys\nwhile True: subprocess.run([sys.argv[1], '0'], close_fds=False)"
    script = (
        f"import sys, threading; threading.Thread(target=lambda: exec({code!r}), daemon=True).start()\n"
        "from tests.doubles.raw_call import *\n"
        "print([fetch(sys.argv[2]) for _ in range(20)] == [{'ids': ['/root']}] * 20)"
    )
    argv = [sys.executable, "-c", script, SLEEP, str(strict.api_socket)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT, timeout=50)
    assert done.stdout == "True\n", done.stdout


def test_strict_cuts_who_writes_into_anothers_connection(strict):
    """S15, N-A-33: the kernel says who wrote; nothing of it is passed on."""
    with connected_by_a_child(strict) as (ours, _):
        call = RawCall()
        ours.sendall(call.hello() + call.request())
        assert read(call, ours) == {"closed": True}
    until(lambda: "another process than the one that made it wrote into it" in strict.agent.log.read_text())


ASK = "from tests.doubles.raw_call import RawCall; c = RawCall(); s.sendall(c.hello() + c.request()); "


def test_strict_refuses_a_connection_that_another_process_listens_to(strict):
    """S15, N-A-33: the one that connected asks, and another holds the socket too; alone it would be served."""
    with connected_by_a_child(strict, ASK + TELL + "sys.stdin.read()") as (ours, process):
        go_on(process)
        step(process)
        answer = read(RawCall.listening(), ours, answer=False)
        assert answer["status"] == UNAUTHENTICATED
        assert "another process holds this connection" in answer["text"]


def test_strict_serves_a_connection_once_the_others_have_let_go(strict):
    """N-A-33: a copy that was closed is none."""
    tail = ASK + "from tests.doubles.raw_call import read; print(read(c, s)); "
    with connected_by_a_child(strict, tail) as (ours, process):
        ours.close()
        go_on(process)
        assert process.stdout.readline() == b"{'ids': ['/root']}\n"


PASS_ON = (
    "import os, socket, sys; from tests.doubles.raw_call import connected; "
    f"os.setgid({USER}); os.setuid({USER}); s = connected(sys.argv[1]); "
    "socket.send_fds(socket.socket(fileno=int(sys.argv[2])), [b'x'], [s.fileno()]); " + TELL
)


def test_strict_refuses_a_socket_that_was_passed_to_another_user(strict):
    """S15: SCM_RIGHTS from one user to another."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    code = PASS_ON + ASK + TELL
    with ours, theirs, child(code, strict.api_socket, theirs.fileno(), pass_fds=[theirs.fileno()]) as process:
        step(process)
        _, (passed,), _, _ = socket.recv_fds(ours, 1, 1)
        with socket.socket(fileno=passed) as connection:
            go_on(process)
            step(process)
            assert read(RawCall.listening(), connection, answer=False)["status"] == UNAUTHENTICATED


def test_by_default_a_passed_socket_speaks_for_the_user_that_connected(usual):
    """S15: never for the one that holds it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    code = PASS_ON
    with ours, theirs, child(code, usual.api_socket, theirs.fileno(), pass_fds=[theirs.fileno()]) as process:
        step(process)
        _, (passed,), _, _ = socket.recv_fds(ours, 1, 1)
        with socket.socket(fileno=passed) as connection:
            call = RawCall()
            connection.sendall(call.hello() + call.request())
            assert read(call, connection) == {"ids": ["/user"]}


def test_strict_refuses_an_exec_swap_however_early(strict):
    """S14: the child asks and becomes the trusted program before the agent has even accepted; the parent listens."""
    with stopped(strict.agent), connected_by_a_child(strict, ASK + BECOME_TRUSTED) as (ours, process):
        go_on(process)
        until(lambda: runs(process, strict.trusted))
        strict.agent.process.send_signal(signal.SIGCONT)
        answer = read(RawCall.listening(), ours, answer=False)
        assert answer["status"] == UNAUTHENTICATED
        assert "another process holds this connection" in answer["text"]


@pytest.mark.parametrize("program", ["another", "the-same"])
def test_strict_refuses_a_process_that_execs_after_it_connected(strict, program):
    """S13: alone with its socket, asking itself; even the same program again is a new one."""
    again = (
        "import os, socket, sys; from tests.doubles.raw_call import *\n"
        "s, c = socket.socket(fileno=int(sys.argv[1])), RawCall.going_on(); s.sendall(c.request()); print(read(c, s))"
    )
    interpreter = os.path.realpath(sys.executable)
    if program == "another":
        interpreter = shutil.copy(interpreter, strict.folder / "python")
    code = (
        "import os, socket, sys; from tests.doubles.raw_call import *\n"
        "s, c = connected(sys.argv[1]), RawCall(); settled(c, s); s.set_inheritable(True)\n"
        f"os.environ['PYTHONPATH'] = os.pathsep.join(sys.path)\n"
        f"os.execv({str(interpreter)!r}, ['python', '-c', {again!r}, str(s.fileno())])"
    )
    with child(code, strict.api_socket) as process:
        said = process.stdout.readline().decode()
    assert f"'status': {UNAUTHENTICATED}" in said
    assert "has started another program since it connected" in said


def test_strict_refuses_a_program_that_was_removed_or_replaced(strict, usual):
    """S18: by default such a process keeps what needs no path."""
    code = "import sys; from tests.doubles.raw_call import fetch; sys.stdin.readline(); print(fetch(sys.argv[1]))"
    said = []
    for stack in (usual, strict):
        program = shutil.copy(os.path.realpath(sys.executable), stack.folder / "soon-gone")
        env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        argv = [program, "-c", code, str(stack.api_socket)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=ROOT) as process:
            Path(program).unlink()
            said.append(process.communicate(b"\n", timeout=30)[0].decode())
    assert said[0] == "{'ids': ['/root']}\n"
    assert f"'status': {UNAUTHENTICATED}" in said[1]
    assert "was removed or replaced" in said[1]


def test_strict_finds_connections_of_other_networks(strict):
    """S15: a container with a network namespace of its own; one that shares its socket there is refused as well."""
    need_namespaces("--net")
    code = "import sys; from tests.doubles.raw_call import fetch; print(fetch(sys.argv[1]))"
    argv = ["unshare", "--net", sys.executable, "-c", code, str(strict.api_socket)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT, timeout=30)
    assert done.stdout == "{'ids': ['/root']}\n"
    code = (
        "import os, sys; from tests.doubles.raw_call import *\n"
        "s, c = connected(sys.argv[1]), RawCall(); r, w = os.pipe()\n"
        "if not os.fork(): os.close(w); os.read(r, 1); os._exit(0)\n"
        "s.sendall(c.hello() + c.request()); print(read(c, s)); os.close(w); os.wait()"
    )
    done = subprocess.run([*argv[:3], "-c", code, argv[-1]], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "another process holds this connection" in done.stdout


def test_strict_has_room_for_streams_that_last(strict):
    """WAPI-09: the strict transport carries updates, and an end of the stream."""
    with connected(strict.api_socket) as connection:
        call = RawCall()
        connection.sendall(call.hello() + call.request())
        assert read(call, connection) == {"ids": ["/root"]}
        call.outcome, call._message = None, b""
        entry = strict.register("/second", "unix:uid:0")
        assert read(call, connection) == {"ids": ["/root", "/second"]}
        strict.admin("entry", "delete", "-entryID", entry)
