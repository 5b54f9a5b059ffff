"""How an API server is reached and what its troubles cost: kubeconfigs, the pod's own account, TLS, time, recovery."""

import base64
import json
import logging
import threading
import time

import pytest
import yaml

from attestors.kube_api import KubeApi as Client
from attestors.kube_config import PodSurroundings, from_file
from spiffe_core.errors import ConfigError, Unavailable
from tests.doubles.kube_api import KubeApi, KubePki
from tests.doubles.kube_cluster import KubeCluster

SETTING = "attestors.k8s_psat.clusters.prod.kube_config_file"


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return KubePki(tmp_path_factory.mktemp("kube"))


@pytest.fixture
def api(pki):
    with KubeApi(KubeCluster(), pki) as started:
        started.cluster.add_node()
        yield started


def client(path):
    return Client("prod", str(path), SETTING)


def asks(api_client, seconds=8.0):
    """The name of the node, as the API server has it."""
    with api_client.asked(time.monotonic() + seconds) as questions:
        return questions.node("node-1")["metadata"]["name"]


def inline(path):
    return base64.b64encode(path.read_bytes()).decode()


class TestKubeconfig:
    def test_yaml_as_kubectl_writes_it(self, api, tmp_path):
        document = json.loads(api.kubeconfig(tmp_path / "config").read_text())
        path = tmp_path / "yaml"
        path.write_text("# a comment\n" + yaml.safe_dump(document))
        path.chmod(0o600)
        assert asks(client(path)) == "node-1"

    def test_a_client_certificate_as_files_beside_it_or_inline(self, api, pki, tmp_path):
        """Relative paths begin at the kubeconfig; an inline key never becomes a file."""
        certificate, key = pki.pair("client", cn="muniment-server")
        api.rights["muniment-server"] = {"get nodes"}
        for name, material in (("c.crt", certificate), ("c.key", key)):
            (tmp_path / name).write_bytes(material.read_bytes())
            (tmp_path / name).chmod(0o600)
        files = {"client-certificate": "c.crt", "client-key": "c.key"}
        inlined = {"client-certificate-data": inline(certificate), "client-key-data": inline(key)}
        for user in (files, inlined):
            assert asks(client(api.kubeconfig(tmp_path / "config", user=user))) == "node-1"

    def test_a_token_file_is_read_for_every_use(self, api, tmp_path):
        token = tmp_path / "token"
        token.write_text("stale")
        made = client(api.kubeconfig(tmp_path / "config", user={"tokenFile": "token"}))
        with pytest.raises(Unavailable):
            asks(made)
        token.write_text(api.caller())
        assert asks(made) == "node-1"

    def test_the_name_in_the_certificate_may_be_another(self, api, pki, tmp_path):
        """`tls-server-name`, for an API server behind a tunnel."""
        with KubeApi(api.cluster, pki, names=("10.9.9.9",)) as moved:
            cluster = {"server": moved.url, "certificate-authority-data": inline(pki.ca)}
            with pytest.raises(Unavailable):
                asks(client(moved.kubeconfig(tmp_path / "config", cluster=cluster)))
            cluster["tls-server-name"] = "kubernetes.default.svc"
            assert asks(client(moved.kubeconfig(tmp_path / "config", cluster=cluster))) == "node-1"

    def test_a_path_before_the_api_is_kept(self, api, tmp_path):
        """As Rancher's: https://host/k8s/clusters/c-1."""
        ca = inline(api.pki.ca)
        access = from_file(
            api.kubeconfig(tmp_path / "c", cluster={"server": "https://h/k8s/c-1/", "certificate-authority-data": ca}),
            SETTING,
        )
        assert (access.host, access.port, access.prefix) == ("h", 443, "/k8s/c-1")

    def test_nothing_secret_is_shown(self, api, tmp_path):
        path = api.kubeconfig(tmp_path / "config")
        token = json.loads(path.read_text())["users"][0]["user"]["token"]
        assert token not in repr(from_file(path, SETTING))


def refused(path, message):
    with pytest.raises(ConfigError, match=message) as refusal:
        from_file(path, SETTING)
    assert refusal.value.field == SETTING


