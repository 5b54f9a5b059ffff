"""Node attestation as a dialogue: verifiers that ask, block, misbehave, or let a node attest again."""

import asyncio
import threading

import grpc
import grpc.aio
import pytest
from cryptography import x509

from attestors.api import Attested, Challenge
from identity_server.rpc import agent_api
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import AgentRefused, Forbidden, Refusal, Unavailable
from spiffe_core.selectors import Selector
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire.status import from_rpc_error
from tests.doubles.live_server import attest, entry, failure, live_server, params, spiffe_id

KEY = generate(KeyKind.EC_P256)


class Echo:
    """Asks `rounds` times; each answer must repeat the question."""

    name = "echo"

    def __init__(self, rounds=2, path="/spire/agent/echo/one", selectors=(), blocking=True):
        self.rounds, self.path, self.blocking = rounds, path, blocking
        self.selectors = frozenset(selectors)
        self.ended = threading.Event()
        self.threads = set()

    def verify(self, payload, key_digest):
        try:
            for number in range(self.rounds):
                self.threads.add(threading.current_thread().name)
                question = payload + bytes([number])
                if (yield Challenge(question)) != question:
                    raise Forbidden("wrong answer")
            return Attested(self.path, self.selectors, may_reattest=True)
        finally:
            self.ended.set()


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


def plug(live, echo):
    live.server.attest._verifiers["echo"] = echo
    return echo


async def talk(stub, answer=bytes, key=KEY):
    """Attest by echo; `answer` makes the reply to each question."""
    call = stub.AttestAgent(timeout=20)
    await call.write(params(b"hello", key, "echo"))
    while True:
        response = await call.read()
        if response is grpc.aio.EOF:
            raise await failure(call)
        if response.WhichOneof("step") == "result":
            return response.result
        await call.write(agent_pb2.AttestAgentRequest(challenge_response=answer(response.challenge)))


async def test_challenges_are_asked_and_answered_on_a_thread_of_their_own(live):
    """spire_wire 5.1: zero or more challenges, each with one response; the loop is not blocked."""
    echo = plug(live, Echo(rounds=3, selectors=[Selector("echo", "yes")]))
    result = await talk((await live.dial()).agent)
    assert result.reattestable
    assert result.svid.id.path == "/spire/agent/echo/one"
    assert all(name.startswith("attest-") for name in echo.threads)
    shown = await live.agent.GetAgent(agent_pb2.GetAgentRequest(id=spiffe_id("/spire/agent/echo/one")))
    assert (shown.can_reattest, shown.attestation_type) == (True, "echo")
    assert [(item.type, item.value) for item in shown.selectors] == [("echo", "yes")]


async def test_a_verifier_that_never_waits_runs_on_the_loop(live):
    echo = plug(live, Echo(blocking=False))
    await talk((await live.dial()).agent)
    assert echo.threads == {threading.current_thread().name}


async def test_a_verifiers_refusal_reaches_the_node(live):
    """The attestor's own status passes through."""
    echo = plug(live, Echo())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await talk((await live.dial()).agent, answer=lambda _: b"wrong")
    assert (caught.value.code().name, caught.value.details()) == ("PERMISSION_DENIED", "wrong answer")
    assert echo.ended.is_set()
    assert not live.state.agents


@pytest.mark.parametrize("size", [0, agent_api.MAX_ANSWER_BYTES + 1])
async def test_an_answer_is_neither_empty_nor_huge(live, size):
    """S24, S36."""
    echo = plug(live, Echo())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await talk((await live.dial()).agent, answer=lambda _: b"x" * size)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "challenge response" in caught.value.details()
    assert echo.ended.wait(5)


async def test_a_verifier_that_never_stops_asking_is_stopped(live):
    echo = plug(live, Echo(rounds=1000))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await talk((await live.dial()).agent)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert echo.ended.wait(5)


