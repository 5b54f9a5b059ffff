"""The server as a process: start, signals, restart, and clear words when something is in the way."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from identity_server import daemon
from identity_server.domain.history import HistoryChange, Position
from identity_server.services import authority_pruning
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire.channels import unix_channel
from tests.doubles.live_server import Stubs, attest, entry, failure, live_server

RUN = """
import json, sys
from identity_server.daemon import run_and_exit
from identity_server.settings import from_mapping
run_and_exit(from_mapping(json.loads(sys.argv[1])), reset_keys="--reset-keys" in sys.argv)
"""


def settings_at(folder, **over):
    return {
        "trust_domain": "example.org",
        "data_dir": str(folder / "data"),
        "socket_path": str(folder / "run" / "admin.sock"),
        "bind_address": "127.0.0.1",
        "bind_port": 0,
        "audit": {"file": str(folder / "audit.jsonl")},
        **over,
    }


class Daemon:
    """A server process and what it logged."""

    def __init__(self, process, settings):
        self.process = process
        self.settings = settings
        self.lines = []

    async def until(self, words):
        """Read the log until a line has `words`; fail if the process ends before."""
        async with asyncio.timeout(30):
            while True:
                raw = await self.process.stderr.readline()
                assert raw, self.lines
                self.lines.append(raw.decode())
                if words in self.lines[-1]:
                    return json.loads(self.lines[-1])["msg"]

    async def end(self, number=signal.SIGTERM):
        """Signal it; its exit code and how long it took."""
        began = time.monotonic()
        self.process.send_signal(number)
        rest = await asyncio.wait_for(self.process.stderr.read(), 30)
        self.lines += rest.decode().splitlines()
        return await self.process.wait(), time.monotonic() - began


@asynccontextmanager
async def daemon_at(folder, *flags, **over):
    settings = settings_at(folder, **over)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUN, json.dumps(settings), *flags, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield Daemon(process, settings)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
def short(tmp_path_factory):
    return tmp_path_factory.mktemp("d")


async def test_the_first_line_says_what_is_served_and_sigterm_ends_it_at_once(short):
    """R6: nothing in flight, exit within a second, 0, nothing left behind."""
    async with daemon_at(short) as server:
        line = await server.until("serving trust domain")
        assert line.startswith("serving trust domain example.org: agents on 127.0.0.1:")
        assert server.settings["socket_path"] in line
        async with unix_channel(server.settings["socket_path"]) as channel:
            status = await Stubs(channel).health.Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert status.status == health_pb2.HealthCheckResponse.SERVING
        code, seconds = await server.end()
        assert (code, seconds < 5) == (0, True), (code, seconds, server.lines)
        assert not (short / "run" / "admin.sock").exists()


async def test_sigterm_with_idle_streams_ends_them_with_unavailable_within_a_second(short):
    """R6, A7: a stream whose client says nothing is told that the server is restarting."""
    async with daemon_at(short) as server:
        await server.until("serving trust domain")
        async with unix_channel(server.settings["socket_path"]) as channel:
            stubs = Stubs(channel)
            calls = [stubs.agent.AttestAgent(timeout=30) for _ in range(50)]
            for call in calls:
                await call.wait_for_connection()
            await stubs.health.Check(health_pb2.HealthCheckRequest())
            code, seconds = await server.end()
            assert (code, seconds < 5) == (0, True), (code, seconds)
            errors = [await failure(call) for call in calls]
        assert {error.code() for error in errors} == {grpc.StatusCode.UNAVAILABLE}
        assert "the server is restarting, try again" in {error.details() for error in errors}


async def test_a_killed_server_comes_back_with_the_same_authority_and_entries(short):
    """R1, R2: kill -9, then start again over the same directory and stale socket."""
    async with daemon_at(short) as server:
        first = await server.until("serving trust domain")
        async with unix_channel(server.settings["socket_path"]) as channel:
            stubs = Stubs(channel)
            await stubs.entry.BatchCreateEntry(entry_pb2.BatchCreateEntryRequest(entries=[entry()]), timeout=10)
            token = (await stubs.agent.CreateJoinToken(agent_pb2.CreateJoinTokenRequest(ttl=60))).value
            await attest(stubs.agent, token, generate(KeyKind.EC_P256))
        server.process.kill()
        await server.process.wait()
    async with daemon_at(short) as server:
        second = await server.until("serving trust domain")
        assert first.rsplit(" ", 1)[1] == second.rsplit(" ", 1)[1]
        async with unix_channel(server.settings["socket_path"]) as channel:
            stubs = Stubs(channel)
            assert (await stubs.entry.CountEntries(entry_pb2.CountEntriesRequest(), timeout=5)).count == 1
            assert (await stubs.agent.CountAgents(agent_pb2.CountAgentsRequest(), timeout=5)).count == 1
        assert (await server.end())[0] == 0


async def refused(short, *flags, **over):
    """Start a server that cannot; its exit code and what it said."""
    async with daemon_at(short, *flags, **over) as server:
        text = (await asyncio.wait_for(server.process.stderr.read(), 30)).decode()
        return await server.process.wait(), text


async def test_what_is_in_the_way_is_named(short):
    """Port and socket in use, a second process on one data directory, a path that is too long."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, text = await refused(short, bind_port=port)
    assert (code, f"cannot listen on 127.0.0.1:{port}" in text) == (1, True), text
    async with daemon_at(short) as server:
        await server.until("serving trust domain")
        code, text = await refused(short, socket_path=str(short / "other.sock"))
        assert code == 1
        assert str(server.process.pid) in text
        code, text = await refused(short, data_dir=str(short / "data2"))
        assert code == 1
        assert "admin.sock" in text
        code, text = await refused(short, socket_path="/" + "s" * 120)
        assert (code, "socket_path" in text) == (1, True)


