"""What only root can try: other users, stopped daemons, namespaces, system calls that fail."""

import functools
import os
import shutil
import subprocess

import pytest

REQUIRED = frozenset(os.environ.get("MUNIMENT_REQUIRE", "").split())


def need_root():
    """Skip for anybody else, or fail where MUNIMENT_REQUIRE names "root"."""
    if os.geteuid() != 0:
        _lacking("root", "only root may become other users")


def need_namespaces(*flags):
    """Skip where unshare(1) may not make what `flags` ask for, or fail where MUNIMENT_REQUIRE names "namespaces"."""
    reason = _unshare(flags)
    if reason:
        _lacking("namespaces", reason)


def need_strace():
    """Skip where strace cannot look at another process of ours, or fail where MUNIMENT_REQUIRE names "strace"."""
    need_root()  # another user's strace may look at its own children alone
    if not shutil.which("strace"):
        _lacking("strace", "strace(1) is missing")
    probe = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], check=False, capture_output=True, text=True)
    if probe.returncode:
        _lacking("strace", probe.stderr.strip())


@functools.cache
def _unshare(flags):
    if not shutil.which("unshare"):
        return "unshare(1) is missing"
    probe = subprocess.run(["unshare", *flags, "true"], check=False, capture_output=True, text=True)
    return probe.stderr.strip() if probe.returncode else ""


def _lacking(part, reason):
    if part in REQUIRED:
        pytest.fail(f"{part} is required by MUNIMENT_REQUIRE, but {reason}", pytrace=False)
    pytest.skip(reason)
