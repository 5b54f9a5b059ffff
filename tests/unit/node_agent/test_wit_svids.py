"""WIT-SVIDs for workloads: a key of their own, the complete set, renewed at half-life, dropped when tainted."""

import asyncio
import json

import pytest

from node_agent.domain.issued_wit import check_issued_wit
from node_agent.services.wit_svids import WitSvids
from spiffe_core.crypto.jose import read_compact, read_object
from spiffe_core.errors import Reason, Unavailable, VerificationFailed
from spiffe_core.spiffe_id import SpiffeId
from tests.builders import make_entry, selectors
from tests.unit.node_agent.conftest import make_world

UID = selectors("unix:uid:1000")


async def serving(*entries, **options):
    world = make_world(**options)
    world.server.publish(*(entries or (make_entry(),)))
    wit = WitSvids(
        server=world.server,
        membership=world.membership,
        workloads=world.workloads,
        clock=world.clock,
        steady=world.steady,
        draw=lambda: 0.0,
    )
    world.workloads.on_bundle.append(wit.follow_bundle)
    world.workloads.on_ban.append(wit.forget)
    await world.settle()
    return world, wit


async def next_view(watch, version=0):
    async with asyncio.timeout(5):
        await watch.changed(version)
    return watch.value


def nudge(wit):
    """Let the keepers look at the clock now."""
    wit._wake_all()


def claims_of(token):
    return read_object(read_compact(token).payload, "payload")


async def test_the_key_handed_out_is_the_one_the_token_confirms():
    """WAPI-51, WIT-12, WIT-43: public(wit_svid_key) == cnf.jwk, and no two identities share a key."""
    other = make_entry(id="entry-2", spiffe_id=SpiffeId.parse("spiffe://example.org/other"), hint="second")
    world, wit = await serving(make_entry(), other)
    with wit.subscribe_wit(UID) as watch:
        view = await next_view(watch)
    assert [(str(one.spiffe_id), one.hint) for one in view.wit_svids] == [
        ("spiffe://example.org/web", ""),
        ("spiffe://example.org/other", "second"),
    ]
    keys = [json.loads(one.key) for one in view.wit_svids]
    assert len({key["d"] for key in keys}) == 2
    for one, key in zip(view.wit_svids, keys, strict=True):
        assert claims_of(one.token)["sub"] == str(one.spiffe_id)
        assert claims_of(one.token)["cnf"]["jwk"] == {name: value for name, value in key.items() if name != "d"}
        assert key["d"] not in repr(one)
    assert world.server.wit_asked == [["entry-1", "entry-2"]]


async def test_followers_of_one_identity_share_its_token():
    """WIT-16: the same token for several instances of one workload on one node."""
    world, wit = await serving()
    with wit.subscribe_wit(UID) as first, wit.subscribe_wit(UID | selectors("unix:gid:1000")) as second:
        assert (await next_view(first)).wit_svids == (await next_view(second)).wit_svids
    assert world.server.wit_asked == [["entry-1"]]


async def test_a_token_is_renewed_at_half_its_life_with_a_new_key():
    world, wit = await serving(ttl=60)
    with wit.subscribe_wit(UID) as watch:
        (old,) = (await next_view(watch)).wit_svids
        version = watch.version
        world.clock.advance(31)
        nudge(wit)
        (new,) = (await next_view(watch, version)).wit_svids
    assert new.token != old.token
    assert json.loads(new.key)["d"] != json.loads(old.key)["d"]


async def test_while_the_server_is_away_the_token_stays_and_an_ended_one_is_withdrawn():
    """N-A-26: never an expired token; None, not an empty set: the workload is entitled still."""
    world, wit = await serving(ttl=60)
    with wit.subscribe_wit(UID) as watch:
        view = await next_view(watch)
        world.clock.advance(31)
        world.server.troubles_of["issue_wits"] = Unavailable("away")
        nudge(wit)
        await asyncio.sleep(0.01)
        assert watch.value == view
        version = watch.version
        world.clock.advance(30)
        world.server.troubles_of["issue_wits"] = Unavailable("away")
        nudge(wit)
        assert await next_view(watch, version) is None
        version = watch.version
        nudge(wit)
        assert len((await next_view(watch, version)).wit_svids) == 1


async def test_a_removed_entry_empties_the_set():
    """WAPI-53, WAPI-54."""
    world, wit = await serving()
    with wit.subscribe_wit(UID) as watch:
        await next_view(watch)
        version = watch.version
        world.server.remove("entry-1")
        await world.sync.once()
        assert (await next_view(watch, version)).wit_svids == ()


