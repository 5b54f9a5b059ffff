"""k8s_psat against an API server over real HTTPS that reviews real tokens: what proves a node, and what does not (S25)."""

import copy
import json

import pytest

from attestors.api import Attested, advance
from attestors.node.k8s_psat import K8sPsatProver, K8sPsatVerifier, VerifierPorts, VerifierSettings
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import ConfigError, Forbidden, InvalidRequest, PreconditionFailed, Unavailable
from tests.doubles.kube_api import REVIEWS, KubeApi, KubePki
from tests.doubles.kube_cluster import API_AUDIENCE, EXTRA, KubeCluster, uid

ACCOUNT = "muniment:node-agent"


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return KubePki(tmp_path_factory.mktemp("kube"))


@pytest.fixture
def api(pki):
    with KubeApi(KubeCluster(), pki) as started:
        started.cluster.add_node("node-1", zone="west", secret="no")
        yield started


@pytest.fixture
def pod(api):
    return api.cluster.add_pod(app="agent", tier="infra")


@pytest.fixture
def verifier(api, tmp_path):
    return make(api, tmp_path)


def make(api, folder, *, seconds=8.0, **over):
    table = {
        "service_account_allow_list": [ACCOUNT],
        "kube_config_file": str(api.kubeconfig(folder / "config")),
        **over,
    }
    return K8sPsatVerifier(VerifierSettings({"prod": table}), VerifierPorts(seconds=seconds))


def attest(verifier, token, cluster="prod"):
    verdict = advance(verifier.verify(json.dumps({"cluster": cluster, "token": token}).encode(), b"k" * 32))
    assert isinstance(verdict, Attested)
    return verdict


def values(verdict):
    assert {selector.type for selector in verdict.selectors} == {"k8s_psat"}
    return {selector.value for selector in verdict.selectors}


def refused(verifier, token, message, error=Forbidden):
    with pytest.raises(error, match=message) as refusal:
        attest(verifier, token)
    assert token not in refusal.value.public


class TestAGoodToken:
    def test_names_the_node_and_gives_spires_selectors(self, api, pod, tmp_path):
        """spire_features 18.2: path by cluster and node UID, every selector, labels only by allowed keys, re-attestable."""
        verifier = make(api, tmp_path, allowed_node_label_keys=["zone", "absent"], allowed_pod_label_keys=["app"])
        verdict = attest(verifier, api.cluster.token(pod))
        node = api.cluster.nodes["node-1"]["metadata"]["uid"]
        assert verdict.agent_path == f"/spire/agent/k8s_psat/prod/{node}"
        assert verdict.may_reattest
        assert values(verdict) == {
            "cluster:prod",
            "agent_ns:muniment",
            "agent_sa:node-agent",
            "agent_pod_name:agent-5d84p",
            f"agent_pod_uid:{pod['metadata']['uid']}",
            "agent_node_ip:172.16.10.1",
            "agent_node_name:node-1",
            f"agent_node_uid:{node}",
            "agent_node_label:zone:west",
            "agent_pod_label:app:agent",
        }
        assert api.reviewed == [{"token": api.reviewed[0]["token"], "audiences": ["spire-server"]}]

    def test_by_rsa_and_without_a_node_in_the_token(self, pki, tmp_path):
        """RS256, and an API server before Kubernetes 1.30."""
        with KubeApi(KubeCluster(algorithm="RS256", names_nodes=False), pki) as api:
            api.cluster.add_node()
            assert attest(make(api, tmp_path), api.cluster.token(api.cluster.add_pod())).may_reattest

    def test_may_name_the_pod_instead(self, api, pod, tmp_path):
        verdict = attest(make(api, tmp_path, use_pod_uid_for_agent_id=True), api.cluster.token(pod))
        assert verdict.agent_path == f"/spire/agent/k8s_psat/prod/pod/{pod['metadata']['uid']}"

    def test_may_be_for_the_api_server_where_that_is_configured(self, api, pod, tmp_path):
        """`audience = []`: the API server's own, which is then the only one."""
        verifier = make(api, tmp_path, audience=[])
        assert attest(verifier, api.cluster.token(pod, (API_AUDIENCE,))).may_reattest
        refused(verifier, api.cluster.token(pod), "not authenticated")
        assert "audiences" not in api.reviewed[0]

    def test_may_be_used_again(self, api, pod, verifier):
        token = api.cluster.token(pod)
        assert attest(verifier, token) == attest(verifier, token)


