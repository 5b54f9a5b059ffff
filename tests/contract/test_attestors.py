"""One suite over every registered attestor, ours or another distribution's: what the registry and the daemons rely on."""

import atexit
import dataclasses
import functools
import inspect
import json
import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from attestors.api import Attested, Challenge, Findings, NodeProver, NodeVerifier, WorkloadAttestor, advance
from attestors.node.join_token import ProverPorts
from attestors.node.x509pop import VerifierPorts
from attestors.registry import NODE_PROVERS, NODE_VERIFIERS, WORKLOAD_ATTESTORS
from spiffe_core.errors import IdentityError, Unauthenticated
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire.peer import ProcessHandle, UnixPeer
from tests.doubles.node_pki import NodePki
from tests.doubles.systemd_manager import Manager, private_socket

REGISTRIES = (NODE_VERIFIERS, NODE_PROVERS, WORKLOAD_ATTESTORS)
EVERY_PLUGIN = [(registry, name) for registry in REGISTRIES for name in registry.names()]
PKI = NodePki()
PORTS = {
    ("node_agent.node_provers", "join_token"): ProverPorts(token=lambda: "0f1e2d3c"),
    ("identity_server.node_verifiers", "x509pop"): VerifierPorts(TrustDomain("example.org"), lambda: PKI.now),
}
"""Ports of the plugins that need some; a plugin that is not named here is made without."""
HOSTILE = [b"", b"\x00", b"\xff" * 64, b"{}", b"{" * 5000, b"null", b"[]", b"a" * 1_000_000, b"../../etc/passwd"]


@functools.cache
def options(group, name):
    """The settings of the plugins that cannot be without."""
    if name not in {"x509pop", "k8s_psat", "systemd"}:
        return {}
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    if name == "systemd":
        return systemd_options(folder)
    if name == "k8s_psat":
        return psat_options(group, folder)
    if group == NODE_PROVERS.group:
        return PKI.node().files(folder)
    return {"ca_bundle_path": str(PKI.bundle(folder))}


def systemd_options(folder):
    """A systemd that knows this process, wherever the tests run."""
    serving = ExitStack()
    atexit.register(serving.close)
    serving.enter_context(private_socket(folder / "systemd", Manager({os.getpid(): ("t.service", "/etc/t.service")})))
    return {"dbus_socket_path": f"unix://{folder}/systemd", "private_socket": True}


def psat_options(group, folder):
    """A node with a token; a server whose cluster has an API server that is not there."""
    if group == NODE_PROVERS.group:
        (folder / "token").write_text("a.b.c")
        return {"cluster": "prod", "token_path": str(folder / "token")}
    user = {"name": "u", "user": {"token": "t"}}
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [user],
    }
    (folder / "config").write_text(json.dumps(document))
    (folder / "config").chmod(0o600)
    cluster = {"service_account_allow_list": ["muniment:node-agent"], "kube_config_file": str(folder / "config")}
    return {"clusters": {"prod": cluster}}


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def made(registry, name):
    return registry.build(name, options(registry.group, name), PORTS.get((registry.group, name)))


def ids(pairs):
    return [f"{registry.group}:{name}" for registry, name in pairs]


@pytest.fixture
def this_process():
    handle = ProcessHandle(os.getpid(), os.pidfd_open(os.getpid()))
    yield UnixPeer(os.getpid(), os.geteuid(), os.getegid(), handle)
    handle.close()


@pytest.mark.parametrize(("registry", "name"), EVERY_PLUGIN, ids=ids(EVERY_PLUGIN))
class TestEveryPlugin:
    def test_is_called_what_it_is_registered_as(self, registry, name):
        assert registry.load(name).name == name
        assert ":" not in name
        assert name.isascii()

    def test_has_frozen_settings_that_show_no_secret(self, registry, name):
        settings = registry.load(name).Settings
        assert settings.__dataclass_params__.frozen
        assert not {"token", "password", "secret", "key"} & {field.name for field in dataclasses.fields(settings)}

    def test_has_no_coroutines(self, registry, name):
        """A7: attestors are sync; the rim decides which thread they run on."""
        plugin = registry.load(name)
        for _, member in inspect.getmembers(plugin, inspect.isfunction):
            assert not inspect.iscoroutinefunction(member)
            assert not inspect.isasyncgenfunction(member)


