"""`node-agent explain` on a real agent of a real server: processes, selectors, and refusals by their id."""

import asyncio
import json
import os
import re
import subprocess
import sys

import grpc
import pytest

from identity_server.rpc.services import EXPLAIN as SERVER_EXPLAIN
from node_agent.cli import main
from node_agent.rpc.explain_api import REFUSAL_TRAILER, SERVICE
from node_agent.services import explain as module
from spiffe_core.wire._gen.muniment.agent.explain.v1 import explain_pb2 as pb
from spiffe_core.wire._gen.muniment.server.explain.v1 import explain_pb2 as server_pb
from spiffe_core.wire.services import Stub
from tests.doubles.canned_daemon import leave_code
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import entry, live_server

ID = re.compile(r"no identity issued \(([0-9a-f]{8})\)")


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


@pytest.fixture
async def agent(live):
    async with agent_folder() as folder:
        token = token_file(folder, await live.token())
        settings = {"trust_bundle_path": str(pem_bundle(live, folder)), "join_token_file": str(token)}
        async with live_agent(folder, live.server.address, **settings) as agent:
            await agent.until_joined()
            await agent.until(lambda: agent.agent.follow.up)
            yield agent


@pytest.fixture
def command(agent, capsys):
    """Run `node-agent explain`; its exit code and what it printed."""

    async def run(*words):
        socket = str(agent.agent.settings.admin_socket)
        code = await asyncio.to_thread(leave_code, main, "explain", *words, "-socketPath", socket)
        return code, capsys.readouterr()

    return run


async def refused(agent):
    """The error a workload gets, and the id in it."""
    stream = agent.x509_stream()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stream.read()
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    return error.value


async def test_a_refused_workload_learns_an_id_and_nothing_else(live, agent, command):
    """The id stands in the text and in a trailer; behind it stands why, as things were."""
    await live.entries(entry(parent=agent.path, selectors=[("unix", f"uid:{os.getuid() + 1}")]))
    error = await refused(agent)
    refusal_id = ID.fullmatch(error.details()).group(1)
    assert dict(error.trailing_metadata())[REFUSAL_TRAILER] == refusal_id
    assert "uid" not in str(error.trailing_metadata())
    code, said = await command(refusal_id)
    assert code == 1
    assert said.out.startswith("MUN-E302: entry ")
    assert f"asks for unix:uid:{os.getuid() + 1}; the workload has unix:uid:{os.getuid()}" in said.out.splitlines()[0]
    assert said.out.splitlines()[-1].startswith("To mend it: identity-server entry update -entryID ")


async def test_the_command_that_mends_it_does(live, agent, command):
    """What the last line says is run as it stands."""
    await live.entries(entry(parent=agent.path, selectors=[("unix", f"uid:{os.getuid() + 1}")]))
    await agent.until(lambda: agent.agent.workloads.entries)
    _, said = await command("--pid", str(os.getpid()))
    words = said.out.splitlines()[-1].removeprefix("To mend it: ").split()
    from identity_server.cli import main as server_main

    socket = str(live.server.settings.socket_path)
    assert await asyncio.to_thread(leave_code, server_main, *words[1:], "-socketPath", socket) == 0
    async with asyncio.timeout(20):
        while (await command("--pid", str(os.getpid())))[0]:
            await asyncio.sleep(0.05)


async def test_an_entry_of_another_agent_is_told_without_its_selectors(live, agent, command):
    """A10: an agent learns of entries that are not its own how many match, and below which parent."""
    other = await live.join()
    await live.entries(entry(parent=other.path, selectors=OWN))
    refusal_id = ID.fullmatch((await refused(agent)).details()).group(1)
    for words in (("--pid", str(os.getpid())), (refusal_id,)):
        code, said = await command(*words)
        assert code == 1
        assert said.out.startswith(f"MUN-E307: an entry matches below another parent, spiffe://example.org{other.path}")


async def test_the_server_explains_to_administrators(live, agent, capsys):
    from identity_server.cli import main as server_main

    other = await live.join()
    await live.entries(entry(parent=other.path, selectors=[("unix", "uid:7"), ("unix", "gid:7")]))
    socket = str(live.server.settings.socket_path)

    async def ask(path, *selectors):
        words = [word for one in selectors for word in ("-selector", one)]
        words += ["-agent", f"spiffe://example.org{path}", "-socketPath", socket]
        code = await asyncio.to_thread(leave_code, server_main, "explain", *words)
        return code, capsys.readouterr().out

    assert (await ask(other.path, "unix:uid:7", "unix:gid:7"))[0] == 0
    code, said = await ask(other.path, "unix:uid:7", "unix:gid:8")
    assert code == 1
    assert "asks for unix:gid:7; the workload has unix:gid:8" in said.splitlines()[0]
    code, said = await ask(agent.path, "unix:uid:7", "unix:gid:7")
    assert said.startswith("MUN-E307")
    assert f"-parentID spiffe://example.org{agent.path}" in said.splitlines()[-1]
    code, said = await ask(f"{agent.path[:-1]}?".replace("?", "x"), "unix:uid:7")
    assert said.startswith("MUN-E308")
    assert agent.path in said


