"""Containers of a user's own Podman, attested by a real agent (issue 4, item 3).

That Podman ends when nobody has asked for five seconds, and takes seconds to begin again: the first who is asked about may
have to ask once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo.stack import LocalStack
from tests.interop.engines import IMAGE
from tests.interop.peers import until
from tests.interop.rootless_podman import USER, RootlessPodman

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120, func_only=True)]
ATTESTORS = """[attestors.unix]
[attestors.docker]
podman_socket_path_template = "unix://{folder}/u/%d/podman/podman.sock"
rootless_users = [{user}]
"""


@pytest.fixture(scope="module")
def podman(folder: Path) -> Iterator[RootlessPodman]:
    RootlessPodman.required()
    folder.chmod(0o755)
    settings = ATTESTORS.format(folder=folder, user=USER)
    with LocalStack("rootless.test", sync_interval="100ms", agent=settings) as stack:
        stack.folder.chmod(0o711)
        stack.start_server()
        stack.register("/labelled", "docker:label:app:web", f"unix:uid:{USER}")
        stack.register("/told", "docker:env:STAGE=prod", f"docker:image_id:{IMAGE}")
        stack.register("/user", f"unix:uid:{USER}")
        stack.prepare_join()
        stack.start_agent()
        with RootlessPodman(folder, stack.api_socket) as engine:
            engine.run("web", "--label=app=web", "--env=STAGE=prod")
            until(lambda: "/user" in engine.fetched("web"), pause=0.1)
            yield engine


def test_a_users_container_is_known_by_what_that_users_podman_says(podman: RootlessPodman) -> None:
    until(lambda: podman.fetched("web") == {"/labelled", "/told", "/user"}, pause=0.1)


def test_a_container_in_its_units_control_group_is_known(podman: RootlessPodman) -> None:
    """As Quadlet starts them: `--cgroups=split`."""
    podman.run_as_unit("split", "--cgroups=split", "--label=app=web")
    until(lambda: podman.fetched("split") == {"/labelled", "/user"}, pause=0.1)


def test_without_its_engine_a_users_container_is_a_user(podman: RootlessPodman) -> None:
    """It fails closed, silences nobody, is no trouble of the agent's, and heals when the engine is back."""
    podman.run("late", "--label=app=web")
    podman.kill()
    assert podman.fetched("late") == {"/user"}
    podman.start()
    until(lambda: podman.fetched("late") == {"/labelled", "/user"}, pause=0.1)
