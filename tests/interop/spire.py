"""SPIRE's own server, agent and commands as processes; the folder of their binaries is named by MUNIMENT_SPIRE_BIN."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from cryptography import x509

from deploy.demo.stack import Daemon, free_port
from tests.interop.peers import lacking

COMMAND_SECONDS = 30.0
JOIN_TOKEN = 'NodeAttestor "join_token" { plugin_data {} }'
"""The node attestor of a configuration that names no other."""


def spire_binaries() -> Path:
    """The folder with spire-server and spire-agent; skips when there is none."""
    named = os.environ.get("MUNIMENT_SPIRE_BIN", "")
    if not named:
        lacking("spire", "MUNIMENT_SPIRE_BIN names no folder with spire-server and spire-agent")
    folder = Path(named)
    for name in ("spire-server", "spire-agent"):
        if not os.access(folder / name, os.X_OK):
            lacking("spire", f"MUNIMENT_SPIRE_BIN is {folder}, which has no program {name}")
    return folder


class Failed(Exception):
    """A command ended with an exit code other than 0."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        super().__init__(f"{done.args}\n{done.stdout}{done.stderr}")
        self.done = done


def run(*argv: str | Path, stdin: str | None = None) -> str:
    """The output of a command that has to succeed."""
    done = subprocess.run(
        [str(word) for word in argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_SECONDS,
        input=stdin if stdin is not None else "",
    )
    if done.returncode:
        raise Failed(done)
    return done.stdout


class Commands:
    """One `... -socketPath SOCKET` command line, SPIRE's or ours."""

    def __init__(self, program: Path, socket: Path) -> None:
        self.program = program
        self.socket = socket

    def __call__(self, *words: str, stdin: str | None = None) -> str:
        return run(self.program, *words, "-socketPath", str(self.socket), stdin=stdin)

    def json(self, *words: str, stdin: str | None = None) -> Any:
        return json.loads(self(*words, "-output", "json", stdin=stdin))


class StockServer:
    """A stock spire-server on loopback."""

    def __init__(
        self, binaries: Path, folder: Path, trust_domain: str, *, settings: str = "", attestor: str = JOIN_TOKEN
    ) -> None:
        self.trust_domain = trust_domain
        self.port = free_port()
        self.socket = folder / "spire-server.sock"
        self.command = Commands(binaries / "spire-server", self.socket)
        self._folder = folder
        self._config = folder / "spire-server.conf"
        self._config.write_text(
            f"""server {{
    bind_address = "127.0.0.1"
    bind_port = "{self.port}"
    socket_path = "{self.socket}"
    data_dir = "{folder}/spire-server"
    trust_domain = "{trust_domain}"
    log_level = "DEBUG"
    {settings}
}}
plugins {{
    DataStore "sql" {{
        plugin_data {{
            database_type = "sqlite3"
            connection_string = "{folder}/spire-server/datastore.sqlite3"
        }}
    }}
    {attestor}
    KeyManager "memory" {{ plugin_data {{}} }}
}}
"""
        )
        self.daemon: Daemon | None = None

    def start(self, env: dict[str, str] | None = None) -> StockServer:
        (self._folder / "spire-server").mkdir(exist_ok=True)
        argv = [str(self.command.program), "run", "-config", str(self._config)]
        self.daemon = Daemon(argv, self._folder / "spire-server.log", env)
        self.daemon.wait_serving(self.socket)
        return self

    def close(self) -> None:
        if self.daemon is not None:
            self.daemon.stop()


class StockAgent:
    """A stock spire-agent that asks every second, with its keys and its SVID on disk."""

    def __init__(
        self,
        binaries: Path,
        folder: Path,
        *,
        trust_domain: str,
        port: int,
        bundle: Path,
        attestor: str = JOIN_TOKEN,
        experimental: str = "",
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.node = ""
        """The alias of the node, below which its entries go."""
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir(exist_ok=True)
        self.program = binaries / "spire-agent"
        self.socket = folder / "public" / "api.sock"
        self.admin = folder / "private" / "admin.sock"
        self._config = folder / "agent.conf"
        self._config.write_text(
            f"""agent {{
    data_dir = "{self.data}"
    server_address = "127.0.0.1"
    server_port = "{port}"
    socket_path = "{self.socket}"
    admin_socket_path = "{self.admin}"
    trust_bundle_path = "{bundle}"
    trust_domain = "{trust_domain}"
    log_level = "DEBUG"
    experimental {{
        sync_interval = "1s"
        {experimental}
    }}
}}
plugins {{
    {attestor}
    KeyManager "disk" {{ plugin_data {{ directory = "{self.data}" }} }}
    WorkloadAttestor "unix" {{ plugin_data {{ discover_workload_path = true }} }}
}}
"""
        )
        self.daemon: Daemon | None = None

    def spawn(self, token: str = "") -> Daemon:
        argv = [str(self.program), "run", "-config", str(self._config), *(["-joinToken", token] if token else [])]
        self.daemon = Daemon(argv, self.folder / "agent.log")
        return self.daemon

    def start(self, token: str = "") -> StockAgent:
        self.spawn(token).wait_serving(self.socket)
        return self

    @property
    def log(self) -> str:
        assert self.daemon is not None
        return self.daemon.log.read_text(errors="replace")

    def saved_svid(self) -> bool:
        """Whether there is an SVID in its state file."""
        state = self.data / "agent-data.json"
        return state.exists() and bool(json.loads(state.read_text()).get("svid"))

    def info(self) -> Any:
        return Commands(self.program, self.admin).json("debug", "getinfo")

    def close(self) -> None:
        if self.daemon is not None:
            self.daemon.kill()


def fetched(program: Path, socket: Path) -> list[dict[str, Any]]:
    """What `spire-agent api fetch x509` gets from the Workload API at `socket`: nothing when it is refused."""
    try:
        answer = Commands(program, socket).json("api", "fetch", "x509")
    except Failed:
        return []
    return [svid for message in (answer if isinstance(answer, list) else [answer]) for svid in message["svids"]]


def certificates(joined: bytes) -> list[x509.Certificate]:
    """The certificates of a Workload API field: DER behind DER, each longer than 255 bytes and shorter than 65,536."""
    found = []
    while joined:
        assert joined[:2] == b"\x30\x82"
        size = 4 + int.from_bytes(joined[2:4], "big")
        found.append(x509.load_der_x509_certificate(joined[:size]))
        joined = joined[size:]
    return found
