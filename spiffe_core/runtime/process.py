"""What a daemon that holds keys asks of its kernel at start."""

from __future__ import annotations

import ctypes
import logging
import os
import resource

_PR_SET_DUMPABLE = 4

log = logging.getLogger(__name__)


def refuse_dumps() -> None:
    """No core files, no ptrace and no reading of this process's memory by others of the same uid (prctl(2), S72)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log.warning("PR_SET_DUMPABLE was refused: %s", os.strerror(ctypes.get_errno()))


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
