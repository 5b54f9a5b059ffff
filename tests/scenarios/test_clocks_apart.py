"""An agent's clock that differs from the server's, both ways, as real processes with a clock each (R19)."""

import json
import os
import subprocess
import time
from contextlib import suppress

import pytest

from deploy.demo.stack import BIN
from tests.doubles.shifted_clock import ShiftedStack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150, func_only=True)]
FIRST_RETRY = 5.0 * 0.9
FAILURE = "could not join the trust domain"


def attestations(stack):
    """How many attestations the server was asked for, by its audit log."""
    count = 0
    for line in stack.server.log.read_text().splitlines():
        with suppress(ValueError):
            count += json.loads(line).get("event") == "attestation"
    return count


def explained(stack):
    argv = [str(BIN / "node-agent"), "explain", "-socketPath", str(stack.agent_admin_socket), "--pid", str(os.getpid())]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30).stdout


def well(stack):
    health = stack.health()
    return health["agent.svid"]["state"] == health["agent.sync"]["state"] == "ok" and stack.svid() is not None


def test_an_agent_ahead_works_within_five_minutes_and_with_two_hours_says_so_and_waits():
    """R19: its SVIDs are over by its own clock, nobody is asked to attest it, and the right time is all it needs."""
    with ShiftedStack(pop=True) as stack:
        stack.agent_clock.move(minutes=5)
        stack.begin()
        assert attestations(stack) == 1
        stack.agent_clock.move(hours=2)
        stack.until(lambda: "compare the clocks" in stack.health()["agent.svid"].get("trouble", ""))
        assert "next_try_seconds" in stack.health()["agent.svid"]
        assert stack.svid() is None
        assert stack.bundles()
        text = explained(stack)
        assert "out of its time by this machine's clock" in text
        assert "timedatectl" in text
        failures, begun = stack.agent.tail(1000).count(FAILURE), time.monotonic()
        stack.until(lambda: stack.agent.tail(1000).count(FAILURE) >= failures + 2)
        assert time.monotonic() - begun > FIRST_RETRY
        assert "clock jump: this machine's clock moved by +" in stack.agent.tail(1000)
        assert attestations(stack) == 1
        stack.agent_clock.move(hours=-2)
        stack.until(lambda: well(stack))
        assert attestations(stack) <= 2


def test_an_agent_behind_works_within_five_minutes_and_with_two_hours_serves_what_it_has_and_says_so():
    """R19: a server whose certificate is younger is not believed; what is valid is served; nothing is attested."""
    with ShiftedStack(pop=True) as stack:
        stack.agent_clock.move(minutes=-5)
        stack.begin()
        first = stack.svid()
        stack.agent_clock.move(hours=-2)
        stack.until(lambda: "clock jump: this machine's clock moved by -" in stack.agent.tail(1000))
        assert stack.server.stop() == 0
        stack.start_server()
        stack.until(lambda: "compare the clocks" in stack.health()["agent.sync"].get("trouble", ""))
        assert "next_try_seconds" in stack.health()["agent.sync"]
        assert stack.svid() == first
        assert attestations(stack) == 1
        stack.agent_clock.move(hours=2)
        stack.until(lambda: well(stack))
        assert attestations(stack) == 1
