"""The trust bundle in a ConfigMap of a Kubernetes cluster.

    GET   /api/v1/namespaces/NS/configmaps/NAME      what is there, its annotations and its resource version
    PATCH                                            a merge patch of our key and our annotations, for that version only
    POST  /api/v1/namespaces/NS/configmaps           if there is none yet

Other keys of the ConfigMap are left alone. How the API server is reached, the token and its CA are read anew each time.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from urllib.parse import quote

from attestors.json_objects import read_object
from attestors.kube_config import KubeAccess, PodSurroundings, from_file, from_pod
from identity_server.domain.publication import Outcome, Present, Publication, may_write
from identity_server.settings_publish import PublishConfigMapSection
from spiffe_core.bundle import MAX_SEQUENCE
from spiffe_core.errors import InvalidRequest, PreconditionFailed, Unavailable
from spiffe_core.runtime.https_client import Answer, ask_https

SECONDS = 15.0
"""For all questions of one attempt together."""
TRIES = 4
"""So often it is begun anew because somebody else wrote meanwhile."""
MAX_CONTENT_BYTES = 1024 * 1024
"""What the data of a ConfigMap may add up to (Kubernetes, `MaxSecretSize` of core/v1 validation)."""
MAX_ANSWER_BYTES = 4 * 1024 * 1024
FIELD_MANAGER = "muniment-identity-server"
DOMAIN = "muniment.dev/trust-domain"
SEQUENCE = "muniment.dev/spiffe-sequence"
_MAX_WORDS = 300
_OK, _CREATED, _MISSING, _CONFLICT = 200, 201, 404, 409
_REFUSED = frozenset({401, 403})


class ConfigMapTarget:
    """One key of one ConfigMap."""

    def __init__(
        self, name: str, section: PublishConfigMapSection, surroundings: PodSurroundings | None = None
    ) -> None:
        self._section = section
        self._setting = f"publish.k8s_configmap.{name}.kubeconfig_path"
        self._surroundings = surroundings or PodSurroundings()
        self.place = f"the ConfigMap {section.namespace}/{section.configmap_name}, key {section.configmap_key}"

    def put(self, ours: Publication) -> Outcome:
        """Write the key unless it holds the same, or a newer one.

        Raises:
            Unavailable, ConfigError: the API server cannot be asked, or refuses.
            PreconditionFailed: what is there must stay, or the bundle is too large.
        """
        if len(ours.content) > MAX_CONTENT_BYTES:
            raise PreconditionFailed(
                f"the bundle has {len(ours.content)} bytes and a ConfigMap holds at most {MAX_CONTENT_BYTES}; publish "
                "it to a file or a bucket"
            )
        deadline = time.monotonic() + SECONDS
        access = self._access()
        for _ in range(TRIES):
            found = self._found(access, deadline)
            if not may_write(ours, None if found is None else self._present(found), self.place):
                return Outcome.UNCHANGED
            if self._written(access, ours, found, deadline):
                return Outcome.WRITTEN
        raise Unavailable(f"{self.place} is written by others all the time")

    def _access(self) -> KubeAccess:
        path = self._section.kubeconfig_path
        return from_pod(self._surroundings, self._setting) if path is None else from_file(path, self._setting)

    def _found(self, access: KubeAccess, deadline: float) -> Mapping[str, object] | None:
        answer = self._ask(access, "GET", self._path(self._section.configmap_name), deadline)
        if answer.status == _MISSING:
            return None
        return self._document(answer, "get", (_OK,))

    def _present(self, found: Mapping[str, object]) -> Present | None:
        annotations = _mapping(_mapping(found, "metadata"), "annotations")
        content = _mapping(found, "data").get(self._section.configmap_key)
        sequence, name = annotations.get(SEQUENCE), annotations.get(DOMAIN)
        told = (
            isinstance(sequence, str)
            and sequence.isascii()
            and sequence.isdecimal()
            and len(sequence) <= len(str(MAX_SEQUENCE))
        )
        return Present(
            hashlib.sha256(content.encode()).hexdigest() if isinstance(content, str) else "",
            int(sequence) if told and isinstance(sequence, str) else None,
            name if isinstance(name, str) else "",
        )

    def _written(
        self, access: KubeAccess, ours: Publication, found: Mapping[str, object] | None, deadline: float
    ) -> bool:
        """Whether it was; False if somebody else wrote since `found` was read."""
        metadata: dict[str, object] = {
            "annotations": {DOMAIN: ours.trust_domain.name, SEQUENCE: str(ours.sequence)},
        }
        body: dict[str, object] = {
            "metadata": metadata,
            "data": {self._section.configmap_key: ours.content.decode("ascii")},
        }
        if found is None:
            metadata["name"] = self._section.configmap_name
            body.update(apiVersion="v1", kind="ConfigMap")
            answer = self._ask(access, "POST", self._path(), deadline, body, "application/json")
            verb = "create"
        else:
            metadata["resourceVersion"] = _mapping(found, "metadata").get("resourceVersion")
            path = self._path(self._section.configmap_name)
            answer = self._ask(access, "PATCH", path, deadline, body, "application/merge-patch+json")
            verb = "patch"
        if answer.status == _CONFLICT or (answer.status == _MISSING and found is not None):
            return False
        self._document(answer, verb, (_OK, _CREATED))
        return True

    def _path(self, name: str = "") -> str:
        namespace = quote(self._section.namespace, safe="")
        end = f"/{quote(name, safe='')}" if name else ""
        return f"/api/v1/namespaces/{namespace}/configmaps{end}"

    def _ask(
        self,
        access: KubeAccess,
        method: str,
        path: str,
        deadline: float,
        body: Mapping[str, object] | None = None,
        kind: str = "",
    ) -> Answer:
        headers = {**access.headers, "Content-Type": kind} if body is not None else access.headers
        query = f"?fieldManager={FIELD_MANAGER}" if body is not None else ""
        return ask_https(
            method,
            access.host,
            access.port,
            access.prefix + path + query,
            tls=access.tls,
            headers=headers,
            deadline=deadline,
            limit=MAX_ANSWER_BYTES,
            body=None if body is None else json.dumps(body).encode(),
            server_name=access.server_name,
        )

    def _document(self, answer: Answer, verb: str, good: tuple[int, ...]) -> Mapping[str, object]:
        if answer.status in _REFUSED:
            raise Unavailable(
                f"the API server refuses us ({answer.status}): our service account needs `{verb}` on `configmaps` in "
                f"the namespace {self._section.namespace}"
            )
        try:
            document = read_object(answer.body, MAX_ANSWER_BYTES, field="the API server's answer", what="an object")
        except InvalidRequest as error:
            raise Unavailable(f"{error.public} (status {answer.status})") from None
        if answer.status not in good:
            said = str(document.get("message", ""))[:_MAX_WORDS]
            raise Unavailable(f"the API server answered {answer.status} to {verb} of {self.place}: {said!r}")
        return document


def _mapping(value: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}
