"""What is rare at the kubelet: debug containers, certificates replaced under way, refusals told to people."""

import os
import time

import pytest

from attestors.api import SourcedAttestor
from attestors.procfs import ProcFs
from attestors.workload.docker import DockerAttestor, DockerPorts, DockerSettings
from attestors.workload.k8s import K8sAttestor, K8sPorts, K8sSettings
from attestors.workload.systemd import SystemdAttestor, SystemdSettings
from attestors.workload.unix import UnixAttestor
from spiffe_core.errors import ConfigError, Unavailable
from spiffe_core.wire.peer import named_process
from tests.doubles.docker_engine import engine_at
from tests.doubles.kubelet import Kubelet, pod
from tests.doubles.kubelet_files import certificate, kubelet_files
from tests.doubles.systemd_manager import Manager, private_socket

ID, DEBUG = "a" * 64, "e" * 64
UID = "2c48913c-b29f-11e7-9350-020968147796"


class Process:
    pid, uid, gid = 4242, 0, 0

    def __init__(self, root, cgroup=f"0::/kubepods/burstable/pod{UID}/{ID}\n"):
        folder = root / "4242"
        folder.mkdir(exist_ok=True)
        (folder / "cgroup").write_text(cgroup)

    def require_alive(self):
        pass


@pytest.fixture
def pki(tmp_path):
    (tmp_path / "pki").mkdir()
    return kubelet_files(tmp_path / "pki")


@pytest.fixture
def kubelet(pki):
    with Kubelet(pki / "kubelet.crt", pki / "kubelet.key") as started:
        started.pods = [pod(UID, {"app": ID}, ephemeral={"debugger": DEBUG})]
        yield started


def attestor(kubelet, pki, tmp_path, **over):
    chosen = {
        "kubelet_secure_port": kubelet.port,
        "kubelet_ca_path": str(pki / "ca.crt"),
        "token_path": str(pki / "token"),
        **over,
    }
    return K8sAttestor(K8sSettings(**chosen), K8sPorts(proc=ProcFs(tmp_path), variable=lambda _: ""))


def soon(seconds=10.0):
    return time.monotonic() + seconds


def values(findings):
    return {one.value for one in findings.selectors}


class TestEphemeralContainers:
    """`kubectl debug`: as with SPIRE they have no identity; here they are told so at once."""

    def test_one_has_no_selectors_and_need_not_wait(self, kubelet, pki, tmp_path):
        process = Process(tmp_path, f"0::/kubepods/burstable/pod{UID}/{DEBUG}\n")
        findings = attestor(kubelet, pki, tmp_path).attest(process, soon())
        assert findings.selectors == frozenset()
        assert "ephemeral container" in findings.notes[0]
        assert kubelet.asked == 1

    def test_one_counts_for_its_pod_where_the_pod_alone_counts(self, kubelet, pki, tmp_path):
        process = Process(tmp_path, f"0::/kubepods/burstable/pod{UID}/{DEBUG}\n")
        made = attestor(kubelet, pki, tmp_path, disable_container_selectors=True)
        assert f"pod-uid:{UID}" in values(made.attest(process, soon()))

    def test_one_does_not_count_among_the_pods_images(self, kubelet, pki, tmp_path):
        found = values(attestor(kubelet, pki, tmp_path).attest(Process(tmp_path), soon()))
        assert {"pod-image-count:1", "pod-init-image-count:0"} <= found
        assert not any("debugger" in value for value in found)


class Client:
    """A kubelet that wants a client certificate, an attestor that has one, and a clock that skips what is kept."""

    def __init__(self, folder):
        self.folder, self._root, self._later = folder / "client", folder, 0.0
        self.folder.mkdir()
        kubelet_files(folder / "client")
        self._ca = certificate(self.folder, "clients", ca=True)
        self.put("first", "crt", "key")
        self.kubelet = Kubelet(
            self.folder / "kubelet.crt", self.folder / "kubelet.key", client_ca=self.folder / "clients.crt", token=None
        )
        self.kubelet.pods = [pod(UID, {"app": ID})]
        settings = K8sSettings(
            kubelet_secure_port=self.kubelet.port,
            kubelet_ca_path=f"{self.folder}/ca.crt",
            certificate_path=f"{self.folder}/client.crt",
            private_key_path=f"{self.folder}/client.key",
        )
        ports = K8sPorts(proc=ProcFs(folder), variable=lambda _: "", monotonic=self._now)
        self._attestor = K8sAttestor(settings, ports)

    def _now(self):
        return time.monotonic() + self._later

    def put(self, name, *endings):
        if not (self.folder / f"{name}.crt").exists():
            certificate(self.folder, name, signer=self._ca)
        for ending in endings:
            (self.folder / f"new.{ending}").write_bytes((self.folder / f"{name}.{ending}").read_bytes())
            (self.folder / f"new.{ending}").replace(self.folder / f"client.{ending}")

    def shows(self):
        """The certificate that the attestor shows now."""
        self._later += 1.0
        self._attestor.attest(Process(self._root), self._now() + 10)
        return self.kubelet.certified[-1]


