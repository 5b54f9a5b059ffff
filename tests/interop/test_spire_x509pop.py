"""x509pop with SPIRE: a stock agent joins our server, our agent joins a stock server, and both servers say the same."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509 import IPAddress

from deploy.demo.stack import BIN, Daemon, LocalStack
from spiffe_core.crypto.keys import KeyKind, generate
from tests.doubles.node_pki import Node, NodePki
from tests.interop.peers import until
from tests.interop.spire import Commands, StockAgent, StockServer, fetched, spire_binaries

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("spire-x509pop")]

TD = "x509pop.test"
KINDS = {"p256": KeyKind.EC_P256, "p384": KeyKind.EC_P384, "rsa": KeyKind.RSA_2048}
TEMPLATE = "/x509pop/{{ .Subject.CommonName }}/{{ .SerialNumberHex }}/{{ .Fingerprint }}"
URIS = (f"x509pop://{TD}/rack/7", f"x509pop://{TD}/zone/a/b", "x509pop://other.test/rack/8", f"spiffe://{TD}/x")


@pytest.fixture(scope="module")
def binaries() -> Path:
    return spire_binaries()


@pytest.fixture(scope="module")
def pki() -> NodePki:
    return NodePki()


@pytest.fixture(scope="module")
def nodes(pki: NodePki) -> dict[str, Node]:
    """One node for each kind of key, below an intermediate."""
    ca = pki.intermediate()
    return {name: pki.node(f"node-{name}", ca=ca, key=generate(kind), uris=URIS) for name, kind in KINDS.items()}


@pytest.fixture(scope="module")
def ours(pki: NodePki, folder: Path) -> Iterator[LocalStack]:
    bundle = pki.bundle(folder)
    table = f'[attestors.x509pop]\nca_bundle_path = "{bundle}"\nagent_path_template = "{TEMPLATE}"\n'
    with LocalStack(TD, server=table) as stack:
        stack.start_server()
        (stack.folder / "bundle.pem").write_text(stack.admin("bundle", "show"))
        yield stack


@pytest.fixture(scope="module")
def theirs(binaries: Path, pki: NodePki, folder: Path) -> Iterator[StockServer]:
    data = f'ca_bundle_path = "{pki.bundle(folder)}" agent_path_template = "{TEMPLATE}"'
    attestor = f'NodeAttestor "x509pop" {{ plugin_data {{ {data.replace(" agent_path", chr(10) + "agent_path")} }} }}'
    server = StockServer(binaries, folder, TD, attestor=attestor)
    try:
        server.start()
        (folder / "stock.pem").write_text(server.command("bundle", "show"))
        yield server
    finally:
        server.close()


Start = Callable[[str], Any]


@pytest.fixture
def stock_agent(binaries: Path, ours: LocalStack, nodes: dict[str, Node], folder: Path) -> Iterator[Start]:
    agents: list[StockAgent] = []

    def start(name: str) -> StockAgent:
        home = folder / f"stock-{name}"
        home.mkdir(exist_ok=True)
        lines = "\n".join(f'{key} = "{path}"' for key, path in nodes[name].files(home).items())
        agent = StockAgent(
            binaries,
            home,
            trust_domain=TD,
            port=ours.port,
            bundle=ours.folder / "bundle.pem",
            attestor=f'NodeAttestor "x509pop" {{ plugin_data {{\n{lines}\n}} }}',
        )
        agents.append(agent)
        return agent.start()

    yield start
    for agent in agents:
        agent.close()


class OurAgent:
    """Our node agent, at home in `folder`, with a node's certificate."""

    def __init__(
        self, folder: Path, node: Node, *, port: int, bundle: Path, joins: bool = True, more: str = ""
    ) -> None:
        self.socket = folder / "api.sock"
        config = folder / "agent.toml"
        table = "".join(f'{key} = "{path}"\n' for key, path in node.files(folder).items())
        config.write_text(
            f'trust_domain = "{TD}"\ndata_dir = "{folder}/data"\nserver_address = "127.0.0.1"\nserver_port = {port}\n'
            f'socket_path = "{self.socket}"\ntrust_bundle_path = "{bundle}"\nsync_interval = "500ms"\n{more}'
            f"[attestors.x509pop]\n{table}"
        )
        self.daemon = Daemon([str(BIN / "node-agent"), "run", "--config", str(config)], folder / "agent.log")
        if joins:
            self.daemon.wait_serving(self.socket)


