"""A setting that is wrong is said when `serve` starts, in one sentence that names it."""

import asyncio
import logging
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiohttp import web

from querylift.index_tools.engine import Engine
from querylift.index_tools.proxy_process import find_free_ports, run_proxy
from querylift.plugin.errors import SettingsError
from querylift.plugin.proxy.address_check import check_addresses
from querylift.plugin.proxy.engine_check import check_settings_on_engine
from querylift.plugin.settings import parse_settings
from tests.helpers.expanders import create_index, remove_indices

# -- addresses ----------------------------------------------------------------------------------------------------------


def _find_address_error(**settings: object) -> str:
    with pytest.raises(SettingsError) as caught:
        asyncio.run(check_addresses(parse_settings(settings)))
    return str(caught.value)


@pytest.mark.parametrize(
    ("engine", "listen"),
    [
        ("http://127.0.0.1:{port}", "127.0.0.1:{port}"),
        ("http://localhost:{port}/", "127.0.0.1:{port}"),
        ("http://127.0.0.1:{port}", "localhost:{port}"),
        ("http://127.0.0.1:{port}", "0.0.0.0:{port}"),
        ("http://0.0.0.0:{port}", "127.0.0.1:{port}"),
        ("http://[::1]:{port}", "[::]:{port}"),
        ("http://127.0.0.2:{port}", "0.0.0.0:{port}"),
    ],
)
def test_an_engine_that_is_querylift_itself_is_refused(engine: str, listen: str) -> None:
    port = find_free_ports(1)[0]
    error = _find_address_error(engine=engine.format(port=port), listen=listen.format(port=port))
    assert "Querylift would forward to itself" in error
    error = _find_address_error(engine=engine.format(port=port), admin=listen.format(port=port), listen="127.0.0.1:1")
    assert f"admin is '{listen.format(port=port)}'" in error
    error = _find_address_error(
        engine=["http://127.0.0.1:9", engine.format(port=port)], listen=listen.format(port=port)
    )
    assert f"engine is '{engine.format(port=port).rstrip('/')}'" in error


def test_an_engine_on_another_address_with_the_same_port_is_taken() -> None:
    port, other_port = find_free_ports(2)
    own_addresses = {"listen": f"127.0.0.1:{port}", "admin": f"127.0.0.1:{other_port}"}
    for engine in (f"http://127.0.0.2:{port}", "http://no-such-host.invalid:9280"):
        asyncio.run(check_addresses(parse_settings({"engine": engine, **own_addresses})))


def test_an_address_in_use_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken_socket:
        admin = f"127.0.0.1:{taken_socket.getsockname()[1]}"
        (tmp_path / "querylift.toml").write_text(
            f'admin = "{admin}"\ngenerator = "table:gone.jsonl"\n', encoding="utf-8"
        )
        command = [sys.executable, "-m", "querylift", "serve"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (
        2, f"querylift: cannot listen on {admin}: Address already in use; name another address\n"
    )  # fmt: skip


def test_one_address_for_both_servers_is_said() -> None:
    address = f"127.0.0.1:{find_free_ports(1)[0]}"
    assert f"cannot listen on {address}" in _find_address_error(listen=address, admin=address)


# -- indices and fields -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine_url(opensearch: str) -> str:
    """An engine with an index and an alias of it."""
    with Engine(parse_settings({"engine": opensearch})) as engine:
        remove_indices(engine, "start-products-1")
        text = {"type": "text"}
        properties = {"title": text | {"fields": {"std": text}}, "author": {"properties": {"name": text}}}
        create_index(engine, "start-products-1", properties)
        engine.call(
            "POST", "/_aliases", {"actions": [{"add": {"index": "start-products-1", "alias": "start-products"}}]}
        )
    return opensearch


def _list_warnings(caplog: pytest.LogCaptureFixture, **settings: object) -> list[str]:
    with caplog.at_level(logging.WARNING):
        asyncio.run(check_settings_on_engine(parse_settings(settings)))
    return [record.getMessage() for record in caplog.records if record.name == "querylift"]


@pytest.mark.engine
@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        ({"index": {"start-products": {"fields": ["title", "title.std", "author", "tit*"]}, "start-*": {}}}, None),
        ({"index": {"start-products": {}}, "generator": "feedback:title"}, None),
        (
            {"index": {"start-prodcuts": {}}},
            "[index.'start-prodcuts']: the engine has no index or alias of this name; did you mean 'start-products'?",
        ),
        (
            {"index": {"nothing-like-it-*": {"enabled": False}}},
            "[index.'nothing-like-it-*']: the engine has no index or alias of this name; create it, or correct the name",
        ),
        (
            {"index": {"start-products": {"fields": ["titel"]}}},
            "fields of [index.'start-products']: start-products has no field 'titel'; did you mean 'title'?",
        ),
        (
            {"index": {"start-products": {}}, "generator": "feedback", "feedback": {"field": "xyz"}},
            "feedback.field: start-products has no field 'xyz'; correct the name",
        ),
        (
            {"index": {"start-*": {}, "start-products": {"weight": 0.1}}},
            "[index.'start-products'] never applies, because a table before it matches the same names; put it first",
        ),
        (
            {"index": {"start-products": {}}, "pit_index": "products"},
            "pit_index is 'products', which no single table governs; name one index that has a table",
        ),
    ],
)
def test_a_name_that_the_engine_does_not_have_is_one_warning(
    engine_url: str, caplog: pytest.LogCaptureFixture, settings: dict[str, object], warning: str | None
) -> None:
    assert _list_warnings(caplog, engine=engine_url, **settings) == ([warning] if warning else [])


