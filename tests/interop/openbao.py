"""An OpenBao (or Vault) server in development mode, over TLS on loopback; MUNIMENT_OPENBAO names its program."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import ssl
from pathlib import Path
from typing import Any

from deploy.demo.stack import Daemon, free_port
from tests.interop.peers import lacking, until

POLICY = 'path "{mount}/root/sign-intermediate" {{ capabilities = ["update"] }}'


def program() -> Path:
    """The program `bao` or `vault`; skips when there is none."""
    named = os.environ.get("MUNIMENT_OPENBAO", "")
    if not named:
        lacking("openbao", "MUNIMENT_OPENBAO names no program of OpenBao or Vault")
    if not os.access(named, os.X_OK):
        lacking("openbao", f"MUNIMENT_OPENBAO is {named}, which is no program")
    return Path(named)


class OpenBao:
    """The running server; `call` is its API with the root token."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.ca_file = folder / "vault-ca.pem"
        self.root_token = secrets.token_hex(16)
        argv = [
            *(str(program()), "server", "-dev", "-dev-tls", f"-dev-tls-cert-dir={folder}", "-dev-no-store-token"),
            f"-dev-listen-address=127.0.0.1:{self.port}",
        ]
        env = {"BAO_DEV_ROOT_TOKEN_ID": self.root_token, "VAULT_DEV_ROOT_TOKEN_ID": self.root_token}
        self.daemon = Daemon(argv, folder / "openbao.log", env | {"HOME": str(folder)})

    def wait(self) -> OpenBao:
        """Return when it answers."""

        def ready() -> bool:
            assert self.daemon.process.poll() is None, self.daemon.tail()
            try:
                return self.ca_file.exists() and bool(self.call("GET", "sys/health")["initialized"])
            except (OSError, AssertionError):
                return False

        until(ready)
        return self

    def call(self, method: str, path: str, **body: Any) -> Any:
        """One request; the answer, {} if there is none."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=20)
        try:
            headers = {"X-Vault-Token": self.root_token, "X-Vault-Request": "true"}
            connection.request(method, f"/v1/{path}", json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            data = response.read()
            assert response.status in {200, 204}, f"{path}: {response.status} {data.decode()}"
            return json.loads(data) if data else {}
        finally:
            connection.close()

    def mount_pki(self, mount: str, ttl: str = "720h") -> None:
        """A PKI engine with a root of its own, and a policy named like the mount."""
        self.call("POST", f"sys/mounts/{mount}", type="pki", config={"max_lease_ttl": "8760h"})
        self.call("POST", f"{mount}/root/generate/internal", common_name=f"{mount} root", ttl=ttl, key_type="ec")
        self.call("POST", f"sys/policies/acl/{mount}", policy=POLICY.format(mount=mount))

    def intermediate_pki(self, mount: str, below: str) -> None:
        """A PKI engine whose issuer is below that of another."""
        self.call("POST", f"sys/mounts/{mount}", type="pki", config={"max_lease_ttl": "8760h"})
        made = self.call("POST", f"{mount}/intermediate/generate/internal", common_name=f"{mount} ca", key_type="ec")
        signed = self.call("POST", f"{below}/root/sign-intermediate", csr=made["data"]["csr"], ttl="240h")["data"]
        chain = "\n".join([signed["certificate"], signed["issuing_ca"]])
        self.call("POST", f"{mount}/intermediate/set-signed", certificate=chain)
        self.call("POST", f"sys/policies/acl/{mount}", policy=POLICY.format(mount=mount))

    def token(self, policy: str, ttl: str = "1h", *, renewable: bool = True) -> str:
        """A token with one policy."""
        made = self.call("POST", "auth/token/create", policies=[policy], ttl=ttl, renewable=renewable)
        return str(made["auth"]["client_token"])

    def approle(self, policy: str, ttl: str = "1h") -> tuple[str, str]:
        """A role's id and a secret of it."""
        role = f"role-{secrets.token_hex(4)}"
        self.call("POST", f"auth/approle/role/{role}", token_policies=[policy], token_ttl=ttl, token_max_ttl="24h")
        role_id = self.call("GET", f"auth/approle/role/{role}/role-id")["data"]["role_id"]
        secret = self.call("POST", f"auth/approle/role/{role}/secret-id", metadata="{}")["data"]["secret_id"]
        return str(role_id), str(secret)

    def close(self) -> None:
        self.daemon.kill()