@pytest.fixture
def our_agent(theirs: StockServer, nodes: dict[str, Node], folder: Path) -> Iterator[Start]:
    agents: list[OurAgent] = []

    def start(name: str) -> OurAgent:
        home = Path(tempfile.mkdtemp(prefix=f"ours-{name}-", dir=folder))
        agents.append(OurAgent(home, nodes[name], port=theirs.port, bundle=folder / "stock.pem"))
        return agents[-1]

    yield start
    for agent in agents:
        agent.daemon.kill()


def records(command: Callable[..., Any], name: str) -> list[dict[str, Any]]:
    agents = command("agent", "list")["agents"]
    return [one for one in agents if one["id"]["path"].startswith(f"/spire/agent/x509pop/node-{name}/")]


def described(record: dict[str, Any]) -> tuple[str, set[str], bool]:
    selectors = {f"{selector['type']}:{selector['value']}" for selector in record["selectors"]}
    return record["id"]["path"], selectors, record["can_reattest"]


@pytest.mark.parametrize("name", KINDS)
def test_both_servers_say_the_same_of_a_node(
    name: str, ours: LocalStack, theirs: StockServer, stock_agent: Start, our_agent: Start
) -> None:
    """Each agent on the other's server: same path, same selectors, re-attestable (spire_wire 7, features 18.2)."""
    stock_agent(name)
    our_agent(name)
    (here,), (there,) = records(ours.admin_json, name), records(theirs.command.json, name)
    assert described(here) == described(there)
    assert here["can_reattest"] is True
    assert "x509pop:san:rack:7" in described(here)[1]


def test_a_stock_agent_serves_and_heals_on_our_server(ours: LocalStack, binaries: Path, stock_agent: Start) -> None:
    """AGENT_NOT_ATTESTED after an eviction: the stock agent may attest again, does, and lives on."""
    agent = stock_agent("p256")
    (record,) = records(ours.admin_json, "p256")
    parent = f"spiffe://{TD}{record['id']['path']}"
    selector = f"unix:path:{(binaries / 'spire-agent').resolve()}"
    ours.admin_json("entry", "create", "-parentID", parent, "-spiffeID", f"spiffe://{TD}/web", "-selector", selector)
    until(lambda: [svid["spiffe_id"] for svid in fetched(agent.program, agent.socket)] == [f"spiffe://{TD}/web"])
    ours.admin("agent", "evict", "-spiffeID", parent)
    until(lambda: bool(records(ours.admin_json, "p256")), 40)
    assert agent.daemon is not None
    assert agent.daemon.process.poll() is None


def test_our_agent_serves_and_heals_on_a_stock_server(theirs: StockServer, our_agent: Start) -> None:
    """Evicted on the stock server, our agent attests anew without a restart and serves on."""
    agent = our_agent("rsa")
    (record,) = records(theirs.command.json, "rsa")
    parent = f"spiffe://{TD}{record['id']['path']}"
    words = ("-parentID", parent, "-selector", f"unix:uid:{os.getuid()}")
    theirs.command("entry", "create", *words, "-spiffeID", f"spiffe://{TD}/web")

    def served() -> list[str]:
        stock = theirs.command.program.with_name("spire-agent")
        return sorted(svid["spiffe_id"] for svid in fetched(stock, agent.socket))

    until(lambda: served() == [f"spiffe://{TD}/web"])
    theirs.command("agent", "evict", "-spiffeID", parent)
    until(lambda: bool(records(theirs.command.json, "rsa")), 40)
    theirs.command("entry", "create", *words, "-spiffeID", f"spiffe://{TD}/web/later")
    until(lambda: served() == [f"spiffe://{TD}/web", f"spiffe://{TD}/web/later"], 40)
    shown = json.loads(Commands(BIN / "node-agent", agent.socket)("api", "fetch", "x509", "-output", "json"))
    assert len(shown["svids"]) == 2


REFUSED = "does not match any certificate IP SAN"
ADDRESSES = {"named": "127.0.0.1", "elsewhere": "192.0.2.7"}


