"""The unix attestor over a /proc made of ordinary files: what it says, what it leaves out, when it refuses."""

import hashlib
import os
import threading
from datetime import UTC, datetime

import pytest

from attestors.api import WorkloadAttestor
from attestors.procfs import ProcessDirectory, ProcFs
from attestors.workload.unix import UnixAttestor, UnixPorts, UnixSettings
from spiffe_core.errors import Unauthenticated, Unavailable

USERS = {1000: "ada", 0: "root"}
GROUPS = {100: "users", 4: "adm", 0: "root"}
LATER = datetime(2100, 1, 1, tzinfo=UTC)


class SteppedClock:
    """Wall and monotonic time that move when told."""

    def __init__(self, wall=LATER):
        self.wall, self.seconds, self.step = wall, 100.0, 0.0

    def now(self):
        return self.wall

    def monotonic(self):
        self.seconds += self.step
        return self.seconds

    async def sleep(self, seconds):
        raise AssertionError("attestors do not sleep")


class Process:
    """A subject that may end, or do something, at its n-th liveness check."""

    def __init__(self, pid=7, uid=1000, gid=100):
        self.pid, self.uid, self.gid = pid, uid, gid
        self.checks, self.ends_at, self.at = 0, None, {}

    def require_alive(self):
        self.checks += 1
        if self.checks in self.at:
            self.at.pop(self.checks)()
        if self.ends_at is not None and self.checks >= self.ends_at:
            raise Unauthenticated("the calling process has ended")


class Machine:
    """A folder that looks like /proc, a clock, and counted name services."""

    def __init__(self, folder):
        self.folder, self.clock, self.looked_up = folder, SteppedClock(), []
        self.program = folder / "app"
        self.program.write_bytes(b"program one")
        (folder / "7").mkdir()
        (folder / "7" / "exe").symlink_to(self.program)
        self.status()

    def status(self, uid=1000, gid=100, groups="4 27", real=1000):
        text = f"Name:\tapp\nUid:\t{real}\t{uid}\t{uid}\t{uid}\nGid:\t{real}\t{gid}\t{gid}\t{gid}\nGroups:\t{groups} \n"
        (self.folder / "7" / "status").write_text(text)

    def user_namespace(self, text):
        (self.folder / "self").mkdir()
        (self.folder / "sys" / "kernel").mkdir(parents=True)
        for kind in ("uid", "gid"):
            (self.folder / "self" / f"{kind}_map").write_text(text)
            (self.folder / "sys" / "kernel" / f"overflow{kind}").write_text("65534\n")

    def run(self, target):
        exe = self.folder / "7" / "exe"
        exe.unlink()
        exe.symlink_to(target)

    def user(self, uid):
        self.looked_up.append(("user", uid))
        return USERS[uid]

    def group(self, gid):
        self.looked_up.append(("group", gid))
        return GROUPS[gid]

    def attestor(self, **settings):
        ports = UnixPorts(ProcFs(self.folder), self.user, self.group, self.clock)
        return UnixAttestor(UnixSettings(**settings), ports)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def values(findings):
    assert {selector.type for selector in findings.selectors} == {"unix"}
    return {selector.value for selector in findings.selectors}


