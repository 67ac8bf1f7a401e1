"""docker-compose.yml as Docker reads it, and the routing that it ships, run by a real nginx."""

import asyncio
import gzip
import io
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from yarl import URL

from querylift.index_tools.proxy_process import find_free_ports
from querylift.plugin.proxy import routes
from querylift.plugin.proxy.server import KEEP_ALIVE_S
from querylift.plugin.settings import load_settings
from tests.helpers.paths import ROOT

PROFILES = ("opensearch", "elasticsearch")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")

JSON = {"Content-Type": "application/json"}
BODY = b'{"query":{"match":{"text":"download a page"}}}'
MEGABYTE = 1_048_576


# The file itself.


@pytest.mark.parametrize("profile", PROFILES)
def test_each_profile_has_an_engine_a_sample_a_proxy_and_nginx(profile: str) -> None:
    named = {name for name, service in SERVICES.items() if profile in service["profiles"]}
    assert named == {profile, f"{profile}-sample", f"{profile}-proxy", f"{profile}-nginx"}
    for name in named:
        assert set(SERVICES[name]["networks"]) == {profile}, "the aliases `engine` and `proxy` are a profile's own"


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned_and_names_no_registry(name: str) -> None:
    assert re.fullmatch(r"[a-z]+(/[a-z]+)?:\d+\.\d+\.\d+(-[a-z]+)?", SERVICES[name]["image"])


def test_the_dockerfile_starts_from_a_pinned_image_and_installs_by_hash() -> None:
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    for image in re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE):
        assert re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+-[a-z-]+", image)
    installs = re.findall(r"pip install (.+?)(?: \\)?$", dockerfile, re.MULTILINE)
    assert installs and all("--require-hashes" in i or i == "--no-deps --no-build-isolation ." for i in installs)


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in SERVICES[name].get("ports", []))


