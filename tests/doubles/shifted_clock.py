"""Real daemons whose wall clock a test moves, by Debian's `faketime`.

The library stands in for the C library's clock, so Python, OpenSSL and what they check see the same moment. The
monotonic clock stays true, as it does on a real machine whose wall clock jumps. Where the library is not installed the
tests are skipped, or fail if MUNIMENT_REQUIRE names "faketime".
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc
import pytest
from cryptography import x509
from google.protobuf import empty_pb2

from deploy.demo.stack import BIN, Daemon, LocalStack, free_port
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as types_bundle_pb2
from spiffe_core.wire._gen.spire.api.types import jointoken_pb2
from tests.doubles.node_pki import NodePki, write_certificates

T = TypeVar("T")
REQUIRED = frozenset(os.environ.get("MUNIMENT_REQUIRE", "").split())
LIBRARIES = "/usr/lib/*/faketime/libfaketime.so.1"
_HEADER = (("workload.spiffe.io", "true"),)
_CACHED = 2.5
"""The library looks into its file once a second, by a clock of whole seconds."""
_PATIENCE = 60.0
"""Within this many seconds of the end of a trouble the agent serves again by itself."""


def faketime() -> str:
    """The path of the library; without it the test is skipped, or fails if it is required."""
    found = sorted(str(path) for path in Path("/").glob(LIBRARIES.lstrip("/")))
    if found:
        return found[0]
    return _lacking("faketime is not installed (Debian: faketime)")


def _lacking(reason: str) -> NoReturn:
    if "faketime" in REQUIRED:
        pytest.fail(f"faketime is required by MUNIMENT_REQUIRE, but {reason}", pytrace=False)
    pytest.skip(reason)


class WallClock:
    """By how much the wall clock of a process is ahead."""

    def __init__(self, file: Path, library: str) -> None:
        self._file = file
        self.ahead = timedelta()
        self.env = {
            **({"LD_PRELOAD": library} if library else {}),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        self._write()

    def move(self, **by: float) -> None:
        """Jump; when this returns the process sees the new time."""
        self.ahead += timedelta(**by)
        self._write()
        time.sleep(_CACHED)

    def _write(self) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{self.ahead.total_seconds():+.0f}\n")
        fresh.replace(self._file)

    @property
    def now(self) -> float:
        """What the process's clock shows, in unix seconds."""
        return time.time() + self.ahead.total_seconds()  # noqa: TID251  # the machine's own clock is what is shifted


