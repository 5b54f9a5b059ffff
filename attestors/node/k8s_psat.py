"""k8s_psat: an agent proves in which pod of which cluster it runs, by the token that Kubernetes gave that pod.

The payload is SPIRE's (spire_wire section 7), and there is no challenge:

    {"cluster": NAME, "token": PROJECTED SERVICE ACCOUNT TOKEN}

The server reads nothing in the token itself. It has the API server of the cluster review it (TokenReview, for the
audiences of the configuration), takes service account, pod and node from that answer alone (S25), and then holds the
answer against the pod and the node as they are now: a token outlives its pod in the API server's cache, and a pod's
name may be used again. The token is good until it expires, so an agent heals without a human; it is also as good as
any bearer token to whoever steals it meanwhile, which is why it should be short-lived and for this audience alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, cast

from attestors.api import Attested, Challenge, Dialogue
from attestors.json_objects import read_object
from attestors.kube_api import KubeApi, KubeQuestions, mapping, text
from attestors.kube_config import MAX_TOKEN_BYTES, PodSurroundings
from attestors.registry import settings_from
from spiffe_core.errors import (
    ConfigError,
    Forbidden,
    InvalidRequest,
    InvalidSelector,
    PreconditionFailed,
)
from spiffe_core.runtime.pem_material import file_stamp
from spiffe_core.runtime.secret_file import read_secret
from spiffe_core.selectors import Selector

NAME = "k8s_psat"
DEFAULT_TOKEN = "/var/run/secrets/tokens/spire-agent"  # noqa: S105  # a path
REVIEW_SECONDS = 8.0
"""For the three questions to the API server together."""
MAX_CLUSTERS = 100
MAX_LISTED = 100
_PAYLOAD = "params.data.payload"
_FIELD = f"attestors.{NAME}"
_MAX_PAYLOAD = MAX_TOKEN_BYTES + 1024
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,255}")
_ACCOUNT = re.compile(r"[a-z0-9.-]{1,253}:[a-z0-9.-]{1,253}")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
"""Of a pod, a node, a namespace or a service account (RFC 1123)."""
_ACCOUNT_PREFIX = "system:serviceaccount:"
_EXTRA = "authentication.kubernetes.io/"
_ENDED = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """[attestors.k8s_psat.clusters.NAME]: one cluster, or one kind of agents in it."""

    service_account_allow_list: tuple[str, ...] = ()
    audience: tuple[str, ...] = ("spire-server",)
    kube_config_file: str = ""
    allowed_node_label_keys: tuple[str, ...] = ()
    allowed_pod_label_keys: tuple[str, ...] = ()
    use_pod_uid_for_agent_id: bool = False


@dataclass(frozen=True, slots=True)
class VerifierSettings:
    """[attestors.k8s_psat] of the server."""

    clusters: Mapping[str, ClusterSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = cast("object", self.clusters)
        if not isinstance(given, Mapping) or not 1 <= len(given) <= MAX_CLUSTERS:
            raise _wrong("clusters", f"needs 1 to {MAX_CLUSTERS} tables, for example [{_FIELD}.clusters.production]")
        object.__setattr__(self, "clusters", {name: _cluster(name, table) for name, table in given.items()})


@dataclass(frozen=True, slots=True)
class VerifierPorts:
    """What the server's half needs besides its settings."""

    surroundings: PodSurroundings = field(default_factory=PodSurroundings)
    monotonic: Callable[[], float] = time.monotonic
    seconds: float = REVIEW_SECONDS


class K8sPsatVerifier:
    """The server's half. It believes what the API server of a configured cluster says, and nothing else."""

    name: ClassVar[str] = NAME
    Settings = VerifierSettings

    def __init__(self, settings: VerifierSettings, ports: VerifierPorts | None = None) -> None:
        self._settings = settings
        self._ports = ports or VerifierPorts()
        self._servers: dict[str, KubeApi] = {}
        for name, cluster in settings.clusters.items():
            setting = f"{_FIELD}.clusters.{name}.kube_config_file"
            server = KubeApi(name, cluster.kube_config_file, setting, self._ports.surroundings)
            server.access()  # a configuration that cannot work is refused at the start
            self._servers[name] = server

    def verify(self, payload: bytes, key_digest: bytes) -> Dialogue:  # noqa: ARG002  # the evidence is not one-use
        """Have the token reviewed, then look at its pod and that pod's node.

        Raises:
            InvalidRequest: what was sent cannot be read, or names a cluster that is not configured.
            Forbidden: it does not prove a node.
            Unavailable: the API server cannot be asked just now.
        """
        document = read_object(payload, _MAX_PAYLOAD, field=_PAYLOAD, what=NAME)
        name, token = text(document, "cluster"), text(document, "token")
        if not name:
            raise InvalidRequest("missing cluster in attestation data", field=_PAYLOAD)
        if not token:
            raise InvalidRequest("missing token in attestation data", field=_PAYLOAD)
        cluster = self._settings.clusters.get(name)
        if cluster is None:
            raise InvalidRequest(f"not configured for cluster {name[:255]!r}", field=_PAYLOAD)
        if len(token) > MAX_TOKEN_BYTES or not _TOKEN.fullmatch(token):
            raise InvalidRequest("the token is not a projected service account token", field=_PAYLOAD)
        yield from _no_challenge()
        with self._servers[name].asked(self._ports.monotonic() + self._ports.seconds) as questions:
            return _examined(name, cluster, token, questions)


