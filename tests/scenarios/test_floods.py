"""Protocol floods against the front door and the listener behind it (S54, S55, A5).

Each flood is bounded in time and bytes, goes to a process of the test's own, and ends by itself.
"""

import json
import os
import subprocess
import sys
import time

import grpc
import pytest

from spiffe_core.wire.sockets import PrivateDirectory
from tests.doubles.cpu_time import cpu_seconds
from tests.doubles.floods import FLOODS

SECONDS = 3.4
HONEST = {"small_calls", "drips"}
"""Frames that a busy caller sends as well."""


@pytest.fixture(scope="module")
def door():
    directory = PrivateDirectory.make()
    path = directory.path / "api.sock"
    argv = [sys.executable, "-m", "tests.doubles.door_process", str(path)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=os.getcwd())
    ready, port = process.stdout.readline().split()
    assert ready == b"ready"
    yield process, path, int(port)
    process.kill()
    process.communicate()
    path.unlink()
    (directory.path / ".api.sock.lock").unlink()
    directory.close()


def resident_mb(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def latencies(path, seconds):
    """Milliseconds of an honest caller's calls, one after another."""
    found = []
    with grpc.insecure_channel(f"unix:{path}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        echo = channel.unary_unary("/door.Test/Echo")
        echo(b"warm", timeout=5)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            start = time.perf_counter()
            assert echo(b"x", timeout=5) == b"x"
            found.append((time.perf_counter() - start) * 1000)
            time.sleep(0.005)
    return sorted(found)


def storm(door, flood, target):
    """What a flood costs: a share of a core after the first second, megabytes, and others' p99 before and meanwhile."""
    process, path, _ = door
    calm = latencies(path, 0.7)
    before_mb = resident_mb(process.pid)
    argv = [sys.executable, "-m", "tests.doubles.floods", flood, str(target), str(SECONDS)]
    attacker = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=os.getcwd())
    time.sleep(1.0)
    start, cpu = time.monotonic(), cpu_seconds(process.pid)
    time.sleep(1.2)
    share = (cpu_seconds(process.pid) - cpu) / (time.monotonic() - start)
    stormy = latencies(path, 1.0)
    outcome = json.loads(attacker.communicate(timeout=30)[0])
    grown = resident_mb(process.pid) - before_mb
    calm99, storm99 = calm[int(len(calm) * 0.99)], stormy[int(len(stormy) * 0.99)]
    print(f"{flood} {target}: {outcome} cpu {share:.0%} rss +{grown:.1f} MB p99 {calm99:.1f} -> {storm99:.1f} ms")
    assert process.poll() is None
    assert outcome["frames"] > 0
    assert grown < 50
    if storm99 >= max(50, 5 * calm99):  # so slow may be the machine itself, which does other things meanwhile
        after = latencies(path, 1.0)
        calm99 = max(calm99, after[int(len(after) * 0.99)])
    assert storm99 < max(50, 5 * calm99)
    return share


@pytest.mark.slow
@pytest.mark.parametrize("flood", sorted(FLOODS.keys() - HONEST))
def test_a_flood_costs_little_memory_little_cpu_and_no_other_caller_anything(door, flood):
    """S54, S55, S56: flood CPU below 20 % of a core after the first second, others answered, memory bounded."""
    assert storm(door, flood, door[1]) < 0.20


@pytest.mark.slow
@pytest.mark.parametrize("flood", ["small_calls", pytest.param("drips", marks=pytest.mark.soak)])
def test_honest_frames_in_any_number_leave_others_alone(door, flood):
    """N-A-36: they may cost what they cost, within the price of frames; others are answered as before."""
    storm(door, flood, door[1])


@pytest.mark.slow
def test_a_flood_over_tls_costs_no_more(door):
    """S54: the same door, the server's side of it; without a certificate."""
    assert storm(door, "rapid_reset", f"tls:{door[2]}") < 0.20


@pytest.mark.soak
@pytest.mark.parametrize("flood", sorted(FLOODS.keys() - HONEST - {"rapid_reset"}))
def test_every_other_flood_over_tls_costs_no_more(door, flood):
    """S54, S55, S56, over the server's listener."""
    assert storm(door, flood, f"tls:{door[2]}") < 0.30
