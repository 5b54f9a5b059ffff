"""The TrustDomain, Logger and Debug services of a real server."""

from __future__ import annotations

import json
import logging
from itertools import combinations

import grpc.aio
import pytest
from cryptography import x509

from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.debug.v1 import debug_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.logger.v1 import logger_pb2
from spiffe_core.wire._gen.spire.api.server.trustdomain.v1 import trustdomain_pb2
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as bundle_types
from spiffe_core.wire._gen.spire.api.types import federationrelationship_pb2 as types_pb2
from spiffe_core.wire._gen.spire.api.types import logger_pb2 as logger_types
from spiffe_core.wire.convert import bundle_to_proto
from tests.builders import make_bundle
from tests.doubles.live_server import entry, live_server

FIELDS = ("bundle_endpoint_url", "bundle_endpoint_profile", "trust_domain_bundle")
MASKS = [set(some) for size in range(len(FIELDS) + 1) for some in combinations(FIELDS, size)]
URL = "https://fed.test/bundle"


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


def web(name="fed.test", url=URL, bundle=None):
    message = types_pb2.FederationRelationship(trust_domain=name, bundle_endpoint_url=url, trust_domain_bundle=bundle)
    message.https_web.SetInParent()
    return message


def spiffe(name="fed.test", url=URL, who="spiffe://fed.test/spire/server", bundle=None):
    return types_pb2.FederationRelationship(
        trust_domain=name,
        bundle_endpoint_url=url,
        https_spiffe={"endpoint_spiffe_id": who},
        trust_domain_bundle=bundle,
    )


def fed_bundle(**over):
    return bundle_to_proto(make_bundle(trust_domain="fed.test", **over))


def mask(*names):
    return types_pb2.FederationRelationshipMask(**dict.fromkeys(names, True))


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details()


async def create(live, *relationships, **over):
    request = trustdomain_pb2.BatchCreateFederationRelationshipRequest(federation_relationships=relationships, **over)
    return list((await live.trust_domain.BatchCreateFederationRelationship(request, timeout=10)).results)


async def update(live, *relationships, **over):
    request = trustdomain_pb2.BatchUpdateFederationRelationshipRequest(federation_relationships=relationships, **over)
    return list((await live.trust_domain.BatchUpdateFederationRelationship(request, timeout=10)).results)


async def get(live, name="fed.test", **over):
    request = trustdomain_pb2.GetFederationRelationshipRequest(trust_domain=name, **over)
    return await live.trust_domain.GetFederationRelationship(request, timeout=10)


async def listed(live, **over):
    request = trustdomain_pb2.ListFederationRelationshipsRequest(**over)
    page = await live.trust_domain.ListFederationRelationships(request, timeout=10)
    return list(page.federation_relationships), page.next_page_token


async def stored_bundle(live, name="fed.test"):
    return await live.bundle.GetFederatedBundle(bundle_pb2.GetFederatedBundleRequest(trust_domain=name), timeout=10)


def audited(live, event):
    with open(live.server.settings.audit.file) as file:
        return [line for line in map(json.loads, file) if line["event"] == event and line["outcome"] == "begun"]


# --- relationships ----------------------------------------------------------------------------------------------------


async def test_relationships_of_both_profiles_come_back_as_they_were(live):
    """spire_wire section 5.5: `https_web` is present though it is empty, in every answer."""
    given = [web("a.test"), spiffe("b.test", who="spiffe://other.test/server")]
    made = await create(live, *given)
    assert [(one.status.code, one.status.message) for one in made] == [(0, "OK")] * 2
    assert [one.federation_relationship for one in made] == given
    assert (await listed(live))[0] == given
    shown = [await get(live, "a.test"), await get(live, "spiffe://b.test")]
    assert shown == given
    assert [one.HasField("https_web") for one in shown] == [True, False]
    assert b"\x1a\x00" in shown[0].SerializeToString(), "tag 3 with length 0, which controller-manager looks for"


