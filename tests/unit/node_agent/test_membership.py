"""Joining, renewing, being refused: the service around the session (A18, A19, R3, R10, R11, R42 to R44)."""

import logging
from dataclasses import replace

import pytest

from node_agent.domain.standing import Phase
from spiffe_core.bundle import TrustBundle
from spiffe_core.crypto.csr import parse_csr
from spiffe_core.crypto.keys import from_pkcs8, key_digest
from spiffe_core.errors import ConfigError, Reason, Refusal, Unavailable, Unbelieved, VerificationFailed
from tests.builders import TD
from tests.doubles.simulated_server import AGENT
from tests.unit.node_agent.conftest import HandedToken, make_world

HALF = 1800


async def joined(**options):
    world = make_world(**options)
    await world.membership.advance()
    assert world.membership.session.phase is Phase.JOINED
    return world


async def test_an_agent_joins_and_stores_what_it_got(world):
    await world.membership.advance()
    assert str(world.node.state.svid.spiffe_id) == AGENT
    assert world.disk.saved[-1] == world.node.state
    assert world.node.state.pending_key is None
    assert world.server.calls == ["attest", "identity_changed"]


async def test_the_key_is_stored_before_it_is_sent(world):
    """A18: otherwise a lost reply burns the token."""
    seen = []
    attest = world.server.attest

    async def watching(prover, csr):
        stored = world.disk.saved[-1].pending_key
        seen.append(key_digest(from_pkcs8(stored).public_key()) == parse_csr(csr).key_digest)
        return await attest(prover, csr)

    world.server.attest = watching
    await world.membership.advance()
    assert seen == [True]


async def test_a_lost_reply_is_retried_with_the_same_key():
    """A18: the token is bound to the key, so the second attempt is the first again."""
    world = make_world()
    world.server.troubles_of["attest reply"] = Unavailable("the connection broke")
    await world.membership.advance()
    assert world.membership.session.phase is Phase.UNJOINED
    world.clock.advance(6)
    await world.membership.advance()
    assert world.membership.session.phase is Phase.JOINED


async def test_a_lost_reply_is_survived_over_a_restart():
    """A18: the key is on disk, not only in memory."""
    first = make_world()
    first.server.troubles_of["attest reply"] = Unavailable("the connection broke")
    await first.membership.advance()
    second = make_world(state=first.disk.saved[-1], clock=first.clock, server=first.server)
    await second.membership.advance()
    assert second.membership.session.phase is Phase.JOINED


async def test_a_key_that_cannot_be_stored_is_not_sent(world):
    """R11: a full disk must not burn the token."""
    world.disk.troubles.append(Unavailable("no space left on device"))
    await world.membership.advance()
    assert world.server.calls == []
    world.clock.advance(6)
    await world.membership.advance()
    assert world.membership.session.phase is Phase.JOINED


async def test_trouble_with_the_disk_is_not_blamed_on_the_token(world, caplog):
    """R13: the message names the disk, and does not send the operator for a new token."""
    world.disk.troubles.append(ConfigError("/state could not be written: read-only file system"))
    await world.membership.advance()
    assert "read-only file system" in caplog.text
    assert "join token" not in caplog.text


async def test_a_used_token_leaves_the_agent_up_and_says_what_to_do(caplog):
    """R22: SPIRE's agent exits here; ours says which command to run."""
    world = make_world(token=HandedToken("used"))
    await world.membership.advance()
    assert world.membership.session.phase is Phase.UNJOINED
    assert not world.membership.session.is_member
    grave = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "a new join token is needed" in grave[0].getMessage()
    assert "already been used" in grave[0].getMessage()


async def test_without_a_token_it_says_so_and_stays_up(caplog):
    world = make_world(token=HandedToken(""))
    await world.membership.advance()
    assert "no join token was given" in caplog.text


async def test_a_new_token_is_taken_without_waiting_for_the_backoff():
    """R22: the operator puts a new token down; no restart, no eight minutes."""
    world = make_world(token=HandedToken("used"))
    await world.membership.advance()
    world.token.token = "t1"
    await world.membership.advance()
    assert world.membership.session.phase is Phase.JOINED


async def test_a_refused_token_is_not_hammered():
    """R19: the server sees an attempt per back-off, not per look."""
    world = make_world(token=HandedToken("used"))
    for _ in range(60):
        await world.membership.advance()
        world.clock.advance(1)
    assert world.server.calls.count("attest") < 8


async def test_it_renews_at_half_life_with_a_new_key():
    world = await joined()
    before = world.node.state.svid
    world.clock.advance(HALF - 1)
    await world.membership.advance()
    assert world.node.state.svid is before
    world.clock.advance(2)
    await world.membership.advance()
    after = world.node.state.svid
    assert after.not_after > before.not_after
    assert after.key != before.key
    assert world.server.calls[-2:] == ["renew", "identity_changed"]
    assert world.disk.saved[-1].svid == after


