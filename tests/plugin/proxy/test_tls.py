"""TLS with clients: certificates, handshakes that never end, and the same bounds as without TLS."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from querylift.index_tools.proxy_process import find_free_ports, format_toml, stop_process
from querylift.plugin.errors import SettingsError
from querylift.plugin.proxy.connection_guard import ConnectionLimits
from querylift.plugin.settings import parse_settings
from querylift.plugin.tls import open_server_certificate
from tests.helpers.certificates import CertificateFiles, make_certificate
from tests.helpers.proxy_scenarios import BODY, Check, run_with_proxy
from tests.helpers.raw_client import connect_raw
from tests.helpers.upstream_stub import Handler, ReceivedRequest, RunningProxy, StubEngine, answer_with, run_stub_engine

GET_DOCUMENT = b"GET /docs/_doc/1 HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    return make_certificate(tmp_path / "tls")


def _run_with_tls(
    files: CertificateFiles, check: Check, handler: Handler | None = None, *, limits: ConnectionLimits | None = None
) -> None:
    limits = limits or ConnectionLimits()
    run_with_proxy(check, handler, limits=limits, tls_cert=str(files.certificate), tls_key=str(files.key))


async def _search(client: aiohttp.ClientSession, url: str, files: CertificateFiles) -> tuple[int, str]:
    async with client.post(f"{url}/docs/_search", json=BODY, ssl=files.client_context) as answer:
        await answer.read()
        return answer.status, answer.headers["X-Querylift"]


async def _wait_until(server_has: object, count: int) -> None:
    async with asyncio.timeout(5):
        while len(server_has) != count:  # type: ignore[arg-type]
            await asyncio.sleep(0.01)


def test_a_search_over_tls_is_expanded_and_its_protocol_is_http_1_1(files: CertificateFiles) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert await _search(client, proxy.url, files) == (200, "expanded")
        assert b"urlopen fetches" in engine.requests[0].body
        async with connect_raw(proxy.port, tls=files.client_context) as raw:
            tls = raw.writer.get_extra_info("ssl_object")
            assert (tls.selected_alpn_protocol(), tls.version()) == ("http/1.1", "TLSv1.3")
            await raw.send_segments([GET_DOCUMENT[:9], GET_DOCUMENT[9:]])
            answer = await raw.read_answer()
            assert answer is not None and answer.status == 200

    _run_with_tls(files, check)


def test_a_client_that_does_not_trust_the_certificate_and_one_without_tls_get_nothing(
    files: CertificateFiles, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await client.get(proxy.url)
        async with connect_raw(proxy.port) as raw:
            await raw.send_segments([GET_DOCUMENT])
            assert await raw.read_answer() is None
        assert await _search(client, proxy.url, files) == (200, "expanded")
        assert len(engine.requests) == 1

    _run_with_tls(files, check)
    assert caplog.messages == []


# -- handshakes that never end ------------------------------------------------------------------------------------------


def test_clients_that_never_begin_their_handshake_make_room_for_others(files: CertificateFiles) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with AsyncExitStack() as stack:
            silent = [await stack.enter_async_context(connect_raw(proxy.port)) for _ in range(20)]
            await _wait_until(proxy.server.server_state.connections, 3)
            assert await _search(client, proxy.url, files) == (200, "expanded")
            assert await silent[0].is_closed_by_server()

    _run_with_tls(files, check, limits=ConnectionLimits(connections=3))


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"])
def test_a_handshake_has_as_much_time_as_the_head_of_a_request(files: CertificateFiles, sent: bytes) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        connections = proxy.server.server_state.connections
        async with connect_raw(proxy.port) as raw:
            await raw.send_segments([sent])
            await _wait_until(connections, 1)
            for now_s in (0, 29):
                proxy.server.guard.end_stalled_waits(connections, now_s)  # type: ignore[arg-type]
                assert len(connections) == 1
            proxy.server.guard.end_stalled_waits(connections, 31)  # type: ignore[arg-type]
            assert await raw.is_closed_by_server()
            await _wait_until(connections, 0)

    _run_with_tls(files, check)


# -- the same bounds as without TLS -------------------------------------------------------------------------------------


def test_a_refusal_reaches_its_client(files: CertificateFiles) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with connect_raw(proxy.port, tls=files.client_context) as raw:
            await raw.send_segments([b"GET / HTTP/1.1\r\nX-A: " + b"a" * 40_000])
            answer = await raw.read_answer()
            assert answer is not None and answer.status == 431
        assert engine.requests == []

    _run_with_tls(files, check)


def test_a_client_that_says_its_end_has_left_and_its_search_ends(
    files: CertificateFiles, caplog: pytest.LogCaptureFixture
) -> None:
    async def never_answer(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)

    def send_and_end(port: int) -> None:
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            files.client_context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
        ):
            tls.sendall(GET_DOCUMENT)
            tls.unwrap()

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await asyncio.to_thread(send_and_end, proxy.port)
        await asyncio.wait_for(engine.client_hung_up.wait(), 5)
        await _wait_until(proxy.server.server_state.connections, 0)

    _run_with_tls(files, check, never_answer)
    assert caplog.messages == []


def test_an_answer_that_is_read_slowly_arrives_whole_and_one_that_is_not_read_is_cut(files: CertificateFiles) -> None:
    answer_body = b"x" * 20_000_000

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        connections = proxy.server.server_state.connections
        guard = proxy.server.guard
        async with connect_raw(proxy.port, tls=files.client_context) as raw:
            await raw.send_segments([GET_DOCUMENT])
            await raw.reader.readuntil(b"\r\n\r\n")
            for step in range(40):
                await raw.reader.readexactly(500_000)
                await asyncio.sleep(0.005)  # the kernel holds several of these parts
                guard.end_stalled_waits(connections, step * 11)  # type: ignore[arg-type]
            assert len(connections) == 1
        await _wait_until(connections, 0)
        async with connect_raw(proxy.port, tls=files.client_context) as raw:
            engine.client_hung_up.clear()
            await raw.send_segments([GET_DOCUMENT])
            await asyncio.sleep(0.5)  # until every buffer on the way is full
            for now_s, count in ((10_000, 1), (10_059, 1), (10_061, 0)):
                guard.end_stalled_waits(connections, now_s)  # type: ignore[arg-type]
                await _wait_until(connections, count)
            await asyncio.wait_for(engine.client_hung_up.wait(), 5)

    _run_with_tls(files, check, answer_with(answer_body))


def test_a_body_waits_for_an_engine_that_reads_slowly_and_arrives_whole(files: CertificateFiles) -> None:
    body = bytes(range(256)) * 80_000

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async def parts() -> object:
            for start in range(0, len(body), 1_000_000):
                yield body[start : start + 1_000_000]

        async with client.post(f"{proxy.url}/docs/_bulk", data=parts(), ssl=files.client_context) as answer:
            assert answer.status == 200
        assert engine.requests[0].body == body

    _run_with_tls(files, check)


def test_a_server_that_stops_does_not_wait_for_the_end_of_idle_clients(files: CertificateFiles) -> None:
    """A client that keeps a connection in a pool reads nothing from it, and so says no end of its own."""

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        connections = proxy.server.server_state.connections
        with await asyncio.to_thread(_connect_blocking, proxy.port, files):
            await _wait_until(connections, 1)
            for connection in list(connections):
                connection.shutdown()
            await _wait_until(connections, 0)

    _run_with_tls(files, check)


def _connect_blocking(port: int, files: CertificateFiles) -> ssl.SSLSocket:
    connection = socket.create_connection(("127.0.0.1", port))
    return files.client_context.wrap_socket(connection, server_hostname="127.0.0.1")


# -- files that cannot be used ------------------------------------------------------------------------------------------


def _write_unusable_files(folder: Path, fault: str) -> dict[str, str]:
    """Return the settings that name files with this fault."""
    files, other_files = make_certificate(folder / "one"), make_certificate(folder / "other")
    settings = {"tls_cert": str(files.certificate), "tls_key": str(files.key)}
    if fault == "only one":
        del settings["tls_key"]
    elif fault == "no file":
        settings["tls_cert"] = str(folder / "gone.pem")
    elif fault == "another key":
        settings["tls_key"] = str(other_files.key)
    elif fault == "no certificate":
        files.certificate.write_text("hello")
    elif fault == "a password":
        key = serialization.load_pem_private_key(files.key.read_bytes(), None)
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        files.key.write_bytes(key.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"x")))
    return settings


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("only one", "tls_cert is '{cert}', and tls_key is not set; set both or neither"),
        ("no file", "tls_cert is '{cert}', which cannot be read (No such file or directory); name another file"),
        (
            "another key",
            "tls_key is '{key}', which is not the key of tls_cert '{cert}'; name the files of one certificate",
        ),
        ("a password", "tls_key is '{key}', a key with a password; name a key without one"),
        (
            "no certificate",
            "tls_cert is '{cert}' and tls_key is '{key}', which are no certificate and key; name PEM files",
        ),
    ],
)
def test_files_that_cannot_be_used_are_told_in_one_sentence(tmp_path: Path, fault: str, sentence: str) -> None:
    values = _write_unusable_files(tmp_path, fault)
    with pytest.raises(SettingsError) as caught:
        open_server_certificate(parse_settings(values))
    assert str(caught.value) == sentence.format(cert=values["tls_cert"], key=values.get("tls_key"))


def test_serve_stops_with_that_sentence(tmp_path: Path) -> None:
    (tmp_path / "querylift.toml").write_text('tls_cert = "cert.pem"\n')
    command = [sys.executable, "-m", "querylift", "serve"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    sentence = "querylift: tls_cert is 'cert.pem', and tls_key is not set; set both or neither\n"
    assert (result.returncode, result.stderr) == (2, sentence)


# -- the whole process --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Serve:
    """`querylift serve` as a process, with TLS on both addresses."""

    port: int
    admin_port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def urls(self) -> tuple[str, str]:
        """A URL of the admin page and one of the engine through the proxy."""
        return f"https://127.0.0.1:{self.admin_port}/_querylift/health", f"https://127.0.0.1:{self.port}/docs/_count"

    async def wait_for_log(self, text: str, *, count: int = 1) -> None:
        async with asyncio.timeout(30):
            while self.log.read_text().count(text) < count:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def _run_serve(
    folder: Path, files: CertificateFiles, *, file_limit: int = 1024, workers: int = 1
) -> AsyncIterator[Serve]:
    """Yield a proxy that may open so many files, in front of an engine that answers everything."""
    port, admin_port = find_free_ports(2)
    async with run_stub_engine(answer_with()) as engine:
        addresses = {"listen": f"127.0.0.1:{port}", "admin": f"127.0.0.1:{admin_port}"}
        settings = {"engine": f"http://127.0.0.1:{engine.port}", "index": {"docs": {}}, "workers": workers}
        config = format_toml(addresses | settings | {"tls_cert": str(files.certificate), "tls_key": str(files.key)})
        (folder / "querylift.toml").write_text(config)
        with (folder / "log").open("wb") as stream:
            limit = ["bash", "-c", f'ulimit -n {file_limit}; exec "$@"', "bash"]
            command = [*limit, sys.executable, "-m", "querylift", "serve"]
            process = subprocess.Popen(command, cwd=folder, stdout=stream, stderr=stream)
        serve = Serve(port, admin_port, process, folder / "log")
        try:
            await serve.wait_for_log(f"serving https://127.0.0.1:{port} -> ")
            yield serve
        finally:
            await asyncio.to_thread(stop_process, process)
    assert process.returncode == 0


def test_a_process_with_128_files_answers_beside_200_clients_that_never_begin_their_handshake(tmp_path: Path) -> None:
    async def main() -> None:
        files = make_certificate(tmp_path)
        async with (
            _run_serve(tmp_path, files, file_limit=128) as serve,
            AsyncExitStack() as stack,
            aiohttp.ClientSession() as client,
        ):
            for _ in range(200):
                await stack.enter_async_context(connect_raw(serve.port))
            for url in serve.urls:
                async with asyncio.timeout(10), client.get(url, ssl=files.client_context) as answer:
                    assert answer.status == 200

    asyncio.run(main())


@pytest.mark.parametrize(("workers", "processes"), [(1, 1), (2, 3)])
def test_sighup_reads_a_new_certificate_for_both_addresses_and_loses_no_connection(
    workers: int, processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUERYLIFT_CACHE", str(tmp_path / "cache"))

    async def main() -> None:
        authority = trustme.CA()
        files = make_certificate(tmp_path, authority=authority)
        async with (
            _run_serve(tmp_path, files, workers=workers) as serve,
            aiohttp.ClientSession() as client,
            connect_raw(serve.port, tls=files.client_context) as raw,
        ):
            for url in serve.urls:
                async with client.get(url, ssl=files.client_context) as answer:
                    assert answer.status == 200
            first = await _read_served_certificate(serve.port)
            make_certificate(tmp_path, authority=authority)
            serve.process.send_signal(signal.SIGHUP)
            await serve.wait_for_log("the certificate was read again", count=processes)
            second = await _read_served_certificate(serve.port)
            assert second != first
            assert await _read_served_certificate(serve.admin_port) == second
            files.key.write_text("broken")
            serve.process.send_signal(signal.SIGHUP)
            refusal = "the certificate was not read again, and the old one stays: tls_cert is"
            await serve.wait_for_log(refusal, count=processes)
            assert await _read_served_certificate(serve.port) == second
            await raw.send_segments([GET_DOCUMENT])
            answer_on_old_connection = await raw.read_answer()
            assert answer_on_old_connection is not None and answer_on_old_connection.status == 200

    asyncio.run(main())


async def _read_served_certificate(port: int) -> str:
    return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
