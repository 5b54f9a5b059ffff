"""The SPIFFE Broker Endpoint over real mutual TLS (BEP and BAPI rows; S23)."""

import asyncio
import json
import os
import stat
import subprocess
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2
from google.rpc import status_pb2 as rpc_status_pb2

from node_agent.domain.brokers import KUBERNETES, PROCESS
from node_agent.rpc import broker_endpoint
from spiffe_core.bundle import BundleSet
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.jose import read_compact, read_object
from spiffe_core.crypto.keys import KeyKind, PrivateKeyDer, generate, to_pkcs8
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire._gen import brokerapi_pb2 as pb
from spiffe_core.wire._gen.grpc.reflection.v1 import reflection_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as types_pb2
from spiffe_core.wire.services import Stub
from tests.authority import SpiffeTestCA
from tests.doubles.broker_client import METADATA, broker, process
from tests.doubles.live_agent import agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import MovableClock, entry, live_server

REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
BROKER = "spiffe://example.org/broker"
FOREIGN = "spiffe://fed.test/broker"
INVALID, DENIED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED
NOT_FOUND, UNKNOWN = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAUTHENTICATED
REFERENCE, MISSING, NOT_ENTITLED = (f"WORKLOAD_{text}" for text in ("REFERENCE_INVALID", "NOT_FOUND", "NOT_ENTITLED"))
UNPROVEN = "no broker"


@dataclass
class Svid:
    chain: tuple
    key: PrivateKeyDer


async def mint(live, spiffe_id, ttl=3600):
    key = generate(KeyKind.EC_P256)
    csr = build_csr(key, spiffe_id=SpiffeId.parse(spiffe_id))
    svid = (await live.svid.MintX509SVID(svid_pb2.MintX509SVIDRequest(csr=csr, ttl=ttl), timeout=10)).svid
    return Svid(tuple(svid.cert_chain), to_pkcs8(key))


@contextmanager
def workload():
    """A process of its own, and the selectors that only it has."""
    child = subprocess.Popen(["sleep", "600"])
    try:
        exe = Path(f"/proc/{child.pid}/exe").readlink()
        yield child, (("unix", f"path:{exe}"),)
    finally:
        child.kill()
        child.wait()


class Endpoint:
    """An agent with a broker endpoint, and brokers of it."""

    def __init__(self, live, agent, stack, path):
        self.live, self.agent, self._stack, self.path = live, agent, stack, path
        self.workloads = agent.agent.workloads
        self.bundles = BundleSet(live.state.bundles.own)

    @property
    def tcp(self):
        return self.agent.agent.broker.tcp

    async def broker(self, svid=None, *, tcp=False, expect="", spiffe_id=BROKER):
        """A connected broker; `svid` None mints one for `spiffe_id`."""
        svid = svid or await mint(self.live, spiffe_id)
        wanted = SpiffeId.parse(expect or f"spiffe://example.org{self.agent.path}")
        where = self.tcp if tcp else self.path
        return await self._stack.enter_async_context(
            broker(where, None if svid == UNPROVEN else svid, wanted, self.bundles.get)
        )

    async def entries(self, *made, **over):
        """Create entries and wait until the agent has them."""
        before = len(self.workloads.entries)
        ids = await self.live.entries(*(entry(parent=self.agent.path, **one, **over) for one in made))
        self.agent.sync_now()
        await self.agent.until(lambda: len(self.workloads.entries) >= before + len(made))
        return ids

    async def delete(self, ids):
        await self.live.entry.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=ids))
        self.agent.sync_now()


def allowing(*kinds, spiffe_id=BROKER, tcp=False):
    return {"id": spiffe_id, "allowed_reference_types": [{"type_url": kind, "allow_over_tcp": tcp} for kind in kinds]}