async def test_half_life_counts_from_issue_not_from_the_backdated_start():
    """An SVID of twelve seconds is renewed after six, not after one."""
    world = await joined(agent_ttl=12)
    world.clock.advance(5.5)
    await world.membership.advance()
    assert "renew" not in world.server.calls
    world.clock.advance(0.6)
    await world.membership.advance()
    assert "renew" in world.server.calls


async def test_a_reattestable_agent_attests_anew_at_half_life():
    world = await joined(reattestable=True)
    world.clock.advance(HALF + 1)
    await world.membership.advance()
    assert world.server.calls.count("attest") == 2
    assert "renew" not in world.server.calls


async def test_the_old_svid_is_used_until_the_new_one_is_stored():
    """R3, R11: key and certificate change together, and only after the disk has them."""
    world = await joined()
    before = world.node.state.svid
    world.disk.troubles.append(Unavailable("no space left on device"))
    world.clock.advance(HALF + 1)
    await world.membership.advance()
    assert world.node.state.svid is before
    assert world.membership.session.is_member
    world.clock.advance(10)
    await world.membership.advance()
    assert world.node.state.svid is not before


async def test_a_disk_that_stays_full_does_not_cost_the_membership():
    """R11: shortly before the end the new SVID is used from memory, and stored when there is room."""
    world = await joined()
    world.disk.troubles.extend(Unavailable("no space left on device") for _ in range(500))
    for _ in range(80):
        world.clock.advance(60)
        await world.membership.advance()
    assert world.membership.session.is_member
    assert world.node.state.svid.not_after > world.clock.now()
    assert world.node.unsaved
    world.disk.troubles.clear()
    await world.membership.advance()
    assert world.disk.saved[-1] == world.node.state


