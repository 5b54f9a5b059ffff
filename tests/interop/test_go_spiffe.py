"""go-spiffe v2 as a client of our Workload API (WEP, WAPI rows; issue item 9).

The program under go/ is built once for the whole file, outside the repository. The first build on a machine compiles
gRPC, which takes longer than a test may; so the limit of 60 s holds for the tests alone and the build has its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.demo.stack import LocalStack
from tests.interop.go_program import build_go_program
from tests.interop.peers import HERE, Program, our_interpreter
from tests.interop.spire import StockAgent, spire_binaries

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60, func_only=True)]

OURS = HERE / "our_workload.py"
DOMAIN = "spiffe://interop.test"
TTL = 6
"""Seconds an SVID lives here: it is renewed after about three."""
WORKLOADS = (
    "go-fetch",
    "go-broker",
    "target",
    "go-jwt",
    "go-watch",
    "go-client",
    "go-other",
    "go-server",
    "our-server",
    "our-client",
    "our-other",
)
PROCESS = "type.googleapis.com/spiffe.broker.WorkloadPIDReference"


def agent_settings(folder: Path) -> str:
    """An agent that listens for one broker."""
    return (
        f'[broker]\nsocket_path = "{folder}/broker/api.sock"\n[[broker.brokers]]\nid = "{DOMAIN}/go-broker"\n'
        f'allowed_reference_types = [{{ type_url = "{PROCESS}" }}]\n'
    )


@contextmanager
def target(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that asks for nothing itself."""
    path = folder / "target"
    if not path.exists():
        shutil.copy2("/bin/sleep", path)
    process = subprocess.Popen([str(path), "600"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go program."""
    return build_go_program(tmp_path_factory.mktemp("go"))


Start = Callable[..., Program]


@pytest.fixture
def start(built: Path, stack: LocalStack, folder: Path) -> Start:
    """Run the Go program, or our own workload, as the workload of that name."""

    def run(name: str, *words: str, ours: bool = False) -> Program:
        if ours:
            return our_interpreter(folder, name).run(OURS, *words, socket=stack.api_socket)
        path = folder / name
        if not path.exists():
            shutil.copy2(built, path)
        env = {**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix://{stack.api_socket}"}
        return Program([str(path), *words], env=env, log=path.with_suffix(".log"))

    return run


def test_it_fetches_verifies_and_validates_tokens(start: Start) -> None:
    """WAPI-32 to WAPI-44: go-spiffe's JWT source, its own verification, and validation by the agent; D14."""
    with start("go-jwt", "jwt", "https://api.interop.test") as client:
        found = client.hear("token")
        assert found["spiffe_id"] == found["validated"] == f"{DOMAIN}/go-jwt"
        assert found["audience"] == ["https://api.interop.test"]
        assert found["other"] == "InvalidArgument"
        assert client.wait() == 0


def test_it_fetches_and_verifies_svids_and_bundles(start: Start) -> None:
    """WAPI, N-X: go-spiffe parses both messages, and its own path validation accepts the SVID by the bundle."""
    with start("go-fetch", "fetch") as client:
        found = client.hear("fetched")
        assert [svid["spiffe_id"] for svid in found["svids"]] == [f"{DOMAIN}/go-fetch"]
        assert found["default"] == f"{DOMAIN}/go-fetch"
        assert found["bundles"] == {"interop.test": 1}
        assert client.wait() == 0


def test_grpc_go_learns_what_is_served(start: Start) -> None:
    """WEP-28: grpc-go's reflection client links every service's description from the files it is told."""
    with start("go-fetch", "reflect") as client:
        methods = client.hear("served")["methods"]
        assert client.wait() == 0
    assert methods == {
        "SpiffeWorkloadAPI": 7,
        "envoy.service.secret.v3.SecretDiscoveryService": 3,
        "grpc.health.v1.Health": 3,
        "grpc.reflection.v1.ServerReflection": 1,
        "grpc.reflection.v1alpha.ServerReflection": 1,
    }


def test_it_is_refused_without_an_entry(start: Start) -> None:
    """WAPI: a process that no entry matches gets PermissionDenied."""
    with start("go-stranger", "fetch") as client:
        assert client.hear("refused")["code"] == "PermissionDenied"


def test_it_watches_two_rotations_on_one_stream(start: Start) -> None:
    """WAPI: the open stream carries each new SVID, verified, before the old one ends."""
    with start("go-watch", "watch", "2") as client:
        svids = [client.hear("svid") for _ in range(3)]
        assert client.wait() == 0
        assert client.log.read_text() == "", "the stream broke"
    assert len({svid["serial"] for svid in svids}) == 3
    ends = [svid["not_after"] for svid in svids]
    assert ends == sorted(ends)


def test_it_dials_our_library(start: Start) -> None:
    """N-X: tlsconfig.AuthorizeID accepts our library's server, which knows the client by its SPIFFE ID."""
    with start("our-server", "serve", f"{DOMAIN}/go-client", ours=True) as server:
        port = str(server.hear("listening")["port"])
        with start("go-client", "dial", port, f"{DOMAIN}/our-server") as client:
            greeted = client.hear("greeted")
        assert greeted["answer"] == f"you are {DOMAIN}/go-client"
        assert greeted["tls"] == "TLS 1.3"
        assert server.hear("greeted")["hello"] == "hello from go-spiffe"
        with start("go-client", "dial", port, f"{DOMAIN}/somebody-else") as client:
            assert "unexpected ID" in client.hear("refused")["text"]
        with start("go-other", "dial", port, f"{DOMAIN}/our-server") as other:
            other.hear("refused")


def test_our_library_dials_it_before_and_after_a_rotation(start: Start) -> None:
    """The same server goes on with its next SVID; a client that AuthorizeID does not name is turned away."""
    with start("go-server", "serve", f"{DOMAIN}/our-client") as server:
        port = str(server.hear("listening")["port"])
        serials: list[str] = []
        while len(set(serials)) < 2:
            with start("our-client", "dial", port, f"{DOMAIN}/go-server", ours=True) as client:
                assert client.hear("greeted")["answer"] == f"you are {DOMAIN}/our-client"
            serials.append(server.hear("greeted")["serial"])
        with start("our-other", "dial", port, f"{DOMAIN}/go-server", ours=True) as other:
            other.hear("refused")
        assert "unexpected ID" in server.hear("refused")["text"]


def agent_of(stack: LocalStack) -> str:
    """The agent's own SPIFFE ID."""
    (agent,) = stack.admin_json("agent", "list")["agents"]
    return f"spiffe://{agent['id']['trust_domain']}{agent['id']['path']}"


def test_a_broker_in_go_gets_what_a_process_may_have_until_it_ends(
    start: Start, stack: LocalStack, folder: Path
) -> None:
    """BEP-02 to BEP-04, BAPI-01, BAPI-18 to BAPI-20: go-spiffe's Broker API client and TLS, against our endpoint."""
    endpoint, agent = f"unix://{folder}/broker/api.sock", agent_of(stack)
    with target(folder) as process:
        with start("go-broker", "broker", endpoint, agent, str(process.pid)) as client:
            assert client.hear("without the header")["code"] == "InvalidArgument"
            found = client.hear("brokered")
            assert (found["svids"], found["token"]) == ([f"{DOMAIN}/target"], f"{DOMAIN}/target")
            assert found["bundles"] == [DOMAIN]
            process.kill()
            process.wait()
            ended = client.hear("ended")
            assert (ended["code"], ended["reason"]) == ("NotFound", "WORKLOAD_NOT_FOUND")
            assert client.wait() == 0
    with start("go-other", "broker", endpoint, agent, str(os.getpid())) as stranger:
        assert stranger.hear("without the header")["code"] == "InvalidArgument"
        assert stranger.hear("refused")["code"] == "PermissionDenied"
    with start("go-broker", "broker", endpoint, f"{DOMAIN}/somebody-else", str(os.getpid())) as deceived:
        assert "unexpected ID" in deceived.hear("without the header")["text"]


def test_the_same_broker_gets_the_same_of_a_stock_agent(built: Path) -> None:
    """SPIRE's own broker endpoint answers this client alike where both follow the standard."""
    binaries = spire_binaries()
    with tempfile.TemporaryDirectory(prefix="mbroker-") as name, LocalStack("interop.test") as stack:
        folder = Path(name)
        stack.start_server()
        bundle = folder / "bundle.pem"
        bundle.write_text(stack.admin("bundle", "show"))
        token = stack.admin_json("token", "generate", "-spiffeID", stack.node_id)["value"]
        listed = f"""broker {{
            socket_path = "{folder}/broker.sock"
            brokers = [{{ id = "{DOMAIN}/go-broker", allowed_reference_types = [{{ type_url = "{PROCESS}" }}] }}]
        }}"""
        for workload in ("go-broker", "target"):
            stack.register(f"/{workload}", f"unix:path:{folder / workload}", f"unix:uid:{os.getuid()}")
        stock = StockAgent(
            binaries, folder / "a", trust_domain="interop.test", port=stack.port, bundle=bundle, experimental=listed
        )
        try:
            stock.start(token)
            shutil.copy2(built, folder / "go-broker")
            env = {**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix://{stock.socket}"}
            with target(folder) as process:
                words = ["broker", f"unix://{folder}/broker.sock", agent_of(stack), str(process.pid)]
                argv = [str(folder / "go-broker"), *words]
                with Program(argv, env=env, log=folder / "broker.log") as client:
                    assert client.hear("without the header")["code"] == "InvalidArgument"
                    found = client.hear("brokered")
            assert (found["svids"], found["token"]) == ([f"{DOMAIN}/target"], f"{DOMAIN}/target")
            assert found["bundles"] == [DOMAIN]
        finally:
            stock.close()
