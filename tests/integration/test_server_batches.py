"""S27: in every batch call, one bad item at any position costs that item only, and each other item gets *its own*."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from cryptography import x509

from identity_server.rpc import services
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire._gen.spire.api.server.trustdomain.v1 import trustdomain_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as entry_types
from spiffe_core.wire._gen.spire.api.types import federationrelationship_pb2 as federation_types
from spiffe_core.wire.convert import bundle_to_proto
from tests.builders import make_bundle
from tests.doubles.live_server import entry, live_server
from tests.tokens import parts

SIZE = 500
EDGES = (0, 1, 249, 498, 499)
KEYS = [generate(KeyKind.EC_P256) for _ in range(SIZE)]
Act = Callable[[Any, int], Awaitable[list[Any]]]


@dataclass
class Batch:
    """One batch call under test: `call(bad)` sends it with a bad item there, `right` judges the answer to another."""

    call: Callable[[int], Awaitable[Any]]
    right: Callable[[int, Any], bool]
    reset: Callable[[], Awaitable[Any]] | None = None


def with_bad(items: list[Any], bad: int, what: Any) -> list[Any]:
    return [*items[:bad], what, *items[bad + 1 :]]


async def no_entries(live):
    ids = list(live.state.entries)
    await live.entry.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=ids), timeout=30)


async def create_entries(live):
    good = [entry(f"/w{number}", hint=str(number)) for number in range(SIZE)]

    def call(bad):
        request = entry_pb2.BatchCreateEntryRequest(entries=with_bad(good, bad, entry(path="/spire/server")))
        return live.entry.BatchCreateEntry(request, timeout=30)

    def right(index, result):
        return result.entry.spiffe_id.path == f"/w{index}" and result.entry.hint == str(index)

    return Batch(call, right, lambda: no_entries(live))


async def update_entries(live):
    ids = await live.entries(*(entry(f"/w{number}") for number in range(SIZE)))
    rounds = iter(range(10**6))

    def call(bad):
        number = next(rounds)
        good = [{"id": one, "hint": f"{number}-{index}"} for index, one in enumerate(ids)]
        request = entry_pb2.BatchUpdateEntryRequest(
            entries=with_bad(good, bad, {"id": ids[bad], "hint": "h" * 1025}),
            input_mask=entry_types.EntryMask(hint=True),
        )
        return live.entry.BatchUpdateEntry(request, timeout=30)

    def right(index, result):
        return result.entry.id == ids[index] and result.entry.hint.endswith(f"-{index}")

    return Batch(call, right)


async def delete_entries(live):
    ids = [f"e{number}" for number in range(SIZE)]

    async def fill():
        present = set(live.state.entries)
        await live.entries(*(entry(f"/{one}", id=one) for one in ids if one not in present))

    await fill()

    def call(bad):
        request = entry_pb2.BatchDeleteEntryRequest(ids=with_bad(ids, bad, "missing"))
        return live.entry.BatchDeleteEntry(request, timeout=30)

    return Batch(call, lambda index, result: result.id == ids[index], fill)


async def sign_x509(live):
    agent = await live.join()
    ids = await live.entries(*(entry(f"/w{number}", agent.path) for number in range(SIZE)))
    requests = [build_csr(key, spiffe_id=None) for key in KEYS]
    good = [svid_pb2.NewX509SVIDParams(entry_id=one, csr=csr) for one, csr in zip(ids, requests, strict=True)]

    def call(bad):
        params = with_bad(good, bad, svid_pb2.NewX509SVIDParams(entry_id=ids[bad], csr=b"junk"))
        return agent.svid.BatchNewX509SVID(svid_pb2.BatchNewX509SVIDRequest(params=params), timeout=60)

    def right(index, result):
        leaf = x509.load_der_x509_certificate(result.svid.cert_chain[0])
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        same_key = spki_der(leaf.public_key()) == spki_der(KEYS[index].public_key())
        return uri == f"spiffe://example.org/w{index}" and result.svid.id.path == f"/w{index}" and same_key

    return Batch(call, right)


async def sign_wit(live):
    agent = await live.join()
    ids = await live.entries(*(entry(f"/w{number}", agent.path) for number in range(SIZE)))
    good = [
        {"entry_id": one, "public_key": spki_der(key.public_key()), "signing_algorithm": "ES256"}
        for one, key in zip(ids, KEYS, strict=True)
    ]

    def call(bad):
        params = with_bad(good, bad, {**good[bad], "public_key": b"junk"})
        return agent.svid.BatchNewWITSVID(svid_pb2.BatchNewWITSVIDRequest(params=params), timeout=60)

    def right(index, result):
        return parts(result.svid.token)[1]["sub"] == f"spiffe://example.org/w{index}"

    return Batch(call, right)


def named(index: int) -> str:
    return f"t{index}.test"


@cache
def foreign(index: int) -> Any:
    """A bundle with a root and a hint that no other one has."""
    return bundle_to_proto(make_bundle(trust_domain=named(index), refresh_hint=index + 1))


def bundles(verb: str) -> Callable[[Any], Awaitable[Batch]]:
    async def prepare(live):
        request_type = getattr(bundle_pb2, f"Batch{verb}FederatedBundleRequest")
        method = getattr(live.bundle, f"Batch{verb}FederatedBundle")

        async def remove():
            names = [named(index) for index in range(SIZE)]
            request = bundle_pb2.BatchDeleteFederatedBundleRequest(trust_domains=names)
            await live.bundle.BatchDeleteFederatedBundle(request, timeout=30)

        async def fill():
            request = bundle_pb2.BatchSetFederatedBundleRequest(bundle=[foreign(index) for index in range(SIZE)])
            await live.bundle.BatchSetFederatedBundle(request, timeout=30)

        def call(bad):
            if verb == "Delete":
                names = with_bad([named(index) for index in range(SIZE)], bad, "Not A Name")
                return method(request_type(trust_domains=names), timeout=30)
            own = type(foreign(bad))()
            own.CopyFrom(foreign(bad))
            own.trust_domain = "example.org"
            return method(request_type(bundle=with_bad([foreign(i) for i in range(SIZE)], bad, own)), timeout=30)

        def right(index, result):
            if verb == "Delete":
                return result.trust_domain == named(index)
            return result.bundle == foreign(index)

        if verb in {"Update", "Delete"}:
            await fill()
        return Batch(call, right, {"Create": remove, "Delete": fill}.get(verb))

    prepare.__name__ = f"{verb.lower()}_bundles"
    return prepare


def relationships(verb: str) -> Callable[[Any], Awaitable[Batch]]:
    async def prepare(live):
        request_type = getattr(trustdomain_pb2, f"Batch{verb}FederationRelationshipRequest")
        method = getattr(live.trust_domain, f"Batch{verb}FederationRelationship")
        names = [named(index) for index in range(SIZE)]

        def relationship(index, url=None):
            message = federation_types.FederationRelationship(
                trust_domain=named(index), bundle_endpoint_url=url or f"https://{named(index)}/bundle"
            )
            message.https_web.SetInParent()
            return message

        async def remove():
            request = trustdomain_pb2.BatchDeleteFederationRelationshipRequest(trust_domains=names)
            await live.trust_domain.BatchDeleteFederationRelationship(request, timeout=30)

        async def fill():
            given = [relationship(index) for index in range(SIZE)]
            request = trustdomain_pb2.BatchCreateFederationRelationshipRequest(federation_relationships=given)
            await live.trust_domain.BatchCreateFederationRelationship(request, timeout=30)

        def call(bad):
            if verb == "Delete":
                return method(request_type(trust_domains=with_bad(names, bad, "Not A Name")), timeout=30)
            given = with_bad([relationship(i) for i in range(SIZE)], bad, relationship(bad, "ftp://x.test/bundle"))
            return method(request_type(federation_relationships=given), timeout=30)

        def right(index, result):
            if verb == "Delete":
                return result.trust_domain == named(index)
            found = result.federation_relationship
            return (found.trust_domain, found.bundle_endpoint_url) == (named(index), f"https://{named(index)}/bundle")

        if verb != "Create":
            await fill()
        return Batch(call, right, {"Create": remove, "Delete": fill}.get(verb))

    prepare.__name__ = f"{verb.lower()}_relationships"
    return prepare


CALLS = {
    "Entry/BatchCreateEntry": create_entries,
    "Entry/BatchUpdateEntry": update_entries,
    "Entry/BatchDeleteEntry": delete_entries,
    "SVID/BatchNewX509SVID": sign_x509,
    "SVID/BatchNewWITSVID": sign_wit,
    **{f"Bundle/Batch{verb}FederatedBundle": bundles(verb) for verb in ("Create", "Update", "Set", "Delete")},
    **{
        f"TrustDomain/Batch{verb}FederationRelationship": relationships(verb) for verb in ("Create", "Update", "Delete")
    },
}


async def walk(name: str, positions: tuple[int, ...] | range) -> None:
    limits = {"signing_burst": 10_000_000, "signing_per_second": 1_000_000}
    async with live_server(wit={"enabled": True}, ratelimit=limits) as live:
        batch = await CALLS[name](live)
        for bad in positions:
            results = (await batch.call(bad)).results
            assert len(results) == SIZE
            assert [index for index, result in enumerate(results) if result.status.code] == [bad], results[bad].status
            wrong = [index for index, result in enumerate(results) if index != bad and not batch.right(index, result)]
            assert wrong == [], f"with the bad item at {bad}"
            if batch.reset is not None:
                await batch.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
async def test_a_batch_of_500_with_one_bad_item_returns_the_other_499_right(name):
    """S27: at both ends, beside them and in the middle; every position is walked by the long run."""
    await walk(name, EDGES)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CALLS)
async def test_at_every_position(name):
    """S27: 500 batches of 500."""
    await walk(name, range(SIZE))


def test_no_batch_call_is_forgotten():
    offered = {
        f"{service.name}/{method.name}"
        for service in vars(services).values()
        if hasattr(service, "methods_by_name")
        for method in service.methods
        if method.name.startswith("Batch")
    }
    assert offered == set(CALLS)