async def test_lost_keys_are_never_replaced_silently(short):
    """R1: the refusal names the path and the way out; --reset-keys is that way."""
    async with daemon_at(short) as server:
        first = await server.until("serving trust domain")
        await server.end()
    keys = short / "data" / "keys.json"
    keys.write_text("{")
    code, text = await refused(short)
    assert code == 1
    assert str(keys) in text
    assert "--reset-keys" in text
    assert keys.read_text() == "{"
    async with daemon_at(short, "--reset-keys") as server:
        second = await server.until("serving trust domain")
        assert first.rsplit(" ", 1)[1] != second.rsplit(" ", 1)[1]
        assert list(short.glob("data/keys.json.set-aside*"))
        await server.end()


async def test_files_and_sockets_have_the_right_modes(short):
    """S70: also under umask 000."""
    before = os.umask(0)
    try:
        async with daemon_at(short) as server:
            await server.until("serving trust domain")
            assert (short / "data").stat().st_mode & 0o777 == 0o700
            for path in (short / "data").iterdir():
                assert path.stat().st_mode & 0o077 == 0, path
            assert (short / "run" / "admin.sock").stat().st_mode & 0o777 == 0o770
            assert (short / "run").stat().st_mode & 0o777 == 0o750
            await server.end()
    finally:
        os.umask(before)


async def test_the_process_cannot_be_dumped_or_read(short):
    """S72."""
    async with daemon_at(short) as server:
        await server.until("serving trust domain")
        limits = Path(f"/proc/{server.process.pid}/limits").read_text().splitlines()
        (core,) = [line for line in limits if line.startswith("Max core file size")]
        assert core.split()[4:6] == ["0", "0"]
        assert Path(f"/proc/{server.process.pid}/environ").stat().st_uid == 0  # not dumpable: owned by root
        await server.end()


async def test_sigusr2_follows_rotated_files(short):
    async with daemon_at(short) as server:
        await server.until("serving trust domain")
        (short / "audit.jsonl").rename(short / "audit.1")
        server.process.send_signal(signal.SIGUSR2)
        async with asyncio.timeout(10):
            while not (short / "audit.jsonl").exists():
                await asyncio.sleep(0.01)
        await server.end()


async def test_sigusr2_does_not_end_a_server_that_waits_for_its_database(short):
    """R25: logs are rotated that night too; unhandled, the signal kills."""
    absent = {"url": f"postgresql://muniment@/none?host={short / 'no-database'}"}
    async with daemon_at(short, database=absent, log_file=str(short / "log")) as server:
        log = short / "log"
        async with asyncio.timeout(30):
            while not (log.exists() and "cannot start yet" in log.read_text()):
                await asyncio.sleep(0.02)
        log.rename(short / "rotated")
        server.process.send_signal(signal.SIGUSR2)
        async with asyncio.timeout(30):
            while not log.exists():
                assert server.process.returncode is None
                await asyncio.sleep(0.02)
        assert (await server.end())[0] == 0


async def test_the_servers_own_certificate_is_renewed_before_its_half_life_is_long_over(short):
    """spire_features 13.1: half-life counts from issue; the listener presents the new one to the next connection."""
    async with live_server(svid={"default_x509_ttl": "4s"}) as live:
        task = asyncio.ensure_future(daemon.keep_own_identity(live.server))
        first = live.server.own.identity
        async with asyncio.timeout(10):
            while live.server.own.identity is first:
                await asyncio.sleep(0.02)
        task.cancel()
        assert live.server.own.identity.chain != first.chain
        await (await live.dial()).bundle.GetBundle(bundle_pb2.GetBundleRequest(), timeout=5)


