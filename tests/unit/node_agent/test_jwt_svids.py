"""JWT-SVIDs from memory: fetched once, refreshed ahead, kept through an outage, dropped when they must not be served."""

import asyncio

import pytest

from node_agent.services.jwt_svids import MOST_PER_ENTRY, REQUESTS_AT_ONCE, JwtSvids
from spiffe_core.errors import NoIdentityIssued, NotFound, Refusal, Unavailable
from spiffe_core.jwt_verify import verify_jwt_svid
from spiffe_core.spiffe_id import SpiffeId
from tests.builders import make_entry, selectors
from tests.unit.node_agent.conftest import make_world

UID = selectors("unix:uid:1000")
AUDIENCE = ("spiffe://example.org/db",)


async def serving(*entries, most=1000, **options):
    """A world that is synchronised, and its JWT-SVIDs."""
    world = make_world(**options)
    world.server.publish(*(entries or (make_entry(),)))
    jwt = JwtSvids(
        server=world.server,
        membership=world.membership,
        workloads=world.workloads,
        clock=world.clock,
        steady=world.steady,
        draw=lambda: 0.0,
        most=most,
    )
    jwt.on_unknown_authority = world.sync.request
    world.workloads.on_bundle.append(jwt.follow_bundle)
    world.workloads.on_ban.append(jwt.forget)
    await world.settle()
    return world, jwt


async def one(jwt, audience=AUDIENCE, requested=None):
    (svid,) = await jwt.jwt_svids(UID, audience, requested)
    return svid


async def refresh_due(world, jwt):
    """One turn of the refresher, and of everything it started."""
    runner = asyncio.ensure_future(jwt.run())
    for _ in range(5):
        await asyncio.sleep(0)
    pending = list(jwt._under_way.values())
    await asyncio.gather(*pending, return_exceptions=True)
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)


async def test_a_token_is_verified_and_then_served_from_memory():
    """WAPI-32: exactly the audience asked for; the second call asks nobody."""
    world, jwt = await serving()
    first = await one(jwt)
    verified = verify_jwt_svid(first.token, lambda _: world.server.bundle(), audience=AUDIENCE, now=world.clock.now())
    assert (str(verified.spiffe_id), verified.audience) == ("spiffe://example.org/web", AUDIENCE)
    assert (await one(jwt)).token == first.token
    assert len(world.server.jwt_asked) == 1


async def test_the_order_of_audiences_means_nothing_and_their_set_everything():
    _world, jwt = await serving()
    both = await one(jwt, ("b", "a"))
    assert (await one(jwt, ("a", "b"))).token == both.token
    assert (await one(jwt, ("a",))).token != both.token


async def test_callers_at_the_same_moment_share_one_request():
    world, jwt = await serving()
    tokens = await asyncio.gather(*(one(jwt) for _ in range(50)))
    assert len({svid.token for svid in tokens}) == 1
    assert len(world.server.jwt_asked) == 1


async def test_a_caller_that_leaves_does_not_cancel_the_others_request():
    world, jwt = await serving()
    world.server.gate = asyncio.Event()
    leaver, stayer = asyncio.ensure_future(one(jwt)), asyncio.ensure_future(one(jwt))
    await asyncio.sleep(0.01)
    leaver.cancel()
    world.server.gate.set()
    assert (await stayer).token
    assert len(world.server.jwt_asked) == 1


async def test_callers_who_ask_for_ever_new_audiences_and_leave_leave_no_queue_behind():
    """S53: otherwise one user fills memory, and everybody else's first token waits behind requests nobody waits for."""
    world, jwt = await serving()
    world.server.gate = asyncio.Event()
    stayer = asyncio.ensure_future(one(jwt, ("first",)))
    for number in range(10 * REQUESTS_AT_ONCE):
        leaver = asyncio.ensure_future(one(jwt, (f"flood-{number}",)))
        for _ in range(3):
            await asyncio.sleep(0)
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
    assert len(jwt._tasks) <= REQUESTS_AT_ONCE
    last = asyncio.ensure_future(one(jwt, ("flood-7",)))  # asked for once more by somebody who stays
    await asyncio.sleep(0)
    world.server.gate.set()
    assert (await stayer).token
    assert (await last).token
    assert len(world.server.jwt_asked) <= REQUESTS_AT_ONCE + 1
    assert not jwt._queued
    assert not jwt._callers


async def test_past_half_its_life_a_token_is_replaced_when_asked_for():
    world, jwt = await serving()
    first = await one(jwt)
    world.clock.advance(149)
    assert (await one(jwt)).token == first.token
    world.clock.advance(2)
    assert (await one(jwt)).token != first.token


