"""How an API server of Kubernetes is reached: from inside a pod, or by a kubeconfig file. Read anew for each use.

Of a kubeconfig, the current context counts, with a bearer token or a client certificate. What would let somebody else
answer (no verification, a proxy, plain HTTP) or run programs in the server (`exec`) is refused, never passed over.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from spiffe_core.errors import ConfigError
from spiffe_core.runtime.secret_file import read_secret

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
MAX_CONFIG_BYTES = 1024 * 1024
MAX_TOKEN_BYTES = 64 * 1024
MAX_PEM_BYTES = 1024 * 1024
_MAX_PORT = 65535
_REFUSED_IN_CLUSTER = ("insecure-skip-tls-verify", "proxy-url")
_REFUSED_IN_USER = ("exec", "auth-provider", "username", "password", "as", "as-uid", "as-groups", "as-user-extra")
_ADVICE = "give the server a service account of its own and put its token into the file"

Node = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class KubeAccess:
    """Where an API server is, and what we show it."""

    host: str
    port: int
    prefix: str = ""
    server_name: str = ""
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class PodSurroundings:
    """What Kubernetes puts into a pod."""

    variable: Callable[[str], str] = lambda name: os.environ.get(name, "")
    folder: Path = SERVICE_ACCOUNT


def from_pod(pod: PodSurroundings, name: str) -> KubeAccess:
    """The API server of the cluster that this process runs in. `name` is the setting to complain about.

    Raises:
        ConfigError: it runs in no pod, or has no service account token.
    """
    host, port = pod.variable("KUBERNETES_SERVICE_HOST"), pod.variable("KUBERNETES_SERVICE_PORT")
    if not host or not port.isdecimal() or not 1 <= int(port) <= _MAX_PORT:
        raise _wrong(name, "is not set, and this process runs in no pod of Kubernetes; name a kubeconfig file")
    token = read_secret(pod.folder / "token", field=name, max_bytes=MAX_TOKEN_BYTES, others_may_read=True)
    ca = read_secret(pod.folder / "ca.crt", field=name, max_bytes=MAX_PEM_BYTES, others_may_read=True)
    return KubeAccess(host, int(port), tls=_context(ca, name), headers=_bearer(token, name))


def from_file(path: Path, name: str) -> KubeAccess:
    """What the current context of the kubeconfig `path` says.

    Raises:
        ConfigError: naming the setting `name` and the key.
    """
    document = _parsed(read_secret(path, field=name, max_bytes=MAX_CONFIG_BYTES), name, path)
    wanted = _text(document, "current-context")
    if not wanted:
        raise _wrong(name, f"{path} has no current-context")
    context = _named(document, "contexts", "context", wanted, name)
    cluster = _named(document, "clusters", "cluster", _text(context, "cluster"), name)
    user = _named(document, "users", "user", _text(context, "user"), name)
    for part, refused in ((cluster, _REFUSED_IN_CLUSTER), (user, _REFUSED_IN_USER)):
        for key in refused:
            if part.get(key):
                raise _wrong(name, f"{path}: {key} is not supported; {_ADVICE}")
    host, port, prefix = _address(_text(cluster, "server"), name)
    folder = path.parent
    tls = _context(_material(cluster, "certificate-authority", folder, name, public=True), name)
    certificate = _material(user, "client-certificate", folder, name, public=True)
    key = _material(user, "client-key", folder, name)
    if bool(certificate) != bool(key):
        raise _wrong(name, f"{path}: client-certificate and client-key belong together")
    if certificate:
        _load_pair(tls, certificate, key, name)
    token = _text(user, "token")
    if token_file := _text(user, "tokenFile"):
        token = read_secret(folder / token_file, field=name, max_bytes=MAX_TOKEN_BYTES, others_may_read=True)
    if not token and not certificate:
        raise _wrong(name, f"{path}: the user has neither a token nor a client certificate; {_ADVICE}")
    headers = _bearer(token, name) if token else {}
    return KubeAccess(host, port, prefix, _text(cluster, "tls-server-name"), tls, headers)


def _parsed(text: str, name: str, path: Path) -> Node:
    try:
        if text.lstrip().startswith("{"):
            found = json.loads(text)
        else:
            import yaml

            found = yaml.safe_load(text)
    except ModuleNotFoundError:
        raise _wrong(
            name,
            f"{path} is YAML, which needs the package PyYAML; run pip install '.[kubeconfig]' in Muniment's sources, "
            "or write JSON: kubectl config view --raw --flatten --minify --output json",
        ) from None
    except (ValueError, RecursionError):
        raise _wrong(name, f"{path} is neither JSON nor YAML") from None
    except yaml.YAMLError:  # the cause is dropped: it quotes the file
        raise _wrong(name, f"{path} is neither JSON nor YAML") from None
    if not isinstance(found, dict):
        raise _wrong(name, f"{path} is not a kubeconfig")
    return found


def _named(document: Node, group: str, kind: str, wanted: str, name: str) -> Node:
    """The one element of a list of named things that has the name."""
    listed = document.get(group)
    elements = listed if isinstance(listed, list) else []
    found = [one.get(kind) for one in elements if isinstance(one, dict) and wanted and one.get("name") == wanted]
    if len(found) != 1 or not isinstance(found[0], dict):
        raise _wrong(name, f"the kubeconfig must name one {kind} {wanted!r} in {group}")
    return found[0]


def _address(url: str, name: str) -> tuple[str, int, str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 443
    except ValueError:
        host, port = "", 0
    if not host or parts.scheme != "https" or parts.query or parts.fragment or parts.username is not None:
        raise _wrong(name, 'server must be a URL such as "https://kubernetes.example.org:6443"')
    return host, port, parts.path.rstrip("/")


def _material(part: Node, key: str, folder: Path, name: str, *, public: bool = False) -> str:
    """PEM from `KEY-data` or from the file KEY names, which is relative to the kubeconfig; "" if there is neither."""
    if inline := _text(part, f"{key}-data"):
        try:
            return base64.b64decode(inline, validate=True).decode("ascii")
        except (binascii.Error, ValueError):
            raise _wrong(name, f"{key}-data is not base64 of PEM") from None
    if not (path := _text(part, key)):
        return ""
    return read_secret(folder / path, field=name, max_bytes=MAX_PEM_BYTES, others_may_read=public)


def _context(authorities: str, name: str) -> ssl.SSLContext:
    """TLS that believes these authorities; the system's if there are none."""
    try:
        context = ssl.create_default_context(cadata=authorities or None)
    except (ssl.SSLError, ValueError):
        raise _wrong(name, "the certificate authority of the API server is not PEM") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _load_pair(context: ssl.SSLContext, certificate: str, key: str, name: str) -> None:
    """Through anonymous memory: a key that came inline never becomes a file."""
    memory = os.memfd_create("kubeconfig", os.MFD_CLOEXEC)
    try:
        with os.fdopen(memory, "wb", closefd=False) as file:
            file.write(f"{key}\n{certificate}\n".encode())
        context.load_cert_chain(f"/proc/self/fd/{memory}", password="")  # an encrypted key is refused, not asked for
    except (ssl.SSLError, ValueError):
        raise _wrong(name, "client-certificate and client-key are not a pair in PEM, unencrypted") from None
    finally:
        os.ftruncate(memory, 0)
        os.close(memory)


def _bearer(token: str, name: str) -> dict[str, str]:
    token = token.strip()
    if not token or not token.isascii() or any(letter <= " " or letter == "\x7f" for letter in token):
        raise _wrong(name, "the token for the API server is not one line of printable text")
    return {"Authorization": f"Bearer {token}"}


def _text(part: Node, key: str) -> str:
    found = part.get(key)
    return found if isinstance(found, str) else ""


def _wrong(name: str, rule: str) -> ConfigError:
    return ConfigError(f"{name}: {rule}", field=name)
