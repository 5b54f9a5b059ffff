"""Agents that the server bans or forgets while workloads hold streams open, as real processes (A19, R44, R50)."""

import shutil
import sqlite3
from contextlib import closing, contextmanager

import grpc
import pytest
from cryptography import x509
from google.protobuf import empty_pb2

from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2 as pb2
from tests.doubles.held_streams import HeldStreams
from tests.doubles.shifted_clock import ShiftedStack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150, func_only=True)]
DENIED = [grpc.StatusCode.PERMISSION_DENIED] * 3
OPEN = [None] * 3
DATABASE = "datastore.sqlite3"
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


def back_up(stack, file):
    """The database as it is now, copied while the server runs."""
    with (
        closing(sqlite3.connect(stack.folder / "server-data" / DATABASE)) as now,
        closing(sqlite3.connect(file)) as then,
    ):
        now.backup(then)


def restore(stack, file):
    """The server dies and is started with the older database; the agent runs on."""
    stack.server.kill()
    for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
        (stack.folder / "server-data" / name).unlink(missing_ok=True)
    shutil.copy2(file, stack.folder / "server-data" / DATABASE)
    (stack.folder / "server-data" / DATABASE).chmod(0o600)
    stack.start_server()


def authority(stack, method, request, answer):
    with grpc.insecure_channel(f"unix:{stack.admin_socket}") as channel:
        call = channel.unary_unary(
            f"/spire.api.server.localauthority.v1.LocalAuthority/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=40)


def issuer(certificate):
    return certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier.hex()


def replace_the_authority(stack):
    """Another X.509 authority signs, the one before is tainted, and agent and workload have SVIDs of the new one."""
    prepare = (pb2.PrepareX509AuthorityRequest(), pb2.PrepareX509AuthorityResponse)
    prepared = authority(stack, "PrepareX509Authority", *prepare).prepared_authority.authority_id
    activate = (pb2.ActivateX509AuthorityRequest(authority_id=prepared), pb2.ActivateX509AuthorityResponse)
    authority(stack, "ActivateX509Authority", *activate)
    state = authority(
        stack, "GetX509AuthorityState", pb2.GetX509AuthorityStateRequest(), pb2.GetX509AuthorityStateResponse
    )
    old = state.old.authority_id
    taint = (pb2.TaintX509AuthorityRequest(authority_id=old), pb2.TaintX509AuthorityResponse)
    authority(stack, "TaintX509Authority", *taint)
    stack.until(lambda: issuer(stack.svid()) == prepared)
    said = ("renewed the agent's SVID", "joined the trust domain")
    stack.until(lambda: sum(stack.agent.tail(1000).count(one) for one in said) >= 2)
    return old, prepared


def test_an_agent_that_can_prove_itself_again_heals_from_an_eviction_and_drops_everything_at_a_ban():
    """A19, R44: evicted, it says what it waits for and when it tries, attests anew, and no stream ends.

    Banned, every stream ends, keys are off the disk, it is up and red, says why, and asks for nothing any more.
    """
    with story(pop=True) as (stack, streams):
        agent, identity = stack.agent, own_id(stack)
        path = identity.removeprefix(f"spiffe://{stack.trust_domain}")
        stack.evict(path)
        stack.until(lambda: own_part(stack)["phase"] == "unjoined")
        shown = own_part(stack)
        assert "AGENT_NOT_ATTESTED" in shown["trouble"]
        assert shown["waits_for"] == "the server to accept this node's attestation"
        assert shown["next_try_seconds"] <= 6
        assert stack.svid() is not None
        stack.until(lambda: own_part(stack)["state"] == "ok")
        assert own_id(stack) == identity
        stack.register_below(path, path="/later")
        stack.until(lambda: f"spiffe://{stack.trust_domain}/later" in streams.ids)
        assert streams.ends == OPEN

        ban = agent_pb2.BanAgentRequest(id={"trust_domain": stack.trust_domain, "path": path})
        stack.ask("agent", "BanAgent", ban, empty_pb2.Empty)
        stack.until(lambda: streams.ends == DENIED)
        assert stack.svid() is None
        assert stack.bundles() == {}
        shown = own_part(stack)
        assert (shown["state"], shown["phase"]) == ("failed", "rejected")
        assert "banned" in shown["trouble"]
        assert "identity-server agent evict" in shown["waits_for"]
        assert "next_try_seconds" not in shown
        stack.until(lambda: not (stack.folder / "agent-data" / "agent-state.json").exists())
        assert agent.tail(1000).count("this agent is banned by the server") == 1
        assert agent.process.poll() is None

        stack.evict(path)
        assert stack.agent.stop() == 0
        stack.start_agent()
        stack.until(stack.svid)
        assert own_id(stack) == identity


def test_with_a_used_token_it_serves_on_and_a_new_token_ends_it(tmp_path):
    """A19, R44, R22, R50: evicted, and stranded by a database without the authority behind its SVID.

    Entries below the node's alias outlive the agent's identity, so no workload notices anything.
    """
    with story(pop=False, parent="/node") as (stack, streams):
        agent, evicted = stack.agent, own_id(stack)
        stack.evict(evicted.removeprefix(f"spiffe://{stack.trust_domain}"))
        stack.until(lambda: NEW_TOKEN in own_part(stack)["waits_for"])
        assert "next_try_seconds" in own_part(stack)
        assert stack.svid() is not None
        stack.prepare_join()
        stack.until(lambda: own_part(stack)["state"] == "ok")
        assert own_id(stack) != evicted
        assert streams.ends == OPEN

        back_up(stack, tmp_path / "backup")
        old, _ = replace_the_authority(stack)
        restore(stack, tmp_path / "backup")
        stack.until(lambda: NEW_TOKEN in own_part(stack)["waits_for"])
        shown = own_part(stack)
        assert (shown["state"], shown["phase"]) == ("degraded", "joined")
        assert "hung up without a word" in shown["trouble"]
        assert "next_try_seconds" in stack.health()["agent.sync"]
        assert stack.svid() is not None
        stack.prepare_join()
        stack.until(lambda: issuer(stack.svid()) == old)
        stack.until(lambda: own_part(stack)["state"] == "ok")
        assert len(stack.agents()) == 2
        assert streams.ends == OPEN
        assert stack.agent is agent


def test_a_database_that_is_restored_under_an_agent_that_can_prove_itself_again(tmp_path):
    """R50, A19: one process of the agent through three older databases.

    One knows the agent: entries made since go, entries deleted since are back. One lacks the authority behind its SVID, so
    the server hangs up on it: it attests anew, and what the lost authority signed is replaced. One does not know the
    agent at all: it joins anew, and its entries come back with the operator's next command.
    """
    with ShiftedStack(pop=True, shifted=False) as stack:
        stack.start_server()
        back_up(stack, tmp_path / "empty")
        stack.write_bundle()
        agent = stack.start_agent()
        domain, node = f"spiffe://{stack.trust_domain}", stack.agents()[0].id.path
        stack.register_below(node)
        doomed = stack.register_below(node, path="/old")
        with HeldStreams(stack.api_socket) as streams:
            stack.until(lambda: streams.begun)
            stack.until(lambda: streams.ids == {f"{domain}/web", f"{domain}/old"})
            back_up(stack, tmp_path / "backup")
            stack.ask("entry", "BatchDeleteEntry", entry_pb2.BatchDeleteEntryRequest(ids=[doomed]), empty_pb2.Empty)
            stack.register_below(node, path="/new")
            stack.until(lambda: streams.ids == {f"{domain}/web", f"{domain}/new"})
            restore(stack, tmp_path / "backup")
            stack.until(lambda: streams.ids == {f"{domain}/web", f"{domain}/old"})
            stack.register_below(node, path="/after")
            stack.until(lambda: f"{domain}/after" in streams.ids)
            assert agent.tail(1000).count("joined the trust domain") == 1

            old, lost = replace_the_authority(stack)
            restore(stack, tmp_path / "backup")
            stack.until(lambda: issuer(stack.svid()) == old)
            stack.until(lambda: own_part(stack)["state"] == stack.health()["agent.sync"]["state"] == "ok")
            (bundle,) = stack.bundles().values()
            known = x509.load_der_x509_certificate(bundle).extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
            assert (known.value.digest.hex(), lost != old) == (old, True)
            assert "hung up without a word" in agent.tail(1000)
            assert streams.ends == OPEN

            restore(stack, tmp_path / "empty")
            stack.until(lambda: len(stack.agents()) == 1)
            stack.until(lambda: own_part(stack)["state"] == "ok")
            stack.until(lambda: streams.ends == DENIED)
        stack.register_below(node)
        stack.until(stack.svid)
        assert stack.agent is agent
