"""Run the shipped nginx configuration in front of a fake engine and a fake proxy."""

import asyncio
import gzip
import io
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from querylift.index_tools.proxy_process import find_free_ports
from tests.helpers.paths import ROOT

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
JSON_HEADERS = {"Content-Type": "application/json"}
BODY = b'{"query":{"match":{"text":"download a page"}}}'


@dataclass(frozen=True)
class ForwardedRequest:
    """One request as nginx forwarded it."""

    path: str
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class NamedServer:
    """A server that puts its name into every answer. `fault` is a status to answer with, or "cut" to cut the connection."""

    name: str
    port: int
    fault: str = ""
    requests: list[ForwardedRequest] = field(default_factory=list)
    _runner: web.ServerRunner | None = None

    async def start(self) -> None:
        self._runner = web.ServerRunner(web.Server(self._answer, auto_decompress=False), shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        headers = [(name.decode(), value.decode()) for name, value in request.raw_headers]
        self.requests.append(ForwardedRequest(request.raw_path, headers, await request.content.read()))
        if self.fault == "cut":
            assert request.transport is not None
            request.transport.abort()
        answer = web.Response(status=int(self.fault or 200) if self.fault != "cut" else 200)
        answer.headers["X-Target"] = self.name
        answer.headers["X-Elastic-Product"] = "Elasticsearch"
        answer.headers.add("Warning", "299 a")
        answer.headers.add("Warning", "299 b")
        if request.headers.get("Accept-Encoding") == "gzip":
            answer.headers["Content-Encoding"] = "gzip"
            answer.body = gzip.compress(b'{"took":1}')
        return answer


@dataclass(frozen=True)
class RunningNginx:
    """A running nginx, and the two servers behind it."""

    url: str
    port: int
    engine: NamedServer
    proxy: NamedServer

    def get_server(self, name: str) -> NamedServer:
        """Return the server with this name, `engine` or `proxy`."""
        return self.engine if name == "engine" else self.proxy


Check = Callable[[aiohttp.ClientSession, RunningNginx], Awaitable[None]]
NO_CHANGES: Mapping[str, str] = {}


def run_with_nginx(check: Check, changes: Mapping[str, str] = NO_CHANGES) -> None:
    """Run `check` with a client and an nginx in front of an engine and a proxy, both fakes.

    `changes` are pieces of the shipped configuration, and what stands in their place.
    """

    async def main() -> None:
        async with (
            _run_nginx_and_servers(changes) as nginx,
            aiohttp.ClientSession(auto_decompress=False) as client,
            asyncio.timeout(60),
        ):
            await check(client, nginx)

    asyncio.run(main())


@asynccontextmanager
async def _run_nginx_and_servers(changes: Mapping[str, str]) -> AsyncIterator[RunningNginx]:
    engine_port, proxy_port, port = find_free_ports(3)
    engine, proxy = NamedServer("engine", engine_port), NamedServer("proxy", proxy_port)
    await engine.start()
    await proxy.start()
    try:
        addresses = {
            "engine:9200 resolve": f"127.0.0.1:{engine_port}",
            "proxy:9280 resolve": f"127.0.0.1:{proxy_port}",
            "listen 9200;": f"listen 127.0.0.1:{port};",
        }
        async with run_nginx(port, _change_configuration({**addresses, **changes})):
            yield RunningNginx(f"http://127.0.0.1:{port}", port, engine, proxy)
    finally:
        await proxy.stop()
        await engine.stop()


def _change_configuration(changes: Mapping[str, str]) -> str:
    configuration = (ROOT / "docker/nginx.conf").read_text()
    for shipped_text, test_text in changes.items():
        assert shipped_text in configuration
        configuration = configuration.replace(shipped_text, test_text)
    return configuration


@asynccontextmanager
async def run_nginx(port: int, configuration: str) -> AsyncIterator[None]:
    """Run nginx in a temporary folder, with a configuration that listens on `port`."""
    with tempfile.TemporaryDirectory(prefix="querylift-nginx-") as folder:
        Path(folder).chmod(0o755)  # when root starts nginx, its workers run as another user
        Path(folder, "default.conf").write_text(configuration)
        Path(folder, "nginx.conf").write_text(MAIN_CONFIGURATION.format(folder=folder))
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(
                [str(NGINX), "-p", folder, "-c", "nginx.conf", "-e", "/dev/stderr"], stdout=log, stderr=log
            )
        try:
            await _wait_until_listening(port, process, Path(folder, "log"))
            yield
        finally:
            process.terminate()
            process.wait(10)


MAIN_CONFIGURATION = """
daemon off;
worker_processes 1;
pid {folder}/pid;
events {{}}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    scgi_temp_path {folder}/scgi;
    uwsgi_temp_path {folder}/uwsgi;
    include {folder}/default.conf;
}}
"""


async def _wait_until_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        except OSError:
            await asyncio.sleep(0.02)
    pytest.fail(f"nginx did not come up: {log.read_text()}")


def build_url(base: str, path: str) -> URL:
    """Return the URL with `path` exactly as it is written."""
    return URL(base + path, encoded=True)


async def find_answering_server(client: aiohttp.ClientSession, nginx: RunningNginx, body: bytes = BODY) -> str:
    """Send a search, and return the name of the server that answered it."""
    async with client.post(f"{nginx.url}/docs/_search", data=io.BytesIO(body), headers=JSON_HEADERS) as answer:
        assert answer.status == 200
        return answer.headers["X-Target"]


async def returns_to_proxy(client: aiohttp.ClientSession, nginx: RunningNginx) -> bool:
    """Whether searches reach the proxy again within 15 seconds."""
    deadline_s = time.monotonic() + 15
    while time.monotonic() < deadline_s:
        if await find_answering_server(client, nginx) == "proxy":
            return True
        await asyncio.sleep(0.2)
    return False
