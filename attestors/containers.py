"""The container of the calling process, read so that it cannot be mistaken for another process's."""

from __future__ import annotations

import logging

from attestors.api import Subject
from attestors.cgroups import Place, container_of
from attestors.procfs import ProcFs
from spiffe_core.errors import ConfigError, Unavailable

MAX_TOLD = 4096
"""Characters of a process's control groups that are logged."""
log = logging.getLogger(__name__)


def locate(proc: ProcFs, subject: Subject, *, verbose: bool = False) -> Place | None:
    """Where `subject` runs now; None for a process in no container.

    `verbose` tells the log what was read and what it says.

    Raises:
        Unauthenticated: the process has ended.
        PreconditionFailed: its control groups contradict each other.
        Unavailable: /proc cannot be read.
    """
    try:
        with proc.process(subject.pid) as process:
            subject.require_alive()
            cgroup = process.cgroup()
            place = container_of(cgroup)
            subject.require_alive()
            if verbose:
                _tell(subject.pid, cgroup, place)
            return place
    except OSError as error:
        subject.require_alive()
        raise Unavailable("the control groups of the calling process cannot be read", error=str(error)) from error


def named_by_user(place: Place) -> str:
    """Why nothing is said of a container whose name somebody but root could choose."""
    return (
        f"the process's control group lies below user@{place.made_by}.service, where that user can name containers as "
        "he likes: whose container it is cannot be told"
    )


def require_container_locator(attestor: str, wanted: bool) -> None:
    """SPIRE's switch between two ways to read control groups, of which there is one here.

    Raises:
        ConfigError: the other one is wanted.
    """
    if not wanted:
        raise ConfigError(
            f"attestors.{attestor}.use_new_container_locator: there is no other; remove the key", field=attestor
        )


def _tell(pid: int, cgroup: str, place: Place | None) -> None:
    facts: dict[str, object] = {"pid": pid, "cgroup": cgroup[:MAX_TOLD]}
    if place is not None:
        facts |= {"container_id": place.container_id, "pod_uid": place.pod_uid}
        facts |= {"podman": place.podman, "made_by": place.made_by}
    log.info("control groups of a calling process were read", extra={"facts": facts})
