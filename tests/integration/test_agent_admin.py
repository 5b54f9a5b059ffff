"""The agent's admin socket: delegates, debug and logger (spire_wire 6.3 to 6.5; S23)."""

import asyncio
import json
import os
import stat
import subprocess
import sys
from contextlib import asynccontextmanager, suppress

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key

from node_agent.cli import main
from node_agent.rpc.debug_api import SERVICE as DEBUG
from node_agent.rpc.delegated_identity import SERVICE as DELEGATED
from node_agent.rpc.logger_api import SERVICE as LOGGER
from spiffe_core.crypto.jose import read_compact, read_object
from spiffe_core.wire._gen.spire.api.agent.debug.v1 import debug_pb2
from spiffe_core.wire._gen.spire.api.agent.delegatedidentity.v1 import delegatedidentity_pb2 as pb
from spiffe_core.wire._gen.spire.api.agent.logger.v1 import logger_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import selector_pb2
from spiffe_core.wire.services import Stub
from tests.doubles.canned_daemon import leave_code
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import entry, live_server
from tests.doubles.privileges import need_root

ME = "spiffe://example.org/delegate"
MESH = (("cilium", "mutual-auth"),)
INVALID, DENIED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED


@asynccontextmanager
async def serving(*entries, **settings):
    """A server and an agent with an admin socket, this process being a delegate if an entry says so."""
    async with agent_folder() as folder, live_server() as live:
        token = token_file(folder, await live.token())
        bundle = pem_bundle(live, folder)
        settings = {"trust_bundle_path": str(bundle), "join_token_file": str(token), **settings}
        settings.setdefault("authorized_delegates", [ME])
        async with live_agent(folder, live.server.address, **settings) as agent:
            await agent.until_joined()
            ids = await live.entries(*(make(agent.path) for make in entries))
            agent.sync_now()
            await agent.until(lambda: len(agent.agent.workloads.entries) == len(entries))
            yield live, agent, ids


def delegate(parent):
    return entry(path="/delegate", parent=parent, selectors=OWN)


def mesh(path, **over):
    return lambda parent: entry(path=path, parent=parent, selectors=MESH, **over)


def selectors(*pairs):
    return [selector_pb2.Selector(type=kind, value=value) for kind, value in pairs]


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await (call.read() if hasattr(call, "read") else call)
    return error.value.code(), error.value.details()


def ids_of(response):
    return sorted(f"spiffe://{one.x509_svid.id.trust_domain}{one.x509_svid.id.path}" for one in response.x509_svids)


async def test_a_delegate_gets_svids_by_selectors_and_follows_changes():
    """Cilium's calls: SVIDs with keys, federates_with sorted, an empty list for no match, a push when an entry comes."""
    async with serving(delegate, mesh("/identity/1")) as (live, agent, _), agent.admin(DELEGATED) as stub:
        stream = stub.SubscribeToX509SVIDs(pb.SubscribeToX509SVIDsRequest(selectors=selectors(*MESH)))
        first = await stream.read()
        assert ids_of(first) == ["spiffe://example.org/identity/1"]
        (one,) = first.x509_svids
        leaf = x509.load_der_x509_certificate(one.x509_svid.cert_chain[0])
        assert leaf.public_key() == load_der_private_key(one.x509_svid_key, None).public_key()
        assert one.x509_svid.expires_at == int(leaf.not_valid_after_utc.timestamp())
        await live.entries(mesh("/identity/2")(agent.path))
        agent.sync_now()
        assert ids_of(await stream.read()) == [f"spiffe://example.org/identity/{number}" for number in (1, 2)]
        stream.cancel()
        nothing = stub.SubscribeToX509SVIDs(pb.SubscribeToX509SVIDsRequest(selectors=selectors(("no", "body"))))
        assert ids_of(await nothing.read()) == []
        nothing.cancel()


async def test_a_delegate_follows_hundreds_of_workloads_over_one_connection():
    """As Cilium does for the pods of a node; gRPC's usual hundred would leave the others waiting without a word."""
    request = pb.SubscribeToX509SVIDsRequest(selectors=selectors(*MESH))
    async with serving(delegate, mesh("/identity/1")) as (_, agent, _), agent.admin(DELEGATED) as stub:
        streams = [stub.SubscribeToX509SVIDs(request, timeout=50) for _ in range(250)]
        try:
            answers = await asyncio.gather(*(stream.read() for stream in streams))
        finally:
            for stream in streams:
                stream.cancel()
        assert [ids_of(one) for one in answers] == [["spiffe://example.org/identity/1"]] * 250


