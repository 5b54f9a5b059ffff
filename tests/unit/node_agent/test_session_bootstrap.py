"""Playbooks of a server that nothing proves any more, and of clocks set back (R17 to R19, R21 to R23, A19)."""

import pytest

from node_agent.domain.events import (
    AttemptFailed,
    CredentialChanged,
    Join,
    Obtained,
    Refused,
    Renew,
    Say,
    ServerProven,
    ServerUnproven,
    StillGood,
    Tick,
    Trouble,
)
from node_agent.domain.retries import LONGEST_HOPELESS, LONGEST_RETRY
from node_agent.domain.session import step
from node_agent.domain.standing import Phase, Session
from spiffe_core.errors import Refusal

DAY = 86_400.0
POP = Obtained(renew_at=1800.0, expires_at=3600.0, reattestable=True)
TOKEN = Obtained(renew_at=1800.0, expires_at=3600.0, reattestable=False)
UNPROVEN = ServerUnproven("not proven by the trust bundle")
UNPROVEN_ATTEMPT = AttemptFailed(Trouble.UNPROVEN, "could not join: not proven", 0.0)
AWAY = AttemptFailed(Trouble.PASSING, "the server is away", 0.0)
USED = AttemptFailed(Trouble.CREDENTIAL, "token used", 0.0, advice="a new join token is needed", one_use=True)
REFUSED_EVIDENCE = AttemptFailed(Trouble.CREDENTIAL, "certificate refused", 0.0, advice="look at [attestors.x509pop]")


def play(*script, session=None, patience=600.0):
    """Feed (time, event) pairs; return the session and the commands of the last event, without what is said."""
    session = session or Session(patience=patience)
    commands = ()
    for now, event in script:
        session, commands = step(session, event, now)
    return session, [one for one in commands if not isinstance(one, Say)]


def member(obtained=POP, **options):
    return play((0, Tick()), (1, obtained), **options)[0]


def said(session, now, event):
    return [one for one in step(session, event, now)[1] if isinstance(one, Say)]


# The server's authorities were replaced


def test_a_server_that_is_not_proven_changes_nothing_at_first():
    """R23: workloads keep what they have, the member stays one, no attempt is made."""
    session, commands = play((100, UNPROVEN), session=member())
    assert (session.phase, session.is_member, commands) == (Phase.JOINED, True, [])
    assert (session.doubt_since, session.wake_at) == (100, 700.0)


def test_a_doubt_is_said_once():
    session = member()
    assert "600 s" in said(session, 100, UNPROVEN)[0].text
    assert said(play((100, UNPROVEN), session=session)[0], 105, UNPROVEN) == []


def test_a_doubt_that_lasts_makes_a_reattestable_agent_bootstrap_again():
    """R23: by itself, in the process, while it is a member still."""
    session, commands = play((100, UNPROVEN), (699, UNPROVEN), session=member())
    assert commands == []
    session, commands = play((700, Tick()), session=session)
    assert (session.phase, session.is_member, commands) == (Phase.RENEWING, True, [Join(anew=True)])


def test_the_bootstrap_ends_the_doubt_and_keeps_the_patience():
    session, _ = play((100, UNPROVEN), (700, Tick()), (701, POP), session=member())
    assert (session.phase, session.doubt_since, session.patience, session.generation) == (Phase.JOINED, None, 600.0, 2)


def test_a_server_that_is_proven_in_time_starts_the_delay_anew():
    """SPIRE's rule for rebootstrap_delay: an impostor must hold the server's address for all of it without a gap."""
    session, _ = play((100, UNPROVEN), (600, ServerProven()), (610, UNPROVEN), session=member())
    assert play((1209, Tick()), session=session)[1] == []
    assert play((1210, Tick()), session=session)[1] == [Join(anew=True)]


def test_an_impostor_that_leaves_after_the_delay_costs_one_renewal():
    """What was believed is believed until the bootstrap has worked, so the true server is found again."""
    session, _ = play((100, UNPROVEN), (700, Tick()), (701, UNPROVEN_ATTEMPT), session=member())
    assert session.is_member
    session, _ = play((703, ServerProven()), session=session)
    assert play((750, Tick()), session=session)[1] == [Join(anew=False)]


def test_without_the_operators_leave_it_never_bootstraps_again():
    """rebootstrap_mode = "never": it serves on, says so once, and takes up with a server that is proven."""
    session = member(patience=None)
    assert said(session, 100, UNPROVEN)[0].grave
    session, _ = play((100, UNPROVEN), session=session)
    for now in range(200, 1800, 100):
        session, commands = play((now, Tick()), session=session)
        assert commands == []
    session, commands = play((1800, Tick()), session=session)
    assert commands == [Join(anew=False)]


