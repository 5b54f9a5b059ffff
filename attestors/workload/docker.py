"""What Docker or Podman knows of the container a process runs in (spire_features section 18.1).

Selectors, all of type `docker`: `label:<key>:<value>`, `env:<KEY>=<value>`, `image_id:<image as it was named>`,
`image_config_digest:<sha256:...>`. The container is found by the process's control groups, and looked up by its id at
the engine that made it; a container that engine does not know gives no selectors. What is asked of the engine is fixed
for a container's life, so it is kept by container id.

A rootless engine belongs to its user, who names control groups as he likes too (`attestors.cgroups`): he can name a
container that is another's, and have anything at all said about it. So a user is asked only where `rootless_users` says
so, and only an engine that runs as that user, wherever the path of its socket leads.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, ClassVar

from attestors.api import Findings, Subject
from attestors.cgroups import Place
from attestors.containers import locate, require_container_locator
from attestors.procfs import ProcFs
from attestors.sources import Source, trouble_of
from spiffe_core.errors import ConfigError, InvalidRequest, Unavailable
from spiffe_core.runtime.https_client import Answer, get_unix
from spiffe_core.selectors import Selector

MAX_ANSWER = 4 * 1024 * 1024
MAX_KEPT = 4096
MAX_LISTED = 1000
"""Labels, and environment variables, of one container that are looked at."""
MAX_USERS = 4096
KEPT_SECONDS = 60.0
_PREFIX = "unix://"
_OK, _NOT_FOUND = 200, 404
_LAST_UID = 2**32 - 2


@dataclass(frozen=True, slots=True)
class DockerSettings:
    """Where the engines listen. In the template, %d is the user that a rootless Podman belongs to.

    `rootless_users`: whose own Docker or Podman is believed.
    """

    docker_socket_path: str = "unix:///var/run/docker.sock"
    podman_socket_path: str = "unix:///run/podman/podman.sock"
    podman_socket_path_template: str = "unix:///run/user/%d/podman/podman.sock"
    rootless_users: tuple[int, ...] = ()
    use_new_container_locator: bool = True
    verbose_container_locator_logs: bool = False

    def __post_init__(self) -> None:
        require_container_locator("docker", self.use_new_container_locator)
        for name in ("docker_socket_path", "podman_socket_path", "podman_socket_path_template"):
            if not getattr(self, name).startswith(f"{_PREFIX}/"):
                raise ConfigError(f"attestors.docker.{name}: must be unix:// and an absolute path", field=name)
        if len(self.rootless_users) > MAX_USERS or not all(0 < one <= _LAST_UID for one in self.rootless_users):
            raise ConfigError(
                f"attestors.docker.rootless_users: must be at most {MAX_USERS} user ids, each a number above 0",
                field="rootless_users",
            )
        if self.podman_socket_path_template.count("%") != 1 or "%d" not in self.podman_socket_path_template:
            raise ConfigError(
                "attestors.docker.podman_socket_path_template: must hold %d once", field="podman_socket_path_template"
            )


@dataclass(frozen=True, slots=True)
class DockerPorts:
    """Where processes and engines are."""

    proc: ProcFs = field(default_factory=ProcFs)
    get: Callable[[str, str, float, int | None], Answer] = lambda path, what, deadline, user: get_unix(
        path, what, deadline=deadline, limit=MAX_ANSWER, user=user
    )


class DockerAttestor:
    """Asks the engine that made the container. Safe to call from several threads."""

    name: ClassVar[str] = "docker"
    Settings = DockerSettings

    def __init__(self, settings: DockerSettings | None = None, ports: DockerPorts | None = None) -> None:
        self._settings = settings or DockerSettings()
        self._ports = ports or DockerPorts()
        self._lock = Lock()
        self._kept: OrderedDict[Place, tuple[float, Findings]] = OrderedDict()
        self._docker, self._podman = Source(), Source()

    @property
    def trouble(self) -> str:
        """Why Docker or the system's Podman could not tell. A user's own engine is that user's affair."""
        return trouble_of(self._docker, self._podman)

    def attest(self, subject: Subject, deadline: float) -> Findings:
        """Look up the container `subject` runs in now.

        Raises:
            Unauthenticated: the process has ended.
            Unavailable: the engine does not answer.
        """
        place = locate(self._ports.proc, subject, verbose=self._settings.verbose_container_locator_logs)
        if place is None:
            return Findings(frozenset(), ("the process runs in no container",))
        if place.pod_uid:
            return Findings(frozenset(), ("the container belongs to a Kubernetes pod",))
        if place.made_by and place.made_by not in self._settings.rootless_users:
            return Findings(frozenset(), (_not_believed(place.made_by),))
        findings = self._recall(place)
        if findings is None:
            with self._source(place).asked():
                findings = self._ask(place, deadline)
            self._keep(place, findings)
        if locate(self._ports.proc, subject) != place:
            raise Unavailable("the calling process changed its container meanwhile; try again")
        return findings

    def _ask(self, place: Place, deadline: float) -> Findings:
        socket_path = self._socket(place)
        answer = self._ports.get(socket_path, f"/containers/{place.container_id}/json", deadline, place.made_by or None)
        if answer.status == _NOT_FOUND:
            return Findings(frozenset(), (f"{socket_path} does not know the container",))
        if answer.status != _OK:
            raise Unavailable(f"{socket_path}: answered {answer.status} when asked about a container")
        try:
            return Findings(selectors_of(json.loads(answer.body)))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise Unavailable(f"{socket_path}: its answer about a container cannot be read") from error

    def _source(self, place: Place) -> Source:
        if place.made_by:
            return Source()
        return self._podman if place.podman else self._docker

    def _socket(self, place: Place) -> str:
        chosen = self._settings.docker_socket_path
        if place.podman:
            chosen = self._settings.podman_socket_path
            if place.made_by:
                chosen = self._settings.podman_socket_path_template.replace("%d", str(place.made_by))
        return chosen.removeprefix(_PREFIX)

    def _recall(self, place: Place) -> Findings | None:
        with self._lock:
            at, findings = self._kept.get(place, (0.0, None))
            return findings if findings is not None and time.monotonic() - at < KEPT_SECONDS else None

    def _keep(self, place: Place, findings: Findings) -> None:
        if not findings.selectors:
            return  # it may be known in a moment
        with self._lock:
            self._kept[place] = (time.monotonic(), findings)
            self._kept.move_to_end(place)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)


def _not_believed(user: int) -> str:
    return (
        f"the container belongs to user {user}, whose own engine could say anything of it; if that user is to be "
        f"believed, add {user} to rootless_users in [attestors.docker]"
    )


def selectors_of(container: dict[str, Any]) -> frozenset[Selector]:
    """The selectors of a container as the engine describes it."""
    config = container.get("Config") or {}
    values = [f"label:{key}:{value}" for key, value in sorted((config.get("Labels") or {}).items())[:MAX_LISTED]]
    values += [f"env:{variable}" for variable in (config.get("Env") or [])[:MAX_LISTED]]
    if config.get("Image"):
        values.append(f"image_id:{config['Image']}")
    if container.get("Image"):
        values.append(f"image_config_digest:{container['Image']}")
    found = set()
    for value in values:
        try:
            found.add(Selector("docker", value))
        except InvalidRequest:
            continue  # longer than a selector can be: nobody can have registered it
    return frozenset(found)
