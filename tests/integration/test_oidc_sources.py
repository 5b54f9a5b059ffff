"""Where a discovery provider has its keys from: a real server, an agent that says what it is told, and a file."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from identity_server.domain.oidc_documents import Authority, Provider
from identity_server.oidc.held_keys import HeldKeys
from identity_server.oidc.sources import FileKeys, ServerKeys, WorkloadKeys, ask_once, follow_for_good, keep_asking
from identity_server.oidc.writing import write_on_change, write_once
from identity_server.settings_oidc import from_mapping
from spiffe_core.bundle import JwtAuthority
from spiffe_core.bundle_document import MAX_DOCUMENT_BYTES, dump_bundle, dump_token_keys
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import Forbidden, InvalidBundle, NotFound, Unavailable, Unimplemented
from spiffe_core.runtime.supervise import spawn
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire.services import handlers
from tests.builders import make_bundle
from tests.doubles.clock import FakeClock
from tests.doubles.live_server import live_server
from tests.doubles.scripted_backend import ScriptedBackend
from tests.doubles.workload_endpoint import SERVICE, workload_endpoint
from workload_api.client import Backoff, WorkloadApiClient

TD, OTHER = TrustDomain("example.org"), TrustDomain("fed.test")
K1, K2 = (JwtAuthority(name, spki_der(generate(KeyKind.EC_P256).public_key())) for name in ("k1", "k2"))


def made_held(clock=None, **over):
    return HeldKeys(Provider((Authority("oidc.example.org"),)), clock or SystemClock(), keep=60.0, **over)


class Watched:
    """Keys that are held, and a way to wait for them to become others."""

    def __init__(self):
        self.heard = asyncio.Event()
        self.held = made_held(on_change=lambda _: self.heard.set())

    async def until(self, *ids):
        async with asyncio.timeout(20):
            while self.held.part().detail["keys"] == 0 or self.held.current().key_ids != ids:
                await self.heard.wait()
                self.heard.clear()


class Agent:
    """Every stream of JWT bundles begins with the last answer and goes on with each new one; an error ends it."""

    def __init__(self):
        self.answer = None
        self.changed = asyncio.Condition()

    async def say(self, answer):
        async with self.changed:
            self.answer = answer
            self.changed.notify_all()

    async def keys(self, **sets):
        named = {str(TrustDomain(name.replace("_", ".")).id): dump_token_keys(keys) for name, keys in sets.items()}
        await self.say(workload_pb2.JWTBundlesResponse(bundles=named))

    async def FetchJWTBundles(self, _request, _context):
        said = None
        while True:
            async with self.changed:
                await self.changed.wait_for(lambda before=said: self.answer is not before)
                said = self.answer
            if isinstance(said, Exception):
                raise said
            yield said


@asynccontextmanager
async def workload_keys(trust_domain=TD):
    agent = Agent()
    async with workload_endpoint(ScriptedBackend(), service=handlers(SERVICE, agent)) as endpoint:
        source = WorkloadKeys(WorkloadApiClient(endpoint.address, backoff=Backoff(0.01, 0.01)), trust_domain)
        try:
            yield agent, source
        finally:
            await source.close()


async def test_a_servers_admin_socket_tells_the_jwt_keys_of_its_bundle():
    async with live_server() as live:
        source = ServerKeys(live.server.settings.socket_path)
        try:
            assert await source.ask() == live.state.bundles.own.jwt_authorities
        finally:
            await source.close()


async def test_a_server_that_is_away_changes_nothing_that_is_held(tmp_path):
    held = made_held()
    held.loaded([K1])
    source = ServerKeys(tmp_path / "nobody.sock")
    try:
        await ask_once(source, held)
    finally:
        await source.close()
    assert held.current().key_ids == ("k1",)
    assert "gives nothing new" in held.part().trouble


async def test_an_agent_tells_the_keys_of_one_trust_domain_of_several():
    async with workload_keys(OTHER) as (agent, source):
        await agent.keys(example_org=[K1], fed_test=[K2])
        assert [one.key_id for one in await source.ask()] == ["k2"]
        await agent.keys(example_org=[K1])
        with pytest.raises(NotFound, match=r"workload_api\.trust_domain"):
            await source.ask()


async def test_changes_arrive_without_being_asked_for():
    """WAPI-40: each message is complete; what it lacks is not served any more."""
    watched = Watched()
    tasks: set[asyncio.Task] = set()
    async with workload_keys() as (agent, source):
        await agent.keys(example_org=[K1])
        following = spawn(follow_for_good(source, watched.held), "follow", tasks)
        await watched.until("k1")
        await agent.keys(example_org=[K1, K2])
        await watched.until("k1", "k2")
        await agent.keys(example_org=[K2])
        await watched.until("k2")
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


@pytest.mark.parametrize(("refusal", "served"), [(Forbidden("no identity issued"), False), (Unavailable("soon"), True)])
async def test_only_a_refusal_of_the_agent_takes_keys_away(refusal, served):
    """WAPI-41, WEP-24: PermissionDenied is obeyed; anything else may pass."""
    held = made_held()
    held.loaded([K1])
    async with workload_keys() as (agent, source):
        await agent.say(refusal)
        await ask_once(source, held)
    assert held.part().detail["keys"] == int(served)
    assert refusal.public in held.part().trouble


async def test_an_agent_that_will_never_send_bundles_is_still_asked():
    watched = Watched()
    tasks: set[asyncio.Task] = set()
    async with workload_keys() as (agent, source):
        await agent.say(Unimplemented("no such call"))
        following = spawn(follow_for_good(source, watched.held), "follow", tasks)
        asking = spawn(keep_asking(source, watched.held, SystemClock(), 0.01), "ask", tasks)
        async with asyncio.timeout(20):
            while "no such call" not in watched.held.part().trouble:
                await asyncio.sleep(0.01)
        assert not following.done()
        await agent.keys(example_org=[K1])
        await watched.until("k1")
        for task in (following, asking):
            task.cancel()
        await asyncio.gather(following, asking, return_exceptions=True)


async def test_a_file_is_read_anew_each_time_and_refused_as_a_whole(tmp_path):
    path = tmp_path / "bundle.json"
    source = FileKeys(path)
    with pytest.raises(Unavailable, match=r"bundle\.json"):
        await source.ask()
    path.write_bytes(dump_bundle(make_bundle(jwt_authorities=(K1, K2))))
    assert [one.key_id for one in await source.ask()] == ["k1", "k2"]
    path.write_bytes(b'{"keys": [')
    with pytest.raises(InvalidBundle):
        await source.ask()
    path.write_bytes(b" " * (MAX_DOCUMENT_BYTES + 1))
    with pytest.raises(InvalidBundle):
        await source.ask()


async def logged(caplog, text):
    while text not in caplog.text:
        await asyncio.sleep(0.01)


def file_settings(path):
    return from_mapping({"jwt_issuer": "https://oidc.example.org", "file": {"path": str(path), "poll_interval": "1s"}})


async def test_files_are_written_now_and_whenever_the_keys_change(tmp_path, caplog):
    """A rotation reaches the bucket's directory, a bad document and an absence leave it as it was."""
    path, site, written = tmp_path / "bundle.json", tmp_path / "site", asyncio.Queue()
    path.write_bytes(dump_bundle(make_bundle(jwt_authorities=(K1,))))

    class Impatient(SystemClock):
        async def sleep(self, seconds):
            await super().sleep(min(seconds, 0.01))

    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task] = set()

    def tell(paths):
        loop.call_soon(written.put_nowait, [one.name for one in paths])

    writing = spawn(write_on_change(file_settings(path), site, Impatient(), tell), "write", tasks)
    async with asyncio.timeout(20):
        assert await written.get() == ["keys", "openid-configuration"]
        before = (site / "keys").read_bytes()
        path.write_bytes(b"not a bundle")
        await logged(caplog, "gives nothing new")
        assert (site / "keys").read_bytes() == before
        path.write_bytes(dump_bundle(make_bundle(jwt_authorities=(K1, K2))))
        assert await written.get() == ["keys"]
        (site / "keys").unlink()
        (site / "keys").mkdir()  # in the way, until somebody removes it
        path.write_bytes(dump_bundle(make_bundle(jwt_authorities=(K2,))))
        await logged(caplog, "not up to date")
        (site / "keys").rmdir()
        assert await written.get() == ["keys"]
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert b'"k2"' in (site / "keys").read_bytes()
    assert b'"k1"' not in (site / "keys").read_bytes()


async def test_nothing_is_written_without_keys(tmp_path):
    path = tmp_path / "bundle.json"
    path.write_bytes(dump_bundle(make_bundle()))
    with pytest.raises(Unavailable, match="no JWT keys"):
        await write_once(file_settings(path), tmp_path / "site", lambda _: None)
    assert not (tmp_path / "site").exists()


async def test_a_hanging_source_is_noticed_by_the_age_of_the_keys():
    clock = FakeClock()
    held = made_held(clock)
    held.loaded([K1])
    clock.advance(61)
    assert "too old" in held.part().trouble
