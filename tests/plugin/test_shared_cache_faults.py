"""A shared cache that cannot be used is refused by name, or said once and counted, and searches go on."""

import asyncio
import contextlib
import json
import logging
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from querylift.index_tools.proxy_process import run_proxy
from querylift.plugin.cache import FileCache
from querylift.plugin.errors import SettingsError
from querylift.plugin.redis_cache import RedisCache
from querylift.plugin.testing import ManualClock
from tests.helpers.redis_server import run_redis

# -- a URL that can never work ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nonsense://host", "it does not begin with redis://, rediss:// or unix://"),
        (
            "redis://:s3cret@host?ssl_cert_reqs=none",
            "it has the option 'ssl_cert_reqs', which does not exist for this kind",
        ),
        ("redis://:s3cret@host?nothing=1", "it has the option 'nothing', which does not exist for this kind of URL"),
        ("redis://:s3cret@host?db=first", "its option 'db' has a wrong value"),
        ("redis://:s3cret@host?socket_timeout=soon", "its option 'socket_timeout' has a wrong value"),
        ("redis://:s3cret@host?protocol=9", "an option in it has a wrong value (its options: protocol)"),
        ("redis://:s3cret@host/first", "its path is not the number of a database"),
        ("redis://:s3cret@host:99999", "its host or port cannot be read"),
        ("redis://:s3cret/x@host:6379", "a sign in it has a meaning of its own"),
        ("redis://:s3cret[x@host:6379", "its host or port cannot be read"),
        ("redis://:6379/s3cret@host", "a sign in it has a meaning of its own"),  # the password is "6379/s3cret"
        ("redis://:6379?s3cret@host", "a sign in it has a meaning of its own"),
        ("redis://:6379#s3cret@host", "a sign in it has a meaning of its own"),
        ("redis://:s3cret@", "it names no host"),
        ("redis:///0", "it names no host"),
        ("unix://", "it names no socket"),
    ],
)
def test_a_cache_url_that_can_never_work_is_refused_without_its_password(url: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        RedisCache(url, time.monotonic)
    assert str(caught.value).startswith(f"cache.url cannot be used: {sentence}")
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_password_with_escaped_signs_is_taken() -> None:
    async def main() -> None:
        cache = RedisCache("rediss://user:a%2Fb%3F%23%40@host:6380/3?ssl_cert_reqs=none", time.monotonic)
        await cache.close()

    asyncio.run(main())


# -- a server that does not take us -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user_part", "path", "scheme", "reason"),
    [
        (":s3cret-wrong@", "", "redis", "invalid username-password pair"),
        ("", "", "redis", "HELLO must be called"),
        (":s3cret@", "/99", "redis", "DB index is out of range"),
        (":s3cret@", "", "rediss", "Timeout connecting to server"),
    ],
)
def test_a_server_that_refuses_the_url_is_one_warning_at_the_start_and_a_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, user_part: str, path: str, scheme: str, reason: str
) -> None:
    async def main() -> None:
        clock = ManualClock()
        cache = RedisCache(f"{scheme}://{user_part}127.0.0.1:{server.port}{path}", clock)
        await cache.start()
        for _ in range(5):
            clock.advance(6)
            assert await cache.get_two("pin", "key") == (None, None)
        assert reason in cache.faults.describe_state()
        assert cache.faults.counts["read"] >= 5
        await cache.close()

    with run_redis(tmp_path, "--requirepass", "s3cret") as server, caplog.at_level(logging.INFO):
        asyncio.run(main())
    lines = [record.getMessage() for record in caplog.records if record.name == "querylift"]
    assert lines[0].startswith(f"the shared cache at 127.0.0.1:{server.port}: ")
    assert (len(lines), reason in lines[0]) == (1, True)
    assert "s3cret" not in caplog.text


def test_serve_goes_on_without_its_cache_and_says_so_on_the_admin_page(tmp_path: Path) -> None:
    settings = {"engine": "http://127.0.0.1:9", "index": {"docs": {}}}
    with run_redis(tmp_path, "--requirepass", "s3cret") as server:
        url = f"redis://:s3cret-wrong@127.0.0.1:{server.port}"
        with run_proxy({**settings, "cache": {"url": url}}) as proxy:
            state = proxy.read_health()["cache"]
            with urllib.request.urlopen(f"{proxy.admin_url}/metrics", timeout=10) as answer:
                metrics = answer.read().decode()
            log = proxy.log.read_text()
    assert state == "reads and writes fail: invalid username-password pair or user is disabled."
    assert 'querylift_cache_errors_total{operation="write"} 1.0' in metrics
    assert log.count("the shared cache at") == 1
    assert "s3cret" not in log + json.dumps(state) + metrics