def _examined(name: str, cluster: ClusterSettings, token: str, questions: KubeQuestions) -> Attested:
    """The verdict on a token, if everything that the API server says of it fits together."""
    holder = _Holder.of(questions.review(token, cluster.audience), name, cluster)
    pod = questions.pod(holder.namespace, holder.pod_name)
    if pod is None:
        raise Forbidden(f'the pod "{holder.pod_name}" of the token is gone from cluster "{name}"')
    node_name = _node_of(pod, holder, name)
    node = questions.node(node_name)
    if node is None:
        raise Forbidden(f'the node "{node_name}" of the pod is gone from cluster "{name}"')
    node_uid = text(mapping(node, "metadata"), "uid")
    if text(mapping(node, "metadata"), "name") != node_name or not _is_segment(node_uid):
        raise Forbidden(f'the node "{node_name}" of cluster "{name}" has no usable UID')
    if holder.node_uid not in {"", node_uid}:
        raise Forbidden(f'node UID mismatch in cluster "{name}": the token is bound to another node "{node_name}"')
    values = [
        f"cluster:{name}",
        f"agent_ns:{holder.namespace}",
        f"agent_sa:{holder.account}",
        f"agent_pod_name:{holder.pod_name}",
        f"agent_pod_uid:{holder.pod_uid}",
        f"agent_node_name:{node_name}",
        f"agent_node_uid:{node_uid}",
    ]
    address = text(mapping(pod, "status"), "hostIP")
    values += [f"agent_node_ip:{address}"] if address else []
    values += _labels(node, "agent_node_label", cluster.allowed_node_label_keys)
    values += _labels(pod, "agent_pod_label", cluster.allowed_pod_label_keys)
    try:
        selectors = frozenset(Selector(NAME, value) for value in values)
    except InvalidSelector as error:
        raise Forbidden(f"failed to attest: {error.public}") from None
    last = f"pod/{holder.pod_uid}" if cluster.use_pod_uid_for_agent_id else node_uid
    return Attested(f"/spire/agent/{NAME}/{name}/{last}", selectors, may_reattest=True)


@dataclass(frozen=True, slots=True)
class _Holder:
    """Whose token it is, as a TokenReview says."""

    namespace: str
    account: str
    pod_name: str
    pod_uid: str
    node_name: str
    node_uid: str

    @classmethod
    def of(cls, status: Mapping[str, object], name: str, cluster: ClusterSettings) -> _Holder:
        """Only of a token that is good, for one of our audiences, and of an account that is allowed."""
        if status.get("authenticated") is not True or status.get("error"):
            raise Forbidden(f'token not authenticated according to TokenReview API for cluster "{name}"')
        confirmed = status.get("audiences")
        if cluster.audience and not (isinstance(confirmed, list) and any(one in confirmed for one in cluster.audience)):
            raise Forbidden(f'the TokenReview API of cluster "{name}" did not confirm any of the audiences')
        user = mapping(status, "user")
        username = text(user, "username")
        namespace, _, account = username.removeprefix(_ACCOUNT_PREFIX).partition(":")
        if not username.startswith(_ACCOUNT_PREFIX) or not _NAME.fullmatch(namespace) or not _NAME.fullmatch(account):
            raise Forbidden(f'the token is not that of a service account of cluster "{name}"')
        if f"{namespace}:{account}" not in cluster.service_account_allow_list:
            raise Forbidden(f'"{namespace}:{account}" is not an allowed service account for cluster "{name}"')
        extra = mapping(user, "extra")
        bound = [_only(extra, key) for key in ("pod-name", "pod-uid", "node-name", "node-uid")]
        pod_name, pod_uid, *node = bound
        if not _NAME.fullmatch(pod_name) or not _is_segment(pod_uid):
            raise Forbidden(f'the token is not bound to a pod of cluster "{name}"; mount a projected one')
        return cls(namespace, account, pod_name, pod_uid, *node)


