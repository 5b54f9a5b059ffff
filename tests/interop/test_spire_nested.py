"""Nested with stock SPIRE, both ways: our server below a spire-server, and a spire-server below ours (upstream `spire`)."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from deploy.demo.stack import LocalStack
from spiffe_core.bundle import TrustBundle
from spiffe_core.bundle_document import load_bundle
from spiffe_core.spiffe_id import TrustDomain
from tests.doubles.nested_stack import (
    NESTED_ID,
    PROGRAM,
    TD,
    agent_says,
    authorities,
    eventually,
    nested_below,
    own_chain,
    own_token,
    verified,
)
from tests.interop.spire import JOIN_TOKEN, Failed, StockAgent, StockServer, certificates, fetched, spire_binaries

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60, func_only=True)]

NODE = f"spiffe://{TD}/stock-node"


def bundle_of(text: str) -> TrustBundle:
    """A bundle as `bundle show -format spiffe` prints it."""
    return load_bundle(text.encode(), TrustDomain(TD)).bundle


@pytest.fixture(scope="module")
def stock(folder: Path) -> Iterator[tuple[StockServer, StockAgent]]:
    """A stock server and agent, with a downstream entry for what this environment's programs run."""
    binaries = spire_binaries()
    server = StockServer(binaries, folder, TD)
    try:
        server.start()
        (folder / "stock.pem").write_text(server.command("bundle", "show"))
        words = ("-parentID", NODE, "-spiffeID", NESTED_ID, "-selector", f"unix:path:{PROGRAM}")
        server.command("entry", "create", "-downstream", *words)
        token = server.command.json("token", "generate", "-spiffeID", NODE)["value"]
        agent = StockAgent(
            binaries, folder / "stock-agent", trust_domain=TD, port=server.port, bundle=folder / "stock.pem"
        )
        try:
            yield server, agent.start(token)
        finally:
            agent.close()
    finally:
        server.close()


@pytest.fixture(scope="module")
def ours_below(stock: tuple[StockServer, StockAgent]) -> Iterator[LocalStack]:
    server, agent = stock
    with nested_below(server.port, agent.socket) as stack:
        stack.start_server()
        stack.register("/cli", f"unix:path:{PROGRAM}")
        stack.prepare_join()
        stack.start_agent()
        yield stack


def state(stack: LocalStack) -> Any:
    return stack.admin_json("localauthority", "x509", "show")


def test_the_stock_agent_tells_who_our_server_is(stock: tuple[StockServer, StockAgent]) -> None:
    """Its Workload API gives this environment's programs the SPIFFE ID of the downstream entry."""
    server, agent = stock
    above = bundle_of(server.command("bundle", "show", "-format", "spiffe"))
    eventually(
        lambda: agent_says(agent.socket, "fetch", "x509", may_fail=True)
    )  # its first sync may have been too early
    assert verified(own_chain(agent.socket), above) == NESTED_ID


def test_our_server_signs_below_a_stock_one(stock: tuple[StockServer, StockAgent], ours_below: LocalStack) -> None:
    """NewDownstreamX509CA, GetBundle and PublishJWTAuthority of a spire-server."""
    server, _ = stock
    above = bundle_of(server.command("bundle", "show", "-format", "spiffe"))
    assert verified(own_chain(ours_below.api_socket), above) == f"spiffe://{TD}/cli"
    shown = authorities(ours_below.admin_json("bundle", "show"))
    assert shown == {one.key_id: False for one in above.x509_authorities}
    kid = bundle_of(ours_below.admin("bundle", "show", "-format", "spiffe")).jwt_authorities
    assert {one.key_id for one in above.jwt_authorities} == {one.key_id for one in kid}
    assert own_token(ours_below.api_socket, "db")