class TestForgeries:
    """S25: each is refused for its own reason, and nothing of the token is believed but what the API server says."""

    def test_wrong_audience(self, api, pod, verifier):
        refused(verifier, api.cluster.token(pod, ("vault",)), "not authenticated")

    def test_expired(self, api, pod, verifier):
        refused(verifier, api.cluster.token(pod, seconds=-60), "not authenticated")

    def test_another_clusters_key(self, api, pod, verifier):
        """Everything is right but who signed: under its own name, and under the name of our cluster's key."""
        claims, key = api.cluster.claims(pod), generate(KeyKind.EC_P256)
        for kid in (uid(), api.cluster.kid):
            refused(verifier, api.cluster.sign(claims, key=key, kid=kid), "not authenticated")

    def test_changed_claims_under_a_good_signature(self, api, pod, verifier):
        head, _, tail = api.cluster.token(pod).split(".")
        other = api.cluster.token(api.cluster.add_pod("other", account="admin")).split(".")[1]
        refused(verifier, f"{head}.{other}.{tail}", "not authenticated")

    def test_a_service_account_that_is_not_allowed(self, api, verifier):
        for namespace, account in (("muniment", "web"), ("shop", "node-agent"), ("muniment", "node-agent.evil")):
            pod = api.cluster.add_pod(f"{account}-0", namespace=namespace, account=account)
            refused(verifier, api.cluster.token(pod), "is not an allowed service account")

    def test_a_pod_that_is_gone(self, api, pod, verifier):
        """The API server's cache still believes in it (seen on a real one): the pod itself is looked up."""
        token = api.cluster.token(pod)
        del api.cluster.pods["muniment", pod["metadata"]["name"]]
        refused(verifier, token, "not authenticated")
        api.cluster.forgetful = False
        refused(verifier, token, "is gone")

    def test_a_pod_that_took_the_name_of_an_earlier_one(self, api, pod, verifier):
        api.cluster.forgetful = False
        token = api.cluster.token(pod)
        api.cluster.add_pod()
        refused(verifier, token, "pod UID mismatch")

    def test_a_pod_that_runs_as_another_account(self, api, pod, verifier):
        token = api.cluster.token(pod)
        pod["spec"]["serviceAccountName"] = "web"
        refused(verifier, token, "service account mismatch")

    def test_a_pod_that_has_ended_or_runs_nowhere(self, api, pod, verifier):
        token = api.cluster.token(pod)
        for phase in ("Succeeded", "Failed"):
            pod["status"]["phase"] = phase
            refused(verifier, token, "has ended")
        pod["status"]["phase"], pod["spec"]["nodeName"] = "Pending", ""
        refused(verifier, token, "runs on no node")

    def test_a_token_of_another_node(self, api, pod, verifier):
        """By name, and by UID when a new node took the name."""
        token = api.cluster.token(pod)
        api.cluster.add_node("node-2")
        pod["spec"]["nodeName"] = "node-2"
        refused(verifier, token, "node name mismatch")
        pod["spec"]["nodeName"] = "node-1"
        api.cluster.add_node("node-1")
        refused(verifier, token, "node UID mismatch")
        del api.cluster.nodes["node-1"]
        refused(verifier, token, "is gone")

    def test_a_token_bound_to_no_pod(self, api, pod, verifier):
        """A secret's token, or one of `kubectl create token`."""
        claims = api.cluster.claims(pod)
        del claims["kubernetes.io"]["pod"]
        refused(verifier, api.cluster.sign(claims), "not bound to a pod")

    @pytest.mark.parametrize("part", ['muniment", "node-agent', "../../nodes/x", "Node-Agent", ""])
    def test_names_that_are_none_never_reach_a_path(self, api, pod, verifier, part):
        """A TokenReview webhook may say anything: RFC 1123 names or nothing."""
        edit(api, lambda status: status["user"]["extra"].update({f"{EXTRA}pod-name": [part]}))
        refused(verifier, api.cluster.token(pod), "not bound to a pod")
        edit(api, lambda status: status["user"].update(username=f"system:serviceaccount:muniment:{part}"))
        refused(verifier, api.cluster.token(pod), "not that of a service account")
        assert not [path for _, path in api.requests if path.startswith("/api/v1/")]

    @pytest.mark.parametrize("name", ["pod-name", "pod-uid", "node-name", "node-uid"])
    @pytest.mark.parametrize("said", [[], ["a", "b"], "a", [1], None], ids=["none", "two", "text", "number", "null"])
    def test_an_attribute_that_is_not_said_once(self, api, pod, verifier, name, said):
        edit(api, lambda status: status["user"]["extra"].update({f"{EXTRA}{name}": said}))
        refused(verifier, api.cluster.token(pod), f"{name} other than once")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"authenticated": False}, "not authenticated"),
            ({"authenticated": "true"}, "not authenticated"),
            ({"error": "the webhook is away"}, "not authenticated"),
            ({"audiences": ["vault"]}, "did not confirm"),
            ({"audiences": []}, "did not confirm"),
            ({"audiences": None}, "did not confirm"),
            ({"user": {"username": "admin"}}, "not that of a service account"),
            ({"user": {"username": "x:serviceaccount:muniment:node-agent"}}, "not that of a service account"),
            ({"user": None}, "not that of a service account"),
        ],
        ids=["false", "a-text", "error", "other-audience", "no-audience", "null-audience", "user", "prefix", "no-user"],
    )
    def test_a_review_that_does_not_say_yes(self, api, pod, verifier, change, message):
        edit(api, lambda status: status.update(change))
        refused(verifier, api.cluster.token(pod), message)

    def test_objects_under_another_name(self, api, pod, verifier):
        """A proxy that answers with something else is not believed."""
        other = copy.deepcopy(pod)
        other["metadata"]["name"] = "other"
        api.edit = lambda path, document: other if "/pods/" in path else document
        refused(verifier, api.cluster.token(pod), "pod name mismatch")
        node = api.cluster.add_node("node-2")
        api.edit = lambda path, document: node if "/nodes/" in path else document
        refused(verifier, api.cluster.token(pod), "no usable UID")

    @pytest.mark.parametrize(
        "found", ["", "..", "a/b", "x" * 300, 7, None], ids=["0", "dots", "path", "long", "int", "no"]
    )
    def test_a_node_uid_that_cannot_be_a_path_segment(self, api, pod, verifier, found):
        """S32: the agent's path has no room for tricks."""
        api.cluster.names_nodes = False
        token = api.cluster.token(pod)
        api.cluster.nodes["node-1"]["metadata"]["uid"] = found
        refused(verifier, token, "no usable UID")


