"""unix, docker, k8s and systemd at the same time, each over its real protocol: what one does holds up no other (A7, A20)."""

import asyncio
import os
import time
from contextlib import ExitStack

import pytest

from attestors.procfs import ProcFs
from attestors.workload.docker import DockerAttestor, DockerPorts, DockerSettings
from attestors.workload.k8s import K8sAttestor, K8sPorts, K8sSettings
from attestors.workload.systemd import SystemdAttestor, SystemdSettings
from attestors.workload.unix import UnixAttestor, UnixSettings
from node_agent.services.attest_workload import AttestWorkload
from spiffe_core.clock import SystemClock
from spiffe_core.errors import Unavailable
from spiffe_core.selectors import PartialSelectors
from spiffe_core.wire.peer import named_process
from tests.doubles.docker_engine import ID, engine_at
from tests.doubles.kubelet import Kubelet, pod
from tests.doubles.kubelet_files import kubelet_files
from tests.doubles.systemd_manager import Manager, private_socket

ALL = {"unix", "docker", "k8s", "systemd"}
AMPLE = 20.0
HANGING = 2.5
"""Seconds for an attestation in which somebody hangs: what the others need on a busy machine, and no more."""
DENIED = "org.freedesktop.DBus.Error.AccessDenied"


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return kubelet_files(tmp_path_factory.mktemp("pki"))


class Node:
    """This process as the workload, in a container that both the engine and the kubelet know, and in a unit."""

    def __init__(self, folder, pki, open_ones):
        own = folder / "proc" / str(os.getpid())
        own.mkdir(parents=True)
        (own / "cgroup").write_text(f"0::/docker/{ID}\n")
        proc = ProcFs(folder / "proc")
        self.engine = open_ones.enter_context(engine_at(folder / "docker.sock"))
        self.kubelet = open_ones.enter_context(Kubelet(pki / "kubelet.crt", pki / "kubelet.key"))
        self.kubelet.pods = [pod("uid", {"app": ID})]
        self.systemd = Manager({os.getpid(): ("web.service", "/etc/systemd/system/web.service")})
        open_ones.enter_context(private_socket(folder / "systemd", self.systemd))
        self.peer = named_process(os.getpid())
        open_ones.callback(self.peer.process.close)
        kubelet = K8sSettings(
            kubelet_secure_port=self.kubelet.port, kubelet_ca_path=f"{pki}/ca.crt", token_path=f"{pki}/token"
        )
        self.attestors = [
            UnixAttestor(UnixSettings(discover_path=False)),
            DockerAttestor(DockerSettings(docker_socket_path=f"unix://{folder}/docker.sock"), DockerPorts(proc=proc)),
            K8sAttestor(kubelet, K8sPorts(proc=proc, variable=lambda _: "")),
            SystemdAttestor(SystemdSettings(f"unix://{folder}/systemd", private_socket=True)),
        ]

    def attest(self, budget):
        return AttestWorkload(self.attestors, clock=SystemClock(), budget=budget)


@pytest.fixture
def node(tmp_path, pki):
    with ExitStack() as open_ones:
        made = Node(tmp_path, pki, open_ones)
        yield made
        made.kubelet.delay.set()
        made.engine.delay.set()


def kinds(selectors):
    return {one.type for one in selectors}


async def test_all_of_them_tell_what_they_know(node):
    assert kinds(await node.attest(AMPLE)(node.peer)) == ALL


TROUBLES = {
    "docker hangs": ("docker", lambda node: node.engine.delay.clear()),
    "docker fails": ("docker", lambda node: setattr(node.engine, "status", 500)),
    "k8s hangs": ("k8s", lambda node: node.kubelet.delay.clear()),
    "k8s is refused": ("k8s", lambda node: setattr(node.kubelet, "status", 403)),
    "systemd hangs": ("systemd", lambda node: node.systemd.before.append(lambda: time.sleep(2 * HANGING))),
    "systemd refuses": (
        "systemd",
        lambda node: node.systemd.refusals.update(GetUnitByPIDFD=DENIED, GetUnitByPID=DENIED),
    ),
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_one_in_trouble_has_no_selectors_and_the_others_have_theirs(node, trouble, caplog):
    """N-A-25: fails closed for entries that need it, reported, and nobody else is silenced."""
    name, befalls = TROUBLES[trouble]
    befalls(node)
    caplog.set_level("INFO")
    assert kinds(await node.attest(HANGING if "hangs" in trouble else AMPLE)(node.peer)) == ALL - {name}
    assert {record.facts["attestor"] for record in caplog.records if "attestation failed" in record.message} == {name}


async def test_one_that_hangs_and_one_that_fails_leave_the_other_two(node):
    node.engine.delay.clear()
    node.kubelet.status = 403
    began = time.monotonic()
    assert kinds(await node.attest(HANGING)(node.peer)) == {"unix", "systemd"}
    assert time.monotonic() - began < 10


async def test_those_that_hang_hold_no_place_in_line_for_the_others(node):
    """Two threads for one user are two for each attestor: hanging engines do not use up the place of systemd."""
    node.engine.delay.clear()
    node.kubelet.delay.clear()
    attest = node.attest(HANGING)
    answers = await asyncio.gather(*(attest(node.peer) for _ in range(6)))
    assert [kinds(one) for one in answers] == [{"unix", "systemd"}] * 6


async def test_when_none_can_tell_the_caller_is_told_to_come_back(node):
    node.engine.status = 500
    node.kubelet.status = 500
    node.systemd.refusals.update(GetUnitByPIDFD=DENIED, GetUnitByPID=DENIED)
    del node.attestors[0]
    with pytest.raises(Unavailable):
        await node.attest(AMPLE)(node.peer)


async def test_all_are_whole_again_when_the_trouble_is_over(node):
    attest = node.attest(AMPLE)
    node.engine.status = node.kubelet.status = 500
    found = await attest(node.peer)
    assert (kinds(found), isinstance(found, PartialSelectors)) == ({"unix", "systemd"}, True)
    node.engine.status, node.kubelet.status = None, 200
    found = await attest(node.peer)
    assert (kinds(found), isinstance(found, PartialSelectors)) == (ALL, False)
