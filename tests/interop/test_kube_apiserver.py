"""With a real API server: it takes every manifest of deploy/kubernetes, whose roles then suffice for k8s_psat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from attestors.api import Attested, advance
from attestors.node.k8s_psat import K8sPsatVerifier, VerifierSettings
from spiffe_core.errors import Forbidden, Unavailable
from tests.interop.kube_apiserver import ApiServer, kube_binaries, real_api_server
from tests.interop.peers import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.xdist_group("kube-apiserver")]

MANIFESTS = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
ORDER = ("namespace", "server", "agent", "csi-driver", "example-workload")
OBJECTS = [found for name in ORDER for found in yaml.safe_load_all((MANIFESTS / f"{name}.yaml").read_text())]
AUDIENCE = "spire-server"


@pytest.fixture(scope="module")
def api(folder: Path) -> Iterator[ApiServer]:
    """With everything of the manifests, and one node."""
    with real_api_server(kube_binaries(), folder) as started:
        started.call("POST", "/api/v1/namespaces", {"metadata": {"name": "default"}})  # it may be there already
        answers = {f"{one['kind']}/{one['metadata']['name']}": started.create(one) for one in OBJECTS}
        refused = {name: answer.get("message") for name, (code, answer) in answers.items() if code != 201}
        assert not refused
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1", "labels": {"zone": "west"}}}
        assert started.create(node)[0] == 201
        yield started


@pytest.fixture
def pod(api: ApiServer) -> Iterator[dict[str, Any]]:
    made = agent_pod(api)
    yield made
    delete(api, made)


def agent_pod(api: ApiServer) -> dict[str, Any]:
    """What the DaemonSet's controller would make for the node."""
    (template,) = [
        one["spec"]["template"]
        for one in OBJECTS
        if one["kind"] == "DaemonSet" and one["metadata"]["name"] == "node-agent"
    ]
    metadata = {"name": "node-agent-x", "namespace": "muniment", "labels": template["metadata"]["labels"]}
    spec = {**template["spec"], "nodeName": "node-1"}
    code, made = api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    assert code == 201, made
    return made


def delete(api: ApiServer, pod: dict[str, Any]) -> None:
    api.call("DELETE", f"/api/v1/namespaces/muniment/pods/{pod['metadata']['name']}?gracePeriodSeconds=0")


@pytest.fixture(scope="module")
def verifier(api: ApiServer, folder: Path) -> K8sPsatVerifier:
    """A server with the token of its own account and the configuration of its ConfigMap."""
    user = {"token": api.token("identity-server")}
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": api.url, "certificate-authority": str(api.ca)}}],
        "users": [{"name": "u", "user": user}],
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    path.chmod(0o600)
    table = {"service_account_allow_list": ["muniment:node-agent"], "allowed_node_label_keys": ["zone"]}
    return K8sPsatVerifier(VerifierSettings({"cluster": {**table, "kube_config_file": str(path)}}))  # type: ignore[dict-item]


def attest(verifier: K8sPsatVerifier, token: str) -> Attested:
    verdict = advance(verifier.verify(json.dumps({"cluster": "cluster", "token": token}).encode(), b""))
    assert isinstance(verdict, Attested)
    return verdict


def test_the_token_of_an_agents_pod_proves_its_node(
    api: ApiServer, verifier: K8sPsatVerifier, pod: dict[str, Any]
) -> None:
    """With no right but those of deploy/kubernetes/server.yaml."""
    verdict = attest(verifier, api.token("node-agent", pod, AUDIENCE))
    _, node = api.call("GET", "/api/v1/nodes/node-1")
    assert verdict.agent_path == f"/spire/agent/k8s_psat/cluster/{node['metadata']['uid']}"
    values = {selector.value for selector in verdict.selectors}
    assert {"agent_ns:muniment", "agent_sa:node-agent", "agent_node_label:zone:west"} <= values
    assert f"agent_pod_uid:{pod['metadata']['uid']}" in values


def test_other_tokens_of_the_cluster_prove_nothing(
    api: ApiServer, verifier: K8sPsatVerifier, pod: dict[str, Any]
) -> None:
    good = api.token("node-agent", pod, AUDIENCE)
    cases = {
        "not authenticated": (
            api.token("node-agent", pod, "vault"),
            api.token("node-agent", pod),
            f"{good[:-8]}AAAAAAAA",
        ),
        "not bound to a pod": (api.token("node-agent", None, AUDIENCE),),
        "not an allowed service account": (api.token("identity-server", None, AUDIENCE),),
    }
    for message, tokens in cases.items():
        for token in tokens:
            with pytest.raises(Forbidden, match=message):
                attest(verifier, token)


def test_a_token_that_outlives_its_pod_in_the_cache_proves_nothing(api: ApiServer, verifier: K8sPsatVerifier) -> None:
    """The real API server goes on believing in it for some seconds; neither then nor by a new pod of that name is it let in."""
    pod = agent_pod(api)
    token = api.token("node-agent", pod, AUDIENCE)
    attest(verifier, token)
    delete(api, pod)
    with pytest.raises(Forbidden, match=r"is gone|not authenticated"):
        attest(verifier, token)
    again = agent_pod(api)
    try:
        with pytest.raises(Forbidden, match=r"pod UID mismatch|not authenticated"):
            attest(verifier, token)
        attest(verifier, api.token("node-agent", again, AUDIENCE))
    finally:
        delete(api, again)


def test_without_its_role_the_server_decides_nothing(
    api: ApiServer, verifier: K8sPsatVerifier, pod: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The last test of the file: it takes the binding away."""
    token = api.token("node-agent", pod, AUDIENCE)
    path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/muniment-identity-server"
    assert api.call("DELETE", path)[0] == 200

    def refused() -> bool:
        try:
            attest(verifier, token)
        except Unavailable:
            return True
        return False

    until(refused)
    assert "`create` on `tokenreviews`" in caplog.text
