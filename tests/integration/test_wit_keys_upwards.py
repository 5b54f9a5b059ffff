"""Keys for WIT-SVIDs in a tree of servers: published upwards before they sign, followed downwards (WIT-36, spire_wire 5.2)."""

from __future__ import annotations

import pytest

from identity_server.domain.access import Caller, CallerKind
from identity_server.services.trust_bundles import TrustBundles
from spiffe_core.bundle import JwtAuthority, WitAuthority
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import Conflict, Unavailable, Unimplemented
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as types_pb2
from tests.doubles.bundle_calls import KEY, OTHER_KEY, refused
from tests.doubles.live_server import live_server
from tests.doubles.nested_server import TD, Nested, Silent
from tests.integration.test_server_own_bundle import downstream
from tests.integration.test_upstream_spire import nested as below_a_server
from tests.integration.test_upstream_spire import until

ADMIN = Caller(CallerKind.LOCAL, "test")


def wit_key(name: str) -> WitAuthority:
    return WitAuthority(name, spki_der(generate(KeyKind.EC_P256).public_key()), 2**33)


async def test_a_downstream_server_publishes_its_wit_key_where_wits_are_switched_on():
    """Spire_wire 5.2: the key stands in the bundle, all keys come back, and a key id stands for one key."""
    async with live_server(wit={"enabled": True}) as live:
        server = await downstream(live)
        key = types_pb2.WITKey(public_key=KEY, key_id="below", expires_at=2_000_000_000)
        for _ in range(2):
            request = bundle_pb2.PublishWITAuthorityRequest(wit_authority=key)
            keys = (await server.bundle.PublishWITAuthority(request, timeout=10)).wit_authorities
            own = await live.bundle.GetBundle(bundle_pb2.GetBundleRequest())
            assert keys == own.wit_authorities
            assert [one for one in keys if one.key_id == "below"] == [key]
            assert len(keys) == 2, "the server's own beside it"
        thief = bundle_pb2.PublishWITAuthorityRequest(wit_authority={"public_key": OTHER_KEY, "key_id": "below"})
        assert (await refused(server.bundle.PublishWITAuthority(thief, timeout=10)))[0] == "ALREADY_EXISTS"
        same_name = bundle_pb2.PublishJWTAuthorityRequest(jwt_authority={"public_key": KEY, "key_id": "below"})
        assert (await refused(server.bundle.PublishJWTAuthority(same_name, timeout=10)))[0] == "ALREADY_EXISTS"
        for message, words in (
            (bundle_pb2.PublishWITAuthorityRequest(), "missing WIT authority"),
            (bundle_pb2.PublishWITAuthorityRequest(wit_authority={"public_key": KEY}), "invalid WIT authority: "),
        ):
            code, text = await refused(server.bundle.PublishWITAuthority(message, timeout=10))
            assert (code, text.startswith(words)) == ("INVALID_ARGUMENT", True)


async def test_our_wit_key_is_known_upstream_before_it_signs():
    """An upstream that publishes none, as SPIRE's, leaves the key to our bundle; one that is away holds the first back."""
    for publishes in (True, False):
        nested = Nested(wit=True)
        nested.upstream.publishes = publishes
        await nested.start()
        (key,) = nested.bundle.wit_authorities
        assert set(nested.upstream.wit_keys) == ({key.key_id} if publishes else set())
        assert nested.authorities.slots("wit").active.authority_id == key.key_id


async def test_wit_keys_of_the_upstream_are_followed_tainted_and_withdrawn():
    """As JWT keys are; a name that stands for another key is left alone."""
    nested = await Nested().start()
    first, clash = wit_key("first"), wit_key("clash")
    taken = JwtAuthority("clash", spki_der(generate(KeyKind.EC_P256).public_key()), 2**33)
    nested.database.bundles[TD] = nested.bundle.with_jwt_authority(taken)
    nested.store.reload()
    nested.upstream.wit_keys = {"first": first, "clash": clash}
    for bad, expected in (((), [("first", False)]), (("first",), [("first", True)])):
        nested.upstream.show(nested.root, bad_keys=bad)
        await nested.follow()
        assert [(one.key_id, one.tainted) for one in nested.bundle.wit_authorities] == expected
    del nested.upstream.wit_keys["first"]
    nested.upstream.show(nested.root)
    await nested.follow()
    assert nested.bundle.wit_authorities == ()
    assert nested.bundle.jwt_authorities == (taken,)


async def test_a_key_from_further_below_goes_up_first():
    """Refused while the upstream is away; kept here where it publishes none."""
    nested = await Nested().start()
    nested.upstream.publishes = True
    nested.upstream.wit_keys["other"] = wit_key("other")
    bundles = TrustBundles(store=nested.store, audit=Silent(), trust_domain=TD, upstream=nested.upstream, wit=True)
    far = wit_key("far")
    assert {one.key_id for one in await bundles.publish_wit_authority(ADMIN, lambda: far)} == {"far", "other"}
    assert nested.upstream.wit_keys["far"] == far
    nested.upstream.trouble = Unavailable("away")
    with pytest.raises(Unavailable, match="away"):
        await bundles.publish_wit_authority(ADMIN, lambda: wit_key("late"))
    nested.upstream.trouble, nested.upstream.publishes = None, False
    with pytest.raises(Conflict):
        await bundles.publish_wit_authority(ADMIN, lambda: wit_key("other"))
    switched_off = TrustBundles(store=nested.store, audit=Silent(), trust_domain=TD)
    with pytest.raises(Unimplemented):
        await switched_off.publish_wit_authority(ADMIN, lambda: far)


async def test_a_wit_key_is_published_at_a_server_above_and_all_of_them_come_back():
    """Over real TLS; the server's bundle shows them to whoever follows it."""
    async with below_a_server(poll=3600) as (double, made):
        double.publish(wit=(wit_key("above"),))
        own = wit_key("ours")
        assert [one.key_id for one in await made.publish_wit_authority(own)] == ["above", "ours"]
        assert [one.key_id for one in made.view.value.wit_authorities] == ["above", "ours"]
        assert double.wit[1] == own
        double.answers["PublishWITAuthority"] = b"\xff\xff"
        with pytest.raises(Unavailable, match="cannot be read"):
            await made.publish_wit_authority(wit_key("late"))
        double.publish(wit=(wit_key("new"),))
        double.tell_agent()
        await until(lambda: [one.key_id for one in made.view.value.wit_authorities] == ["new"])