def test_an_outage_longer_than_every_svid_with_a_new_authority_at_its_end():
    """R22, R23: expired, unproven for long enough, bootstrapped."""
    session, commands = play((1800, Tick()), (1801, AWAY), (3600, Tick()), session=member())
    assert (session.phase, commands) == (Phase.UNJOINED, [Join(anew=False)])
    session, commands = play((DAY, UNPROVEN_ATTEMPT), session=session)
    now, joins = DAY, []
    while not joins or not joins[-1].anew:
        now = session.wake_at
        session, commands = play((now, Tick()), session=session)
        joins += commands
        if not commands[0].anew:
            session, _ = play((now, UNPROVEN_ATTEMPT), session=session)
    assert DAY + 600 <= now <= DAY + 600 + LONGEST_RETRY
    assert play((now + 1, POP), session=session)[0].phase is Phase.JOINED


def test_a_bootstrap_that_finds_nobody_goes_on_within_the_longest_wait():
    session, _ = play((100, UNPROVEN), (3600, Tick()), session=member())
    for n in range(1, 40):
        session, _ = play((4000 + 60 * n, UNPROVEN_ATTEMPT), session=session)
        assert session.retry_at - (4000 + 60 * n) <= LONGEST_RETRY
        session, commands = play((4000 + 60 * n + LONGEST_RETRY, Tick()), session=session)
        assert commands == [Join(anew=True)]


# The same with a join token


def test_a_join_token_is_good_for_once_so_the_agent_waits_for_a_new_one():
    """R22, R23: it stays a member while its SVID lasts and makes no attempt that cannot work."""
    session, _ = play((100, UNPROVEN), session=member(TOKEN))
    assert session.wake_at == session.renew_at
    assert play((701, Tick()), session=session)[1] == []


def test_a_new_token_bootstraps_a_member_at_once_when_the_doubt_has_lasted():
    session, _ = play((100, UNPROVEN), (800, Tick()), session=member(TOKEN))
    session, commands = play((900, CredentialChanged()), session=session)
    assert (session.phase, commands) == (Phase.RENEWING, [Join(anew=True)])


def test_a_new_token_before_that_is_kept_until_the_delay_is_over():
    session, commands = play((100, UNPROVEN), (200, CredentialChanged()), session=member(TOKEN))
    assert commands == []
    assert session.wake_at == 700.0
    assert play((700, Tick()), session=session)[1] == [Join(anew=True)]


def test_a_token_the_server_refused_is_not_tried_again_in_a_bootstrap():
    """The member goes back to renewing, by which it finds the true server should that return."""
    session, _ = play((100, UNPROVEN), (700, CredentialChanged()), session=member(TOKEN))
    session, _ = play((701, USED), session=session)
    assert session.advice == "a new join token is needed"
    assert play((session.wake_at, Tick()), session=session)[1] == [Renew()]


def test_after_its_svid_ended_an_agent_with_a_used_token_says_what_it_needs_and_tries_seldom():
    """R22: the file is looked at every few seconds; the server is not asked about a used token every few seconds."""
    session, commands = play((3600, Tick()), session=member(TOKEN))
    assert commands == [Join()]
    now = 3601
    for _ in range(30):
        session, _ = play((now, USED), session=session)
        now = session.wake_at
        session, commands = play((now, Tick()), session=session)
        assert commands == [Join()]
    assert session.phase is Phase.UNJOINED
    session, _ = play((now, USED), session=session)
    assert session.wake_at - now == LONGEST_HOPELESS
    assert play((now + 1, CredentialChanged()), session=session)[1] == [Join()]


def test_evidence_that_may_be_judged_differently_is_shown_again_within_the_longest_wait():
    """x509pop refused because the server lacks the CA: mended on the server, seen here within a minute."""
    session, _ = play((0, Tick()))
    for now in range(100, 4000, 100):
        session, _ = play((now, REFUSED_EVIDENCE), session=session)
        assert session.wake_at - now <= LONGEST_RETRY
        session, _ = play((session.wake_at, Tick()), session=session)


# Refusals and doubts


def test_a_server_that_refuses_is_a_server_that_is_proven():
    session, _ = play((100, UNPROVEN), (200, Refused(Refusal.AGENT_NOT_ATTESTED, 1)), session=member())
    assert (session.phase, session.doubt_since) == (Phase.UNJOINED, None)
    session, _ = play((1800, Tick()), (1801, UNPROVEN_ATTEMPT), session=member())
    renewal = AttemptFailed(Trouble.PASSING, "no", 0.0, Refusal.AGENT_MUST_REATTEST)
    session, _ = play((session.wake_at, Tick()), (1900, renewal), session=session)
    assert session.doubt_since is None


