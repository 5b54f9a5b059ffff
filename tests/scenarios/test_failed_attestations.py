"""Attestations that fail, by the thousand, leave nothing behind: descriptors and memory of agent and server (S52, SPI-01-006).

`make soak` makes a million of them; MUNIMENT_SOAK_ATTESTATIONS sets another number.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.demo.stack import LocalStack
from tests.doubles.cpu_time import cpu_seconds
from tests.doubles.plain_agents import PlainAgent, Refused

COUNT = int(os.environ.get("MUNIMENT_SOAK_ATTESTATIONS", "1000000"))
SLICES = 10
NODES_SHARE = 50
"""One node that may not join for so many callers without an identity: it costs a TLS handshake."""
NODES_AT_ONCE = 4
ROOM = 8
"""Descriptors that a daemon may open for itself once it has been asked for the first time."""
ROOT = Path(__file__).resolve().parents[2]


def resident_mb(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def at_rest(pid, at_most):
    """How many descriptors are open once those of connections that have just ended are closed."""
    deadline = time.monotonic() + 30
    while (found := open_files(pid)) > at_most and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def callers(stack, count):
    """Callers without an identity; how many calls ended how."""
    argv = [sys.executable, "-m", "tests.doubles.refused_callers", str(stack.api_socket), str(count)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def nodes(stack, count):
    """Nodes with tokens that nobody gave out, each on a connection of its own and, up to 10,000, with an address of its own."""
    turn = asyncio.Semaphore(NODES_AT_ONCE)

    async def attest(number):
        async with turn:
            agent = PlainAgent(number % 10_000, stack.port, stack.folder)
            for attempt in range(100):
                try:
                    await agent.attest(f"no-such-token-{number}")
                except Refused as error:
                    if "token" in error.args[0]:
                        return
                    if not error.args[0].startswith("8"):  # RESOURCE_EXHAUSTED: too many from one address
                        raise
                    await asyncio.sleep(0.05 * (attempt + 1))
            raise AssertionError("never heard")

    await asyncio.gather(*(attest(number) for number in range(count)))


def fail(count, slices):
    """So many failed attestations in slices; (MB, descriptors) of agent and server after each."""
    used = {"agent": [], "server": []}
    with LocalStack("refused.test", sync_interval="300ms") as stack:
        stack.start()
        files = {"agent": open_files(stack.agent.pid), "server": open_files(stack.server.pid)}
        told = {"denied": 0, "abandoned": 0, "gone": 0, "nodes": 0}
        for _ in range(slices):
            for name, calls in callers(stack, count // slices).items():
                told[name] += calls
            joining = max(1, count // slices // NODES_SHARE)
            asyncio.run(nodes(stack, joining))
            told["nodes"] += joining
            for name, daemon in (("agent", stack.agent), ("server", stack.server)):
                found = at_rest(daemon.pid, files[name] + ROOM)
                used[name].append((round(resident_mb(daemon.pid), 1), found))
        spent = {name: round(cpu_seconds(getattr(stack, name).pid), 1) for name in used}
        print(f"\n{told}: at rest {files}, then (MB, descriptors) {used}, CPU-s {spent}", flush=True)
        assert sum(told[name] for name in ("denied", "abandoned", "gone")) == count
        for name, samples in used.items():
            assert max(found for _, found in samples) <= files[name] + ROOM, f"{name}: {samples}"
        return used


@pytest.mark.slow
def test_two_thousand_failed_attestations_leave_nothing_open():
    """S52, scaled: every descriptor is given back, whether the caller heard its answer, hung up, or is gone."""
    fail(2000, 2)


@pytest.mark.soak
@pytest.mark.timeout(14_400)
def test_a_million_failed_attestations_leave_descriptors_and_memory_flat():
    """S52: memory after the second tenth is memory after the last."""
    for name, samples in fail(COUNT, SLICES).items():
        (first, _), (last, _) = samples[1], samples[-1]
        assert last < first * 1.05 + 4, f"{name}: {samples}"
