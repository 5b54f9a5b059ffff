"""A stock spire-agent lives on our server: joins, serves, renews, restarts, is banned and evicted (spire_wire section 12)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.demo.stack import LocalStack
from tests.interop.peers import until
from tests.interop.spire import Commands, StockAgent, fetched, spire_binaries

pytestmark = pytest.mark.slow

DOMAIN = "spiffe://interop.test"
AGENT_TTL = 24
"""Seconds an agent's SVID lives: the stock agent looks every five seconds and renews at about half of it."""


@pytest.fixture(scope="module")
def binaries() -> Path:
    return spire_binaries()


@pytest.fixture(scope="module")
def server(binaries: Path) -> Iterator[LocalStack]:
    """Our server alone."""
    with LocalStack("interop.test", server=f'[svid]\nagent_ttl = "{AGENT_TTL}s"') as stack:
        stack.start_server()
        (stack.folder / "bundle.pem").write_text(stack.admin("bundle", "show"))
        yield stack


@pytest.fixture
def workload(binaries: Path) -> str:
    """The selector of `spire-agent api fetch x509`, which plays the workload."""
    return f"unix:path:{(binaries / 'spire-agent').resolve()}"


def token(server: LocalStack, node: str) -> str:
    return str(server.admin_json("token", "generate", "-spiffeID", node)["value"])


Join = Callable[..., StockAgent]


@pytest.fixture
def join(server: LocalStack, binaries: Path, folder: Path, request: pytest.FixtureRequest) -> Iterator[Join]:
    """Start a stock agent that joins with a token; entries go below the node's alias, `agent.node`."""
    agents: list[StockAgent] = []

    def start(name: str) -> StockAgent:
        agent = StockAgent(
            binaries,
            folder / name,
            trust_domain="interop.test",
            port=server.port,
            bundle=server.folder / "bundle.pem",
        )
        agent.node = f"{DOMAIN}/nodes/{name}"
        agents.append(agent)
        return agent.start(token(server, agent.node))

    yield start
    for agent in agents:
        agent.close()


def register(server: LocalStack, agent: StockAgent, path: str, *selectors: str, more: tuple[str, ...] = ()) -> str:
    words = ["entry", "create", "-parentID", agent.node, "-spiffeID", f"{DOMAIN}{path}", *more]
    for selector in selectors:
        words += ["-selector", selector]
    return str(server.admin_json(*words)["results"][0]["entry"]["id"])


def ids(agent: StockAgent) -> list[str]:
    return sorted(svid["spiffe_id"] for svid in fetched(agent.program, agent.socket))


def identity(agent: StockAgent) -> str:
    found = agent.info()["svid_chain"][0]["id"]
    return f"spiffe://{found['trust_domain']}{found['path']}"


def serial(server: LocalStack, agent_id: str) -> str:
    return str(server.admin_json("agent", "show", "-spiffeID", agent_id)["x509svid_serial_number"])


def test_it_joins_and_follows_an_entry_through_its_life(server: LocalStack, join: Join, workload: str) -> None:
    """AttestAgent, GetBundle, PostStatus, SyncAuthorizedEntries, BatchNewX509SVID; then update and delete."""
    agent = join("life")
    assert ids(agent) == []
    entry = register(server, agent, "/life/first", workload)
    until(lambda: ids(agent) == [f"{DOMAIN}/life/first"])
    words = ("-entryID", entry, "-parentID", agent.node, "-selector", workload)
    server.admin("entry", "update", *words, "-spiffeID", f"{DOMAIN}/life/second", "-hint", "kept")
    until(lambda: ids(agent) == [f"{DOMAIN}/life/second"])
    assert fetched(agent.program, agent.socket)[0]["hint"] == "kept"
    server.admin("entry", "delete", "-entryID", entry)
    until(lambda: ids(agent) == [])
    listed = {f"spiffe://interop.test{one['id']['path']}": one for one in server.admin_json("agent", "list")["agents"]}
    found = listed[identity(agent)]
    assert found["attestation_type"] == "join_token"
    assert found["agent_version"].startswith("1.")
    assert "attestation was successful" in agent.log