async def test_a_bundle_that_comes_along_is_stored(live):
    await create(live, web(bundle=fed_bundle()))
    assert await stored_bundle(live) == fed_bundle()
    assert (await get(live)).trust_domain_bundle == fed_bundle()
    await update(live, web(bundle=fed_bundle(sequence=8)))
    assert (await stored_bundle(live)).sequence_number == 8
    await update(live, web())
    assert (await stored_bundle(live)).sequence_number == 8, "an update without a bundle leaves it as it is"


async def test_a_bundle_set_by_hand_shows_in_its_relationship(live):
    await create(live, web())
    assert not (await get(live)).HasField("trust_domain_bundle")
    request = bundle_pb2.BatchSetFederatedBundleRequest(bundle=[fed_bundle()])
    await live.bundle.BatchSetFederatedBundle(request)
    assert (await get(live)).trust_domain_bundle == fed_bundle()


async def test_deleting_leaves_the_bundle(live):
    """spire_features section 19.3."""
    await create(live, web(bundle=fed_bundle()))
    request = trustdomain_pb2.BatchDeleteFederationRelationshipRequest(
        trust_domains=["", "No Name", "gone.test", "spiffe://fed.test", "fed.test"]
    )
    results = (await live.trust_domain.BatchDeleteFederationRelationship(request)).results
    assert [(one.trust_domain, one.status.code) for one in results] == [
        ("", 3),
        ("No Name", 3),
        ("gone.test", 5),
        ("fed.test", 0),
        ("fed.test", 5),
    ]
    assert results[0].status.message == "missing trust domain"
    assert results[2].status.message == "federation relationship not found"
    assert await refused(get(live)) == ("NOT_FOUND", "federation relationship does not exist")
    assert await stored_bundle(live) == fed_bundle()


async def test_a_second_one_and_an_update_of_none_are_internal_as_in_spire(live):
    """N-F-21, spire_wire section 5.5."""
    (none,) = await update(live, web())
    assert (none.status.code, none.status.message.split(":")[0]) == (13, "failed to update federation relationship")
    assert not none.HasField("federation_relationship")
    await create(live, web())
    (again,) = await create(live, spiffe(bundle=fed_bundle()))
    assert (again.status.code, again.status.message.split(":")[0]) == (13, "failed to create federation relationship")
    assert await get(live) == web()
    assert (await refused(stored_bundle(live)))[0] == "NOT_FOUND", "what is refused stores no bundle either"


BAD = {
    "no trust domain": web(""),
    "look-alike": web("f\u0435d.test"),
    "no url": web(url=""),
    "http": web(url="http://fed.test/"),
    "no host": web(url="https:///bundle"),
    "user info": web(url="https://me:secret@fed.test/"),
    "no profile": types_pb2.FederationRelationship(trust_domain="fed.test", bundle_endpoint_url=URL),
    "no endpoint id": spiffe(who=""),
    "bad endpoint id": spiffe(who="spiffe://Fed.test/server"),
    "another's bundle": web(bundle=bundle_to_proto(make_bundle(trust_domain="other.test"))),
    "our own bundle": web(bundle=bundle_to_proto(make_bundle())),
    "nobody's bundle": web(bundle=bundle_types.Bundle()),
    "broken bundle": web(bundle=bundle_types.Bundle(trust_domain="fed.test", x509_authorities=[{"asn1": b"x"}])),
}


@pytest.mark.parametrize("name", list(BAD))
async def test_what_cannot_be_is_refused_item_by_item(live, name):
    """N-F-01, N-F-02, N-F-03, S27, S31: the others of the batch are stored."""
    await create(live, web())
    for act in (create, update):
        good = web("good.test") if act is create else web(url=URL + "/new")
        results = await act(live, BAD[name], good)
        assert [one.status.code for one in results] == [3, 0], results
        assert results[0].status.message.startswith("failed to convert federation relationship: ")
        assert "secret" not in results[0].status.message
        assert not results[0].HasField("federation_relationship")
    assert [one.trust_domain for one in (await listed(live))[0]] == ["fed.test", "good.test"]
    assert (await refused(stored_bundle(live)))[0] == "NOT_FOUND"


async def test_there_is_no_relationship_with_oneself(live):
    """N-F-20."""
    for name in ("example.org", "spiffe://example.org"):
        (result,) = await create(live, web(name))
        assert (result.status.code, result.status.message) == (
            3,
            "unable to create federation relationship for server trust domain",
        )