def _node_of(pod: Mapping[str, object], holder: _Holder, name: str) -> str:
    """The node that the pod runs on, if the pod is the one the token was made for and still runs."""
    metadata, spec = mapping(pod, "metadata"), mapping(pod, "spec")
    which = f'pod "{holder.pod_name}" in cluster "{name}"'
    if text(metadata, "uid") != holder.pod_uid:
        raise Forbidden(f"pod UID mismatch for {which}: the token is bound to an earlier pod of that name")
    if (text(metadata, "namespace"), text(metadata, "name")) != (holder.namespace, holder.pod_name):
        raise Forbidden(f"pod name mismatch for {which}")
    if text(spec, "serviceAccountName") != holder.account:
        raise Forbidden(f"service account mismatch for {which}: it does not run as the account of the token")
    if text(mapping(pod, "status"), "phase") in _ENDED:
        raise Forbidden(f"the {which} has ended")
    node_name = text(spec, "nodeName")
    if not _NAME.fullmatch(node_name):
        raise Forbidden(f"the {which} runs on no node")
    if holder.node_name not in {"", node_name}:
        raise Forbidden(f"node name mismatch for {which}: the token is bound to another node")
    return node_name


class K8sPsatProver:
    """The agent's half: present the token that the kubelet keeps fresh."""

    name: ClassVar[str] = NAME

    @dataclass(frozen=True, slots=True)
    class Settings:
        """[attestors.k8s_psat] of the agent."""

        cluster: str = ""
        token_path: str = DEFAULT_TOKEN

        def __post_init__(self) -> None:
            if not _is_segment(self.cluster):
                raise _wrong("cluster", "is required: the name of this cluster in the server's configuration")

    advice: ClassVar[str] = (
        "look at the cluster's name and the service account in [attestors.k8s_psat] of the server, at the audience of "
        "the projected token, and at the server's log"
    )

    def __init__(self, settings: Settings, ports: None = None) -> None:
        self._settings = settings
        self._ports = ports

    def fingerprint(self) -> str:
        """Differs when the kubelet replaced the token; "" while there is none."""
        stamp = file_stamp(Path(self._settings.token_path))
        return hashlib.sha256(repr(stamp).encode()).hexdigest() if any(stamp) else ""

    def prove(self) -> Generator[bytes, bytes, None]:
        """Yield cluster and token.

        Raises:
            ConfigError: the token cannot be read.
            PreconditionFailed: the server asks for something else.
        """
        token = read_secret(
            Path(self._settings.token_path),
            field=f"{_FIELD}.token_path",
            max_bytes=MAX_TOKEN_BYTES,
            others_may_read=True,
        ).strip()
        if not _TOKEN.fullmatch(token):
            raise _wrong("token_path", f"{self._settings.token_path} holds no projected service account token")
        document = {"cluster": self._settings.cluster, "token": token}
        yield json.dumps(document, separators=(",", ":")).encode("ascii")
        raise PreconditionFailed("the server challenged a service account token; is it a k8s_psat server?")


def _cluster(name: object, table: object) -> ClusterSettings:
    where = f"clusters.{name}"
    if not isinstance(name, str) or not _is_segment(name):
        raise _wrong(where, "the name becomes part of SPIFFE IDs: letters, digits and . _ - only")
    if isinstance(table, ClusterSettings):
        cluster = table
    elif isinstance(table, Mapping):
        cluster = settings_from(ClusterSettings, table, f"{NAME}.{where}")
    else:
        raise _wrong(where, "must be a table")
    accounts = cluster.service_account_allow_list
    if not accounts or not all(map(_ACCOUNT.fullmatch, accounts)):
        raise _wrong(f"{where}.service_account_allow_list", 'needs at least one "NAMESPACE:NAME" of a service account')
    for key in ("service_account_allow_list", "audience", "allowed_node_label_keys", "allowed_pod_label_keys"):
        listed = getattr(cluster, key)
        if len(listed) > MAX_LISTED or not all(listed):
            raise _wrong(f"{where}.{key}", f"has at most {MAX_LISTED} texts, none of them empty")
    return cluster


def _labels(holder: Mapping[str, object], kind: str, allowed: tuple[str, ...]) -> list[str]:
    labels = mapping(mapping(holder, "metadata"), "labels")
    return [f"{kind}:{key}:{labels[key]}" for key in allowed if isinstance(labels.get(key), str)]


def _only(extra: Mapping[str, object], name: str) -> str:
    """The one value of an attribute of the user; "" if it has none (API servers before 1.30 name no node)."""
    found = extra.get(f"{_EXTRA}{name}", [""])
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], str):
        raise Forbidden(f"the API server gives the token's {name} other than once")
    return found[0]


def _is_segment(value: str) -> bool:
    return _SEGMENT.fullmatch(value) is not None and value not in {".", ".."}


def _no_challenge() -> Generator[Challenge, bytes, None]:
    yield from ()


def _wrong(key: str, rule: str) -> ConfigError:
    return ConfigError(f"{_FIELD}.{key}: {rule}", field=f"{_FIELD}.{key}")
