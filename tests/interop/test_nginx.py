"""nginx with its certificates written by `node-agent files`: mutual TLS through rotation after rotation (issue 4, item 7)."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import grpc
import pytest

from deploy.demo.stack import BIN, Daemon, LocalStack, free_port
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as entry_types
from spiffe_core.wire.services import Stub
from tests.interop.peers import lacking, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120, func_only=True)]

ROTATIONS = 100


@pytest.fixture(scope="module")
def nginx() -> str:
    found = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(found).exists():
        lacking("nginx", "nginx is not installed")
    return found


@pytest.fixture(scope="module")
def stack(nginx: str) -> Iterator[LocalStack]:
    del nginx
    with LocalStack("web.test", sync_interval="100ms") as started:
        started.start()
        yield started


class Rotator:
    """Changes the entry again and again: the agent fetches a new SVID for each version of it."""

    def __init__(self, stack: LocalStack) -> None:
        self._id = stack.register("/web", f"unix:uid:{os.getuid()}", ttl=3600)
        self._channel = grpc.insecure_channel(f"unix:{stack.admin_socket}")
        self._entries = Stub(self._channel, entry_pb2.DESCRIPTOR.services_by_name["Entry"])
        self._ttl = 3600

    def rotate(self) -> None:
        self._ttl += 1
        changed = entry_types.Entry(id=self._id, x509_svid_ttl=self._ttl)
        mask = entry_types.EntryMask(x509_svid_ttl=True)
        answer = self._entries.BatchUpdateEntry(
            entry_pb2.BatchUpdateEntryRequest(entries=[changed], input_mask=mask), timeout=10
        )
        assert answer.results[0].status.code == 0

    def close(self) -> None:
        self._channel.close()


def configuration(folder: Path, stack: LocalStack, command: list[str]) -> Path:
    path = folder / "files.toml"
    path.write_text(
        f'socket = "unix://{stack.api_socket}"\n[[set]]\ndirectory = "{folder}/tls"\ncombined = "both.pem"\n'
        f'bundle_map = "map.json"\njwt_bundle = "jwks.json"\ncommand = {json.dumps(command)}\n'
        '[[set.jwt]]\nname = "vault.jwt"\naudience = ["vault"]\n'
    )
    return path


def nginx_configuration(folder: Path, port: int) -> Path:
    path = folder / "nginx.conf"
    user = "user root;\n" if os.getuid() == 0 else ""
    path.write_text(
        f"{user}daemon off;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log warn;\nworker_processes 2;\n"
        "worker_shutdown_timeout 30s;\nevents { worker_connections 512; }\n"
        "http { access_log off;\n"
        + "".join(
            f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        + f"server {{ listen 127.0.0.1:{port} ssl reuseport;\n"
        f"ssl_certificate {folder}/tls/svid.pem; ssl_certificate_key {folder}/tls/svid.key;\n"
        f"ssl_client_certificate {folder}/tls/bundle.pem; ssl_verify_client on; ssl_verify_depth 3;\n"
        'location / { return 200 "$ssl_client_verify $ssl_client_serial\\n"; } } }\n'
    )
    return path


class Load:
    """Mutual TLS requests, each a new connection with the newest files, until the block ends."""

    def __init__(self, tls: Path, port: int) -> None:
        self._tls, self._port = tls, port
        self._stop = threading.Event()
        self.failed: list[str] = []
        self.serials: set[str] = set()
        self.done = 0
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(2)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                answer = self._ask()
                self.serials.add(answer.split()[-1])
                if not answer.startswith("SUCCESS"):
                    self.failed.append(answer)
            except (OSError, IndexError) as error:
                self.failed.append(repr(error))
            self.done += 1
            time.sleep(0.01)

    def _ask(self) -> str:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        folder = (self._tls / ".data").resolve()  # one set, whatever is swapped meanwhile: ssl opens a file twice
        context.load_verify_locations(folder / "bundle.pem")
        context.load_cert_chain(folder / "both.pem")
        with (
            socket.create_connection(("127.0.0.1", self._port), timeout=10) as plain,
            context.wrap_socket(plain) as connection,
        ):
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b""
            while part := connection.recv(4096):
                answer += part
        return answer.decode().rpartition("\r\n\r\n")[2].strip()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_nginx_serves_mutual_tls_through_rotations_without_a_failed_request(
    nginx: str, stack: LocalStack, tmp_path: Path
) -> None:
    """A hundred rotations, each followed by a reload, under load: no request fails."""
    port = free_port()
    rotator = Rotator(stack)
    conf = nginx_configuration(tmp_path, port)
    files = configuration(tmp_path, stack, [nginx, "-c", str(conf), "-s", "reload"])
    once = tmp_path / "once.toml"
    once.write_text("".join(line for line in files.read_text().splitlines(True) if not line.startswith("command")))
    done = subprocess.run(
        [str(BIN / "node-agent"), "files", "--config", str(once), "--once"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "tls").iterdir() if not path.name.startswith(".")} == {
        "svid.pem", "svid.key", "bundle.pem", "both.pem", "map.json", "jwks.json", "vault.jwt",
    }  # fmt: skip
    server = Daemon([nginx, "-c", str(conf)], tmp_path / "nginx.log")
    writer = None
    try:
        until(lambda: (tmp_path / "nginx.pid").exists() and (tmp_path / "nginx.pid").stat().st_size, pause=0.02)
        writer = Daemon([str(BIN / "node-agent"), "files", "--config", str(files)], tmp_path / "files.log")
        until(lambda: "wrote 7 files" in writer.log.read_text(), pause=0.05)
        certificate = tmp_path / "tls" / "svid.pem"
        with Load(tmp_path / "tls", port) as load:
            for _ in range(ROTATIONS):
                before = certificate.read_bytes()
                rotator.rotate()
                until(lambda before=before: certificate.read_bytes() != before, pause=0.01)
        assert len(load.serials) > ROTATIONS / 2
        assert load.failed == [], (load.failed[:3], server.tail(), writer.tail())
        assert load.done > 100
        assert "not up to date" not in writer.log.read_text()
    finally:
        rotator.close()
        if writer is not None:
            assert writer.stop() == 0, writer.tail(40)
        server.stop()
