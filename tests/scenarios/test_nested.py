"""A server nested below another one, as real processes: one trust domain, one root, two registries (upstream `spire`)."""

import os

import pytest

from deploy.demo.stack import LocalStack
from spiffe_core.errors import VerificationFailed
from tests.doubles.nested_stack import (
    NESTED_ID,
    PROGRAM,
    TD,
    agent_says,
    authorities,
    bundle_of,
    eventually,
    nested_below,
    own_chain,
    own_token,
    verified,
)
from tests.interop.peers import HERE, our_interpreter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60, func_only=True)]

OURS = HERE / "our_workload.py"
AUDIENCE = "db"


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def above(programs):
    """The upper server and its agent, with entries for the nested server and for one workload."""
    with LocalStack(TD, sync_interval="500ms") as stack:
        stack.start_server()
        stack.admin(
            *("entry", "create", "-downstream", "-parentID", stack.node_id, "-spiffeID", NESTED_ID),
            *("-selector", f"unix:path:{PROGRAM}", "-selector", f"unix:uid:{os.getuid()}"),
        )
        stack.register("/above", f"unix:path:{programs / 'above'}")
        stack.prepare_join()
        stack.start_agent()
        yield stack


@pytest.fixture(scope="module")
def below(above, programs):
    """The nested server and its agent, with entries for one workload and for our own command line."""
    with nested_below(above.port, above.api_socket) as stack:
        stack.start_server()
        stack.register("/below", f"unix:path:{programs / 'below'}")
        stack.register("/cli", f"unix:path:{PROGRAM}")
        stack.prepare_join()
        stack.start_agent()
        yield stack


def shown(stack):
    return stack.admin_json("bundle", "show")


def state(stack):
    return stack.admin_json("localauthority", "x509", "show")


def test_the_agent_above_tells_who_the_nested_server_is(above):
    """The process that is to be nested gets the SPIFFE ID of its downstream entry, and no other."""
    svids = agent_says(above.api_socket, "fetch", "x509")["svids"]
    assert [one["spiffe_id"] for one in svids] == [NESTED_ID]
    assert verified(own_chain(above.api_socket), bundle_of(shown(above))) == NESTED_ID


def test_svids_of_the_nested_server_are_those_of_the_trust_domain(above, below):
    """The chain ends in the upper root; the bundles are the same; the JWT-SVID of one side is valid at the other."""
    chain = own_chain(below.api_socket)
    assert len(chain) == 2
    assert verified(chain, bundle_of(shown(above))) == f"spiffe://{TD}/cli"
    assert authorities(shown(below)) == authorities(shown(above))
    token = own_token(below.api_socket, AUDIENCE)
    words = ("validate", "jwt", "-audience", AUDIENCE, "-svid", token)
    answer = eventually(lambda: agent_says(above.api_socket, *words, may_fail=True))
    assert answer["spiffe_id"] == f"spiffe://{TD}/cli"
    above_token = own_token(above.api_socket, AUDIENCE)
    words = ("validate", "jwt", "-audience", AUDIENCE, "-svid", above_token)
    answer = eventually(lambda: agent_says(below.api_socket, *words, may_fail=True))
    assert answer["spiffe_id"] == NESTED_ID


@pytest.mark.parametrize("listener", ["above", "below"])
def test_workloads_of_both_servers_talk_mutual_tls(above, below, programs, listener):
    """Each side verifies the other by its own bundle, whoever listens."""
    sockets = {"above": above.api_socket, "below": below.api_socket}
    caller = "below" if listener == "above" else "above"
    server, client = (our_interpreter(programs, name) for name in (listener, caller))
    with server.run(OURS, "serve", f"spiffe://{TD}/{caller}", socket=sockets[listener]) as serving:
        port = serving.hear("listening")["port"]
        with client.run(OURS, "dial", str(port), f"spiffe://{TD}/{listener}", socket=sockets[caller]) as calling:
            assert calling.hear("greeted")["answer"] == f"you are spiffe://{TD}/{caller}"
        assert serving.hear("greeted")["peer"] == f"spiffe://{TD}/{caller}"


def test_the_upper_server_and_agent_may_be_away_and_come_back(above, below):
    """Meanwhile the nested server goes on signing; afterwards a new root above arrives below (R11)."""
    known = authorities(shown(above))
    above.agent.stop()
    above.server.stop()
    below.register("/late", f"unix:path:{PROGRAM}")
    eventually(lambda: f"spiffe://{TD}/late" in str(agent_says(below.api_socket, "fetch", "x509")))
    above.start_server()
    above.start_agent()
    above.admin("localauthority", "x509", "prepare")
    both = eventually(lambda: len(found := authorities(shown(above))) == 2 and found)
    assert set(known) < set(both)
    eventually(lambda: authorities(shown(below)) == both)


def test_a_rotation_and_a_taint_above_reach_the_workloads_below(above, below):
    """The upper authority is replaced and tainted: the nested server gets a CA below the new root, and its SVIDs follow."""
    old = state(above)["active"]["authority_id"]
    own = state(below)["active"]["authority_id"]
    assert state(below)["active"]["upstream_authority_subject_key_id"] == old
    if "prepared" not in state(above):
        above.admin("localauthority", "x509", "prepare")
    prepared = state(above)["prepared"]["authority_id"]
    above.admin("localauthority", "x509", "activate", "-authorityID", prepared)
    above.admin("localauthority", "x509", "taint", "-authorityID", old)
    eventually(lambda: state(below)["active"]["upstream_authority_subject_key_id"] == prepared, seconds=50)
    assert state(below)["active"]["authority_id"] != own
    eventually(lambda: authorities(shown(below)) == {old: True, prepared: False})
    new_root = bundle_of(shown(above)).without_x509_authority(old)

    def fresh():
        """Verified without the old root."""
        try:
            return verified(own_chain(below.api_socket), new_root)
        except VerificationFailed:
            return ""

    assert eventually(fresh).startswith(f"spiffe://{TD}/")
    above.admin("localauthority", "x509", "revoke", "-authorityID", old)
    eventually(lambda: authorities(shown(below)) == {prepared: False})