@asynccontextmanager
async def serving(*brokers, clock=None, **settings):
    async with AsyncExitStack() as stack:
        folder = await stack.enter_async_context(agent_folder())
        live = await stack.enter_async_context(live_server())
        path = folder / "broker" / "broker.sock"
        section = {
            "socket_path": str(path),
            "bind_address": "127.0.0.1",
            "brokers": brokers or [allowing("*", tcp=True)],
        }
        settings = {
            "trust_bundle_path": str(pem_bundle(live, folder)),
            "join_token_file": str(token_file(folder, await live.token())),
            "broker": section,
            **settings,
        }
        agent = await stack.enter_async_context(live_agent(folder, live.server.address, clock=clock, **settings))
        await agent.until_joined()
        yield Endpoint(live, agent, await stack.enter_async_context(AsyncExitStack()), path)


async def refusal(call):
    """The status of a call that fails, and the reason in its ErrorInfo ("" for none)."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(20):
            await (call.read() if hasattr(call, "read") else call)
    for key, value in caught.value.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            rich = rpc_status_pb2.Status.FromString(value)
            info = error_details_pb2.ErrorInfo()
            assert rich.details[0].Unpack(info)
            assert (info.domain, rich.code) == ("spiffe.io", caught.value.code().value[0])
            return caught.value.code(), info.reason
    return caught.value.code(), ""


def ids_of(response):
    return [one.spiffe_id for one in response.svids]


async def test_a_broker_gets_and_follows_what_a_process_may_have():
    """BAPI-01, BAPI-15, BAPI-17, BAPI-21, BEP-02, BEP-03, BEP-11: all four calls, full state, a push when an entry comes."""
    async with serving() as endpoint:
        mode = endpoint.path.stat().st_mode
        assert stat.S_IMODE(mode) == 0o770
        with workload() as (child, selectors):
            await endpoint.entries({"path": "/child", "selectors": selectors, "hint": "main"})
            us = await endpoint.broker()
            stream = us.svids(process(child.pid))
            first = await stream.read()
            (svid,) = first.svids
            leaf = x509.load_der_x509_certificate(svid.x509_svid)
            assert (svid.spiffe_id, svid.hint) == ("spiffe://example.org/child", "main")
            assert leaf.public_key() == load_der_private_key(svid.x509_svid_key, None).public_key()
            assert svid.bundle == b"".join(endpoint.bundles.own.x509_roots)
            bundles = await us.bundles(process(child.pid)).read()
            assert dict(bundles.bundles) == {"spiffe://example.org": svid.bundle}
            keys = await us.jwt_bundles(process(child.pid)).read()
            (key,) = json.loads(keys.bundles["spiffe://example.org"])["keys"]
            (token,) = (await us.tokens(process(child.pid), ["db", "api"])).svids
            claims = read_object(read_compact(token.svid).payload, "payload")
            assert (token.spiffe_id, sorted(claims["aud"]), token.hint) == (svid.spiffe_id, ["api", "db"], "main")
            assert key["kid"] == read_compact(token.svid).header["kid"]
            await endpoint.entries({"path": "/second", "selectors": selectors, "hint": "spare"})
            second = await stream.read()
            while len(second.svids) < 2:  # the entry is known a moment before its SVID is there
                second = await stream.read()
            assert sorted(ids_of(second)) == ["spiffe://example.org/child", "spiffe://example.org/second"]
            assert sorted(one.hint for one in second.svids) == ["main", "spare"]
            only = await us.tokens(process(child.pid), spiffe_id="spiffe://example.org/second")
            assert ids_of(only) == ["spiffe://example.org/second"]


async def test_a_stream_ends_with_its_process_and_at_once():
    """BAPI-06, BAPI-18 to BAPI-20: nothing goes on past the workload's life; its connection does."""
    async with serving() as endpoint:
        us = await endpoint.broker()
        with workload() as (child, selectors):
            await endpoint.entries({"path": "/child", "selectors": selectors})
            streams = [us.svids(process(child.pid)), us.bundles(process(child.pid)), us.jwt_bundles(process(child.pid))]
            for stream in streams:
                await stream.read()
            gone = child.pid
        for stream in streams:
            assert await refusal(stream) == (NOT_FOUND, MISSING)
        assert await refusal(us.svids(process(gone))) == (NOT_FOUND, MISSING)
        assert await refusal(us.tokens(process(gone))) == (NOT_FOUND, MISSING)
        own = (("unix", f"uid:{os.getuid()}"),)
        await endpoint.entries({"path": "/us", "selectors": own})
        assert "spiffe://example.org/us" in ids_of(await us.svids(process(os.getpid())).read())


