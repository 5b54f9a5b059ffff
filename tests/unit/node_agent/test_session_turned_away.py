"""Playbooks of a proven server that hangs up on the agent's own SVID: it lost the authority behind it (A19, R22, R50)."""

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
    Tick,
    Trouble,
    TurnedAway,
)
from node_agent.domain.outlook import outlook_of
from node_agent.domain.retries import FIRST_RETRY, LONGEST_RETRY
from node_agent.domain.session import step
from node_agent.domain.standing import Phase, Session
from spiffe_core.errors import Refusal

POP = Obtained(renew_at=1800.0, expires_at=3600.0, reattestable=True)
TOKEN = Obtained(renew_at=1800.0, expires_at=3600.0, reattestable=False)
ADVICE = "a new join token is needed"
AWAY = TurnedAway("the server hung up", ADVICE)
RENEWAL = AttemptFailed(Trouble.TURNED_AWAY, "could not renew: the server hung up", 0.0, advice=ADVICE)
USED = AttemptFailed(Trouble.CREDENTIAL, "token used", 0.0, advice=ADVICE, one_use=True)


def play(*script, session=None):
    """Feed (time, event) pairs; return the session and the commands of the last event, without what is said."""
    session, commands = session or Session(), ()
    for now, event in script:
        session, commands = step(session, event, now)
    return session, [one for one in commands if not isinstance(one, Say)]


def member(obtained):
    return play((0, Tick()), (1, obtained))[0]


def said(session, now, event):
    return [one for one in step(session, event, now)[1] if isinstance(one, Say)]


def test_a_server_that_is_only_a_moment_behind_costs_nothing():
    """One of several servers may learn of a new authority later than the one that signs by it."""
    session, commands = play((100, AWAY), (102, AWAY), (103, ServerProven()), session=member(POP))
    assert (session, commands) == (member(POP), [])


def test_an_agent_that_can_prove_itself_again_does_so_and_stays_a_member_meanwhile():
    session, commands = play((100, AWAY), session=member(POP))
    assert (session.phase, session.is_known, commands, session.wake_at) == (Phase.JOINED, False, [], 105.0)
    session, commands = play((105, Tick()), session=session)
    assert (session.is_member, session.is_known, commands) == (True, False, [Join()])
    session, _ = play((106, POP), session=session)
    assert (session.phase, session.is_known, session.generation, session.why) == (Phase.JOINED, True, 2, "")


def test_attempts_that_fail_wait_longer_and_never_longer_than_the_promise():
    """Invariant 8: back within a minute of the end of the trouble, and no storm before it."""
    session, _ = play((100, AWAY), (105, Tick()), session=member(POP))
    now, waits = 105.0, []
    while now < 1000:
        session, _ = play((now, AttemptFailed(Trouble.PASSING, "busy", 0.0)), session=session)
        waits.append(session.retry_at - now)
        now = session.wake_at
        session, commands = play((now, Tick()), session=session)
        assert commands == [Join()]
    assert waits[0] == FIRST_RETRY
    assert waits == sorted(waits)
    assert max(waits) == LONGEST_RETRY


def test_a_used_token_is_not_sent_again_and_what_is_needed_is_said_once():
    """R22: nothing is attempted before the renewal is due; the next look may find that the server takes it again."""
    assert [one.grave for one in said(member(TOKEN), 100, AWAY)] == [True]
    session, commands = play((100, AWAY), (200, Tick()), (300, AWAY), session=member(TOKEN))
    assert (commands, session.phase, session.wake_at) == ([], Phase.JOINED, 1800.0)
    assert said(session, 301, AWAY) == []
    assert ADVICE in outlook_of(session, 300.0).waits_for
    session, _ = play((400, ServerProven()), session=session)
    assert (session.why, session.advice, session.is_known) == ("", "", True)


def test_a_renewal_that_is_turned_away_is_tried_again_and_the_advice_stays():
    session, commands = play((100, AWAY), (1800, Tick()), (1801, RENEWAL), session=member(TOKEN))
    assert (session.phase, session.advice) == (Phase.RENEWING, ADVICE)
    assert session.retry_at == 1801 + FIRST_RETRY
    _, commands = play((session.retry_at, Tick()), session=session)
    assert commands == [Renew()]


def test_a_renewal_may_be_the_first_to_be_turned_away():
    session, _ = play((1800, Tick()), (1801, RENEWAL), session=member(TOKEN))
    assert (session.turned_away_since, session.advice) == (1801, ADVICE)


def test_a_new_token_is_used_at_once_and_one_that_was_used_too_is_put_aside():
    session, commands = play((100, AWAY), (200, CredentialChanged()), session=member(TOKEN))
    assert (session.phase, commands) == (Phase.RENEWING, [Join()])
    session, _ = play((201, USED), session=session)
    assert (session.is_member, session.unused, session.advice) == (True, False, ADVICE)
    assert play((session.retry_at, Tick()), session=session)[1] == [Renew()]
    session, commands = play((250, CredentialChanged()), session=session)
    assert commands == [Join()]
    assert play((251, TOKEN), session=session)[0].is_known


def test_a_server_that_hangs_up_has_proven_itself():
    """The doubt about the server ends: no bootstrap comes of it."""
    session, _ = play((50, ServerUnproven("?")), (100, AWAY), session=member(POP))
    assert session.doubt_since is None


def test_the_end_of_the_svid_and_a_clear_word_of_the_server_end_the_state():
    session, _ = play((100, AWAY), (3600, Tick()), session=member(TOKEN))
    assert (session.phase, session.turned_away_since) == (Phase.UNJOINED, None)
    refused, _ = play((100, AWAY), (110, Refused(Refusal.AGENT_NOT_ATTESTED, 1)), session=member(POP))
    assert (refused.phase, refused.turned_away_since) == (Phase.UNJOINED, None)


def test_an_agent_that_is_no_member_has_nothing_to_be_turned_away_with():
    session, commands = play((0, Tick()), (1, AWAY))
    assert (session.turned_away_since, commands) == (None, [])
