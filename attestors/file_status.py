"""Two looks at a file that Python has no function for: at what the kernel remembers of it, and at its file system.

`remembered` is statx(2) with AT_STATX_DONT_SYNC: it answers from the kernel's memory and asks no file server, neither
across a network nor behind FUSE, so it does not wait for anybody. On a file system of this machine's own the memory is
the truth; `is_local` tells which those are (statfs(2)), and has to be asked where waiting is allowed.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from typing import Final

FileIdentity = tuple[int, int, int, int, int]
"""Device, inode, size, and when content and inode changed last in nanoseconds: equal for equal content."""

LOCAL_FILE_SYSTEMS: Final = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xF2F52010: "f2fs",
    0x2FC12FC1: "zfs",
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0x794C7630: "overlay",
    0x73717368: "squashfs",
    0xE0F5E1E2: "erofs",
}
"""f_type -> name. None of them has its files changed by another machine or by a program that answers for them."""

_AT_STATX_DONT_SYNC: Final = 0x4000
_TYPE, _MTIME, _CTIME, _INO, _SIZE = 0x1, 0x40, 0x80, 0x100, 0x200
_WANTED: Final = _TYPE | _MTIME | _CTIME | _INO | _SIZE
_STATX_BYTES: Final = 256
_STATFS_BYTES: Final = 256  # more than any Linux has
_STATX = struct.Struct("=I24xHxxQQ48xqI4xqI4x8xII")
"""mask, mode, ino, size, ctime, mtime, device: the fields of struct statx (linux/stat.h) that make an identity."""
_libc = ctypes.CDLL(None, use_errno=True)
_statx = getattr(_libc, "statx", None)
_fstatfs = getattr(_libc, "fstatfs", None)


def remembered(directory: int, name: bytes) -> FileIdentity | None:
    """The identity of a regular file, without waiting for anybody; None if it cannot be told so.

    Raises:
        OSError: there is no such file, or it may not be looked at.
    """
    if _statx is None:
        return None
    found = ctypes.create_string_buffer(_STATX_BYTES)
    if _statx(directory, name, _AT_STATX_DONT_SYNC, _WANTED, found):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    mask, mode, inode, size, changed, changed_ns, modified, modified_ns, major, minor = _STATX.unpack_from(found)
    if mask & _WANTED != _WANTED or not stat.S_ISREG(mode):
        return None
    nanoseconds = 1_000_000_000
    return (
        os.makedev(major, minor),
        inode,
        size,
        modified * nanoseconds + modified_ns,
        changed * nanoseconds + changed_ns,
    )


def identity_of(status: os.stat_result) -> FileIdentity:
    """The same out of what `os.fstat` says."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_local(fd: int) -> bool:
    """Whether the open file lies on a file system of this machine's own. May wait for the file system."""
    found = ctypes.create_string_buffer(_STATFS_BYTES)
    if _fstatfs is None or _fstatfs(fd, found):
        return False
    kind = int.from_bytes(found.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder)
    return kind & 0xFFFF_FFFF in LOCAL_FILE_SYSTEMS
