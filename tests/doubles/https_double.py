"""A small HTTPS server on loopback for doubles: real TLS, one handler, faults on demand, and an orderly end."""

import http.server
import ssl
import threading


class HttpsDouble:
    """`answer(method, path, headers, body, certified)` gives (status, bytes); `certified` is the client certificate's name.

    `delay` holds every answer while it is clear; `drip` sends one byte now and then.
    """

    def __init__(self, certificate, key, answer, *, client_ca=None, client_required=True):
        self.requests = []
        self.delay = threading.Event()
        self.delay.set()
        self.drip = False
        self.arrived, self.ending = threading.Event(), threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def serve(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.requests.append((self.command, self.path))
                outer.arrived.set()
                outer.delay.wait(20)
                peer = self.connection.getpeercert() or {}
                names = dict(pair for name in peer.get("subject", ()) for pair in name)
                status, content = answer(self.command, self.path, self.headers, body, names.get("commonName", ""))
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                for number in range(len(content)) if outer.drip else ():
                    self.wfile.write(content[number : number + 1])
                    if outer.ending.wait(0.05):
                        return
                if not outer.drip:
                    self.wfile.write(content)

            def do_GET(self):
                self.serve()

            def do_POST(self):
                self.serve()

            def do_PATCH(self):
                self.serve()

            def do_PUT(self):
                self.serve()

            def do_HEAD(self):
                self.serve()

            def log_message(self, *_):
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED if client_required else ssl.CERT_OPTIONAL
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._server.handle_error = lambda *_: None
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.delay.set()
        self.ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
