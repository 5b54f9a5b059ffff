"""A real API server of Kubernetes with its etcd, without any node; MUNIMENT_KUBE_BIN names the folder of both programs."""

from __future__ import annotations

import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from deploy.demo.stack import Daemon, NotStarted, free_port
from spiffe_core.crypto.keys import KeyKind, generate
from tests.doubles.kube_api import KubePki
from tests.interop.peers import lacking

START_SECONDS = 90.0
ADMIN = "throw-away-admin"
GROUPS = {
    "v1": "/api/v1",
    "apps/v1": "/apis/apps/v1",
    "rbac.authorization.k8s.io/v1": "/apis/rbac.authorization.k8s.io/v1",
    "storage.k8s.io/v1": "/apis/storage.k8s.io/v1",
}


def kube_binaries() -> Path:
    """The folder with kube-apiserver and etcd; skips when there is none."""
    named = os.environ.get("MUNIMENT_KUBE_BIN", "")
    if not named:
        lacking("kubernetes", "MUNIMENT_KUBE_BIN names no folder with kube-apiserver and etcd")
    folder = Path(named)
    for name in ("kube-apiserver", "etcd"):
        if not os.access(folder / name, os.X_OK):
            lacking("kubernetes", f"MUNIMENT_KUBE_BIN is {folder}, which has no program {name}")
    return folder


class ApiServer:
    """What a test asks as the administrator."""

    def __init__(self, port: int, pki: KubePki) -> None:
        self.url = f"https://127.0.0.1:{port}"
        self.ca = pki.ca
        self._tls = ssl.create_default_context(cafile=str(pki.ca))

    def call(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, context=self._tls, timeout=20) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def create(self, found: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Any object; a field that it does not know is an error."""
        namespace = found["metadata"].get("namespace", "")
        kind = found["kind"].lower() + "s"
        where = f"/namespaces/{namespace}" if namespace else ""
        return self.call("POST", f"{GROUPS[found['apiVersion']]}{where}/{kind}?fieldValidation=Strict", dict(found))

    def token(self, account: str, pod: Mapping[str, Any] | None = None, *audiences: str) -> str:
        """A token as the kubelet gets it for a projected volume of `pod`, or one of nobody's."""
        spec: dict[str, Any] = {"audiences": list(audiences), "expirationSeconds": 600}
        if pod is not None:
            names = {key: pod["metadata"][key] for key in ("name", "uid")}
            spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", **names}
        path = f"/api/v1/namespaces/muniment/serviceaccounts/{account}/token"
        code, answer = self.call("POST", path, {"spec": spec})
        assert code == 201, answer
        return str(answer["status"]["token"])

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url + "/readyz", headers={"Authorization": f"Bearer {ADMIN}"}),
                context=self._tls,
                timeout=5,
            ) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def real_api_server(binaries: Path, folder: Path) -> Iterator[ApiServer]:
    """One on loopback. There is no scheduler, controller or kubelet: what is created stays as it was created."""
    pki = KubePki(folder)
    certificate, key = pki.pair("apiserver")
    signing = generate(KeyKind.RSA_2048)
    (folder / "sa.key").write_bytes(
        signing.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    )
    (folder / "tokens.csv").write_text(f'{ADMIN},admin,1,"system:masters"\n')
    client, peer, port = free_port(), free_port(), free_port()
    etcd = Daemon(
        [
            str(binaries / "etcd"),
            f"--data-dir={folder}/etcd",
            f"--listen-client-urls=http://127.0.0.1:{client}",
            f"--advertise-client-urls=http://127.0.0.1:{client}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
        ],
        folder / "etcd.log",
    )
    server = Daemon(
        [
            str(binaries / "kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{client}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--cert-dir={folder}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={folder}/sa.key",
            f"--service-account-key-file={folder}/sa.key",
            f"--token-auth-file={folder}/tokens.csv",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
            "--allow-privileged=true",
        ],
        folder / "apiserver.log",
    )
    try:
        api = ApiServer(port, pki)
        deadline = time.monotonic() + START_SECONDS
        while not api.ready():
            if server.process.poll() is not None or time.monotonic() > deadline:
                raise NotStarted(f"kube-apiserver is not ready; its log ends:\n{server.tail()}")
            time.sleep(0.2)
        yield api
    finally:
        server.kill()
        etcd.kill()