class TestReplacedCertificates:
    """The files are read again when they are others, not by the clock."""

    def test_a_client_certificate_is_replaced_without_a_restart(self, tmp_path):
        client = Client(tmp_path)
        with client.kubelet:
            assert client.shows() == "first"
            client.put("second", "crt", "key")
            assert client.shows() == "second"

    def test_in_the_middle_of_a_replacement_the_pair_from_before_serves(self, tmp_path):
        client = Client(tmp_path)
        with client.kubelet:
            assert client.shows() == "first"
            client.put("second", "crt")
            assert client.shows() == "first"
            client.put("second", "key")
            assert client.shows() == "second"
            (client.folder / "client.key").unlink()
            assert client.shows() == "second"


class TestTroubleIsTold:
    """An attestor that cannot ask says so for the agent's health, with what to do, until it can."""

    @pytest.mark.parametrize(("status", "advice"), [(401, "token_path"), (403, "nodes/pods"), (500, "answered 500")])
    def test_the_kubelets(self, kubelet, pki, tmp_path, status, advice):
        made = attestor(kubelet, pki, tmp_path, token_path=str(pki / "token"))
        assert isinstance(made, SourcedAttestor)
        kubelet.status = status
        with pytest.raises(Unavailable):
            made.attest(Process(tmp_path), soon())
        assert advice.replace("token_path", str(pki / "token")) in made.trouble
        kubelet.status = 200
        made.attest(Process(tmp_path), soon())
        assert made.trouble == ""

    def test_a_container_that_is_not_listed_is_no_trouble_of_the_kubelet(self, kubelet, pki, tmp_path):
        """Or any process could paint the agent's health yellow."""
        made = attestor(kubelet, pki, tmp_path)
        with pytest.raises(Unavailable):
            made.attest(Process(tmp_path, f"0::/docker/{'f' * 64}\n"), soon(0.5))
        assert made.trouble == ""

    def test_what_is_wrong_with_anonymous_and_certified_agents_is_told_apart(self, kubelet, pki, tmp_path):
        kubelet.status = 401
        pair = {"certificate_path": str(pki / "agent.crt"), "private_key_path": str(pki / "agent.key")}
        for over, advice in (({"use_anonymous_authentication": True}, "anonymous requests"), (pair, "agent.crt")):
            made = attestor(kubelet, pki, tmp_path, **over)
            with pytest.raises(Unavailable, match=advice):
                made.attest(Process(tmp_path), soon())

    def test_the_engines_but_not_a_users_own(self, tmp_path):
        settings = DockerSettings(
            docker_socket_path=f"unix://{tmp_path}/docker.sock",
            podman_socket_path=f"unix://{tmp_path}/podman.sock",
            podman_socket_path_template=f"unix://{tmp_path}/%d.sock",
            rootless_users=(1000,),
        )
        made = DockerAttestor(settings, DockerPorts(proc=ProcFs(tmp_path)))
        rootless = f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope\n"
        for cgroup in (rootless, f"0::/docker/{ID}\n", f"0::/machine.slice/libpod-{ID}.scope\n"):
            with pytest.raises(Unavailable):
                made.attest(Process(tmp_path, cgroup), soon())
        assert "docker.sock" in made.trouble
        assert "podman.sock" in made.trouble
        assert "1000.sock" not in made.trouble
        with engine_at(tmp_path / "docker.sock"):
            made.attest(Process(tmp_path, f"0::/docker/{ID}\n"), soon())
        assert "docker.sock" not in made.trouble

    def test_systemds(self, tmp_path):
        made = SystemdAttestor(SystemdSettings(f"unix://{tmp_path}/systemd", private_socket=True))
        peer = named_process(os.getpid())
        with pytest.raises(Unavailable):
            made.attest(peer, soon())
        assert "No such file" in made.trouble
        with private_socket(tmp_path / "systemd", Manager()):
            made.attest(peer, soon())
        assert made.trouble == ""
        peer.process.close()

    def test_who_asks_nobody_has_none(self):
        assert not isinstance(UnixAttestor(), SourcedAttestor)


def test_what_is_read_of_a_container_can_be_logged(kubelet, pki, tmp_path, caplog):
    """SPIRE's verbose_container_locator_logs."""
    caplog.set_level("INFO")
    attestor(kubelet, pki, tmp_path).attest(Process(tmp_path), soon())
    assert not caplog.records
    attestor(kubelet, pki, tmp_path, verbose_container_locator_logs=True).attest(Process(tmp_path), soon())
    assert {record.facts["container_id"] for record in caplog.records} == {ID}
    assert all(f"pod{UID}/{ID}" in record.facts["cgroup"] for record in caplog.records)


@pytest.mark.parametrize("settings", [K8sSettings, DockerSettings])
def test_spires_old_container_locator_is_refused(settings):
    settings(use_new_container_locator=True)
    with pytest.raises(ConfigError, match="there is no other"):
        settings(use_new_container_locator=False)
