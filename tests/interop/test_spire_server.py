"""Our node agent lives on a stock spire-server: joins, serves, renews, restarts, is banned and evicted."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from deploy.demo.stack import BIN, Daemon
from tests.interop.peers import until
from tests.interop.spire import Commands, Failed, StockServer, certificates, fetched, spire_binaries

pytestmark = pytest.mark.slow

DOMAIN = "spiffe://stock.test"
AGENT_TTL = 20
"""Seconds an agent's SVID lives: our agent renews at half of it."""
WORKLOAD = f"unix:uid:{os.getuid()}"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[StockServer]:
    binaries = spire_binaries()
    stock = StockServer(binaries, folder, "stock.test", settings=f'agent_ttl = "{AGENT_TTL}s"')
    try:
        stock.start()
        (folder / "bundle.pem").write_text(stock.command("bundle", "show"))
        yield stock
    finally:
        stock.close()


class OurAgent:
    """Our node agent with the stock server's bundle in PEM and one of its join tokens."""

    def __init__(self, server: StockServer, folder: Path, bundle: Path) -> None:
        folder.mkdir()
        self.server = server
        self.node = f"{DOMAIN}/nodes/{folder.name}"
        self.folder = folder
        self.socket = folder / "api.sock"
        self.config = folder / "agent.toml"
        self.config.write_text(
            f'trust_domain = "stock.test"\ndata_dir = "{folder}/data"\n'
            f'server_address = "127.0.0.1"\nserver_port = {server.port}\nsocket_path = "{self.socket}"\n'
            f'trust_bundle_path = "{bundle}"\njoin_token_file = "{folder}/token"\nsync_interval = "500ms"\n'
        )
        self.new_token()
        self.daemon: Daemon | None = None

    def new_token(self) -> None:
        token = self.server.command.json("token", "generate", "-spiffeID", self.node)["value"]
        path = self.folder / "token"
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
            file.write(token)

    def start(self) -> OurAgent:
        self.daemon = Daemon([str(BIN / "node-agent"), "run", "--config", str(self.config)], self.folder / "agent.log")
        self.daemon.wait_serving(self.socket)
        return self

    def close(self) -> None:
        if self.daemon is not None:
            self.daemon.kill()

    @property
    def log(self) -> str:
        assert self.daemon is not None
        return self.daemon.log.read_text(errors="replace")

    def svids(self) -> list[dict[str, Any]]:
        """What the stock `spire-agent api fetch x509` gets from our Workload API."""
        return fetched(self.server.command.program.with_name("spire-agent"), self.socket)

    def ids(self) -> list[str]:
        return sorted(svid["spiffe_id"] for svid in self.svids())

    def register(self, path: str, *more: str) -> str:
        words = ("-parentID", self.node, "-spiffeID", f"{DOMAIN}{path}", "-selector", WORKLOAD)
        made = self.server.command.json("entry", "create", *words, *more)
        return str(made["results"][0]["entry"]["id"])

    def record(self) -> dict[str, Any] | None:
        """The stock server's newest record of this node: the agent whose id the alias entry was made for."""
        shown = self.server.command.json("entry", "show", "-spiffeID", self.node)["entries"]
        names = {selector["value"] for entry in shown for selector in entry["selectors"]}
        agents = self.server.command.json("agent", "list")["agents"]
        found = [one for one in agents if f"{DOMAIN}{one['id']['path']}" in names]
        return max(found, key=lambda one: int(one["x509svid_expires_at"]), default=None)


Join = Callable[[str], OurAgent]


@pytest.fixture
def join(server: StockServer, folder: Path) -> Iterator[Join]:
    agents: list[OurAgent] = []

    def start(name: str) -> OurAgent:
        agent = OurAgent(server, folder / name, folder / "bundle.pem")
        agents.append(agent)
        return agent.start()

    yield start
    for agent in agents:
        agent.close()


def leaf(svid: dict[str, Any]) -> x509.Certificate:
    return certificates(base64.b64decode(svid["x509_svid"]))[0]


def name_of(record: dict[str, Any] | None) -> str:
    assert record is not None
    return f"{DOMAIN}{record['id']['path']}"


def test_it_joins_and_follows_an_entry_through_its_life(server: StockServer, join: Join) -> None:
    """Token join, bundle in PEM from `bundle show`, create, update, delete; our version stands in the stock record."""
    agent = join("life")
    assert agent.ids() == []
    entry = agent.register("/life/first", "-dns", "life.stock.test", "-hint", "kept")
    until(lambda: agent.ids() == [f"{DOMAIN}/life/first"])
    svid = agent.svids()[0]
    assert svid["hint"] == "kept"
    names = leaf(svid).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["life.stock.test"]
    shown = json.loads(Commands(BIN / "node-agent", agent.socket)("api", "fetch", "x509", "-output", "json"))
    assert shown["svids"][0]["spiffe_id"] == f"{DOMAIN}/life/first"
    words = ("-entryID", entry, "-parentID", agent.node, "-selector", WORKLOAD)
    server.command("entry", "update", *words, "-spiffeID", f"{DOMAIN}/life/second")
    until(lambda: agent.ids() == [f"{DOMAIN}/life/second"])
    server.command("entry", "delete", "-entryID", entry)
    until(lambda: agent.ids() == [])
    record = agent.record()
    assert record is not None
    assert record["agent_version"]


def test_short_svids_are_renewed(join: Join) -> None:
    """BatchNewX509SVID again and again: three certificates in a row, each good when it is handed out."""
    agent = join("short")
    agent.register("/short", "-x509SVIDTTL", "8")
    until(lambda: agent.ids() == [f"{DOMAIN}/short"])
    serials: list[int] = []

    def seen() -> bool:
        serial = leaf(agent.svids()[0]).serial_number
        if serial not in serials:
            serials.append(serial)
        return len(serials) == 3

    until(seen)