def test_evidence_refused_in_a_bootstrap_leaves_the_doubt():
    """The one that refused is proven by the configured bundle, not by the believed one."""
    session, _ = play((100, UNPROVEN), (700, Tick()), (701, REFUSED_EVIDENCE), session=member())
    assert session.doubt_since == 100


@pytest.mark.parametrize("patience", [None, 600.0])
def test_a_ban_counts_in_the_middle_of_a_doubt(patience):
    """A19."""
    session, _ = play((100, UNPROVEN), session=member(patience=patience))
    session, _ = play((200, Refused(Refusal.AGENT_BANNED, 0)), session=session)
    assert (session.phase, session.wake_at) == (Phase.REJECTED, None)
    for event in (UNPROVEN, ServerProven(), StillGood(1.0, 2.0), Tick()):
        assert step(session, event, 10 * DAY) == (session, ())


# Clocks


def test_a_membership_that_ended_by_a_wrong_clock_is_taken_up_again_when_the_clock_is_right():
    """R17, R19: also with a join token that is used up, without an attestation."""
    session, _ = play((DAY, Tick()), (DAY + 1, USED), session=member(TOKEN))
    assert session.lapsed
    session, commands = play((DAY + 20, StillGood(DAY + 1800, DAY + 3600)), session=session)
    assert (session.phase, session.generation, commands) == (Phase.JOINED, 1, [])
    assert (session.renew_at, session.expires_at) == (DAY + 1800, DAY + 3600)


def test_an_attempt_under_way_does_not_keep_the_membership_from_being_taken_up():
    session, _ = play((DAY, Tick()), session=member(TOKEN))
    session, commands = play((DAY + 1, StillGood(DAY + 1800, DAY + 3600)), (DAY + 2, USED), session=session)
    assert (session.phase, session.busy, commands) == (Phase.JOINED, False, [])


def test_a_member_whose_clock_was_set_back_goes_on_as_long_as_its_svid_lasts():
    """R18: two hours back, the server away: the SVID is good for two hours more."""
    session, _ = play((1800, Tick()), (1801, AWAY), session=member(TOKEN))
    session, _ = play((3600, StillGood(3600, 10_800)), (3600, Tick()), session=session)
    assert (session.phase, session.expires_at) == (Phase.RENEWING, 10_800)


def test_a_membership_that_the_server_ended_is_not_taken_up_again_by_the_clock():
    """A19: what the server refused stays refused, whatever the clock says."""
    session, _ = play((100, Refused(Refusal.AGENT_NOT_ATTESTED, 1)), (101, USED), session=member(TOKEN))
    after, commands = play((105, StillGood(1800, 3600)), session=session)
    assert (after.phase, commands) == (Phase.UNJOINED, [])


def test_a_laptop_that_slept_for_a_weekend_asks_at_once_when_it_wakes():
    """R17: the line leapt; one attempt, not one for each that was missed."""
    session, commands = play((3 * DAY, Tick()), session=member())
    assert commands == [Join()]
    assert play((3 * DAY + 1, Tick()), session=session)[1] == []


# From any state to service


TROUBLES = {
    "away": AWAY,
    "unproven": UNPROVEN_ATTEMPT,
    "evidence refused": REFUSED_EVIDENCE,
    "evicted": AttemptFailed(Trouble.PASSING, "no", 0.0, Refusal.AGENT_NOT_ATTESTED),
    "superseded": AttemptFailed(Trouble.PASSING, "no", 0.0, Refusal.AGENT_NOT_ACTIVE),
    "must attest": AttemptFailed(Trouble.PASSING, "no", 0.0, Refusal.AGENT_MUST_REATTEST),
}


@pytest.mark.parametrize("name", TROUBLES)
@pytest.mark.parametrize("hours", [0.2, 3, 72])
def test_however_long_a_trouble_lasted_the_next_attempt_is_less_than_a_minute_away(name, hours):
    """R17 to R23: no terminal state but banned, and back within 60 s of the end of the cause."""
    session, now, end = member(), 1800.0, 1800.0 + hours * 3600
    while now < end:
        now += 1
        event = TROUBLES[name] if session.busy else Tick()
        session, _ = play((now, event), session=session)
        if not session.busy:
            assert session.wake_at - now <= 1.1 * LONGEST_RETRY
            now = max(now, session.wake_at)
    assert session.phase in {Phase.RENEWING, Phase.UNJOINED}