async def test_the_server_tells_of_an_agent_that_is_away_what_brings_it_back(live, capsys):
    """Its SVID has expired because it was not here; that says nothing about anybody's clock."""
    from identity_server.cli import main as server_main

    away = await live.join()
    live.clock.move(7200)
    words = ["-selector", "unix:uid:7", "-agent", f"spiffe://example.org{away.path}"]
    socket = str(live.server.settings.socket_path)
    code = await asyncio.to_thread(leave_code, server_main, "explain", *words, "-socketPath", socket)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert (code, first.startswith("MUN-E102"), "has not been here for a while" in first) == (1, True, True)
    assert "start it" in last
    assert "clock" not in last


async def test_agents_learn_a_count_and_nothing_else(live, agent):
    """The agent's own RPC answers neither selectors nor ids; administrators' is not for agents."""
    raw = await live.join()
    await live.entries(entry(parent=agent.path, selectors=OWN))
    stub = Stub(raw.dialer.channel(), SERVER_EXPLAIN)
    answer = await stub.Elsewhere(server_pb.ElsewhereRequest(selectors=[":".join(one) for one in OWN]), timeout=10)
    assert (answer.entries, answer.parent_id) == (1, f"spiffe://example.org{agent.path}")
    assert {field.name for field, _ in answer.ListFields()} == {"entries", "parent_id"}
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await stub.Explain(server_pb.ExplainRequest(agent_id=f"spiffe://example.org{agent.path}"), timeout=10)
    assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_served_process_is_explained_as_well(live, agent, command):
    await live.entries(entry(parent=agent.path, selectors=OWN))
    await agent.until(lambda: agent.agent.workloads.held_count == 1)
    for words in (("--pid", str(os.getpid())), ("-socketPeer",), ("--selector", f"unix:uid:{os.getuid()}")):
        code, said = await command(*words)
        assert code == 0
        assert said.out.startswith("MUN-I000: the workload is served: spiffe://example.org/web")
    code, said = await command("--pid", str(os.getpid()), "-output", "json")
    document = json.loads(said.out)
    assert document["code"] == "MUN-I000"
    assert [one["name"] for one in document["steps"]] == [
        "agent",
        "process",
        "attestor unix",
        "entries",
        "match",
        "SVID",
    ]


async def test_a_process_that_is_not_there(command):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    code, said = await command("--pid", str(process.pid))
    assert code == 1
    assert said.out.startswith("MUN-E201")


async def test_an_unknown_id_says_what_to_do(command):
    code, said = await command("00000000")
    assert code == 1
    assert "node-agent explain --pid N" in said.err


async def test_refusals_are_kept_in_a_bounded_number(agent, monkeypatch):
    monkeypatch.setattr(module, "MAX_REFUSALS", 2)
    ids = [ID.fullmatch((await refused(agent)).details()).group(1) for _ in range(3)]
    async with agent.admin(SERVICE) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await stub.Explain(pb.ExplainRequest(refusal=ids[0]), timeout=10)
        assert gone.value.code() is grpc.StatusCode.NOT_FOUND
        assert (await stub.Explain(pb.ExplainRequest(refusal=ids[2]), timeout=10)).code == "MUN-E301"


@pytest.mark.parametrize(
    "request_",
    [
        pb.ExplainRequest(),
        pb.ExplainRequest(pid=-1),
        pb.ExplainRequest(selectors=pb.Selectors()),
        pb.ExplainRequest(selectors=pb.Selectors(selectors=["unix"])),
        pb.ExplainRequest(selectors=pb.Selectors(selectors=["unix:uid:1"] * 1001)),
    ],
    ids=["nothing", "a negative number", "no selectors", "half a selector", "too many"],
)
async def test_questions_that_are_none(agent, request_):
    async with agent.admin(SERVICE) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.Explain(request_, timeout=10)
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_only_one_question_at_a_time(command):
    code, said = await command("--pid", "1", "-socketPeer")
    assert code == 1
    assert "one of" in said.err
