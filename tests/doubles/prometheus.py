"""A real Prometheus that scrapes what a test offers, and promtool: Debian's, or whatever is on the PATH."""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

from deploy.demo.stack import free_port
from tests.doubles.database_servers import lacking

START_SECONDS = 40.0


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`; without it the test is skipped, or fails if MUNIMENT_REQUIRE names it."""
    return shutil.which(name) or lacking("prometheus", f"{name} is not installed")


def promtool(*words: str, text: bytes = b"", content: bool = True) -> str:
    """What promtool says; it has to be content, unless its complaints are what the test is about."""
    done = subprocess.run([program("promtool"), *words], input=text, capture_output=True, timeout=50, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0 or not content, said
    return said


class Prometheus:
    """Its HTTP API."""

    def __init__(self, port: int) -> None:
        self._port = port

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()

    async def get(self, path: str, **query: str) -> tuple[int, bytes]:
        return await asyncio.to_thread(self._get, f"{path}?{urlencode(query)}" if query else path)

    async def query(self, expression: str) -> list[float]:
        """The numbers of an instant query."""
        status, body = await self.get("/api/v1/query", query=expression)
        answer = json.loads(body)
        assert status == 200, answer
        assert answer["status"] == "success", answer
        return [float(one["value"][1]) for one in answer["data"]["result"]]

    async def until(self, expression: str, seconds: float = 30.0) -> list[float]:
        """The numbers, once there are some."""
        async with asyncio.timeout(seconds):
            while True:
                found = [number for number in await self.query(expression) if not math.isnan(number)]
                if found:
                    return found
                await asyncio.sleep(0.1)


@asynccontextmanager
async def prometheus(folder: Path, targets: dict[str, tuple[str, int]]) -> AsyncIterator[Prometheus]:
    """Scrapes `targets` (job -> address) twice a second."""
    port = free_port()
    jobs = [
        {"job_name": job, "static_configs": [{"targets": [f"{host}:{number}"]}]}
        for job, (host, number) in targets.items()
    ]
    settings = folder / "prometheus.json"  # JSON is YAML
    settings.write_text(json.dumps({"global": {"scrape_interval": "500ms"}, "scrape_configs": jobs}))
    promtool("check", "config", str(settings))
    words = [f"--config.file={settings}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    words.append(f"--web.listen-address=127.0.0.1:{port}")
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(program("prometheus"), *words, stdout=log, stderr=log)
    try:
        api = Prometheus(port)
        async with asyncio.timeout(START_SECONDS):
            while (await api.get("/-/ready"))[0] != 200:
                assert process.returncode is None, (folder / "prometheus.log").read_text()
                await asyncio.sleep(0.1)
        yield api
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
