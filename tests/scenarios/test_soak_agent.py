"""The long run of the agent (R46): short SVIDs, a thousand workloads, entries that come and go, and kill -9 every minute.

`make soak` runs it for twenty minutes; MUNIMENT_SOAK_SECONDS sets another length.
"""

import asyncio
import json
import os
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from deploy.demo.stack import LocalStack
from spiffe_core.runtime.supervise import spawn
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as entry_types
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.services import Stub

SECONDS = int(os.environ.get("MUNIMENT_SOAK_SECONDS", "1200"))
WORKLOADS, PROCESSES, FIRST_USER = 1000, 10, 61_000
LIFE, KILL_EVERY = 60, 60
SETTLED = 40
"""So many seconds after a start everybody is back and memory stands still."""
ENTRY = entry_pb2.DESCRIPTOR.services_by_name["Entry"]
PROBE = Path(__file__).resolve().parents[1] / "doubles" / "probing_process.py"
CONFIG = f"""[limits]
connections = {WORKLOADS + 200}
connections_per_uid = {WORKLOADS + 200}
streams = {WORKLOADS + 200}
streams_per_uid = {WORKLOADS + 200}
prefetched_svids = {2 * WORKLOADS}
"""


class Watcher:
    """What the probes said, and what the daemons used."""

    def __init__(self):
        self.reports = {}
        self.worst = LIFE * 1.0
        self.expired = []
        self.used = {"agent": [], "server": []}

    async def listen(self, number, stream):
        async for line in stream:
            report = json.loads(line)
            self.reports[number] = report
            if report["held"]:
                self.worst = min(self.worst, report["least"])
            if report["expired"]:
                self.expired.append((number, report))

    @property
    def held(self):
        return sum(report["held"] for report in self.reports.values())

    @property
    def messages(self):
        return sum(report["messages"] for report in self.reports.values())

    def sample(self, name, daemon):
        """Resident memory in MB and open descriptors."""
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) / 1024
        self.used[name].append((round(resident, 1), len(os.listdir(f"/proc/{daemon.pid}/fd"))))


async def churn(stack):
    """Every second five entries come, and the five oldest of fifty go."""
    ids = deque()
    number = 0
    async with unix_channel(stack.admin_socket) as channel:
        stub = Stub(channel, ENTRY)
        while True:
            await asyncio.sleep(1)
            with suppress(grpc.RpcError):  # the server is down for a moment
                answer = await stub.BatchCreateEntry(
                    entry_pb2.BatchCreateEntryRequest(entries=[entry(f"/churn-{number}-{i}") for i in range(5)]),
                    timeout=5,
                )
                ids.extend(result.entry.id for result in answer.results if result.status.code == 0)
                number += 1
                while len(ids) > 50:
                    gone = [ids[i] for i in range(5)]
                    await stub.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=gone), timeout=5)
                    for _ in gone:
                        ids.popleft()


def entry(path, selectors=None):
    return entry_types.Entry(
        spiffe_id={"trust_domain": "soak.test", "path": path},
        parent_id={"trust_domain": "soak.test", "path": "/node"},
        selectors=selectors or [{"type": "k8s", "value": f"sa:{path}"}],
        x509_svid_ttl=LIFE,
    )


async def register(stack, users):
    """One identity for each process, and others up to a thousand."""
    wanted = [entry(f"/web-{user}", [{"type": "unix", "value": f"uid:{user}"}]) for user in users]
    wanted += [entry(f"/other-{i}") for i in range(WORKLOADS - len(users))]
    async with unix_channel(stack.admin_socket) as channel:
        for start in range(0, len(wanted), 200):
            request = entry_pb2.BatchCreateEntryRequest(entries=wanted[start : start + 200])
            answer = await Stub(channel, ENTRY).BatchCreateEntry(request, timeout=60)
            assert {result.status.code for result in answer.results} == {0}


async def until(true, seconds, what):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.2)


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 600)
async def test_nobody_is_ever_left_with_an_expired_svid_and_nothing_grows():
    """R5, R6, R46: agent and server are killed in turn, each minute one; who reconnects is served before its SVID ends."""
    users = [FIRST_USER + i for i in range(PROCESSES)] if os.geteuid() == 0 else [os.getuid()]
    watcher, tasks = Watcher(), set()
    with LocalStack("soak.test", agent=CONFIG) as stack:
        stack.folder.chmod(0o711)
        await asyncio.to_thread(stack.start)
        await register(stack, users)
        each = WORKLOADS // len(users)
        probes = [
            await asyncio.create_subprocess_exec(
                sys.executable,
                str(PROBE),
                str(stack.api_socket),
                str(user),
                str(each),
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(PROBE.parents[2])},
            )
            for user in users
        ]
        try:
            for number, probe in enumerate(probes):
                spawn(watcher.listen(number, probe.stdout), "listen", tasks)
            await until(lambda: watcher.held == WORKLOADS, 120, "not every workload was served")
            spawn(churn(stack), "churn", tasks)
            await the_long_run(stack, watcher, probes)
        finally:
            for task in list(tasks):
                task.cancel()
            for probe in probes:
                with suppress(ProcessLookupError):
                    probe.kill()
                await probe.wait()
    print(f"\nleast seconds left: {watcher.worst}, messages: {watcher.messages}, (MB, descriptors): {watcher.used}")
    assert not watcher.expired, watcher.expired[:5]
    for name, samples in watcher.used.items():
        (first_mb, first_open), (last_mb, last_open) = samples[0], samples[-1]
        assert last_mb < first_mb * 1.15 + 8, f"{name}: {samples}"
        assert last_open < first_open * 1.1 + 20, f"{name}: {samples}"


async def the_long_run(stack, watcher, probes):
    """Kill in turn; look at memory and descriptors some time after each start."""
    end = time.monotonic() + SECONDS
    kills = 0
    while time.monotonic() < end:
        began = time.monotonic()
        await asyncio.sleep(SETTLED)
        watcher.sample("agent", stack.agent)
        watcher.sample("server", stack.server)
        assert all(probe.returncode is None for probe in probes)
        assert watcher.held == WORKLOADS
        await asyncio.sleep(max(began + KILL_EVERY - time.monotonic(), 0))
        before = watcher.messages
        if kills % 2 == 0:
            stack.agent.kill()
            stack.spawn_agent()
        else:
            stack.server.kill()
            stack.spawn_server()
        kills += 1
        await until(lambda seen=before: watcher.messages > seen, LIFE, "nothing is served after a kill")
