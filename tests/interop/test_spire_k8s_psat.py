"""k8s_psat with SPIRE, at one simulated API server: a stock agent joins us, ours joins a stock server, both say the same."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.stack import BIN, Daemon, LocalStack
from tests.doubles.kube_api import KubeApi, KubePki
from tests.doubles.kube_cluster import KubeCluster
from tests.interop.peers import until
from tests.interop.spire import StockAgent, StockServer, fetched, spire_binaries

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("spire-k8s-psat")]

TD = "psat.test"
ACCOUNT = "muniment:node-agent"


@pytest.fixture(scope="module")
def binaries() -> Path:
    return spire_binaries()


@pytest.fixture(scope="module")
def api(folder: Path) -> Iterator[KubeApi]:
    home = folder / "kube"
    home.mkdir()
    with KubeApi(KubeCluster(algorithm="RS256"), KubePki(home)) as started:
        started.cluster.add_node("node-1", zone="west", hidden="yes")
        started.cluster.add_pod(app="agent")
        started.kubeconfig(folder / "kubeconfig")
        yield started


@pytest.fixture
def token(api: KubeApi, folder: Path) -> Path:
    """What the kubelet mounts into the agent's pod."""
    path = folder / "psat"
    path.write_text(api.cluster.token(api.cluster.pods["muniment", "agent-5d84p"]))
    return path


@pytest.fixture(scope="module")
def ours(api: KubeApi, folder: Path) -> Iterator[LocalStack]:
    table = (
        f'[attestors.k8s_psat.clusters.prod]\nservice_account_allow_list = ["{ACCOUNT}"]\n'
        f'kube_config_file = "{folder}/kubeconfig"\nallowed_node_label_keys = ["zone"]\nallowed_pod_label_keys = ["app"]\n'
    )
    with LocalStack(TD, server=table) as stack:
        stack.start_server()
        (stack.folder / "bundle.pem").write_text(stack.admin("bundle", "show"))
        yield stack


@pytest.fixture(scope="module")
def theirs(binaries: Path, api: KubeApi, folder: Path) -> Iterator[StockServer]:
    attestor = f"""NodeAttestor "k8s_psat" {{ plugin_data {{ clusters = {{ "prod" = {{
        service_account_allow_list = ["{ACCOUNT}"]
        kube_config_file = "{folder}/kubeconfig"
        allowed_node_label_keys = ["zone"]
        allowed_pod_label_keys = ["app"]
    }} }} }} }}"""
    server = StockServer(binaries, folder, TD, attestor=attestor)
    try:
        server.start()
        (folder / "stock.pem").write_text(server.command("bundle", "show"))
        yield server
    finally:
        server.close()


@pytest.fixture
def stock_agent(binaries: Path, ours: LocalStack, token: Path, folder: Path) -> Iterator[StockAgent]:
    data = f'cluster = "prod"\ntoken_path = "{token}"'
    agent = StockAgent(
        binaries,
        Path(tempfile.mkdtemp(prefix="stock-", dir=folder)),
        trust_domain=TD,
        port=ours.port,
        bundle=ours.folder / "bundle.pem",
        attestor=f'NodeAttestor "k8s_psat" {{ plugin_data {{\n{data}\n}} }}',
    )
    yield agent
    agent.close()


@pytest.fixture
def our_agent(theirs: StockServer, token: Path, folder: Path) -> Iterator[Path]:
    """The socket of our agent, which joined the stock server."""
    home = folder / "our-agent"
    home.mkdir()
    config, socket = home / "agent.toml", home / "api.sock"
    config.write_text(
        f'trust_domain = "{TD}"\ndata_dir = "{home}/data"\nserver_address = "127.0.0.1"\nserver_port = {theirs.port}\n'
        f'socket_path = "{socket}"\ntrust_bundle_path = "{folder}/stock.pem"\nsync_interval = "500ms"\n'
        f'[attestors.unix]\n[attestors.k8s_psat]\ncluster = "prod"\ntoken_path = "{token}"\n'
    )
    daemon = Daemon([str(BIN / "node-agent"), "run", "--config", str(config)], home / "agent.log")
    daemon.wait_serving(socket)
    yield socket
    daemon.kill()


def described(record: dict[str, Any]) -> tuple[str, set[str], bool]:
    selectors = {f"{selector['type']}:{selector['value']}" for selector in record["selectors"]}
    return record["id"]["path"], selectors, record["can_reattest"]


def test_both_servers_say_the_same_of_a_node_and_its_workloads_are_served(
    api: KubeApi, ours: LocalStack, theirs: StockServer, stock_agent: StockAgent, our_agent: Path, binaries: Path
) -> None:
    """Each agent on the other's server: same path, same selectors, re-attestable; an entry reaches it by selectors."""
    stock_agent.start()
    (here,), (there,) = ours.admin_json("agent", "list")["agents"], theirs.command.json("agent", "list")["agents"]
    assert described(here) == described(there)
    path, selectors, reattestable = described(here)
    assert path == f"/spire/agent/k8s_psat/prod/{api.cluster.nodes['node-1']['metadata']['uid']}"
    assert reattestable
    assert {"k8s_psat:agent_node_label:zone:west", "k8s_psat:agent_pod_label:app:agent"} <= selectors
    assert not any("hidden" in one for one in selectors)
    alias = ("-spiffeID", f"spiffe://{TD}/nodes", "-node", "-selector", "k8s_psat:agent_ns:muniment")
    web = ("-spiffeID", f"spiffe://{TD}/web", "-parentID", f"spiffe://{TD}/nodes", "-selector")
    ours.admin("entry", "create", *alias)
    ours.admin("entry", "create", *web, f"unix:path:{(binaries / 'spire-agent').resolve()}")
    theirs.command("entry", "create", *alias)
    theirs.command("entry", "create", *web, f"unix:uid:{os.getuid()}")
    for socket in (stock_agent.socket, our_agent):
        until(
            lambda where=socket: (
                [one["spiffe_id"] for one in fetched(stock_agent.program, where)] == [f"spiffe://{TD}/web"]
            )
        )


@pytest.mark.parametrize("spoiled", ["audience", "expired", "account"])
def test_a_stock_agent_hears_why_it_is_refused(
    api: KubeApi, ours: LocalStack, binaries: Path, folder: Path, stock_agent: StockAgent, token: Path, spoiled: str
) -> None:
    """By our server, whose answer and log never show the token."""
    pod = api.cluster.pods["muniment", "agent-5d84p"]
    if spoiled == "audience":
        token.write_text(api.cluster.token(pod, ("vault",)))
    elif spoiled == "expired":
        token.write_text(api.cluster.token(pod, seconds=-60))
    else:
        token.write_text(api.cluster.token(api.cluster.add_pod("web-0", account="web")))
    stock_agent.spawn()
    words = "not an allowed service account" if spoiled == "account" else "token not authenticated"
    until(lambda: words in stock_agent.log, 30)
    for log in (stock_agent.log, (ours.folder / "server.log").read_text()):
        assert token.read_text() not in log
