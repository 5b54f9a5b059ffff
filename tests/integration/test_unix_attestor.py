"""The unix attestor against real processes."""

import asyncio
import grp
import hashlib
import os
import pwd
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from attestors.procfs import ProcFs
from attestors.registry import WORKLOAD_ATTESTORS
from attestors.workload.unix import UnixAttestor, UnixPorts, UnixSettings
from spiffe_core.errors import Unauthenticated, Unavailable
from spiffe_core.wire.peer import ProcessHandle, UnixPeer, named_process, unix_peer

SLEEP = shutil.which("sleep")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


@contextmanager
def process(*command, **options):
    """A child and the peer it would be; the child is gone afterwards."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **options)
    peer = UnixPeer(
        child.pid,
        options.get("user", os.geteuid()),
        options.get("group", os.getegid()),
        ProcessHandle(child.pid, os.pidfd_open(child.pid)),
    )
    try:
        yield child, peer
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        peer.process.close()


def running(child, program):
    """Wait until the child has executed `program` (Popen returns after exec has succeeded)."""
    assert os.path.samefile(f"/proc/{child.pid}/exe", program)


def attest(peer, **settings):
    return UnixAttestor(UnixSettings(**settings)).attest(peer, time.monotonic() + 10)


def values(findings):
    return {selector.value for selector in findings.selectors}


def sha256(path):
    return f"sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()}"


@pytest.fixture
def program(tmp_path):
    """A program of our own at a path of our own."""
    copy = tmp_path / "program"
    shutil.copy(SLEEP, copy)
    return copy


def test_a_process_is_what_it_is(program):
    """WEP-17, WEP-18: without its help."""
    with process(str(program), "60") as (child, peer):
        running(child, program)
        found = values(attest(peer))
    assert {f"uid:{os.geteuid()}", f"gid:{os.getegid()}", f"path:{program}", sha256(program)} <= found
    assert f"user:{pwd.getpwuid(os.geteuid()).pw_name}" in found
    assert f"group:{grp.getgrgid(os.getegid()).gr_name}" in found
    assert {f"supplementary_gid:{gid}" for gid in os.getgroups()} <= found


def test_two_copies_of_one_program_are_told_apart_by_path(tmp_path):
    found = []
    for name in ("one", "two"):
        shutil.copy(SLEEP, tmp_path / name)
        with process(str(tmp_path / name), "60") as (child, peer):
            running(child, tmp_path / name)
            found.append(values(attest(peer)))
    assert found[0] ^ found[1] == {f"path:{tmp_path / 'one'}", f"path:{tmp_path / 'two'}"}


def test_a_process_that_has_ended_is_refused(program):
    """S10, S12: also while nobody has waited for it."""
    with process(str(program), "0") as (child, peer):
        select.select([peer.process.fd], [], [], 10)
        with pytest.raises(Unauthenticated):
            attest(peer)
        child.wait()
        with pytest.raises(Unauthenticated):
            attest(peer)


def test_a_number_that_came_to_mean_another_process_is_refused(program):
    """S10, S11: the pidfd says whose number it was."""
    with process(str(program), "60") as (_, live), process(str(program), "0") as (_, ended):
        select.select([ended.process.fd], [], [], 10)
        reused = UnixPeer(live.pid, live.uid, live.gid, ended.process)
        with pytest.raises(Unauthenticated):
            attest(reused)


def test_a_deleted_program_has_a_hash_but_no_path(program):
    """S18: the running image, not what stands at its path now."""
    expected = sha256(program)
    with process(str(program), "60") as (child, peer):
        running(child, program)
        program.unlink()
        findings = attest(peer)
        assert expected in values(findings)
        assert not any(value.startswith("path:") for value in values(findings))
        assert any("removed or replaced" in note for note in findings.notes)


def test_a_replaced_program_is_what_runs_not_what_stands_there_now(program, tmp_path):
    """S18: an upgrade in place does not lend its hash or its path to the old process."""
    expected = sha256(program)
    with process(str(program), "60") as (child, peer):
        running(child, program)
        newer = tmp_path / "newer"
        newer.write_bytes(Path(SLEEP).read_bytes() + b"newer")
        newer.replace(program)
        found = values(attest(peer))
    assert expected in found
    assert sha256(program) not in found
    assert f"path:{program}" not in found


def test_a_link_is_followed_to_the_program_itself(program, tmp_path):
    """S18: the path is the program's, not the name it was called by."""
    link = tmp_path / "trusted"
    link.symlink_to(program)
    with process(str(link), "60") as (child, peer):
        running(child, program)
        found = values(attest(peer))
    assert f"path:{program}" in found
    assert f"path:{link}" not in found


