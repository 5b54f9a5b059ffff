"""The Kubernetes attestor against a kubelet over real HTTPS, with a /proc that shows real-shaped control groups."""

import threading
import time

import pytest

from attestors.api import KubernetesObject
from attestors.procfs import ProcFs
from attestors.workload.k8s import K8sAttestor, K8sPorts, K8sSettings
from spiffe_core.errors import (
    ConfigError,
    Internal,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    Unauthenticated,
    Unavailable,
)
from tests.doubles.kube_cluster import API_AUDIENCE, KubeCluster
from tests.doubles.kubelet import Kubelet, pod
from tests.doubles.kubelet_files import kubelet_files

ID, SIDECAR, START = "a" * 64, "b" * 64, "c" * 64
UID = "2c48913c-b29f-11e7-9350-020968147796"
OTHER_UID = "ff48913c-b29f-11e7-9350-020968147796"


class Process:
    """A subject with a directory of its own under a made-up /proc."""

    pid, uid, gid = 4242, 0, 0

    def __init__(self, root):
        self._folder = root / "4242"
        self._folder.mkdir()
        self.ended = False
        self.cgroup(f"0::/kubepods/burstable/pod{UID}/{ID}\n")

    def cgroup(self, text):
        (self._folder / "cgroup").write_text(text)

    def require_alive(self):
        if self.ended:
            raise Unauthenticated("the calling process has ended")


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return kubelet_files(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def kubelet(pki):
    with Kubelet(pki / "kubelet.crt", pki / "kubelet.key") as started:
        started.pods = [
            pod(
                UID,
                {"app": ID, "proxy": SIDECAR},
                init={"setup": START},
                labels={"app": "web", "tier": "front"},
                ownerReferences=[{"kind": "ReplicaSet", "name": "web", "uid": "rs-uid"}],
            ),
            pod(OTHER_UID, {"db": "d" * 64}, name="db-0"),
        ]
        yield started


@pytest.fixture
def process(tmp_path):
    return Process(tmp_path)


def attestor(kubelet, pki, tmp_path, **over):
    chosen = {
        "kubelet_secure_port": kubelet.port,
        "kubelet_ca_path": str(pki / "ca.crt"),
        "token_path": str(pki / "token"),
        **over,
    }
    return K8sAttestor(K8sSettings(**chosen), K8sPorts(proc=ProcFs(tmp_path), variable=lambda _: ""))


def soon(seconds=5.0):
    return time.monotonic() + seconds


def values(findings):
    assert {one.type for one in findings.selectors} <= {"k8s"}
    return {one.value for one in findings.selectors}


def test_a_container_in_a_pod_gets_spires_selectors(kubelet, pki, tmp_path, process):
    """spire_features 18.1, each of them; a second container of the pod differs in its own two alone."""
    made = attestor(kubelet, pki, tmp_path)
    image, digest = "registry.example.org/{0}:1", "registry.example.org/{0}@sha256:" + "0" * 63 + "1"
    common = {
        "ns:shop",
        "sa:frontend",
        "node-name:node-1",
        f"pod-uid:{UID}",
        "pod-name:web-0",
        "pod-image-count:2",
        "pod-init-image-count:1",
        "pod-label:app:web",
        "pod-label:tier:front",
        "pod-owner:ReplicaSet:web",
        "pod-owner-uid:ReplicaSet:rs-uid",
        *(f"pod-image:{text.format(name)}" for name in ("app", "proxy") for text in (image, digest)),
        *(f"pod-init-image:{text.format('setup')}" for text in (image, digest)),
    }
    for container_id, name in ((ID, "app"), (SIDECAR, "proxy"), (START, "setup")):
        process.cgroup(f"0::/kubepods/burstable/pod{UID}/{container_id}\n")
        own = {f"container-name:{name}", *(f"container-image:{text.format(name)}" for text in (image, digest))}
        assert values(made.attest(process, soon())) == common | own, name
    assert kubelet.asked == 1  # a list is believed for a moment


def test_a_process_outside_any_container_has_no_selectors(kubelet, pki, tmp_path, process):
    process.cgroup("0::/system.slice/nginx.service\n")
    findings = attestor(kubelet, pki, tmp_path).attest(process, soon())
    assert (findings.selectors, findings.notes) == (frozenset(), ("the process runs in no container",))
    assert kubelet.asked == 0


def test_a_container_without_a_pod_in_its_path_is_searched_in_all_pods(kubelet, pki, tmp_path, process):
    """CRI-O."""
    process.cgroup(f"0::/system.slice/crio-{ID}.scope\n")
    assert f"pod-uid:{UID}" in values(attestor(kubelet, pki, tmp_path).attest(process, soon()))


def test_a_pod_that_a_user_names_is_not_looked_up(kubelet, pki, tmp_path, process):
    """S19's kind: below its slice a user makes control groups with the names of pods and containers."""
    process.cgroup(f"0::/user.slice/user-1000.slice/user@1000.service/kubepods/pod{UID}/{ID}\n")
    findings = attestor(kubelet, pki, tmp_path).attest(process, soon())
    assert findings.selectors == frozenset()
    assert "whose container it is cannot be told" in findings.notes[0]
    assert kubelet.asked == 0


def test_a_pod_that_appears_late_is_waited_for(kubelet, pki, tmp_path, process):
    """A retry with a budget instead of a poll of 30 s."""
    late, kubelet.pods = kubelet.pods, []
    kubelet.before = [lambda: None, lambda: None, lambda: setattr(kubelet, "pods", late)]
    assert "ns:shop" in values(attestor(kubelet, pki, tmp_path).attest(process, soon()))
    assert kubelet.asked == 3


def test_a_pod_that_never_appears_is_unavailable_in_time(kubelet, pki, tmp_path, process):
    kubelet.pods = []
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"lists no pod|in time"):
        attestor(kubelet, pki, tmp_path).attest(process, soon(0.8))
    assert time.monotonic() - started < 5


