"""The Workload API over a real socket: what is served, in which order it is refused, how streams live and end."""

import asyncio
from datetime import timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key

from spiffe_core.clock import SystemClock
from spiffe_core.errors import Unauthenticated, Unavailable
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.x509_verify import verify_x509_svid
from tests.authority import trusting
from tests.doubles.scripted_backend import ScriptedBackend, WorkloadCa
from tests.doubles.workload_endpoint import HEADER, SERVICE, workload_endpoint
from workload_api.backend import WorkloadView
from workload_api.streams import StreamLimits
from workload_api.x509_context import split_der

INVALID, DENIED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED
UNAVAILABLE, UNIMPLEMENTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED
EXHAUSTED, UNAUTHENTICATED = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAUTHENTICATED
MISSING = "security header missing from request"
RPCS = {method.name: (method.input_type._concrete_class, method.server_streaming) for method in SERVICE.methods}


class ShiftedClock(SystemClock):
    """The machine's clock, and a distance to it."""

    def __init__(self):
        self.ahead = timedelta()

    def now(self):
        return super().now() + self.ahead


@pytest.fixture(scope="module")
def ca():
    return WorkloadCa()


@pytest.fixture(scope="module")
def foreign():
    return WorkloadCa("fed.test")


async def outcome(call):
    """(status, text, messages before it) of a call, unary or streaming."""
    messages = []
    try:
        if hasattr(call, "read"):
            while (message := await call.read()) is not grpc.aio.EOF:
                messages.append(message)
        else:
            messages.append(await call)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details(), messages
    return grpc.StatusCode.OK, "", messages


async def ended(stream):
    """(status, text) with which a stream ends now."""
    with pytest.raises(grpc.aio.AioRpcError) as end:
        await asyncio.wait_for(stream.read(), 10)
    return end.value.code(), end.value.details()


