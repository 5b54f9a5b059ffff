"""SPIRE's command line and ours, each for SPIRE's server and for ours: four ways to ask the same (architecture A13).

`Four.json` runs a command four ways. On one server both command lines have to print the same JSON; on two servers the
same command line has to print JSON of the same shape.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.stack import BIN, LocalStack
from tests.interop.spire import Commands, Failed, StockAgent, StockServer, spire_binaries

DOMAIN = "spiffe://same.test"
PARENT = ("-parentID", f"{DOMAIN}/node")


class Side:
    """One server and both command lines for it."""

    def __init__(self, name: str, socket: Path, port: int, binaries: Path) -> None:
        self.name = name
        self.port = port
        self.stock = Commands(binaries / "spire-server", socket)
        self.ours = Commands(BIN / "identity-server", socket)

    def both(self, *words: str) -> Any:
        """What both command lines print in JSON, which is the same."""
        stock, ours = sorted_parts(self.stock.json(*words)), sorted_parts(self.ours.json(*words))
        assert ours == stock, f"{self.name}: {' '.join(words)}"
        return stock


class Four:
    """Our server and a stock one."""

    def __init__(self, ours: Side, stock: Side) -> None:
        self.sides = (ours, stock)
        self.ours = ours
        self.stock = stock

    def json(self, *words: str) -> Any:
        """Our server's answer, if all four ways agree: the same on one server, the same shape on both."""
        found = [side.both(*words) for side in self.sides]
        assert shape(found[0]) == shape(found[1]), words
        return found[0]

    def shapes(self, *words: str) -> Any:
        """The shape of what a command prints that changes something, and so prints something new each time."""
        found = {
            f"{name} to {side.name}": shape(commands.json(*words))
            for side in self.sides
            for name, commands in (("stock", side.stock), ("ours", side.ours))
        }
        assert len({json.dumps(one, sort_keys=True) for one in found.values()}) == 1, found
        return found.popitem()[1]

    def failures(self, *words: str) -> dict[str, Failed]:
        """The four refusals of a command that has to fail with exit code 1."""
        found = {}
        for side in self.sides:
            for name, commands in (("stock", side.stock), ("ours", side.ours)):
                with pytest.raises(Failed) as caught:
                    commands(*words)
                assert caught.value.done.returncode == 1
                found[f"{name} to {side.name}"] = caught.value
        return found


def sorted_parts(value: Any) -> Any:
    """Selectors are a set: SPIRE's server gives them in the order they came in, and its command line sorts some."""
    if isinstance(value, dict):
        return {
            key: sorted(part, key=json.dumps) if key == "selectors" else sorted_parts(part)
            for key, part in value.items()
        }
    return [sorted_parts(part) for part in value] if isinstance(value, list) else value


def shape(value: Any) -> Any:
    """Keys and kinds instead of values; a list by the kinds of its items."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in value.items()}
    if isinstance(value, list):
        kinds = {json.dumps(shape(part), sort_keys=True) for part in value}
        return sorted(kinds)
    return type(value).__name__


@contextmanager
def running_four(folder: Path) -> Iterator[Four]:
    """Both servers with the same entries and with one attested agent each."""
    binaries = spire_binaries()
    ours = LocalStack("same.test")
    stock = StockServer(binaries, folder, "same.test")
    try:
        ours.start_server()
        stock.start()
        made = Four(
            Side("our server", ours.admin_socket, ours.port, binaries),
            Side("stock server", stock.socket, stock.port, binaries),
        )
        for side in made.sides:
            attest(side, folder)
            fill(side)
        yield made
    finally:
        stock.close()
        ours.close()


def attest(side: Side, folder: Path) -> str:
    """Let a stock agent join, and go: its record stays. Its SPIFFE ID."""
    token = side.stock.json("token", "generate")["value"]
    home = folder / token
    home.mkdir()
    bundle = home / "bundle.pem"
    bundle.write_text(side.stock("bundle", "show"))
    agent = StockAgent(
        side.stock.program.parent, home / "agent", trust_domain="same.test", port=side.port, bundle=bundle
    )
    try:
        agent.start(token)
    finally:
        agent.close()
    return f"{DOMAIN}/spire/agent/join_token/{token}"


def fill(side: Side) -> None:
    """Entries made by the stock command line, with every field that both servers have."""
    full = ("-entryID", "full", "-dns", "a.same.test", "-dns", "b.same.test", "-hint", "h", "-admin", "-downstream")
    rest = ("-x509SVIDTTL", "77", "-jwtSVIDTTL", "88", "-entryExpiry", "1999999999")
    flags = ("-disableX509SVIDPrefetch", "-jwtSVIDIncludeJTI")
    two = ("-selector", "unix:uid:1", "-selector", "unix:gid:2")
    side.stock("entry", "create", *PARENT, "-spiffeID", f"{DOMAIN}/full", *two, *full, *rest, *flags)
    side.stock(
        "entry", "create", *PARENT, "-spiffeID", f"{DOMAIN}/plain", "-selector", "unix:uid:1", "-entryID", "plain"
    )
    side.stock("entry", "create", "-node", "-spiffeID", f"{DOMAIN}/nodes", "-selector", "x:y", "-entryID", "node")


def agent_id(side: Side) -> str:
    (agent,) = side.stock.json("agent", "list")["agents"]
    return f"{DOMAIN}{agent['id']['path']}"
