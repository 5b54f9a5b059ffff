"""The Docker attestor against an engine's API over a real Unix socket."""

import json
import os
import time

import pytest

from attestors.procfs import ProcFs
from attestors.workload.docker import DockerAttestor, DockerPorts, DockerSettings
from spiffe_core.errors import ConfigError, Unavailable
from tests.doubles.docker_engine import ID, engine_at
from tests.doubles.privileges import need_root

UNKNOWN = "b" * 64


@pytest.fixture
def engine(tmp_path):
    with engine_at(tmp_path / "docker.sock") as started:
        yield started


class Process:
    pid, uid, gid = 4242, 0, 0

    def __init__(self, root, cgroup):
        folder = root / "4242"
        folder.mkdir()
        self._cgroup = folder / "cgroup"
        self.moves(cgroup)

    def moves(self, cgroup):
        self._cgroup.write_text(cgroup)

    def require_alive(self):
        pass


def attestor(tmp_path, **over):
    settings = {"docker_socket_path": f"unix://{tmp_path}/docker.sock", **over}
    return DockerAttestor(DockerSettings(**settings), DockerPorts(proc=ProcFs(tmp_path)))


def values(findings):
    return {str(one) for one in findings.selectors}


def soon():
    return time.monotonic() + 5


def test_a_container_gets_spires_selectors_and_is_asked_about_once(engine, tmp_path):
    process, made = Process(tmp_path, f"0::/system.slice/docker-{ID}.scope\n"), attestor(tmp_path)
    for _ in range(3):
        assert values(made.attest(process, soon())) == {
            "docker:label:app:web",
            "docker:label:org.example.note:a:b",
            "docker:env:STAGE=prod",
            "docker:env:EMPTY=",
            "docker:image_id:registry.example.org/web:1",
            "docker:image_config_digest:sha256:1234",
        }
    assert engine.asked == [f"/containers/{ID}/json"]


@pytest.mark.parametrize(
    ("cgroup", "note"),
    [
        ("0::/system.slice/sshd.service\n", "no container"),
        (f"0::/docker/{UNKNOWN}\n", "does not know"),
        (f"0::/kubepods/pod2c48913c-b29f-11e7-9350-020968147796/{ID}\n", "Kubernetes pod"),
    ],
)
def test_whatever_is_not_this_engines_container_gets_none(engine, tmp_path, cgroup, note):
    findings = attestor(tmp_path).attest(Process(tmp_path, cgroup), soon())
    assert findings.selectors == frozenset()
    assert note in findings.notes[0]


def test_mounts_are_no_evidence(engine, tmp_path):
    """S19's kind: any user can bind a container's control group, in a user namespace of its own, to any place it likes."""
    process = Process(tmp_path, "0::/user.slice/user-1000.slice/session-3.scope\n")
    mount = f"65 44 0:38 /system.slice/docker-{ID}.scope /sys/fs/cgroup ro,relatime - cgroup2 cgroup2 rw\n"
    (tmp_path / "4242" / "mountinfo").write_text(mount)
    findings = attestor(tmp_path, rootless_users=[1000]).attest(process, soon())
    assert (findings.selectors, findings.notes) == (frozenset(), ("the process runs in no container",))
    assert engine.asked == []


ME = os.geteuid() or 1000
ROOTLESS = f"0::/user.slice/user-{ME}.slice/user@{ME}.service/user.slice/libpod-{ID}.scope\n"


def test_podmans_containers_are_asked_of_podman(engine, tmp_path):
    (tmp_path / "docker.sock").rename(tmp_path / "podman.sock")
    made = attestor(tmp_path, podman_socket_path=f"unix://{tmp_path}/podman.sock")
    path = f"0::/machine.slice/libpod-{ID}.scope/container\n"
    assert "docker:label:app:web" in values(made.attest(Process(tmp_path, path), soon()))


@pytest.fixture
def users_engine(tmp_path):
    """An engine that runs as the user ME, by whom its socket was opened."""
    with engine_at(tmp_path / f"{ME}.sock", user=ME) as started:
        yield started


def users(tmp_path, **over):
    template = f"unix://{tmp_path}/%d.sock"
    return attestor(tmp_path, podman_socket_path_template=template, rootless_users=(ME,), **over)


def test_a_users_own_podman_is_asked_where_that_user_is_believed(users_engine, tmp_path):
    assert "docker:label:app:web" in values(users(tmp_path).attest(Process(tmp_path, ROOTLESS), soon()))
    assert users_engine.asked == [f"/containers/{ID}/json"]


@pytest.mark.parametrize("engine_of", ["libpod", "docker"])
def test_a_user_who_is_not_believed_gets_nothing_and_nobody_is_asked(engine, users_engine, tmp_path, engine_of):
    """S19's kind: a user names any container in a control group of its own, and has its own engine say anything."""
    template = f"unix://{tmp_path}/%d.sock"
    made = attestor(tmp_path, podman_socket_path_template=template, rootless_users=(ME + 1,))
    findings = made.attest(Process(tmp_path, ROOTLESS.replace("libpod", engine_of)), soon())
    assert findings.selectors == frozenset()
    assert f"add {ME} to rootless_users" in findings.notes[0]
    assert engine.asked == users_engine.asked == []


def test_a_user_cannot_have_somebody_elses_engine_asked(tmp_path):
    """Not by a link from its own socket's path to another's, which the agent may open and the user may not."""
    need_root()
    with engine_at(tmp_path / "docker.sock", user=ME + 1) as system:
        (tmp_path / f"{ME}.sock").symlink_to(tmp_path / "docker.sock")
        process = Process(tmp_path, ROOTLESS)
        for engine_of in ("libpod", "docker"):
            process.moves(ROOTLESS.replace("libpod", engine_of))
            with pytest.raises(Unavailable, match=f"another user than {ME} listens there"):
                users(tmp_path).attest(process, soon())
        assert system.asked == []


@pytest.mark.parametrize(("status", "body"), [(500, b"{}"), (200, b"no json"), (200, b"[]"), (200, b'{"Config": 5}')])
def test_an_engine_that_talks_nonsense_is_unavailable(engine, tmp_path, status, body):
    engine.status, engine.body = status, body
    with pytest.raises(Unavailable):
        attestor(tmp_path).attest(Process(tmp_path, f"0::/docker/{ID}\n"), soon())


def test_an_engine_that_is_not_there_is_unavailable(tmp_path):
    with pytest.raises(Unavailable, match=r"docker\.sock"):
        attestor(tmp_path).attest(Process(tmp_path, f"0::/docker/{ID}\n"), soon())


def test_an_absurdly_long_value_is_left_out(engine, tmp_path):
    engine.body = json.dumps(
        {"Image": "sha256:1", "Config": {"Env": [f"LONG={'x' * 100_000}"], "Labels": None}}
    ).encode()
    found = values(attestor(tmp_path).attest(Process(tmp_path, f"0::/docker/{ID}\n"), soon()))
    assert found == {"docker:image_config_digest:sha256:1"}


@pytest.mark.parametrize(
    "over",
    [
        {"docker_socket_path": "/var/run/docker.sock"},
        {"podman_socket_path": "tcp://1.2.3.4:2375"},
        {"podman_socket_path_template": "unix:///run/podman.sock"},
        {"rootless_users": (0,)},
        {"rootless_users": (1000, -1)},
        {"rootless_users": tuple(range(1, 5000))},
    ],
)
def test_wrong_sockets_and_users_are_refused(over):
    with pytest.raises(ConfigError):
        DockerSettings(**over)
