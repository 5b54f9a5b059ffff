"""The Go program under go/, with go-spiffe, go-oidc and gRPC's own clients, built outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.interop.peers import HERE, lacking

SOURCE = HERE / "go"
BUILD_SECONDS = 480.0


def build_go_program(folder: Path) -> Path:
    """The program in `folder`; skips where it cannot be built for lack of Go or its modules."""
    go = shutil.which("go")
    if go is None:
        lacking("go", "there is no go command; install Go 1.24 or newer")
    # The toolchain that is here has to do: another one is not fetched behind anybody's back.
    env = {**os.environ, "GOTOOLCHAIN": "local", "GOWORK": "off"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [go, *words], cwd=SOURCE, env=env, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS
        )

    fetched = run("mod", "download")
    if fetched.returncode:
        lacking("go", f"the Go modules cannot be had: {fetched.stderr.strip()[-500:]}")
    program = folder / "peer"
    done = run("build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-o", str(program), ".")
    if done.returncode:
        pytest.fail(f"the Go program does not build:\n{done.stderr}", pytrace=False)
    return program