async def test_what_is_taken_away_is_refused_and_what_never_was_too():
    """BAPI-18, S23: not entitled, entries with power, and an entry that is deleted while a stream is open."""
    async with serving() as endpoint:
        us = await endpoint.broker()
        with workload() as (child, selectors):
            for call in (us.svids, us.bundles, us.jwt_bundles, us.tokens):
                assert await refusal(call(process(child.pid))) == (DENIED, NOT_ENTITLED)
            await endpoint.entries({"path": "/admin", "selectors": selectors}, admin=True)
            await endpoint.entries({"path": "/down", "selectors": selectors}, downstream=True)
            for call in (us.svids, us.bundles, us.jwt_bundles, us.tokens):
                assert await refusal(call(process(child.pid))) == (DENIED, NOT_ENTITLED)
            ids = await endpoint.entries({"path": "/plain", "selectors": selectors})
            stream = us.svids(process(child.pid))
            assert ids_of(await stream.read()) == ["spiffe://example.org/plain"]
            assert ids_of(await us.tokens(process(child.pid))) == ["spiffe://example.org/plain"]
            asked = us.tokens(process(child.pid), spiffe_id="spiffe://example.org/admin")
            assert await refusal(asked) == (DENIED, NOT_ENTITLED)
            await endpoint.delete(ids)
            assert await refusal(stream) == (DENIED, NOT_ENTITLED)


BAD = {
    "no reference": pb.WorkloadReference(),
    "a process that is none": process(0),
    "a negative process": process(-1),
    "a process beyond the kernel's largest": process(2**30),
    "an unknown kind": pb.WorkloadReference(reference=AnyMessage(type_url="type.googleapis.com/x.Y", value=b"")),
    "a kind without its message": pb.WorkloadReference(reference=AnyMessage(type_url=PROCESS, value=b"\xff")),
    "an agent that knows no cluster": pb.WorkloadReference(
        reference=AnyMessage(
            type_url=KUBERNETES,
            value=pb.KubernetesObjectReference(type={"plural": "pods", "group": "core"}, uid="u").SerializeToString(),
        )
    ),
}
BAD_KUBERNETES = {
    "no type": {"uid": "u"},
    "no plural": {"type": {"group": "core"}, "uid": "u"},
    "no group": {"type": {"plural": "pods"}, "uid": "u"},
    "neither key nor UID": {"type": {"plural": "pods", "group": "core"}},
    "a key without a name": {"type": {"plural": "pods", "group": "core"}, "key": {"namespace": "shop"}},
    "a name of absurd length": {"type": {"plural": "pods", "group": "core"}, "key": {"name": "n" * 513}},
}


async def test_malformed_requests_are_refused_with_their_reason():
    """BAPI-05, BAPI-08, BAPI-09, BAPI-18, BAPI-19, BEP-03: the header comes first, then the reference."""
    async with serving() as endpoint:
        us = await endpoint.broker()
        calls = (us.svids, us.bundles, us.jwt_bundles, us.tokens)
        for metadata in ((), (("broker.spiffe.io", "True"),), METADATA * 2, (("workload.spiffe.io", "true"),)):
            for call in calls:
                assert await refusal(call(process(1), metadata=metadata)) == (INVALID, ""), metadata
        for case, reference in BAD.items():
            for call in calls:
                assert await refusal(call(reference)) == (INVALID, REFERENCE), case
        for case, fields in BAD_KUBERNETES.items():
            value = pb.KubernetesObjectReference(**fields).SerializeToString()
            sent = pb.WorkloadReference(reference=AnyMessage(type_url=KUBERNETES, value=value))
            assert await refusal(us.svids(sent)) == (INVALID, REFERENCE), case
        for fields in ({"audience": []}, {"audience": [""]}, {"spiffe_id": "spiffe://"}):
            assert await refusal(us.tokens(process(os.getpid()), **fields)) == (INVALID, ""), fields


