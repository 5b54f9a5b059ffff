"""Agents that the server bans or forgets while workloads hold streams open, as real processes (A19, R44, R50)."""

import shutil
import time
from contextlib import contextmanager

import grpc
import pytest
from cryptography import x509

from tests.doubles.held_streams import HeldStreams
from tests.doubles.shifted_clock import ShiftedStack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150, func_only=True)]
DENIED = [grpc.StatusCode.PERMISSION_DENIED] * 3
OPEN = [None] * 3
DATABASE = ("datastore.sqlite3", "datastore.sqlite3-wal", "datastore.sqlite3-shm")
NEW_TOKEN = "a new join token is needed: run `identity-server token generate`"


@contextmanager
def story(*, pop, parent=None):
    """A joined agent, an entry below it (or below the node's alias), and a workload's streams, each begun."""
    with ShiftedStack(pop=pop, shifted=False) as stack:
        if parent is None:
            stack.begin()
        else:
            stack.start()
            stack.register_below(parent)
            stack.until(stack.svid)
        with HeldStreams(stack.api_socket) as streams:
            stack.until(lambda: streams.begun)
            yield stack, streams
        assert stack.agent.process.poll() is None, stack.agent.tail()


def own_id(stack):
    (agent,) = stack.agents()
    return f"spiffe://{stack.trust_domain}{agent.id.path}"


def own_part(stack):
    return stack.health()["agent.svid"]


def back_up(stack, folder):
    """The database as it is now; the server does not run meanwhile, the agent does."""
    assert stack.server.stop() == 0
    folder.mkdir()
    for name in DATABASE:
        if (stack.folder / "server-data" / name).exists():
            shutil.copy2(stack.folder / "server-data" / name, folder / name)
    stack.start_server()


def restore(stack, folder):
    stack.server.kill()
    for name in DATABASE:
        (stack.folder / "server-data" / name).unlink(missing_ok=True)
        if (folder / name).exists():
            shutil.copy2(folder / name, stack.folder / "server-data" / name)
    stack.start_server()


def issuer(certificate):
    return certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier.hex()


def replace_the_authority(stack):
    """Another X.509 authority signs, the one before is tainted, and agent and workload have SVIDs of the new one."""
    stack.admin("localauthority", "x509", "prepare")
    prepared = stack.admin_json("localauthority", "x509", "show")["prepared"]["authority_id"]
    stack.admin("localauthority", "x509", "activate", "-authorityID", prepared)
    old = stack.admin_json("localauthority", "x509", "show")["old"]["authority_id"]
    stack.admin("localauthority", "x509", "taint", "-authorityID", old)
    stack.until(lambda: issuer(stack.svid()) == prepared)
    said = ("renewed the agent's SVID", "joined the trust domain")
    stack.until(lambda: sum(stack.agent.tail(1000).count(one) for one in said) >= 2)
    return old, prepared


def test_a_banned_agent_drops_everything_and_says_so():
    """A19, R44: every stream ends, keys are off the disk, it is up and red, says why, and asks for nothing any more."""
    with story(pop=True) as (stack, streams):
        banned = own_id(stack)
        stack.admin("agent", "ban", "-spiffeID", banned)
        stack.until(lambda: streams.ends == DENIED)
        assert stack.svid() is None
        assert stack.bundles() == {}
        shown = own_part(stack)
        assert (shown["state"], shown["phase"]) == ("failed", "rejected")
        assert "banned" in shown["trouble"]
        assert "identity-server agent evict" in shown["waits_for"]
        assert "next_try_seconds" not in shown
        stack.until(lambda: not (stack.folder / "agent-data" / "agent-state.json").exists())
        assert stack.agent.tail(1000).count("this agent is banned by the server") == 1
        assert stack.agent.process.poll() is None

        stack.admin("agent", "evict", "-spiffeID", banned)
        assert stack.agent.stop() == 0
        stack.start_agent()
        stack.until(stack.svid)
        assert own_id(stack) == banned


def test_an_evicted_agent_that_can_prove_itself_again_heals_alone_and_no_stream_ends():
    """A19, R44: it says what it waits for and when it tries, attests anew, and changes reach the same streams."""
    with story(pop=True) as (stack, streams):
        agent, evicted = stack.agent, own_id(stack)
        stack.admin("agent", "evict", "-spiffeID", evicted)
        stack.until(lambda: own_part(stack)["phase"] == "unjoined")
        shown = own_part(stack)
        assert "AGENT_NOT_ATTESTED" in shown["trouble"]
        assert shown["waits_for"] == "the server to accept this node's attestation"
        assert shown["next_try_seconds"] <= 6
        assert stack.svid() is not None
        stack.until(lambda: own_part(stack)["state"] == "ok")
        assert own_id(stack) == evicted
        stack.register_below(evicted.removeprefix(f"spiffe://{stack.trust_domain}"), path="/later")
        stack.until(lambda: f"spiffe://{stack.trust_domain}/later" in streams.ids)
        assert streams.ends == OPEN
        assert stack.agent is agent