VERIFIERS = [(NODE_VERIFIERS, name) for name in NODE_VERIFIERS.names()]


@pytest.mark.parametrize(("registry", "name"), VERIFIERS, ids=ids(VERIFIERS))
class TestNodeVerifier:
    def test_follows_the_protocol(self, registry, name):
        assert isinstance(made(registry, name), NodeVerifier)

    @pytest.mark.parametrize("payload", HOSTILE, ids=range(len(HOSTILE)))
    def test_a_hostile_payload_is_refused_or_challenged_never_crashes(self, registry, name, payload):
        try:
            step = advance(made(registry, name).verify(payload, b"k" * 32))
        except IdentityError:
            return
        assert isinstance(step, Challenge | Attested)
        if isinstance(step, Attested):
            assert step.agent_path.startswith(f"/spire/agent/{name}/")

    def test_dialogues_share_nothing(self, registry, name):
        """One verifier serves many nodes at a time."""
        verifier = made(registry, name)
        assert verifier.verify(b"x", b"a" * 32) is not verifier.verify(b"x", b"b" * 32)


PROVERS = [(NODE_PROVERS, name) for name in NODE_PROVERS.names()]


@pytest.mark.parametrize(("registry", "name"), PROVERS, ids=ids(PROVERS))
class TestNodeProver:
    def test_follows_the_protocol(self, registry, name):
        assert isinstance(made(registry, name), NodeProver)

    def test_has_a_verifier_of_the_same_name(self, registry, name):
        assert name in NODE_VERIFIERS.names()

    def test_yields_its_payload_first(self, registry, name):
        """spire_wire section 7: the payload may not be empty."""
        try:
            payload = next(made(registry, name).prove())
        except IdentityError:
            return  # it needs a machine that is not here
        assert isinstance(payload, bytes)
        assert payload


ATTESTORS = [(WORKLOAD_ATTESTORS, name) for name in WORKLOAD_ATTESTORS.names()]


@pytest.mark.parametrize(("registry", "name"), ATTESTORS, ids=ids(ATTESTORS))
class TestWorkloadAttestor:
    def test_follows_the_protocol(self, registry, name):
        assert isinstance(made(registry, name), WorkloadAttestor)

    def test_says_only_selectors_of_its_own_type(self, registry, name, this_process):
        findings = made(registry, name).attest(this_process, time.monotonic() + 10)
        assert isinstance(findings, Findings)
        assert all(isinstance(selector, Selector) and selector.type == name for selector in findings.selectors)
        assert all(isinstance(note, str) for note in findings.notes)

    def test_says_the_same_twice(self, registry, name, this_process):
        attestor = made(registry, name)
        answers = [attestor.attest(this_process, time.monotonic() + 10) for _ in range(2)]
        assert answers[0].selectors == answers[1].selectors

    def test_a_process_that_is_gone_has_no_selectors(self, registry, name, this_process):
        """S11, S12: asked again after every read."""
        gone = ProcessHandle(os.getpid(), os.pidfd_open(os.getpid()))
        gone.close()
        subject = UnixPeer(this_process.pid, this_process.uid, this_process.gid, gone)
        with pytest.raises(Unauthenticated):
            made(registry, name).attest(subject, time.monotonic() + 10)

    def test_leaves_no_descriptor_open(self, registry, name, this_process):
        """S52."""
        attestor = made(registry, name)
        attestor.attest(this_process, time.monotonic() + 10)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            attestor.attest(this_process, time.monotonic() + 10)
        until(lambda: len(os.listdir("/proc/self/fd")) <= before)  # a double's own side closes a moment later
