"""The labels of a Kubernetes namespace, which the kubelet does not know and the API server does."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from threading import Lock

from attestors.kube_api import KubeQuestions, mapping
from attestors.kube_config import KubeAccess
from attestors.sources import Source
from spiffe_core.errors import ConfigError, Unavailable

FRESH_SECONDS = 10.0
"""How long the labels of a namespace are believed."""
STALE_SECONDS = 300.0
"""How long they are believed while the API server cannot tell: by then it has been restarted."""
MAX_KEPT = 4096

Labels = Mapping[str, str]


class NamespaceLabels:
    """Asks with the service account of the agent's pod. Safe to call from several threads."""

    def __init__(self, access: Callable[[], KubeAccess], monotonic: Callable[[], float]) -> None:
        self._access = access
        self._monotonic = monotonic
        self._lock = Lock()
        self._kept: OrderedDict[str, tuple[float, Labels]] = OrderedDict()
        self.source = Source()

    def of(self, namespace: str, deadline: float) -> Labels:
        """Its labels; none of one that is gone. `deadline` is `time.monotonic()` seconds.

        Raises:
            Unavailable: the API server cannot be asked, or refuses the agent, and has not told them lately.
        """
        now = self._monotonic()
        with self._lock:
            at, labels = self._kept.get(namespace, (0.0, None))
        if labels is not None and now - at < FRESH_SECONDS:
            return labels
        try:
            with self.source.asked():
                found = self._ask(namespace, deadline)
        except Unavailable:
            if labels is not None and now - at < STALE_SECONDS:
                return labels
            raise
        with self._lock:
            self._kept[namespace] = (now, found)
            self._kept.move_to_end(namespace)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return found

    def _ask(self, namespace: str, deadline: float) -> Labels:
        try:
            access = self._access()
        except ConfigError as error:
            raise Unavailable(error.public) from None
        labels = mapping(mapping(KubeQuestions(access, deadline).namespace(namespace) or {}, "metadata"), "labels")
        return {key: value for key, value in sorted(labels.items()) if isinstance(value, str)}