async def test_a_silent_node_is_dropped_and_the_dialogue_ended(live, monkeypatch):
    echo = plug(live, Echo())
    monkeypatch.setattr(agent_api, "ANSWER_SECONDS", 0.1)
    call = (await live.dial()).agent.AttestAgent(timeout=20)
    await call.write(params(b"hello", KEY, "echo"))
    assert (await call.read()).challenge
    error = await failure(call)
    assert (error.code().name, "nothing was sent" in error.details()) == ("INVALID_ARGUMENT", True)
    assert echo.ended.wait(5)


async def test_a_node_that_hangs_up_ends_the_dialogue(live):
    echo = plug(live, Echo())
    call = (await live.dial()).agent.AttestAgent(timeout=20)
    await call.write(params(b"hello", KEY, "echo"))
    await call.read()
    call.cancel()
    async with asyncio.timeout(5):
        while not echo.ended.is_set():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    "path", ["/spire/server", "/web", "/spire/agent", "", "/spire/agent/echo/../../server", "/spire/agent/echo/a b"]
)
async def test_a_plugin_cannot_name_what_is_no_agent(live, path):
    """S32, S33: CVE-2021-27099."""
    plug(live, Echo(rounds=0, path=path))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await talk((await live.dial()).agent)
    assert caught.value.code() in {grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT}
    assert not live.state.agents


async def test_an_agent_that_can_reattest_must_and_the_new_certificate_replaces_the_old(live):
    """spire_features 16.3: AGENT_MUST_REATTEST; selectors replaced, serial overwritten."""
    plug(live, Echo(rounds=0, selectors=[Selector("echo", "old")]))
    first = await live.agent_with((await talk((await live.dial()).agent)).svid, KEY)
    request = agent_pb2.RenewAgentRequest(params={"csr": build_csr(KEY, spiffe_id=None)})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await first.agent.RenewAgent(request)
    error = from_rpc_error(caught.value)
    assert isinstance(error, AgentRefused)
    assert error.refusal is Refusal.AGENT_MUST_REATTEST
    plug(live, Echo(rounds=0, selectors=[Selector("echo", "new")]))
    second = await live.agent_with((await talk((await live.dial()).agent)).svid, KEY)
    await second.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await first.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest())
    assert from_rpc_error(caught.value).refusal is Refusal.AGENT_NOT_ACTIVE
    assert live.state.agents[first.path].selectors == {Selector("echo", "new")}


async def test_a_node_alias_by_selectors_gives_the_agent_its_entries(live):
    """spire_features 15.2: all of the alias's selectors must be among the node's."""
    plug(live, Echo(rounds=0, selectors=[Selector("echo", "zone:a"), Selector("echo", "rack:1")]))
    await live.entries(
        entry("/cluster", "/spire/server", (("echo", "zone:a"),)),
        entry("/other", "/spire/server", (("echo", "zone:a"), ("echo", "rack:2"))),
        entry("/web", "/cluster"),
        entry("/db", "/other"),
    )
    agent = await live.agent_with((await talk((await live.dial()).agent)).svid, KEY)
    got = await agent.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest())
    assert [item.spiffe_id.path for item in got.entries] == ["/web"]


async def test_an_attestation_the_database_cannot_record_gives_no_certificate(live, monkeypatch):
    """N-C-25: a token is not spent by an agent that was not written down."""
    token = await live.token()
    execute = live.server.store.execute

    async def full(_command):
        raise Unavailable("the disk is full")

    monkeypatch.setattr(live.server.store, "execute", full)
    anonymous = await live.dial()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await attest(anonymous.agent, token, KEY)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    monkeypatch.setattr(live.server.store, "execute", execute)
    response = await attest(anonymous.agent, token, generate(KeyKind.EC_P256))
    leaf = x509.load_der_x509_certificate(response.result.svid.cert_chain[0])
    assert str(leaf.serial_number) == live.state.agents[f"/spire/agent/join_token/{token}"].serial