def test_a_program_above_the_limit_has_a_path_but_no_hash(program):
    """S18."""
    with process(str(program), "60") as (child, peer):
        running(child, program)
        findings = attest(peer, hash_size_limit=100)
        assert f"path:{program}" in values(findings)
        assert not any(value.startswith("sha256:") for value in values(findings))
        assert any("hash_size_limit is 100" in note for note in findings.notes)


def test_another_program_in_the_same_process_is_another_workload(program, tmp_path):
    """S13, N-A-31: exec keeps the process and changes the answer."""
    other = tmp_path / "other"
    shutil.copy(SLEEP, other)
    other.write_bytes(other.read_bytes() + b"other")
    script = f"import os, sys; sys.stdin.readline(); os.execv({str(other)!r}, ['other', '60'])"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    peer = UnixPeer(child.pid, os.geteuid(), os.getegid(), ProcessHandle(child.pid, os.pidfd_open(child.pid)))
    try:
        attestor = UnixAttestor()
        before = values(attestor.attest(peer, time.monotonic() + 10))
        child.stdin.write(b"\n")
        child.stdin.close()
        until(lambda: os.path.samefile(f"/proc/{child.pid}/exe", other))
        after = values(attestor.attest(peer, time.monotonic() + 10))
    finally:
        child.kill()
        child.wait()
        peer.process.close()
    assert f"path:{os.path.realpath(sys.executable)}" in before
    assert {f"path:{other}", sha256(other)} == {value for value in after if value.startswith(("path:", "sha256:"))}


def until(true):
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "it did not happen within 10 s"
        time.sleep(0.001)


@as_root
def test_another_user_is_that_user():
    """S16: ids without a name here are numbers only."""
    with process(SLEEP, "60", user=54321, group=54322, extra_groups=[54323]) as (child, peer):
        running(child, SLEEP)
        findings = attest(peer)
    ids = {value for value in values(findings) if not value.startswith(("path:", "sha256:"))}
    assert ids == {"uid:54321", "gid:54322", "supplementary_gid:54323"}
    assert len([note for note in findings.notes if "nobody here is called" in note]) == 3


@as_root
def test_a_process_that_changes_its_user_after_connecting_is_refused():
    """S14, S16: what it connected as is no longer true, and what it is now did not connect."""
    script = "import os, sys; os.setgid(54322); os.setuid(54321); print('done', flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    peer = UnixPeer(child.pid, 0, 0, ProcessHandle(child.pid, os.pidfd_open(child.pid)))
    try:
        child.stdout.readline()
        with pytest.raises(Unauthenticated, match="connect again"):
            attest(peer)
        again = UnixPeer(child.pid, 54321, 54322, peer.process)
        assert {"uid:54321", "gid:54322"} <= values(attest(again))
    finally:
        child.kill()
        child.communicate()
        peer.process.close()


NAMES = ["a) S 1 2 3", "x\nUid:\t0\t0", "\x0bUid:\t7 7 7 7", "\x1cGid:\t7 7 7 7", "(((", "ü" * 7, "x" * 15]


