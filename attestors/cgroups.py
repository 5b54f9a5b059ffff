"""Which container, and which pod, a process is in, out of /proc/<pid>/cgroup: pure (integrations section 7b).

A cgroup path is set by whoever made the container, and the kernel shows it to the agent as it is; the mount table of a
process, in contrast, can be arranged by the process itself, so it is asked only when no cgroup names a container (and
`containers` only asks it where the process cannot have arranged it).

systemd gives each user a control group to do with as he likes, `user@<uid>.service`. Whatever is named below it was named
by that user (`Place.made_by`): a container of his own perhaps, or somebody else's name.

A path is read from its root, because a container that may write to its own control group can make others below it and
move into them, named as it likes; it cannot make one above. The first segment that holds `pod` and a UUID names the pod,
and the first 64 hexadecimal digits after it the container; without a pod, the first 64 hexadecimal digits of the path
do. (SPIRE reads from the end, which such a container can forge.) A line that names a pod counts for more than one that
does not, because kind runs nodes as containers. Two lines that name different containers are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from spiffe_core.errors import PreconditionFailed

MAX_LINES = 128
MAX_LINE_BYTES = 8192
_CONTAINER = re.compile(r"(?<!libpod_pod_)(?<![0-9a-zA-Z])([0-9a-f]{64})(?![0-9a-zA-Z])")
_POD = re.compile(
    r"pod([0-9a-fA-F]{8}[-_][0-9a-fA-F]{4}[-_][0-9a-fA-F]{4}[-_][0-9a-fA-F]{4}[-_][0-9a-fA-F]{12})(?![0-9a-fA-F])"
)
_DELEGATED = re.compile(r"(?:^|/)user@(\d{1,10})\.service(?=/)")
_PODMAN_USER = re.compile(r"(?:^|/)user-(\d{1,10})\.slice(?:/|$)")
_CGROUP_FIELDS = 3
_MOUNT_FIELDS = 6


@dataclass(frozen=True, slots=True)
class Place:
    """A container and, if the path says so, the pod it belongs to.

    `podman` says that Podman made it, for the user `podman_uid` (0 for the system's own). `made_by` is the user who could
    choose the names in the path, 0 where nobody but root could.
    """

    container_id: str
    pod_uid: str = ""
    podman: bool = False
    podman_uid: int = 0
    made_by: int = 0


def container_of(cgroup: str, mountinfo: str = "") -> Place | None:
    """The container of a process, None for one that runs in none.

    Raises:
        PreconditionFailed: the lines contradict each other, or are too many.
    """
    place = _one(_paths_of_cgroup(cgroup))
    if place is None and mountinfo:
        place = _one(_paths_of_mounts(mountinfo))
    return place


def _one(paths: Iterable[str]) -> Place | None:
    places = {place for place in map(_place, paths) if place is not None}
    with_pod = {place for place in places if place.pod_uid}
    chosen = with_pod or places
    if len(chosen) > 1:
        raise PreconditionFailed("the process's cgroups name several containers or pods; none of them is believed")
    return next(iter(chosen), None)


def _place(path: str) -> Place | None:
    pod = _POD.search(path)
    container = _CONTAINER.search(path, pod.end() if pod is not None else 0)
    if container is None:
        return None
    delegated = _DELEGATED.search(path, 0, container.start())
    made_by = int(delegated[1]) if delegated is not None else 0
    if pod is not None:
        return Place(container[1], pod[1].replace("_", "-").lower(), made_by=made_by)
    podman = path[: container.start()].endswith("/libpod-")
    user = _PODMAN_USER.search(path) if podman else None
    return Place(container[1], podman=podman, podman_uid=int(user[1]) if user is not None else 0, made_by=made_by)


def _paths_of_cgroup(text: str) -> list[str]:
    """The third field of each line: `hierarchy:controllers:path` (cgroups(7)); the path may hold colons."""
    lines = _lines(text)
    return [line.split(":", 2)[2] for line in lines if line.count(":") >= _CGROUP_FIELDS - 1]


def _paths_of_mounts(text: str) -> list[str]:
    """The roots of cgroup mounts (proc_pid_mountinfo(5)): the fourth field of lines whose file system is a cgroup."""
    roots = []
    for line in _lines(text):
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) >= _MOUNT_FIELDS and after.split(" ", 1)[0] in {"cgroup", "cgroup2"} and fields[3] != "/":
            roots.append(fields[3])
    return roots


def _lines(text: str) -> list[str]:
    lines = text.split("\n")  # the kernel's own end of a line; a name may hold what Python takes for others
    if len(lines) > MAX_LINES * 64 or any(len(line) > MAX_LINE_BYTES for line in lines):
        raise PreconditionFailed("the process's cgroups cannot be read: too many lines, or too long ones")
    return lines
