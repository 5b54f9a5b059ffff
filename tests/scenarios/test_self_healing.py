"""Agents that get out of trouble by themselves, as real processes under a shifted clock (R17, R19 to R23, R43).

In each story the agent's process is the same at the end as at the beginning.
"""

from contextlib import contextmanager

import pytest

from tests.doubles.shifted_clock import ShiftedStack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150, func_only=True)]
AUTO = 'rebootstrap_mode = "auto"\nrebootstrap_delay = "2s"\n'


@contextmanager
def story(**options):
    """A stack whose agent must not have been started again, nor have ended, by the end of the story."""
    with ShiftedStack(**options) as stack:
        stack.begin()
        agent = stack.agent
        yield stack
        assert stack.agent is agent
        assert agent.process.poll() is None, agent.tail()


def test_a_server_that_is_away_for_longer_and_longer():
    """R20, R21, R22, R23: 60 % of a life, longer than workloads' lives and the agent's, longer than the authority's."""
    with story(pop=True, agent=AUTO) as stack:
        first = stack.svid()

        stack.server.stop()
        stack.move_all(minutes=36)
        assert stack.svid() == first
        stack.until(lambda: stack.health()["agent.sync"]["state"] == "degraded")
        stack.until(lambda: "next_try_seconds" in stack.health()["agent.sync"])
        stack.start_server()
        second = stack.until(lambda: stack.svid() if stack.svid() != first else None, seconds=30)
        assert second.not_valid_after_utc > first.not_valid_after_utc

        stack.server.stop()
        stack.move_all(minutes=90)
        stack.until(lambda: stack.svid() is None)
        assert stack.bundles()
        stack.until(lambda: stack.health()["agent.svid"]["phase"] == "unjoined")
        stack.until(lambda: "cannot reach the server" in stack.health()["agent.svid"]["trouble"])
        assert stack.health()["agent.svid"]["waits_for"] == "the server to accept this node's attestation"
        stack.start_server()
        third = stack.until(stack.svid)
        assert third.not_valid_before_utc > second.not_valid_after_utc
        roots = stack.bundles()

        stack.server.stop()
        stack.move_all(hours=50)
        stack.start_server()
        stack.until(lambda: "server_unproven_seconds" in stack.health()["agent.svid"])
        assert stack.bundles() == roots
        stack.write_bundle()
        assert stack.until(stack.svid).not_valid_before_utc > third.not_valid_after_utc
        assert stack.bundles() != roots
        stack.until(lambda: stack.health()["agent.svid"]["state"] == "ok")
        fourth = stack.svid()

        stack.move_all(hours=5)  # a machine that slept: all SVIDs and the server's own certificate are over at once
        assert stack.until(stack.svid).not_valid_before_utc > fourth.not_valid_after_utc


def test_a_join_token_agent_waits_for_a_new_token_and_says_so():
    """R22: it stays up, serves bundles, says the command; a new token is used without a restart."""
    with story(pop=False) as stack:
        (old,) = stack.agents()
        stack.server.stop()
        stack.move_all(minutes=90)
        stack.until(lambda: stack.svid() is None)
        stack.start_server()
        stack.until(lambda: "identity-server token generate" in stack.health()["agent.svid"]["waits_for"])
        stack.until(lambda: "next_try_seconds" in stack.health()["agent.svid"])
        assert stack.bundles()
        stack.write_token()
        stack.until(lambda: len(stack.agents()) == 2)
        (new,) = {agent.id.path for agent in stack.agents()} - {old.id.path}
        stack.register_below(new)
        stack.until(stack.svid)


def test_an_agents_clock_that_jumps_a_day_ahead_and_back():
    """R17, R19: with a used token; nothing is asked of an operator but the right time."""
    with story(pop=False) as stack:
        first = stack.svid()
        stack.agent_clock.move(hours=25)
        stack.until(lambda: stack.svid() is None)
        stack.until(lambda: stack.health()["agent.svid"]["phase"] == "unjoined")
        stack.agent_clock.move(hours=-25)
        again = stack.until(stack.svid)
        assert again.not_valid_before_utc >= first.not_valid_before_utc
        stack.until(lambda: stack.health()["agent.svid"]["phase"] == "joined")
        stack.agent_clock.move(hours=-2)
        stack.until(lambda: stack.health()["agent.sync"]["state"] in {"ok", "degraded"})
        assert stack.svid() is not None
        stack.agent_clock.move(hours=2)
        stack.until(lambda: stack.health()["agent.sync"]["state"] == "ok")


def test_an_agent_started_with_a_clock_that_is_behind():
    """R19: minutes behind a server whose certificates are younger, it serves; hours behind, it says why and goes on later."""
    with ShiftedStack(pop=True) as stack:
        stack.begin()
        assert stack.agent.stop() == 0
        stack.agent_clock.move(minutes=-4, seconds=-30)
        stack.start_agent()
        assert stack.until(stack.svid).not_valid_before_utc.timestamp() > stack.agent_clock.now
        assert stack.agent.stop() == 0
        stack.agent_clock.move(hours=-2)
        stack.spawn_agent()
        stack.until(lambda: "compare the clocks of both machines" in stack.agent.tail(1000))
        assert stack.svid() is None
        stack.agent_clock.move(hours=2)
        stack.until(stack.svid)
        assert len(stack.agents()) == 1


def test_an_agent_started_again_goes_on_where_it_was_and_attests_again_where_it_cannot():
    """R43, R8: no attestation with the state of 20 minutes ago; as the same node with a damaged one, which is kept.

    Without a bundle to begin with the damaged file is left alone and named.
    """
    with ShiftedStack(pop=True) as stack:
        stack.begin()
        first = stack.svid()
        (before,) = stack.agents()
        stack.move_all(minutes=20)
        assert stack.agent.stop() == 0
        stack.start_agent()
        assert stack.until(stack.svid).not_valid_after_utc > first.not_valid_after_utc
        (after,) = stack.agents()
        assert after.x509svid_serial_number == before.x509svid_serial_number
        assert "restored the agent's SVID" in stack.agent.tail(1000)

        stack.agent.kill()
        state = stack.folder / "agent-data" / "agent-state.json"
        state.write_bytes(state.read_bytes()[:100])
        config = stack.agent_config.read_text()
        stack.agent_config.write_text(config.replace(f'trust_bundle_path = "{stack.folder}/bundle.pem"\n', ""))
        assert stack.spawn_agent().process.wait(30) == 1
        assert "agent-state.json cannot be read" in stack.agent.tail()
        assert len(state.read_bytes()) == 100
        stack.agent_config.write_text(config)
        stack.start_agent()
        stack.until(stack.svid)
        (after,) = stack.agents()
        assert after.id == before.id
        assert len(state.with_name("agent-state.json.damaged").read_bytes()) == 100
