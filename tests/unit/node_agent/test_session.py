"""Playbooks of the agent's life: what happens, and what the agent then does (A19, R18 to R22, R44)."""

import pytest

from node_agent.domain.events import (
    AttemptFailed,
    CredentialChanged,
    Forget,
    Join,
    Obtained,
    Refused,
    Renew,
    Replace,
    Say,
    Tick,
    Trouble,
)
from node_agent.domain.retries import retry_delay
from node_agent.domain.session import step
from node_agent.domain.standing import Phase, Session
from spiffe_core.errors import Refusal

PASSING = AttemptFailed(Trouble.PASSING, "the server is away", 0.0)
USED_TOKEN = AttemptFailed(Trouble.CREDENTIAL, "token used", 0.0, advice="a new join token is needed")
HOUR = Obtained(renew_at=1800.0, expires_at=3600.0, reattestable=False)
REATTESTABLE = Obtained(renew_at=1800.0, expires_at=3600.0, reattestable=True)
RESTORED = Obtained(renew_at=1800.0, expires_at=3600.0, reattestable=False, fresh=False)


def play(*script, session=None):
    """Feed (time, event) pairs; return the session and the commands of the last event, without what is said."""
    session = session or Session()
    commands = ()
    for now, event in script:
        session, commands = step(session, event, now)
    return session, [type(one) for one in commands if not isinstance(one, Say)]


def said(*script):
    session, texts = Session(), []
    for now, event in script:
        session, commands = step(session, event, now)
        texts += [one for one in commands if isinstance(one, Say)]
    return texts


def test_a_new_agent_joins_at_its_first_tick():
    assert play((0, Tick())) == (Session(busy=True), [Join])


def test_one_attempt_at_a_time():
    assert play((0, Tick()), (1, Tick()))[1] == []


def test_a_joined_agent_rests_until_half_life():
    session, commands = play((0, Tick()), (1, HOUR), (1799, Tick()))
    assert (session.phase, commands, session.wake_at) == (Phase.JOINED, [], 1800.0)


def test_at_half_life_it_renews_with_its_own_svid():
    session, commands = play((0, Tick()), (1, HOUR), (1800, Tick()))
    assert (session.phase, commands) == (Phase.RENEWING, [Renew])


def test_a_reattestable_agent_attests_instead_of_renewing():
    """spire_features 16.4: reattestable agents run a whole AttestAgent."""
    session, commands = play((0, Tick()), (1, REATTESTABLE), (1800, Tick()))
    assert (session.phase, commands) == (Phase.RENEWING, [Join])


def test_a_failed_renewal_leaves_the_agent_a_member_and_is_tried_again():
    session, commands = play((0, Tick()), (1, HOUR), (1800, Tick()), (1801, PASSING))
    assert (session.phase, session.is_member, commands) == (Phase.RENEWING, True, [])
    assert session.retry_at == 1806.0
    assert play((1805.9, Tick()), session=session)[1] == []
    assert play((1806, Tick()), session=session)[1] == [Renew]


def test_a_renewed_svid_begins_a_new_generation():
    first, _ = play((0, Tick()), (1, HOUR))
    second, _ = play((1800, Tick()), (1801, Obtained(3600.0, 5400.0, False)), session=first)
    assert (second.phase, second.generation - first.generation, second.failures) == (Phase.JOINED, 1, 0)


def test_short_svids_are_retried_in_time():
    """With an SVID of 12 s the back-off follows the life that is left, not five seconds."""
    short = Obtained(renew_at=6.0, expires_at=12.0, reattestable=False)
    session, _ = play((0, Tick()), (0, short), (6, Tick()), (6.1, PASSING))
    assert session.retry_at == pytest.approx(7.1)


def test_when_the_own_svid_ends_the_agent_attests_anew_and_stays_up():
    """R22: the server was away longer than the agent's SVID lives."""
    session, _ = play((0, Tick()), (1, HOUR), (1800, Tick()), (1801, PASSING))
    session, commands = play((3600, Tick()), session=session)
    assert (session.phase, session.is_member, commands) == (Phase.UNJOINED, False, [Join])


@pytest.mark.parametrize("refusal", [Refusal.AGENT_EXPIRED, Refusal.AGENT_NOT_ATTESTED, Refusal.AGENT_NOT_ACTIVE])
def test_an_evicted_agent_attests_anew_at_once(refusal):
    """A19, R44: nothing is forgotten, and no command ends the process."""
    session, commands = play((0, Tick()), (1, HOUR), (100, Refused(refusal, 1)))
    assert (session.phase, commands) == (Phase.UNJOINED, [Join])


def test_an_evicted_agent_with_a_used_token_says_what_is_needed_and_backs_off():
    script = [(0, Tick()), (1, HOUR), (100, Refused(Refusal.AGENT_NOT_ATTESTED, 1)), (101, USED_TOKEN)]
    session, commands = play(*script)
    assert (session.phase, commands, session.retry_at) == (Phase.UNJOINED, [], 106.0)
    last = said(*script)[-1]
    assert last.grave
    assert "a new join token is needed" in last.text


def test_a_new_token_is_tried_at_once():
    session, _ = play((0, Tick()), (1, USED_TOKEN))
    assert play((1.5, CredentialChanged()), session=session)[1] == [Join]