def edit(api, change):
    """Change the status of each review."""

    def changed(path, document):
        if path.startswith(REVIEWS):
            document = copy.deepcopy(document)
            change(document["status"])
        return document

    api.edit = changed


class TestThePayload:
    @pytest.mark.parametrize(
        ("payload", "message"),
        [
            (b"{}", "missing cluster"),
            (b'{"cluster": "prod"}', "missing token"),
            (b'{"cluster": 1, "token": "a.b.c"}', "missing cluster"),
            (b'{"cluster": "other", "token": "a.b.c"}', "not configured for cluster 'other'"),
            (b'{"cluster": "prod", "token": "a.b"}', "not a projected"),
            (b'{"cluster": "prod", "token": "a.b.c\\n"}', "not a projected"),
            (b'{"cluster": "prod", "cluster": "prod", "token": "a.b.c"}', "not the JSON"),
            (b'{"cluster": "prod", "token": "a.b.c", "token": "a.b.c"}', "not the JSON"),
            (b'{"cluster": "prod", "token": "' + b"a" * 70000 + b'.b.c"}', "more than"),
        ],
        ids=["empty", "token", "number", "other", "two-parts", "line", "cluster-twice", "token-twice", "large"],
    )
    def test_what_cannot_be_read_costs_no_question(self, api, verifier, payload, message):
        with pytest.raises(InvalidRequest, match=message):
            advance(verifier.verify(payload, b"k" * 32))
        assert not api.requests