class ShiftedStack(LocalStack):
    """A server and an agent with a clock each (that can be moved if `shifted`), the agent's health page, and what a workload on the node sees."""

    def __init__(self, *, pop: bool, shifted: bool = True, server: str = "", agent: str = "", **options: Any) -> None:
        library = faketime() if shifted else ""
        self.health_port = free_port()
        health = (
            f'[health_checks]\nlistener_enabled = true\nbind_address = "127.0.0.1"\nbind_port = {self.health_port}\n'
        )
        super().__init__("shift.test", server=server, agent=agent + health, sync_interval="300ms", **options)
        self.server_clock = WallClock(self.folder / "server.clock", library)
        self.agent_clock = WallClock(self.folder / "agent.clock", library)
        if pop:
            self._prove_by_certificate(NodePki(ttl=timedelta(days=365)))

    def _prove_by_certificate(self, pki: NodePki) -> None:
        table = pki.node("node1", ttl=timedelta(days=365)).files(self.folder)
        keys = "".join(f'{key} = "{value}"\n' for key, value in table.items())
        text = self.agent_config.read_text().replace(f'join_token_file = "{self.folder}/token"\n', "")
        self.agent_config.write_text(f"{text}[attestors.unix]\n[attestors.x509pop]\n{keys}")
        bundle = pki.bundle(self.folder)
        with self.server_config.open("a") as file:
            file.write(f'[attestors.x509pop]\nca_bundle_path = "{bundle}"\n')

    def move_all(self, **by: float) -> None:
        """Both machines' clocks, or one machine that slept."""
        self.server_clock.move(**by)
        self.agent_clock.move(**by)

    def spawn_server(self) -> Daemon:
        argv = [str(BIN / "identity-server"), "run", "--config", str(self.server_config)]
        self.server = Daemon(argv, self.folder / "server.log", env=self.server_clock.env)
        return self.server

    def spawn_agent(self) -> Daemon:
        argv = [str(BIN / "node-agent"), "run", "--config", str(self.agent_config)]
        self.agent = Daemon(argv, self.folder / "agent.log", env=self.agent_clock.env)
        return self.agent

    def ask(self, service: str, method: str, request: Any, answer: Any) -> Any:
        """One call as the server's administrator."""
        with grpc.insecure_channel(f"unix:{self.admin_socket}") as channel:
            call = channel.unary_unary(
                f"/spire.api.server.{service}.v1.{service.capitalize()}/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,
            )
            return call(request, timeout=20)

    def write_bundle(self) -> None:
        """What the operator does when the server's bundle changed."""
        bundle = self.ask("bundle", "GetBundle", bundle_pb2.GetBundleRequest(), types_bundle_pb2.Bundle)
        write_certificates(self.folder / "bundle.pem", *(one.asn1 for one in bundle.x509_authorities))

    def write_token(self) -> None:
        """What the operator does when an agent says that it needs a new token."""
        made = self.ask("agent", "CreateJoinToken", agent_pb2.CreateJoinTokenRequest(ttl=600), jointoken_pb2.JoinToken)
        token = self.folder / "token"
        token.unlink(missing_ok=True)
        token.touch(0o600)
        token.write_text(made.value)

    def agents(self) -> list[Any]:
        """What the server knows of its agents."""
        answer = self.ask("agent", "ListAgents", agent_pb2.ListAgentsRequest(), agent_pb2.ListAgentsResponse)
        return list(answer.agents)

    def evict(self, path: str) -> None:
        """Make the server forget an agent."""
        request = agent_pb2.DeleteAgentRequest(id={"trust_domain": self.trust_domain, "path": path})
        self.ask("agent", "DeleteAgent", request, empty_pb2.Empty)

    def begin(self) -> None:
        """Server, agent, an entry for this process, and its first SVID."""
        self.start_server()
        self.write_bundle()
        self.write_token()
        self.start_agent()
        self.register_below(self.agents()[0].id.path)
        self.until(self.svid)

    def register_below(self, agent: str, path: str = "/web") -> str:
        """An entry for this process, for the agent of that path; its id."""
        entry = {
            "spiffe_id": {"trust_domain": self.trust_domain, "path": path},
            "parent_id": {"trust_domain": self.trust_domain, "path": agent},
            "selectors": [{"type": "unix", "value": f"uid:{os.getuid()}"}],
        }
        request = entry_pb2.BatchCreateEntryRequest(entries=[entry])
        answer = self.ask("entry", "BatchCreateEntry", request, entry_pb2.BatchCreateEntryResponse)
        assert answer.results[0].status.code == 0, answer
        return str(answer.results[0].entry.id)

    def health(self) -> dict[str, Any]:
        """The agent's ready page."""
        connection = http.client.HTTPConnection("127.0.0.1", self.health_port, timeout=10)
        try:
            connection.request("GET", "/ready")
            document: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return document

    def svid(self) -> x509.Certificate | None:
        """What a workload that asks now is given, if it is valid by the agent's clock; None if it is given nothing."""
        response = self._first("FetchX509SVID", workload_pb2.X509SVIDRequest(), workload_pb2.X509SVIDResponse)
        if response is None:
            return None
        found = x509.load_der_x509_certificate(first_der(response.svids[0].x509_svid))
        assert found.not_valid_after_utc.timestamp() > self.agent_clock.now, "an expired SVID was served"
        return found

    def bundles(self) -> dict[str, bytes]:
        """The bundles a workload that asks now is given."""
        response = self._first("FetchX509Bundles", workload_pb2.X509BundlesRequest(), workload_pb2.X509BundlesResponse)
        return {} if response is None else dict(response.bundles)

    def _first(self, method: str, request: Any, answer: Any) -> Any:
        with grpc.insecure_channel(f"unix:{self.api_socket}") as channel:
            call = channel.unary_stream(
                f"/SpiffeWorkloadAPI/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,
            )(request, metadata=_HEADER, timeout=10)
            try:
                return next(call)
            except grpc.RpcError as error:
                if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED}:
                    return None
                raise
            finally:
                call.cancel()

    def until(self, look: Callable[[], T], seconds: float = _PATIENCE) -> T:
        """Look until there is something to see, as long as an agent may take to come back."""
        deadline = time.monotonic() + seconds
        while not (found := look()):
            assert self.agent is None or self.agent.process.poll() is None, self.agent.tail()
            if time.monotonic() > deadline:
                pytest.fail(f"not within {seconds:.0f} s: {self.health()}\n{self.agent.tail() if self.agent else ''}")
            time.sleep(0.1)
        return found


def first_der(chain: bytes) -> bytes:
    """The first certificate of some that stand one after another."""
    size = int.from_bytes(chain[2:4], "big") + 4
    return chain[:size]