def test_a_container_id_under_another_pods_uid_is_not_believed(kubelet, pki, tmp_path, process):
    """The pod in the path must be the pod that lists the container."""
    process.cgroup(f"0::/kubepods/burstable/pod{OTHER_UID}/{ID}\n")
    with pytest.raises(Unavailable, match=r"lists no pod|in time"):
        attestor(kubelet, pki, tmp_path).attest(process, soon(0.5))


def test_two_pods_with_one_container_are_refused(kubelet, pki, tmp_path, process):
    process.cgroup(f"0::/docker/{ID}\n")
    kubelet.pods = [pod(UID, {"app": ID}), pod(OTHER_UID, {"app": ID})]
    with pytest.raises(Internal, match="two pods"):
        attestor(kubelet, pki, tmp_path).attest(process, soon())


def test_forged_control_groups_and_an_ended_process_get_nothing(kubelet, pki, tmp_path, process):
    """S10, S12: contradiction, and a process that ends or moves while the kubelet is asked."""
    process.cgroup(f"1:cpu:/kubepods/pod{UID}/{ID}\n2:memory:/kubepods/pod{OTHER_UID}/{SIDECAR}\n")
    with pytest.raises(PreconditionFailed):
        attestor(kubelet, pki, tmp_path).attest(process, soon())
    process.cgroup(f"0::/kubepods/pod{UID}/{ID}\n")
    kubelet.before = [lambda: process.cgroup(f"0::/kubepods/pod{UID}/{SIDECAR}\n")]
    with pytest.raises(Unavailable, match="changed its container"):
        attestor(kubelet, pki, tmp_path).attest(process, soon())
    process.cgroup(f"0::/kubepods/pod{UID}/{ID}\n")
    kubelet.before = [lambda: setattr(process, "ended", True)]
    with pytest.raises(Unauthenticated):
        attestor(kubelet, pki, tmp_path).attest(process, soon())


