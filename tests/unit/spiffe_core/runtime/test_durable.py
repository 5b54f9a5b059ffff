"""Private files: habit 21, R7, R11 to R13, S70, S71."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spiffe_core.errors import ConfigError, Conflict, CorruptState, IdentityError, Unavailable
from spiffe_core.runtime.durable import lock_directory, private_directory, read_private, remove_leftovers, write_durably


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir(0o700)
    return path


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("wanted", [0o600, 0o644])
def test_the_mode_is_exact_whatever_the_umask(folder: Path, umask: int, wanted: int) -> None:
    """S70."""
    before = os.umask(umask)
    try:
        write_durably(folder / "f", b"one", wanted)
        write_durably(folder / "f", b"two", wanted)
    finally:
        os.umask(before)
    assert (b"two", wanted, [folder / "f"]) == ((folder / "f").read_bytes(), mode(folder / "f"), list(folder.iterdir()))


def test_the_content_is_private_from_its_first_byte(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S70: a file that will be 0644 is 0600 while it is written, under a name nobody can guess."""
    seen: list[tuple[int, str]] = []
    write = os.write

    def watch(file: int, data: Any) -> int:
        seen.append((os.fstat(file).st_mode & 0o7777, next(folder.iterdir()).name))
        return write(file, data)

    monkeypatch.setattr(os, "write", watch)
    for _ in range(2):
        write_durably(folder / "f", b"x", 0o644)
        (folder / "f").unlink()
    assert {0o600} == {one for one, _ in seen}
    assert len({name for _, name in seen}) == 2


