"""A container engine's API over a real Unix socket: GET /containers/<id>/json."""

import http.server
import json
import os
import socketserver
import threading
from contextlib import contextmanager

ID = "a" * 64
CONTAINER = {
    "Id": ID,
    "Image": "sha256:1234",
    "Config": {
        "Image": "registry.example.org/web:1",
        "Labels": {"app": "web", "org.example.note": "a:b"},
        "Env": ["STAGE=prod", "EMPTY="],
    },
}


class Engine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """`status` and `body` override its answer; `delay` holds every answer while it is clear."""

    daemon_threads = True

    def __init__(self, path):
        self.asked, self.status, self.body = [], None, None
        self.delay = threading.Event()
        self.delay.set()
        engine = self

        class Answer(http.server.BaseHTTPRequestHandler):
            def address_string(self):
                return "unix"

            def do_GET(self):
                engine.asked.append(self.path)
                engine.delay.wait(20)
                known = self.path == f"/containers/{ID}/json"
                body = engine.body if engine.body is not None else json.dumps(CONTAINER).encode()
                self.send_response(engine.status or (200 if known else 404))
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        super().__init__(str(path), Answer, bind_and_activate=False)
        self.server_bind()


@contextmanager
def engine_at(path, user=None):
    """An engine whose API is at `path`; with `user`, which takes root, one that this user runs."""
    server, own = Engine(path), os.geteuid()
    try:
        if user not in (None, own):
            os.seteuid(user)
        server.server_activate()  # the kernel keeps who it was
    finally:
        os.seteuid(own)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.delay.set()
        server.shutdown()
        server.server_close()
        thread.join()
