"""A server and an agent as real processes in one private directory: for the demo, the benchmarks and the tests."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2

BIN = Path(sys.executable).parent


class NotStarted(RuntimeError):
    """A daemon did not come up; the text holds the end of its log."""


_PORTS = range(10_000, 30_000)
"""Below the ports that kernels give to outgoing connections: one of those could take a port before its server does."""
_reserved: list[int] = []


def free_port() -> int:
    """A TCP port on loopback that is this process's until it ends, also while nobody listens there.

    A name in the abstract socket namespace says so to other processes; it goes with the process and is no file.
    """
    start = secrets.randbelow(len(_PORTS))
    for port in (*_PORTS[start:], *_PORTS[:start]):
        with socket.socket(socket.AF_UNIX) as name, socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                name.bind(f"\0muniment-port-{port}")
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _reserved.append(name.detach())
            return port
    raise NotStarted(f"every TCP port from {_PORTS.start} to {_PORTS.stop} is taken")


class Daemon:
    """One child process with its log file; killed with its parent's `stop`."""

    def __init__(self, argv: list[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                argv, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})}
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_serving(self, path: Path, seconds: float = 30.0) -> None:
        """Return once grpc.health on the Unix socket answers SERVING."""
        deadline = time.monotonic() + seconds
        with grpc.insecure_channel(f"unix:{path}", options=[("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 50)]) as channel:  # fmt: skip
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            while True:
                with contextlib.suppress(grpc.RpcError):
                    if path.exists() and check(health_pb2.HealthCheckRequest(), timeout=1).status == 1:
                        return
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise NotStarted(f"{path} is not serving; the log ends:\n{self.tail()}")
                time.sleep(0.01)

    def wait_saying(self, words: str, seconds: float = 40.0) -> None:
        """Return once these words stand in the log."""
        deadline = time.monotonic() + seconds
        while words not in self.log.read_text(errors="replace"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise NotStarted(f"it never said {words!r}; the log ends:\n{self.tail()}")
            time.sleep(0.02)

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, seconds: float = 10.0) -> int:
        """SIGTERM, then the exit code; SIGKILL for one that does not go."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        return int(self.process.returncode)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class LocalStack:
    """Server and agent of one trust domain under one directory; `close` leaves nothing running and nothing behind."""

    def __init__(
        self,
        trust_domain: str = "demo.test",
        *,
        folder: Path | None = None,
        server: str = "",
        agent: str = "",
        ca: str = "",
        key_manager: str = "disk",
        sync_interval: str = "1s",
    ) -> None:
        self.trust_domain = trust_domain
        self.folder = folder or Path(tempfile.mkdtemp(prefix="muniment-"))
        self.folder.chmod(0o700)
        self.port = free_port()
        self.server_ports = [self.port]
        """Of the servers that the agent knows."""
        self.admin_socket = self.folder / "server" / "admin.sock"
        self.api_socket = self.folder / "agent" / "api.sock"
        self.agent_admin_socket = self.folder / "agent-admin" / "admin.sock"
        self.node_id = f"spiffe://{trust_domain}/node"
        self._server_text = server
        self._agent_text = agent
        self._ca_text = f'key_manager = "{key_manager}"\n{ca}'
        self._sync = sync_interval
        self.server: Daemon | None = None
        self.agent: Daemon | None = None
        self.server_config = self.folder / "server.toml"
        self.agent_config = self.folder / "agent.toml"
        self.write_configs()

    def write_configs(self) -> None:
        self.server_config.write_text(
            f'trust_domain = "{self.trust_domain}"\ndata_dir = "{self.folder}/server-data"\n'
            f'bind_address = "127.0.0.1"\nbind_port = {self.port}\nsocket_path = "{self.admin_socket}"\n'
            f"{self._server_text}\n[ca]\n{self._ca_text}\n"
        )
        servers = ", ".join(f'"127.0.0.1:{port}"' for port in self.server_ports)
        self.agent_config.write_text(
            f'trust_domain = "{self.trust_domain}"\ndata_dir = "{self.folder}/agent-data"\n'
            f'server_address = [{servers}]\nsocket_path = "{self.api_socket}"\n'
            f'trust_bundle_path = "{self.folder}/bundle.pem"\njoin_token_file = "{self.folder}/token"\n'
            f'admin_socket_path = "{self.agent_admin_socket}"\n'
            f'sync_interval = "{self._sync}"\n{self._agent_text}\n'
        )

    def spawn_server(self) -> Daemon:
        argv = [str(BIN / "identity-server"), "run", "--config", str(self.server_config)]
        self.server = Daemon(argv, self.folder / "server.log")
        return self.server

    def start_server(self, seconds: float = 30.0) -> Daemon:
        server = self.spawn_server()
        server.wait_serving(self.admin_socket, seconds)
        return server

    def prepare_join(self) -> None:
        """Write the bundle and a fresh join token where the agent's configuration looks for them."""
        (self.folder / "bundle.pem").write_text(self.admin("bundle", "show"))
        token = self.admin_json("token", "generate", "-spiffeID", self.node_id)["value"]
        path = self.folder / "token"
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
            file.write(token)

    def spawn_agent(self) -> Daemon:
        argv = [str(BIN / "node-agent"), "run", "--config", str(self.agent_config)]
        self.agent = Daemon(argv, self.folder / "agent.log")
        return self.agent

    def start_agent(self) -> Daemon:
        agent = self.spawn_agent()
        agent.wait_serving(self.api_socket)
        return agent

    def start(self) -> LocalStack:
        self.start_server()
        self.prepare_join()
        self.start_agent()
        return self

    def admin(self, *words: str) -> str:
        """Run `identity-server WORDS` against this server; its output."""
        argv = [str(BIN / "identity-server"), *words, "-socketPath", str(self.admin_socket)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def admin_json(self, *words: str) -> Any:
        return json.loads(self.admin(*words, "-output", "json"))

    def register(self, path: str, *selectors: str, ttl: int = 0, federates_with: tuple[str, ...] = ()) -> str:
        """Create an entry below the node alias; its id."""
        words = ["entry", "create", "-parentID", self.node_id, "-spiffeID", f"spiffe://{self.trust_domain}{path}"]
        for selector in selectors:
            words += ["-selector", selector]
        for name in federates_with:
            words += ["-federatesWith", name]
        if ttl:
            words += ["-x509SVIDTTL", str(ttl)]
        return str(self.admin_json(*words)["results"][0]["entry"]["id"])

    def close(self) -> None:
        for daemon in (self.agent, self.server):
            if daemon is not None:
                daemon.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
