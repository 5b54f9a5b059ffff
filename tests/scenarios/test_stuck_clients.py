"""Thousands of clients that connect, begin to talk, and then read nothing, against a real agent (R45)."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import grpc
import pytest

from spiffe_core.wire._gen import workload_pb2
from tests.doubles.shifted_clock import ShiftedStack

CLIENTS = 5000
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HEADER = (("workload.spiffe.io", "true"),)
KEEPALIVE = 100.0
"""Within this many seconds gRPC's keepalive has found out who does not answer."""


@pytest.fixture
def stack():
    with ShiftedStack(pop=True, shifted=False) as started:
        started.begin()
        yield started


def resident_mb(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def median_latency(channel, calls=100):
    """Milliseconds of an honest workload's question for its SVID."""
    fetch = channel.unary_stream(
        "/SpiffeWorkloadAPI/FetchX509SVID",
        request_serializer=workload_pb2.X509SVIDRequest.SerializeToString,
        response_deserializer=workload_pb2.X509SVIDResponse.FromString,
    )
    taken = []
    for _ in range(calls):
        begun = time.perf_counter()
        call = fetch(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=20)
        assert next(call).svids
        taken.append((time.perf_counter() - begun) * 1000)
        call.cancel()
    return sorted(taken)[calls // 2]


CROWD = """
import os, resource, socket, sys
path, count, preface = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(54321)
    os.setuid(54321)
clients = []
for _ in range(min(count, hard - 100)):
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    try:
        client.sendall(preface)
    except (BrokenPipeError, ConnectionResetError):
        client.close()
    else:
        clients.append(client)
print("there", flush=True)
sys.stdin.read()
"""


@contextmanager
def crowd(stack):
    """Stuck clients of one user who is not root, while the block runs; those the agent turned away count too."""
    stack.folder.chmod(0o711)
    argv = [sys.executable, "-c", CROWD, str(stack.api_socket), str(CLIENTS), PREFACE.hex()]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"there\n"
            yield
        finally:
            process.kill()


@pytest.mark.slow
def test_five_thousand_stuck_clients_cost_little_and_slow_nobody(stack):
    """R45: at most 50 MB, and a workload that is connected is answered as before."""
    with grpc.insecure_channel(f"unix:{stack.api_socket}") as channel:
        median_latency(channel)
        memory, before = resident_mb(stack.agent.pid), median_latency(channel)
        with crowd(stack):
            median_latency(channel, 20)
            assert median_latency(channel) < 3 * before + 20
            assert resident_mb(stack.agent.pid) < memory + 50
    assert stack.until(stack.svid)


@pytest.mark.soak
@pytest.mark.timeout(200, func_only=True)
def test_stuck_clients_are_closed(stack):
    """R45: each that does not answer gRPC's keepalive is cut off."""
    descriptors = f"/proc/{stack.agent.pid}/fd"
    before = len(os.listdir(descriptors))
    with crowd(stack):
        assert len(os.listdir(descriptors)) > before + 500
        stack.until(lambda: len(os.listdir(descriptors)) < before + 50, seconds=KEEPALIVE)
