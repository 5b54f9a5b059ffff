"""What is measured: a server of ours or a real SPIRE server, behind the same few words."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Protocol, Self

from deploy.demo.stack import Daemon, LocalStack, free_port

TRUST_DOMAIN = "bench.test"
UNLIMITED = "[ratelimit]\nattestation = false\nsigning = false\n"


class Target(Protocol):
    """A running server."""

    name: str
    admin_socket: Path
    port: int
    server: Daemon | None

    def start_server(self, seconds: float = 60.0) -> Daemon: ...

    def close(self) -> None: ...


class Muniment(LocalStack):
    """Our server, its rate limits off, audit and log on."""

    name = "muniment"

    def __init__(self, *, workers: int = 0, database: str = "", extra: str = "") -> None:
        self.workers = workers
        self.database_kind = "PostgreSQL" if database else "SQLite"
        text = UNLIMITED + extra + (f'[database]\nurl = "{database}"\n' if database else "")
        super().__init__(TRUST_DOMAIN, server=text, ca=f"signing_workers = {workers}\n" if workers else "")


class Spire:
    """A SPIRE server out of a directory with its binaries: SQLite, keys on disk, its rate limits off."""

    name = "spire"

    def __init__(self, binaries: Path, *, reload: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bench-spire-"))
        self.port = free_port()
        self.admin_socket = self.folder / "admin.sock"
        self.server: Daemon | None = None
        self._binary = binaries / "spire-server"
        (self.folder / "data").mkdir()
        (self.folder / "server.conf").write_text(
            f"""
server {{
    bind_address = "127.0.0.1"
    bind_port = "{self.port}"
    socket_path = "{self.admin_socket}"
    data_dir = "{self.folder}/data"
    trust_domain = "{TRUST_DOMAIN}"
    log_level = "INFO"
    ca_key_type = "ec-p256"
    ratelimit {{ attestation = false  signing = false }}
    {f'experimental {{ cache_reload_interval = "{reload}" }}' if reload else ""}
}}
plugins {{
    DataStore "sql" {{ plugin_data {{
        database_type = "sqlite3"
        connection_string = "{self.folder}/data/datastore.sqlite3"
    }} }}
    NodeAttestor "join_token" {{ plugin_data {{}} }}
    KeyManager "disk" {{ plugin_data {{ keys_path = "{self.folder}/data/keys.json" }} }}
}}
"""
        )

    def start_server(self, seconds: float = 60.0) -> Daemon:
        argv = [str(self._binary), "run", "-config", str(self.folder / "server.conf")]
        self.server = Daemon(argv, self.folder / "server.log")
        self.server.wait_serving(self.admin_socket, seconds)
        return self.server

    def close(self) -> None:
        if self.server is not None:
            self.server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SpirePair(Spire):
    """A SPIRE server with an agent; `interval` is how often both look for what is new, "" for their defaults (5 s)."""

    def __init__(self, binaries: Path, *, interval: str = "") -> None:
        super().__init__(binaries, reload=interval)
        self.node_id = f"spiffe://{TRUST_DOMAIN}/node"
        self.api_socket = self.folder / "public" / "api.sock"
        self.agent: Daemon | None = None
        self._program = binaries / "spire-agent"
        self._config = self.folder / "agent.conf"
        (self.folder / "agent").mkdir()
        self._config.write_text(
            f"""
agent {{
    data_dir = "{self.folder}/agent"
    server_address = "127.0.0.1"
    server_port = "{self.port}"
    socket_path = "{self.api_socket}"
    trust_bundle_path = "{self.folder}/bundle.pem"
    trust_domain = "{TRUST_DOMAIN}"
    log_level = "INFO"
    {f'experimental {{ sync_interval = "{interval}" }}' if interval else ""}
}}
plugins {{
    NodeAttestor "join_token" {{ plugin_data {{}} }}
    KeyManager "memory" {{ plugin_data {{}} }}
    WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"""
        )

    def start_agent(self, bundle: str, token: str) -> Daemon:
        (self.folder / "bundle.pem").write_text(bundle)
        argv = [str(self._program), "run", "-config", str(self._config), "-joinToken", token]
        self.agent = Daemon(argv, self.folder / "agent.log")
        self.agent.wait_serving(self.api_socket)
        return self.agent

    def close(self) -> None:
        if self.agent is not None:
            self.agent.kill()
        super().close()
