"""b12: the bundles of 200 trust domains fetched, with and without a peer that takes requests and never answers."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.driver import BUNDLE
from benchmarks.measure import Row, cpu_of, median, resident_mb
from benchmarks.server_rows import Sizes
from benchmarks.targets import Muniment
from deploy.demo.stack import Daemon, free_port
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire.channels import unix_channel
from spiffe_core.wire.services import Stub

ROOT = Path(__file__).resolve().parents[1]
MOST_SECONDS = 60.0
FLOOR = 'allowed_networks = ["127.0.0.0/8"]\nmin_interval = "1h"\n'


@contextmanager
def peers(folder: Path, count: int) -> Iterator[tuple[int, Path]]:
    """(port, CA) of the process that serves the bundles of `count` trust domains."""
    from tests.doubles.kube_api import KubePki

    pki, port = KubePki(folder), free_port()
    certificate, key = pki.pair("peers")
    argv = [sys.executable, "-m", "benchmarks.peers", str(port), str(certificate), str(key), str(count)]
    daemon = Daemon(argv, folder / "peers.log", {"PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + MOST_SECONDS
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if daemon.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(daemon.tail())
            time.sleep(0.05)
        yield port, pki.ca
    finally:
        daemon.kill()


def relationships(port: int, count: int, hanging: int) -> str:
    """Tables for `count` peers that answer and for some that do not; those that hang come first."""
    places = [(f"hang-{number}.test", "hang") for number in range(hanging)]
    places += [(f"peer-{number}.test", str(number)) for number in range(count)]
    return "".join(
        f'[federation.federates_with."{name}"]\nbundle_endpoint_url = "https://127.0.0.1:{port}/{path}"\n'
        "bundle_endpoint_profile.https_web = {}\n"
        for name, path in places
    )


async def fetched(target: Muniment, count: int) -> float:
    """Seconds until the server, which has begun just now, holds its own bundle and `count` others."""
    began = time.perf_counter()
    async with unix_channel(target.admin_socket) as channel:
        stub = Stub(channel, BUNDLE)
        while (await stub.CountBundles(bundle_pb2.CountBundlesRequest(), timeout=20)).count <= count:
            if time.perf_counter() - began > MOST_SECONDS:
                raise RuntimeError(
                    f"not all of {count} bundles are here; the server's log ends:\n{target.server.tail()}"
                )
            await asyncio.sleep(0.02)
    return time.perf_counter() - began


def refreshed(port: int, ca: Path, count: int, hanging: int) -> tuple[float, float, float]:
    """(seconds, CPU milliseconds of the server, its MB) from a server that serves to all bundles being there."""
    client = f'[federation.bundle_client]\nca_file = "{ca}"\n{FLOOR}'
    target = Muniment(extra=client + relationships(port, count, hanging))
    try:
        server = target.start_server()
        before = cpu_of(server.pid)
        seconds = asyncio.run(fetched(target, count))
        return seconds, (cpu_of(server.pid) - before).total * 1000, resident_mb(server.pid)
    finally:
        target.close()


def b12_federation(sizes: Sizes, count: int) -> list[Row]:
    """None, one and eight peers that hang; the smoke run has one."""
    repeats, kinds = (min(sizes.repeats, 3), (0, 1, 8)) if sizes.bars else (1, (1,))
    folder = Path(tempfile.mkdtemp(prefix="bench-peers-"))
    rows: list[Row] = []
    try:
        with peers(folder, count) as (port, ca):
            if sizes.bars:
                alone = [refreshed(port, ca, 0, 0)[2] for _ in range(repeats)]
                rows.append(median("b12", "resident without federation", alone, "MB"))
            for hanging in kinds:
                found = [refreshed(port, ca, count, hanging) for _ in range(repeats)]
                what = f"{count} trust domains fetched, {hanging} more that hang"
                seconds, cpu, memory = zip(*found, strict=True)
                rows.append(sizes.bar(median("b12", what, seconds, "s"), at_most=10.0))
                rows.append(median("b12", f"{what}: CPU", cpu, "ms"))
                rows.append(median("b12", f"{what}: resident", memory, "MB"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows
