"""What the kubelet knows of the pod a process runs in (spire_features section 18.1, integrations section 7b).

The process's control groups name its container and usually its pod; the kubelet of this node lists its pods with their
containers. A pod that has just started may not be listed yet, so the list is read again, with growing pauses, until the
time for the attestation is over. Between two readings a list is believed for a moment, because a thousand processes
that start together need not have it read a thousand times.

The kubelet is asked over TLS with the agent's service account token, or with a client certificate. The role needs `get`
on `nodes/pods` (on Kubernetes before 1.33 `nodes/proxy`). Without the node's name the chain is verified and the name is
not, because the kubelet is then reached as 127.0.0.1.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

from attestors.api import Findings, KubernetesObject, PodContainer, Subject
from attestors.cgroups import Place, container_of
from attestors.containers import locate, named_by_user, require_container_locator
from attestors.kube_config import KubeAccess, PodSurroundings, from_pod
from attestors.procfs import ProcFs
from attestors.sources import Source, trouble_of
from attestors.workload.namespaces import Labels, NamespaceLabels
from attestors.workload.pods import TYPE, Found, containers_of, find, find_pod, pod_names, read_pods, selectors_of
from spiffe_core.edit_distance import closest
from spiffe_core.errors import ConfigError, InvalidRequest, NotFound, PreconditionFailed, Unavailable
from spiffe_core.runtime.https_client import get_https

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
MAX_LIST_BYTES = 128 * 1024 * 1024
MAX_TOKEN_BYTES = 64 * 1024
LIST_SECONDS = 0.5
"""How long a list of pods is believed."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
_MARGIN_SECONDS = 0.2
_OK, _UNAUTHORIZED, _FORBIDDEN = 200, 401, 403
_MAX_PORT = 65535
FileIdentity = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class K8sSettings:
    """Where the kubelet is and how it is asked; SPIRE's names."""

    kubelet_secure_port: int = 10250
    kubelet_ca_path: str = f"{SERVICE_ACCOUNT}/ca.crt"
    skip_kubelet_verification: bool = False
    token_path: str = f"{SERVICE_ACCOUNT}/token"
    certificate_path: str = ""
    private_key_path: str = ""
    use_anonymous_authentication: bool = False
    node_name: str = ""
    node_name_env: str = "MY_NODE_NAME"
    disable_container_selectors: bool = False
    enable_namespace_labels: bool = False
    use_new_container_locator: bool = True
    verbose_container_locator_logs: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.kubelet_secure_port <= _MAX_PORT:
            raise ConfigError("attestors.k8s.kubelet_secure_port: must lie between 1 and 65535", field=TYPE)
        require_container_locator(TYPE, self.use_new_container_locator)
        if bool(self.certificate_path) != bool(self.private_key_path):
            raise ConfigError(
                "attestors.k8s: certificate_path and private_key_path belong together; set both or neither", field=TYPE
            )
        if self.use_anonymous_authentication and self.certificate_path:
            raise ConfigError(
                "attestors.k8s: use_anonymous_authentication and certificate_path exclude each other", field=TYPE
            )


@dataclass(frozen=True, slots=True)
class K8sPorts:
    """Where processes, variables and time come from."""

    proc: ProcFs = field(default_factory=ProcFs)
    variable: Callable[[str], str] = lambda name: os.environ.get(name, "")
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    api_server: Callable[[], KubeAccess] = lambda: from_pod(PodSurroundings(), "attestors.k8s.enable_namespace_labels")


@dataclass(slots=True)
class _Listing:
    """The newest list of pods, and when the request for it was sent."""

    sent: float
    pods: list[dict[str, Any]]