async def test_streams_of_roots_leave_room_for_those_of_other_users_processes():
    """`limits.streams` and `limits.streams_per_uid` hold here too: a node may have more pods than this socket connections."""
    need_root()
    by_selectors = pb.SubscribeToX509SVIDsRequest(selectors=selectors(*MESH))
    with subprocess.Popen(["sleep", "60"], user=1000, group=1000) as child:
        try:
            async with serving(delegate, mesh("/identity/1")) as (_, agent, _), agent.admin(DELEGATED) as stub:
                streams = [stub.SubscribeToX509SVIDs(by_selectors, timeout=50) for _ in range(260)]
                await asyncio.gather(*(stream.read() for stream in streams))
                streams.append(stub.SubscribeToX509SVIDs(pb.SubscribeToX509SVIDsRequest(pid=child.pid)))
                assert ids_of(await streams[-1].read()) == []
                for stream in streams:
                    stream.cancel()
        finally:
            child.kill()


async def test_entries_with_power_are_never_given_away():
    """S23: neither as X.509-SVIDs nor as JWT-SVIDs."""
    powerful = (mesh("/admin", admin=True), mesh("/downstream", downstream=True))
    async with serving(delegate, mesh("/plain"), *powerful) as (_, agent, _), agent.admin(DELEGATED) as stub:
        stream = stub.SubscribeToX509SVIDs(pb.SubscribeToX509SVIDsRequest(selectors=selectors(*MESH)))
        assert ids_of(await stream.read()) == ["spiffe://example.org/plain"]
        stream.cancel()
        answer = await stub.FetchJWTSVIDs(pb.FetchJWTSVIDsRequest(audience=["db"], selectors=selectors(*MESH)))
        assert [one.id.path for one in answer.svids] == ["/plain"]
        claims = read_object(read_compact(answer.svids[0].token).payload, "payload")
        assert (claims["sub"], claims["aud"]) == ("spiffe://example.org/plain", ["db"])


async def test_a_process_is_attested_and_the_stream_ends_with_it():
    """By PID: another process's selectors, read from the kernel; nothing goes on past its life (BAPI-20's rule)."""
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        exe = os.readlink(f"/proc/{child.pid}/exe")

        def by_path(parent):
            return entry(path="/child", parent=parent, selectors=(("unix", f"path:{exe}"),))

        async with serving(delegate, by_path) as (live, agent, _), agent.admin(DELEGATED) as stub:
            stream = stub.SubscribeToX509SVIDs(pb.SubscribeToX509SVIDsRequest(pid=child.pid))
            assert "spiffe://example.org/child" in ids_of(await stream.read())
            answer = await stub.FetchJWTSVIDs(pb.FetchJWTSVIDsRequest(audience=["db"], pid=child.pid))
            assert "/child" in [one.id.path for one in answer.svids]
            child.stdin.close()
            child.wait(20)
            await live.entries(entry(path="/more", parent=agent.path, selectors=(("unix", f"path:{exe}"),)))
            agent.sync_now()
            code, text = await refusal(stream)
            assert (code, text) == (grpc.StatusCode.UNAVAILABLE, "workload attestation failed")
            gone = stub.SubscribeToX509SVIDs(pb.SubscribeToX509SVIDsRequest(pid=child.pid))
            assert (await refusal(gone))[0] is grpc.StatusCode.UNAVAILABLE
    finally:
        with suppress(BrokenPipeError):
            child.stdin.close()
        child.kill()
        child.wait()


BAD = {
    "neither": {},
    "both": {"pid": 1, "selectors": selectors(*MESH)},
    "a negative process": {"pid": -1},
    "a process beyond the kernel's largest": {"pid": 2**30},
    "a selector without a type": {"selectors": selectors(("", "x"))},
}


async def test_bad_requests_are_refused():
    async with serving(delegate) as (_, agent, _), agent.admin(DELEGATED) as stub:
        for case, fields in BAD.items():
            stream = stub.SubscribeToX509SVIDs(pb.SubscribeToX509SVIDsRequest(**fields))
            assert (await refusal(stream))[0] is INVALID, case
        for fields in ({"selectors": selectors(*MESH)}, {"audience": [""], "selectors": selectors(*MESH)}):
            assert (await refusal(stub.FetchJWTSVIDs(pb.FetchJWTSVIDsRequest(**fields))))[0] is INVALID


async def test_only_authorised_delegates_are_served_and_only_while_they_are():
    """No identity, an identity that is not listed, and one that is taken away meanwhile."""
    request = pb.SubscribeToX509SVIDsRequest(selectors=selectors(*MESH))
    async with serving(mesh("/identity/1")) as (_, agent, _), agent.admin(DELEGATED) as stub:
        calls = (
            stub.SubscribeToX509SVIDs(request),
            stub.SubscribeToX509Bundles(pb.SubscribeToX509BundlesRequest()),
            stub.SubscribeToJWTBundles(pb.SubscribeToJWTBundlesRequest()),
            stub.FetchJWTSVIDs(pb.FetchJWTSVIDsRequest(audience=["db"], selectors=selectors(*MESH))),
        )
        for call in calls:
            assert await refusal(call) == (DENIED, "no identity issued")
    async with serving(delegate, authorized_delegates=[]) as (_, agent, _), agent.admin(DELEGATED) as stub:
        assert await refusal(stub.SubscribeToX509SVIDs(request)) == (
            DENIED,
            "caller not configured as an authorized delegate",
        )
    async with serving(delegate, mesh("/identity/1")) as (live, agent, ids), agent.admin(DELEGATED) as stub:
        stream = stub.SubscribeToX509SVIDs(request)
        await stream.read()
        await live.entry.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=ids))
        agent.sync_now()
        assert await refusal(stream) == (DENIED, "no identity issued")