def test_its_own_svid_is_renewed_and_promoted(join: Join) -> None:
    """RenewAgent on the stock server: the serial in its record changes twice, and there is still one attestation."""
    agent = join("renewed")
    first = agent.record()
    assert first is not None

    def serial() -> str:
        found = agent.record()
        assert found is not None
        return str(found["x509svid_serial_number"])

    seen = [str(first["x509svid_serial_number"])]
    for _ in range(2):
        until(lambda: serial() not in seen)
        seen.append(serial())
    assert name_of(agent.record()) == name_of(first)
    agent.register("/renewed")
    until(lambda: agent.ids() == [f"{DOMAIN}/renewed"])


def test_it_starts_again_with_the_svid_it_has(join: Join) -> None:
    """R4: killed and restarted, it is the same agent; the token file is not needed any more."""
    agent = join("restarted")
    before = name_of(agent.record())
    agent.register("/restarted")
    until(lambda: agent.ids() == [f"{DOMAIN}/restarted"])
    agent.close()
    (agent.folder / "token").unlink()
    agent.start()
    assert name_of(agent.record()) == before
    until(lambda: agent.ids() == [f"{DOMAIN}/restarted"])


def test_a_ban_silences_it(server: StockServer, join: Join) -> None:
    """A19: workloads get nothing any more and its keys are gone from the disk, while the process stays up and is red."""
    agent = join("banned")
    agent.register("/banned")
    until(lambda: agent.ids() == [f"{DOMAIN}/banned"])
    assert stored_keys(agent) == 1
    server.command("agent", "ban", "-spiffeID", name_of(agent.record()))
    until(lambda: agent.ids() == [])
    assert agent.daemon is not None
    assert agent.daemon.process.poll() is None
    with pytest.raises(Failed):
        Commands(BIN / "node-agent", agent.socket)("healthcheck")
    assert "this agent is banned by the server" in agent.log
    until(lambda: stored_keys(agent) == 0)


def stored_keys(agent: OurAgent) -> int:
    """How many private keys our agent has on its disk."""
    files = (path for path in (agent.folder / "data").rglob("*") if path.is_file())
    return sum(path.read_bytes().count(b'"key"') for path in files)


def test_an_eviction_is_survived_with_a_new_token(server: StockServer, join: Join) -> None:
    """A19: evicted, it goes on serving what it has; a new token in the file lets it join anew without a restart."""
    agent = join("evicted")
    agent.register("/evicted")
    until(lambda: agent.ids() == [f"{DOMAIN}/evicted"])
    before = name_of(agent.record())
    server.command("agent", "evict", "-spiffeID", before)
    until(lambda: "could not join the trust domain" in agent.log)
    assert agent.ids() == [f"{DOMAIN}/evicted"]
    agent.new_token()
    until(lambda: agent.record() is not None, 40)
    assert name_of(agent.record()) != before
    agent.register("/evicted/later")
    until(lambda: agent.ids() == [f"{DOMAIN}/evicted", f"{DOMAIN}/evicted/later"])


def test_more_entries_than_one_page_are_synced_by_revision(server: StockServer, join: Join) -> None:
    """Above 500 entries the stock server sends revisions; our agent asks by id and notices each later change."""
    agent = join("many")
    entries = [
        {
            "parent_id": agent.node,
            "spiffe_id": f"{DOMAIN}/many/{number}",
            "selectors": [{"type": "unix", "value": f"uid:{100_000 + number}"}],
        }
        for number in range(620)
    ]
    (agent.folder / "entries.json").write_text(json.dumps({"entries": entries}))
    made = server.command.json("entry", "create", "-data", str(agent.folder / "entries.json"))["results"]
    assert len(made) == 620
    agent.register("/many/served")
    until(lambda: agent.ids() == [f"{DOMAIN}/many/served"], 40)
    server.command(
        "entry", "update", "-entryID", made[-1]["entry"]["id"], "-parentID", agent.node,
        "-spiffeID", f"{DOMAIN}/many/changed", "-selector", WORKLOAD,
    )  # fmt: skip
    until(lambda: agent.ids() == [f"{DOMAIN}/many/changed", f"{DOMAIN}/many/served"], 40)


def test_a_new_authority_reaches_the_workloads(server: StockServer, join: Join) -> None:
    """Prepare, activate, taint, revoke on the stock server with a live workload (spire_wire section 12, sequence 7)."""
    agent = join("authority")
    agent.register("/authority", "-x509SVIDTTL", "600")
    until(lambda: agent.ids() == [f"{DOMAIN}/authority"])
    old = server.command.json("localauthority", "x509", "show")["active"]["authority_id"]
    new = server.command.json("localauthority", "x509", "prepare")["prepared_authority"]["authority_id"]

    def signer() -> str:
        key = leaf(agent.svids()[0]).extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        return (key.key_identifier or b"").hex()

    def roots() -> int:
        return len(certificates(base64.b64decode(agent.svids()[0]["bundle"])))

    assert signer() == old
    until(lambda: roots() == 2)
    server.command("localauthority", "x509", "activate", "-authorityID", new)
    server.command("localauthority", "x509", "taint", "-authorityID", old)
    until(lambda: signer() == new)
    server.command("localauthority", "x509", "revoke", "-authorityID", old)
    until(lambda: roots() == 1)
    assert signer() == new
    agent.register("/authority/later")
    until(lambda: agent.ids() == [f"{DOMAIN}/authority", f"{DOMAIN}/authority/later"])
