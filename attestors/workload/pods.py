"""Pods as the kubelet lists them, and the selectors of one container in one pod: pure (spire_features section 18.1)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from attestors.api import KubernetesObject
from spiffe_core.errors import Internal, InvalidRequest, Unavailable
from spiffe_core.selectors import Selector

TYPE = "k8s"
MAX_PODS = 5000


@dataclass(frozen=True, slots=True)
class Found:
    """A pod and, if it was looked for and is there, the state of one of its containers.

    `ephemeral`: the container was added to the running pod (`kubectl debug`). Whoever may do that may not take the
    pod's identity by it: such a container has none, as with SPIRE, unless the pod alone counts.
    """

    pod: Mapping[str, Any]
    container: Mapping[str, Any] | None = None
    ephemeral: bool = False

    @property
    def namespace(self) -> str:
        """The pod's namespace."""
        return _text(_map(self.pod, "metadata"), "namespace")


def read_pods(body: bytes) -> list[dict[str, Any]]:
    """The items of a PodList.

    Raises:
        Unavailable: it is not one.
    """
    try:
        pods = json.loads(body)["items"] or []
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Unavailable("the kubelet's answer is not a list of pods") from None
    if not isinstance(pods, list) or len(pods) > MAX_PODS or not all(isinstance(pod, dict) for pod in pods):
        raise Unavailable(f"the kubelet's answer is not a list of at most {MAX_PODS} pods")
    return pods


def find(pods: Iterable[Mapping[str, Any]], container_id: str, pod_uid: str, *, pod_is_enough: bool) -> Found | None:
    """The container with this id, in the pod with this UID where that is known.

    `pod_is_enough`: a pod by its UID will do when its status does not list the container yet.

    Raises:
        Internal: two pods claim the container.
    """
    found: list[Found] = []
    for pod in pods:
        if pod_uid and _text(_map(pod, "metadata"), "uid") != pod_uid:
            continue
        container = next((one for one in _containers(pod) if _id_of(one) == container_id), None)
        if container is not None:
            found.append(Found(pod, container))
        elif pod_uid and pod_is_enough:
            found.append(Found(pod))
        elif any(_id_of(one) == container_id for one in _list(_map(pod, "status"), "ephemeralContainerStatuses")):
            found.append(Found(pod, ephemeral=True))
    if len(found) > 1:
        raise Internal("two pods claim the process's container; look at the kubelet's list of pods")
    return found[0] if found else None


def find_pod(pods: Iterable[Mapping[str, Any]], wanted: KubernetesObject) -> Found | None:
    """The pod with this key, or without one with this UID; None if it is not there or has another UID."""
    for pod in pods:
        metadata = _map(pod, "metadata")
        uid = _text(metadata, "uid")
        if wanted.name:
            if (_text(metadata, "namespace"), _text(metadata, "name")) == (wanted.namespace, wanted.name):
                return Found(pod) if uid and wanted.uid in {"", uid} else None
        elif uid and uid == wanted.uid:
            return Found(pod)
    return None


def containers_of(pod: Mapping[str, Any]) -> list[tuple[str, str, bool, Found]]:
    """Each container of a pod: its name, its id ("" before it starts), whether it only prepares the pod, and itself."""
    status = _map(pod, "status")
    return [
        (_text(one, "name"), _id_of(one), init, Found(pod, one))
        for kind, init in (("containerStatuses", False), ("initContainerStatuses", True))
        for one in _list(status, kind)
    ]


def pod_names(pods: Iterable[Mapping[str, Any]]) -> list[str]:
    """`namespace/name` of each."""
    metadata = [_map(pod, "metadata") for pod in pods]
    return [f"{_text(one, 'namespace')}/{_text(one, 'name')}" for one in metadata]


def selectors_of(
    found: Found, *, container_level: bool, namespace_labels: Mapping[str, str] | None = None
) -> frozenset[Selector]:
    """Everything that is said of the pod, of its namespace and, unless it is left out, of the container."""
    values = list(_pod_values(found.pod))
    values += [f"ns-label:{key}:{value}" for key, value in (namespace_labels or {}).items()]
    if container_level and found.container is not None:
        values.append(f"container-name:{_text(found.container, 'name')}")
        values += [f"container-image:{image}" for image in _images([found.container])]
    selectors = set()
    for value in values:
        try:
            selectors.add(Selector(TYPE, value))
        except InvalidRequest:
            continue  # longer than a selector can be: nobody can have registered it
    return frozenset(selectors)


def _pod_values(pod: Mapping[str, Any]) -> Iterator[str]:
    metadata, spec, status = _map(pod, "metadata"), _map(pod, "spec"), _map(pod, "status")
    yield f"ns:{_text(metadata, 'namespace')}"
    yield f"sa:{_text(spec, 'serviceAccountName')}"
    yield f"node-name:{_text(spec, 'nodeName')}"
    yield f"pod-uid:{_text(metadata, 'uid')}"
    yield f"pod-name:{_text(metadata, 'name')}"
    containers, starting = _list(status, "containerStatuses"), _list(status, "initContainerStatuses")
    yield f"pod-image-count:{len(containers)}"
    yield f"pod-init-image-count:{len(starting)}"
    yield from (f"pod-image:{image}" for image in _images(containers))
    yield from (f"pod-init-image:{image}" for image in _images(starting))
    yield from (f"pod-label:{key}:{value}" for key, value in sorted(_map(metadata, "labels").items()))
    for owner in _list(metadata, "ownerReferences"):
        kind = _text(owner, "kind")
        yield f"pod-owner:{kind}:{_text(owner, 'name')}"
        yield f"pod-owner-uid:{kind}:{_text(owner, 'uid')}"


def _images(containers: Iterable[Mapping[str, Any]]) -> list[str]:
    """Image and image ID of each, once."""
    found = {_text(one, name): None for one in containers for name in ("image", "imageID")}
    return [image for image in found if image]


def _containers(pod: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    status = _map(pod, "status")
    yield from _list(status, "containerStatuses")
    yield from _list(status, "initContainerStatuses")


def _id_of(container: Mapping[str, Any]) -> str:
    """`containerd://<id>` without the name of the runtime."""
    return _text(container, "containerID").rpartition("://")[2]


def _map(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}


def _list(value: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = value.get(name)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    return found if isinstance(found, str) else ""
