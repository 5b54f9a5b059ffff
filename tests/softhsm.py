"""Real PKCS#11 tokens for tests: SoftHSM2's, in a private directory of this process.

Where it is not installed its tests are skipped, or fail if MUNIMENT_REQUIRE names "softhsm". SoftHSM reads its
configuration when it is initialised, so all tokens of one process stand in one directory, each with a label of its own.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN, OFFICER_PIN = "4321-good", "1234-officer"
SERVER = "server-1"


@dataclass(frozen=True)
class SoftToken:
    """One token: its label, where SoftHSM keeps it, and a file with its PIN."""

    label: str
    place: Path
    pin_file: Path
    refused: Path
    config: Path

    def address(self, **over: Any) -> Any:
        from identity_server.keys.token_link import TokenAddress

        named = {"module": MODULE, "pin_file": self.pin_file, "refused": self.refused, "token": self.label, **over}
        return TokenAddress(**named)

    def keys(self, *, prefix: str = "muniment-", server_id: str = SERVER, monotonic: Any = time.monotonic, **over: Any):
        """A key manager on this token, as after a restart."""
        from identity_server.keys.pkcs11 import Pkcs11Keys

        return Pkcs11Keys(self.address(**over), prefix=prefix, server_id=server_id, monotonic=monotonic)

    def settings(self, **over: Any) -> dict[str, Any]:
        """The table [ca.pkcs11]."""
        named = {"module": str(MODULE), "token": self.label, "pin_file": str(self.pin_file)}
        return {**named, **over}

    def pull_out(self) -> None:
        """Take the token's directory away."""
        self.place.rename(self._away)

    def put_back(self) -> None:
        self._away.rename(self.place)

    @property
    def _away(self) -> Path:
        return self.place.parent.parent / f"away-{self.label}"

    def tool(self, *argv: str) -> str:
        """OpenSC's pkcs11-tool, logged in: another program that uses the token."""
        if shutil.which("pkcs11-tool") is None:
            _lacking("pkcs11-tool is not installed")
        command = ["pkcs11-tool", "--module", str(MODULE), "--token-label", self.label, "--login", "--pin", PIN, *argv]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def soft_token(folder: Path) -> SoftToken:
    """A fresh token, or a skipped test."""
    config = _configured()
    tokens = config.parent / "tokens"
    label = f"t{uuid.uuid4().hex[:16]}"
    before = set(tokens.iterdir())
    command = ["softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", OFFICER_PIN, "--pin", PIN]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    (place,) = set(tokens.iterdir()) - before
    folder.mkdir(0o700, parents=True, exist_ok=True)
    pin_file = folder / "pin"
    write_pin(pin_file, PIN)
    return SoftToken(label, place, pin_file, folder / "refused", config)


def write_pin(path: Path, pin: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(0o600)
    path.write_text(f"{pin}\n", encoding="utf-8")


@cache
def _configured() -> Path:
    if not MODULE.exists() or shutil.which("softhsm2-util") is None:
        _lacking("SoftHSM2 is not installed")
    root = Path(tempfile.mkdtemp(prefix="softhsm-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    (root / "tokens").mkdir(0o700)
    config = root / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {root}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(config)
    return config


def _lacking(reason: str) -> None:
    if "softhsm" in os.environ.get("MUNIMENT_REQUIRE", "").split():
        pytest.fail(f"softhsm is required by MUNIMENT_REQUIRE, but {reason}", pytrace=False)
    pytest.skip(reason)