WRONG = {
    "another ID": {"uris": ("spiffe://example.org/spire/agent/join_token/other",)},
    "a workload's ID": {"uris": ("spiffe://example.org/web",)},
    "expired": {"not_after": None},
    "not a leaf": {"ca": True},
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_certificate_on_renewal_is_refused_and_the_old_one_kept(name):
    """R42."""
    world = await joined()
    before = world.node.state.svid
    world.clock.advance(HALF + 1)
    spoil = dict(WRONG[name])
    if name == "expired":
        spoil["not_after"] = world.clock.now()
    world.server.spoil_next.append(spoil)
    await world.membership.advance()
    assert world.node.state.svid is before
    assert world.membership.session.is_member


@pytest.mark.parametrize(
    "trouble",
    [
        Unbelieved("the server is of another year", Reason.NOT_YET_VALID),
        VerificationFailed("the answer is of another year", Reason.NOT_YET_VALID),
    ],
    ids=["the server", "its answer"],
)
async def test_why_nobody_was_believed_is_known_until_the_next_answer(world, trouble):
    """R19: a kind of failure, whatever its words."""
    world.server.troubles_of["attest"] = trouble
    await world.membership.advance()
    session = world.membership.session
    assert (session.phase, session.reason) == (Phase.UNJOINED, Reason.NOT_YET_VALID)
    assert "of another year" in session.why
    world.server.troubles_of["attest"] = Unavailable("the server is away")
    world.clock.advance(6)
    await world.membership.advance()
    assert (world.membership.session.failures, world.membership.session.reason) == (2, None)


async def test_a_wrong_certificate_on_joining_is_refused(caplog):
    """R42: the agent may be given any agent ID, and nothing else."""
    world = make_world()
    world.server.spoil_next.append({"uris": ("spiffe://example.org/web",)})
    await world.membership.advance()
    assert world.membership.session.phase is Phase.UNJOINED
    assert "asked for was spiffe://example.org/spire/agent/..." in caplog.text
    assert "join token is needed" not in caplog.text


async def test_a_restart_goes_on_with_the_stored_svid():
    """R43: no attestation, no call at all."""
    first = await joined()
    world = make_world(state=first.disk.saved[-1], clock=first.clock, server=first.server)
    first.server.calls.clear()
    await world.membership.advance()
    assert world.membership.session.phase is Phase.JOINED
    assert first.server.calls == []


async def test_a_restart_keeps_the_planned_renewal():
    """The jitter is drawn once per SVID and stored with the plan."""
    first = await joined(draw=lambda: -1.0)
    world = make_world(state=first.disk.saved[-1], clock=first.clock, server=first.server, draw=lambda: 1.0)
    first.clock.advance(HALF * 0.9 + 1)
    await world.membership.advance()
    assert first.server.calls.count("renew") == 1


async def test_a_restart_after_the_svid_ended_attests_anew():
    first = await joined(reattestable=True)
    first.clock.advance(4000)
    world = make_world(state=first.disk.saved[-1], clock=first.clock, server=first.server)
    assert world.membership.session.phase is Phase.UNJOINED
    await world.membership.advance()
    assert first.server.calls.count("attest") == 2


async def test_a_ban_forgets_all_at_once_and_stays_up(caplog):
    """A19, R44: keys leave memory before anything is awaited, then the disk."""
    world = await joined()
    world.membership.refused(Refusal.AGENT_BANNED, 0)
    assert world.node.state.svid is None
    assert world.workloads.banned
    assert world.membership.session.phase is Phase.REJECTED
    await world.membership.advance()
    assert world.disk.cleared >= 1
    assert "banned" in caplog.text


async def test_a_ban_during_a_renewal_wins():
    """A19: the renewal that ends after the ban must not bring the identity back."""
    world = await joined()
    renew = world.server.renew

    async def banned_meanwhile(csr):
        chain = await renew(csr)
        world.membership.refused(Refusal.AGENT_BANNED, 0)
        return chain

    world.server.renew = banned_meanwhile
    world.clock.advance(HALF + 1)
    saves = len(world.disk.saved)
    await world.membership.advance()
    await world.membership.advance()
    assert world.node.state.svid is None
    assert len(world.disk.saved) == saves
    assert world.disk.cleared >= 1


async def test_a_ban_deletes_the_stored_keys_even_if_the_disk_refuses_at_first():
    world = await joined()
    clear, failures = world.disk.clear, [Unavailable("input/output error"), Unavailable("input/output error")]

    def stubborn():
        if failures:
            raise failures.pop()
        clear()

    world.disk.clear = stubborn
    world.membership.refused(Refusal.AGENT_BANNED, 0)
    for _ in range(4):
        await world.membership.advance()
    assert world.disk.cleared >= 1


async def test_a_banned_agent_calls_nobody():
    world = await joined()
    world.membership.refused(Refusal.AGENT_BANNED, 0)
    world.server.calls.clear()
    for _ in range(10):
        world.clock.advance(3600)
        await world.membership.advance()
    assert world.server.calls == []


async def test_a_ban_in_answer_to_the_renewal_counts():
    world = await joined()
    world.server.ban()
    world.clock.advance(HALF + 1)
    await world.membership.advance()
    assert world.membership.session.phase is Phase.REJECTED
    assert world.disk.cleared >= 1


async def test_an_evicted_agent_keeps_its_keys_and_joins_with_a_new_token():
    """A19, R44: evicted can come back."""
    world = await joined()
    world.server.evict()
    world.server.tokens["t2"] = None
    kept = world.node.state.svid
    world.membership.refused(Refusal.AGENT_NOT_ATTESTED, 1)
    world.clock.advance(5)
    await world.membership.advance()
    assert world.node.state.svid is kept
    assert world.disk.cleared == 0
    world.token.token = "t2"
    await world.membership.advance()
    assert world.membership.session.phase is Phase.JOINED


async def test_a_newer_bundle_is_stored():
    world = await joined()
    world.server.rotate()
    await world.membership.accept_bundle(world.server.bundle())
    assert world.disk.saved[-1].bundle == world.server.bundle()


async def test_the_same_bundle_is_not_stored_again():
    """A sync every five seconds must not write every five seconds."""
    world = await joined()
    saves = len(world.disk.saved)
    await world.membership.accept_bundle(world.server.bundle())
    assert len(world.disk.saved) == saves


async def test_an_empty_bundle_is_refused_and_the_old_one_kept():
    world = await joined()
    kept = world.node.state.bundle
    with pytest.raises(VerificationFailed):
        await world.membership.accept_bundle(TrustBundle(TD, sequence=99))
    assert world.node.state.bundle is kept


async def test_a_tainted_authority_renews_the_own_svid_now():
    world = await joined()
    old = world.server.ca
    world.server.rotate()
    world.server.taint(old)
    await world.membership.accept_bundle(world.server.bundle())
    await world.membership.advance()
    assert "renew" in world.server.calls
    world.server.calls.clear()
    await world.membership.accept_bundle(replace(world.server.bundle(), sequence=50))
    await world.membership.advance()
    assert "renew" not in world.server.calls


async def test_an_own_svid_that_was_signed_before_its_authority_was_tainted_is_renewed_soon():
    """It crossed the sync that told of the taint; asked for again every few seconds, not at once and not at half-life."""
    world = await joined()
    late = world.server.ca
    world.server.taint(late)
    await world.membership.accept_bundle(world.server.bundle())
    await world.membership.advance()
    assert world.server.calls.count("renew") == 1
    await world.membership.advance()
    assert world.server.calls.count("renew") == 1
    world.server.rotate()
    await world.membership.accept_bundle(world.server.bundle())
    world.clock.advance(6)
    await world.membership.advance()
    assert world.server.calls.count("renew") >= 2
    calls = world.server.calls.count("renew")
    world.clock.advance(60)
    await world.membership.advance()
    assert world.server.calls.count("renew") == calls


async def test_a_renewal_the_server_has_no_record_for_means_attesting_anew():
    world = await joined(reattestable=False)
    world.server.evict()
    world.server.tokens["t2"] = None
    world.token.token = "t2"
    world.clock.advance(HALF + 1)
    await world.membership.advance()
    assert world.membership.session.phase is Phase.JOINED
    assert world.server.calls.count("attest") == 2
