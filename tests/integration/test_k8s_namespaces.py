"""Labels of namespaces as selectors (SPIRE's enable_namespace_labels): from an API server over real HTTPS."""

import time

import pytest

from attestors.kube_config import PodSurroundings, from_pod
from attestors.procfs import ProcFs
from attestors.workload import namespaces
from attestors.workload.k8s import K8sAttestor, K8sPorts, K8sSettings
from spiffe_core.errors import Unavailable
from tests.doubles.kube_api import KubeApi, KubePki
from tests.doubles.kube_cluster import KubeCluster
from tests.doubles.kubelet import Kubelet, pod
from tests.doubles.kubelet_files import kubelet_files

ID, UID = "a" * 64, "2c48913c-b29f-11e7-9350-020968147796"
LABELS = {"k8s:ns-label:team:pay", "k8s:ns-label:kubernetes.io/metadata.name:shop"}


class Process:
    pid, uid, gid = 4242, 0, 0

    def require_alive(self):
        pass


class Node:
    """A kubelet and an API server, and an agent's pod that may get namespaces."""

    def __init__(self, folder, rights):
        for name in ("kubelet", "cluster"):
            (folder / name).mkdir()
        files = kubelet_files(folder / "kubelet")
        self.kubelet = Kubelet(files / "kubelet.crt", files / "kubelet.key")
        self.kubelet.pods = [pod(UID, {"app": ID})]
        self.api = KubeApi(KubeCluster(), KubePki(folder / "cluster"))
        self.api.namespaces["shop"] = {
            "metadata": {"name": "shop", "labels": {"team": "pay", "kubernetes.io/metadata.name": "shop"}}
        }
        account = folder / "account"
        account.mkdir()
        (account / "token").write_text(self.api.caller("node-agent", rights=rights))
        (account / "ca.crt").write_bytes(self.api.pki.ca.read_bytes())
        variables = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.api.port)}
        own = folder / "proc" / "4242"
        own.mkdir(parents=True)
        (own / "cgroup").write_text(f"0::/kubepods/burstable/pod{UID}/{ID}\n")
        self.later = 0.0
        self.settings = {
            "kubelet_secure_port": self.kubelet.port,
            "kubelet_ca_path": str(files / "ca.crt"),
            "token_path": str(files / "token"),
        }
        surroundings = PodSurroundings(lambda name: variables.get(name, ""), account)
        self.ports = K8sPorts(
            proc=ProcFs(folder / "proc"),
            variable=lambda _: "",
            monotonic=self.now,
            api_server=lambda: from_pod(surroundings, "attestors.k8s.enable_namespace_labels"),
        )
        self.attestor = self.made(enable_namespace_labels=True)

    def now(self):
        return time.monotonic() + self.later

    def made(self, **over):
        return K8sAttestor(K8sSettings(**self.settings, **over), self.ports)

    def found(self, attestor=None):
        findings = (attestor or self.attestor).attest(Process(), self.now() + 10)
        return {str(one) for one in findings.selectors}


@pytest.fixture
def node(tmp_path, request):
    made = Node(tmp_path, getattr(request, "param", frozenset({"get namespaces"})))
    with made.kubelet, made.api:
        yield made


def test_the_labels_of_the_pods_namespace_are_selectors_where_they_are_wanted(node):
    """spire_features 18.1: ns-label, opt-in; and asked for once."""
    assert node.found() >= LABELS
    assert node.found() >= LABELS
    assert [path for _, path in node.api.requests] == ["/api/v1/namespaces/shop"]
    assert not any("ns-label" in one for one in node.found(node.made()))


def test_changed_labels_are_seen_soon(node):
    assert node.found() >= LABELS
    node.api.namespaces["shop"]["metadata"]["labels"] = {"team": "ship"}
    node.later += namespaces.FRESH_SECONDS
    assert {one for one in node.found() if "ns-label" in one} == {"k8s:ns-label:team:ship"}


@pytest.mark.parametrize(
    "shape", [None, {}, {"metadata": 5}, {"metadata": {"labels": [1]}}, {"metadata": {"labels": {"a": 1}}}]
)
def test_a_namespace_that_is_gone_or_odd_has_none(node, shape):
    if shape is None:
        node.api.namespaces.clear()
    else:
        node.api.namespaces["shop"] = shape
    found = node.found()
    assert "k8s:ns:shop" in found
    assert not any("ns-label" in one for one in found)


def test_an_api_server_that_restarts_costs_nobody_a_label(node):
    assert node.found() >= LABELS
    node.api.canned["/namespaces/"] = (500, b"{}")
    node.later += namespaces.FRESH_SECONDS
    assert node.found() >= LABELS
    assert "500" in node.attestor.trouble
    node.later += namespaces.STALE_SECONDS
    with pytest.raises(Unavailable, match="500"):
        node.found()
    node.api.canned.clear()
    assert node.found() >= LABELS
    assert node.attestor.trouble == ""


@pytest.mark.parametrize("node", [frozenset()], indirect=True)
def test_a_missing_right_is_named(node):
    """Fails closed: the entry that needs the label must not be matched by what is left."""
    with pytest.raises(Unavailable, match="`get` on `namespaces`"):
        node.found()
    assert "`get` on `namespaces`" in node.attestor.trouble


def test_an_agent_outside_of_a_pod_says_what_is_missing(node, tmp_path):
    ports = K8sPorts(proc=node.ports.proc, variable=lambda _: "", monotonic=node.now)
    made = K8sAttestor(K8sSettings(**node.settings, enable_namespace_labels=True), ports)
    with pytest.raises(Unavailable, match=r"attestors\.k8s\.enable_namespace_labels"):
        node.found(made)
