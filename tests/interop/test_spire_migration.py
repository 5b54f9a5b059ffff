"""docs/migration.md with real parts: a stock server and its agents are replaced by ours, and no workload goes without."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.stack import BIN, Daemon, LocalStack
from spiffe_core.bundle import TrustBundle
from spiffe_core.bundle_document import dump_bundle, load_bundle
from spiffe_core.spiffe_id import TrustDomain
from tests.authority import SpiffeTestCA
from tests.doubles.nested_stack import NESTED_ID, PROGRAM, TD, eventually, own_chain, upstream_table, verified
from tests.doubles.node_pki import Node, NodePki
from tests.interop.spire import JOIN_TOKEN, StockAgent, StockServer, fetched, spire_binaries

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

HOST, NODE = f"spiffe://{TD}/host", f"spiffe://{TD}/nodes/web"
ALLY = SpiffeTestCA("ally.test")
ENTRY = ("-parentID", NODE, "-selector", f"unix:uid:{os.getuid()}")


@pytest.fixture(scope="module")
def pki() -> NodePki:
    return NodePki()


@pytest.fixture(scope="module")
def node(pki: NodePki) -> Node:
    return pki.node("web")


@pytest.fixture(scope="module")
def theirs(pki: NodePki, folder: Path) -> Iterator[StockServer]:
    """A stock server with what an installation has: bundles, relationships, entries, nodes by certificate and by token."""
    attestor = f'NodeAttestor "x509pop" {{ plugin_data {{ ca_bundle_path = "{pki.bundle(folder)}" }} }}'
    server = StockServer(spire_binaries(), folder, TD, attestor=attestor + JOIN_TOKEN)
    try:
        server.start()
        (folder / "bundle.pem").write_text(server.command("bundle", "show"))
        ally = dump_bundle(ALLY.bundle()).decode()
        server.command("bundle", "set", "-id", "spiffe://ally.test", "-format", "spiffe", stdin=ally)
        where = ("-bundleEndpointURL", "https://ally.invalid/", "-bundleEndpointProfile", "https_web")
        server.command("federation", "create", "-trustDomain", "ally.test", *where)
        server.command("entry", "create", "-node", "-spiffeID", NODE, "-selector", "x509pop:subject:cn:web")
        more = ("-x509SVIDTTL", "60", "-dns", "web.test", "-hint", "main", "-federatesWith", "spiffe://ally.test")
        server.command("entry", "create", "-entryID", "web", "-spiffeID", f"spiffe://{TD}/web", *ENTRY, *more)
        words = ("-parentID", HOST, "-spiffeID", NESTED_ID, "-selector", f"unix:path:{PROGRAM}")
        server.command("entry", "create", "-downstream", *words)
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def host_agent(theirs: StockServer, folder: Path) -> Iterator[StockAgent]:
    """The agent of the old server on the machine of the new one."""
    token = theirs.command.json("token", "generate", "-spiffeID", HOST)["value"]
    bundle = folder / "bundle.pem"
    agent = StockAgent(spire_binaries(), folder / "host", trust_domain=TD, port=theirs.port, bundle=bundle)
    try:
        yield agent.start(token)
    finally:
        agent.close()


@pytest.fixture(scope="module")
def node_agent(theirs: StockServer, node: Node, folder: Path) -> Iterator[StockAgent]:
    """The agent of a node that is moved."""
    (folder / "node").mkdir()
    lines = "\n".join(f'{key} = "{path}"' for key, path in node.files(folder / "node").items())
    attestor = f'NodeAttestor "x509pop" {{ plugin_data {{\n{lines}\n}} }}'
    places = {"bundle": folder / "bundle.pem", "attestor": attestor}
    agent = StockAgent(spire_binaries(), folder / "node", trust_domain=TD, port=theirs.port, **places)
    try:
        yield agent.start()
    finally:
        agent.close()


@pytest.fixture(scope="module")
def ours(pki: NodePki, theirs: StockServer, host_agent: StockAgent, folder: Path) -> Iterator[LocalStack]:
    """Step 2: our server, nested below the stock one."""
    table = f'[attestors.x509pop]\nca_bundle_path = "{pki.bundle(folder)}"\n'
    with LocalStack(TD, server=upstream_table(theirs.port, host_agent.socket) + table) as stack:
        stack.start_server()
        yield stack


def bundle_of(text: str) -> TrustBundle:
    return load_bundle(text.encode(), TrustDomain(TD)).bundle


def key_ids(bundle: TrustBundle) -> set[str]:
    return {one.key_id for one in [*bundle.x509_authorities, *bundle.jwt_authorities]}


def plain(entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Entries by id, without what each server says for itself."""
    theirs = {"created_at", "revision_number"}
    return {one["id"]: {key: value for key, value in one.items() if key not in theirs} for one in entries}


