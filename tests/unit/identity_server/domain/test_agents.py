"""The agent record and the agent check (spire_features section 16.3; R4, S2, N-C-16)."""

from datetime import UTC, datetime, timedelta

import pytest

from identity_server.domain import agents
from identity_server.domain.agents import AttestedAgent, admit
from spiffe_core.errors import InvalidRequest, Refusal
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import SpiffeId, TrustDomain

TD = TrustDomain("example.org")
NOW = datetime(2030, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=30)
ID = SpiffeId(TD, "/spire/agent/join_token/t1")


def agent(**over):
    return AttestedAgent(
        **{"spiffe_id": ID, "attestation_type": "join_token", "serial": "1", "expires_at": 100, **over}
    )


def refusal(record, serial, not_after=LATER):
    admission = admit(record, serial, not_after, NOW)
    assert not admission.promote or admission.admitted
    return admission.refusal


def test_an_expired_certificate_is_refused_first():
    """Also when the agent is banned or unknown: SPIRE's order."""
    for record in (agent(), None, agents.banned(agent())):
        assert refusal(record, "1", NOW) is Refusal.AGENT_EXPIRED


def test_the_second_before_expiry_is_still_good():
    assert refusal(agent(), "1", NOW + timedelta(microseconds=1)) is None


def test_an_unknown_agent_is_not_attested():
    assert refusal(None, "1") is Refusal.AGENT_NOT_ATTESTED


def test_a_banned_agent_is_refused_with_any_serial():
    for serial in ("1", "2", ""):
        assert refusal(agents.banned(agent(new_serial="2")), serial) is Refusal.AGENT_BANNED


def test_the_current_serial_is_let_in_without_a_change():
    admission = admit(agent(new_serial="2"), "1", LATER, NOW)
    assert (admission.admitted, admission.promote) == (True, False)


def test_the_pending_serial_is_let_in_and_promoted():
    """R4: until it is used, the old one is as good."""
    admission = admit(agent(new_serial="2"), "2", LATER, NOW)
    assert (admission.admitted, admission.promote) == (True, True)


def test_any_other_serial_is_not_active():
    for serial in ("3", "", "01", " 1"):
        assert refusal(agent(), serial) is Refusal.AGENT_NOT_ACTIVE


def test_a_missing_pending_serial_never_matches_an_empty_one():
    assert refusal(agent(new_serial=""), "") is Refusal.AGENT_NOT_ACTIVE


def test_renewal_keeps_the_current_serial_and_promotion_replaces_it():
    renewed = agents.renewed(agent(), "2", 200)
    assert (renewed.serial, renewed.expires_at, renewed.new_serial, renewed.new_expires_at) == ("1", 100, "2", 200)
    promoted = agents.promoted(renewed)
    assert (promoted.serial, promoted.expires_at, promoted.new_serial, promoted.new_expires_at) == ("2", 200, "", 0)
    assert refusal(promoted, "1") is Refusal.AGENT_NOT_ACTIVE


def test_a_second_renewal_replaces_the_pending_serial():
    twice = agents.renewed(agents.renewed(agent(), "2", 200), "3", 300)
    assert (twice.serial, twice.new_serial) == ("1", "3")
    assert refusal(twice, "2") is Refusal.AGENT_NOT_ACTIVE


def test_promotion_without_a_pending_serial_changes_nothing():
    record = agent()
    assert agents.promoted(record) is record


def test_a_ban_survives_renewal_and_promotion():
    gone = agents.banned(agent(new_serial="2"))
    assert gone.banned
    assert agents.renewed(gone, "3", 1) is gone
    assert agents.promoted(gone) is gone


def test_attesting_again_replaces_selectors_and_serials_and_keeps_the_version():
    before = agent(new_serial="2", agent_version="1.2.3", selectors=frozenset({Selector("a", "old")}))
    after = agents.attested(
        before,
        spiffe_id=ID,
        attestation_type="x509pop",
        serial="9",
        expires_at=900,
        selectors=frozenset({Selector("a", "new")}),
        can_reattest=True,
    )
    assert after == agent(
        serial="9",
        expires_at=900,
        attestation_type="x509pop",
        selectors=frozenset({Selector("a", "new")}),
        can_reattest=True,
        agent_version="1.2.3",
    )


@pytest.mark.parametrize(("size", "good"), [(254, True), (255, True), (256, False)])
def test_the_version_has_at_most_255_bytes(size, good):
    """S36: exact at n-1, n, n+1; bytes, not characters."""
    text = "é" + "v" * (size - 2)
    if good:
        assert agents.with_version(agent(), text).agent_version == text
    else:
        with pytest.raises(InvalidRequest, match="at most 255 bytes"):
            agents.with_version(agent(), text)


@pytest.mark.parametrize(
    "text",
    [
        "spiffe://example.org",
        "spiffe://example.org/web",
        "spiffe://example.org/spire/server",
        "spiffe://example.org/spire/agent",
        "spiffe://example.org/spire/agents/x",
        "spiffe://other.org/spire/agent/join_token/t",
    ],
)
def test_what_is_not_an_agents_id_is_refused(text):
    """S33: the reserved space is divided on segment boundaries."""
    with pytest.raises(InvalidRequest, match="invalid agent ID") as caught:
        agents.check_agent_id(SpiffeId.parse(text), TD)
    assert caught.value.field == "id"


def test_an_agents_id_is_accepted():
    assert agents.check_agent_id(ID, TD) is ID
