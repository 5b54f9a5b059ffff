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
        (folder / "mountinfo").write_text("")
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


@pytest.mark.parametrize(
    ("path", "socket"),
    [
        (f"0::/machine.slice/libpod-{ID}.scope/container\n", "podman.sock"),
        (f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope\n", "1000.sock"),
    ],
)
def test_podmans_containers_are_asked_of_podman_and_of_the_right_user(engine, tmp_path, path, socket):
    (tmp_path / "docker.sock").rename(tmp_path / socket)
    made = attestor(
        tmp_path,
        podman_socket_path=f"unix://{tmp_path}/podman.sock",
        podman_socket_path_template=f"unix://{tmp_path}/%d.sock",
    )
    assert "docker:label:app:web" in values(made.attest(Process(tmp_path, path), soon()))


@pytest.mark.parametrize(("owner", "told"), [(1000, True), (1001, False)])
def test_an_engine_is_not_asked_about_a_container_that_another_user_could_name(engine, tmp_path, owner, told):
    """S19's kind: anybody may make a control group called like somebody's container below his own user@UID.service."""
    need_root()
    os.chown(tmp_path / "docker.sock", owner, -1)
    path = f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope\n"
    found = attestor(tmp_path).attest(Process(tmp_path, path), soon())
    assert bool(found.selectors) == told
    assert told or "name containers as he likes" in found.notes[0]


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
    ],
)
def test_wrong_sockets_are_refused(over):
    with pytest.raises(ConfigError):
        DockerSettings(**over)