def digest(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_every_selector_of_spire_is_said(machine):
    """spire_features 18.1: effective ids and names, supplementary groups, path and hash."""
    findings = machine.attestor().attest(Process(), 1e9)
    assert values(findings) == {
        "uid:1000",
        "user:ada",
        "gid:100",
        "group:users",
        "supplementary_gid:4",
        "supplementary_group:adm",
        "supplementary_gid:27",
        f"path:{machine.program}",
        digest(b"program one"),
    }
    assert findings.notes == ("supplementary_group left out: nobody here is called supplementary_gid 27",)


def test_it_follows_the_protocol(machine):
    assert isinstance(machine.attestor(), WorkloadAttestor)


def test_effective_ids_count_not_real_ones(machine):
    """S16: a set-user-ID program is what it became."""
    machine.status(uid=0, gid=0, real=1000)
    found = values(machine.attestor().attest(Process(uid=0, gid=0), 1e9))
    assert {"uid:0", "user:root", "gid:0", "group:root"} <= found
    assert "uid:1000" not in found


def test_nobody_is_somebody_in_the_initial_user_namespace(machine):
    """S16: there 65534 is a user like any other; its number has no name here."""
    machine.user_namespace("         0          0 4294967295\n")
    machine.status(uid=65534, gid=65534, groups="")
    found = values(machine.attestor(discover_path=False).attest(Process(uid=65534, gid=65534), 1e9))
    assert found == {"uid:65534", "gid:65534"}


def test_in_another_user_namespace_nobody_is_anybody_and_matches_nothing(machine):
    """S16, N-A-34: all users without a number there share one; mapped ones keep theirs."""
    machine.user_namespace("0 1000 1\n1 100000 65536\n")
    machine.status(uid=65534, gid=65534, groups="65534 4")
    attestor = machine.attestor(discover_path=False)
    findings = attestor.attest(Process(uid=65534, gid=65534), 1e9)
    assert values(findings) == {"supplementary_gid:4", "supplementary_group:adm"}
    assert sum("is anybody who has no number" in note for note in findings.notes) == 3
    machine.status(uid=1000, gid=65534, groups="")
    assert values(attestor.attest(Process(gid=65534), 1e9)) == {"uid:1000", "user:ada"}


@pytest.mark.parametrize("ids", [{"uid": 0}, {"gid": 0}])
def test_a_process_that_is_no_longer_the_user_that_connected_is_refused(machine, ids):
    """S14, S16: the socket was left to a child while the connector ran a set-user-ID program."""
    machine.status(**ids)
    with pytest.raises(Unauthenticated, match="connect again"):
        machine.attestor().attest(Process(), 1e9)


def test_a_process_that_ends_is_refused_at_whatever_step(machine):
    """S11, S12: liveness is asked again after every read."""
    whole = Process()
    machine.attestor().attest(whole, 1e9)
    assert whole.checks >= 5
    for step in range(1, whole.checks + 1):
        ending = Process()
        ending.ends_at = step
        with pytest.raises(Unauthenticated):
            machine.attestor().attest(ending, 1e9)


def test_a_dead_process_whose_directory_is_gone_is_unauthenticated(machine):
    """S12: no entry under /proc and a dead pidfd."""
    gone = Process(pid=8)
    gone.ends_at = 1
    with pytest.raises(Unauthenticated):
        machine.attestor().attest(gone, 1e9)


def test_a_live_process_that_cannot_be_read_is_unavailable(machine):
    """N-A-34: never a default identity."""
    with pytest.raises(Unavailable, match="cannot be read") as refusal:
        machine.attestor().attest(Process(pid=8), 1e9)
    assert refusal.value.facts["pid"] == 8


def test_a_status_that_cannot_be_understood_is_unavailable(machine):
    """S19."""
    (machine.folder / "7" / "status").write_text("Name:\tx\nUid:\t1000\n")
    with pytest.raises(Unavailable):
        machine.attestor().attest(Process(), 1e9)


def test_names_are_believed_for_ten_seconds(machine):
    attestor = machine.attestor()
    attestor.attest(Process(), 1e9)
    asked = len(machine.looked_up)
    assert asked == 4
    machine.clock.seconds += 9.9
    attestor.attest(Process(), 1e9)
    assert len(machine.looked_up) == asked
    machine.clock.seconds += 0.2
    attestor.attest(Process(), 1e9)
    assert len(machine.looked_up) == 2 * asked


def test_numbers_are_read_anew_each_time(machine):
    """A20: only names and hashes are kept."""
    attestor = machine.attestor(discover_path=False)
    attestor.attest(Process(), 1e9)
    machine.status(groups="0")
    assert values(attestor.attest(Process(), 1e9)) == {
        "uid:1000",
        "user:ada",
        "gid:100",
        "group:users",
        "supplementary_gid:0",
        "supplementary_group:root",
    }


def test_an_impossible_name_drops_only_itself(machine, monkeypatch):
    monkeypatch.setitem(USERS, 1000, "x" * 9000)
    findings = machine.attestor(discover_path=False).attest(Process(), 1e9)
    assert "uid:1000" in values(findings)
    assert any("user of uid 1000 left out" in note for note in findings.notes)


def test_a_failing_name_service_drops_only_names(machine):
    ports = UnixPorts(ProcFs(machine.folder), _broken, _broken, machine.clock)
    found = values(UnixAttestor(UnixSettings(discover_path=False), ports).attest(Process(), 1e9))
    assert found == {"uid:1000", "gid:100", "supplementary_gid:4", "supplementary_gid:27"}


def _broken(number):
    raise OSError("no name service")


def test_a_slow_name_service_ends_at_the_deadline(machine):
    machine.clock.step = 1.0
    with pytest.raises(Unavailable, match="too long"):
        machine.attestor(discover_path=False).attest(Process(), machine.clock.seconds + 3)


def test_without_discovery_the_executable_is_not_touched(machine):
    (machine.folder / "7" / "exe").unlink()
    findings = machine.attestor(discover_path=False).attest(Process(), 1e9)
    assert not any(value.startswith(("path:", "sha256:")) for value in values(findings))


LIMITS = {
    "a negative limit never hashes": (-1, False, 0),
    "no limit": (0, True, 0),
    "exactly the limit": (11, True, 0),
    "above the limit the hash alone is left out": (10, False, 1),
}


@pytest.mark.parametrize("case", LIMITS)
def test_the_size_limit(machine, case):
    """S18; spire_features 18.1."""
    limit, hashed, notes = LIMITS[case]
    machine.status(groups="4")
    findings = machine.attestor(hash_size_limit=limit).attest(Process(), 1e9)
    assert (digest(b"program one") in values(findings)) is hashed
    assert f"path:{machine.program}" in values(findings)
    assert len(findings.notes) == notes


def test_a_process_without_an_executable_has_ids_only(machine):
    (machine.folder / "7" / "exe").unlink()
    findings = machine.attestor().attest(Process(), 1e9)
    assert "uid:1000" in values(findings)
    assert "path and sha256 left out: the process has no executable" in findings.notes


def test_an_agent_that_may_not_look_says_how_to_let_it(machine):
    """N-A-34: ids are known to everyone, the executable is not; what cannot be told is left out."""

    class Hidden(ProcessDirectory):
        def executable_link(self):
            raise PermissionError(13, "Permission denied")

    class HidingProcFs(ProcFs):
        def process(self, pid):
            return Hidden(f"{machine.folder}/{pid}")

    ports = UnixPorts(HidingProcFs(), machine.user, machine.group, machine.clock)
    findings = UnixAttestor(UnixSettings(), ports).attest(Process(), 1e9)
    assert "uid:1000" in values(findings)
    assert not any(value.startswith(("path:", "sha256:")) for value in values(findings))
    assert any("CAP_SYS_PTRACE" in note for note in findings.notes)


def test_a_path_that_cannot_be_written_down_is_left_out(machine):
    name = os.fsencode(machine.folder) + b"/\xff"
    with open(name, "wb") as file:
        file.write(b"odd")
    machine.run(os.fsdecode(name))
    findings = machine.attestor().attest(Process(), 1e9)
    assert digest(b"odd") in values(findings)
    assert "path left out: it is not UTF-8" in findings.notes


def test_an_executable_that_is_no_file_is_not_hashed(machine):
    machine.run(machine.folder)
    assert "sha256 left out: the executable is not a regular file" in machine.attestor().attest(Process(), 1e9).notes


def test_an_executable_that_cannot_be_opened_is_not_hashed(machine):
    machine.run(machine.folder / "missing")
    findings = machine.attestor().attest(Process(), 1e9)
    assert any(note.startswith("sha256 left out: the executable cannot be opened") for note in findings.notes)


def test_a_kept_hash_is_not_read_again_and_a_changed_file_is(machine):
    attestor = machine.attestor()
    attestor.attest(Process(), 1e9)
    first = os.stat(machine.program)
    machine.program.write_bytes(b"program two")
    os.utime(machine.program, ns=(first.st_atime_ns, first.st_mtime_ns))
    assert digest(b"program two") in values(attestor.attest(Process(), 1e9))


def test_the_hash_of_a_file_that_has_just_changed_is_not_kept(machine):
    """Two writes within one tick of the file system's clock leave equal times."""
    attestor = machine.attestor()
    machine.clock.wall = datetime.fromtimestamp(os.stat(machine.program).st_mtime, UTC)
    attestor.attest(Process(), 1e9)
    assert attestor._hashes.get(_identity(machine.program)) is None
    machine.clock.wall = LATER
    attestor.attest(Process(), 1e9)
    assert digest(b"program one") in values(attestor._hashes.get(_identity(machine.program)).findings)


def _identity(path):
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def test_no_answer_mixes_two_programs(machine):
    """S13: the process runs another program between two reads."""
    other = machine.folder / "other"
    other.write_bytes(b"program two")
    whole = Process()
    machine.attestor().attest(whole, 1e9)
    for step in range(2, whole.checks + 1):
        machine.run(machine.program)
        process = Process()
        process.at[step] = lambda: machine.run(other)
        if step < whole.checks:
            with pytest.raises(Unavailable, match="changed its program"):
                machine.attestor().attest(process, 1e9)
        else:  # the last check comes after the last read: what was read is one program
            found = values(machine.attestor().attest(process, 1e9))
            assert {f"path:{machine.program}", digest(b"program one")} <= found


def test_a_file_that_grows_while_it_is_read_is_not_hashed(machine):
    """S18: fstat before and after."""
    process = Process()
    process.at[4] = lambda: machine.program.write_bytes(b"program one and more")
    findings = machine.attestor().attest(process, 1e9)
    assert "sha256 left out: the executable changed while it was read" in findings.notes
    assert not any(value.startswith("sha256:") for value in values(findings))


def test_a_file_that_shrinks_while_it_is_read_is_not_hashed(machine):
    process = Process()
    process.at[4] = lambda: machine.program.write_bytes(b"p")
    assert not any(value.startswith("sha256:") for value in values(machine.attestor().attest(process, 1e9)))


def test_a_long_hash_ends_at_the_deadline(machine):
    """S18: the reader's budget holds while it reads."""
    machine.program.write_bytes(bytes(3 * 1024 * 1024))
    machine.status(groups="")
    attestor = machine.attestor()
    attestor.attest(Process(), 1e9)
    machine.program.write_bytes(bytes(3 * 1024 * 1024 + 1))
    machine.clock.step = 1.0
    with pytest.raises(Unavailable, match="too long"):
        attestor.attest(Process(), machine.clock.seconds + 2.5)


def test_what_is_kept_is_bounded(machine):
    attestor = machine.attestor(discover_path=False)
    for gid in range(1500):
        machine.status(groups=str(gid))
        attestor.attest(Process(), 1e9)
    assert len(attestor._identities._values) == 1024


def test_threads_get_the_same_answer_and_no_descriptor_is_left(machine):
    attestor = machine.attestor()
    expected = attestor.attest(Process(), 1e9)
    before = len(os.listdir("/proc/self/fd"))
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.extend(attestor.attest(Process(), 1e9) for _ in range(50)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 200
    assert len(os.listdir("/proc/self/fd")) == before
