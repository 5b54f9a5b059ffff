"""A stock spire-agent takes a bundle of 200 roots and 2 MB, and those of 200 federated trust domains, from us (R49)."""

from __future__ import annotations

import asyncio
import base64
import time
from pathlib import Path

import pytest

from deploy.demo.stack import LocalStack
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.services import Stub
from tests.doubles.large_bundles import NAMES, R49_SECONDS, ROOTS, fill
from tests.interop.peers import until
from tests.interop.spire import Commands, StockAgent, certificates, fetched, spire_binaries

pytestmark = pytest.mark.slow

DOMAIN = "spiffe://interop.test"
BUNDLE = bundle_pb2.DESCRIPTOR.services_by_name["Bundle"]


async def filled(admin_socket: Path) -> None:
    async with unix_channel(admin_socket) as channel:
        await fill(Stub(channel, BUNDLE), "interop.test")


def test_it_has_all_of_it_within_the_time(folder: Path) -> None:
    """No message is too large for gRPC-Go's limit of 4 MiB, neither for the agent nor for its workload."""
    binaries = spire_binaries()
    workload = f"unix:path:{(binaries / 'spire-agent').resolve()}"
    with LocalStack("interop.test") as stack:
        stack.start_server()
        asyncio.run(filled(stack.admin_socket))
        (stack.folder / "bundle.pem").write_text(stack.admin("bundle", "show"))
        node = f"{DOMAIN}/nodes/large"
        token = str(stack.admin_json("token", "generate", "-spiffeID", node)["value"])
        others = [word for name in NAMES for word in ("-federatesWith", name)]
        words = ("-parentID", node, "-spiffeID", f"{DOMAIN}/web", "-selector", workload)
        stack.admin("entry", "create", *words, *others)
        agent = StockAgent(
            binaries, folder / "large", trust_domain="interop.test", port=stack.port, bundle=stack.folder / "bundle.pem"
        )
        try:
            began = time.monotonic()
            agent.start(token)
            until(lambda: bool(fetched(agent.program, agent.socket)), R49_SECONDS)
            found = Commands(agent.program, agent.socket).json("api", "fetch", "x509")
            took = time.monotonic() - began
            message = found[0] if isinstance(found, list) else found
            (svid,) = message["svids"]
            assert svid["spiffe_id"] == f"{DOMAIN}/web"
            assert len(certificates(base64.b64decode(svid["bundle"]))) == ROOTS + 1
            assert {name.removeprefix("spiffe://") for name in message["federated_bundles"]} == set(NAMES)
            assert took < R49_SECONDS
            assert "larger than max" not in agent.log
        finally:
            agent.close()
