"""SIGHUP: a changed setting is either applied at once or named as needing a restart."""

import json
import logging
from typing import Any

import aiohttp
import pytest

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.factory import GENERATOR_TABLES
from querylift.plugin.proxy.settings_reload import APPLIED_WHILE_SERVING, reload_settings
from querylift.plugin.settings import Settings, parse_settings
from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.proxy_scenarios import BODY, run_with_proxy, send_search
from tests.helpers.upstream_stub import RunningProxy, StubEngine

LARGE_BODY = json.dumps({"query": {"match": {"text": "another page"}}, "ext": {"note": "x" * 200_000}}).encode()
PIT_BODY = json.dumps(BODY | {"pit": {"id": "p"}}).encode()
CHANGES: dict[str, Any] = {
    "engine": "http://127.0.0.1:9",
    "engine_username": "ann",
    "engine_password": "secret",
    "engine_ca_file": "/ca.pem",
    "engine_client_cert": "/cert.pem",
    "engine_client_key": "/key.pem",
    "engine_connect_timeout_s": 9,
    "listen": "127.0.0.1:9300",
    "tls_cert": "/cert.pem",
    "tls_key": "/key.pem",
    "admin": None,
    "admin_token": "secret",
    "admin_hosts": ["querylift"],
    "sniffing_address": "proxy.example:9280",
    "enabled": False,
    "workers": 2,
    "generator": "feedback",
    "budget_ms": 30,
    "max_body_bytes": 10,
    "pit_index": "docs",
    "index": {"other": {}},
    "cache": {"size": 7},
    "llama": {"slots": 7},
    "expander": {"threads": 7},
    "feedback": {"terms": 7},
    "http": {"model": "m"},
    "encoder": {"model": "m"},
    "aws": {"region": "eu-central-1"},
    "log": {"searches": True},
    "tracing": {"sample_share": 0.5},
}
"""Another value for every setting."""


def _change(settings: Settings, name: str) -> Settings:
    """Return `settings` with the setting `name` changed, and checked as a settings file is."""
    return settings.model_copy(update={name: getattr(parse_settings({name: CHANGES[name]}), name)})


def test_there_is_a_change_for_every_setting() -> None:
    assert CHANGES.keys() == Settings.model_fields.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_is_applied_or_named_in_a_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        settings = proxy.application.settings
        changed_settings = _change(settings, name)
        assert getattr(changed_settings, name) != getattr(settings, name)
        with caplog.at_level(logging.WARNING, logger="querylift"):
            await reload_settings(proxy.application, lambda: changed_settings)
        is_applied = getattr(proxy.application.settings, name) == getattr(changed_settings, name)
        assert caplog.messages == ([] if is_applied else [f"a restart is needed for: {name}"])
        assert is_applied == (name in APPLIED_WHILE_SERVING)
        if not is_applied:
            assert proxy.application.settings == settings

    run_with_proxy(check)


EFFECTS = [
    ("enabled", {}, "expanded", "skipped;off"),
    ("index", {}, "expanded", "skipped;index"),
    ("max_body_bytes", {}, "expanded", "skipped;too-large"),
    ("budget_ms", {}, "expanded", "late;budget"),
    ("pit_index", {"path": "/_search", "data": PIT_BODY}, "skipped;pit", "expanded"),
]


@pytest.mark.parametrize(("name", "request_options", "before", "after"), EFFECTS)
def test_an_applied_setting_has_its_effect_on_the_next_search(
    name: str, request_options: dict[str, Any], before: str, after: str
) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await send_search(client, proxy, **request_options))[1] == before
        await reload_settings(proxy.application, lambda: _change(proxy.application.settings, name))
        options = request_options or {"data": LARGE_BODY}
        assert (await send_search(client, proxy, **options))[1] == after

    expansion = Expansion(text="urlopen")
    generator = ScriptedGenerator({"download a page": expansion, "another page": expansion}, delay_s=0.2)
    run_with_proxy(check, generator=generator)


def test_a_reloaded_log_table_logs_the_next_search(caplog: pytest.LogCaptureFixture) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await reload_settings(proxy.application, lambda: _change(proxy.application.settings, "log"))
        with caplog.at_level(logging.INFO, logger="querylift.search"):
            await send_search(client, proxy)
        records = [json.loads(record.getMessage()) for record in caplog.records if record.name == "querylift.search"]
        assert [record["query_attributes"]["outcome"] for record in records] == ["expanded"]

    run_with_proxy(check)


def test_every_applied_setting_has_a_test_of_its_effect() -> None:
    tested_elsewhere = {"log", "admin_token", "admin_hosts", "sniffing_address", "generator", *GENERATOR_TABLES}
    assert {name for name, *_ in EFFECTS} | tested_elsewhere == APPLIED_WHILE_SERVING


def test_settings_that_cannot_be_read_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> Settings:
        raise SettingsError("querylift.toml is not TOML")

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        settings = proxy.application.settings
        await reload_settings(proxy.application, fail)
        assert proxy.application.settings is settings
        assert caplog.messages == ["the settings were not applied: querylift.toml is not TOML"]

    run_with_proxy(check)
