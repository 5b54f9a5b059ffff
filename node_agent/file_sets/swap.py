"""A directory of files replaced in one step, so that nobody finds a certificate beside another certificate's key.

    tls/                      made by us, or there already and ours
    tls/.data -> .v-6f1c...   the one link that is replaced (rename(2) is atomic)
    tls/.v-6f1c.../svid.pem   a complete set
    tls/svid.pem -> .data/svid.pem

A reader that opens files one after the other while the link is replaced can still see two sets; who must not, reads
them through one open directory (`.data`), or uses the combined file. The set before the present one is kept until the
next swap, for readers that have opened its directory.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from node_agent.file_sets.content import Content
from spiffe_core.errors import ConfigError

DATA = ".data"
_VERSION = ".v-"


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who owns the files, None for whoever writes them, and their modes."""

    uid: int | None = None
    gid: int | None = None
    mode: int = 0o644
    key_mode: int = 0o600


def swap(directory: Path, files: Mapping[str, Content], owner: Ownership) -> None:
    """Make `files` the content of `directory`.

    Raises:
        ConfigError: the directory belongs to somebody else, others can write to it, or a name in it is not ours.
        OSError: the disk refused; what stood there before stands there still.
    """
    folder = _prepared(
        directory, owner
    )  # every name below is looked up in this descriptor, whatever becomes of the path
    try:
        for name in files:
            _is_linked(folder, directory, name)
        version = f"{_VERSION}{secrets.token_hex(8)}"
        os.mkdir(version, 0o700, dir_fd=folder)
        try:
            _write_all(folder, version, files, owner)
            _replace_link(folder, DATA, version)
        except BaseException:
            shutil.rmtree(version, ignore_errors=True, dir_fd=folder)
            raise
        try:
            for name in files:
                if not _is_linked(folder, directory, name):
                    os.symlink(f"{DATA}/{name}", name, dir_fd=folder)
        finally:
            _tidy(folder, keep=version, names=frozenset(files))
    finally:
        os.close(folder)


def _prepared(directory: Path, owner: Ownership) -> int:
    """The open directory, made if it is not there."""
    fresh = not directory.exists()
    if fresh:
        directory.mkdir(mode=0o700)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    found = os.fstat(folder)
    allowed = {os.geteuid(), 0 if owner.uid is None else owner.uid}
    if found.st_uid not in allowed or found.st_mode & (stat.S_IWOTH | stat.S_IWGRP):
        os.close(folder)
        raise ConfigError(
            f"{directory}: must belong to the user that writes it and be writable for nobody else; chown and chmod it",
            field="directory",
        )
    if fresh and found.st_uid == os.geteuid():  # ours, and not something that was put in its place meanwhile
        os.fchmod(folder, 0o755)
        _own(folder, owner)
    return folder


def _write_all(folder: int, version: str, files: Mapping[str, Content], owner: Ownership) -> None:
    inner = os.open(version, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    try:
        if os.fstat(inner).st_uid != os.geteuid():
            raise ConfigError("directory: somebody puts directories of their own in place of ours", field="directory")
        for name, content in files.items():
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=inner)
            with os.fdopen(file, "wb") as out:
                out.write(content.data)
                _own(out.fileno(), owner)
                os.fchmod(out.fileno(), owner.key_mode if content.private else owner.mode)
                out.flush()
                os.fsync(out.fileno())
        _own(inner, owner)
        os.fchmod(inner, 0o755)
        os.fsync(inner)
    finally:
        os.close(inner)


def _replace_link(folder: int, name: str, target: str) -> None:
    temporary = f"{_VERSION}link-{secrets.token_hex(4)}"
    os.symlink(target, temporary, dir_fd=folder)
    os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def _is_linked(folder: int, directory: Path, name: str) -> bool:
    """Whether the name leads to the present set already; False if nothing has that name.

    Raises:
        ConfigError: it is somebody else's.
    """
    try:
        if os.readlink(name, dir_fd=folder) == f"{DATA}/{name}":
            return True
    except FileNotFoundError:
        return False
    except OSError:
        pass
    raise ConfigError(f"{directory / name}: is not ours; remove it, or choose another name", field="directory")


def _tidy(folder: int, *, keep: str, names: frozenset[str]) -> None:
    """Remove sets older than the last but one, and links to files that are written no more."""

    def facts(name: str) -> os.stat_result:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)

    versions = [name for name in os.listdir(folder) if name.startswith(_VERSION) and name != keep]
    for name in sorted(versions, key=lambda name: facts(name).st_mtime_ns)[:-1]:
        if stat.S_ISLNK(facts(name).st_mode):
            os.unlink(name, dir_fd=folder)
        else:
            shutil.rmtree(name, ignore_errors=True, dir_fd=folder)
    for name in os.listdir(folder):
        gone = name not in names and stat.S_ISLNK(facts(name).st_mode)
        if gone and os.readlink(name, dir_fd=folder) == f"{DATA}/{name}":
            os.unlink(name, dir_fd=folder)


def _own(file: int, owner: Ownership) -> None:
    if owner.uid is not None or owner.gid is not None:
        os.fchown(file, -1 if owner.uid is None else owner.uid, -1 if owner.gid is None else owner.gid)