class K8sAttestor:
    """Asks the kubelet of this node. Safe to call from several threads."""

    name: ClassVar[str] = TYPE
    Settings = K8sSettings

    def __init__(self, settings: K8sSettings | None = None, ports: K8sPorts | None = None) -> None:
        self._settings = settings or K8sSettings()
        self._ports = ports or K8sPorts()
        self._asking = Lock()
        self._listing: _Listing | None = None
        self._tls: tuple[tuple[FileIdentity | None, ...], ssl.SSLContext] | None = None
        self._kubelet = Source()
        self._namespaces = NamespaceLabels(self._ports.api_server, self._ports.monotonic)

    @property
    def trouble(self) -> str:
        """Why the kubelet, or the API server about namespaces, could not tell, and what to do."""
        return trouble_of(self._kubelet, self._namespaces.source)

    def attest(self, subject: Subject, deadline: float) -> Findings:
        """Look up the pod `subject` runs in now.

        Raises:
            Unauthenticated: the process has ended.
            Unavailable: the kubelet does not answer, refuses, or does not know the container by `deadline`.
            Internal: two pods claim the container.
        """
        place = locate(self._ports.proc, subject, verbose=self._settings.verbose_container_locator_logs)
        if place is None:
            return Findings(frozenset(), ("the process runs in no container",))
        if place.made_by:
            return Findings(frozenset(), (named_by_user(place),))
        found = self._find(place, deadline - _MARGIN_SECONDS)
        labels = {} if found.ephemeral else self._labels(found, deadline - _MARGIN_SECONDS)
        if locate(self._ports.proc, subject) != place:
            raise Unavailable("the calling process changed its container meanwhile; try again")
        if found.ephemeral:
            return Findings(frozenset(), ("the process runs in an ephemeral container, which has no identity",))
        level = not self._settings.disable_container_selectors
        return Findings(selectors_of(found, container_level=level, namespace_labels=labels))

    def attest_object(self, wanted: KubernetesObject, deadline: float) -> Findings:
        """Look up a pod of this node that a broker names; what is said of its containers one by one is left out.

        Raises:
            InvalidRequest: it is no pod.
            NotFound: this node has no such pod now.
            Unavailable: the kubelet does not answer, or refuses.
        """
        if (wanted.plural, wanted.group) != ("pods", "core"):
            raise InvalidRequest(
                "type: only pods of this node can be looked up here; name a pod (plural pods, group core)", field="type"
            )
        if wanted.name and not wanted.namespace:
            raise InvalidRequest("key.namespace: a pod has one; name it", field="key.namespace")
        pods = self._pods(self._ports.monotonic() - LIST_SECONDS, deadline - _MARGIN_SECONDS)
        found = find_pod(pods, wanted)
        if found is None:
            raise NotFound("this node has no such pod", field="reference")
        labels = self._labels(found, deadline - _MARGIN_SECONDS)
        return Findings(selectors_of(found, container_level=False, namespace_labels=labels))

    def attest_pod(self, namespace: str, name: str, deadline: float) -> tuple[PodContainer, ...]:
        """Look up a pod of this node by its name, container by container, with the processes that are seen of each.

        Raises:
            NotFound: this node has no such pod now.
            Unavailable: the kubelet does not answer, or refuses.
        """
        pods = self._pods(self._ports.monotonic() - LIST_SECONDS, deadline - _MARGIN_SECONDS)
        found = find_pod(pods, KubernetesObject("pods", "core", namespace, name))
        if found is None:
            near = closest(f"{namespace}/{name}", pod_names(pods))
            perhaps = f"; the closest by name is {near}" if near else f", only {len(pods)} others"
            raise NotFound(f"the kubelet of this node lists no pod {namespace}/{name}{perhaps}", field="pod")
        containers = containers_of(found.pod)
        seen = self._processes({one_id for _, one_id, _, _ in containers if one_id}, deadline)
        labels = self._labels(found, deadline - _MARGIN_SECONDS)
        level = not self._settings.disable_container_selectors
        return tuple(
            PodContainer(
                name=each,
                init=init,
                findings=Findings(selectors_of(one, container_level=level, namespace_labels=labels)),
                processes=tuple(seen.get(container_id, ())),
            )
            for each, container_id, init, one in containers
        )

    def _processes(self, wanted: set[str], deadline: float) -> dict[str, list[int]]:
        """The processes of each container, those that can be seen; all that is read of one is its control groups."""
        seen: dict[str, list[int]] = {}
        for pid in self._ports.proc.numbers() if wanted else ():
            if self._ports.monotonic() >= deadline:
                break
            try:
                with self._ports.proc.process(pid) as process:
                    place = container_of(process.cgroup())
            except (OSError, PreconditionFailed):
                continue
            if place is not None and not place.made_by and place.container_id in wanted:
                seen.setdefault(place.container_id, []).append(pid)
        return seen

    def _labels(self, found: Found, deadline: float) -> Labels:
        """Those of the pod's namespace, where they are wanted."""
        return self._namespaces.of(found.namespace, deadline) if self._settings.enable_namespace_labels else {}

    def _find(self, place: Place, deadline: float) -> Found:
        wanted, pause = self._ports.monotonic() - LIST_SECONDS, FIRST_PAUSE
        while True:
            pods = self._pods(wanted, deadline)
            enough = self._settings.disable_container_selectors
            found = find(pods, place.container_id, place.pod_uid, pod_is_enough=enough)
            if found is not None:
                return found
            if self._ports.monotonic() + pause >= deadline:
                raise Unavailable(
                    "the kubelet lists no pod with the process's container; a pod that has just started appears soon, "
                    "and one of another container engine never"
                )
            self._ports.sleep(pause)
            wanted, pause = self._ports.monotonic(), min(pause * 2, LONGEST_PAUSE)

    def _pods(self, wanted: float, deadline: float) -> list[dict[str, Any]]:
        """A list that was asked for at `wanted` or later. One thread asks; those that wait for it share its answer."""
        if not self._asking.acquire(timeout=max(deadline - self._ports.monotonic(), 0.0)):
            raise Unavailable("the kubelet did not answer in time")
        try:
            listing = self._listing
            if listing is None or listing.sent < wanted:
                sent = self._ports.monotonic()
                with self._kubelet.asked():
                    listing = self._listing = _Listing(sent, self._ask(deadline))
            return listing.pods
        finally:
            self._asking.release()

    def _ask(self, deadline: float) -> list[dict[str, Any]]:
        name = self._settings.node_name or self._ports.variable(self._settings.node_name_env)
        answer = get_https(
            name or "127.0.0.1",
            self._settings.kubelet_secure_port,
            "/pods",
            tls=self._context(verify_name=bool(name)),
            headers=self._credentials(),
            deadline=deadline,
            limit=MAX_LIST_BYTES,
        )
        if answer.status == _UNAUTHORIZED:
            raise Unavailable(f"the kubelet refuses {self._shown()}")
        if answer.status == _FORBIDDEN:
            raise Unavailable(
                "the kubelet refuses the agent (403): its service account, or the user its certificate names, needs "
                "`get` on `nodes/pods`, or on `nodes/proxy` before Kubernetes 1.33"
            )
        if answer.status != _OK:
            raise Unavailable(f"the kubelet answered {answer.status} when asked for its pods")
        return read_pods(answer.body)

    def _shown(self) -> str:
        """What the agent showed that was not accepted, and what to do."""
        chosen = self._settings
        if chosen.use_anonymous_authentication:
            return "anonymous requests (401): remove use_anonymous_authentication, and let the agent show its token"
        if chosen.certificate_path:
            return (
                f"the certificate {chosen.certificate_path} (401): "
                "one of the kubelet's client CAs has to have issued it"
            )
        return (
            f"the token {chosen.token_path} (401): it has to be of this cluster, for its API server's audience, and "
            "the kubelet has to run with webhook authentication"
        )

    def _credentials(self) -> dict[str, str]:
        if self._settings.use_anonymous_authentication or self._settings.certificate_path:
            return {}
        try:
            with Path(self._settings.token_path).open("rb") as file:
                token = file.read(MAX_TOKEN_BYTES).strip()
        except OSError as error:
            raise Unavailable(f"{self._settings.token_path}: cannot be read: {error.strerror}") from None
        if not token or any(byte <= 0x20 or byte >= 0x7F for byte in token):  # noqa: PLR2004  # printable ASCII
            raise Unavailable(f"{self._settings.token_path}: holds no service account token")
        return {"Authorization": f"Bearer {token.decode('ascii')}"}

    def _context(self, *, verify_name: bool) -> ssl.SSLContext:
        """Certificates, read again when one of the files is another than before.

        In the middle of a replacement a certificate does not fit its key: the pair from before serves until it does.
        """
        identity = self._files()
        if self._tls is not None and self._tls[0] == identity:
            return self._tls[1]
        try:
            self._tls = (identity, self._new_context(verify_name=verify_name))
        except Unavailable:
            if self._tls is None:
                raise
        return self._tls[1]

    def _files(self) -> tuple[FileIdentity | None, ...]:
        """What tells each of the files from what stood there before; None for one that is not there."""
        chosen = self._settings
        return tuple(
            _identity(path) for path in (chosen.kubelet_ca_path, chosen.certificate_path, chosen.private_key_path)
        )

    def _new_context(self, *, verify_name: bool) -> ssl.SSLContext:
        chosen = self._settings
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.check_hostname = verify_name and not chosen.skip_kubelet_verification
            if chosen.skip_kubelet_verification:
                context.verify_mode = ssl.CERT_NONE
            else:
                context.load_verify_locations(chosen.kubelet_ca_path)
            if chosen.certificate_path:
                context.load_cert_chain(chosen.certificate_path, chosen.private_key_path)
        except (OSError, ssl.SSLError) as error:
            raise Unavailable(
                f"attestors.k8s: the certificates for the kubelet cannot be used: {error.strerror or error}"
            ) from None
        return context


def _identity(path: str) -> FileIdentity | None:
    try:
        status = os.stat(path)  # noqa: PTH116  # follows the links that Kubernetes swaps
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
