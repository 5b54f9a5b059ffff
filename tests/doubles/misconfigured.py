"""A server and an agent with real attestors, on which misconfigurations are seeded one after the other.

The workloads are real processes. What says that one runs in a container is a file of control groups in a /proc of the
test's own; the kubelet answers over real HTTPS, the container engine over a real Unix socket.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from attestors.procfs import ProcFs
from attestors.workload import docker, k8s
from attestors.workload.docker import DockerAttestor, DockerPorts, DockerSettings
from attestors.workload.k8s import K8sAttestor, K8sPorts, K8sSettings
from attestors.workload.unix import UnixAttestor
from identity_server.cli import main as server_main
from node_agent.cli import main as agent_main
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from tests.doubles.canned_daemon import leave_code
from tests.doubles.docker_engine import ID as DOCKER_ID
from tests.doubles.docker_engine import engine_at
from tests.doubles.kubelet import Kubelet, pod
from tests.doubles.kubelet_files import kubelet_files
from tests.doubles.live_agent import agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import MovableClock, live_server

APP, SETUP, DEBUG, GHOST = "a1" * 32, "b2" * 32, "c3" * 32, "d4" * 32
POD_UID = "2c48913c-b29f-11e7-9350-020968147796"
TWIN_UID = "ff48913c-b29f-11e7-9350-020968147796"
NO_CONTAINER = "0::/system.slice/sshd.service\n"
IN_DOCKER = f"0::/system.slice/docker-{DOCKER_ID}.scope\n"
IN_UNKNOWN = f"0::/system.slice/docker-{GHOST}.scope\n"


def in_pod(container):
    return f"0::/kubepods/burstable/pod{POD_UID}/{container}\n"


class World:
    """What the cases work on."""

    def __init__(self, live, agent, other, folder, kubelet, engine):
        self.live, self.agent, self.other = live, agent, other
        self.folder, self.kubelet, self.engine = folder, kubelet, engine
        self._ids, self._processes = [], []

    @property
    def agent_id(self):
        return f"spiffe://example.org{self.agent.path}"

    async def entries(self, *messages):
        """Create entries and wait until the agent has those that are its own."""
        ids = await self.live.entries(*messages)
        self._ids += ids
        await self.until_in_step()
        return ids

    async def until_in_step(self):
        own = set(self.live.state.authorised(self.agent.path))
        await self.agent.until(lambda: set(self.agent.agent.workloads.known) == own)

    def process(self, cgroup=NO_CONTAINER, program=("sleep", "600"), **options):
        """A running process and, for the container attestors, the control groups it is in."""
        started = subprocess.Popen(program, **options)
        self._processes.append(started)
        place = self.folder / "proc" / str(started.pid)
        place.mkdir()
        (place / "cgroup").write_text(cgroup)
        return started.pid

    def program(self, name, extra=b""):
        """A program of its own, and its SHA-256; `extra` makes it another one that does the same."""
        path = self.folder / name
        content = Path(shutil.which("sleep")).read_bytes() + extra
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        path.chmod(0o755)
        return path, hashlib.sha256(content).hexdigest()

    async def explain(self, capsys, *words):
        """The exit code, the first and the last line of `node-agent explain`."""
        return await explained(self.agent, capsys, *words)

    async def server(self, capsys, *words):
        """The same of a command of the server."""
        socket = str(self.live.server.settings.socket_path)
        code = await asyncio.to_thread(leave_code, server_main, *words, "-socketPath", socket)
        said = capsys.readouterr()
        lines = [line for line in (said.out if said.out.strip() else said.err).splitlines() if line]
        return code, lines[0], lines[-1]

    async def clean(self):
        """As it was before the case."""
        self.kubelet.status, self.kubelet.pods = 200, [web_pod()]
        self.kubelet.delay.set()
        self.engine.status, self.engine.body = None, None
        for started in self._processes:
            started.kill()
            started.wait()
            shutil.rmtree(self.folder / "proc" / str(started.pid))
        self._processes.clear()
        if self._ids:
            await self.live.entry.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=self._ids))
        self._ids.clear()
        await self.until_in_step()


def web_pod(uid=POD_UID, **over):
    made = pod(
        uid, {"app": APP}, init={"setup": SETUP}, ephemeral={"debugger": DEBUG}, labels={"app": "web", "tier": "front"}
    )
    return {**made, **over}


class Aged(MovableClock):
    """The machine's clock with both its hands moved, as time does."""

    def monotonic(self):
        return super().monotonic() + self.offset.total_seconds()


async def explained(agent, capsys, *words):
    socket = str(agent.agent.settings.admin_socket)
    code = await asyncio.to_thread(leave_code, agent_main, "explain", *words, "-socketPath", socket)
    said = capsys.readouterr()
    lines = [line for line in (said.out or said.err).splitlines() if line]
    return code, lines[0], lines[-1]


@asynccontextmanager
async def joined(live, folder, **over):
    """An agent that has joined, and follows the server."""
    token = token_file(folder, await live.token())
    settings = {"trust_bundle_path": str(pem_bundle(live, folder)), "join_token_file": str(token), **over}
    async with live_agent(folder, live.server.address, **settings) as agent:
        await agent.until_joined()
        await agent.until(lambda: agent.agent.follow.up)
        yield agent


def attestors(folder, kubelet, pki):
    """Unix as it is, Kubernetes and Docker with the /proc of the test's own."""
    proc = ProcFs(folder / "proc")
    settings = K8sSettings(
        kubelet_secure_port=kubelet.port, kubelet_ca_path=str(pki / "ca.crt"), token_path=str(pki / "token")
    )
    engine = DockerSettings(docker_socket_path=f"unix://{folder}/docker.sock")
    return [
        UnixAttestor(),
        K8sAttestor(settings, K8sPorts(proc=proc, variable=lambda _: "")),
        DockerAttestor(engine, DockerPorts(proc=proc)),
    ]


@asynccontextmanager
async def world(**over):
    """Everything running; nothing that an attestor was told is kept from one case to the next."""
    async with AsyncExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(k8s, "LIST_SECONDS", 0.0)
        patch.setattr(k8s, "FIRST_PAUSE", 3600.0)  # a container that is not listed is not waited for
        patch.setattr(docker, "KEPT_SECONDS", 0.0)
        live = await stack.enter_async_context(live_server())
        folder = await stack.enter_async_context(agent_folder())
        (folder / "proc").mkdir()
        (folder / "pki").mkdir()
        pki = kubelet_files(folder / "pki")
        kubelet = stack.enter_context(Kubelet(pki / "kubelet.crt", pki / "kubelet.key"))
        kubelet.pods = [web_pod()]
        engine = stack.enter_context(engine_at(folder / "docker.sock"))
        chosen = attestors(folder, kubelet, pki)
        agent = await stack.enter_async_context(joined(live, folder, workload_attestors=chosen, **over))
        other = await live.join()
        yield World(live, agent, other, folder, kubelet, engine)