async def test_a_used_token_is_replaced_ahead_and_an_unused_one_is_not():
    world, jwt = await serving()
    first = await one(jwt)
    await one(jwt, ("never again",))
    await one(jwt)  # used since it came
    world.clock.advance(151)
    await refresh_due(world, jwt)
    assert [audience for _, audience in world.server.jwt_asked].count(AUDIENCE) == 2
    assert [audience for _, audience in world.server.jwt_asked].count(("never again",)) == 1
    asked = len(world.server.jwt_asked)
    assert (await one(jwt)).token != first.token
    assert len(world.server.jwt_asked) == asked


async def looks_of(world, jwt):
    """How often the refresher looks at the clock while everybody else gets ten turns; it is stopped at a thousand."""
    looks, monotonic = 0, world.clock.monotonic

    def counted():
        nonlocal looks
        looks += 1
        if looks > 1000:
            raise AssertionError("the refresher never rests")
        return monotonic()

    world.clock.monotonic = counted
    runner = asyncio.ensure_future(jwt.run())
    for _ in range(10):
        await asyncio.sleep(0)
    world.clock.monotonic = monotonic
    return looks, runner


async def test_an_agent_that_was_evicted_rests_while_a_token_is_due_and_refreshes_it_once_it_is_back():
    """R40, A19: what is due cannot be had by an agent that is no member; it must not keep the loop from everybody."""
    world, jwt = await serving()
    first = await one(jwt)
    await one(jwt)  # used since it came: due at half of its life
    world.membership.refused(Refusal.AGENT_NOT_ATTESTED, world.membership.session.generation)
    assert not world.membership.session.is_member
    world.clock.advance(151)
    looks, runner = await looks_of(world, jwt)
    assert looks < 20
    world.server.tokens["t2"] = None
    world.token.token = "t2"
    await world.membership.advance()
    async with asyncio.timeout(10):
        while not jwt._under_way:
            await asyncio.sleep(0)
    await asyncio.gather(*jwt._under_way.values())
    asked = len(world.server.jwt_asked)
    assert (await one(jwt)).token != first.token
    assert len(world.server.jwt_asked) == asked
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)


async def test_while_the_server_is_away_a_token_is_served_until_it_ends():
    """N-A-26, N-A-27: cached tokens go on; a new audience is Unavailable; past its end nothing is served."""
    world, jwt = await serving()
    first = await one(jwt)
    world.clock.advance(200)
    world.server.troubles_of["new_jwt_svid"] = Unavailable("the server is away")
    assert (await one(jwt)).token == first.token
    world.server.troubles_of["new_jwt_svid"] = Unavailable("the server is away")
    with pytest.raises(Unavailable, match="could not fetch JWT-SVID: the server is away"):
        await one(jwt, ("new",))
    world.clock.advance(101)
    world.server.troubles_of["new_jwt_svid"] = Unavailable("the server is away")
    with pytest.raises(Unavailable, match="could not fetch"):
        await one(jwt)
    assert (await one(jwt)).token != first.token


async def test_after_a_clock_jump_no_ended_token_is_served():
    """R18: a wall clock set forward ends the token; one set back does not lengthen it."""
    world, jwt = await serving()
    first = await one(jwt)
    world.clock.jump(301)
    assert (await one(jwt)).token != first.token
    second = await one(jwt)
    world.clock.jump(-3600)
    world.clock.advance(301)
    world.server.troubles_of["new_jwt_svid"] = Unavailable("the server is away")
    with pytest.raises(Unavailable):
        await one(jwt)
    assert second.expires_at


async def test_a_tainted_keys_tokens_are_dropped_at_once():
    world, jwt = await serving()
    first = await one(jwt)
    world.server.new_jwt_key("jwt-2")
    world.server.taint_key("jwt-1")
    await world.sync.once()
    assert len(jwt) == 0
    second = await one(jwt)
    assert second.token != first.token


async def test_a_token_that_was_signed_before_its_key_was_tainted_is_not_held():
    """It crossed the sync that told of the taint: whoever waited gets it, the next one a new one."""
    world, jwt = await serving()
    world.server.taint_key("jwt-1")
    await world.sync.once()
    first = await one(jwt)
    assert len(jwt) == 0
    world.server.new_jwt_key("jwt-2")
    await world.sync.once()
    assert (await one(jwt)).token != first.token
    assert len(jwt) == 1


