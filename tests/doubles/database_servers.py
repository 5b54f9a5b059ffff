"""Private PostgreSQL and MariaDB servers: the system's binaries in a temporary directory, on a Unix socket only."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import pymysql
import pytest

REQUIRED = frozenset(os.environ.get("MUNIMENT_REQUIRE", "").split())
START_SECONDS = 60.0
FAST_BYTES = 2 << 30
USER = "muniment"


def lacking(part: str, reason: str) -> NoReturn:
    """Skip for lack of `part`, or fail where MUNIMENT_REQUIRE names it."""
    if part in REQUIRED:
        pytest.fail(f"{part} is required by MUNIMENT_REQUIRE, but {reason}", pytrace=False)
    pytest.skip(reason)


def _fast_directory() -> str | None:
    """Memory, if there is enough of it: making a schema is mostly waiting for the disk."""
    memory = "/dev/shm"
    return memory if os.path.isdir(memory) and shutil.disk_usage(memory).free > FAST_BYTES else None


class DatabaseServer:
    """A database server in a directory of its own. Subclasses say how it is made, started and stopped."""

    kind: str
    account: str
    """Whom it runs as if the test runs as root."""
    gentle: signal.Signals
    """What ends it in order, whoever is connected."""

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self.settings = dict(settings or {})
        self.folder = Path(tempfile.mkdtemp(prefix=f"mun-{self.kind[:2]}-", dir=_fast_directory()))
        self.folder.chmod(0o755)
        self.data = self.folder / "data"
        self.run = self.folder / "run"
        self.log = self.folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self._owner = pwd.getpwnam(self.account) if os.geteuid() == 0 else None
        for folder in (self.data, self.run):
            folder.mkdir(mode=0o755)
            self._give(folder)
        self.log.touch()
        self._give(self.log)
        try:
            self._make_with_patience()
            self.start()
        except BaseException:
            self.close()
            raise

    def _make_with_patience(self) -> None:
        """Make the data directory; once more if the distribution's own script stumbled over a busy machine."""
        try:
            self.make()
        except subprocess.CalledProcessError:
            shutil.rmtree(self.data)
            self.data.mkdir(mode=0o755)
            self._give(self.data)
            try:
                self.make()
            except subprocess.CalledProcessError as error:
                said = self.log.read_text(errors="replace")[-2000:]
                raise AssertionError(f"{self.kind} cannot be made:\n{said}") from error

    def secret(self, name: str, content: bytes) -> Path:
        """A file that only the server's account can read."""
        path = self.folder / name
        path.write_bytes(content)
        path.chmod(0o600)
        self._give(path)
        return path

    def restart(self, **settings: str) -> None:
        """With other settings."""
        self.stop(self.gentle)
        self.settings = settings
        self.start()

    def _give(self, path: Path) -> None:
        if self._owner is not None:
            os.chown(path, self._owner.pw_uid, self._owner.pw_gid)

    def _as_owner(self) -> dict[str, Any]:
        if self._owner is None:
            return {}
        return {"user": self._owner.pw_uid, "group": self._owner.pw_gid, "extra_groups": []}

    def tool(self, *argv: str | Path) -> None:
        """Run a tool to its end as the server's account."""
        with self.log.open("ab") as log:
            subprocess.run(
                [str(one) for one in argv], check=True, stdout=log, stderr=log, cwd=self.folder, **self._as_owner()
            )

    def spawn(self, argv: Sequence[str | Path]) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(one) for one in argv], stdout=log, stderr=log, cwd=self.folder, **self._as_owner()
            )

    def await_answer(self, ask: Callable[[], object], errors: type[Exception]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self.kind} did not start:\n{self.log.read_text(errors='replace')[-2000:]}")
            try:
                ask()
            except errors:
                time.sleep(0.05)
            else:
                return

    def stop(self, number: int) -> None:
        """Send a signal and wait for the end."""
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(number)
            process.wait(START_SECONDS)

    def make(self) -> None:
        raise NotImplementedError

    def start(self) -> None:
        raise NotImplementedError

    def stop_hard(self) -> None:
        """As in a crash: nothing is flushed that was not on the disk."""
        raise NotImplementedError

    def save(self) -> None:
        """A backup of all there is, made while it is stopped."""
        self.stop(self.gentle)
        shutil.rmtree(self.folder / "saved", ignore_errors=True)
        subprocess.run(["cp", "-a", self.data, self.folder / "saved"], check=True)
        self.start()

    def restore(self) -> None:
        """Go back to the backup; what was written since is gone."""
        self.stop(self.gentle)
        shutil.rmtree(self.data)
        subprocess.run(["cp", "-a", self.folder / "saved", self.data], check=True)
        self.start()

    def new_database(self, name: str) -> str:
        """An empty database; its URL."""
        raise NotImplementedError

    def execute(self, database: str, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements behind everybody's back; the rows of the last one."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Stop every process of the server where it stands."""
        for pid in self._processes():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self._processes():
            os.kill(pid, signal.SIGCONT)

    def _processes(self) -> list[int]:
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.stop_hard()
        shutil.rmtree(self.folder, ignore_errors=True)


def _newest_postgresql() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


class PostgreSQL(DatabaseServer):
    kind = "postgresql"
    account = "postgres"
    gentle = signal.SIGINT

    @staticmethod
    def missing() -> str:
        return "" if _newest_postgresql() else "PostgreSQL's server is not installed (Debian: postgresql)"

    def make(self) -> None:
        binaries = _newest_postgresql()
        assert binaries is not None
        self.binaries = binaries
        self.tool(self.binaries / "initdb", "-D", self.data, "-U", USER, "-A", "trust", "--no-sync", "-E", "UTF8")

    def start(self) -> None:
        options = {
            "listen_addresses": "",
            "unix_socket_directories": self.run,
            "max_connections": 400,
            "shared_buffers": "32MB",
            **self.settings,
        }
        self.spawn(
            [
                self.binaries / "postgres",
                "-D",
                self.data,
                *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
            ]
        )
        self.await_answer(lambda: self.execute("postgres", "SELECT 1"), psycopg.Error)

    def stop_hard(self) -> None:
        self.stop(signal.SIGQUIT)  # "immediate": no checkpoint, recovery at the next start

    def new_database(self, name: str) -> str:
        self.execute("postgres", f'CREATE DATABASE "{name}"')
        return f"postgresql://{USER}@/{name}?host={self.run}"

    def execute(self, database: str, *statements: str) -> list[tuple[Any, ...]]:
        port = int(self.settings.get("port", "5432"))
        with psycopg.connect(host=str(self.run), port=port, user=USER, dbname=database, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []


class MariaDB(DatabaseServer):
    kind = "mariadb"
    account = "mysql"
    gentle = signal.SIGTERM

    @staticmethod
    def missing() -> str:
        if shutil.which("mariadbd", path="/usr/sbin:/usr/bin") and shutil.which("mariadb-install-db"):
            return ""
        return "MariaDB's server is not installed (Debian: mariadb-server)"

    def make(self) -> None:
        self.tool(
            "mariadb-install-db",
            "--no-defaults",
            f"--datadir={self.data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        )

    def start(self) -> None:
        self.spawn(
            [
                shutil.which("mariadbd", path="/usr/sbin:/usr/bin") or "mariadbd",
                "--no-defaults",
                f"--datadir={self.data}",
                f"--socket={self.run / 'mysqld.sock'}",
                f"--pid-file={self.run / 'pid'}",
                *(() if "port" in self.settings else ("--skip-networking",)),
                "--max-connections=400",
                "--innodb-buffer-pool-size=64M",
                "--innodb-flush-log-at-trx-commit=1",
                *(f"--{name}={value}" for name, value in self.settings.items()),
            ]
        )
        self.await_answer(self._knock, OSError)
        self.await_answer(lambda: self.execute("mysql", "SELECT 1"), pymysql.Error)

    def _knock(self) -> None:
        """The driver leaves its socket open when nobody listens."""
        with socket.socket(socket.AF_UNIX) as knock:
            knock.connect(str(self.run / "mysqld.sock"))

    def stop_hard(self) -> None:
        self.stop(signal.SIGKILL)

    def new_database(self, name: str) -> str:
        self.execute("mysql", f"CREATE DATABASE `{name}`")
        return f"mariadb://root@/{name}?unix_socket={self.run / 'mysqld.sock'}"

    def execute(self, database: str, *statements: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(
            pymysql.connect(unix_socket=str(self.run / "mysqld.sock"), user="root", database=database, autocommit=True)
        ) as connection:
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
                return list(cursor.fetchall())


SERVERS: dict[str, type[PostgreSQL | MariaDB]] = {"postgresql": PostgreSQL, "mariadb": MariaDB}


def new_server(kind: str) -> DatabaseServer:
    """A server for one test, which may stop it; skips if it is not installed."""
    found = SERVERS[kind]
    reason = found.missing()
    if reason:
        lacking(kind, reason)
    return found()


@functools.cache
def shared_server(kind: str) -> DatabaseServer:
    """The server of this test process, for tests that leave it running."""
    server = new_server(kind)
    atexit.register(server.close)
    return server