CA = {"server": "https://h"}
REFUSED = {
    "no verification": ({"cluster": {**CA, "insecure-skip-tls-verify": True}}, "insecure-skip-tls-verify is not supp"),
    "a proxy": ({"cluster": {**CA, "proxy-url": "http://p"}}, "proxy-url is not supported"),
    "plain http": ({"cluster": {"server": "http://h"}}, "server must be a URL"),
    "no server": ({"cluster": {"x": "y"}}, "server must be a URL"),
    "a port that is none": ({"cluster": {"server": "https://h:99999"}}, "server must be a URL"),
    "a program": ({"user": {"exec": {"command": "aws"}}}, "exec is not supported"),
    "a provider": ({"user": {"auth-provider": {"name": "gcp"}}}, "auth-provider is not supported"),
    "a password": ({"user": {"username": "admin", "password": "x"}}, "username is not supported"),
    "an impersonation": ({"user": {"token": "t", "as": "admin"}}, "as is not supported"),
    "no credential": ({"user": {"token": ""}}, "neither a token nor a client certificate"),
    "a token with a line end": ({"user": {"token": "a\nHost: evil"}}, "printable"),
    "half a pair": ({"user": {"client-certificate-data": "eA=="}}, "belong together"),
    "no pair": ({"user": {"client-certificate-data": "eA==", "client-key-data": "eA=="}}, "not a pair"),
    "no base64": ({"user": {"client-certificate-data": "!"}}, "not base64"),
    "no PEM": ({"cluster": {**CA, "certificate-authority-data": "eA=="}}, "not PEM"),
    "no context": ({"current-context": ""}, "no current-context"),
    "another context": ({"current-context": "there"}, "one context 'there'"),
    "no users": ({"users": []}, "one user 'u'"),
    "two of a name": ({"users": [{"name": "u", "user": {}}] * 2}, "one user 'u'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_kubeconfig_that_is_not_safe_or_not_whole_is_refused(api, tmp_path, case):
    change, message = REFUSED[case]
    refused(api.kubeconfig(tmp_path / "config", **change), message)


@pytest.mark.parametrize("content", ["", "[]", "{", "a: [", "just text"])
def test_a_file_that_is_no_kubeconfig_is_refused(tmp_path, content):
    path = tmp_path / "config"
    path.write_text(content)
    path.chmod(0o600)
    refused(path, "kube_config_file: ")


def test_a_kubeconfig_that_everybody_may_read_is_refused(api, tmp_path):
    path = api.kubeconfig(tmp_path / "config")
    path.chmod(0o644)
    refused(path, "chmod 0600")
    refused(tmp_path / "absent", "cannot be read")


class TestInAPod:
    def test_the_pods_own_account_is_used_and_read_anew(self, api, tmp_path):
        variables = api.surroundings(tmp_path)
        made = Client("prod", "", SETTING, PodSurroundings(lambda name: variables.get(name, ""), tmp_path))
        assert asks(made) == "node-1"
        good = (tmp_path / "token").read_text()
        (tmp_path / "token").write_text("a.b.c")
        with pytest.raises(Unavailable):
            asks(made)
        (tmp_path / "token").write_text(good)
        assert asks(made) == "node-1"

    def test_outside_of_any_pod_a_kubeconfig_is_asked_for(self, tmp_path):
        with pytest.raises(ConfigError, match="runs in no pod of Kubernetes; name a kubeconfig"):
            Client("prod", "", SETTING, PodSurroundings(lambda _: "", tmp_path)).access()


class TestTrouble:
    def test_one_that_is_not_there(self, pki, tmp_path):
        with KubeApi(KubeCluster(), pki) as gone:
            path = gone.kubeconfig(tmp_path / "config")
        with pytest.raises(Unavailable, match="cannot be asked now"):
            asks(client(path))

    def test_a_stranger_in_its_place_gets_no_token(self, api, tmp_path):
        stranger = KubePki(tmp_path, name="stranger")
        with KubeApi(api.cluster, stranger) as other:
            cluster = {"server": other.url, "certificate-authority-data": inline(api.pki.ca)}
            with pytest.raises(Unavailable):
                asks(client(other.kubeconfig(tmp_path / "config", cluster=cluster)))
            assert not other.requests

    def test_one_that_hangs_costs_the_budget_and_no_more(self, api, tmp_path):
        made = client(api.kubeconfig(tmp_path / "config"))
        api.delay.clear()
        started = time.monotonic()
        with pytest.raises(Unavailable):
            asks(made, 0.4)
        assert time.monotonic() - started < 10
        api.delay.set()

    def test_one_that_sends_a_byte_now_and_then_gets_no_more_time(self, api, tmp_path):
        """The time counts for the whole answer, not for each piece."""
        made = client(api.kubeconfig(tmp_path / "config"))
        api.drip = True
        started = time.monotonic()
        with pytest.raises(Unavailable):
            asks(made, 0.5)
        assert time.monotonic() - started < 10
        api.ending.set()

    def test_while_it_is_away_one_asks_and_the_others_are_turned_away_at_once(self, api, tmp_path, caplog):
        """It cannot hold every thread of the server; the first good answer ends that, and the log says both."""
        caplog.set_level(logging.INFO)
        made = client(api.kubeconfig(tmp_path / "config"))
        api.canned = {"/": (503, b"{}")}
        for _ in range(3):
            with pytest.raises(Unavailable, match="cannot be asked now"):
                asks(made)
        assert caplog.text.count("cannot be asked: ") == 1
        api.canned = {}
        api.delay.clear()
        found = []
        prober = threading.Thread(target=lambda: found.append(asks(made, 30.0)))
        api.arrived.clear()
        prober.start()
        assert api.arrived.wait(30)
        with pytest.raises(Unavailable, match="does not answer, try again"):
            asks(made)
        api.delay.set()
        prober.join()
        assert found == [asks(made)] == ["node-1"]
        assert caplog.text.count("answers again") == 1
