"""The unix attestor on the loop: the answer of a reading on a thread, or none; never anything else (A20, A7)."""

import os

import pytest

from attestors import file_status
from attestors.api import PromptAttestor
from attestors.file_status import identity_of, is_local, remembered
from attestors.procfs import ProcessDirectory
from attestors.workload.unix import NAME_LIFETIME, UnixAttestor
from spiffe_core.errors import Unauthenticated, Unavailable
from tests.unit.attestors.test_unix import Machine, Process


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def known(machine):
    """An attestor that has read the process once."""
    attestor = machine.attestor()
    attestor.attest(Process(), 1e9)
    return attestor


def test_what_is_not_known_needs_a_thread(machine):
    attestor = machine.attestor()
    assert isinstance(attestor, PromptAttestor)
    assert attestor.attest_at_once(Process()) is None
    assert machine.looked_up == []


def test_what_is_known_is_told_at_once_and_is_the_same(machine, known):
    """A20: read in full again, hashes by device, inode, size and times."""
    asked = list(machine.looked_up)
    assert known.attest_at_once(Process()) == known.attest(Process(), 1e9)
    assert machine.looked_up == asked


def test_another_user_or_group_is_seen_at_once(machine, known):
    """S14: and one whose names are not known needs a thread."""
    machine.status(uid=0)
    with pytest.raises(Unauthenticated):
        known.attest_at_once(Process())
    assert known.attest_at_once(Process(uid=0)) is None
    machine.status(groups="4")
    assert known.attest_at_once(Process()) is None


def test_another_program_is_seen_at_once(machine, known):
    """S13, S18: one that was not hashed yet is not taken for the one before."""
    other = machine.folder / "other"
    other.write_bytes(b"program two")
    machine.run(other)
    assert known.attest_at_once(Process()) is None
    fresh = known.attest(Process(), 1e9)
    assert known.attest_at_once(Process()) == fresh


def test_a_program_that_was_written_to_needs_a_thread(machine, known):
    machine.program.write_bytes(b"program 1!!")
    assert known.attest_at_once(Process()) is None


def test_names_are_believed_no_longer_than_on_a_thread(machine, known):
    machine.clock.seconds += NAME_LIFETIME
    assert known.attest_at_once(Process()) is None


def test_a_file_of_another_machine_is_never_known_well_enough(machine, monkeypatch):
    """What the kernel remembers of it may be old."""
    monkeypatch.setattr(file_status, "LOCAL_FILE_SYSTEMS", {})
    attestor = machine.attestor()
    attestor.attest(Process(), 1e9)
    assert attestor.attest_at_once(Process()) is None


def test_without_hashes_the_names_are_enough(machine):
    attestor = machine.attestor(hash_size_limit=-1)
    whole = attestor.attest(Process(), 1e9)
    assert attestor.attest_at_once(Process()) == whole
    attestor = machine.attestor(discover_path=False)
    whole = attestor.attest(Process(), 1e9)
    assert attestor.attest_at_once(Process()) == whole


def test_a_process_that_ends_at_any_step_is_refused(known):
    """S11, S12: as on a thread."""
    alive = Process()
    known.attest_at_once(alive)
    assert alive.checks >= 5
    for step in range(1, alive.checks + 1):
        dying = Process()
        dying.ends_at = step
        with pytest.raises(Unauthenticated):
            known.attest_at_once(dying)


def test_no_answer_mixes_two_programs(machine, known):
    """S13: the process runs another program between two reads."""
    other = machine.folder / "other"
    other.write_bytes(b"program two")
    whole = Process()
    one = known.attest_at_once(whole)
    machine.run(other)
    two = known.attest(Process(), 1e9)
    for step in range(1, whole.checks + 1):
        machine.run(machine.program)
        changing = Process()
        changing.at = {step: lambda: machine.run(other)}
        try:
            assert known.attest_at_once(changing) in (one, two)
        except Unavailable:
            continue


def test_what_cannot_be_read_is_unavailable(machine, known):
    (machine.folder / "7" / "status").unlink()
    with pytest.raises(Unavailable):
        known.attest_at_once(Process())


def test_the_kernels_memory_of_a_file_is_what_fstat_says(tmp_path):
    """statx(2): each field from its place in the structure."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 5000)
    os.utime(file, ns=(1, 1_234_567_890_987_654_321))
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        assert remembered(directory, b"file") == identity_of(file.stat())
        assert remembered(directory, b".") is None
        with pytest.raises(FileNotFoundError):
            remembered(directory, b"missing")
    finally:
        os.close(directory)


def test_a_file_system_without_files_of_its_own_is_not_local():
    """/proc answers for its files itself."""
    descriptors = [os.open("/proc/self/status", os.O_RDONLY), os.open(__file__, os.O_RDONLY)]
    try:
        assert not is_local(descriptors[0])
        assert isinstance(is_local(descriptors[1]), bool)
    finally:
        for fd in descriptors:
            os.close(fd)


def test_the_running_program_is_remembered():
    own = ProcessDirectory(f"/proc/{os.getpid()}")
    try:
        assert own.executable_remembered() == identity_of(own.executable_file())
    finally:
        own.close()


def test_a_c_library_without_statx_leaves_it_to_threads(machine, known, monkeypatch):
    monkeypatch.setattr(file_status, "_statx", None)
    assert known.attest_at_once(Process()) is None
    assert isinstance(known, UnixAttestor)
