"""deploy/kubernetes: each manifest is parsed, its command lines and configurations are real, and its parts fit together."""

import re
import tomllib
from pathlib import Path, PurePosixPath

import pytest
import yaml

import identity_server.cli
import node_agent.cli
from attestors.node.k8s_psat import VerifierSettings
from identity_server.settings import load as load_server
from node_agent.settings import load as load_agent
from spiffe_core.terminal.flags import normalise
from tests.doubles.command_lines import parsed
from tests.doubles.pages import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OURS = {"identity-server": "server", "node-agent": "agent"}
MAIN = {"server": identity_server.cli.main, "agent": node_agent.cli.main}
LOAD = {"server": load_server, "agent": load_agent}
NAMES = {
    "v1": {"Namespace", "ServiceAccount", "ConfigMap", "Service", "Pod"},
    "apps/v1": {"StatefulSet", "DaemonSet"},
    "rbac.authorization.k8s.io/v1": {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"},
    "storage.k8s.io/v1": {"CSIDriver"},
}
CLUSTER_WIDE = {"Namespace", "ClusterRole", "ClusterRoleBinding", "CSIDriver"}


class Strict(yaml.SafeLoader):
    """YAML in which no key stands twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(set(keys)) == len(keys), f"a key stands twice: {keys}"
        return super().construct_mapping(node, deep)


OBJECTS = [
    (path.name, found)
    for path in sorted(FOLDER.glob("*.yaml"))
    for found in yaml.load_all(path.read_text(), Loader=Strict)  # a SafeLoader
]
BY_NAME = {(found["kind"], found["metadata"]["name"]): found for _, found in OBJECTS}


def pod_of(found):
    return found["spec"] if found["kind"] == "Pod" else found["spec"]["template"]["spec"]


PODS = {
    f"{found['kind']}/{found['metadata']['name']}": (found, pod_of(found))
    for _, found in OBJECTS
    if found["kind"] in {"Pod", "StatefulSet", "DaemonSet"}
}
SERVER, AGENT = PODS["StatefulSet/identity-server"], PODS["DaemonSet/node-agent"]
CONTAINERS = [(name, container) for name, (_, pod) in PODS.items() for container in pod["containers"]]
OUR_CONTAINERS = [
    (name, container, container["image"].partition("/")[2].partition(":")[0])
    for name, container in CONTAINERS
    if container["image"].startswith("muniment/")
]


@pytest.fixture(params=sorted(MAIN))
def daemon(request):
    return request.param


@pytest.fixture
def settings(tmp_path):
    """The settings in the ConfigMap of a daemon."""

    def read(daemon):
        name = next(name for name, kind in OURS.items() if kind == daemon)
        path = tmp_path / f"{daemon}.toml"
        path.write_text(BY_NAME["ConfigMap", name]["data"][f"{daemon}.toml"])
        return path, LOAD[daemon](path)

    return read


@pytest.mark.parametrize(("file", "found"), OBJECTS, ids=lambda v: v if isinstance(v, str) else v["metadata"]["name"])
def test_an_object_is_of_a_known_kind_and_in_our_namespace(file, found):
    assert found["kind"] in NAMES[found["apiVersion"]]
    where = found["metadata"].get("namespace", "")
    wanted = "" if found["kind"] in CLUSTER_WIDE else "default" if file == "example-workload.yaml" else "muniment"
    assert where == wanted


@pytest.mark.parametrize(
    ("name", "container", "program"), OUR_CONTAINERS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_container_starts_a_command_that_its_program_has(name, container, program):
    verb, flags = parsed([program, *container["args"]], name)
    assert "command" not in container, "the image's entry point is the program"
    assert verb in {"run", "watch"}
    if verb == "run":
        assert flags == {"config": f"/etc/muniment/{OURS[program]}.toml"}


def shown_commands():
    for path in sorted(FOLDER.glob("*.yaml")):
        text = re.sub(r"\\\n#\s*", " ", path.read_text())
        for line in re.findall(r"-- ((?:identity-server|node-agent) .*)", text):
            yield path.name, line.partition(" > ")[0].split()


@pytest.mark.parametrize(("file", "words"), list(shown_commands()), ids=lambda v: v if isinstance(v, str) else v[1])
def test_a_command_in_a_comment_is_real(file, words):
    parsed(words, file)


def test_a_configuration_is_valid_to_the_real_command(daemon, settings, capsys):
    """Run through `validate`, which also holds the tables of attestors to what each attestor takes."""
    path, loaded = settings(daemon)
    with pytest.raises(SystemExit) as left:
        MAIN[daemon](["validate", "--config", str(path)])
    shown = capsys.readouterr()
    assert left.value.code in {0, None}, shown.err
    assert not loaded.warnings()
    assert "warning" not in shown.err


def volumes(found, pod):
    claims = found["spec"].get("volumeClaimTemplates", ())
    return {one["name"]: one for one in [*pod["volumes"], *({"name": c["metadata"]["name"]} for c in claims)]}


@pytest.mark.parametrize("name", PODS)
def test_a_pod_mounts_what_it_has_and_has_what_it_mounts(name):
    found, pod = PODS[name]
    mounted = {one["name"] for container in pod["containers"] for one in container["volumeMounts"]}
    assert mounted == set(volumes(found, pod))
    for volume in pod["volumes"]:
        if "configMap" in volume and volume["configMap"]["name"] != "trust-bundle":  # which the server publishes
            assert ("ConfigMap", volume["configMap"]["name"]) in BY_NAME
    assert ("ServiceAccount", pod["serviceAccountName"]) in BY_NAME
    if found["kind"] != "Pod":
        labels = found["spec"]["template"]["metadata"]["labels"]
        assert found["spec"]["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize(("workload", "daemon_name"), [(SERVER, "server"), (AGENT, "agent")], ids=["server", "agent"])
def test_every_path_of_a_configuration_is_on_a_volume(workload, daemon_name, settings):
    """State and sockets where something is mounted that can be written, and lasts; everything else is read-only."""
    found, pod = workload
    (container,) = pod["containers"]
    mounts = {PurePosixPath(one["mountPath"]): one for one in container["volumeMounts"]}
    _, loaded = settings(daemon_name)

    def volume_of(path):
        at = max((mount for mount in mounts if PurePosixPath(path).is_relative_to(mount)), key=lambda m: len(m.parts))
        return volumes(found, pod)[mounts[at]["name"]], mounts[at]

    sockets = [loaded.socket_path, *([loaded.admin_socket_path] if daemon_name == "agent" else [])]
    for path in (loaded.data_dir, *sockets):
        volume, mount = volume_of(path)
        assert not mount.get("readOnly")
        assert "emptyDir" not in volume, "its directory can be written by others: no socket is put below it"
        assert PurePosixPath(mount["mountPath"]) != PurePosixPath(path), "the daemon makes it with a mode of its own"
    if daemon_name == "agent":
        volume, _ = volume_of(loaded.trust_bundle_path)
        assert volume["configMap"] == {"name": "trust-bundle"}
        (source,) = volume_of(loaded.attestors["k8s_psat"]["token_path"])[0]["projected"]["sources"]
        path = PurePosixPath(loaded.attestors["k8s_psat"]["token_path"])
        assert source["serviceAccountToken"]["path"] == path.name
    assert "emptyDir" in volume_of("/tmp/muniment-door-1")[0]


@pytest.mark.parametrize(("workload", "daemon_name"), [(SERVER, "server"), (AGENT, "agent")], ids=["server", "agent"])
def test_probes_ask_the_pages_that_the_configuration_opens(workload, daemon_name, settings):
    _, pod = workload
    (container,) = pod["containers"]
    _, loaded = settings(daemon_name)
    checks = loaded.health_checks
    assert checks.listener_enabled
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
    for probe, path in (
        ("startupProbe", checks.live_path),
        ("livenessProbe", checks.live_path),
        ("readinessProbe", checks.ready_path),
    ):
        asked = container[probe]["httpGet"]
        assert (asked["path"], ports.get(asked["port"], asked["port"])) == (path, checks.bind_port), probe
        assert asked.get("host", "0.0.0.0") == checks.bind_address
    if daemon_name == "agent":
        assert pod["hostNetwork"], "a kubelet reaches 127.0.0.1 of pods on its own network alone"
        assert checks.bind_address == "127.0.0.1", "on the host's network only the host may ask"


def test_the_server_stays_ready_without_its_database(settings):
    """ADR 11: the Service would take it away from agents that it can serve."""
    assert settings("server")[1].health_checks.ready_without_database


def test_agents_find_the_server_and_it_knows_their_tokens(settings):
    """Address and port by the Service; cluster, audience and service account of k8s_psat on both sides."""
    _, server = settings("server")
    _, agent = settings("agent")
    assert agent.trust_domain == server.trust_domain
    service = BY_NAME["Service", "identity-server"]
    (port,) = service["spec"]["ports"]
    (container,) = SERVER[1]["containers"]
    assert {"name": port["targetPort"], "containerPort": server.bind_port} in container["ports"]
    assert agent.servers == [(f"identity-server.{service['metadata']['namespace']}.svc", port["port"])]
    assert service["spec"]["selector"] == SERVER[0]["spec"]["selector"]["matchLabels"]
    cluster = VerifierSettings(**server.attestors["k8s_psat"]).clusters[agent.attestors["k8s_psat"]["cluster"]]
    assert cluster.service_account_allow_list == (f"muniment:{AGENT[1]['serviceAccountName']}",)
    (token,) = [volume["projected"]["sources"][0] for volume in AGENT[1]["volumes"] if "projected" in volume]
    assert token["serviceAccountToken"]["audience"] in cluster.audience
    assert 600 <= token["serviceAccountToken"]["expirationSeconds"] <= 3600


def rights(account):
    """(group, resource, verb, whether in the whole cluster) of a service account of ours."""
    found = set()
    for _, binding in OBJECTS:
        if binding["kind"] not in {"ClusterRoleBinding", "RoleBinding"}:
            continue
        subjects = [(one["kind"], one["namespace"], one["name"]) for one in binding["subjects"]]
        if ("ServiceAccount", "muniment", account) not in subjects:
            continue
        role = BY_NAME[binding["roleRef"]["kind"], binding["roleRef"]["name"]]
        for rule in role["rules"]:
            found |= {
                (group, resource, verb, binding["kind"] == "ClusterRoleBinding")
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for verb in rule["verbs"]
            }
    return found


def test_roles_hold_what_is_asked_and_no_more():
    """docs/configuration.md: TokenReview, pods and nodes for the server, the kubelet's pods for the agent."""
    assert rights("identity-server") == {
        ("authentication.k8s.io", "tokenreviews", "create", True),
        ("", "nodes", "get", True),
        ("", "pods", "get", False),
        ("", "configmaps", "get", False),
        ("", "configmaps", "patch", False),
        ("", "configmaps", "create", False),
    }
    assert rights("node-agent") == {("", "nodes/pods", "get", True), ("", "nodes/proxy", "get", True)}
    assert rights("spiffe-csi-driver") == set()


def test_the_server_publishes_the_bundle_that_agents_mount(settings):
    """TDB-06: the ConfigMap, its key and its format are those of the agents' volume, and the role is the one of the page.

    `tests/interop/test_kube_config_map.py` shows with a real API server that the page's role suffices.
    """
    (place,) = settings("server")[1].publish.k8s_configmap.values()
    _, agent = settings("agent")
    (mount,) = [one for one in AGENT[1]["containers"][0]["volumeMounts"] if one["name"] == "bundle"]
    (volume,) = [one for one in AGENT[1]["volumes"] if one["name"] == "bundle"]
    assert agent.trust_bundle_path == Path(mount["mountPath"]) / place.configmap_key
    assert (place.namespace, place.configmap_name) == (AGENT[0]["metadata"]["namespace"], volume["configMap"]["name"])
    assert place.format == agent.trust_bundle_format == "pem"
    assert place.kubeconfig_path is None, "by the service account of its own pod"
    page = (ROOT / "docs" / "publishing.md").read_text()
    (block,) = [one.partition("```")[0] for one in page.split("```yaml\n")[1:] if "configmaps" in one]
    for one in yaml.load_all(block, Loader=Strict):
        assert BY_NAME[one["kind"], one["metadata"]["name"]] == one


def test_the_workload_api_reaches_workloads_by_the_csi_driver(settings):
    """The host directory of the agent's socket is the driver's; a workload asks for it read-only and finds the socket."""
    _, agent = settings("agent")
    run = next(volume for volume in AGENT[1]["volumes"] if volume["name"] == "run")["hostPath"]["path"]
    (mount,) = [one["mountPath"] for one in AGENT[1]["containers"][0]["volumeMounts"] if one["name"] == "run"]
    on_host = Path(run) / agent.socket_path.parent.relative_to(mount)
    driver = PODS["DaemonSet/spiffe-csi-driver"][1]
    shared = {volume["name"]: volume["hostPath"]["path"] for volume in driver["volumes"]}
    assert shared["workload-api"] == str(on_host)
    assert agent.admin_socket_path is not None
    assert not (Path(run) / agent.admin_socket_path.relative_to(mount)).is_relative_to(on_host)
    (container,) = [one for one in driver["containers"] if one["name"] == "spiffe-csi-driver"]
    (inside,) = [one["mountPath"] for one in container["volumeMounts"] if one["name"] == "workload-api"]
    assert container["args"][container["args"].index("-workload-api-socket-dir") + 1] == inside
    name = BY_NAME["CSIDriver", "csi.spiffe.io"]["metadata"]["name"]
    workload = PODS["Pod/web"][1]
    (volume,) = workload["volumes"]
    assert volume["csi"] == {"driver": name, "readOnly": True}
    (client,) = workload["containers"]
    (at,) = client["volumeMounts"]
    assert {"name": "SPIFFE_ENDPOINT_SOCKET", "value": f"unix://{at['mountPath']}/{agent.socket_path.name}"} in client[
        "env"
    ]


@pytest.mark.parametrize(
    ("name", "container", "program"), OUR_CONTAINERS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_our_containers_have_no_more_than_they_need(name, container, program):
    context = container["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"]["drop"] == ["ALL"]
    assert context["capabilities"].get("add", []) == (["SYS_PTRACE"] if name == "DaemonSet/node-agent" else [])
    pod = PODS[name][1]
    profile = context.get("seccompProfile") or pod["securityContext"]["seccompProfile"]
    assert profile == {"type": "RuntimeDefault"}
    assert pod.get("hostPID", False) is (name == "DaemonSet/node-agent")


def test_the_server_runs_as_the_user_of_its_image():
    pod = SERVER[1]["securityContext"]
    (user,) = re.findall(
        r"^USER (\d+):\1$", (ROOT / "deploy/containers/server.Containerfile").read_text(), re.MULTILINE
    )
    assert {pod[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {int(user)}
    assert pod["runAsNonRoot"]
    assert pod["fsGroupChangePolicy"] == "OnRootMismatch"
    (variable,) = SERVER[1]["containers"][0]["env"]
    text = BY_NAME["ConfigMap", "identity-server"]["data"]["server.toml"]
    assert variable == {"name": "SPIRE_SERVER_PRIVATE_SOCKET", "value": tomllib.loads(text)["socket_path"]}


def test_the_measure_can_fail():
    """A flag that is not there, a key that stands twice."""
    with pytest.raises(Exception, match="unknown flag"):
        normalise(["--confg", "x"], {})
    with pytest.raises(AssertionError, match="twice"):
        yaml.load("a: 1\na: 2\n", Loader=Strict)
    assert set(COMMANDS) == set(OURS)
