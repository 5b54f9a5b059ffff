"""The settings of upstream authorities that are reached over the network: `[upstream.spire]` and `[upstream.vault]`.

Secrets are given as paths of files and read anew at each use, so that whoever rotates them has nothing to tell us.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from spiffe_core.runtime.settings import Section
from spiffe_core.runtime.settings_places import AbsolutePath, Host, SocketPath, is_host

MAX_MOUNT = 256
DEFAULT_VAULT_PORT = 8200
SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
"""Where Kubernetes mounts a pod's token."""

_MOUNT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


def _mount(text: str) -> str:
    if not _MOUNT.fullmatch(text):
        raise ValueError('must be the path of a mount, without slashes at its ends, for example "pki" or "team/pki"')
    return text


def _address(text: str) -> str:
    rule = 'must be "https://HOST" or "https://HOST:PORT", for example "https://vault.example.org:8200"'
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(rule) from None
    plain = not (parts.path.rstrip("/") or parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme != "https" or not parts.hostname or not is_host(parts.hostname) or not plain or port == 0:
        raise ValueError(rule)
    return text


Mount = Annotated[str, Field(max_length=MAX_MOUNT), AfterValidator(_mount)]
Name = Annotated[str, Field(min_length=1, max_length=512)]


class UpstreamSpireSection(Section):
    """[upstream.spire]: another server of this trust domain signs; its agent says who we are.

    `workload_api_socket` is the socket of an agent of the upstream server, on this machine.
    """

    server_address: Host
    server_port: int = Field(default=8081, ge=1, le=65535)
    workload_api_socket: SocketPath


class VaultTokenAuth(Section):
    """[upstream.vault.token_auth]: a token that somebody else puts into a file and keeps alive, or that we renew."""

    token_file: AbsolutePath


class VaultAppRoleAuth(Section):
    """[upstream.vault.approle_auth]: a role, and its secret in a file."""

    mount: Mount = "approle"
    role_id: Name
    secret_id_file: AbsolutePath


class VaultCertAuth(Section):
    """[upstream.vault.cert_auth]: a TLS client certificate. Without `role` Vault chooses among those that match."""

    mount: Mount = "cert"
    role: str = Field(default="", max_length=512)
    client_cert_file: AbsolutePath
    client_key_file: AbsolutePath


class VaultKubernetesAuth(Section):
    """[upstream.vault.kubernetes_auth]: the pod's service account token."""

    mount: Mount = "kubernetes"
    role: Name
    token_file: AbsolutePath = SERVICE_ACCOUNT_TOKEN


_METHODS = ("token_auth", "approle_auth", "cert_auth", "kubernetes_auth")


class UpstreamVaultSection(Section):
    """[upstream.vault]: the PKI secrets engine of a Vault or OpenBao server signs.

    Without `ca_file` the system's certificate store says whom to believe.
    """

    address: Annotated[str, AfterValidator(_address)]
    namespace: str = Field(default="", max_length=MAX_MOUNT, pattern=r"^[A-Za-z0-9._/-]*$")
    pki_mount: Mount = "pki"
    ca_file: AbsolutePath | None = None
    insecure_skip_verify: bool = False
    token_auth: VaultTokenAuth | None = None
    approle_auth: VaultAppRoleAuth | None = None
    cert_auth: VaultCertAuth | None = None
    kubernetes_auth: VaultKubernetesAuth | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        given = [name for name in _METHODS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of the tables {', '.join(_METHODS)} says how to log in; found "
                f"{', '.join(given) or 'none'}"
            )
        if self.insecure_skip_verify and self.ca_file is not None:
            raise ValueError("insecure_skip_verify ignores ca_file; remove one of them")
        return self

    def warnings(self) -> tuple[str, ...]:
        """What will work and should not be left so."""
        if not self.insecure_skip_verify:
            return ()
        return (
            (
                f"upstream.vault.insecure_skip_verify: whoever answers at {self.address} is believed, gets the "
                "credentials and signs; remove the key, and name the authority in upstream.vault.ca_file"
            ),
        )

    @property
    def place(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.address)
        return parts.hostname or "", parts.port or DEFAULT_VAULT_PORT
