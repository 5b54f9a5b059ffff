"""Seeded misconfigurations end to end: the root cause on the first line, what mends it on the last (issue 5, need 1).

A real server, a real agent, real attestors, real processes; the commands are the ones people run. One server and one
agent serve all cases of this file; agents that are themselves in trouble are in test_explain_agents.py.
"""

import asyncio
import os
import pwd
import shlex
from dataclasses import dataclass

import pytest
import pytest_asyncio

from identity_server.services.issue_svids import IssueSvids
from spiffe_core.errors import Internal
from tests.doubles.kubelet import pod
from tests.doubles.live_server import entry
from tests.doubles.misconfigured import (
    APP,
    DEBUG,
    IN_DOCKER,
    IN_UNKNOWN,
    POD_UID,
    SETUP,
    TWIN_UID,
    in_pod,
    web_pod,
    world,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

UID = os.getuid()
OWN = f"unix:uid:{UID}"
USER = pwd.getpwuid(UID).pw_name
UPDATE = "identity-server entry update -entryID "


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared():
    async with world() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def here(shared):
    yield shared
    await shared.clean()


@dataclass(frozen=True)
class Case:
    """Entries below the agent that ask for `asks`, and a process: `cause` begins the first line behind its code."""

    asks: tuple[str, ...]
    code: str
    cause: str
    fix: str
    cgroup: str = "0::/system.slice/sshd.service\n"
    status: int = 200
    pods: tuple | None = None
    engine: int | None = None
    over: tuple = ()


def asked(selectors, **over):
    return {"selectors": [tuple(one.split(":", 1)) for one in selectors], **over}


DIGEST = f"registry.example.org/app@sha256:{'0' * 63}1"
CASES = {
    "wrong uid": Case(
        (f"unix:uid:{UID + 1}",), "E302", f"asks for unix:uid:{UID + 1}; the workload has {OWN}", f"-selector {OWN}"
    ),
    "misspelt kind": Case(
        (OWN, f"unix:usr:{USER}"),
        "E309",
        "'usr' is no kind of unix selectors; the closest is 'user'",
        f"unix:user:{USER}",
    ),
    "misspelt type": Case((f"unxi:uid:{UID}",), "E309", "'unxi' is no type; the closest is 'unix'", f"-selector {OWN}"),
    "capitals in a kind": Case((f"unix:UID:{UID}",), "E309", "the closest is 'uid'", f"-selector {OWN}"),
    "capitals in a value": Case(
        ("k8s:ns:Shop",),
        "E302",
        "asks for k8s:ns:Shop; the workload has k8s:ns:shop",
        "-selector k8s:ns:shop",
        in_pod(APP),
    ),
    "a type that this agent attests nobody by": Case(
        (OWN, "systemd:id:web.service"), "E304", "this agent has no attestor systemd", "add [attestors.systemd]"
    ),
    "nothing but a type of others": Case(
        ("systemd:id:web.service",), "E304", "this agent has no attestor systemd", "add [attestors.systemd]"
    ),
    "supplementary group missing": Case(
        (OWN, "unix:supplementary_gid:4242"), "E303", "asks for unix:supplementary_gid:4242, which", f"-selector {OWN}"
    ),
    "a selector too many": Case(
        (OWN, "docker:label:app:web"),
        "E303",
        "the docker attestor found nothing: the process runs in no container",
        OWN,
    ),
    "nothing comes close": Case(
        ("k8s:ns:shop",), "E305", "no entry of this agent comes close", "identity-server entry create -parentID"
    ),
    "an expired entry": Case((OWN,), "E306", "has expired", "-entryExpiry SECONDS", over=(("expires_at", 1),)),
    "an entry for a secret store": Case(
        (OWN,), "E401", "(store_svid) and is not served here", "entry create", over=(("store_svid", True),)
    ),
    "another namespace": Case(
        ("k8s:ns:prod", "k8s:sa:frontend"),
        "E302",
        "asks for k8s:ns:prod; the workload has k8s:ns:shop",
        "-selector k8s:ns:shop -selector k8s:sa:frontend",
        in_pod(APP),
    ),
    "another service account": Case(
        ("k8s:ns:shop", "k8s:sa:default"),
        "E302",
        "k8s:sa:default; the workload has k8s:sa:frontend",
        "frontend",
        in_pod(APP),
    ),
    "another value of one of two labels": Case(
        ("k8s:ns:shop", "k8s:pod-label:tier:back"),
        "E302",
        "the workload has k8s:pod-label:tier:front",
        "k8s:pod-label:tier:front",
        in_pod(APP),
    ),
    "an init container": Case(
        ("k8s:ns:shop", "k8s:container-name:app"),
        "E302",
        "asks for k8s:container-name:app; the workload has k8s:container-name:setup",
        "-selector k8s:container-name:setup",
        in_pod(SETUP),
    ),
    "a debug container": Case(
        (OWN, "k8s:ns:shop"),
        "E303",
        "the k8s attestor found nothing: the process runs in an ephemeral container",
        OWN,
        in_pod(DEBUG),
    ),
    "an image by another digest": Case(
        ("k8s:ns:shop", "k8s:container-image:registry.example.org/app@sha256:feed"),
        "E302",
        f"the workload has k8s:container-image:{DIGEST}",
        f"-selector k8s:container-image:{DIGEST}",
        in_pod(APP),
    ),
    "an image by a tag it has no more": Case(
        ("k8s:ns:shop", "k8s:container-image:registry.example.org/app:2"),
        "E302",
        "the workload has k8s:container-image:registry.example.org/app:1",
        "-selector k8s:container-image:registry.example.org/app:1",
        in_pod(APP),
    ),
    "two pods, one container id": Case(
        (OWN, "k8s:ns:shop"),
        "E203",
        "the k8s attestor failed",
        "put right what the k8s attestor says",
        f"0::/docker/{APP}\n",
        pods=(web_pod(), web_pod(TWIN_UID)),
    ),
    "the kubelet refuses the token": Case(
        (OWN, "k8s:ns:shop"), "E203", "the kubelet refuses the token", "put right", in_pod(APP), status=401
    ),
    "the kubelet refuses the account": Case(
        (OWN, "k8s:ns:shop"), "E203", "needs `get` on `nodes/pods`", "put right", in_pod(APP), status=403
    ),
    "another label of a container": Case(
        ("docker:label:app:db",), "E302", "the workload has docker:label:app:web", "docker:label:app:web", IN_DOCKER
    ),
    "another value of a variable": Case(
        ("docker:env:STAGE=test",), "E302", "the workload has docker:env:STAGE=prod", "docker:env:STAGE=prod", IN_DOCKER
    ),
    "a container that the engine does not know": Case(
        (OWN, "docker:label:app:web"), "E303", "the docker attestor found nothing: ", OWN, IN_UNKNOWN
    ),
    "an engine that fails": Case(
        (OWN, "docker:label:app:web"), "E203", "the docker attestor failed", "put right", IN_DOCKER, engine=500
    ),
    "a container of a pod, registered as Docker's": Case(
        (OWN, "docker:label:app:web"),
        "E303",
        "the docker attestor found nothing: the container belongs to a Kubernetes pod",
        OWN,
        in_pod(APP),
    ),
}


@pytest.mark.parametrize("name", CASES)
async def test_a_process_that_gets_nothing(here, capsys, name):
    case = CASES[name]
    here.kubelet.status = case.status
    here.kubelet.pods = list(case.pods or (web_pod(),))
    here.engine.status = case.engine
    (entry_id,) = await here.entries(entry(parent=here.agent.path, **asked(case.asks, **dict(case.over))))
    pid = str(here.process(case.cgroup))
    code, first, last = await here.explain(capsys, "--pid", pid)
    assert first.startswith(f"MUN-{case.code}: "), first
    assert case.cause in first
    assert last.startswith("To mend it: ")
    assert case.fix in last
    assert code == 1
    if case.code in {"E302", "E309"}:
        await mended(here, capsys, entry_id, pid, last)


async def mended(here, capsys, entry_id, pid, last):
    """The command of the last line is run as it stands, and the workload is served."""
    assert last.startswith(f"To mend it: {UPDATE}{entry_id} ")
    code, *_ = await here.server(capsys, *shlex.split(last.removeprefix("To mend it: "))[1:])
    assert code == 0
    async with asyncio.timeout(20):
        while (await here.explain(capsys, "--pid", pid))[0]:
            await asyncio.sleep(0.02)


async def test_no_entry_at_all(here, capsys):
    code, first, last = await here.explain(capsys, "--pid", str(here.process()))
    assert (code, first.startswith("MUN-E301: no entry names ")) == (1, True)
    assert f"entry create -parentID {here.agent_id} -spiffeID ID " in last


@pytest.mark.parametrize("count", [1, 2])
async def test_entries_of_another_agent(here, capsys, count):
    """A10: how many, and below which parent; their selectors and IDs are not told here."""
    await here.entries(*(entry(f"/secret{n}", here.other.path, **asked((OWN,))) for n in range(count)))
    _, first, last = await here.explain(capsys, "--pid", str(here.process()))
    noun = "an entry matches" if count == 1 else "2 entries match"
    assert first.startswith(
        f"MUN-E307: {noun} below another parent, spiffe://example.org{here.other.path}; this agent is"
    )
    assert last == f"To mend it: identity-server entry show -parentID spiffe://example.org{here.other.path}"


async def test_a_group_that_the_node_is_not_in(here, capsys):
    """The alias chain is broken: the node learns the group, the administrator which node entry asks for what."""
    node = entry("/group", "/spire/server", **asked(("x509pop:subject:cn:web",)))
    alias, member = await here.entries(node, entry("/web", "/group", **asked((OWN,))))
    _, first, last = await here.explain(capsys, "--pid", str(here.process()))
    assert first.startswith("MUN-E307: an entry matches below another parent, spiffe://example.org/group;")
    assert last.endswith("identity-server entry show -parentID spiffe://example.org/group")
    _, first, last = await here.server(capsys, "explain", "-agent", here.agent_id, "-selector", OWN)
    assert first.startswith(f"MUN-E307: entry {member} (spiffe://example.org/web) matches, and its parent is the group")
    assert f"node entry {alias} asks for x509pop:subject:cn:web; this agent has no node selectors" in first
    assert f"entry update -entryID {member} -parentID {here.agent_id} " in last


async def test_a_program_that_was_updated(here, capsys):
    """sha256 of a binary: what runs is hashed, and the entry names the one before."""
    _, old = here.program("web")
    await here.entries(entry(parent=here.agent.path, **asked((f"unix:sha256:{old}",))))
    path, new = here.program("web", b"\0")
    _, first, last = await here.explain(capsys, "--pid", str(here.process(program=(str(path), "600"))))
    assert f"asks for unix:sha256:{old}; the workload has unix:sha256:{new}" in first
    assert first.startswith("MUN-E302")
    assert f"-selector unix:sha256:{new}" in last


async def test_a_path_that_is_a_link(here, capsys):
    path, _ = here.program("web-1.2")
    link = here.folder / "web-current"
    link.unlink(missing_ok=True)
    link.symlink_to(path)
    await here.entries(entry(parent=here.agent.path, **asked((f"unix:path:{link}",))))
    _, first, last = await here.explain(capsys, "--pid", str(here.process(program=(str(link), "600"))))
    assert f"MUN-E302: entry {here._ids[0]}" in first
    assert f"asks for unix:path:{link}; the workload has unix:path:{path}" in first
    assert f"-selector unix:path:{path}" in last


async def test_a_process_that_has_ended(here, capsys):
    pid = here.process(program=("true",))
    here._processes[-1].wait()
    code, first, last = await here.explain(capsys, "--pid", str(pid))
    assert (code, first) == (1, f"MUN-E201: there is no process {pid} that this agent can see")
    assert "hostPID" in last


async def test_a_server_that_does_not_sign(here, capsys, monkeypatch):
    """The signing key cannot be used: told by the server, shown to whoever asks on the node."""

    def broken(*_):
        raise Internal("failed to sign X509-SVID: the signing key cannot be used")

    with monkeypatch.context() as patch:
        patch.setattr(IssueSvids, "_sign", broken)
        (entry_id,) = await here.entries(entry(parent=here.agent.path, **asked((OWN,))))
        await here.agent.until(lambda: here.agent.agent.workloads.why_refused(entry_id))
    _, first, last = await here.explain(capsys, "--pid", str(here.process()))
    assert first.startswith(
        "MUN-E402: the server did not sign for spiffe://example.org/web: the server refused: failed to sign"
    )
    assert "audit log" in last


class TestPods:
    """`--pod`: container by container (issue 5, Explain 1)."""

    async def test_a_pod_that_is_served_by_what_its_process_is(self, here, capsys):
        await here.entries(entry(parent=here.agent.path, **asked((OWN, "k8s:ns:shop", "k8s:container-name:app"))))
        await here.agent.until(lambda: here.agent.agent.workloads.held_count == 1)
        pid = here.process(in_pod(APP))
        code, first, last = await here.explain(capsys, "--pod", "shop/web-0")
        assert (code, last) == (0, "To mend it: nothing to mend")
        assert first == "MUN-I000: container app: the workload is served: spiffe://example.org/web"
        assert pid

    async def test_a_pod_whose_processes_cannot_be_seen(self, here, capsys):
        """Without hostPID the kubelet alone tells, and what nobody could tell is said to be that."""
        await here.entries(entry(parent=here.agent.path, **asked((OWN, "k8s:ns:shop"))))
        _, first, last = await here.explain(capsys, "--pod", "shop/web-0")
        assert first.startswith("MUN-E203: container app: entry ")
        assert "no process of the container can be seen" in first
        assert "hostPID: true" in last

    async def test_a_pod_with_the_wrong_account(self, here, capsys):
        (entry_id,) = await here.entries(entry(parent=here.agent.path, **asked(("k8s:ns:shop", "k8s:sa:default"))))
        _, first, last = await here.explain(capsys, "--pod", "shop/web-0")
        assert first.startswith(f"MUN-E302: container app: entry {entry_id}")
        assert "the workload has k8s:sa:frontend" in first
        assert f"{UPDATE}{entry_id} " in last

    async def test_a_pod_that_is_not_here(self, here, capsys):
        code, first, last = await here.explain(capsys, "--pod", "shop/web-1")
        assert code == 1
        assert first.startswith(
            "MUN-E204: the kubelet of this node lists no pod shop/web-1; the closest by name is shop/web-0"
        )
        assert "kubectl get pod -n shop web-1 -o wide" in last

    @pytest.mark.parametrize(
        ("status", "text"), [(401, "refuses the token"), (403, "nodes/pods"), (500, "answered 500")]
    )
    async def test_a_kubelet_that_does_not_tell(self, here, capsys, status, text):
        here.kubelet.status = status
        _, first, last = await here.explain(capsys, "--pod", "shop/web-0")
        assert first.startswith("MUN-E205: ")
        assert text in first
        assert "[attestors.k8s]" in last

    async def test_a_pod_that_has_no_container_yet(self, here, capsys):
        here.kubelet.pods = [pod(POD_UID, {})]
        _, first, last = await here.explain(capsys, "--pod", "shop/web-0")
        assert first == "MUN-E206: the pod shop/web-0 has no container yet"
        assert "kubectl describe pod" in last

    async def test_a_name_that_is_none(self, here, capsys):
        code, first, _ = await here.explain(capsys, "--pod", "web-0")
        assert code == 1
        assert "a namespace and a name" in first


class TestTheServersSide:
    """What an administrator is told without the node, and what is refused before it is stored."""

    async def test_an_agent_nobody_knows(self, here, capsys):
        slip = f"{here.agent_id[:-1]}x"
        _, first, last = await here.server(capsys, "explain", "-agent", slip, "-selector", OWN)
        assert first == f"MUN-E308: the server knows no agent {slip}; the closest is {here.agent_id}"
        assert last.endswith("identity-server agent list")

    async def test_another_trust_domain(self, here, capsys):
        words = ("-parentID", here.agent_id, "-spiffeID", "spiffe://other.org/web", "-selector", OWN)
        code, *_ = await here.server(capsys, "entry", "create", *words)
        assert code == 1
        code, first, _ = await here.server(
            capsys, "explain", "-agent", "spiffe://other.org/spire/agent/a/b", "-selector", OWN
        )
        assert code == 1
        assert "other.org" in first

    async def test_a_federated_bundle_that_is_missing(self, here, capsys):
        words = ("-parentID", here.agent_id, "-spiffeID", "spiffe://example.org/web", "-selector", OWN)
        code, first, _ = await here.server(capsys, "entry", "create", *words, "-federatesWith", "spiffe://fed.test")
        assert code == 1
        assert 'unable to find federated bundle "fed.test"; add its bundle first' in first