class TestTheAgentsHalf:
    def test_sends_what_spires_sends(self, api, pod, tmp_path):
        token = api.cluster.token(pod)
        (tmp_path / "token").write_text(token + "\n")
        prover = K8sPsatProver(K8sPsatProver.Settings("prod", str(tmp_path / "token")))
        dialogue = prover.prove()
        assert json.loads(next(dialogue)) == {"cluster": "prod", "token": token}
        with pytest.raises(PreconditionFailed, match="challenged"):
            dialogue.send(b"?")

    def test_sees_a_new_token(self, tmp_path):
        """The kubelet exchanges a link to a directory."""
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "token").write_text(f"a.b.{name}")
        link = tmp_path / "data"
        prover = K8sPsatProver(K8sPsatProver.Settings("prod", str(link / "token")))
        assert prover.fingerprint() == ""
        link.symlink_to(tmp_path / "one")
        before = prover.fingerprint()
        assert before == prover.fingerprint() != ""
        link.unlink()
        link.symlink_to(tmp_path / "two")
        assert prover.fingerprint() not in {"", before}
        assert json.loads(next(prover.prove()))["token"] == "a.b.two"

    @pytest.mark.parametrize("content", [None, "", "no token", "a.b.c\nd.e.f"], ids=["absent", "empty", "text", "two"])
    def test_says_when_there_is_no_token(self, tmp_path, content):
        path = tmp_path / "token"
        if content is not None:
            path.write_text(content)
        with pytest.raises(ConfigError, match="token_path") as refusal:
            next(K8sPsatProver(K8sPsatProver.Settings("prod", str(path))).prove())
        assert "d.e.f" not in refusal.value.public

    @pytest.mark.parametrize("cluster", ["", "a/b", ".."])
    def test_needs_the_clusters_name(self, cluster):
        with pytest.raises(ConfigError, match="cluster"):
            K8sPsatProver.Settings(cluster)


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        ({}, "needs 1 to"),
        ([], "needs 1 to"),
        ({"a/b": {}}, "becomes part of SPIFFE IDs"),
        ({"prod": 5}, "must be a table"),
        ({"prod": {}}, "service_account_allow_list: needs at least one"),
        ({"prod": {"service_account_allow_list": ["agent"]}}, "NAMESPACE:NAME"),
        ({"prod": {"service_account_allow_list": "a:b"}}, "array of texts"),
        ({"prod": {"service_account_allow_list": [ACCOUNT], "audience": [""]}}, "none of them empty"),
        ({"prod": {"service_account_allow_list": [ACCOUNT], "audiences": []}}, "did you mean 'audience'"),
        ({"prod": {"service_account_allow_list": [ACCOUNT] * 101}}, "at most 100"),
    ],
    ids=["none", "list", "name", "number", "no-account", "account", "text", "audience", "unknown", "many"],
)
def test_a_servers_table_that_cannot_work_is_refused_by_key_and_rule(clusters, message):
    with pytest.raises(ConfigError, match=message) as refusal:
        VerifierSettings(clusters)
    assert refusal.value.field.startswith("attestors.k8s_psat.clusters")


class TestAnApiServerInTrouble:
    """It is never the node's fault: Unavailable, so that the agent asks again, and why stands in our log."""

    @pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
    def test_a_refusal_or_an_error(self, api, pod, verifier, status, caplog):
        api.canned = {"/": (status, b'{"kind":"Status","message":"told so"}')}
        refused(verifier, api.cluster.token(pod), "cannot be asked now", Unavailable)
        assert str(status) in caplog.text
        assert api.cluster.token(pod) not in caplog.text

    @pytest.mark.parametrize("right", ["create tokenreviews", "get pods", "get nodes"])
    def test_a_role_that_is_too_small_is_named_in_the_log(self, api, pod, verifier, right, caplog):
        account = "system:serviceaccount:muniment:identity-server"
        api.rights[account] = api.rights[account] - {right}
        refused(verifier, api.cluster.token(pod), "cannot be asked now", Unavailable)
        assert right.split()[1] in caplog.text

    @pytest.mark.parametrize("body", [b"", b"[]", b"[" * 99999, b'{"a":1,"a":2}'], ids=["no", "list", "deep", "twice"])
    def test_nonsense(self, api, pod, verifier, body):
        api.canned = {"/": (201, body)}
        refused(verifier, api.cluster.token(pod), "cannot be asked now", Unavailable)

    def test_an_answer_that_is_too_large(self, api, pod, verifier, caplog):
        api.canned = {"/": (201, b"{" + b" " * (5 * 1024 * 1024) + b"}")}
        refused(verifier, api.cluster.token(pod), "cannot be asked now", Unavailable)
        assert "more than" in caplog.text

    @pytest.mark.parametrize(
        "body", [b"404 page not found", b'{"kind":"Status","reason":"Gone"}'], ids=["page", "json"]
    )
    def test_a_404_of_something_else_is_no_missing_pod(self, api, pod, verifier, body):
        """A proxy before the API server that knows no such path."""
        api.canned = {"/pods/": (404, body)}
        refused(verifier, api.cluster.token(pod), "cannot be asked now", Unavailable)