@pytest.mark.parametrize("name", NAMES)
def test_a_process_may_call_itself_what_it_likes(name):
    """S19: the kernel's own status and stat lines, with a hostile name in them."""
    script = f"""
import ctypes, sys
ctypes.CDLL(None).prctl(15, {name.encode()!r})
print('done', flush=True)
sys.stdin.read()
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    peer = UnixPeer(child.pid, os.geteuid(), os.getegid(), ProcessHandle(child.pid, os.pidfd_open(child.pid)))
    try:
        child.stdout.readline()
        assert f"uid:{os.geteuid()}" in values(attest(peer))
        named = named_process(child.pid)
        assert (named.uid, named.gid) == (os.geteuid(), os.getegid())
        named.process.close()
        with ProcFs().process(child.pid) as directory:
            started = directory.start_time()
        with ProcFs().process(os.getpid()) as own:
            assert started >= own.start_time() > 0
    finally:
        child.kill()
        child.communicate()
        peer.process.close()


@pytest.mark.skipif(not shutil.which("unshare"), reason="unshare(1) is missing")
def test_a_user_namespace_does_not_make_root():
    """S16, N-A-34: uid 0 inside is the outer user here."""
    probe = subprocess.run(["unshare", "-U", "-r", "true"], check=False, capture_output=True)
    if probe.returncode:
        pytest.skip(f"unprivileged user namespaces are off: {probe.stderr.decode().strip()}")
    with process("unshare", "-U", "sleep", "60") as (child, peer):
        until(lambda: os.path.samefile(f"/proc/{child.pid}/exe", SLEEP))
        assert f"uid:{os.geteuid()}" in values(attest(peer))


def test_a_file_system_that_hangs_ends_at_the_deadline(program, tmp_path):
    """S18: a slow image uses up its own budget only; the next answer is not held up."""
    slow = tmp_path / "slow"
    with open(slow, "wb") as file:
        file.truncate(64 * 1024 * 1024 * 1024)  # sparse: hashing it would take minutes
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "exe").symlink_to(slow)
    shutil.copy("/proc/self/status", tmp_path / "7" / "status")
    attestor = UnixAttestor(UnixSettings(hash_size_limit=0), UnixPorts(ProcFs(tmp_path)))
    with process(str(program), "60") as (_, peer):
        subject = UnixPeer(7, os.geteuid(), os.getegid(), peer.process)
        began = time.monotonic()
        outcomes = []
        thread = threading.Thread(target=lambda: outcomes.append(_refusal(attestor, subject, began + 0.2)))
        thread.start()
        fast = UnixAttestor(UnixSettings(hash_size_limit=0))
        assert f"path:{program}" in values(fast.attest(peer, began + 5))
        thread.join(10)
        assert time.monotonic() - began < 5
        assert isinstance(outcomes[0], Unavailable)


def _refusal(attestor, subject, deadline):
    try:
        return attestor.attest(subject, deadline)
    except Unavailable as refusal:
        return refusal


async def test_the_process_behind_a_real_connection_is_attested(tmp_path):
    """WEP-17, WAPI-06: from SO_PEERCRED and the pidfd to selectors."""
    path = tmp_path / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.relpath(path))
    listener.listen()
    script = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", script, os.path.relpath(path))
    try:
        listener.setblocking(False)
        connection, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(listener), 10)
        with connection:
            peer = unix_peer(connection)
            assert peer.pid == child.pid
            found = values(WORKLOAD_ATTESTORS.build("unix").attest(peer, time.monotonic() + 10))
            assert f"path:{os.path.realpath(sys.executable)}" in found
            peer.process.close()
    finally:
        listener.close()
        await asyncio.wait_for(child.wait(), 10)


def test_a_full_reading_without_hashing_is_quick(program):
    """A20: each message pays for it. Generous here; the figure is a benchmark's."""
    with process(str(program), "60") as (child, peer):
        running(child, program)
        attestor = UnixAttestor(UnixSettings(hash_size_limit=-1))
        attestor.attest(peer, time.monotonic() + 10)
        best = min(_timed(attestor, peer) for _ in range(20))
    assert best < 1e-3


def _timed(attestor, peer):
    began = time.perf_counter()
    attestor.attest(peer, time.monotonic() + 10)
    return time.perf_counter() - began
