"""Two command lines and two agents of one server: SPIRE's and ours, each with each, as workloads (spire_wire 6.1)."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from deploy.demo.stack import BIN, LocalStack
from tests.interop.peers import until
from tests.interop.spire import Commands, Failed, StockAgent, fetched, spire_binaries

pytestmark = pytest.mark.slow

DOMAIN = "spiffe://same.test"


@dataclass(frozen=True)
class Side:
    """One agent and both command lines for its Workload API."""

    name: str
    stock: Commands
    ours: Commands


@pytest.fixture(scope="module")
def sides(folder: Path) -> Iterator[tuple[Side, Side]]:
    """Our agent and a stock one on our server; every process of this user is entitled to the same two identities."""
    binaries = spire_binaries()
    with LocalStack("same.test", sync_interval="500ms") as stack:
        stack.start_server()
        for name in ("first", "second"):
            stack.register(f"/{name}", f"unix:uid:{os.getuid()}")
        stack.prepare_join()
        stack.start_agent()
        token = stack.admin_json("token", "generate", "-spiffeID", stack.node_id)["value"]
        bundle = stack.folder / "bundle.pem"
        agent = StockAgent(binaries, folder / "stock", trust_domain="same.test", port=stack.port, bundle=bundle)
        try:
            agent.start(token)
            made = tuple(
                Side(name, Commands(binaries / "spire-agent", socket), Commands(BIN / "node-agent", socket))
                for name, socket in (("our agent", stack.api_socket), ("stock agent", agent.socket))
            )
            for side in made:
                until(lambda side=side: len(fetched(side.stock.program, side.stock.socket)) == 2)
            yield made
        finally:
            agent.close()


def test_both_agents_serve_the_same_identities_to_both(sides: tuple[Side, Side]) -> None:
    """FetchX509SVID: the same JSON on one agent, less the private keys that ours does not print; equal orders on both."""
    orders = []
    for side in sides:
        words = ("api", "fetch", "x509")
        stock, ours = side.stock.json(*words), side.ours.json(*words)
        for svid in stock["svids"]:
            assert svid.pop("x509_svid_key")
        for svid in ours["svids"]:
            assert not svid.pop("x509_svid_key", "")
        assert ours == stock, side.name
        orders.append([svid["spiffe_id"] for svid in ours["svids"]])
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == [f"{DOMAIN}/first", f"{DOMAIN}/second"]


def test_both_write_the_same_files(sides: tuple[Side, Side], folder: Path) -> None:
    """`api fetch x509 -write`: the same names, modes and contents, and each key fits its certificate."""
    for side in sides:
        written = []
        for commands in (side.stock, side.ours):
            target = folder / f"{side.name} {commands.program.name}"
            target.mkdir()
            commands("api", "fetch", "x509", "-write", str(target))
            paths = sorted(target.iterdir())
            written.append({path.name: (path.stat().st_mode & 0o777, path.read_text().strip()) for path in paths})
            for number in (0, 1):
                leaf = x509.load_pem_x509_certificate((target / f"svid.{number}.pem").read_bytes())
                key = load_pem_private_key((target / f"svid.{number}.key").read_bytes(), None)
                assert leaf.public_key() == key.public_key()
        assert written[0] == written[1], side.name


def test_health_is_told_alike(sides: tuple[Side, Side]) -> None:
    """grpc.health on the Workload API's socket."""
    for side in sides:
        for commands in (side.stock, side.ours):
            assert "Agent is healthy." in commands("healthcheck")


def test_nothing_is_printed_when_asked_for_nothing(sides: tuple[Side, Side]) -> None:
    """`-silent`, and `api fetch` without a kind."""
    for side in sides:
        for commands in (side.stock, side.ours):
            assert commands("api", "fetch", "-silent") == ""


def test_a_closed_door_is_told_by_exit_code_1(sides: tuple[Side, Side], folder: Path) -> None:
    """A socket nobody listens on."""
    for commands in (sides[0].stock, sides[0].ours):
        lost = Commands(commands.program, folder / "nobody.sock")
        with pytest.raises(Failed) as caught:
            lost("api", "fetch", "x509", "-timeout", "1s")
        assert caught.value.done.returncode == 1


def test_both_agents_give_both_command_lines_the_same_tokens(sides: tuple[Side, Side]) -> None:
    """FetchJWTSVID, FetchJWTBundles, ValidateJWTSVID: equal JSON on one agent; each agent believes the other's tokens."""
    tokens = {}
    for side in sides:
        words = ("api", "fetch", "jwt", "-audience", "db,api")
        stock, ours = side.stock.json(*words), side.ours.json(*words)
        assert ours == stock, side.name
        assert [svid["spiffe_id"] for svid in ours[0]["svids"]] == [
            svid["spiffe_id"] for svid in side.ours.json("api", "fetch", "x509")["svids"]
        ]
        assert side.ours(*words) == side.stock(*words), side.name
        tokens[side.name] = ours[0]["svids"][0]["svid"]
    for side in sides:
        for token in tokens.values():
            words = ("api", "validate", "jwt", "-audience", "db", "-svid", token)
            stock, ours = side.stock.json(*words), side.ours.json(*words)
            assert ours == stock, side.name
            assert side.ours(*words).splitlines()[:2] == side.stock(*words).splitlines()[:2]
            for commands in (side.stock, side.ours):
                with pytest.raises(Failed):
                    commands("api", "validate", "jwt", "-audience", "other", "-svid", token)


def test_both_agents_serve_the_same_jwt_bundles(sides: tuple[Side, Side]) -> None:
    """WAPI-38, WAPI-39: the same trust domains with the same keys, member for member."""
    bundles = []
    for side in sides:
        _, answer = side.ours.json("api", "fetch", "jwt", "-audience", "db")
        bundles.append({name: json.loads(base64.b64decode(text)) for name, text in answer["bundles"].items()})
    assert bundles[0] == bundles[1]


def test_both_agents_refuse_the_same_requests_for_tokens(sides: tuple[Side, Side]) -> None:
    """N-A-15: another identity; N-A-14: a malformed one. The status is the same."""
    for words in (("-spiffeID", f"{DOMAIN}/none"), ("-spiffeID", "not an ID")):
        said = []
        for side in sides:
            with pytest.raises(Failed) as failure:
                side.stock("api", "fetch", "jwt", "-audience", "db", *words)
            said.append("PermissionDenied" in str(failure.value) or "InvalidArgument" in str(failure.value))
        assert said == [True, True], words
