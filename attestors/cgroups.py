"""Which container, and which pod, a process is in, out of /proc/<pid>/cgroup: pure (integrations section 7b).

A cgroup path is set by whoever made the container, and the kernel shows it to the agent as it is. The mount table of a
process is no evidence: any user can bind another container's control group somewhere in a user namespace. And what is
mounted there of a process's own container lies above its control group, whose path then names the container as well.

A path is read from its root, because a container that may write to its own control group can make others below it and
move into them, named as it likes; it cannot make one above. The first segment that holds `pod` and a UUID names the
pod, and the first 64 hexadecimal digits after it the container; without a pod, the first 64 hexadecimal digits of the
path do. (SPIRE reads from the end, which such a container can forge.) A line that names a pod counts for more than one
that does not, because kind runs nodes as containers. Two lines that name different containers are refused.

systemd gives each user a control group to do with as he likes, `user@<uid>.service`. Whatever is named below it was
named by that user (`Place.made_by`): a container of his own perhaps, or somebody else's name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from spiffe_core.errors import PreconditionFailed

MAX_LINES = 128
MAX_LINE_BYTES = 8192
_CONTAINER = re.compile(r"(?<!libpod_pod_)(?<!-conmon-)(?<![0-9a-zA-Z])([0-9a-f]{64})(?![0-9a-zA-Z])")
"""Not what Podman calls a pod of its own, and not where Podman and CRI-O keep the process that watches a container."""
_POD = re.compile(
    r"pod([0-9a-fA-F]{8}[-_][0-9a-fA-F]{4}[-_][0-9a-fA-F]{4}[-_][0-9a-fA-F]{4}[-_][0-9a-fA-F]{12})(?![0-9a-fA-F])"
)
_LIBPOD = re.compile(r"/libpod(?:-|-payload-|/)$")
"""What stands before the id: usually, in a container that stays in its unit's control group (Quadlet), and of old."""
_DELEGATED = re.compile(r"(?:^|/)user@(\d{1,10})\.service(?=/)")
_CGROUP_FIELDS = 3


@dataclass(frozen=True, slots=True)
class Place:
    """A container and, if the path says so, the pod it belongs to.

    `podman` says that Podman made it. `made_by` is the user who could choose the names in the path, 0 where nobody but
    root could.
    """

    container_id: str
    pod_uid: str = ""
    podman: bool = False
    made_by: int = 0


def container_of(cgroup: str) -> Place | None:
    """The container of a process, None for one that runs in none.

    Raises:
        PreconditionFailed: the lines contradict each other, or are too many.
    """
    places = {place for place in map(_place, _paths(cgroup)) if place is not None}
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
    above = path[: container.start() if pod is None else pod.start()]
    delegated = _DELEGATED.search(above)
    made_by = int(delegated[1]) if delegated is not None else 0
    if pod is not None:
        return Place(container[1], pod[1].replace("_", "-").lower(), made_by=made_by)
    return Place(container[1], podman=_LIBPOD.search(above) is not None, made_by=made_by)


def _paths(text: str) -> list[str]:
    """The third field of each line: `hierarchy:controllers:path` (cgroups(7)); the path may hold colons."""
    lines = text.split("\n")  # the kernel's own end of a line; a name may hold what Python takes for others
    if len(lines) > MAX_LINES * 64 or any(len(line) > MAX_LINE_BYTES for line in lines):
        raise PreconditionFailed("the process's cgroups cannot be read: too many lines, or too long ones")
    return [line.split(":", 2)[2] for line in lines if line.count(":") >= _CGROUP_FIELDS - 1]
