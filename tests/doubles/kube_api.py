"""An API server over real HTTPS: TokenReview, pods and nodes of a `KubeCluster`, for callers that may ask.

It wants what a real one wants: a service account token for its own audience, or a client certificate, and a role.
"""

import base64
import json
import re
from ipaddress import ip_address

from cryptography import x509

from spiffe_core.crypto.keys import KeyKind, generate
from tests.authority import certify
from tests.doubles.https_double import HttpsDouble
from tests.doubles.kube_cluster import API_AUDIENCE
from tests.doubles.node_pki import NodePki, write_certificates, write_key

RIGHTS = frozenset({"create tokenreviews", "get pods", "get nodes"})
OBJECT = re.compile(r"/api/v1/(?:namespaces/(?P<namespace>[^/]+)/)?(?P<kind>pods|nodes|namespaces)/(?P<name>[^/?]+)")
PROTOBUF = b"k8s\x00"
"""How Go's client begins what it sends; it takes JSON back."""
REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"


class KubePki:
    """The cluster's CA, the API server's certificate and one of a client, as files in `folder`."""

    def __init__(self, folder, name="kubernetes"):
        self.pki = NodePki(name=name)
        self.folder = folder
        self.ca = write_certificates(folder / "ca.crt", self.pki.root.der)

    def pair(self, name, *, cn="", addresses=("127.0.0.1",), dns=("kubernetes.default.svc", "localhost"), begins=None):
        """(certificate, key) as files."""
        key, root = generate(KeyKind.EC_P256), self.pki.root
        names = [x509.IPAddress(ip_address(one)) for one in addresses]
        der = certify(
            key,
            signer=root.key,
            issuer=root.certificate,
            now=begins or self.pki.now,
            subject=(("CN", cn or name),),
            dns=dns,
            other_names=names,
        )
        return write_certificates(self.folder / f"{name}.crt", der), write_key(self.folder / f"{name}.key", key)


class KubeApi(HttpsDouble):
    """`rights`: who may ask what. `edit(path, document)` may change an answer; `canned` (part of a path -> status, body) replaces it."""

    def __init__(self, cluster, pki, *, names=("127.0.0.1",)):
        certificate, key = pki.pair("apiserver", addresses=names)
        super().__init__(certificate, key, self._answer, client_ca=pki.ca, client_required=False)
        self.cluster, self.pki = cluster, pki
        self.rights = {}
        self.namespaces = {}
        self.canned = {}
        self.edit = lambda _path, document: document
        self.reviewed = []

    @property
    def url(self):
        return f"https://127.0.0.1:{self.port}"

    def caller(self, name="identity-server", *, namespace="muniment", rights=RIGHTS):
        """A token of a service account with these rights, as a pod of the server has it."""
        self.cluster.add_node("control-plane")
        pod = self.cluster.add_pod(f"{name}-0", namespace=namespace, account=name, node="control-plane")
        self.rights[f"system:serviceaccount:{namespace}:{name}"] = rights
        return self.cluster.token(pod, (API_AUDIENCE,))

    def kubeconfig(self, path, *, cluster=None, user=None, **over):
        """A kubeconfig in JSON, which is YAML too."""
        ca = base64.b64encode(self.pki.ca.read_bytes()).decode()
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": cluster or {"server": self.url, "certificate-authority-data": ca}}],
            "users": [{"name": "u", "user": user or {"token": self.caller()}}],
            **over,
        }
        path.write_text(json.dumps(document))
        path.chmod(0o600)
        return path

    def surroundings(self, folder):
        """What a pod of the server finds: its variables, and the folder with token and CA."""
        (folder / "token").write_text(self.caller())
        (folder / "ca.crt").write_bytes(self.pki.ca.read_bytes())
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}

    def _answer(self, method, path, headers, body, certified):
        for part, canned in self.canned.items():
            if part in path:
                return canned
        who = certified
        if token := (headers.get("Authorization") or "").removeprefix("Bearer "):
            who = self.cluster.review(token).get("user", {}).get("username", "")
        if not who:
            return 401, status(401, "Unauthorized")
        code, found = self._object(method, path, headers, body, self.rights.get(who, ()))
        if isinstance(found, bytes):
            return code, found
        return code, json.dumps(self.edit(path, found)).encode()

    def _object(self, method, path, headers, body, rights):
        if method == "POST" and path.partition("?")[0] == REVIEWS:
            if "create tokenreviews" not in rights:
                return 403, status(403, "Forbidden")
            review = protobuf_review(body) if body.startswith(PROTOBUF) else json.loads(body)
            spec = review["spec"]
            self.reviewed.append(spec)
            return 201, {**review, "status": self.cluster.review(spec["token"], spec.get("audiences", ()))}
        found = OBJECT.fullmatch(path.partition("?")[0]) if method == "GET" else None
        if found is None:
            return 404, b"404 page not found\n"
        if f"get {found['kind']}" not in rights:
            return 403, status(403, "Forbidden")
        held = {
            "pods": lambda: self.cluster.pods.get((found["namespace"], found["name"])),
            "nodes": lambda: self.cluster.nodes.get(found["name"]),
            "namespaces": lambda: self.namespaces.get(found["name"]),
        }[found["kind"]]()
        return (200, held) if held is not None else (404, status(404, "NotFound"))


def status(code, reason):
    """The body of a refusal."""
    words = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
    return json.dumps({**words, "message": f"{reason}: told so by the double"}).encode()


def protobuf_review(body):
    """A TokenReview in Kubernetes' protobuf: an envelope (2: the object), in it 2: the spec, in it token and audiences."""
    inner = body[len(PROTOBUF) :]
    for _ in range(2):
        inner = dict(fields(inner))[2]
    (token,) = [value.decode() for number, value in fields(inner) if number == 1]
    audiences = [value.decode() for number, value in fields(inner) if number == 2]
    return {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": audiences},
    }


def fields(message):
    """(number, bytes) of each length-delimited field; there are no others in a TokenReview's way."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        number, kind = divmod(varint(), 8)
        assert kind == 2, "not length-delimited"
        size = varint()
        yield number, message[at : at + size]
        at += size