def test_both_profiles_can_run_at_once() -> None:
    published = [port.split(":")[1] for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == len(set(published)) == 4


@pytest.mark.parametrize("name", [name for name in SERVICES if not name.endswith("-sample")])
def test_every_service_that_stays_up_says_when_it_is_healthy(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL") and check["retries"] and check["interval"] and check["timeout"]


@pytest.mark.parametrize("profile", PROFILES)
def test_services_wait_for_those_that_they_need(profile: str) -> None:
    healthy = {"condition": "service_healthy"}
    assert SERVICES[f"{profile}-sample"]["depends_on"] == {profile: healthy}
    assert SERVICES[f"{profile}-proxy"]["depends_on"] == {
        profile: healthy,
        f"{profile}-sample": {"condition": "service_completed_successfully"},
    }
    assert SERVICES[f"{profile}-nginx"]["depends_on"] == {profile: healthy, f"{profile}-proxy": healthy}


@pytest.mark.parametrize("profile", PROFILES)
def test_the_proxy_serves_the_expander_that_the_sample_builds(profile: str) -> None:
    settings = load_settings(ROOT / "docker/querylift.toml", {})
    assert settings.generator == "expander:/var/lib/querylift/docs.expander"
    assert "--out /var/lib/querylift/docs.expander" in SERVICES[f"{profile}-sample"]["command"][2]
    assert SERVICES[f"{profile}-sample"]["volumes"] == [f"{profile}-expander:/var/lib/querylift"]
    assert f"{profile}-expander:/var/lib/querylift:ro" in SERVICES[f"{profile}-proxy"]["volumes"]


def test_the_files_that_are_mounted_exist_and_the_settings_are_good() -> None:
    mounted = [v for s in SERVICES.values() for v in s.get("volumes", []) if v.startswith("./")]
    assert mounted and all((ROOT / volume.split(":")[0]).is_file() and volume.endswith(":ro") for volume in mounted)
    settings = load_settings(ROOT / "docker/querylift.toml", {})
    assert (settings.engine, settings.listen) == ("http://engine:9200", "0.0.0.0:9280")


@pytest.mark.parametrize("profile", PROFILES)
def test_docker_compose_accepts_the_file(profile: str) -> None:
    command = _compose_command()
    told = subprocess.run(
        [*command, "--profile", profile, "config", "--quiet"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 0, told.stderr


def _compose_command() -> list[str]:
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0:
        return [docker, "compose"]
    pytest.skip("docker-compose is not installed: apt-get install docker-compose")


# What nginx does with it.

ROUTES = [
    ("POST", "/docs/_search", "proxy"),
    ("GET", "/docs/_search", "proxy"),
    ("GET", "/_search", "proxy"),
    ("GET", "/_search?q=page&pretty", "proxy"),
    ("POST", "/docs/_search/", "proxy"),
    ("POST", "/_all/_search", "proxy"),
    ("POST", "/a,b*,-c/_search?ignore_unavailable=true", "proxy"),
    ("POST", "/caf%C3%A9/_search", "proxy"),
    ("POST", "/a%2Cb/_search", "proxy"),
    ("POST", "/%3Clogs-%7Bnow%2Fd%7D%3E/_search", "proxy"),
    ("POST", "/docs/_msearch", "proxy"),
    ("POST", "/_msearch?max_concurrent_searches=2", "proxy"),
    ("POST", "/docs/_async_search?wait_for_completion_timeout=1s", "proxy"),
    ("PUT", "/docs/_search", "engine"),
    ("POST", "/_search/scroll", "engine"),
    ("DELETE", "/_search/scroll", "engine"),
    ("POST", "/docs/_search/template", "engine"),
    ("POST", "/docs/_search/point_in_time?keep_alive=1m", "engine"),
    ("POST", "/docs/_msearch/template", "engine"),
    ("GET", "/_async_search/abc", "engine"),
    ("DELETE", "/_async_search/abc", "engine"),
    ("GET", "/docs/_search_shards", "engine"),
    ("POST", "/docs/_count", "engine"),
    ("POST", "/_bulk", "engine"),
    ("POST", "/docs/_delete_by_query", "engine"),
    ("POST", "/docs/_explain/1", "engine"),
    ("POST", "/docs/_validate/query", "engine"),
    ("PUT", "/docs/_doc/_search", "engine"),
    ("GET", "/docs/_doc/_search", "engine"),
    ("GET", "/docs/_doc/a%2F_search", "engine"),
    ("POST", "/_render/_search", "engine"),
    ("POST", "//_search", "engine"),
    ("GET", "/docs/_doc/1?x=/_search", "engine"),
    ("GET", "/", "engine"),
    ("HEAD", "/docs", "engine"),
    ("GET", "/_cat/indices?v", "engine"),
    ("POST", "/docs/_rank_eval", "engine"),
    ("POST", "/docs/research", "engine"),
]


@needs_nginx
def test_only_search_routes_reach_the_proxy_and_paths_arrive_as_they_came() -> None:
    async def test(client: aiohttp.ClientSession, front: "Front") -> None:
        for method, path, target in ROUTES:
            async with client.request(method, _url(front.url, path), data=BODY if method == "POST" else None) as answer:
                assert (answer.status, answer.headers["X-Target"]) == (200, target), path
            assert front.stub(target).received[-1].path == path

    _drive(test)


@pytest.mark.parametrize(("method", "path", "target"), ROUTES)
def test_nginx_and_the_proxy_agree_on_what_a_search_is(method: str, path: str, target: str) -> None:
    assert (routes.match_search_route(method, path.split("?")[0]) is not None) == (target == "proxy")


@needs_nginx
@pytest.mark.parametrize("path", ["/docs/_search", "/docs/_count"])
def test_bodies_and_headers_survive_both_ways(path: str) -> None:
    async def test(client: aiohttp.ClientSession, front: "Front") -> None:
        packed = gzip.compress(BODY)
        sent = [
            ("Content-Type", "application/vnd.elasticsearch+json; compatible-with=9"),
            ("Content-Encoding", "gzip"),
            ("Accept-Encoding", "gzip"),
            ("Authorization", "Basic eDp5"),
            ("X-Opaque-Id", "one"),
            ("X-Opaque-Id", "two"),
            ("under_score", "kept"),
        ]
        async with client.post(front.url + path, data=packed, headers=sent) as answer:
            assert answer.headers["X-Elastic-Product"] == "Elasticsearch"
            assert answer.headers.getall("Warning") == ["299 a", "299 b"]
            assert answer.headers["Content-Encoding"] == "gzip"
            assert gzip.decompress(await answer.read()) == b'{"took":1}'
        got = front.stub("proxy" if path.endswith("_search") else "engine").received[-1]
        assert got.body == packed
        assert [(k, v) for k, v in got.headers if k in dict(sent)] == sent
        assert dict(got.headers)["Host"] == f"127.0.0.1:{front.port}"

    _drive(test)


@needs_nginx
def test_a_bulk_body_of_20_megabytes_arrives_whole_with_a_length_or_in_chunks() -> None:
    body = os.urandom(MEGABYTE) * 20

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), MEGABYTE):
            yield body[start : start + MEGABYTE]

    async def test(client: aiohttp.ClientSession, front: "Front") -> None:
        for data in (io.BytesIO(body), chunks()):
            async with client.post(f"{front.url}/_bulk", data=data, headers=JSON) as answer:
                assert answer.status == 200
            assert front.engine.received[-1].body == body

    _drive(test)


@needs_nginx
def test_searches_go_to_the_engine_while_the_proxy_is_down_and_back_when_it_is_up() -> None:
    async def test(client: aiohttp.ClientSession, front: "Front") -> None:
        assert await _target(client, front) == "proxy"
        await front.proxy.stop()
        for _ in range(20):
            assert await _target(client, front) == "engine"
            assert front.engine.received[-1].body == BODY
        await front.proxy.start()
        assert await _comes_back(client, front)

    _drive(test)


@needs_nginx
@pytest.mark.parametrize("fault", ["cut", "502", "504"])
def test_a_search_that_the_proxy_fails_is_sent_to_the_engine_with_its_body(fault: str) -> None:
    async def test(client: aiohttp.ClientSession, front: "Front") -> None:
        front.proxy.fault = fault
        assert await _target(client, front) == "engine"
        assert front.proxy.received[-1].body == front.engine.received[-1].body == BODY

    _drive(test)


@needs_nginx
def test_a_large_search_body_is_sent_again_too() -> None:
    body = b'{"query":{"terms":{"id":[' + b"1," * MEGABYTE + b"1]}}}"

    async def test(client: aiohttp.ClientSession, front: "Front") -> None:
        await front.proxy.stop()
        assert await _target(client, front, body) == "engine"
        assert front.engine.received[-1].body == body

    _drive(test)


@needs_nginx
@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_an_engines_refusal_that_the_proxy_hands_on_is_the_answer(status: int) -> None:
    async def test(client: aiohttp.ClientSession, front: "Front") -> None:
        front.proxy.fault = str(status)
        async with client.post(f"{front.url}/docs/_search", data=BODY, headers=JSON) as answer:
            assert (answer.status, answer.headers["X-Target"]) == (status, "proxy")
        assert not front.engine.received

    _drive(test)


@needs_nginx
def test_a_write_that_fails_is_never_sent_twice() -> None:
    async def test(client: aiohttp.ClientSession, front: "Front") -> None:
        front.engine.fault = "cut"
        async with client.post(f"{front.url}/_bulk", data=BODY, headers=JSON) as answer:
            assert answer.status == 502
        assert len(front.engine.received) == 1

    _drive(test)


def test_the_proxy_keeps_idle_connections_for_longer_than_nginx_does() -> None:
    """Whoever closes an idle connection must be the one who sends on it: nginx, after its 60 s, or a search is lost."""
    assert "keepalive_timeout" not in (ROOT / "docker/nginx.conf").read_text()
    assert KEEP_ALIVE_S > 60


# Stubs.


@dataclass(frozen=True)
class Received:
    """One request as it arrived."""

    path: str
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class Stub:
    """A server that answers with its name; with `fault`, in that way."""

    name: str
    port: int
    fault: str = ""
    received: list[Received] = field(default_factory=list)
    _runner: web.ServerRunner | None = None

    async def start(self) -> None:
        self._runner = web.ServerRunner(web.Server(self._answer, auto_decompress=False), shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        headers = [(k.decode(), v.decode()) for k, v in request.raw_headers]
        self.received.append(Received(request.raw_path, headers, await request.content.read()))
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
class Front:
    """nginx, and what stands behind it."""

    url: str
    port: int
    engine: Stub
    proxy: Stub

    def stub(self, name: str) -> Stub:
        return self.engine if name == "engine" else self.proxy


Test = Callable[[aiohttp.ClientSession, Front], Awaitable[None]]


def _drive(test: Test) -> None:
    async def main() -> None:
        async with _front() as front, aiohttp.ClientSession(auto_decompress=False) as client, asyncio.timeout(60):
            await test(client, front)

    asyncio.run(main())


@asynccontextmanager
async def _front() -> AsyncIterator[Front]:
    engine_port, proxy_port, port = find_free_ports(3)
    engine, proxy = Stub("engine", engine_port), Stub("proxy", proxy_port)
    await engine.start()
    await proxy.start()
    try:
        async with _nginx(port, engine_port, proxy_port):
            yield Front(f"http://127.0.0.1:{port}", port, engine, proxy)
    finally:
        await proxy.stop()
        await engine.stop()


@asynccontextmanager
async def _nginx(port: int, engine_port: int, proxy_port: int) -> AsyncIterator[None]:
    """The shipped configuration, with other addresses, in a folder of its own."""
    shipped = (ROOT / "docker/nginx.conf").read_text()
    addresses = {
        "engine:9200 resolve": f"127.0.0.1:{engine_port}",
        "proxy:9280 resolve": f"127.0.0.1:{proxy_port}",
        "listen 9200;": f"listen 127.0.0.1:{port};",
    }
    for there, here in addresses.items():
        assert there in shipped
        shipped = shipped.replace(there, here)
    with tempfile.TemporaryDirectory(prefix="querylift-nginx-") as folder:
        Path(folder).chmod(0o755)  # nginx's workers are somebody else when root starts it
        Path(folder, "default.conf").write_text(shipped)
        Path(folder, "nginx.conf").write_text(MAIN.format(folder=folder))
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(
                [str(NGINX), "-p", folder, "-c", "nginx.conf", "-e", "/dev/stderr"], stdout=log, stderr=log
            )
        try:
            await _listening(port, process, Path(folder, "log"))
            yield
        finally:
            process.terminate()
            process.wait(10)


MAIN = """
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


async def _listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_s = time.monotonic() + 10
    while time.monotonic() < give_up_s and process.poll() is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        except OSError:
            await asyncio.sleep(0.02)
    pytest.fail(f"nginx did not come up: {log.read_text()}")


def _url(base: str, path: str) -> URL:
    return URL(base + path, encoded=True)


async def _target(client: aiohttp.ClientSession, front: Front, body: bytes = BODY) -> str:
    async with client.post(f"{front.url}/docs/_search", data=io.BytesIO(body), headers=JSON) as answer:
        assert answer.status == 200
        return answer.headers["X-Target"]


async def _comes_back(client: aiohttp.ClientSession, front: Front) -> bool:
    give_up_s = time.monotonic() + 15
    while time.monotonic() < give_up_s:
        if await _target(client, front) == "proxy":
            return True
        await asyncio.sleep(0.2)
    return False