def test_an_engine_that_is_down_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    (warning,) = _list_warnings(caplog, engine="http://127.0.0.1:9", index={"a": {}, "b": {"fields": ["title"]}})
    assert warning.startswith(
        "not all indices and fields in the settings were checked: the engine at http://127.0.0.1:9 does not answer ("
    )


@pytest.mark.engine
def test_settings_that_are_read_again_are_checked_again(engine_url: str) -> None:
    with run_proxy({"engine": engine_url, "index": {"start-products": {}}}) as proxy:
        text = proxy.config.read_text().replace("start-products", "start-prodcuts")
        proxy.config.write_text(text)
        proxy.process.send_signal(signal.SIGHUP)
        for _ in range(500):
            if re.search(r"WARNING querylift .*did you mean 'start-products'\?", proxy.log.read_text()):
                return
            time.sleep(0.02)
        raise AssertionError(proxy.log.read_text())


def test_a_boost_in_the_fields_of_an_index_is_refused() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings({"index": {"docs": {"fields": ["title^3"]}}})
    assert "write 'title' in place of 'title^3'; a search brings its own boosts" in str(caught.value)


# -- the account --------------------------------------------------------------------------------------------------------


async def _check_with_secured_engine(**settings: object) -> None:
    """Check against an engine that knows one account, and forbids it one index."""

    async def answer(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Basic YW5uOnM=":  # ann:s
            return web.json_response({}, status=401)
        return web.json_response({"fields": {}}, status=403 if request.path.startswith("/secret/") else 200)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        engine = f"http://127.0.0.1:{runner.addresses[0][1]}"
        await check_settings_on_engine(parse_settings({"engine": engine, **settings}))
    finally:
        await runner.cleanup()


def test_a_wrong_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(SettingsError) as caught:
        asyncio.run(_check_with_secured_engine(engine_username="ann", engine_password="wrong-s3cret"))
    assert str(caught.value).startswith("engine_username is 'ann', and the engine at http://127.0.0.1:")
    assert "s3cret" not in str(caught.value)


def test_an_engine_that_wants_an_account_is_a_warning_when_none_is_set(caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(_check_with_secured_engine(index={"docs": {}}))
    assert "asks for an account (status 401); set engine_username and engine_password" in caplog.text


def test_an_index_that_the_account_may_not_see_does_not_hide_the_others(caplog: pytest.LogCaptureFixture) -> None:
    settings = {"index": {"secret": {}, "docs": {"fields": ["titel"]}}}
    asyncio.run(_check_with_secured_engine(engine_username="ann", engine_password="s", **settings))
    assert caplog.messages == [
        "fields of [index.'docs']: docs has no field 'titel'; correct the name",
        "not all indices and fields in the settings were checked: "
        "the engine answered with status 403 about the index 'secret'",
    ]