BAD_HEADERS = {
    "N-A-01 no metadata": (),
    "N-A-03 upper-case first letter": (("workload.spiffe.io", "True"),),
    "N-A-03 upper case": (("workload.spiffe.io", "TRUE"),),
    "N-A-03 a number": (("workload.spiffe.io", "1"),),
    "N-A-03 another word": (("workload.spiffe.io", "yes"),),
    "N-A-03 empty": (("workload.spiffe.io", ""),),
    "N-A-04 true, true": (("workload.spiffe.io", "true"), ("workload.spiffe.io", "true")),
    "N-A-04 true, false": (("workload.spiffe.io", "true"), ("workload.spiffe.io", "false")),
    "N-A-04 both in one value": (("workload.spiffe.io", "true,true"),),
    "N-A-05 dashes": (("workload-spiffe-io", "true"),),
    "N-A-05 binary": (("workload.spiffe.io-bin", b"true"),),
    "the broker's header": (("broker.spiffe.io", "true"),),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
async def test_a_wrong_header_is_refused_before_anything_else(ca, case):
    """WEP-08, WEP-19, N-A-02, N-A-07, S40, D18: on every RPC, before attestation, whoever calls."""
    backend = ScriptedBackend(ca.view())
    async with workload_endpoint(backend) as endpoint:
        for name, (request, _) in RPCS.items():
            call = getattr(endpoint.stub, name)(request(), metadata=BAD_HEADERS[case])
            assert await outcome(call) == (INVALID, MISSING, []), name
        assert backend.attested == []
        backend.publish(ca.view("/a"))
        assert len((await endpoint.x509_svids().read()).svids) == 1


def test_the_service_is_the_standards_and_no_more():
    """WAPI-04, WAPI-05, WEP-26: no package, these seven methods."""
    assert SERVICE.full_name == "SpiffeWorkloadAPI"
    streams = {"FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles", "FetchWITSVID", "FetchWITBundles"}
    assert {name: streaming for name, (_, streaming) in RPCS.items()} == {
        **dict.fromkeys(streams, True),
        "FetchJWTSVID": False,
        "ValidateJWTSVID": False,
    }


async def test_what_is_not_offered_is_unimplemented_for_everyone(ca):
    """N-A-16, N-A-17, WAPI-02, WAPI-47: before the caller is looked at."""
    backend = ScriptedBackend(ca.view())
    async with workload_endpoint(backend) as endpoint:
        for name, (request, _) in RPCS.items():
            if not name.startswith("FetchX509"):
                status, text, messages = await outcome(getattr(endpoint.stub, name)(request(), metadata=HEADER))
                assert (status, messages) == (UNIMPLEMENTED, []), name
                assert "profile is not offered here" in text
        assert backend.attested == []


@pytest.mark.parametrize(
    "method", ["/SpiffeWorkloadAPI/Foo", "/spiffe.workload.SpiffeWorkloadAPI/FetchX509SVID", "/SpiffeWorkloadAPI/"]
)
async def test_an_unknown_method_is_unimplemented(ca, method):
    """N-A-21, WEP-25."""
    async with workload_endpoint(ScriptedBackend(ca.view("/a"))) as endpoint:
        status, _, _ = await outcome(endpoint.channel.unary_unary(method)(b"", metadata=HEADER))
        assert status is UNIMPLEMENTED


async def test_an_svid_comes_whole(foreign):
    """WAPI-18, WAPI-19, WAPI-20, WAPI-22, WAPI-23, N-XW positives: DER, leaf first, PKCS#8, roots, foreign bundles."""
    root = WorkloadCa()
    issuing = root.intermediate()
    identity = WorkloadCa.identity(issuing, "/web", hint="internal")
    second_root = WorkloadCa()
    view = WorkloadView((identity,), root.bundle(second_root), (foreign.bundle(),))
    async with workload_endpoint(ScriptedBackend(view)) as endpoint:
        message = await endpoint.x509_svids().read()
    (svid,) = message.svids
    chain = split_der(svid.x509_svid, field="x")
    assert svid.spiffe_id == "spiffe://example.org/web"
    assert svid.hint == "internal"
    assert chain == identity.chain
    assert len(chain) == 2
    leaf_key = x509.load_der_x509_certificate(chain[0]).public_key()
    assert load_der_private_key(svid.x509_svid_key, None).public_key() == leaf_key
    assert split_der(svid.bundle, field="x") == (root.der, second_root.der)
    assert dict(message.federated_bundles) == {"spiffe://fed.test": foreign.der}
    assert list(message.crl) == []
    verified = verify_x509_svid(chain, trusting(root.bundle()), now=SystemClock().now())
    assert str(verified.spiffe_id) == svid.spiffe_id


async def test_the_order_of_identities_is_the_backends(ca):
    """WAPI-58."""
    async with workload_endpoint(ScriptedBackend(ca.view("/c", "/a", "/b"))) as endpoint:
        message = await endpoint.x509_svids().read()
    assert [svid.spiffe_id for svid in message.svids] == [f"spiffe://example.org/{name}" for name in "cab"]


async def test_a_second_stream_on_the_connection_is_answered_at_once(ca):
    """WAPI-11."""
    async with workload_endpoint(ScriptedBackend(ca.view("/a"))) as endpoint:
        first, second = endpoint.x509_svids(), endpoint.x509_svids()
        assert await first.read() == await second.read()
        assert endpoint.api.open_streams == 2
        assert endpoint.door.open_connections == 1


async def test_no_identity_is_permission_denied(ca, foreign):
    """N-A-09, N-A-10, WEP-23, WAPI-26, WAPI-30, S44: never an empty message, nothing about bundles."""
    backend = ScriptedBackend(ca.view(federated=(foreign.bundle(),)))
    async with workload_endpoint(backend) as endpoint:
        for stream in (endpoint.x509_svids(), endpoint.x509_bundles()):
            assert await outcome(stream) == (DENIED, "no identity issued", [])


async def test_unauthenticated_verifiers_get_the_own_bundle_where_allowed(ca, foreign):
    """N-A-10: only the own trust domain's, and only by the setting."""
    backend = ScriptedBackend(ca.view(federated=(foreign.bundle(),)))
    async with workload_endpoint(backend, allow_unauthenticated_verifiers=True) as endpoint:
        message = await endpoint.x509_bundles().read()
        assert dict(message.bundles) == {"spiffe://example.org": ca.der}
        assert await outcome(endpoint.x509_svids()) == (DENIED, "no identity issued", [])


async def test_each_message_is_the_full_state(ca, foreign):
    """WAPI-09, N-A-29, N-A-30: one of three SVIDs rotates, one goes, the federation ends."""
    a, b, c = (ca.identity(path) for path in ("/a", "/b", "/c"))
    federated = (foreign.bundle(),)
    backend = ScriptedBackend(WorkloadView((a, b, c), ca.bundle(), federated))
    async with workload_endpoint(backend) as endpoint:
        stream = endpoint.x509_svids()
        first = await stream.read()
        backend.publish(WorkloadView((a, ca.identity("/b"), c), ca.bundle(), federated))
        rotated = await stream.read()
        assert [svid.spiffe_id for svid in rotated.svids] == [svid.spiffe_id for svid in first.svids]
        assert rotated.svids[1].x509_svid != first.svids[1].x509_svid
        assert rotated.svids[2] == first.svids[2]
        backend.publish(WorkloadView((a, c), ca.bundle(), federated))
        fewer = await stream.read()
        assert [svid.spiffe_id[-2:] for svid in fewer.svids] == ["/a", "/c"]
        assert "spiffe://fed.test" in fewer.federated_bundles
        backend.publish(WorkloadView((a, c), ca.bundle()))
        assert not (await stream.read()).federated_bundles


async def test_a_deleted_registration_ends_the_stream(ca):
    """N-A-28, WAPI-28."""
    backend = ScriptedBackend(ca.view("/a"))
    async with workload_endpoint(backend) as endpoint:
        svids, bundles = endpoint.x509_svids(), endpoint.x509_bundles()
        await svids.read()
        await bundles.read()
        backend.publish(ca.view())
        assert await ended(svids) == (DENIED, "no identity issued")
        assert await ended(bundles) == (DENIED, "no identity issued")
        assert endpoint.api.open_streams == 0
        backend.publish(ca.view("/a"))
        assert len((await endpoint.x509_svids().read()).svids) == 1


async def test_bundles_hold_the_own_domain_and_are_sent_only_when_they_change(ca, foreign):
    """WAPI-29, spire_wire 6.1: an SVID's rotation is no news to this stream."""
    backend = ScriptedBackend(ca.view("/a", federated=(foreign.bundle(),)))
    async with workload_endpoint(backend) as endpoint:
        stream = endpoint.x509_bundles()
        both = {"spiffe://example.org": ca.der, "spiffe://fed.test": foreign.der}
        assert dict((await stream.read()).bundles) == both
        svids = endpoint.x509_svids()
        await svids.read()
        for _ in range(3):
            backend.publish(ca.view("/a", federated=(foreign.bundle(),)))
            await svids.read()
        backend.publish(ca.view("/a"))
        assert dict((await stream.read()).bundles) == {"spiffe://example.org": ca.der}


async def test_an_empty_bundle(ca, foreign):
    """D10: the SVID stream ends as unavailable, the bundle stream keeps the own key; a foreign one is simply absent."""
    empty = type(ca.bundle())(ca.trust_domain)
    nothing = type(ca.bundle())(foreign.trust_domain)
    backend = ScriptedBackend(ca.view("/a", bundle=empty, federated=(nothing,)))
    async with workload_endpoint(backend) as endpoint:
        assert dict((await endpoint.x509_bundles().read()).bundles) == {"spiffe://example.org": b""}
        status, _, messages = await outcome(endpoint.x509_svids())
        assert (status, messages) == (UNAVAILABLE, [])


async def test_messages_are_made_once_and_shared(ca):
    """A6: one rendering per view, whatever the number of streams."""
    view = ca.view("/a", "/b")
    async with workload_endpoint(ScriptedBackend(view)) as endpoint:
        streams = [endpoint.x509_svids() for _ in range(20)]
        assert len({(await stream.read()).SerializeToString(deterministic=True) for stream in streams}) == 1
        kept = view.rendered["FetchX509SVID"]
        await endpoint.x509_svids().read()
        assert view.rendered["FetchX509SVID"] is kept


async def test_unknown_fields_are_ignored_and_garbage_is_not(ca):
    """N-A-22, N-A-23: no crash, and the next caller is served."""
    async with workload_endpoint(ScriptedBackend(ca.view("/a"))) as endpoint:
        raw = endpoint.channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")
        message = workload_pb2.X509SVIDResponse.FromString(await raw(b"\x52\x03abc", metadata=HEADER).read())
        assert len(message.svids) == 1
        status, _, messages = await outcome(raw(b"\xff\xff", metadata=HEADER))
        assert status is INVALID
        assert messages == []
        status, _, _ = await outcome(raw(bytes(5 * 1024 * 1024), metadata=HEADER))
        assert status is EXHAUSTED
        assert len((await endpoint.x509_svids().read()).svids) == 1


TROUBLES = {
    "N-A-24 not synced yet": (Unavailable("the agent has not finished its first sync"), UNAVAILABLE),
    "N-A-25 attestor failed": (Unavailable("workload attestation failed"), UNAVAILABLE),
    "N-A-32, S12 the process is gone": (Unauthenticated("the calling process has ended"), UNAUTHENTICATED),
}


@pytest.mark.parametrize("case", TROUBLES)
async def test_failed_attestation_gives_nothing(ca, case):
    error, expected = TROUBLES[case]
    backend = ScriptedBackend(ca.view("/a"))
    backend.troubles.append(error)
    async with workload_endpoint(backend) as endpoint:
        assert await outcome(endpoint.x509_svids()) == (expected, error.public, [])
        assert len((await endpoint.x509_svids().read()).svids) == 1


async def test_a_stale_caller_is_disconnected_and_may_come_again(ca):
    """S13: the connection that a changed process holds is closed."""
    backend = ScriptedBackend(ca.view("/a"))
    async with workload_endpoint(backend) as endpoint:
        idle = endpoint.x509_svids()
        await idle.read()
        backend.troubles.append(Unauthenticated("the calling process has changed its user"))
        assert (await outcome(endpoint.x509_svids()))[0] is UNAUTHENTICATED
        assert (await ended(idle))[0] is UNAVAILABLE
        assert len((await endpoint.x509_svids(wait_for_ready=True).read()).svids) == 1


async def test_an_expired_svid_is_never_sent(ca):
    """N-A-26: what is still valid is; when nothing is, the agent is unavailable, not forbidding."""
    clock = ShiftedClock()
    short, long = ca.identity("/short", seconds=60), ca.identity("/long", seconds=3600)
    backend = ScriptedBackend(WorkloadView((short, long), ca.bundle()))
    async with workload_endpoint(backend, clock=clock) as endpoint:
        assert len((await endpoint.x509_svids().read()).svids) == 2
        clock.ahead = timedelta(seconds=61)
        for _ in range(2):
            (left,) = (await endpoint.x509_svids().read()).svids
            assert left.spiffe_id == "spiffe://example.org/long"
        clock.ahead = timedelta(seconds=3601)
        status, text, messages = await outcome(endpoint.x509_svids())
        assert (status, messages) == (UNAVAILABLE, [])
        assert "expired" in text
        backend.publish(WorkloadView((ca.identity("/short", seconds=9000),), ca.bundle()))
        assert len((await endpoint.x509_svids().read()).svids) == 1


async def test_a_hint_is_sent_once(ca):
    """N-A-39, WAPI-24: whatever the backend says, the first identity keeps it."""
    identities = tuple(ca.identity(f"/{number}", hint=hint) for number, hint in enumerate(["", "x", "x", "", "y"]))
    async with workload_endpoint(ScriptedBackend(WorkloadView(identities, ca.bundle()))) as endpoint:
        message = await endpoint.x509_svids().read()
    assert [svid.hint for svid in message.svids] == ["", "x", "", "", "y"]


async def test_a_set_that_is_too_large_is_refused_whole(ca):
    """N-A-41."""
    async with workload_endpoint(ScriptedBackend(ca.view("/a")), max_message_bytes=100) as endpoint:
        status, text, messages = await outcome(endpoint.x509_svids())
        assert (status, messages) == (EXHAUSTED, [])
        assert "more than 100" in text


async def test_too_many_streams_are_refused_and_places_come_free(ca, monkeypatch):
    """N-A-36, S53."""
    limits = StreamLimits(per_uid=3, total=3)
    async with workload_endpoint(ScriptedBackend(ca.view("/a")), limits=limits) as endpoint:
        known = endpoint.door.caller_of
        monkeypatch.setattr(endpoint.api, "_caller_of", lambda context: _as_user(known(context), 1000))
        held = [endpoint.x509_svids() for _ in range(3)]
        for stream in held:
            await stream.read()
        assert (await outcome(endpoint.x509_svids()))[0] is EXHAUSTED
        held[0].cancel()
        await until(lambda: endpoint.api.open_streams == 2)
        assert len((await endpoint.x509_svids().read()).svids) == 1


def _as_user(peer, uid):
    return type(peer)(peer.pid, uid, peer.gid, peer.process)


async def until(true):
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


async def test_a_client_that_goes_leaves_nothing_behind(ca):
    """N-A-37: cancel, a deadline of 1 ms, a lost connection."""
    backend = ScriptedBackend(ca.view("/a"))
    async with workload_endpoint(backend) as endpoint:
        for _ in range(20):
            stream = endpoint.x509_svids()
            await stream.read()
            stream.cancel()
            await outcome(endpoint.x509_svids(timeout=0.001))
        await until(lambda: endpoint.api.open_streams == 0)
        open_stream = endpoint.x509_svids()
        await open_stream.read()
        await endpoint.channel.close()
        del stream, open_stream  # grpcio keeps the connection while a call object lives
        await until(lambda: endpoint.api.open_streams == 0 and endpoint.door.open_connections == 0)
        assert backend.subscribed == 0


async def test_shutting_down_tells_every_stream(ca):
    """R6, A7: Unavailable "restarting", at once."""
    async with workload_endpoint(ScriptedBackend(ca.view("/a"))) as endpoint:
        streams = [endpoint.x509_svids() for _ in range(50)] + [endpoint.x509_bundles() for _ in range(40)]
        for stream in streams:
            await stream.read()
        endpoint.api.drain()
        for stream in streams:
            assert await ended(stream) == (UNAVAILABLE, "restarting")
        assert await outcome(endpoint.x509_svids()) == (UNAVAILABLE, "restarting", [])


async def test_a_call_that_did_not_come_through_the_door_is_refused(ca):
    """A5: the private listener serves connections it was handed, nobody else."""
    async with workload_endpoint(ScriptedBackend(ca.view("/a"))) as endpoint:
        async with grpc.aio.insecure_channel(endpoint.door.private_target) as channel:
            call = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")(b"", metadata=HEADER)
            status, _, messages = await outcome(call)
            assert (status, messages) == (UNAUTHENTICATED, [])