def test_content_is_synced_before_the_name_and_the_name_before_the_return(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R7: with un-synced writes dropped at any point the name points at the old or the new content, whole."""
    calls: list[str] = []
    for name in ("write", "fchmod", "fsync", "rename"):
        original = getattr(os, name)

        def watch(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            calls.append(_name)
            return _original(*args, **kwargs)

        monkeypatch.setattr(os, name, watch)
    write_durably(folder / "f", b"x")
    assert calls == ["write", "fchmod", "fsync", "rename", "fsync"]


def test_short_writes_are_completed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, bytes(data)[:3]))
    write_durably(folder / "f", b"0123456789")
    assert (folder / "f").read_bytes() == b"0123456789"


FAULTS = [
    (errno.ENOSPC, Unavailable),
    (errno.EDQUOT, Unavailable),
    (errno.EIO, Unavailable),
    (errno.EROFS, ConfigError),
    (errno.EACCES, ConfigError),
]


@pytest.mark.parametrize("call", ["write", "fchmod", "fsync", "rename"])
@pytest.mark.parametrize(("number", "kind"), FAULTS)
def test_a_fault_keeps_the_old_file_and_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: type[IdentityError]
) -> None:
    """R11, R12: surfaced with the path, never ignored, the old content whole."""
    write_durably(folder / "f", b"old")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(kind) as failed:
            write_durably(folder / "f", b"new")
    assert str(folder / "f") in failed.value.public
    assert os.strerror(number) in failed.value.public
    assert (b"old", [folder / "f"]) == ((folder / "f").read_bytes(), list(folder.iterdir()))


def test_a_failing_sync_of_the_directory_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R12: the rename happened but may not survive a power cut, so the caller must not believe it did."""
    results = iter([None, OSError(errno.EIO, "Input/output error")])

    def second_fails(_: int) -> None:
        if (result := next(results)) is not None:
            raise result

    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(Unavailable, match="Input/output error"):
        write_durably(folder / "f", b"new")
    assert (folder / "f").read_bytes() == b"new"


@pytest.mark.parametrize("plant", ["symlink", "dangling", "hardlink", "directory", "fifo"])
def test_what_is_planted_at_the_path_is_refused_and_untouched(folder: Path, tmp_path: Path, plant: str) -> None:
    """S71, for writing and for reading."""
    path, target = folder / "f", tmp_path / "target"
    if plant != "dangling":
        target.write_bytes(b"target")
        target.chmod(0o600)
    if plant in {"symlink", "dangling"}:
        path.symlink_to(target)
    elif plant == "hardlink":
        path.hardlink_to(target)
    elif plant == "directory":
        path.mkdir(0o700)
    else:
        os.mkfifo(path, 0o600)
    with pytest.raises(CorruptState) as refused:
        write_durably(path, b"x")
    assert str(path) in refused.value.public
    with pytest.raises(CorruptState):
        read_private(path, max_bytes=100)
    assert (plant != "dangling") == target.exists()
    if target.exists():
        assert target.read_bytes() == b"target"


def test_a_directory_everyone_can_write_to_is_refused_unless_sticky(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(ConfigError, match="chmod o-w"):
        write_durably(shared / "f", b"x")
    shared.chmod(0o1777)
    write_durably(shared / "f", b"x")


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory") as failed:
        write_durably(tmp_path / "no" / "f", b"x")
    assert str(tmp_path / "no" / "f") in failed.value.public


def test_what_was_written_is_read(folder: Path) -> None:
    write_durably(folder / "f", bytes(range(256)) * 1_000)
    assert bytes(range(256)) * 1_000 == read_private(folder / "f", max_bytes=256_000)
    with pytest.raises(CorruptState, match="255999 bytes"):
        read_private(folder / "f", max_bytes=255_999)


def test_absence_is_for_the_caller_to_judge(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_private(folder / "f", max_bytes=1)


@pytest.mark.parametrize("wrong", [0o640, 0o604, 0o660, 0o644, 0o777])
def test_a_file_others_may_have_read_is_refused(folder: Path, wrong: int) -> None:
    """R13, S70."""
    write_durably(folder / "f", b"x", wrong)
    with pytest.raises(CorruptState, match=f"{wrong:04o}"):
        read_private(folder / "f", max_bytes=9)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_owner_is_refused(folder: Path) -> None:
    """R13: a file, a directory and a lock file."""
    write_durably(folder / "lock", b"x")
    os.chown(folder / "lock", 12_345, -1)
    for attempt in (lambda: read_private(folder / "lock", max_bytes=9), lambda: lock_directory(folder)):
        with pytest.raises(CorruptState, match="12345"):
            attempt()
    os.chown(folder, 12_345, -1)
    with pytest.raises(ConfigError, match="12345"):
        private_directory(folder)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_private_directory_is_made_with_its_parents(tmp_path: Path, umask: int) -> None:
    """S70: 0700 itself, parents never writable by others."""
    before = os.umask(umask)
    try:
        path = private_directory(tmp_path / "a" / "b" / "data")
    finally:
        os.umask(before)
    assert (mode(path), (mode(tmp_path / "a") | mode(tmp_path / "a" / "b")) & 0o022) == (0o700, 0)
    assert path == private_directory(path)


@pytest.mark.parametrize("wrong", [0o755, 0o770, 0o701, 0o777])
def test_a_directory_others_can_enter_is_refused_not_repaired(folder: Path, wrong: int) -> None:
    """R13."""
    folder.chmod(wrong)
    with pytest.raises(ConfigError, match=f"{wrong:04o}") as refused:
        private_directory(folder)
    assert (f"chmod 0700 {folder}" in refused.value.public, wrong) == (True, mode(folder))


def test_a_link_or_a_file_is_no_private_directory(folder: Path, tmp_path: Path) -> None:
    """S71."""
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="symbolic link"):
        private_directory(tmp_path / "link")
    with pytest.raises(ConfigError, match="not a directory"):
        private_directory(tmp_path / "file")
    with pytest.raises(ConfigError, match="Not a directory"):
        private_directory(tmp_path / "file" / "data")


def test_a_directory_that_cannot_be_written_to_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R13: a read-only file system, also for root."""
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(ConfigError, match="cannot be written to"):
        private_directory(folder)


def test_a_second_holder_is_refused_with_the_firsts_pid(folder: Path) -> None:
    with lock_directory(folder) as held:
        with pytest.raises(Conflict) as refused:
            lock_directory(folder)
        assert f"process {os.getpid()}" in refused.value.public
        assert str(folder) in refused.value.public
        held.close()
        held.close()
        lock_directory(folder).close()
    assert mode(folder / "lock") == 0o600


def test_another_process_is_refused_and_a_killed_one_holds_nothing(folder: Path) -> None:
    """kill -9 frees the directory; a stale pid in the file means nothing."""
    holder = "import sys, pathlib; from spiffe_core.runtime.durable import lock_directory\nlock = lock_directory(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(Conflict, match=f"process {process.pid}"):
            lock_directory(folder)
        process.kill()
        process.wait()
    with lock_directory(folder):
        assert f"{os.getpid()}\n" == (folder / "lock").read_text()


@pytest.mark.parametrize("plant", ["symlink", "hardlink", "readable"])
def test_a_planted_lock_file_is_refused_and_its_target_untouched(folder: Path, tmp_path: Path, plant: str) -> None:
    """S71: the pid file."""
    target = tmp_path / "target"
    target.write_bytes(b"target")
    target.chmod(0o600)
    if plant == "symlink":
        (folder / "lock").symlink_to(target)
    elif plant == "hardlink":
        (folder / "lock").hardlink_to(target)
    else:
        (folder / "lock").write_bytes(b"1")
        (folder / "lock").chmod(0o666)
    with pytest.raises(CorruptState):
        lock_directory(folder)
    assert target.read_bytes() == b"target"


def test_only_our_own_leftovers_are_removed(folder: Path, tmp_path: Path) -> None:
    (folder / ".f.0123456789abcdef.tmp").write_bytes(b"half")
    (folder / ".f.aaaaaaaaaaaaaaaa.tmp").symlink_to(tmp_path)
    kept = {".f.xyz.tmp", ".g.0123456789abcdef.tmp", "f", ".f.0123456789abcdef.tmp2"}
    for name in kept:
        (folder / name).touch()
    assert (remove_leftovers(folder / "f"), remove_leftovers(folder / "f")) == (2, 0)
    assert kept == {one.name for one in folder.iterdir()}