async def test_an_update_writes_what_the_input_mask_names_and_nothing_else(live):
    """S22, on input: every subset of fields; what the mask leaves out is not even looked at."""
    await create(live, web())
    for bits in MASKS:
        await update(live, web(bundle=fed_bundle(sequence=1)))
        given = types_pb2.FederationRelationship(trust_domain="fed.test", bundle_endpoint_url="nonsense")
        expected = web(bundle=fed_bundle(sequence=1))
        if "bundle_endpoint_url" in bits:
            given.bundle_endpoint_url = expected.bundle_endpoint_url = "https://new.test/"
        if "bundle_endpoint_profile" in bits:
            given.https_spiffe.endpoint_spiffe_id = expected.https_spiffe.endpoint_spiffe_id = "spiffe://n.test/s"
        if "trust_domain_bundle" in bits:
            given.trust_domain_bundle.CopyFrom(fed_bundle(sequence=5))
            expected.trust_domain_bundle.CopyFrom(fed_bundle(sequence=5))
        else:
            given.trust_domain_bundle.trust_domain = "not even a name"
        (result,) = await update(live, given, input_mask=mask(*bits))
        assert result.status.message == "OK", bits
        assert result.federation_relationship == await get(live) == expected, bits


async def test_every_output_mask_shows_its_fields_and_the_trust_domain(live):
    """S22: every subset, both profiles, on every call that shows relationships."""
    for whole in (web(bundle=fed_bundle()), spiffe(bundle=fed_bundle())):
        for bits in MASKS:
            shown = mask(*bits)
            request = trustdomain_pb2.BatchDeleteFederationRelationshipRequest(trust_domains=["fed.test"])
            await live.trust_domain.BatchDeleteFederationRelationship(request)
            (made,) = await create(live, whole, output_mask=shown)
            (changed,) = await update(live, whole, output_mask=shown)
            (one,), _ = await listed(live, output_mask=shown)
            expected = types_pb2.FederationRelationship()
            expected.CopyFrom(whole)
            if "bundle_endpoint_profile" not in bits:
                expected.ClearField(whole.WhichOneof("bundle_endpoint_profile"))
            for name in {"bundle_endpoint_url", "trust_domain_bundle"} - bits:
                expected.ClearField(name)
            for found in (
                made.federation_relationship,
                changed.federation_relationship,
                one,
                await get(live, output_mask=shown),
            ):
                assert found == expected, bits


async def test_lists_are_paged_in_the_order_of_creation(live):
    names = [f"{letter}.test" for letter in "edcba"]
    await create(live, *map(web, names))
    seen, token = [], ""
    for _ in range(3):
        page, token = await listed(live, page_size=2, page_token=token)
        seen += [one.trust_domain for one in page]
    assert (seen, token) == (names, "")


async def test_page_sizes_and_tokens_of_strangers_are_refused(live):
    """S58."""
    await create(live, web("a.test"), web("b.test"))
    assert len((await listed(live, page_size=2**31 - 1))[0]) == 2
    await live.entries(entry("/a"), entry("/b"))
    others = await live.entry.ListEntries(entry_pb2.ListEntriesRequest(page_size=1))
    for token in ("garbage", "1", "bundle:a.test", others.next_page_token, "1-federation_relationshi", "-1"):
        code, text = await refused(listed(live, page_size=1, page_token=token))
        assert (code, "page_token" in text) == ("INVALID_ARGUMENT", True)
    assert (await refused(listed(live, page_size=-1)))[0] == "INVALID_ARGUMENT"


async def test_refreshing_says_why_it_failed(live):
    """N-F-18, FED-45: a host that cannot be resolved (RFC 6761); nobody has to wait for a bundle that is away."""

    async def refresh(name):
        return await refused(live.trust_domain.RefreshBundle(trustdomain_pb2.RefreshBundleRequest(trust_domain=name)))

    assert await refresh("fed.test") == ("NOT_FOUND", 'no relationship with trust domain "fed.test"')
    assert (await refresh("No Name"))[0] == "INVALID_ARGUMENT"
    await create(live, web(url="https://fed.invalid/bundle"))
    code, text = await refresh("fed.test")
    assert (code, "fed.invalid: the name cannot be resolved" in text) == ("UNAVAILABLE", True)