@pytest.fixture(scope="module")
def placed(pki: NodePki) -> dict[str, Node]:
    """Nodes whose certificates name an address."""
    return {name: pki.node(name, other_names=(IPAddress(ip_address(one)),)) for name, one in ADDRESSES.items()}


def test_a_stock_agent_joins_our_server_only_from_its_certificates_address(
    binaries: Path, pki: NodePki, placed: dict[str, Node], folder: Path
) -> None:
    """`verify_client_ip` of SPIRE 1.15.2, here: the agent needs no setting for it, and reads our refusal."""
    table = f'[attestors.x509pop]\nca_bundle_path = "{pki.bundle(folder)}"\nverify_client_ip = true\n'
    with LocalStack(TD, server=table) as stack:
        stack.start_server()
        bundle = stack.folder / "bundle.pem"
        bundle.write_text(stack.admin("bundle", "show"))
        for name, node in placed.items():
            home = folder / f"placed-{name}"
            home.mkdir()
            lines = "\n".join(f'{key} = "{path}"' for key, path in node.files(home).items())
            attestor = f'NodeAttestor "x509pop" {{ plugin_data {{\n{lines}\n}} }}'
            agent = StockAgent(binaries, home, trust_domain=TD, port=stack.port, bundle=bundle, attestor=attestor)
            try:
                if name == "named":
                    agent.start()
                else:
                    agent.spawn()
                    until(lambda: REFUSED in agent.log)  # noqa: B023  # awaited within the turn
            finally:
                agent.close()
        assert len(stack.admin_json("agent", "list")["agents"]) == 1


def test_our_agent_joins_a_stock_server_only_from_its_certificates_address(
    binaries: Path, pki: NodePki, placed: dict[str, Node], folder: Path
) -> None:
    """The other way round, with the same key in the stock server's configuration."""
    home = folder / "strict-server"
    home.mkdir()
    data = f'ca_bundle_path = "{pki.bundle(home)}"\nverify_client_ip = true'
    server = StockServer(binaries, home, TD, attestor=f'NodeAttestor "x509pop" {{ plugin_data {{\n{data}\n}} }}')
    try:
        server.start()
        (home / "stock.pem").write_text(server.command("bundle", "show"))
        where = Path(tempfile.mkdtemp(prefix="ours-named-", dir=folder))
        agent = OurAgent(where, placed["named"], port=server.port, bundle=home / "stock.pem")
        agent.daemon.kill()
        where = Path(tempfile.mkdtemp(prefix="ours-elsewhere-", dir=folder))
        other = OurAgent(where, placed["elsewhere"], port=server.port, bundle=home / "stock.pem", joins=False)
        try:
            until(lambda: REFUSED in other.daemon.log.read_text(errors="replace"))
        finally:
            other.daemon.kill()
        assert len(server.command.json("agent", "list")["agents"]) == 1
    finally:
        server.close()


def test_an_agent_of_ours_outlives_a_stock_server_that_lost_everything(
    binaries: Path, pki: NodePki, nodes: dict[str, Node], folder: Path
) -> None:
    """R23, `rebootstrap_mode = "auto"`: new keys and a new database below the same address; the agent's process stays."""
    home = Path(tempfile.mkdtemp(prefix="lost-", dir=folder))
    attestor = f'NodeAttestor "x509pop" {{ plugin_data {{ ca_bundle_path = "{pki.bundle(home)}" }} }}'
    server, bundle = StockServer(binaries, home, TD, attestor=attestor), home / "stock.pem"
    agent = None
    try:
        server.start()
        bundle.write_text(server.command("bundle", "show"))
        more = 'rebootstrap_mode = "auto"\nrebootstrap_delay = "2s"\n'
        agent = OurAgent(home, nodes["p256"], port=server.port, bundle=bundle, more=more)
        server.close()
        shutil.rmtree(home / "spire-server")
        server.start()
        assert not server.command.json("agent", "list").get("agents")
        bundle.write_text(server.command("bundle", "show"))
        assert until(lambda: server.command.json("agent", "list").get("agents"), seconds=60)
        assert agent.daemon.process.poll() is None
        assert "bootstraps again" in agent.daemon.tail(1000)
    finally:
        if agent is not None:
            agent.daemon.kill()
        server.close()