def test_a_cache_that_works_again_is_said_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        clock = ManualClock()
        cache = RedisCache(server.url, clock)
        await cache.start()
        server.send_command("CONFIG", "SET", "maxmemory", "1")
        await cache.set("key", "value", ttl_s=60)
        server.send_command("CONFIG", "SET", "maxmemory", "0")
        clock.advance(6)
        await cache.set("key", "value", ttl_s=60)
        assert cache.faults.describe_state() == "ok"
        await cache.close()

    with run_redis(tmp_path) as server, caplog.at_level(logging.INFO):
        asyncio.run(main())
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


# -- a server that only reads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), "writes fail: command not allowed when used memory > 'maxmemory'."),
        (("REPLICAOF", "127.0.0.1", "1"), "writes fail: You can't write against a read only replica."),
    ],
)
def test_a_full_or_read_only_server_rests_the_writes_and_still_answers_reads(
    tmp_path: Path, command: tuple[str, ...], reason: str
) -> None:
    async def main() -> None:
        cache = RedisCache(server.url, ManualClock())
        await cache.set("key", "value", ttl_s=60)
        server.send_command(*command)
        for _ in range(3):
            await cache.set("other", "value", ttl_s=60)
            assert await cache.get_two("pin", "key") == (None, "value")
        assert cache.faults.describe_state() == reason
        assert cache.faults.counts == {"write": 1}  # then the writes rest
        await cache.close()

    with run_redis(tmp_path) as server:
        asyncio.run(main())


def test_a_cache_file_on_a_full_disc_is_said_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        cache = FileCache(tmp_path / "kept.db", 10, ManualClock())
        await cache.start()
        assert cache.faults.describe_state() == "ok"
        cache._file.execute("PRAGMA max_page_count = 1")
        for number in range(3):
            await cache.set(f"key {number}", "x" * 10_000, ttl_s=60)
        assert cache.faults.describe_state() == "writes fail: database or disk is full"
        assert cache.faults.counts == {"write": 3}
        await cache.close()

    asyncio.run(main())
    assert [record.getMessage() for record in caplog.records] == [
        f"the cache file {tmp_path / 'kept.db'}: writes fail: database or disk is full; expansions are made without it"
    ]


# -- a cluster ----------------------------------------------------------------------------------------------------------


def _join_cluster(first_port: int, *later_ports: int) -> None:
    """Share the slots among the nodes, and wait until every node serves."""
    ports = (first_port, *later_ports)
    bounds = [16384 * number // len(ports) for number in range(len(ports) + 1)]
    for port, start, end in zip(ports, bounds, bounds[1:], strict=False):
        _send(port, "CLUSTER", "ADDSLOTSRANGE", str(start), str(end - 1))
        _send(port, "CLUSTER", "SET-CONFIG-EPOCH", str(start + 1))
    for port in later_ports:
        _send(port, "CLUSTER", "MEET", "127.0.0.1", str(first_port))
    for _ in range(400):
        if all("cluster_state:ok" in _send(port, "CLUSTER", "INFO") for port in ports):
            return
        time.sleep(0.05)
    raise AssertionError("the cluster did not come up")


def _send(port: int, *words: str) -> str:
    return subprocess.run(
        ["redis-cli", "-p", str(port), *words], capture_output=True, text=True, check=True, timeout=10
    ).stdout


@pytest.mark.parametrize("node_count", [1, 3])
def test_a_cluster_keeps_pins_and_expansions(tmp_path: Path, node_count: int) -> None:
    async def main(url: str) -> None:
        cache = RedisCache(url, time.monotonic, timeout_s=1)
        await cache.start()
        for number in range(20):
            await cache.set(f"pin:{number}", "1", ttl_s=60)
            await cache.set(f"{number}", f"value {number}", ttl_s=60)
            assert await cache.get_two(f"pin:{number}", f"{number}") == ("1", f"value {number}")
            assert await cache.get(f"{number}") == f"value {number}"
        assert (cache.faults.describe_state(), cache.faults.counts) == ("ok", {})
        await cache.close()

    with contextlib.ExitStack() as stack:
        servers = []
        for number in range(node_count):
            folder = tmp_path / str(number)
            folder.mkdir()
            servers.append(stack.enter_context(run_redis(folder, "--cluster-enabled", "yes")))
        _join_cluster(*(server.port for server in servers))
        asyncio.run(main(servers[0].url))
