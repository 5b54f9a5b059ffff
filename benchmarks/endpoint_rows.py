"""b12: the bundle endpoint beside bare uvicorn that serves the same bytes, in turns on the same machine."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.https_load import LAST
from benchmarks.measure import Row, cpu_of, median
from benchmarks.server_rows import Sizes
from benchmarks.targets import TRUST_DOMAIN, Muniment
from deploy.demo.stack import Daemon, free_port

ROOT = Path(__file__).resolve().parents[1]
CONNECTIONS = {"kept": 8, "new": 4}
WHAT = {"kept": "GET on kept connections, 8 at once", "new": "GET with a new connection each, 4 at once"}
BAR = 0.8


def fetch(port: int) -> bytes:
    """The document, asked for by a client of a few lines."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection(("127.0.0.1", port), 10)
    with closing(context.wrap_socket(plain, server_hostname="localhost")) as connection:
        connection.sendall(LAST)
        answer = b""
        while data := connection.recv(65_536):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return body


def when_it_answers(port: int, daemon: Daemon, seconds: float = 60.0) -> bytes:
    """`fetch` as soon as that works."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return fetch(port)
        except (OSError, AssertionError):
            if daemon.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(daemon.tail()) from None
            time.sleep(0.1)


@contextmanager
def bare_uvicorn(folder: Path, body: Path) -> Iterator[tuple[Daemon, int]]:
    """A process of its own with a certificate of the same kind as our own."""
    from tests.doubles.kube_api import KubePki

    certificate, key = KubePki(folder).pair("bare")
    port = free_port()
    argv = [sys.executable, "-m", "benchmarks.bare_uvicorn", str(port), str(certificate), str(key), str(body)]
    daemon = Daemon(argv, folder / "bare.log", {"PYTHONPATH": str(ROOT)})
    try:
        when_it_answers(port, daemon)
        yield daemon, port
    finally:
        daemon.kill()


def asked(port: int, pid: int, how: str, sizes: Sizes, body: Path) -> tuple[float, float]:
    """Requests a second, and CPU-µs of the server for each."""
    before = cpu_of(pid)
    argv = [sys.executable, "-m", "benchmarks.https_load", str(port), how, str(sizes.seconds)]
    done = subprocess.run(
        [*argv, str(CONNECTIONS[how]), str(body)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    used = (cpu_of(pid) - before).total
    return found["requests"] / found["seconds"], used / found["requests"] * 1e6


def b12(sizes: Sizes) -> list[Row]:
    """Kept and new connections; one turn of ours, one of theirs, and so on."""
    port = free_port()
    endpoint = f'[federation.bundle_endpoint]\naddress = "127.0.0.1"\nport = {port}\n'
    folder, target = Path(tempfile.mkdtemp(prefix="bench-endpoint-")), Muniment(extra=endpoint)
    rows: list[Row] = []
    try:
        server, body = target.start_server(), folder / "body"
        body.write_bytes(when_it_answers(port, server))
        with bare_uvicorn(folder, body) as (bare, bare_port):
            for how in ("kept", "new"):
                rows += _beside(how, (port, server.pid), (bare_port, bare.pid), sizes, body)
    finally:
        target.close()
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def _beside(how: str, ours: tuple[int, int], bare: tuple[int, int], sizes: Sizes, body: Path) -> list[Row]:
    turns: dict[str, list[tuple[float, float]]] = {"muniment": [], "uvicorn": []}
    for _ in range(sizes.repeats):
        for name, (port, pid) in (("muniment", ours), ("uvicorn", bare)):
            turns[name].append(asked(port, pid, how, sizes, body))
    rows = []
    for name, found in turns.items():
        rates, costs = zip(*found, strict=True)
        note = f"{body.stat().st_size} bytes of {TRUST_DOMAIN}"
        rows.append(median("b12", WHAT[how], rates, "/s", target=name, note=note))
        rows.append(median("b12", f"{WHAT[how]}: CPU", costs, "µs", target=name))
    pairs = list(zip(turns["muniment"], turns["uvicorn"], strict=True))
    by_rate = [mine[0] / theirs[0] for mine, theirs in pairs]
    by_cost = [theirs[1] / mine[1] for mine, theirs in pairs]
    rows.append(median("b12", f"{how}: rate, ours ÷ bare uvicorn", by_rate, ""))
    judged = median("b12", f"{how}: requests per CPU second, ours ÷ bare uvicorn", by_cost, "")
    return [*rows, sizes.bar(judged, at_least=BAR)]
