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
from tests.doubles.floods import FLOODS

SECONDS = 3.4


@pytest.fixture(scope="module")
def door():
    directory = PrivateDirectory.make()
    path = directory.path / "api.sock"
    argv = [sys.executable, "-m", "tests.doubles.door_process", str(path)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=os.getcwd())
    assert process.stdout.readline() == b"ready\n"
    yield process, path
    process.kill()
    process.communicate()
    path.unlink()
    (directory.path / ".api.sock.lock").unlink()
    directory.close()


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


@pytest.mark.slow
@pytest.mark.parametrize("flood", sorted(FLOODS))
def test_a_flood_costs_little_memory_little_cpu_and_no_other_caller_anything(door, flood):
    """S54, S55: flood CPU below 20 % of a core after the first second, others answered, memory bounded."""
    process, path = door
    calm = latencies(path, 0.7)
    before_mb = resident_mb(process.pid)
    argv = [sys.executable, "-m", "tests.doubles.floods", flood, str(path), str(SECONDS)]
    attacker = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=os.getcwd())
    time.sleep(1.0)
    start, cpu = time.monotonic(), cpu_seconds(process.pid)
    time.sleep(1.2)
    share = (cpu_seconds(process.pid) - cpu) / (time.monotonic() - start)
    stormy = latencies(path, 1.0)
    outcome = json.loads(attacker.communicate(timeout=30)[0])
    grown = resident_mb(process.pid) - before_mb
    calm99, storm99 = calm[int(len(calm) * 0.99)], stormy[int(len(stormy) * 0.99)]
    print(f"{flood}: {outcome} cpu {share:.0%} rss +{grown:.1f} MB p99 {calm99:.1f} -> {storm99:.1f} ms")
    assert process.poll() is None
    assert outcome["frames"] > 0
    assert grown < 50
    assert share < 0.20
    assert storm99 < max(50, 5 * calm99)