async def test_a_token_of_a_key_newer_than_the_bundle_is_checked_with_the_newest_bundle():
    world, jwt = await serving()
    world.server.new_jwt_key("jwt-2")
    svid = await one(jwt)
    assert svid.token
    assert "fetch_bundle" in world.server.calls[-1:]
    world.server.new_jwt_key("jwt-3", hidden=True)
    with pytest.raises(Unavailable, match="names no JWT authority"):
        await one(jwt, ("other",))


WRONG = {
    "another ID": {"sub": "spiffe://example.org/admin"},
    "another audience besides": {"aud": [*AUDIENCE, "more"]},
    "another audience": {"aud": ["other"]},
    "expired": {"exp": 1},
    "another end": {"exp": 4102444800},
}


@pytest.mark.parametrize("claims", WRONG.values(), ids=WRONG)
async def test_a_wrong_token_is_refused_and_the_old_one_stays(claims):
    """R42: a wrong answer never replaces a good token."""
    world, jwt = await serving()
    first = await one(jwt)
    world.clock.advance(151)
    world.server.spoil_token = claims
    assert (await one(jwt)).token == first.token
    world.server.spoil_token = claims
    with pytest.raises(Unavailable, match="could not fetch"):
        await one(jwt, ("x",))


async def test_one_token_for_each_identity_or_for_the_one_asked_for():
    """WAPI-33: all of them; WAPI-36, N-A-15: anything else looks the same."""
    other = make_entry(id="entry-2", spiffe_id=SpiffeId.parse("spiffe://example.org/other"), hint="second")
    _world, jwt = await serving(make_entry(), other)
    everything = await jwt.jwt_svids(UID, AUDIENCE, None)
    assert [str(svid.spiffe_id) for svid in everything] == ["spiffe://example.org/web", "spiffe://example.org/other"]
    assert [svid.hint for svid in everything] == ["", "second"]
    assert (await one(jwt, requested=other.spiffe_id)).spiffe_id == other.spiffe_id
    texts = set()
    for text in ("spiffe://example.org/neighbour", "spiffe://fed.test/web", "spiffe://example.org/none"):
        with pytest.raises(NoIdentityIssued) as refusal:
            await jwt.jwt_svids(UID, AUDIENCE, SpiffeId.parse(text))
        texts.add(refusal.value.public)
    assert texts == {"no identity issued"}
    with pytest.raises(NoIdentityIssued):
        await jwt.jwt_svids(selectors("unix:uid:0"), AUDIENCE, None)


async def test_a_withdrawn_or_renamed_entry_is_served_no_token():
    world, jwt = await serving()
    await one(jwt)
    renamed = make_entry(spiffe_id=SpiffeId.parse("spiffe://example.org/renamed"), revision_number=1)
    world.server.publish(renamed)
    await world.sync.once()
    assert str((await one(jwt)).spiffe_id) == "spiffe://example.org/renamed"
    world.server.remove("entry-1")
    await world.sync.once()
    with pytest.raises(NoIdentityIssued):
        await one(jwt)


async def test_an_entry_the_server_no_longer_knows_is_no_identity():
    world, jwt = await serving()
    world.server.troubles_of["new_jwt_svid"] = NotFound("entry not found or not authorized")
    with pytest.raises(NoIdentityIssued):
        await one(jwt)


async def test_tokens_with_a_jti_are_never_shared():
    """spire_features 15: jwt_svid_include_jti asks for a token of its own for each call."""
    _world, jwt = await serving(make_entry(jwt_svid_include_jti=True))
    assert (await one(jwt)).token != (await one(jwt)).token
    assert len(jwt) == 0


async def test_a_flood_of_audiences_pushes_out_only_its_own_tokens():
    """The cache is bounded for each entry and in all."""
    other = make_entry(id="entry-2", spiffe_id=SpiffeId.parse("spiffe://example.org/other"))
    world, jwt = await serving(make_entry(), other, most=MOST_PER_ENTRY + 1)
    quiet = await one(jwt, requested=other.spiffe_id)
    for number in range(2 * MOST_PER_ENTRY):
        await one(jwt, (f"flood-{number}",), make_entry().spiffe_id)
    assert len(jwt) == MOST_PER_ENTRY + 1
    asked = len(world.server.jwt_asked)
    assert (await one(jwt, requested=other.spiffe_id)).token == quiet.token
    assert len(world.server.jwt_asked) == asked


async def test_a_banned_agent_forgets_every_token():
    """A19: nothing is served any more, and nothing is kept."""
    world, jwt = await serving()
    await one(jwt)
    world.server.ban()
    with pytest.raises(Unavailable):
        await one(jwt, ("new",))
    assert len(jwt) == 0
    with pytest.raises(NoIdentityIssued):
        await one(jwt)