async def test_banned_agents_are_cut_off_by_the_guard(short):
    """S2: within a moment, without another call."""
    async with live_server() as live:
        agent = await live.join()
        task = asyncio.ensure_future(daemon.guard_connections(live.server))
        stream = agent.entry.SyncAuthorizedEntries(timeout=20)
        await stream.wait_for_connection()
        await live.agent.BanAgent(agent_pb2.BanAgentRequest(id={"trust_domain": "example.org", "path": agent.path}))
        assert (await asyncio.wait_for(failure(stream), 10)).code() is grpc.StatusCode.UNAVAILABLE
        task.cancel()


async def test_pruning_takes_what_has_expired(short, monkeypatch):
    monkeypatch.setattr(authority_pruning, "PRUNE_PAUSE_SECONDS", 0.0)
    async with live_server() as live:
        now = int(live.clock.now().timestamp())
        await live.entries(entry("/a", expires_at=now + 5), entry("/b"))
        await live.token(ttl=1)
        live.clock.move(1000)
        await daemon.prune(live.server)
        assert (await live.entry.CountEntries(entry_pb2.CountEntriesRequest())).count == 1
        gone = await live.server.store.execute(lambda uow: uow.join_tokens.prune(2**40))
        assert gone == 0


async def test_nothing_is_deleted_for_having_expired_right_after_a_clock_jump(short):
    """R17: a clock that is a year ahead for a minute must not cost the registrations that end before."""
    async with live_server() as live:
        now = int(live.clock.now().timestamp())
        await live.entries(entry("/a", expires_at=now + 86_400))
        live.clock.move(365 * 86_400)
        await daemon.prune(live.server)
        live.clock.move(-365 * 86_400)
        assert (await live.entry.CountEntries(entry_pb2.CountEntriesRequest())).count == 1


async def test_a_loop_that_dies_of_a_bug_ends_the_server(short, monkeypatch):
    """A daemon without its rotation loop is worse than a dead one."""
    async with live_server(ca={"ttl": "24s"}, svid={"default_x509_ttl": "4s"}) as live:

        async def broken():
            raise RuntimeError("bug")

        monkeypatch.setattr(live.server.authorities, "tick", broken)
        with pytest.raises(ExceptionGroup):
            await asyncio.wait_for(daemon._until_stopped(live.server, asyncio.Event()), 20)


async def test_a_database_with_another_history_raises_an_alarm_and_wakes_the_rotation(short, caplog, monkeypatch):
    """A8: a person is told, and the roots are looked after at once."""
    async with live_server() as live:
        ticked = asyncio.Event()

        async def tick():
            ticked.set()

        monkeypatch.setattr(live.server.authorities, "tick", tick)
        task = asyncio.ensure_future(daemon.keep_authorities(live.server))
        await asyncio.sleep(0)
        change = HistoryChange("restored backup", Position(1, 9, 9), Position(2, 3, 3), proven=True)
        live.server.store.on_history_change(change)
        await asyncio.wait_for(ticked.wait(), 5)
        task.cancel()
        assert "history changed: restored backup" in caplog.text


async def test_sigterm_with_calls_in_flight_answers_them_or_says_unavailable(short):
    """R6: 500 calls in flight; no half-written response, exit 0 within the drain."""
    async with daemon_at(short) as server:
        await server.until("serving trust domain")
        async with unix_channel(server.settings["socket_path"]) as channel:
            stubs = Stubs(channel)
            # Only an answer tells gRPC how many calls a connection takes; those begun before that may be refused.
            await stubs.entry.CountEntries(entry_pb2.CountEntriesRequest(), timeout=20)
            requests = [
                entry_pb2.BatchCreateEntryRequest(entries=[entry(f"/w{number}/{n}") for n in range(20)])
                for number in range(500)
            ]
            calls = [stubs.entry.BatchCreateEntry(request, timeout=20) for request in requests]
            await calls[0]
            code, seconds = await server.end()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert (code, seconds < 10) == (0, True), (code, seconds)
        answered = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        refused_ = {outcome.code() for outcome in outcomes if isinstance(outcome, grpc.RpcError)}
        assert all(len(outcome.results) == 20 for outcome in answered)
        assert refused_ <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    async with daemon_at(short) as server:
        await server.until("serving trust domain")
        async with unix_channel(server.settings["socket_path"]) as channel:
            count = (await Stubs(channel).entry.CountEntries(entry_pb2.CountEntriesRequest(), timeout=5)).count
        assert count >= 20 * len(answered)
        await server.end()
