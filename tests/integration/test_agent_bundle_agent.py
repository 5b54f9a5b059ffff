"""The bundle an agent begins with, from the Workload API of another agent (SPIRE's trust_bundle_spiffe_workload_api)."""

import asyncio
import os
import re
import shutil
import time

import pytest

from deploy.demo.stack import BIN, Daemon, LocalStack
from node_agent.files import BundleFromAgent
from spiffe_core.bundle import TrustBundle, X509Authority
from spiffe_core.errors import InvalidBundle, InvalidRequest, Unavailable
from spiffe_core.spiffe_id import TrustDomain
from tests.authority import SpiffeTestCA
from workload_api.x509_context import MAX_BUNDLES, x509_bundles

CA = SpiffeTestCA()


@pytest.fixture(scope="module")
def stack():
    """A server and the agent that is asked; nobody has an entry yet."""
    with LocalStack("nested.test", sync_interval="100ms") as started:
        started.start()
        yield started


def test_an_agent_begins_with_the_bundle_that_another_agent_gives_it(stack):
    """R23: it waits where it is given none, says what to do, and joins by itself once it has an entry there."""
    folder = stack.folder / "nested"
    folder.mkdir()
    stack.prepare_join()
    shutil.copy2(stack.folder / "token", folder)
    text = stack.agent_config.read_text().replace(str(stack.folder), str(folder))
    source = f'trust_bundle_spiffe_workload_api = "unix://{stack.api_socket}"'
    config = folder / "agent.toml"
    config.write_text(re.sub(r"(?m)^trust_bundle_path = .*$", source, text))
    agent = Daemon([str(BIN / "node-agent"), "run", "--config", str(config)], folder / "agent.log")
    try:
        agent.wait_saying("gives this process no bundles")
        assert "register an entry for it below that agent" in agent.tail(100)
        stack.register("/nested-agent", f"unix:uid:{os.getuid()}")
        agent.wait_saying("joined the trust domain")
        agent.wait_serving(folder / "agent" / "api.sock")
    finally:
        agent.stop()


def asked(stack, trust_domain):
    return asyncio.run(BundleFromAgent(f"unix://{stack.api_socket}", TrustDomain(trust_domain)).bundle())


def test_the_bundle_of_its_own_trust_domain_is_taken_and_no_other(stack):
    """The agent that is asked may federate: what it believes of others is nothing to begin with."""
    stack.register("/asking", f"unix:uid:{os.getuid()}")
    deadline = time.monotonic() + 20
    while True:
        try:
            found = asked(stack, "nested.test")
            break
        except Unavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert found.trust_domain == TrustDomain("nested.test")
    assert len(found.x509_authorities) == 1
    with pytest.raises(Unavailable, match=r"has no bundle of the trust domain other\.test"):
        asked(stack, "other.test")


async def test_an_agent_that_is_not_there_is_named(tmp_path):
    with pytest.raises(Unavailable, match=rf"trust_bundle_spiffe_workload_api: unix://{tmp_path}/none\.sock"):
        await BundleFromAgent(f"unix://{tmp_path}/none.sock", CA.trust_domain).bundle()


REFUSED = {
    "none": ({}, InvalidRequest),
    "too many": ({f"spiffe://t{number}.test": CA.der for number in range(MAX_BUNDLES + 1)}, InvalidRequest),
    "an identity": ({"spiffe://a.test/web": CA.der}, InvalidBundle),
    "no certificate": ({"spiffe://a.test": b"\x30\x01"}, InvalidBundle),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bundles_that_break_a_rule_are_refused_whole(case):
    """WAPI: X509BundlesResponse, trust domain IDs and concatenated DER."""
    received, kind = REFUSED[case]
    with pytest.raises(kind, match="bundles"):
        x509_bundles({"spiffe://good.test": CA.der, **received} if received else {})


def test_each_bundle_is_read_under_its_own_name():
    domains = [TrustDomain(name) for name in ("a.test", "b.test")]
    found = x509_bundles({f"spiffe://{one}": CA.der for one in domains})
    assert found == {one: TrustBundle(one, (X509Authority(CA.der),)) for one in domains}