async def test_only_listed_brokers_are_served(monkeypatch):
    """BEP-01, BEP-04, BAPI-12: no certificate, a stranger's CA, an ID that is not listed; the endpoint's own ID is expected."""
    monkeypatch.setattr(broker_endpoint, "MOST_STRANGERS", 2)
    monkeypatch.setattr(broker_endpoint, "STRANGER_SECONDS", 600.0)
    async with serving() as endpoint:
        strange = SpiffeTestCA("example.org").issue(BROKER)
        foreign = SpiffeTestCA("fed.test").issue(FOREIGN)
        for svid in (UNPROVEN, strange, foreign):
            for tcp in (False, True):
                call = (await endpoint.broker(svid, tcp=tcp)).svids(process(os.getpid()))
                assert await refusal(call) == (grpc.StatusCode.UNAVAILABLE, "")
        assert endpoint.agent.agent.broker._door.open_connections == 0
        other = await endpoint.broker(spiffe_id="spiffe://example.org/other")
        for call in (other.svids, other.bundles, other.jwt_bundles, other.tokens):
            assert await refusal(call(process(os.getpid()))) == (DENIED, "")
        second, third = [await endpoint.broker(spiffe_id="spiffe://example.org/other") for _ in range(2)]
        assert (await refusal(second.tokens(process(1))))[0] is DENIED
        assert (await refusal(third.tokens(process(1))))[0] is grpc.StatusCode.UNAVAILABLE, "too many of them"
        us = await endpoint.broker()
        assert (await refusal(us.tokens(process(os.getpid()))))[0] is DENIED, "a broker has a place still"
        wrong = await endpoint.broker(expect="spiffe://example.org/spire/server")
        assert (await refusal(wrong.tokens(process(1))))[0] is grpc.StatusCode.UNAVAILABLE
        assert isinstance(wrong.dialer.last_error, Exception)


async def test_strangers_are_shown_out(monkeypatch):
    """BEP-01: who is no broker does not hold a connection."""
    monkeypatch.setattr(broker_endpoint, "STRANGER_SECONDS", 0.05)
    async with serving() as endpoint:
        other = await endpoint.broker(spiffe_id="spiffe://example.org/other")
        assert (await refusal(other.tokens(process(1))))[0] is DENIED
        await endpoint.agent.until(lambda: endpoint.agent.agent.broker._door.open_connections == 0)


async def test_each_broker_may_use_the_kinds_that_are_listed_for_it():
    """BAPI-04, BAPI-12: by kind, and over TCP only with a permission of its own."""
    second = "spiffe://example.org/second"
    kinds = [allowing(PROCESS), allowing(KUBERNETES, spiffe_id=second, tcp=True)]
    async with serving(*kinds) as endpoint:
        own = (("unix", f"uid:{os.getuid()}"),)
        await endpoint.entries({"path": "/us", "selectors": own})
        us = await endpoint.broker()
        assert ids_of(await us.svids(process(os.getpid())).read()) == ["spiffe://example.org/us"]
        over_tcp = await endpoint.broker(tcp=True)
        assert await refusal(over_tcp.svids(process(os.getpid()))) == (DENIED, "")
        for tcp in (False, True):
            other = await endpoint.broker(spiffe_id=second, tcp=tcp)
            assert await refusal(other.svids(process(os.getpid()))) == (DENIED, "")


async def test_a_permitted_process_reference_works_over_loopback_tcp():
    async with serving() as endpoint:
        await endpoint.entries({"path": "/us", "selectors": (("unix", f"uid:{os.getuid()}"),)})
        us = await endpoint.broker(tcp=True)
        assert ids_of(await us.svids(process(os.getpid())).read()) == ["spiffe://example.org/us"]