def test_a_rotation_and_a_taint_at_a_stock_server_arrive(
    stock: tuple[StockServer, StockAgent], ours_below: LocalStack
) -> None:
    """The stock server's bundle is polled: its taint makes our server ask for a CA below its new root."""
    server, _ = stock
    old = state(ours_below)["active"]["upstream_authority_subject_key_id"]
    new = server.command.json("localauthority", "x509", "prepare")["prepared_authority"]["authority_id"]
    eventually(lambda: set(authorities(ours_below.admin_json("bundle", "show"))) == {old, new})
    server.command("localauthority", "x509", "activate", "-authorityID", new)
    server.command("localauthority", "x509", "taint", "-authorityID", old)
    eventually(lambda: state(ours_below)["active"]["upstream_authority_subject_key_id"] == new, seconds=50)
    eventually(lambda: authorities(ours_below.admin_json("bundle", "show")) == {old: True, new: False})


@pytest.fixture(scope="module")
def ours_above(folder: Path) -> Iterator[LocalStack]:
    """Our server and agent, with a downstream entry for the program spire-server."""
    program = os.path.realpath(spire_binaries() / "spire-server")
    with LocalStack(TD, sync_interval="500ms") as stack:
        stack.start_server()
        stack.admin(
            *("entry", "create", "-downstream", "-parentID", stack.node_id, "-spiffeID", NESTED_ID),
            *("-selector", f"unix:path:{program}"),
        )
        stack.prepare_join()
        stack.start_agent()
        yield stack


@pytest.fixture(scope="module")
def stock_below(folder: Path, ours_above: LocalStack) -> Iterator[StockServer]:
    """A spire-server with our server as its upstream authority."""
    (folder / "below").mkdir()
    upstream = f"""UpstreamAuthority "spire" {{
        plugin_data {{
            server_address = "127.0.0.1"
            server_port = "{ours_above.port}"
            workload_api_socket = "{ours_above.api_socket}"
        }}
    }}"""
    server = StockServer(spire_binaries(), folder / "below", TD, attestor=f"{JOIN_TOKEN}\n    {upstream}")
    try:
        yield server.start()
    finally:
        server.close()


def test_a_stock_server_signs_below_ours(folder: Path, ours_above: LocalStack, stock_below: StockServer) -> None:
    """Its agent's workload has a chain to our root, and its JWT key is in our bundle."""
    (folder / "below.pem").write_text(stock_below.command("bundle", "show"))
    words = ("-parentID", NODE, "-spiffeID", f"spiffe://{TD}/web", "-selector", f"unix:uid:{os.getuid()}")
    stock_below.command("entry", "create", *words)
    token = stock_below.command.json("token", "generate", "-spiffeID", NODE)["value"]
    agent = StockAgent(
        spire_binaries(),
        folder / "below-agent",
        trust_domain=TD,
        port=stock_below.port,
        bundle=folder / "below.pem",
    )
    try:
        agent.start(token)
        svid = eventually(lambda: fetched(agent.program, agent.socket))[0]
    finally:
        agent.close()

    chain = tuple(one.public_bytes(Encoding.DER) for one in certificates(base64.b64decode(svid["x509_svid"])))
    assert len(chain) == 2
    above = bundle_of(ours_above.admin("bundle", "show", "-format", "spiffe"))
    assert verified(chain, above) == f"spiffe://{TD}/web"
    below = bundle_of(stock_below.command("bundle", "show", "-format", "spiffe"))
    assert {one.key_id for one in below.jwt_authorities} <= {one.key_id for one in above.jwt_authorities}


def test_a_rotation_and_a_taint_here_arrive_at_a_stock_server(ours_above: LocalStack, stock_below: StockServer) -> None:
    """It reads our bundle, taint included, and asks us for a CA below the new root."""
    old = ours_above.admin_json("localauthority", "x509", "show")["active"]["authority_id"]
    prepared = ours_above.admin_json("localauthority", "x509", "prepare")["prepared_authority"]["authority_id"]
    ours_above.admin("localauthority", "x509", "activate", "-authorityID", prepared)
    ours_above.admin("localauthority", "x509", "taint", "-authorityID", old)

    def below() -> Any:
        """The upstream root of the stock server's active authority."""
        try:
            shown = stock_below.command.json("localauthority", "x509", "show")
        except Failed:
            return ""
        return shown["active"]["upstream_authority_subject_key_id"]

    eventually(lambda: below() == prepared, seconds=50)
    eventually(lambda: authorities(stock_below.command.json("bundle", "show")) == {old: True, prepared: False})