def test_backoff_grows_and_ends_below_a_minute():
    """R19, R22: no storm of attempts; and back within 60 s of the end of the trouble."""
    assert [retry_delay(n, 0.0) for n in (1, 2, 3)] == [5.0, 7.5, 11.25]
    assert retry_delay(1000, 0.0) == 25.0
    assert retry_delay(1000, 1.0) == pytest.approx(27.5)


def test_attesting_in_vain_makes_no_storm():
    """R19: an agent that joins and is refused at once, again and again, waits in between."""
    session, _ = play((0, Tick()), (1, REATTESTABLE))
    session, commands = play((1.1, Refused(Refusal.AGENT_NOT_ACTIVE, 1)), session=session)
    assert commands == []
    assert session.retry_at == pytest.approx(6.1)


def test_an_agent_restored_from_disk_and_evicted_meanwhile_attests_at_once():
    assert play((0, RESTORED), (0.1, Refused(Refusal.AGENT_NOT_ATTESTED, 1)))[1] == [Join]


def test_must_reattest_changes_the_way_and_keeps_the_membership():
    session, commands = play((0, Tick()), (1, HOUR), (100, Refused(Refusal.AGENT_MUST_REATTEST, 1)))
    assert (session.phase, session.reattestable, commands) == (Phase.RENEWING, True, [Join])


def test_a_renewal_refused_with_must_reattest_attests_at_once():
    refused = AttemptFailed(Trouble.PASSING, "no", 0.0, Refusal.AGENT_MUST_REATTEST)
    assert play((0, Tick()), (1, HOUR), (1800, Tick()), (1801, refused))[1] == [Join]


def test_a_late_refusal_of_a_replaced_svid_is_ignored():
    """A call that began with the old SVID must not undo the new one."""
    session, _ = play((0, Tick()), (1, HOUR), (1800, Tick()), (1801, Obtained(3600.0, 5400.0, False)))
    after, commands = play((1802, Refused(Refusal.AGENT_NOT_ACTIVE, session.generation - 1)), session=session)
    assert (after, commands) == (session, [])


BANNED = Refused(Refusal.AGENT_BANNED, 0)
SITUATIONS = {
    "while it rests": [(0, Tick()), (1, HOUR)],
    "while it renews": [(0, Tick()), (1, HOUR), (1800, Tick())],
    "while it joins": [(0, Tick())],
    "while it waits to join": [(0, Tick()), (1, PASSING)],
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_ban_forgets_everything_whenever_it_comes(name):
    """A19, R44: also when it is about an SVID that was replaced."""
    session, commands = play(*SITUATIONS[name], (2000, BANNED))
    assert (session.phase, commands, session.is_member) == (Phase.REJECTED, [Forget], False)


def test_a_ban_in_answer_to_a_renewal_forgets_everything():
    refused = AttemptFailed(Trouble.PASSING, "no", 0.0, Refusal.AGENT_BANNED)
    assert play((0, Tick()), (1, HOUR), (1800, Tick()), (1801, refused))[1] == [Forget]


@pytest.mark.parametrize("event", [Tick(), HOUR, PASSING, BANNED, Replace("tainted"), CredentialChanged()])
def test_a_banned_agent_does_nothing_more(event):
    """A19: it stays up, red, and never joins by itself."""
    session, _ = play((0, Tick()), (1, HOUR), (2, BANNED))
    assert step(session, event, 10_000.0) == (session, ())
    assert session.wake_at is None


def test_a_tainted_authority_makes_the_renewal_due_now():
    session, commands = play((0, Tick()), (1, HOUR), (10, Replace("tainted")))
    assert (session.phase, commands) == (Phase.RENEWING, [Renew])


def test_replace_does_nothing_to_an_agent_that_is_at_it_already():
    assert play((0, Tick()), (1, HOUR), (1800, Tick()), (1801, Replace("tainted")))[1] == []


def test_wake_at_says_when_a_tick_can_matter():
    waiting, _ = play((0, Tick()), (1, PASSING))
    assert waiting.wake_at == waiting.retry_at == 6.0
    renewing, _ = play((0, Tick()), (1, HOUR), (1800, Tick()))
    assert renewing.wake_at is None
    failed, _ = play((3599, PASSING), session=renewing)
    assert failed.wake_at == min(failed.retry_at, failed.expires_at)


def test_a_refusal_while_unjoined_changes_nothing():
    session, _ = play((0, Tick()), (1, PASSING))
    assert play((2, Refused(Refusal.AGENT_NOT_ATTESTED, 0)), session=session) == (session, [])


def test_refused_renewals_in_a_row_wait_longer_each_time():
    """R19: being told to attest anew does not shorten a back-off that has grown."""
    session, _ = play((0, Tick()), (1, REATTESTABLE), (1800, Tick()), (1801, PASSING), (1806, Tick()))
    refused = AttemptFailed(Trouble.PASSING, "no", 0.0, Refusal.AGENT_NOT_ACTIVE)
    session, commands = play((1807, refused), session=session)
    assert (session.phase, commands, session.retry_at) == (Phase.UNJOINED, [], 1812.0)
