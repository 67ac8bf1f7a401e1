"""An engine with TLS that asks its clients for a certificate: everything that Querylift sends to it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from querylift.index_tools.engine import Engine
from querylift.plugin.engine.access import build_engine_access, build_ssl_context
from querylift.plugin.engine.facts import open_engine_facts
from querylift.plugin.errors import EngineError, SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.engine_reader import EngineReader
from querylift.plugin.settings import Settings, parse_settings
from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.certificates import CertificateFiles, make_certificate
from tests.helpers.proxy_scenarios import send_search
from tests.helpers.upstream_stub import StubEngine, answer_with, run_proxy, run_stub_engine

ANSWER = b'{"hits":{"hits":[]}}'


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def client_files(tmp_path: Path, authority: trustme.CA) -> CertificateFiles:
    return make_certificate(tmp_path / "client", authority=authority, name="querylift.internal")


def _demand_certificates(folder: Path, authority: trustme.CA) -> ssl.SSLContext:
    """Return the context of an engine that takes only clients with a certificate of `authority`."""
    files = make_certificate(folder / "engine", authority=authority)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.authority)
    context.load_cert_chain(files.certificate, files.key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def _with_engine(
    tls: ssl.SSLContext, values: dict[str, Any], check: Callable[[Settings, StubEngine], Awaitable[None]]
) -> None:
    """Run `check` with settings for an engine with this TLS context."""
    handler = answer_with(ANSWER, extra=b"content-type: application/json\r\n")
    async with run_stub_engine(handler, tls=tls) as engine, asyncio.timeout(20):
        await check(parse_settings({"engine": f"https://127.0.0.1:{engine.port}", **values}), engine)


def _name_files(files: CertificateFiles, *names: str) -> dict[str, Any]:
    paths = {
        "engine_ca_file": files.authority,
        "engine_client_cert": files.certificate,
        "engine_client_key": files.key,
    }
    return {name: str(paths[name]) for name in names or paths}


def test_searches_and_querylifts_own_requests_show_the_certificate(
    tmp_path: Path, authority: trustme.CA, client_files: CertificateFiles
) -> None:
    async def check(settings: Settings, engine: StubEngine) -> None:
        values = _name_files(client_files)
        generator = ScriptedGenerator({"download a page": Expansion(text="urlopen fetches")})
        async with run_proxy(settings.engine[0], generator, **values) as proxy, aiohttp.ClientSession() as client:
            assert (await send_search(client, proxy))[:2] == (200, "expanded")
            assert await proxy.application.upstream.find_failure(5) is None
        async with open_engine_facts(settings, timeout_s=5) as facts:
            assert await facts.get("/") == (200, {"hits": {"hits": []}})
        reader = EngineReader(settings.engine, build_engine_access(settings))
        await reader.start()
        assert await reader.search_documents("docs", {}) == []
        await reader.close()

        def count_with_engine() -> None:
            with Engine(settings) as own_client:
                own_client.call("POST", "/docs/_search", {})

        await asyncio.to_thread(count_with_engine)
        assert len(engine.requests) == 5

    tls = _demand_certificates(tmp_path, authority)
    asyncio.run(_with_engine(tls, _name_files(client_files), check))


def test_without_a_certificate_the_engine_is_not_reached_and_that_is_said(
    tmp_path: Path, authority: trustme.CA, client_files: CertificateFiles
) -> None:
    values = _name_files(client_files, "engine_ca_file")

    async def check(settings: Settings, engine: StubEngine) -> None:
        async with run_proxy(settings.engine[0], ScriptedGenerator({}), **values) as proxy:
            async with aiohttp.ClientSession() as client:
                assert (await send_search(client, proxy))[:2] == (502, "error;engine")

        def call_engine() -> None:
            with Engine(settings) as own_client:
                own_client.call("GET", "/")

        with pytest.raises(EngineError, match=r"check the URL, engine_ca_file and engine_client_cert$"):
            await asyncio.to_thread(call_engine)
        assert engine.requests == []

    asyncio.run(_with_engine(_demand_certificates(tmp_path, authority), values, check))


def test_an_engine_whose_certificate_comes_from_another_authority_gets_nothing(
    tmp_path: Path, authority: trustme.CA, client_files: CertificateFiles
) -> None:
    other_files = make_certificate(tmp_path / "other")
    values = {**_name_files(client_files), "engine_ca_file": str(other_files.authority)}

    async def check(settings: Settings, engine: StubEngine) -> None:
        async with run_proxy(settings.engine[0], ScriptedGenerator({}), **values) as proxy:
            async with aiohttp.ClientSession() as client:
                assert (await send_search(client, proxy))[0] == 502
        assert engine.requests == []

    asyncio.run(_with_engine(_demand_certificates(tmp_path, authority), values, check))


def test_a_certificate_without_an_authority_leaves_the_systems_own_authorities(client_files: CertificateFiles) -> None:
    values = _name_files(client_files, "engine_client_cert", "engine_client_key")
    context = build_ssl_context(parse_settings(values))
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert build_ssl_context(parse_settings({})) is True


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"engine_client_cert": "c.pem"}, "engine_client_cert is 'c.pem', and engine_client_key is not set; set both or neither"),
        ({"engine_client_key": "k.pem"}, "engine_client_key is 'k.pem', and engine_client_cert is not set; set both or neither"),
        (
            {"engine_client_cert": "gone.pem", "engine_client_key": "k.pem"},
            "engine_client_cert is 'gone.pem', which cannot be read (No such file or directory); name another file",
        ),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used_are_told_in_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build_ssl_context(parse_settings(values))
    assert str(caught.value) == sentence