async def test_a_broker_of_a_federated_trust_domain_is_believed_by_its_own_bundle():
    """BEP-04: listed and federated with; its ID from another domain's CA proves nothing."""
    ca = SpiffeTestCA("fed.test")
    async with serving(allowing("*", spiffe_id=FOREIGN)) as endpoint:
        bundle = types_pb2.Bundle(trust_domain="fed.test", x509_authorities=[{"asn1": ca.der}])
        request = bundle_pb2.BatchSetFederatedBundleRequest(bundle=[bundle])
        await endpoint.live.bundle.BatchSetFederatedBundle(request)
        own = (("unix", f"uid:{os.getuid()}"),)
        await endpoint.entries({"path": "/us", "selectors": own, "federates_with": ["fed.test"]})
        await endpoint.agent.until(lambda: endpoint.workloads.bundles.federated)
        us = await endpoint.broker(ca.issue(FOREIGN))
        stream = us.svids(process(os.getpid()))
        first = await stream.read()
        assert ids_of(first) == ["spiffe://example.org/us"]
        assert dict(first.federated_bundles) == {"spiffe://fed.test": ca.der}
        assert set((await us.bundles(process(os.getpid())).read()).bundles) == {
            "spiffe://example.org",
            "spiffe://fed.test",
        }
        both = await endpoint.broker(SpiffeTestCA("fed.test").issue(FOREIGN))
        assert (await refusal(both.tokens(process(1))))[0] is grpc.StatusCode.UNAVAILABLE
        await endpoint.live.bundle.BatchDeleteFederatedBundle(
            bundle_pb2.BatchDeleteFederatedBundleRequest(
                trust_domains=["fed.test"], mode=bundle_pb2.BatchDeleteFederatedBundleRequest.DISSOCIATE
            )
        )
        endpoint.agent.sync_now()
        assert await refusal(stream) == (UNKNOWN, ""), "its authority is not believed any longer"


async def test_an_svid_that_has_ended_is_refused_at_the_door_and_on_an_open_connection():
    """BEP-10: the connection outlives its SVID and is not believed any more; nor is the SVID at the next handshake."""
    clock = MovableClock()
    async with serving(clock=clock) as endpoint:
        await endpoint.entries({"path": "/us", "selectors": (("unix", f"uid:{os.getuid()}"),)})
        short = await mint(endpoint.live, BROKER, ttl=60)
        us = await endpoint.broker(short)
        stream = us.svids(process(os.getpid()))
        await stream.read()
        clock.move(90)
        assert await refusal(us.tokens(process(os.getpid()))) == (UNKNOWN, "")
        await endpoint.entries({"path": "/more", "selectors": (("unix", f"uid:{os.getuid()}"),)})
        assert (await refusal(stream))[0] in {UNKNOWN, grpc.StatusCode.UNAVAILABLE}, "refused, then cut"
        again = await endpoint.broker(short)
        assert (await refusal(again.tokens(process(os.getpid()))))[0] is grpc.StatusCode.UNAVAILABLE


async def test_a_disabled_jwt_profile_and_a_shutdown_are_said():
    async with serving(jwt={"disabled": True}) as endpoint:
        await endpoint.entries({"path": "/us", "selectors": (("unix", f"uid:{os.getuid()}"),)})
        us = await endpoint.broker()
        for call in (us.tokens, us.jwt_bundles):
            assert (await refusal(call(process(os.getpid()))))[0] is grpc.StatusCode.UNIMPLEMENTED
        stream = us.svids(process(os.getpid()))
        await stream.read()
        draining = asyncio.ensure_future(endpoint.agent.agent.broker.drain(5, 1))
        code, _ = await refusal(stream)
        assert code is grpc.StatusCode.UNAVAILABLE
        await us.dialer.close()
        await draining


async def test_brokers_see_by_reflection_what_is_served():
    """BEP-12, BEP-03: over the Unix socket, with the header; not over TCP and not strangers."""
    async with serving() as endpoint:

        async def listed(peer, metadata=METADATA):
            call = Stub(peer.dialer.channel(), REFLECTION).ServerReflectionInfo(metadata=metadata)
            try:
                await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
                answer = await call.read()
            except grpc.aio.AioRpcError as error:
                return error.code()
            call.cancel()
            return [one.name for one in answer.list_services_response.service]

        us = await endpoint.broker()
        assert "spiffe.broker.API" in await listed(us)
        assert await listed(us, ()) is INVALID
        assert await listed(await endpoint.broker(tcp=True)) is DENIED
        assert await listed(await endpoint.broker(spiffe_id="spiffe://example.org/other")) is DENIED