async def test_the_token_of_a_name_that_an_entry_no_longer_has_is_withdrawn_at_once():
    """WAPI-54: also while the server cannot make the new one; and the new hint comes with the old token."""
    world, wit = await serving()
    with wit.subscribe_wit(UID) as watch:
        (old,) = (await next_view(watch)).wit_svids
        version = watch.version
        world.server.publish(make_entry(hint="first", revision_number=1))
        await world.sync.once()
        assert (await next_view(watch, version)).wit_svids[0].hint == "first"
        version = watch.version
        renamed = SpiffeId.parse("spiffe://example.org/renamed")
        world.server.publish(make_entry(spiffe_id=renamed, revision_number=2))
        await world.sync.once()
        world.server.troubles_of["issue_wits"] = Unavailable("away")
        await world.fetch()
        assert await next_view(watch, version) is None
        version = watch.version
        nudge(wit)
        (new,) = (await next_view(watch, version)).wit_svids
    assert (new.spiffe_id, new.token != old.token) == (renamed, True)


async def test_a_withdrawn_identity_goes_while_the_token_of_another_is_waited_for():
    """WAPI-54: a server that takes its time must not keep in force what it has withdrawn."""
    other = make_entry(id="entry-2", spiffe_id=SpiffeId.parse("spiffe://example.org/other"))
    world, wit = await serving(make_entry(), other)
    with wit.subscribe_wit(UID) as watch:
        await next_view(watch)
        version = watch.version
        world.server.remove("entry-1")
        world.server.publish(make_entry(id="entry-3", spiffe_id=SpiffeId.parse("spiffe://example.org/third")))
        await world.sync.once()
        world.server.gate = asyncio.Event()
        left = [str(one.spiffe_id) for one in (await next_view(watch, version)).wit_svids]
        assert left == ["spiffe://example.org/other"]
        world.server.gate.set()


async def test_a_tainted_keys_tokens_are_replaced_at_once():
    world, wit = await serving()
    with wit.subscribe_wit(UID) as watch:
        (old,) = (await next_view(watch)).wit_svids
        version = watch.version
        world.server.wit_keys["wit-2"] = world.server.wit_keys.pop("wit-1")
        world.server.sequence += 1
        await world.sync.once()
        (new,) = (await next_view(watch, version)).wit_svids
        assert read_compact(new.token).header["kid"] == "wit-2"
        assert new.token != old.token


async def test_a_token_that_was_signed_before_its_key_was_tainted_is_replaced_soon():
    """It crossed the sync that told of the taint; nobody else would replace it before half-life."""
    world, wit = await serving()
    world.server.taint_key("wit-1")
    await world.sync.once()
    with wit.subscribe_wit(UID) as watch:
        (old,) = (await next_view(watch)).wit_svids
        version = watch.version
        world.server.wit_keys["wit-2"] = world.server.wit_keys.pop("wit-1")
        world.clock.advance(60)
        (new,) = (await next_view(watch, version)).wit_svids
        assert [read_compact(one.token).header["kid"] for one in (old, new)] == ["wit-1", "wit-2"]


async def test_a_banned_agent_forgets_every_key():
    """A19."""
    world, wit = await serving()
    with wit.subscribe_wit(UID) as watch:
        await next_view(watch)
        version = watch.version
        world.workloads.ban()
        assert (await next_view(watch, version)).wit_svids == ()
    assert not wit._held


WRONG = {
    "another ID": ({"sub": "spiffe://example.org/admin"}, Reason.UNEXPECTED_ID),
    "another key": ({"cnf": {"jwk": {"kty": "EC"}}}, Reason.BAD_CLAIM),
    "no key": ({"cnf": None}, Reason.BAD_CLAIM),
    "an audience (WIT-27)": ({"aud": ["x"]}, Reason.BAD_CLAIM),
    "expired": ({"exp": 1}, Reason.EXPIRED),
    "no end": ({"exp": "soon"}, Reason.EXPIRED),
}


@pytest.mark.parametrize(("claims", "reason"), WRONG.values(), ids=WRONG)
async def test_a_wrong_token_is_refused(claims, reason):
    """R42 for WIT-SVIDs."""
    world, _ = await serving()
    from cryptography.hazmat.primitives.asymmetric import ec

    from node_agent.ports import WitRequest
    from spiffe_core.crypto.jwk import key_to_jwk
    from spiffe_core.crypto.keys import spki_der

    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    world.server.spoil_token = claims
    (answer,) = await world.server.issue_wits([WitRequest("entry-1", spki_der(key), "ES256")])
    confirmed = {**key_to_jwk(key), "alg": "ES256"}
    with pytest.raises(VerificationFailed) as refusal:
        check_issued_wit(
            answer.token,
            expected=SpiffeId.parse("spiffe://example.org/web"),
            confirmed=confirmed,
            bundle=world.server.bundle(),
            now=world.clock.now(),
        )
    assert refusal.value.reason is reason