def test_bundles_relationships_and_entries_are_carried_over(
    theirs: StockServer, ours: LocalStack, folder: Path
) -> None:
    """Steps 2 and 3: both bundles hold the same keys, and every entry stands at ours as it stood there, id included."""
    shown = bundle_of(ours.admin("bundle", "show", "-format", "spiffe"))
    eventually(lambda: key_ids(bundle_of(theirs.command("bundle", "show", "-format", "spiffe"))) == key_ids(shown))
    (folder / "federation.json").write_text(theirs.command("federation", "list", "-output", "json"))
    ours.admin("federation", "create", "-data", str(folder / "federation.json"))
    (folder / "entries.json").write_text(theirs.command("entry", "show", "-output", "json"))
    ours.admin("entry", "create", "-data", str(folder / "entries.json"))
    before = json.loads((folder / "entries.json").read_text())["entries"]
    assert plain(ours.admin_json("entry", "show")["entries"]) == plain(before)
    assert len(before) == 4
    listed = theirs.command.json("federation", "list")
    assert ours.admin_json("federation", "list") == listed
    assert listed["federation_relationships"][0]["trust_domain_bundle"]["x509_authorities"]


def test_a_node_is_moved_and_its_workload_keeps_its_name(
    ours: LocalStack, node_agent: StockAgent, node: Node, folder: Path
) -> None:
    """Step 4: our agent at the old one's socket; it has the same ID, so entries below it or its group go on."""
    program = node_agent.program
    (before,) = eventually(lambda: fetched(program, node_agent.socket))
    above = bundle_of(ours.admin("bundle", "show", "-format", "spiffe"))
    assert verified(own_chain(node_agent.socket), above) == f"spiffe://{TD}/web"
    node_agent.close()
    table = "".join(f'{key} = "{path}"\n' for key, path in node.files(folder / "node").items())
    config = folder / "node" / "agent.toml"
    config.write_text(
        f'trust_domain = "{TD}"\nserver_address = "127.0.0.1"\nserver_port = {ours.port}\n'
        f'data_dir = "{folder}/node/muniment"\nsocket_path = "{node_agent.socket}"\n'
        f'trust_bundle_path = "{folder}/bundle.pem"\n[attestors.unix]\n[attestors.x509pop]\n{table}'
    )
    agent = Daemon([str(BIN / "node-agent"), "run", "--config", str(config)], folder / "node" / "ours.log")
    try:
        agent.wait_serving(node_agent.socket)
        (after,) = eventually(lambda: fetched(program, node_agent.socket))
        assert (after["spiffe_id"], after["hint"]) == (before["spiffe_id"], before["hint"])
        assert verified(own_chain(node_agent.socket), above) == f"spiffe://{TD}/web", "below the old root still"
        leave_the_old_server(ours, node_agent.socket)
    finally:
        agent.stop()


def leave_the_old_server(ours: LocalStack, socket: Path) -> None:
    """Step 6: without [upstream]; what hung from the old root is good until it is tainted, and gone after that."""
    both = [one.key_id for one in bundle_of(ours.admin("bundle", "show", "-format", "spiffe")).x509_authorities]
    (root,) = both
    assert ours.server is not None
    ours.server.stop()
    text = ours.server_config.read_text()
    ours.server_config.write_text(text[: text.index("[upstream]")] + text[text.index("[attestors.x509pop]") :])
    ours.start_server()
    new = ours.admin_json("localauthority", "x509", "prepare")["prepared_authority"]["authority_id"]
    ours.admin("localauthority", "x509", "activate", "-authorityID", new)
    bundle = bundle_of(ours.admin("bundle", "show", "-format", "spiffe"))
    assert {one.key_id for one in bundle.x509_authorities} == {root, new}
    assert verified(own_chain(socket), bundle) == f"spiffe://{TD}/web"
    ours.admin("upstreamauthority", "taint", "-subjectKeyID", root)
    eventually(lambda: len(own_chain(socket)) == 1)
    ours.admin("upstreamauthority", "revoke", "-subjectKeyID", root)
    bundle = bundle_of(ours.admin("bundle", "show", "-format", "spiffe"))
    assert {one.key_id for one in bundle.x509_authorities} == {new}
    assert verified(own_chain(socket), bundle) == f"spiffe://{TD}/web"
