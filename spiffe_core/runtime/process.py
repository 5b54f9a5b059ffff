"""What a daemon that holds keys asks of its kernel at start."""

from __future__ import annotations

import ctypes
import logging
import os
import resource

DESCRIPTORS_PER_CONNECTION = 4
"""The peer's socket, our socket to gRPC, gRPC's end of it, and the pidfd of a peer on this machine."""
DESCRIPTORS_BESIDES = 512
"""Half of it is for the 64 connections that root may have beyond the limit, half for what is no connection."""
FEWEST_CONNECTIONS = 16
_PR_SET_DUMPABLE = 4
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
LARGE_BYTES = 2 * 1024 * 1024
"""A block of this size gets pages of its own from the kernel; so many free bytes at the heap's end go back to it.

Above what each read from a socket takes (256 KiB): pages fetched and given back for each call are a fifth of its cost.
"""

log = logging.getLogger(__name__)


def refuse_dumps() -> None:
    """No core files, no ptrace and no reading of this process's memory by others of the same uid (prctl(2), S72)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log.warning("PR_SET_DUMPABLE was refused: %s", os.strerror(ctypes.get_errno()))


def hand_back_memory() -> None:
    """Have memory that is no longer needed go back to the kernel (mallopt(3)).

    Left alone, glibc raises both thresholds to the largest block that was ever freed, and after one answer of 20 MB
    keeps up to 40 MB for the next. Other C libraries have no such call and need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, LARGE_BYTES)


def trim_memory() -> None:
    """Hand back every page that holds nothing, wherever it lies (malloc_trim(3)): after work that took much of it.

    What was freed below a block that is in use stays with the process otherwise. Takes milliseconds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def connections_that_fit(connections: int, *, chosen: bool) -> int:
    """Raise the limit of open files for so many connections; how many there is room for.

    A number that somebody chose stays, with a warning if the hard limit is in its way. A default gives way: it becomes
    what the hard limit allows, which is worth a line and no alarm.
    """
    wanted = connections * DESCRIPTORS_PER_CONNECTION + DESCRIPTORS_BESIDES
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if chosen or hard == resource.RLIM_INFINITY or hard >= wanted:
        raise_descriptor_limit(wanted)
        return connections
    raise_descriptor_limit(hard)
    room = max(FEWEST_CONNECTIONS, (hard - DESCRIPTORS_BESIDES) // DESCRIPTORS_PER_CONNECTION)
    log.info(
        "at most %d connections at a time, as %d open files allow; ulimit -n %d makes room for the usual %d",
        room,
        hard,
        wanted,
        connections,
    )
    return room


def raise_descriptor_limit(wanted: int) -> int:
    """Raise the soft limit of open files to `wanted` or to the hard limit; return what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = target
    if soft != resource.RLIM_INFINITY and soft < wanted:
        log.warning("open files are limited to %d, %d are needed for all connections; raise ulimit -n", soft, wanted)
    return soft
