"""A kubelet over real HTTPS, from its documented contract: GET /pods with a bearer token or a client certificate."""

import json

from tests.doubles.https_double import HttpsDouble


class Kubelet(HttpsDouble):
    """`pods` is what it lists; `status` overrides its answer.

    `token` is what it wants (None: anybody). With a `KubeCluster` it has the cluster review the token instead, as real
    kubelets do, and wants the account to be one of `accounts`. `certified` are the names of the certificates it was shown.
    """

    def __init__(self, certificate, key, *, client_ca=None, token="agent-token", cluster=None, accounts=()):
        super().__init__(certificate, key, self._answer, client_ca=client_ca)
        self.pods, self.token, self.status = [], token, 200
        self.cluster, self.accounts = cluster, accounts
        self.before, self.certified = [], []

    @property
    def asked(self):
        return len(self.requests)

    def _answer(self, method, path, headers, _body, certified):
        self.certified.append(certified)
        for step in self.before[:1]:
            self.before.remove(step)
            step()
        status = self.status
        if (method, path) != ("GET", "/pods"):
            status = 404
        elif refused := self._refused(headers.get("Authorization") or ""):
            status = refused
        body = self.pods
        if not isinstance(body, bytes):
            body = json.dumps({"kind": "PodList", "apiVersion": "v1", "items": body}).encode()
        return status, body

    def _refused(self, shown):
        if self.cluster is not None:
            user = self.cluster.review(shown.removeprefix("Bearer ")).get("user", {})
            return 401 if not user else 403 if user["username"] not in self.accounts else 0
        return 401 if self.token is not None and shown != f"Bearer {self.token}" else 0


def pod(uid, containers, *, init=(), ephemeral=(), name="web-0", namespace="shop", **metadata):
    """A pod as the kubelet lists it; `containers` maps a name to its container's id."""

    def statuses(named):
        return [
            {
                "name": key,
                "containerID": f"containerd://{value}",
                "image": f"registry.example.org/{key}:1",
                "imageID": f"registry.example.org/{key}@sha256:{'0' * 63}1",
            }
            for key, value in dict(named).items()
        ]

    return {
        "metadata": {"name": name, "namespace": namespace, "uid": uid, **metadata},
        "spec": {"serviceAccountName": "frontend", "nodeName": "node-1"},
        "status": {
            "containerStatuses": statuses(containers),
            "initContainerStatuses": statuses(init),
            "ephemeralContainerStatuses": statuses(ephemeral),
        },
    }
