"""The pods of this node, asked for by name: for people who ask why a workload in one gets what it gets."""

from __future__ import annotations

from collections.abc import Sequence

from attestors.api import PodAttestor, PodContainer, WorkloadAttestor
from spiffe_core.clock import Clock
from spiffe_core.errors import PreconditionFailed
from spiffe_core.runtime.offload import Offload

_THREADS = 2


class Pods:
    """Belongs to the event loop."""

    def __init__(self, attestors: Sequence[WorkloadAttestor], *, clock: Clock, budget: float) -> None:
        self._attestor = next((one for one in attestors if isinstance(one, PodAttestor)), None)
        self._clock = clock
        self._budget = budget
        self._offload = Offload("pods", _THREADS)

    @property
    def type(self) -> str:
        """The type of the selectors that are said of a pod."""
        return "" if self._attestor is None else self._attestor.name

    async def containers(self, namespace: str, name: str) -> tuple[PodContainer, ...]:
        """The pod's containers, now.

        Raises:
            PreconditionFailed: no attestor of this agent knows pods.
            NotFound: this node has no such pod.
            Unavailable: the kubelet does not tell.
        """
        if self._attestor is None:
            raise PreconditionFailed("this agent has no attestor that knows pods; add [attestors.k8s] to its settings")
        deadline = self._clock.monotonic() + self._budget
        return await self._offload(self._attestor.attest_pod, namespace, name, deadline)