def test_its_own_svid_is_renewed_and_the_old_one_is_worthless(
    server: LocalStack, join: Join, binaries: Path, folder: Path, workload: str
) -> None:
    """RenewAgent: the first call with the new SVID promotes its serial; a copy of the old disk gets AGENT_NOT_ACTIVE."""
    agent = join("renewed")
    name = identity(agent)
    first = serial(server, name)
    copy = StockAgent(
        binaries, folder / "old-disk", trust_domain="interop.test", port=server.port, bundle=folder / "none"
    )
    shutil.copytree(agent.data, copy.data, dirs_exist_ok=True)
    until(lambda: serial(server, name) != first)
    register(server, agent, "/renewed", workload)
    until(lambda: ids(agent) == [f"{DOMAIN}/renewed"])
    try:
        assert copy.saved_svid()
        assert copy.spawn().process.wait(20) != 0
        assert "PermissionDenied desc = agent not active" in copy.log
        assert not copy.saved_svid()
    finally:
        copy.close()


def test_it_starts_again_with_the_svid_it_has(server: LocalStack, join: Join, workload: str) -> None:
    """A restart does not attest, so a token is needed once."""
    agent = join("restarted")
    register(server, agent, "/restarted", workload)
    before = identity(agent)
    agent.close()
    agent.start()
    assert identity(agent) == before
    assert agent.log.count("Node attestation was successful") == 1
    until(lambda: ids(agent) == [f"{DOMAIN}/restarted"])


def test_it_goes_on_after_our_server_was_killed(server: LocalStack, join: Join, workload: str) -> None:
    """R1: same authority, same agent, no entry lost; the stock agent connects again by itself."""
    agent = join("patient")
    register(server, agent, "/patient/before", workload)
    assert server.server is not None
    server.server.kill()
    server.start_server()
    register(server, agent, "/patient/after", workload)
    until(lambda: ids(agent) == [f"{DOMAIN}/patient/after", f"{DOMAIN}/patient/before"], 40)
    assert agent.log.count("Node attestation was successful") == 1


def test_a_ban_makes_it_drop_its_svid_and_exit(server: LocalStack, join: Join) -> None:
    """AGENT_BANNED at its next call."""
    agent = join("banned")
    name = identity(agent)
    server.admin("agent", "ban", "-spiffeID", name)
    assert agent.daemon is not None
    assert agent.daemon.process.wait(20) != 0
    assert "PermissionDenied desc = agent banned" in agent.log
    assert not agent.saved_svid()
    assert server.admin_json("agent", "show", "-spiffeID", name)["banned"] is True


def test_an_eviction_makes_it_drop_its_svid_and_exit(server: LocalStack, join: Join) -> None:
    """AGENT_NOT_ATTESTED: its token is spent, so it cannot attest again (S26) and gives up."""
    agent = join("evicted")
    server.admin("agent", "evict", "-spiffeID", identity(agent))
    assert agent.daemon is not None
    assert agent.daemon.process.wait(20) != 0
    assert "PermissionDenied desc = agent not attested" in agent.log
    assert not agent.saved_svid()


def test_more_entries_than_one_page_are_synced_by_revision(
    server: LocalStack, join: Join, workload: str, folder: Path
) -> None:
    """Above 500 entries the agent gets revisions first, asks by id, and afterwards only for what changed."""
    agent = join("many")
    entries = [
        {
            "parent_id": agent.node,
            "spiffe_id": f"{DOMAIN}/many/{number}",
            "selectors": [{"type": "unix", "value": f"uid:{100_000 + number}"}],
        }
        for number in range(620)
    ]
    data = folder / "entries.json"
    data.write_text(json.dumps({"entries": entries}))
    made = server.admin_json("entry", "create", "-data", str(data))["results"]
    assert len(made) == 620
    until(lambda: agent.info()["cached_x509_svids_count"] == 621, 40)  # and the one of the node itself
    register(server, agent, "/many/served", workload)
    until(lambda: ids(agent) == [f"{DOMAIN}/many/served"])
    server.admin("entry", "delete", "-entryID", made[0]["entry"]["id"])
    until(lambda: agent.info()["cached_x509_svids_count"] == 621)
    changed = made[-1]["entry"]
    server.admin(
        "entry", "update", "-entryID", changed["id"], "-parentID", agent.node,
        "-spiffeID", f"{DOMAIN}/many/changed", "-selector", workload,
    )  # fmt: skip
    until(lambda: ids(agent) == [f"{DOMAIN}/many/changed", f"{DOMAIN}/many/served"])


def test_its_health_and_its_commands_see_a_well_server(server: LocalStack, join: Join) -> None:
    """The stock agent is healthy on our server, and its Workload API answers its own healthcheck."""
    agent = join("healthy")
    assert "healthy" in Commands(agent.program, agent.socket)("healthcheck", "-verbose").lower()
    until(lambda: int(agent.info()["last_sync_success"]) > 0)
