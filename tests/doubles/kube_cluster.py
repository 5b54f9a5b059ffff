"""A Kubernetes cluster as a value: pods, nodes, service accounts, and real projected tokens that it can review.

What a real API server (1.36) does with a token is done here: the signature by the key of the `kid`, issuer, validity,
audience, and that the pod, the node and the account it is bound to are still there under the same UID.
"""

import uuid
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from spiffe_core.clock import SystemClock
from spiffe_core.crypto.keys import KeyKind, generate
from tests.tokens import parts, token, unb64

API_AUDIENCE = "https://kubernetes.default.svc.cluster.local"
KINDS = {"ES256": KeyKind.EC_P256, "RS256": KeyKind.RSA_2048}
EXTRA = "authentication.kubernetes.io/"


def uid():
    return str(uuid.uuid4())


def seconds_now():
    return int(SystemClock().now().timestamp())


@dataclass
class KubeCluster:
    """`pods` by (namespace, name), `nodes` by name, both as the API server shows them."""

    algorithm: str = "ES256"
    issuer: str = API_AUDIENCE
    pods: dict = field(default_factory=dict)
    nodes: dict = field(default_factory=dict)
    accounts: dict = field(default_factory=dict)
    forgetful: bool = True
    """False: the token cache still believes in pods that are gone, as it does for some seconds."""
    names_nodes: bool = True
    """False: as before Kubernetes 1.30, whose tokens name no node."""

    def __post_init__(self):
        self.key, self.kid = generate(KINDS[self.algorithm]), uid()

    def add_node(self, name="node-1", **labels):
        labels = {"kubernetes.io/hostname": name, **labels}
        self.nodes[name] = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "uid": uid(), "labels": labels},
            "status": {"addresses": [{"type": "InternalIP", "address": "172.16.10.1"}]},
        }
        return self.nodes[name]

    def add_pod(self, name="agent-5d84p", *, namespace="muniment", account="node-agent", node="node-1", **labels):
        self.accounts.setdefault((namespace, account), uid())
        self.pods[namespace, name] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "uid": uid(), "labels": labels},
            "spec": {"serviceAccountName": account, "nodeName": node, "containers": [{"name": "agent", "image": "x"}]},
            "status": {"phase": "Running", "hostIP": "172.16.10.1", "podIP": "10.0.0.7"},
        }
        return self.pods[namespace, name]

    def claims(self, pod, audience=("spire-server",), seconds=3600):
        """What the kubelet asks for a projected volume of `pod`."""
        now = seconds_now()
        metadata, account = pod["metadata"], pod["spec"]["serviceAccountName"]
        bound = {
            "namespace": metadata["namespace"],
            "pod": {key: metadata[key] for key in ("name", "uid")},
            "serviceaccount": {"name": account, "uid": self.accounts[metadata["namespace"], account]},
            "warnafter": now + seconds - 10,
        }
        if self.names_nodes:
            node = self.nodes[pod["spec"]["nodeName"]]["metadata"]
            bound["node"] = {key: node[key] for key in ("name", "uid")}
        return {
            "aud": list(audience),
            "exp": now + seconds,
            "iat": now,
            "nbf": now,
            "iss": self.issuer,
            "jti": uid(),
            "sub": f"system:serviceaccount:{metadata['namespace']}:{account}",
            "kubernetes.io": bound,
        }

    def token(self, pod, audience=("spire-server",), seconds=3600):
        return self.sign(self.claims(pod, audience, seconds))

    def sign(self, claims, *, key=None, kid=None):
        return token(key or self.key, {"alg": self.algorithm, "kid": kid or self.kid}, claims)

    def review(self, presented, audiences=()):
        """The status of a TokenReview."""
        try:
            claims = self._verified(presented)
        except (LookupError, ValueError, InvalidSignature) as error:
            return {"user": {}, "error": f"[invalid bearer token, {error}]"}
        shared = [one for one in audiences or [API_AUDIENCE] if one in claims["aud"]]
        if not shared:
            return {"user": {}, "error": f"[token audiences {claims['aud']} is invalid for the target audiences]"}
        return {"authenticated": True, "user": self._user(claims), "audiences": shared}

    def _verified(self, presented):
        data, _, signature = presented.rpartition(".")
        header, claims = parts(presented)
        if header["alg"] != self.algorithm or header["kid"] != self.kid:
            raise ValueError("no key of that name")
        raw = unb64(signature)
        if self.algorithm == "ES256":
            r, s = int.from_bytes(raw[:32]), int.from_bytes(raw[32:])
            self.key.public_key().verify(encode_dss_signature(r, s), data.encode(), ec.ECDSA(hashes.SHA256()))
        else:
            self.key.public_key().verify(raw, data.encode(), padding.PKCS1v15(), hashes.SHA256())
        if claims["iss"] != self.issuer or not claims["nbf"] - 10 <= seconds_now() < claims["exp"]:
            raise ValueError("service account token has expired")
        bound = claims["kubernetes.io"]
        account = bound["serviceaccount"]
        if self.accounts.get((bound["namespace"], account["name"])) != account["uid"]:
            raise LookupError("service account is gone")
        if "pod" in bound and self.forgetful:
            pod = self.pods.get((bound["namespace"], bound["pod"]["name"]))
            if pod is None or pod["metadata"]["uid"] != bound["pod"]["uid"]:
                raise LookupError("pod has been deleted")
        return claims

    def _user(self, claims):
        bound = claims["kubernetes.io"]
        extra = {f"{EXTRA}credential-id": [f"JTI={claims['jti']}"]}
        for kind in ("pod", "node"):
            for key, value in bound.get(kind, {}).items():
                extra[f"{EXTRA}{kind}-{key}"] = [value]
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{bound['namespace']}", "system:authenticated"]
        return {"username": claims["sub"], "uid": bound["serviceaccount"]["uid"], "groups": groups, "extra": extra}
