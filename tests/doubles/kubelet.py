"""A kubelet over real HTTPS, from its documented contract: GET /pods with a bearer token or a client certificate."""

import http.server
import json
import ssl
import threading


class Kubelet:
    """`pods` is what it lists; `token` is what it wants (None: anybody); `status` overrides its answer."""

    def __init__(self, certificate, key, *, client_ca=None, token="agent-token"):
        self.pods, self.token, self.status = [], token, 200
        self.asked, self.before = 0, []
        self.delay = threading.Event()
        self.delay.set()
        outer = self

        class Answer(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.asked += 1
                outer.delay.wait(20)
                for step in outer.before[:1]:
                    outer.before.remove(step)
                    step()
                status = outer.status
                if self.path != "/pods":
                    status = 404
                elif outer.token is not None and self.headers.get("Authorization") != f"Bearer {outer.token}":
                    status = 401
                body = outer.pods
                if not isinstance(body, bytes):
                    body = json.dumps({"kind": "PodList", "apiVersion": "v1", "items": body}).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.handle_error = lambda *_: None
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.delay.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def pod(uid, containers, *, init=(), name="web-0", namespace="shop", **metadata):
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
        "status": {"containerStatuses": statuses(containers), "initContainerStatuses": statuses(init)},
    }