def test_container_selectors_can_be_left_out_for_pods_that_are_still_starting(kubelet, pki, tmp_path, process):
    """Istio's holdApplicationUntilProxyStarts (integrations 4a): the pod by its UID is enough."""
    kubelet.pods = [pod(UID, {})]
    found = values(attestor(kubelet, pki, tmp_path, disable_container_selectors=True).attest(process, soon()))
    assert "pod-name:web-0" in found
    assert not any(value.startswith("container-") for value in found)


class TestTheKubelet:
    def test_a_projected_token_that_the_cluster_reviews(self, pki, tmp_path, process):
        """As kubelets do: the account's own token, for the API server, of a pod that is there and may ask."""
        cluster = KubeCluster()
        cluster.add_node()
        agent = cluster.add_pod()
        account = "system:serviceaccount:muniment:node-agent"
        token = tmp_path / "token"
        files = (pki / "kubelet.crt", pki / "kubelet.key")
        with Kubelet(*files, cluster=cluster, accounts=[account]) as kubelet:
            kubelet.pods = [pod(UID, {"app": ID})]
            made = attestor(kubelet, pki, tmp_path, token_path=str(token))
            for audience, good in (((API_AUDIENCE,), True), (("spire-server",), False)):
                token.write_text(cluster.token(agent, audience))
                if good:
                    assert made.attest(process, soon()).selectors
                else:
                    made = attestor(kubelet, pki, tmp_path, token_path=str(token))
                    with pytest.raises(Unavailable, match="refuses"):
                        made.attest(process, soon())

    @pytest.mark.parametrize(
        ("status", "text"), [(401, "webhook authentication"), (403, "nodes/pods"), (500, "answered 500")]
    )
    def test_a_refusal_says_what_is_missing(self, kubelet, pki, tmp_path, process, status, text):
        kubelet.status = status
        with pytest.raises(Unavailable, match=text):
            attestor(kubelet, pki, tmp_path).attest(process, soon())

    def test_a_rotated_token_is_read_again(self, kubelet, pki, tmp_path, process):
        token = tmp_path / "token"
        token.write_text("old")
        made = attestor(kubelet, pki, tmp_path, token_path=str(token))
        with pytest.raises(Unavailable, match="refuses"):
            made.attest(process, soon())
        token.write_text("agent-token")
        assert made.attest(process, soon()).selectors

    def test_a_missing_or_broken_token_is_named_and_not_shown(self, kubelet, pki, tmp_path, process):
        with pytest.raises(Unavailable, match="cannot be read"):
            attestor(kubelet, pki, tmp_path, token_path=str(tmp_path / "none")).attest(process, soon())
        token = tmp_path / "token"
        token.write_text("secret\r\nHost: evil")
        with pytest.raises(Unavailable) as error:
            attestor(kubelet, pki, tmp_path, token_path=str(token)).attest(process, soon())
        assert "evil" not in error.value.public

    def test_a_client_certificate_instead_of_a_token(self, pki, tmp_path, process):
        with Kubelet(pki / "kubelet.crt", pki / "kubelet.key", client_ca=pki / "ca.crt", token=None) as kubelet:
            kubelet.pods = [pod(UID, {"app": ID})]
            pair = {"certificate_path": str(pki / "agent.crt"), "private_key_path": str(pki / "agent.key")}
            assert attestor(kubelet, pki, tmp_path, **pair).attest(process, soon()).selectors
            with pytest.raises(Unavailable):
                attestor(kubelet, pki, tmp_path).attest(process, soon())

    def test_a_stranger_in_its_place_is_not_believed_and_gets_no_token(self, kubelet, pki, tmp_path, process):
        with pytest.raises(Unavailable, match="TLS failed"):
            attestor(kubelet, pki, tmp_path, kubelet_ca_path=str(pki / "stranger.crt")).attest(process, soon())
        assert kubelet.asked == 0

    def test_the_name_is_verified_where_the_node_has_one(self, pki, tmp_path, process):
        with Kubelet(pki / "elsewhere.crt", pki / "elsewhere.key") as kubelet:
            kubelet.pods = [pod(UID, {"app": ID})]
            assert attestor(kubelet, pki, tmp_path).attest(process, soon()).selectors
            with pytest.raises(Unavailable, match="TLS failed"):
                attestor(kubelet, pki, tmp_path, node_name="localhost").attest(process, soon())

    @pytest.mark.parametrize("body", [b"", b"[]", b'{"items": 5}', b'{"items": [1]}', b"[" * 100_000])
    def test_nonsense_is_unavailable(self, kubelet, pki, tmp_path, process, body):
        kubelet.pods = body
        with pytest.raises(Unavailable, match="not a list"):
            attestor(kubelet, pki, tmp_path).attest(process, soon())

    def test_pods_of_odd_shapes_are_passed_over(self, kubelet, pki, tmp_path, process):
        kubelet.pods = [{}, {"status": 1}, {"status": {"containerStatuses": [3]}}, pod(UID, {"app": ID}, labels=None)]
        assert "ns:shop" in values(attestor(kubelet, pki, tmp_path).attest(process, soon()))

    def test_one_that_hangs_costs_the_budget_and_no_more(self, kubelet, pki, tmp_path, process):
        kubelet.delay.clear()
        with pytest.raises(Unavailable):
            attestor(kubelet, pki, tmp_path).attest(process, soon(0.6))
        kubelet.delay.set()

    def test_many_that_start_together_have_the_list_read_few_times(self, kubelet, pki, tmp_path, process):
        made = attestor(kubelet, pki, tmp_path)
        found = []
        threads = [threading.Thread(target=lambda: found.append(made.attest(process, soon(20)))) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 50
        assert kubelet.asked <= 5


@pytest.mark.parametrize(
    "over",
    [
        {"kubelet_secure_port": 0},
        {"certificate_path": "/x"},
        {"use_anonymous_authentication": True, "certificate_path": "/x", "private_key_path": "/y"},
    ],
)
def test_settings_that_contradict_each_other_are_refused(over):
    with pytest.raises(ConfigError):
        K8sSettings(**over)


FOUND = {
    "by key": KubernetesObject("pods", "core", "shop", "web-0"),
    "by UID": KubernetesObject("pods", "core", uid=UID),
    "by both": KubernetesObject("pods", "core", "shop", "web-0", UID),
}
NOT_FOUND = {
    "another name": KubernetesObject("pods", "core", "shop", "web-1"),
    "another namespace": KubernetesObject("pods", "core", "elsewhere", "web-0"),
    "a UID of nobody": KubernetesObject("pods", "core", uid="nobody"),
    "the name of one pod and the UID of another": KubernetesObject("pods", "core", "shop", "web-0", OTHER_UID),
}
NOT_LOOKED_UP = {
    "a deployment": KubernetesObject("deployments", "apps", "shop", "web"),
    "pods of another group": KubernetesObject("pods", "metrics.k8s.io", "shop", "web-0"),
    "a pod without a namespace": KubernetesObject("pods", "core", name="web-0"),
}


def test_a_pod_that_a_broker_names_is_known_by_what_is_said_of_the_pod(kubelet, pki, tmp_path):
    """BAPI-03, BAPI-06, BAPI-07, BAPI-10: SPIRE's selectors of the pod, of no container; a stale UID finds nothing."""
    made = attestor(kubelet, pki, tmp_path)
    for case, wanted in FOUND.items():
        said = values(made.attest_object(wanted, soon()))
        assert {f"pod-uid:{UID}", "ns:shop", "pod-name:web-0", "sa:frontend", "pod-image-count:2"} <= said, case
        assert not [one for one in said if one.startswith("container-")], case
    for case, wanted in NOT_FOUND.items():
        with pytest.raises(NotFound):
            made.attest_object(wanted, soon())
            pytest.fail(case)
    asked = kubelet.asked
    for case, wanted in NOT_LOOKED_UP.items():
        with pytest.raises(InvalidRequest):
            made.attest_object(wanted, soon())
            pytest.fail(case)
    assert kubelet.asked == asked
    kubelet.status = 503
    with pytest.raises(Unavailable):
        attestor(kubelet, pki, tmp_path).attest_object(FOUND["by UID"], soon())
