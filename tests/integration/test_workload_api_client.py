"""The client and the source against an agent that follows a script: what is retried, kept, dropped, refused."""

import asyncio
from contextlib import aclosing, asynccontextmanager

import grpc
import pytest

from spiffe_core.clock import SystemClock
from spiffe_core.errors import (
    Forbidden,
    IdentityError,
    InvalidAddress,
    InvalidRequest,
    Kind,
    NoIdentityIssued,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire.services import handlers
from tests.authority import revoking
from tests.doubles.scripted_agent import ScriptedAgent, message_of
from tests.doubles.scripted_backend import ScriptedBackend, WorkloadCa
from tests.doubles.workload_endpoint import HEADER, SERVICE, workload_endpoint
from workload_api.client import AFTER, After, Backoff, Redacted, WorkloadApiClient
from workload_api.sources import X509Source


class NoWaiting(SystemClock):
    """Real time; waits are written down and end at once, except that the loop runs in between."""

    def __init__(self):
        self.waits = []

    async def sleep(self, seconds):
        self.waits.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture(scope="module")
def ca():
    return WorkloadCa()


@pytest.fixture(scope="module")
def foreign():
    return WorkloadCa("fed.test")


@asynccontextmanager
async def agent(*script, **options):
    """A scripted agent and a client of it."""
    scripted = ScriptedAgent(*script)
    async with workload_endpoint(ScriptedBackend(), service=handlers(SERVICE, scripted)) as endpoint:
        clock = NoWaiting()
        async with WorkloadApiClient(endpoint.address, clock=clock, jitter=lambda: 0.0, **options) as client:
            yield scripted, client, clock


def good(ca, *paths, **more):
    return message_of(*(ca.identity(path) for path in paths), **{"bundle": ca.der, **more})


def ids(context):
    return [svid.spiffe_id.path for svid in context.svids]


async def test_one_fetch_is_one_call_with_the_header(ca, foreign):
    """WEP-07, WAPI-17, WAPI-58."""
    message = good(ca, "/a", "/b", federated={"spiffe://fed.test": foreign.der})
    async with agent([message, None]) as (scripted, client, _):
        context = await client.fetch_x509()
        assert ids(context) == ["/a", "/b"]
        assert context.bundles.get(TrustDomain("fed.test")).x509_roots == (foreign.der,)
        (metadata,) = scripted.calls
        assert HEADER[0] in metadata


async def test_revocation_lists_are_kept_where_they_are_checked_and_passed_over_elsewhere(ca):
    """N-X-38: and a message with a list that cannot be read is refused whole, only where lists are checked."""
    listed, broken = good(ca, "/a"), good(ca, "/a")
    listed.crl.append(revoking(ca))
    broken.crl.extend([*listed.crl, b"no list"])
    async with agent([listed, None], [broken, None], check_revocation=True) as (_, client, _):
        assert [one.der for one in (await client.fetch_x509()).bundles.revocations] == list(listed.crl)
        with pytest.raises(InvalidRequest, match=r"crl\[1\]"):
            await client.fetch_x509()
    async with agent([listed, None], [broken, None]) as (_, client, _):
        assert [(await client.fetch_x509()).bundles.revocations for _ in range(2)] == [(), ()]


ENDS = {
    "nothing matches": (NoIdentityIssued(), Forbidden),
    "starting": (Unavailable("not synced"), Unavailable),
    "refused": (InvalidRequest("security header missing from request"), InvalidRequest),
    "not offered": (Unimplemented("no"), Unimplemented),
}


@pytest.mark.parametrize("case", ENDS)
async def test_a_fetch_that_is_refused_says_why(case):
    error, expected = ENDS[case]
    async with agent([error]) as (scripted, client, _):
        with pytest.raises(expected, match=error.public):
            await client.fetch_x509()
        assert len(scripted.calls) == 1


async def test_a_fetch_ends_at_its_deadline():
    async with agent([None]) as (_, client, _):
        with pytest.raises(Unavailable):
            await client.fetch_x509(timeout=0.05)


async def test_a_fetch_refuses_what_it_may_not_believe(ca):
    async with agent([good(ca, "/a", spiffe_id="spiffe://example.org/b"), None]) as (_, client, _):
        with pytest.raises(InvalidRequest, match="spiffe_id"):
            await client.fetch_x509()


async def test_an_agent_that_is_not_there_is_unavailable(tmp_path):
    async with WorkloadApiClient(f"unix://{tmp_path}/none") as client:
        with pytest.raises(Unavailable):
            await client.fetch_x509(timeout=5)


def test_an_address_is_found_or_refused_before_anything_is_opened():
    """WEP-10, WEP-11: explicit, else SPIFFE_ENDPOINT_SOCKET, else an error."""
    environ = {"SPIFFE_ENDPOINT_SOCKET": "unix:///run/env.sock"}
    assert str(WorkloadApiClient(environ=environ).address) == "unix:///run/env.sock"
    assert str(WorkloadApiClient("unix:///run/a.sock", environ=environ).address) == "unix:///run/a.sock"
    with pytest.raises(InvalidAddress):
        WorkloadApiClient(environ={})
    with pytest.raises(InvalidAddress):
        WorkloadApiClient("http://x", environ=environ)


async def test_a_watch_follows_one_stream(ca):
    """WAPI-07, WAPI-13."""
    async with agent([good(ca, "/a"), None]) as (scripted, client, _):
        async with aclosing(client.watch_x509()) as updates:
            assert ids(await anext(updates)) == ["/a"]
            scripted.more.put_nowait(good(ca, "/b"))
            assert ids(await anext(updates)) == ["/b"]
        assert len(scripted.calls) == 1


async def test_a_closed_stream_is_opened_again(ca):
    """WAPI-08, N-XW-11's opposite: Unavailable keeps what there is."""
    errors = []
    async with agent([good(ca, "/a"), Unavailable("restarting")], [good(ca, "/b"), None]) as (scripted, client, clock):
        async with aclosing(client.watch_x509(errors.append)) as updates:
            assert ids(await anext(updates)) == ["/a"]
            assert ids(await anext(updates)) == ["/b"]
        assert len(scripted.calls) == 2
        assert clock.waits == [0.1]
        assert [error.kind for error in errors] == [Kind.UNAVAILABLE]


async def test_failures_are_retried_with_growing_pauses(ca):
    """WEP-22: at least 50 ms, doubling; a good message starts over."""
    down = [Unavailable("starting")]
    async with agent(down, down, down, [good(ca, "/a"), Unavailable("x")], [good(ca, "/b"), None]) as (
        _,
        client,
        clock,
    ):
        async with aclosing(client.watch_x509()) as updates:
            assert ids(await anext(updates)) == ["/a"]
            assert clock.waits == [0.1, 0.2, 0.4]
            assert ids(await anext(updates)) == ["/b"]
            assert clock.waits[3:] == [0.1]


async def test_no_identity_takes_the_old_one_away_and_is_retried(ca):
    """N-XW-11, WEP-24, WAPI-27, WAPI-28."""
    async with agent([good(ca, "/a"), NoIdentityIssued()], [NoIdentityIssued()], [good(ca, "/b"), None]) as (
        _,
        client,
        _,
    ):
        async with aclosing(client.watch_x509()) as updates:
            assert ids(await anext(updates)) == ["/a"]
            for _ in range(2):
                redacted = await anext(updates)
                assert isinstance(redacted, Redacted)
                assert redacted.error.kind is Kind.FORBIDDEN
            assert ids(await anext(updates)) == ["/b"]


@pytest.mark.parametrize("error", [InvalidRequest("security header missing"), Unimplemented("profile is off")])
async def test_what_will_never_work_is_not_tried_again(ca, error):
    """N-XW-12, N-XW-13, WEP-20, WEP-25."""
    async with agent([error], [good(ca, "/a"), None]) as (scripted, client, clock):
        with pytest.raises(type(error), match=error.public):
            await anext(client.watch_x509())
        assert len(scripted.calls) == 1
        assert clock.waits == []


@pytest.mark.parametrize("field", ["spiffe_id", "x509_svid", "x509_svid_key", "bundle"])
async def test_a_bad_message_is_refused_and_the_next_good_one_counts(ca, field):
    """N-XW, WAPI-16: on the same stream."""
    bad = good(ca, "/bad", **{field: "" if field == "spiffe_id" else b""})
    errors = []
    async with agent([good(ca, "/a"), bad, good(ca, "/b"), None]) as (scripted, client, _):
        async with aclosing(client.watch_x509(errors.append)) as updates:
            assert ids(await anext(updates)) == ["/a"]
            assert ids(await anext(updates)) == ["/b"]
        assert len(scripted.calls) == 1
        assert [field in error.public for error in errors] == [True]


async def test_a_message_above_grpcs_default_is_read(ca, foreign):
    """N-XW-14: many federated bundles are more than 4 MiB."""
    many = {f"spiffe://f{number}.test": foreign.der * 1 for number in range(9000)}
    message = good(ca, "/a", federated=many)
    assert message.ByteSize() > 4 * 1024 * 1024
    async with agent([message, None]) as (_, client, _):
        assert len((await client.fetch_x509(timeout=50)).bundles.federated) == 9000


def test_every_kind_of_error_has_a_row():
    assert set(AFTER) == set(Kind)
    assert {kind for kind, after in AFTER.items() if after is After.STOP} == {Kind.INVALID, Kind.UNIMPLEMENTED}
    assert {kind for kind, after in AFTER.items() if after is After.DROP} == {Kind.FORBIDDEN}


def test_pauses_are_bounded():
    backoff = Backoff(first=0.1, longest=30)
    assert [backoff.delay(attempt, 0) for attempt in (0, 1, 8, 9, 10_000)] == [0.1, 0.2, 25.6, 30, 30]
    assert backoff.delay(0, 1.0) == pytest.approx(0.08)


async def test_a_source_stays_current(ca, foreign):
    """WAPI-07, WAPI-13, WAPI-14, N-XW-10."""
    first = good(ca, "/a", federated={"spiffe://fed.test": foreign.der})
    async with agent([first, None]) as (scripted, client, _), X509Source(client) as source:
        await source.wait_ready()
        assert source.svid.spiffe_id.path == "/a"
        assert source.bundles.get(TrustDomain("fed.test")) is not None
        version = source.updates.version
        scripted.more.put_nowait(good(ca, "/b"))
        await source.updates.changed(version)
        assert source.svid.spiffe_id.path == "/b"
        assert source.bundles.get(TrustDomain("fed.test")) is None


async def test_a_source_keeps_the_old_state_over_a_bad_message_and_an_absence(ca):
    """N-XW: error surfaced, previous state kept and still served."""
    async with agent([good(ca, "/a"), None]) as (scripted, client, _), X509Source(client) as source:
        await source.wait_ready()
        version = source.updates.version
        scripted.more.put_nowait(good(ca, "/bad", bundle=b"-----BEGIN"))
        async with asyncio.timeout(10):
            while source.last_error is None:
                assert source.svid.spiffe_id.path == "/a"
                await asyncio.sleep(0.001)
        assert "bundle" in source.last_error.public
        assert source.svid.spiffe_id.path == "/a"
        scripted.script = [[Unavailable("restarting")], [Unavailable("restarting")], [good(ca, "/c"), None]]
        scripted.more.put_nowait(Unavailable("restarting"))
        await source.updates.changed(version)
        assert source.svid.spiffe_id.path == "/c"
        assert source.last_error is None


async def test_a_source_drops_what_was_taken_away(ca):
    """WAPI-28, N-XW-11."""
    async with agent([good(ca, "/a"), None]) as (scripted, client, _), X509Source(client) as source:
        await source.wait_ready()
        version = source.updates.version
        scripted.script = [[None]]
        scripted.more.put_nowait(NoIdentityIssued())
        version = await source.updates.changed(version)
        for read in (lambda: source.svid, lambda: source.bundles):
            with pytest.raises(Forbidden, match="no identity issued"):
                read()
        scripted.more.put_nowait(good(ca, "/again"))
        await source.updates.changed(version)
        assert source.svid.spiffe_id.path == "/again"


async def test_a_source_says_why_it_is_not_ready(ca):
    async with agent([NoIdentityIssued()]) as (_, client, clock):
        clock.sleep = lambda _: asyncio.sleep(10)
        async with X509Source(client) as source:
            with pytest.raises(IdentityError, match=r"not|no identity"):
                _ = source.svid
            with pytest.raises(Forbidden, match="no identity issued"):
                await source.wait_ready(timeout=0.2)
    async with agent([None]) as (_, client, _), X509Source(client) as source:
        with pytest.raises(Unavailable, match="within"):
            await source.wait_ready(timeout=0.05)


async def test_a_source_that_can_never_work_says_so_at_once(ca):
    """N-XW-12: stop, report, no retry."""
    async with (
        agent([InvalidRequest("security header missing")]) as (scripted, client, _),
        X509Source(client) as source,
    ):
        with pytest.raises(InvalidRequest):
            await source.wait_ready(timeout=30)
        assert len(scripted.calls) == 1


async def test_an_expired_svid_is_not_handed_out(ca):
    class Later(SystemClock):
        def now(self):
            return super().now().replace(year=2090)

    async with agent([good(ca, "/a"), None]) as (_, client, _), X509Source(client, clock=Later()) as source:
        await source.wait_ready()
        with pytest.raises(Unavailable, match="expired"):
            _ = source.svid


async def test_one_of_several_identities_can_be_picked(ca):
    """WAPI-60: an unexpected hint has a defined fallback."""
    message = message_of(ca.identity("/a"), ca.identity("/b", hint="internal"), bundle=ca.der)
    for hint, expected in (("internal", "/b"), ("absent", "/a")):
        async with agent([message, None]) as (_, client, _):
            pick = lambda context, hint=hint: context.hinted(hint) or context.default
            async with X509Source(client, pick=pick) as source:
                await source.wait_ready()
                assert source.svid.spiffe_id.path == expected


async def test_client_and_service_fit_together(ca, foreign):
    """WEP-29, WAPI-08: over the real service, through a change and a redaction, without reflection."""
    backend = ScriptedBackend(ca.view("/a", "/b", federated=(foreign.bundle(),)))
    async with workload_endpoint(backend) as endpoint, WorkloadApiClient(endpoint.address) as client:
        assert ids(await client.fetch_x509()) == ["/a", "/b"]
        async with X509Source(client) as source:
            state = await source.wait_ready()
            assert [bundle.trust_domain.name for bundle in state.bundles.all()] == ["example.org", "fed.test"]
            version = source.updates.version
            backend.publish(ca.view("/a"))
            version = await source.updates.changed(version)
            assert ids(source.updates.value) == ["/a"]
            backend.publish(ca.view())
            version = await source.updates.changed(version)
            with pytest.raises(Forbidden):
                _ = source.svid
            backend.publish(ca.view("/c"))
            await source.updates.changed(version)
            assert source.svid.spiffe_id.path == "/c"


async def test_an_unauthenticated_caller_tries_again_and_keeps_its_state(ca):
    async with agent([good(ca, "/a"), Unauthenticated("connect again")], [good(ca, "/b"), None]) as (_, client, _):
        async with aclosing(client.watch_x509()) as updates:
            assert ids(await anext(updates)) == ["/a"]
            assert ids(await anext(updates)) == ["/b"]


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_an_agent_can_be_reached_over_tcp(ca, host):
    """WEP-14, WEP-15: an IP address and a port."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handlers(SERVICE, ScriptedAgent([good(ca, "/a"), None])),))
    try:
        port = server.add_insecure_port(f"{host}:0")
    except RuntimeError as error:
        pytest.skip(f"no {host} here: {error}")
    await server.start()
    try:
        async with WorkloadApiClient(f"tcp://{host}:{port}") as client:
            assert ids(await client.fetch_x509()) == ["/a"]
    finally:
        await server.stop(0)


async def test_a_source_finds_its_agent_by_the_environment(ca, monkeypatch):
    """WEP-10, and the source closes the client it made."""
    async with workload_endpoint(ScriptedBackend(ca.view("/a"))) as endpoint:
        monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", endpoint.address)
        async with X509Source() as source:
            assert ids(await source.wait_ready()) == ["/a"]
        async with asyncio.timeout(10):
            while endpoint.door.open_connections:
                await asyncio.sleep(0.001)


async def test_a_bug_in_a_source_is_said_and_not_swallowed(caplog):
    class Broken:
        async def watch_x509(self, _on_error):
            raise RuntimeError("a bug")
            yield

    async with X509Source(Broken()) as source:
        with pytest.raises(IdentityError, match="see the log"):
            await source.wait_ready()
    assert "the X.509 source stopped" in caplog.text