async def test_bundles_of_every_domain_follow_changes():
    """SubscribeToX509Bundles, SubscribeToJWTBundles: by trust domain ID; the next state arrives."""
    async with serving(delegate) as (live, agent, _), agent.admin(DELEGATED) as stub:
        certificates = stub.SubscribeToX509Bundles(pb.SubscribeToX509BundlesRequest())
        keys = stub.SubscribeToJWTBundles(pb.SubscribeToJWTBundlesRequest())
        first = (await certificates.read()).ca_certificates
        assert set(first) == {"spiffe://example.org"}
        assert x509.load_der_x509_certificate(first["spiffe://example.org"])
        assert len(json.loads((await keys.read()).bundles["spiffe://example.org"])["keys"]) == 1
        from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2 as authority

        await live.local.PrepareJWTAuthority(authority.PrepareJWTAuthorityRequest())
        agent.sync_now()
        assert len(json.loads((await keys.read()).bundles["spiffe://example.org"])["keys"]) == 2
        certificates.cancel()
        keys.cancel()


async def test_debug_and_logger_answer_and_the_socket_is_private(capsys):
    async with serving(delegate) as (_, agent, _), agent.admin(DEBUG) as stub:
        await agent.until(agent.agent.workloads.all_held)
        path = agent.agent.settings.admin_socket
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        info = await stub.GetInfo(debug_pb2.GetInfoRequest())
        assert info.svid_chain[0].id.path == agent.path
        assert info.last_sync_success > 0
        assert (info.svids_count, info.cached_x509_svids_count, info.cached_jwt_svids_count) == (1, 1, 0)
        async with agent.admin(LOGGER) as logger:
            turned = await logger.SetLogLevel(logger_pb2.SetLogLevelRequest(new_level=6))
            assert turned.current_level == 6
            assert (await logger.ResetLogLevel(logger_pb2.ResetLogLevelRequest())).current_level == turned.launch_level
            for level in (0, 99):
                assert (await refusal(logger.SetLogLevel(logger_pb2.SetLogLevelRequest(new_level=level))))[0] is INVALID
        for words, text in (
            (("debug", "getinfo"), "Cached X.509 SVIDs:      1"),
            (("logger", "get"), "Logger Level : info"),
        ):
            assert await asyncio.to_thread(leave_code, main, *words, "--socket-path", str(path)) == 0
            assert text in capsys.readouterr().out
        assert (
            await asyncio.to_thread(leave_code, main, "debug", "getinfo", "-output=json", "-socketPath", str(path)) == 0
        )
        assert json.loads(capsys.readouterr().out)["cached_x509_svids_count"] == 1


async def test_workloads_do_not_find_the_admin_services_on_their_socket():
    """The public socket answers Unimplemented to all of them."""
    from spiffe_core.wire.channels import unix_channel

    async with serving(delegate) as (_, agent, _):
        async with unix_channel(agent.agent.settings.socket_path) as channel:
            for service, method, request in (
                (DEBUG, "GetInfo", debug_pb2.GetInfoRequest()),
                (LOGGER, "GetLogger", logger_pb2.GetLoggerRequest()),
                (DELEGATED, "FetchJWTSVIDs", pb.FetchJWTSVIDsRequest()),
            ):
                code, _ = await refusal(getattr(Stub(channel, service), method)(request))
                assert code is grpc.StatusCode.UNIMPLEMENTED


async def test_an_agent_that_is_closed_with_calls_under_way_leaves_no_server_behind():
    """Whoever fails while it serves closes it without draining; a server of gRPC left running keeps its process from ending."""
    with pytest.raises(ExceptionGroup) as failure:
        async with serving(delegate, mesh("/identity/1")) as (_, agent, _), agent.admin(DELEGATED) as stub:
            stream = stub.SubscribeToX509SVIDs(pb.SubscribeToX509SVIDsRequest(selectors=selectors(*MESH)))
            await stream.read()
            workload = agent.x509_stream()
            await workload.read()
            servers = [*agent.agent.server._servers, *agent.agent.admin._server._servers]
            raise ZeroDivisionError
    assert failure.group_contains(ZeroDivisionError)
    assert servers
    for server in servers:
        still_running = await server.wait_for_termination(timeout=30)
        assert not still_running
