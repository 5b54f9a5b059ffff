"""Programs that ask our Workload API who they are: each a process of its own, told apart by its path.

A program says what it learns in JSON, one line per event, the name of the event under "event".
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REQUIRED = frozenset(os.environ.get("MUNIMENT_REQUIRE", "").split())
"""Optional parts that must be there: a test that would be skipped for lack of one fails instead."""


def lacking(part: str, reason: str) -> NoReturn:
    """Skip for lack of `part`, or fail where it is required."""
    if part in REQUIRED:
        pytest.fail(f"{part} is required by MUNIMENT_REQUIRE, but {reason}", pytrace=False)
    pytest.skip(reason)


class Program:
    """A running program and the events it has told so far; `close` kills it."""

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str], log: Path, told: bool = False) -> None:
        """With `told` it reads what `tell` says."""
        self.log = log
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                list(argv),
                env=dict(env),
                stdin=subprocess.PIPE if told else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                self._events.put(json.loads(line))
            except ValueError:
                self._events.put({"event": "not JSON", "line": line})
        self._events.put(None)

    def tell(self, line: str) -> None:
        """One line for the program to read."""
        assert self.process.stdin is not None, "it was started to be told nothing"
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def hear(self, event: str, seconds: float = 20.0) -> dict[str, Any]:
        """The next event, which has to be `event`."""
        try:
            found = self._events.get(timeout=seconds)
        except queue.Empty:
            found = {"event": f"nothing within {seconds:g} s"}
        if found is None or found["event"] != event:
            pytest.fail(f"expected {event!r}, heard {found}; its log: {self.log.read_text(errors='replace')[-2000:]}")
        return found

    def wait(self, seconds: float = 20.0) -> int:
        """Its exit code."""
        return self.process.wait(seconds)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has gone, with a line unread
                self.process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Interpreter:
    """A copy of a Python interpreter under a path of its own, with the packages of one environment."""

    def __init__(self, folder: Path, name: str, packages: Sequence[str]) -> None:
        self.path = folder / name
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            shutil.copy2(os.path.realpath(sys.executable), self.path)
        libraries = [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
        self._env = {
            **os.environ,
            "PYTHONHOME": sys.base_prefix,
            "PYTHONPATH": os.pathsep.join(packages),
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        }

    def run(self, script: Path, *words: str, socket: Path) -> Program:
        """Run a script that finds the Workload API at `socket`."""
        return Program(
            [str(self.path), str(script), *words],
            env={**self._env, "SPIFFE_ENDPOINT_SOCKET": f"unix://{socket}"},
            log=self.path.with_suffix(".log"),
        )


def our_interpreter(folder: Path, name: str) -> Interpreter:
    """An interpreter with our packages."""
    paths = sysconfig.get_paths()
    return Interpreter(folder, name, [str(ROOT), paths["purelib"], paths["platlib"]])


def until(fact: Any, seconds: float = 25.0, pause: float = 0.2) -> Any:
    """Ask until the answer is true, and return it. For what other projects' programs tell only when asked."""
    deadline = time.monotonic() + seconds
    while True:
        found = fact()
        if found:
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"still {found!r} after {seconds:g} s: {getattr(fact, '__doc__', None) or fact}")
        time.sleep(pause)
