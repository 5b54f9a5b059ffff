"""Real Envoys that get their certificates from our agent, and a service behind them that says who called."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Self

from deploy.demo.stack import free_port
from tests.interop.peers import ROOT, lacking, until

TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


def envoy_binary() -> Path:
    """The Envoy of the foreign environment."""
    found = sorted(ROOT.glob(".venv-foreign/lib/python3*/site-packages/envoy/_bin/envoy"))
    if not found:
        lacking("foreign", "Envoy is not installed (x86_64 only); make .venv-foreign/.installed")
    return found[0]


class Backend:
    """A plain HTTP service that answers with the identity its proxy saw."""

    def __enter__(self) -> Self:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen = dict(
                    part.split("=", 1) for part in self.headers.get("x-forwarded-client-cert", "URI=").split(";")
                )
                body = seen["URI"].encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def sds(name: str, *, delta: bool = False, timeout: str | None = None) -> dict[str, Any]:
    """A secret by name, from the agent."""
    source: dict[str, Any] = {
        "resource_api_version": "V3",
        "api_config_source": {
            "api_type": "DELTA_GRPC" if delta else "GRPC",
            "transport_api_version": "V3",
            "set_node_on_first_message_only": True,
            "grpc_services": [{"envoy_grpc": {"cluster_name": "agent"}}],
        },
    }
    if timeout is not None:
        source["initial_fetch_timeout"] = timeout
    return {"name": name, "sds_config": source}


def tls_context(own: str, trusted: str, peer: dict[str, str], **how: Any) -> dict[str, Any]:
    """The common TLS context: our own secret, whom to trust, and which ID the peer must have."""
    return {
        "tls_certificate_sds_secret_configs": [sds(own, **how)],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": peer}]},
            "validation_context_sds_secret_config": sds(trusted, **how),
        },
    }


def _listener(port: int, cluster: str, tls: dict[str, Any] | None) -> dict[str, Any]:
    manager: dict[str, Any] = {
        "@type": HTTP,
        "stat_prefix": "in",
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]}
            ]
        },
        "http_filters": [{"name": "router", "typed_config": {"@type": ROUTER}}],
    }
    chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": manager}]}
    if tls is not None:
        manager["forward_client_cert_details"] = "SANITIZE_SET"
        manager["set_current_client_cert_details"] = {"uri": True}
        chain["transport_socket"] = {
            "name": "tls",
            "typed_config": {
                "@type": f"{TLS}.DownstreamTlsContext",
                "require_client_certificate": True,
                "common_tls_context": tls,
            },
        }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"name": "in", "address": address, "filter_chains": [chain]}


def _cluster(name: str, port: int, tls: dict[str, Any] | None) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
    cluster: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if tls is not None:
        cluster["transport_socket"] = {
            "name": "tls",
            "typed_config": {"@type": f"{TLS}.UpstreamTlsContext", "common_tls_context": tls},
        }
        cluster["typed_extension_protocol_options"] = {  # a new handshake for each request
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": {"max_requests_per_connection": 1},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        }
    return cluster


def _agent_cluster(name: str, socket: str) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"pipe": {"path": socket}}}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }


class Envoy:
    """One Envoy process. `path` is what `unix:path` sees: a link of its own to the binary."""

    def __init__(
        self,
        folder: Path,
        name: str,
        socket: Path,
        to: int,
        *,
        inbound: dict[str, Any] | None = None,
        outbound: dict[str, Any] | None = None,
        agent_cluster: str = "agent",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.path = link(folder, name)
        self.port, self._admin = free_port(), free_port()
        config = {
            "node": {"id": name, "cluster": "test", "metadata": metadata or {}},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": self._admin}}},
            "static_resources": {
                "listeners": [_listener(self.port, "next", inbound)],
                "clusters": [_cluster("next", to, outbound), _agent_cluster(agent_cluster, str(socket))],
            },
        }
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [
                    str(self.path), "--config-yaml", json.dumps(config), "--disable-hot-restart", "--concurrency", "1",
                    "-l", "warning",
                ],
                stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=folder,
            )  # fmt: skip

    def admin(self, path: str) -> Any:
        """What the admin page says, or None while it does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._admin, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        except OSError:
            return None
        finally:
            connection.close()

    def state(self) -> str:
        """PRE_INITIALIZING, INITIALIZING, LIVE, or "" while it starts."""
        text = self.admin("/server_info")
        return str(json.loads(text)["state"]) if text else ""

    def stat(self, name: str) -> int:
        """A counter."""
        text = self.admin(f"/stats?filter=^{name}$") or ""
        return int(text.rpartition(":")[2]) if text else 0

    def secrets(self) -> dict[str, Any]:
        """The secrets it uses now, by name; keys are redacted by Envoy."""
        text = self.admin("/config_dump?resource=dynamic_active_secrets") or "{}"
        return {one["name"]: one["secret"] for one in json.loads(text).get("configs", ())}

    def until_live(self) -> Self:
        """Wait until it serves with its secrets."""
        until(lambda: self.state() == "LIVE" and self.secrets(), pause=0.05)
        return self

    def get(self) -> tuple[int, str]:
        """One request through it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/")
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError as error:
            return 0, str(error)
        finally:
            connection.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def link(folder: Path, name: str) -> Path:
    """A path of its own for the binary: a hard link where that works."""
    path = folder / name
    if not path.exists():
        try:
            os.link(envoy_binary(), path)
        except OSError:
            path.write_bytes(envoy_binary().read_bytes())
            path.chmod(0o755)
    return path


class Load:
    """Requests through a proxy, one after the other, until the block ends; `failed` are those that did not work."""

    def __init__(self, proxy: Envoy) -> None:
        self._proxy = proxy
        self._stop = threading.Event()
        self.done = 0
        self.failed: list[tuple[int, str]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            answer = self._proxy.get()
            self.done += 1
            if answer[0] != 200:
                self.failed.append(answer)
            time.sleep(0.005)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