def test_an_evicted_agent_with_a_used_token_serves_on_and_a_new_token_ends_it():
    """A19, R44, R22: entries below the node's alias outlive the agent's identity, so no workload notices anything."""
    with story(pop=False, parent="/node") as (stack, streams):
        evicted = own_id(stack)
        stack.admin("agent", "evict", "-spiffeID", evicted)
        stack.until(lambda: NEW_TOKEN in own_part(stack)["waits_for"])
        assert "next_try_seconds" in own_part(stack)
        assert stack.svid() is not None
        assert streams.ends == OPEN
        stack.prepare_join()
        stack.until(lambda: own_part(stack)["state"] == "ok")
        assert own_id(stack) != evicted
        stack.register_below("/node", path="/later")
        stack.until(lambda: f"spiffe://{stack.trust_domain}/later" in streams.ids)
        assert streams.ends == OPEN


def test_a_restored_database_takes_entries_back_and_keeps_its_agents(tmp_path):
    """R50: what was made since is withdrawn, what was deleted since is there again, and changes go on at once."""
    with story(pop=True) as (stack, streams):
        domain, node = f"spiffe://{stack.trust_domain}", stack.agents()[0].id.path
        old = stack.register_below(node, path="/old")
        stack.until(lambda: f"{domain}/old" in streams.ids)
        back_up(stack, tmp_path / "backup")
        stack.admin("entry", "delete", "-entryID", old)
        stack.register_below(node, path="/new")
        stack.until(lambda: streams.ids == {f"{domain}/web", f"{domain}/new"})
        restore(stack, tmp_path / "backup")
        stack.until(lambda: streams.ids == {f"{domain}/web", f"{domain}/old"})
        stack.register_below(node, path="/after")
        stack.until(lambda: f"{domain}/after" in streams.ids)
        stack.until(lambda: own_part(stack)["state"] == stack.health()["agent.sync"]["state"] == "ok")
        assert stack.agent.tail(1000).count("joined the trust domain") == 1
        assert streams.ends == OPEN


def test_an_agent_that_the_restored_database_does_not_know_joins_anew(tmp_path):
    """R50: it was evicted without anybody meaning it; its entries come back with the operator's next command."""
    with ShiftedStack(pop=True, shifted=False) as stack:
        stack.start_server()
        back_up(stack, tmp_path / "backup")
        stack.write_bundle()
        stack.start_agent()
        node = stack.agents()[0].id.path
        stack.register_below(node)
        with HeldStreams(stack.api_socket) as streams:
            stack.until(lambda: streams.begun)
            restore(stack, tmp_path / "backup")
            stack.until(lambda: len(stack.agents()) == 1)
            stack.until(lambda: own_part(stack)["state"] == "ok")
            stack.until(lambda: streams.ends == DENIED)
            assert stack.bundles() == {}
        assert stack.agents()[0].id.path == node
        stack.register_below(node)
        stack.until(stack.svid)


def test_a_restored_database_that_lacks_the_newest_authority_does_not_strand_an_agent_that_can_attest(tmp_path):
    """R50, A19: the server cannot check the agent's SVID any more and hangs up; the agent attests anew, its streams stay.

    SVIDs of the authority that is lost are replaced, and the bundle is the server's again.
    """
    with story(pop=True) as (stack, streams):
        agent = stack.agent
        back_up(stack, tmp_path / "backup")
        old, lost = replace_the_authority(stack)
        restore(stack, tmp_path / "backup")
        began = time.monotonic()
        stack.until(lambda: issuer(stack.svid()) == old)
        stack.until(lambda: own_part(stack)["state"] == stack.health()["agent.sync"]["state"] == "ok")
        assert time.monotonic() - began < 60
        (bundle,) = stack.bundles().values()
        known = x509.load_der_x509_certificate(bundle).extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        assert (known.value.digest.hex(), lost != old) == (old, True)
        assert "hung up without a word" in agent.tail(1000)
        assert streams.ends == OPEN
        assert stack.agent is agent


def test_with_a_used_token_that_agent_serves_on_and_says_what_it_needs(tmp_path):
    """R50, R22: it goes on trying what it has, seldom, and a new token ends it without a restart."""
    with story(pop=False, parent="/node") as (stack, streams):
        before = own_id(stack)
        back_up(stack, tmp_path / "backup")
        old, _ = replace_the_authority(stack)
        restore(stack, tmp_path / "backup")
        stack.until(lambda: NEW_TOKEN in own_part(stack)["waits_for"])
        shown = own_part(stack)
        assert (shown["state"], shown["phase"]) == ("degraded", "joined")
        assert "hung up without a word" in shown["trouble"]
        assert "next_try_seconds" in stack.health()["agent.sync"]
        assert stack.svid() is not None
        assert streams.ends == OPEN
        stack.prepare_join()
        stack.until(lambda: issuer(stack.svid()) == old)
        stack.until(lambda: own_part(stack)["state"] == "ok")
        assert len({before} | {agent.id.path for agent in stack.agents()}) == 3
        assert streams.ends == OPEN
