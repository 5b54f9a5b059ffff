"""Reading /proc: whole lines or a refusal, never shifted fields (S19)."""

import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestors.procfs import (
    MAX_STATUS_BYTES,
    Credentials,
    ExecutableLink,
    ProcFs,
    parse_pid_namespace_depth,
    parse_start_time,
    parse_status,
)

STATUS = "Name:\t{name}\nUmask:\t0022\nUid:\t1000\t1001\t1002\t1003\nGid:\t100\t101\t102\t103\nFDSize:\t64\nGroups:\t4 24 27 \nNStgid:\t7\n"
TAIL = "S 1 7 7 0 -1 4194560 100 0 0 0 1 2 3 4 20 0 1 0 987654 1024 300 18446744073709551615"


def test_real_and_effective_ids_and_groups_are_read():
    assert Credentials(1000, 1001, 100, 101, (4, 24, 27)) == parse_status(STATUS.format(name="x").encode())


def test_a_process_without_groups_has_none():
    assert parse_status(STATUS.format(name="x").replace("4 24 27 ", " ").encode()).supplementary_gids == ()


def test_a_name_that_looks_like_a_line_shifts_nothing():
    """S19: the kernel writes a newline in the name as two characters."""
    assert parse_status(STATUS.format(name="a\\nUid:\\t0\\t0\\t0\\t0").encode()).effective_uid == 1001
    assert parse_status(STATUS.format(name="Uid:\t0\t0\t0\t0").encode()).effective_uid == 1001


@pytest.mark.parametrize(("numbers", "depth"), [("7", 1), ("7\t1", 2), ("4194304\t300\t1", 3)])
def test_the_pid_namespaces_of_a_process_are_counted(numbers, depth):
    """S17: the name of the process cannot pass for the line."""
    text = STATUS.replace("NStgid", f"NSpid:\t{numbers}\nNStgid").format(name="NSpid:\t1\\nNSpid:\t1")
    assert parse_pid_namespace_depth(text.encode()) == depth


def test_a_kernel_that_does_not_tell_is_not_guessed_at():
    with pytest.raises(ValueError, match="NSpid"):
        parse_pid_namespace_depth(STATUS.format(name="x").encode())


BROKEN = {
    "empty": "",
    "no Uid": STATUS.replace("Uid:", "Vid:"),
    "no Groups": STATUS.replace("Groups:", "Grapes:"),
    "three uids": STATUS.replace("\t1003", ""),
    "five uids": STATUS.replace("\t1003", "\t1003\t1004"),
    "not a number": STATUS.replace("1001", "x"),
    "cut short": STATUS[: STATUS.index("NStgid") - 1],
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_status_is_refused(case):
    with pytest.raises(ValueError):
        parse_status(BROKEN[case].encode())


@pytest.mark.parametrize(
    "comm", ["x", "a b", ")", "a) S 1 2 3", "(", "((", ") ) )", "a\nb", "a\n7 (x) S 1", "\udcff", "é" * 7, "x" * 4096]
)
def test_the_start_time_is_found_behind_any_name(comm):
    """S19: comm holds whatever the process likes, raw."""
    assert parse_start_time(f"7 ({comm}) {TAIL}".encode("utf-8", "surrogateescape")) == 987654


@given(st.binary(max_size=64))
def test_no_name_moves_the_start_time(comm):
    """S19 as a law."""
    assert parse_start_time(b"7 (" + comm + b") " + TAIL.encode()) == 987654


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_is_a_number(data):
    """S19, S29: a parser of bytes answers or raises ValueError, nothing else."""
    for parse in (parse_start_time, parse_status):
        with contextlib.suppress(ValueError):
            parse(data)


@pytest.mark.parametrize("text", ["", "7", "7 (x", "7 (x)", "7 x) 1 2 3", "7 (x) S 1 2 3"])
def test_a_broken_stat_line_is_refused(text):
    with pytest.raises(ValueError):
        parse_start_time(text.encode())


@pytest.fixture
def proc(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text(STATUS.format(name="x"))
    (tmp_path / "7" / "stat").write_text(f"7 (x) {TAIL}")
    return tmp_path


def test_a_process_is_read_below_any_root(proc):
    with ProcFs(proc).process(7) as process:
        assert process.credentials().effective_uid == 1001
        assert process.start_time() == 987654


def test_an_unknown_process_is_an_os_error(proc):
    with pytest.raises(FileNotFoundError):
        ProcFs(proc).process(8)


def test_a_file_in_place_of_the_directory_is_refused(proc):
    (proc / "9").write_text("x")
    with pytest.raises(NotADirectoryError):
        ProcFs(proc).process(9)


def test_reads_are_bounded(proc):
    """More than 64 KiB of status is refused, not cut short."""
    (proc / "7" / "status").write_text(STATUS.format(name="x" * MAX_STATUS_BYTES))
    with ProcFs(proc).process(7) as process, pytest.raises(OSError, match="more than 65536 bytes"):
        process.credentials()


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/usr/bin/x", ExecutableLink(b"/usr/bin/x", deleted=False)),
        ("/usr/bin/x (deleted)", ExecutableLink(b"/usr/bin/x", deleted=True)),
        ("/a b/(deleted)", ExecutableLink(b"/a b/(deleted)", deleted=False)),
    ],
)
def test_a_deleted_executable_is_told_apart(proc, target, expected):
    """S18."""
    (proc / "7" / "exe").symlink_to(target)
    with ProcFs(proc).process(7) as process:
        assert expected == process.executable_link()


def test_the_directory_stays_with_its_process_and_is_closed_once(proc):
    """The descriptor does not follow the name: a new directory at the same number is another process (S11)."""
    before = len(os.listdir("/proc/self/fd"))
    with ProcFs(proc).process(7) as process:
        (proc / "7").rename(proc / "gone")
        (proc / "7").mkdir()
        (proc / "7" / "status").write_text(STATUS.format(name="x").replace("1001", "0"))
        assert process.credentials().effective_uid == 1001
    process.close()
    assert before == len(os.listdir("/proc/self/fd"))
