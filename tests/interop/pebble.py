"""Let's Encrypt's pebble, an ACME authority for tests, as a process on loopback with a resolver of its own."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import time
import urllib.request
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from deploy.demo.stack import free_port
from tests.authority import SpiffeTestCA
from tests.interop.peers import lacking

START_SECONDS = 30.0


class Pebble:
    """Validates names at `http_port` and `tls_port` of this machine, whatever the name."""

    def __init__(self, folder: Path, *, refused_nonces: int = 0) -> None:
        for program in ("pebble", "pebble-challtestsrv"):
            if shutil.which(program) is None:
                lacking("pebble", f"{program} is not installed")
        self.http_port, self.tls_port = free_port(), free_port()
        port, management, dns, dns_management = free_port(), free_port(), free_port(), free_port()
        self.directory_url = f"https://localhost:{port}/dir"
        self.ca_file = folder / "pebble-ca.pem"
        self._root_url = f"https://localhost:{management}/roots/0"
        authority = SpiffeTestCA("pebble.test")
        web = authority.issue("spiffe://pebble.test/x", uris=(), dns=("localhost",))
        self.ca_file.write_text(ssl.DER_cert_to_PEM_cert(authority.der))
        certificate, key, config = folder / "pebble.pem", folder / "pebble.key", folder / "pebble.json"
        certificate.write_text("".join(map(ssl.DER_cert_to_PEM_cert, web.chain)))
        key.write_bytes(web.private_key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
        settings = {
            "listenAddress": f"127.0.0.1:{port}",
            "managementListenAddress": f"127.0.0.1:{management}",
            "certificate": str(certificate),
            "privateKey": str(key),
            "httpPort": self.http_port,
            "tlsPort": self.tls_port,
        }
        config.write_text(json.dumps({"pebble": settings}))
        self._log = (folder / "pebble.log").open("wb")
        resolver = f"127.0.0.1:{dns}"
        nothing = [word for name in ("http01", "https01", "tlsalpn01") for word in (f"-{name}", "")]
        self._processes = [
            self._start(
                "pebble-challtestsrv",
                *("-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-dns01", resolver),
                *(*nothing, "-management", f"127.0.0.1:{dns_management}"),
            ),
            self._start(
                "pebble",
                *("-config", str(config), "-dnsserver", resolver),
                PEBBLE_VA_NOSLEEP="1",
                PEBBLE_AUTHZREUSE="0",
                PEBBLE_WFE_NONCEREJECT=str(refused_nonces),
            ),
        ]
        self._context = ssl.create_default_context(cafile=str(self.ca_file))
        self.root = self._wait()
        """The root of what it issues, in PEM."""

    def _start(self, *argv: str, **variables: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv, env={**os.environ, **variables}, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )

    def _wait(self) -> str:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(self._root_url, context=self._context, timeout=5) as answer:
                    return str(answer.read().decode())
            except OSError:
                if time.monotonic() > end:
                    self.close()
                    raise
                time.sleep(0.05)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._log.close()
