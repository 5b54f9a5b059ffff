"""Containers of a real Docker and a real Podman, attested by a real agent (issue 4, item 3)."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo.stack import BIN, LocalStack
from tests.interop.engines import IMAGE, Docker, Engine, Podman
from tests.interop.peers import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120, func_only=True)]
ATTESTORS = """[attestors.unix]
[attestors.docker]
docker_socket_path = "unix://{folder}/docker/docker.sock"
podman_socket_path = "unix://{folder}/podman/podman.sock"
"""


class Node:
    """A server and an agent on this machine, and an engine whose containers reach the agent's socket."""

    def __init__(self, stack: LocalStack, engine: Engine) -> None:
        self.stack, self.engine = stack, engine

    def log(self) -> str:
        return (self.stack.folder / "agent.log").read_text()


@pytest.fixture(scope="module")
def stack(folder: Path) -> Iterator[LocalStack]:
    """One agent for both engines: each of its containers is asked of the one that made it."""
    with LocalStack("engines.test", sync_interval="100ms", agent=ATTESTORS.format(folder=folder)) as started:
        started.start_server()
        started.register("/labelled", "docker:label:app:web", "docker:label:tier:a:b")
        started.register("/told", "docker:env:STAGE=prod", f"docker:image_id:{IMAGE}")
        started.register("/user", f"unix:uid:{os.getuid()}", "unix:gid:0")
        started.prepare_join()
        started.start_agent()
        yield started


@pytest.fixture(scope="module", params=[Docker, Podman], ids=lambda kind: kind.name)
def node(request: pytest.FixtureRequest, folder: Path) -> Iterator[Node]:
    kind: type[Engine] = request.param
    kind.required()
    stack: LocalStack = request.getfixturevalue("stack")
    place = folder / kind.name
    place.mkdir()
    with kind(place, stack.api_socket) as engine:
        stack.register("/built", f"docker:image_config_digest:{engine.image_digest()}")
        engine.run("web", "--label=app=web", "--label=tier=a:b", "--env=STAGE=prod")
        engine.run("plain", "--env=STAGE=test")
        made = Node(stack, engine)
        until(lambda: "/built" in fetched(made, "plain"), pause=0.1)
        yield made


def fetched(node: Node, container: str) -> set[str]:
    """The paths of the identities that a container is given."""
    _, said = node.engine.ask(container)
    return set(re.findall(r"spiffe://engines\.test(/\S+)", said))


def test_a_container_is_known_by_its_labels_its_environment_and_its_image(node: Node) -> None:
    """spire_features 18.1, each of them; another container of the same image differs in what differs."""
    assert fetched(node, "web") == {"/labelled", "/told", "/built", "/user"}
    assert fetched(node, "plain") == {"/built", "/user"}


def test_a_process_outside_any_container_is_none(node: Node) -> None:
    words = ["api", "fetch", "x509", "-socketPath", str(node.stack.api_socket)]
    done = subprocess.run([BIN / "node-agent", *words], capture_output=True, text=True, timeout=30, check=False)
    assert set(re.findall(r"spiffe://engines\.test(/\S+)", done.stdout)) == {"/user"}


def test_without_its_engine_containers_get_nothing_and_users_are_served(node: Node) -> None:
    """It fails closed, is reported, does not silence `unix`, and heals when the engine is back.

    What was told of a container before is believed for a minute, so another container is asked for.
    """
    node.engine.run("late", "--label=app=web", "--label=tier=a:b")
    node.engine.kill()
    assert fetched(node, "late") == {"/user"}
    assert f"{node.engine.socket}: cannot be asked" in node.log()
    node.engine.start()
    assert fetched(node, "late") == {"/labelled", "/built", "/user"}


def test_a_container_made_after_the_engine_was_restarted_is_known(node: Node) -> None:
    node.engine.kill()
    node.engine.start()
    node.engine.run("next", "--label=app=web", "--label=tier=a:b")
    assert fetched(node, "next") == {"/labelled", "/built", "/user"}


def test_a_container_with_the_same_name_and_other_labels_is_another(node: Node) -> None:
    """What is kept is kept by the container's id, which is never used again."""
    node.engine.run("same", "--name=same", "--label=app=web", "--label=tier=a:b")
    assert "/labelled" in fetched(node, "same")
    node.engine.remove("same")
    node.engine.run("same", "--name=same", "--label=app=db")
    assert fetched(node, "same") == {"/built", "/user"}
