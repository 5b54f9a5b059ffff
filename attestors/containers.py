"""The container of the calling process, read so that it cannot be mistaken for another process's."""

from __future__ import annotations

from attestors.api import Subject
from attestors.cgroups import Place, container_of
from attestors.procfs import ProcFs
from spiffe_core.errors import Unavailable


def locate(proc: ProcFs, subject: Subject) -> Place | None:
    """Where `subject` runs now; None for a process in no container.

    Its mounts, which it can arrange itself, are only looked at when no control group names a container.

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
            if place is None:
                place = container_of(cgroup, process.mountinfo())
            subject.require_alive()
            return place
    except OSError as error:
        subject.require_alive()
        raise Unavailable("the control groups of the calling process cannot be read", error=str(error)) from error