async def test_an_endpoint_that_cannot_be_believed_yet_is_told_in_the_log(live, caplog):
    await create(live, spiffe("a.test", who="spiffe://nobody.test/server"), web("b.test"))
    assert [record.args[2].name for record in caplog.records if "no bundle of" in record.msg] == ["nobody.test"]


async def test_every_write_is_audited(live):
    await create(live, spiffe())
    await update(live, web())
    await live.trust_domain.BatchDeleteFederationRelationship(
        trustdomain_pb2.BatchDeleteFederationRelationshipRequest(trust_domains=["fed.test"])
    )
    lines = audited(live, "federation")
    assert [line["change"] for line in lines] == ["create", "update", "delete"]
    assert (lines[0]["endpoint_url"], lines[0]["endpoint_spiffe_id"]) == (URL, "spiffe://fed.test/spire/server")


# --- the log's level --------------------------------------------------------------------------------------------------


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.INFO)
    yield root
    root.setLevel(before)


async def turn(live, level):
    return await live.logger.SetLogLevel(logger_pb2.SetLogLevelRequest(new_level=level))


async def test_the_log_is_turned_and_turned_back(live, root_logger):
    """spire_wire section 5.7: all seven levels, and the level at the start is remembered."""
    assert await live.logger.GetLogger(logger_pb2.GetLoggerRequest()) == logger_types.Logger(
        current_level="INFO", launch_level="INFO"
    )
    for name in ("PANIC", "FATAL", "ERROR", "WARN", "INFO", "DEBUG", "TRACE"):
        shown = await turn(live, name)
        assert shown == logger_types.Logger(current_level=name, launch_level="INFO")
        assert await live.logger.GetLogger(logger_pb2.GetLoggerRequest()) == shown
        assert root_logger.isEnabledFor(logging.DEBUG) == (name in {"DEBUG", "TRACE"})
        assert root_logger.isEnabledFor(logging.ERROR) == (name not in {"PANIC", "FATAL"})
    shown = await live.logger.ResetLogLevel(logger_pb2.ResetLogLevelRequest())
    assert shown == logger_types.Logger(current_level="INFO", launch_level="INFO")
    assert root_logger.level == logging.INFO
    levels = [line["level"] for line in audited(live, "log_level")]
    assert levels == ["panic", "fatal", "error", "warn", "info", "debug", "trace", "info"]


@pytest.mark.parametrize("level", [0, 8, -1, 2**31 - 1])
async def test_what_is_no_level_is_refused(live, root_logger, level):
    code, _ = await refused(turn(live, level))
    assert code == "INVALID_ARGUMENT"
    assert root_logger.level == logging.INFO


# --- what the server holds --------------------------------------------------------------------------------------------


async def info(live):
    return await live.debug.GetInfo(debug_pb2.GetInfoRequest(), timeout=10)


async def test_the_server_tells_what_it_is_and_holds(live):
    first = await info(live)
    assert (first.agents_count, first.entries_count, first.federated_bundles_count) == (0, 0, 1)
    leaf, root = first.svid_chain
    assert (leaf.id.trust_domain, leaf.id.path) == ("example.org", "/spire/server")
    assert (root.id.trust_domain, root.id.path) == ("example.org", "")
    (der,) = live.state.bundles.own.x509_roots
    known = x509.load_der_x509_certificate(der)
    assert root.expires_at == int(known.not_valid_after_utc.timestamp())
    assert root.subject == known.subject.rfc4514_string().replace("2.5.4.5=", "SERIALNUMBER=")
    assert 0 <= first.uptime < 60


async def test_the_answer_is_remembered_for_five_seconds(live, monkeypatch):
    await info(live)
    await live.entries(entry())
    await live.join()
    assert (await info(live)).entries_count == 0
    before = live.clock.monotonic()
    monkeypatch.setattr(type(live.clock), "monotonic", lambda _self: before + 5.0)
    later = await info(live)
    assert (later.entries_count, later.agents_count) == (1, 1)
    assert later.uptime >= 4
