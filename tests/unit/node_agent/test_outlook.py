"""What an agent says it waits for, and when it acts next, in each state (issue 4, item 8; R16, R20 to R23)."""

import pytest

from node_agent.domain.health import Facts, report_of
from node_agent.domain.outlook import Outlook, outlook_of
from node_agent.domain.standing import Phase, Session
from spiffe_core.health import Condition

MEMBER = Session(phase=Phase.JOINED, renew_at=1800.0, expires_at=3600.0, why="")
STORIES = {
    "banned": (Session(phase=Phase.REJECTED), "the ban to be lifted", None),
    "new": (Session(), "accept this node's attestation", 0.0),
    "attesting": (Session(busy=True), "accept this node's attestation", None),
    "token used": (
        Session(retry_at=580.0, advice="a new join token is needed: run"),
        "a new join token is needed",
        480.0,
    ),
    "well": (MEMBER, "due for renewal", 1700.0),
    "renewing": (
        Session(phase=Phase.RENEWING, retry_at=145.0, expires_at=3600.0, why="away"),
        "renew the agent's own SVID",
        45.0,
    ),
    "unproven, never": (
        Session(phase=Phase.JOINED, renew_at=1800.0, expires_at=3600.0, doubt_since=50.0),
        'rebootstrap_mode = "auto"',
        1700.0,
    ),
    "unproven, waiting": (
        Session(phase=Phase.JOINED, renew_at=1800.0, expires_at=3600.0, doubt_since=50.0, patience=600.0),
        "the end of rebootstrap_delay",
        550.0,
    ),
    "unproven, bootstrapping": (
        Session(phase=Phase.RENEWING, retry_at=130.0, expires_at=3600.0, doubt_since=50.0, patience=10.0),
        "or trust_bundle_path proves",
        30.0,
    ),
}


@pytest.mark.parametrize("name", STORIES)
def test_each_state_says_what_ends_it_and_when_it_acts(name):
    session, text, seconds = STORIES[name]
    outlook = outlook_of(session, 100.0)
    assert text in outlook.waits_for
    assert outlook.seconds == seconds


def test_an_attempt_that_is_overdue_is_due_now():
    assert outlook_of(Session(retry_at=5.0), 100.0) == Outlook("the server to accept this node's attestation", 0.0)


WELL = Facts(phase="joined", member=True, ready=True, in_touch=True, runway=1000.0, waits_for="renewal")


def part(name, **facts):
    from dataclasses import replace

    return next(one for one in report_of(replace(WELL, **facts)).parts if one.name == name)


def test_a_well_agent_shows_when_it_acts_next():
    shown = part("agent.svid", acts_in=1700.4)
    assert shown.condition is Condition.OK
    assert (shown.detail["waits_for"], shown.detail["next_try_seconds"]) == ("renewal", 1700)
    assert part("agent.state").condition is Condition.OK


def test_a_failing_renewal_is_shown_before_it_costs_anything():
    """R20: degraded, and ready still."""
    shown = part("agent.svid", phase="renewing", why="could not renew: away", acts_in=12.0)
    assert (shown.condition, shown.trouble) == (Condition.DEGRADED, "could not renew: away")


def test_a_server_that_nothing_proves_is_shown_with_its_age():
    """R23."""
    shown = part("agent.svid", doubt=33.3)
    assert shown.condition is Condition.DEGRADED
    assert shown.detail["server_unproven_seconds"] == 33


def test_a_sync_that_failed_says_why_and_when_it_is_tried_again():
    shown = part(
        "agent.sync", in_touch=False, sync_trouble="cannot reach the server", syncs_in=44.6, synced_before=100.0
    )
    assert shown.condition is Condition.DEGRADED
    assert "cannot reach the server" in shown.trouble
    assert shown.detail == {"last_sync_seconds": 100, "next_try_seconds": 45}


def test_an_agent_that_has_read_nothing_yet_says_why():
    """R19: after a start with a clock that is behind, for example."""
    shown = part("agent", ready=False, sync_trouble="compare the clocks of both machines")
    assert shown.condition is Condition.FAILED
    assert "compare the clocks" in shown.trouble


def test_state_that_could_not_be_stored_is_shown_and_takes_nothing_away():
    """R11, R13."""
    shown = part("agent.state", unsaved="no space left on device")
    assert shown.condition is Condition.DEGRADED
    assert "no space left" in shown.trouble


def test_attestors_that_cannot_ask_are_named_and_take_nothing_away():
    """Fewer selectors never match more: the agent stays ready."""
    assert part("agent.attestors").condition is Condition.OK
    shown = part("agent.attestors", attestors=(("k8s", "the kubelet refuses the agent (403)"), ("docker", "away")))
    assert shown.condition is Condition.DEGRADED
    assert "k8s: the kubelet refuses the agent (403); docker: away; entries that need" in shown.trouble
