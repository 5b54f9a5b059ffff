"""The questions that are asked of the API server of a Kubernetes cluster: about a pod's token, and about namespaces.

    POST /apis/authentication.k8s.io/v1/tokenreviews     is this token good, and whose is it
    GET  /api/v1/namespaces/NS/pods/NAME                 the pod it is bound to
    GET  /api/v1/nodes/NAME                              the node that pod runs on
    GET  /api/v1/namespaces/NAME                         a namespace, with its labels

An API server that is away or broken is `Unavailable` here, never a reason to believe or to refuse a node. While it is,
one question at a time goes out and the others are turned away at once, so that it cannot hold every thread.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from urllib.parse import quote

from attestors.json_objects import read_object
from attestors.kube_config import KubeAccess, PodSurroundings, from_file, from_pod
from spiffe_core.errors import ConfigError, IdentityError, InvalidRequest, Unavailable
from spiffe_core.runtime.https_client import Answer, ask_https

log = logging.getLogger(__name__)

MAX_OBJECT_BYTES = 4 * 1024 * 1024
"""Objects end at 1.5 MiB in etcd; managed fields and the JSON around them come on top."""
_MAX_WORDS = 300
_MISSING = 404
_GOOD = frozenset({200, 201})
_REFUSED = frozenset({401, 403})


class _Health:
    """Whether the API server answered last, and whether somebody is finding out."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._ailing = False
        self._probing = False

    def enter(self, cluster: str) -> bool:
        """Go on, or be turned away. True: this caller finds out, and says `leave` at the end."""
        with self._lock:
            if not self._ailing:
                return False
            if self._probing:
                raise Unavailable(f'the API server of the cluster "{cluster}" does not answer, try again')
            self._probing = True
            return True

    def leave(self) -> None:
        """The one who found out is done."""
        with self._lock:
            self._probing = False

    def failed(self, cluster: str, why: str) -> None:
        """Say so in the log, once."""
        with self._lock:
            first, self._ailing = not self._ailing, True
        if first:
            log.warning("k8s_psat: the API server of the cluster %s cannot be asked: %s", cluster, why)

    def answered(self, cluster: str) -> None:
        """Say so in the log if it had not before."""
        with self._lock:
            again, self._ailing = self._ailing, False
        if again:
            log.info("k8s_psat: the API server of the cluster %s answers again", cluster)


@dataclass(frozen=True, slots=True)
class KubeApi:
    """The API server of one cluster. Safe to call from several threads."""

    cluster: str
    kube_config_file: str
    setting: str
    """The name of the setting that is to blame when `kube_config_file` cannot be used."""
    surroundings: PodSurroundings = field(default_factory=PodSurroundings)
    _health: _Health = field(default_factory=_Health, init=False, repr=False, compare=False)

    def access(self) -> KubeAccess:
        """How it is reached now.

        Raises:
            ConfigError: that cannot be read.
        """
        if self.kube_config_file:
            return from_file(Path(self.kube_config_file), self.setting)
        return from_pod(self.surroundings, self.setting)

    @contextmanager
    def asked(self, deadline: float) -> Iterator[KubeQuestions]:
        """Questions, all of them answered by `deadline` (`time.monotonic()` seconds).

        Raises:
            Unavailable: the API server cannot be asked, does not answer, or refuses us.
        """
        probe = self._health.enter(self.cluster)
        try:
            try:
                access = self.access()
            except ConfigError as error:
                raise Unavailable(error.public) from None
            yield KubeQuestions(access, deadline)
        except Unavailable as error:
            self._health.failed(self.cluster, error.public)
            raise Unavailable(
                f'the API server of the cluster "{self.cluster}" cannot be asked now; the server\'s log says why'
            ) from None
        except IdentityError:  # it answered, and the node was refused
            self._health.answered(self.cluster)
            raise
        else:
            self._health.answered(self.cluster)
        finally:
            if probe:
                self._health.leave()


@dataclass(frozen=True, slots=True)
class KubeQuestions:
    """What can be asked of an API server; `None` is an object that is not there."""

    access: KubeAccess
    deadline: float

    def review(self, token: str, audiences: Sequence[str]) -> Mapping[str, object]:
        """The status of a TokenReview. Without `audiences` the token must be for the API server itself."""
        spec: dict[str, object] = {"token": token}
        if audiences:
            spec["audiences"] = list(audiences)
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        path = "/apis/authentication.k8s.io/v1/tokenreviews"
        found = self._ask("POST", path, "`create` on `tokenreviews`", json.dumps(review).encode())
        if found is None:
            raise Unavailable("the API server knows no TokenReview (404)")
        return mapping(found, "status")

    def pod(self, namespace: str, name: str) -> Mapping[str, object] | None:
        """The pod of that name."""
        return self._ask("GET", f"/api/v1/namespaces/{_segment(namespace)}/pods/{_segment(name)}", "`get` on `pods`")

    def node(self, name: str) -> Mapping[str, object] | None:
        """The node of that name."""
        return self._ask("GET", f"/api/v1/nodes/{_segment(name)}", "`get` on `nodes`")

    def namespace(self, name: str) -> Mapping[str, object] | None:
        """The namespace of that name."""
        return self._ask("GET", f"/api/v1/namespaces/{_segment(name)}", "`get` on `namespaces`")

    def _ask(self, method: str, path: str, right: str, body: bytes | None = None) -> dict[str, object] | None:
        access = self.access
        headers = {**access.headers, "Content-Type": "application/json"} if body is not None else access.headers
        answer = ask_https(
            method,
            access.host,
            access.port,
            access.prefix + path,
            tls=access.tls,
            headers=headers,
            deadline=self.deadline,
            limit=MAX_OBJECT_BYTES,
            body=body,
            server_name=access.server_name,
        )
        if answer.status in _REFUSED:
            raise Unavailable(f"the API server refuses us ({answer.status}): our service account needs {right}")
        document = _document(answer)
        if answer.status == _MISSING and text(document, "reason") == "NotFound":
            return None
        if answer.status not in _GOOD:
            said = str(document.get("message", ""))[:_MAX_WORDS]
            raise Unavailable(f"the API server answered {answer.status}: {said!r}")
        return document


def mapping(value: Mapping[str, object], name: str) -> Mapping[str, object]:
    """A member that is an object; an empty one if it is something else."""
    found = value.get(name)
    return found if isinstance(found, dict) else {}


def text(value: Mapping[str, object], name: str) -> str:
    """A member that is a text; "" if it is something else."""
    found = value.get(name)
    return found if isinstance(found, str) else ""


def _document(answer: Answer) -> dict[str, object]:
    try:
        return read_object(answer.body, MAX_OBJECT_BYTES, field="the API server's answer", what="an object")
    except InvalidRequest as error:
        raise Unavailable(f"{error.public} (status {answer.status})") from None


def _segment(name: str) -> str:
    return quote(name, safe="")
