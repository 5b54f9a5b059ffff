"""Where a daemon keeps its files when nobody says otherwise (architecture A13).

As root: `/run/muniment` for sockets and `/var/lib/muniment` for state. Otherwise the XDG base directories of the user:
`$XDG_RUNTIME_DIR/muniment` (or `/tmp/muniment-<uid>`) and `$XDG_STATE_HOME/muniment` (or `~/.local/state/muniment`).
Nothing is created here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

NAME = "muniment"


def run_directory(environ: Mapping[str, str] | None = None, uid: int | None = None) -> Path:
    """The directory for sockets."""
    env = os.environ if environ is None else environ
    owner = os.geteuid() if uid is None else uid
    if owner == 0:
        return Path("/run") / NAME
    base = env.get("XDG_RUNTIME_DIR", "")
    if base.startswith("/"):  # the XDG specification says: ignore a relative one
        return Path(base) / NAME
    return Path("/tmp") / f"{NAME}-{owner}"  # noqa: S108  # created 0700 and checked for ownership by who uses it


def state_directory(environ: Mapping[str, str] | None = None, uid: int | None = None) -> Path:
    """The directory for keys, databases and other things that must survive a restart."""
    env = os.environ if environ is None else environ
    owner = os.geteuid() if uid is None else uid
    if owner == 0:
        return Path("/var/lib") / NAME
    base = env.get("XDG_STATE_HOME", "")
    if base.startswith("/"):
        return Path(base) / NAME
    return Path(env.get("HOME", "/")) / ".local" / "state" / NAME


def server_socket(environ: Mapping[str, str] | None = None, uid: int | None = None) -> Path:
    """The identity server's admin socket."""
    return run_directory(environ, uid) / "server" / "admin.sock"


def agent_socket(environ: Mapping[str, str] | None = None, uid: int | None = None) -> Path:
    """The node agent's Workload API socket."""
    return run_directory(environ, uid) / "agent" / "api.sock"


def agent_admin_socket(environ: Mapping[str, str] | None = None, uid: int | None = None) -> Path:
    """The node agent's admin socket: never below a directory that workloads mount for the Workload API."""
    return run_directory(environ, uid) / "agent-admin" / "admin.sock"
