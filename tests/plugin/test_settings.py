"""Settings are checked when they are read. A wrong setting is named in one sentence."""

import math
from pathlib import Path
from typing import Any

import pytest

from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import Settings, load_settings, parse_settings, replace_generator


def _load_text(tmp_path: Path, text: str, environment: dict[str, str] | None = None) -> Settings:
    file = tmp_path / "querylift.toml"
    file.write_text(text, encoding="utf-8")
    return load_settings(file, environment or {})


def test_a_file_with_one_index_table_is_enough(tmp_path: Path) -> None:
    settings = _load_text(tmp_path, 'engine = "http://127.0.0.1:9200/"\n[index.docs]\nweight = 0.3\n')
    assert settings.engine == ("http://127.0.0.1:9200",)
    assert settings.index["docs"].policy.weight == 0.3
    assert settings.index["docs"].policy.mode == "boost"


def test_without_an_index_table_nothing_is_expanded() -> None:
    assert parse_settings({}).find_index_settings("docs") is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("budget_ms = -1", "budget_ms is -1"),
        ('engine = "localhost"', "use a URL like http://127.0.0.1:9200"),
        ('engine = "http://u:p@h"', "engine_username and engine_password"),
        ("engine = []", "engine is []: use a URL like http://127.0.0.1:9200"),
        ('engine = ["http://a:9200", "b:9200"]', "engine is ['http://a:9200', 'b:9200']: use a URL like"),
        ('engine = ["http://a:9200", "http://a:9200/"]', "http://a:9200 stands there twice; remove one"),
        (
            'engine = "http://a:9200, https://b:9200"',
            "http://a:9200 and https://b:9200 differ in more than host and port",
        ),
        ('engine = ["http://a/es", "http://b"]', "http://a/es and http://b differ in more than host and port"),
        ('listen = "9280"', "use HOST:PORT"),
        (
            'sniffing_address = "http://a"',
            "sniffing_address is 'http://a': 'http://a' is not an address; use HOST:PORT",
        ),
        ("[index.docs]\nweight = 20", "index.docs.weight is 20"),
        ('[index.docs]\nmode = "replace"', "index.docs.mode is 'replace'"),
        ("[index.docs]\nwieght = 1", "index.docs.wieght is not a setting"),
        ('[index."a,b"]\nweight = 1', "is not an index name"),
        ("budget_ms = ", "is not TOML"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as raised:
        _load_text(tmp_path, text)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "querylift.toml" in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.toml does not exist"):
        load_settings(tmp_path / "gone.toml", {})


def test_a_wrong_password_setting_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as raised:
        _load_text(tmp_path, "engine_password = 5")
    assert "5" not in str(raised.value).split("querylift.toml")[1]


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    environment = {"QUERYLIFT_BUDGET_MS": "50", "QUERYLIFT_CACHE__PIN_S": "7", "QUERYLIFT_ENABLED": "false"}
    settings = _load_text(tmp_path, "budget_ms = 300\n[cache]\nsize = 9\n", environment)
    assert (settings.budget_ms, settings.cache.pin_s, settings.cache.size, settings.enabled) == (50, 7, 9, False)


def test_an_engine_has_one_url_or_one_for_each_node(tmp_path: Path) -> None:
    nodes = ("http://a:9200", "http://b:9200")
    assert _load_text(tmp_path, 'engine = ["http://a:9200/", "http://b:9200"]').engine == nodes
    assert _load_text(tmp_path, "", {"QUERYLIFT_ENGINE": "http://a:9200,http://b:9200"}).engine == nodes
    assert parse_settings({"engine": nodes}).engine_text == "http://a:9200, http://b:9200"


def test_an_adapter_can_be_set_in_the_file_or_the_environment(tmp_path: Path) -> None:
    assert _load_text(tmp_path, "").llama.adapter is None
    text = '[llama]\nadapter = "a.gguf"\n'
    assert _load_text(tmp_path, text).llama.adapter == Path("a.gguf")
    assert _load_text(tmp_path, text, {"QUERYLIFT_LLAMA__ADAPTER": "b.gguf"}).llama.adapter == Path("b.gguf")


@pytest.mark.parametrize(
    "name", ["CACHE", "PORT", "SERVICE_HOST", "PORT_9280_TCP", "ENGINE__X", "CACHE__X", "INDEX__A__WEIGHT"]
)
def test_a_variable_with_our_prefix_that_names_no_setting_is_ignored(name: str) -> None:
    assert load_settings(None, {f"QUERYLIFT_{name}": "tcp://10.0.0.1:1"}) == Settings()


def test_a_password_in_a_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    for key in ("engine", "generator"):
        with pytest.raises(SettingsError) as raised:
            _load_text(tmp_path, f'{key} = "https://admin:s3cret@host:9200"')
        assert "s3cret" not in str(raised.value)
        assert f"{key} is given: put the" in str(raised.value)


def test_an_index_that_is_switched_off_is_not_reached_through_all_or_an_overlapping_pattern() -> None:
    settings = parse_settings({"index": {"docs-*": {"enabled": False}, "*": {"weight": 0.3}}})
    for expression in ("_all", "*", "*s", "d*", "docs*"):
        assert settings.find_index_settings(expression) is None
    assert getattr(settings.find_index_settings("logs*"), "weight", None) == 0.3


@pytest.mark.parametrize(
    ("expression", "weight"),
    [
        ("docs", 0.1),
        ("logs-2026", 0.3),
        ("logs-*", 0.3),
        ("docs,docs", 0.1),
        ("docs,logs-1", None),  # two tables: the weight is ambiguous
        ("docs,other", None),
        ("other", None),
        ("*", None),  # matches indices with tables of their own
        ("d*", None),
        ("_all", None),
        ("logs-2*,logs-3*", 0.3),
        ("*gs-1", None),  # may match logs-1, and docs-1, which has no table
        ("docs,-logs-1", None),
        ("", None),
        (None, None),
    ],
)
def test_one_table_or_none_governs_an_index_expression(expression: str | None, weight: float | None) -> None:
    settings = parse_settings({"index": {"docs": {"weight": 0.1}, "logs-*": {"weight": 0.3}}})
    table = settings.find_index_settings(expression)
    assert (table.weight if table else None) == weight


def test_an_index_that_is_switched_off_is_not_reached_through_a_pattern() -> None:
    settings = parse_settings({"index": {"logs-secret": {"enabled": False}, "logs-*": {}}})
    assert settings.find_index_settings("logs-*") is None
    assert getattr(settings.find_index_settings("logs-secret"), "enabled", None) is False
    assert getattr(settings.find_index_settings("logs-open"), "enabled", None) is True


def test_a_table_takes_generator_budget_and_cache_lifetime_from_the_top_level_unless_it_has_its_own() -> None:
    tables = {"a": {}, "b": {"generator": ["table:b.jsonl", "feedback"], "budget_ms": 20, "cache_ttl_s": 60}}
    settings = parse_settings({"generator": "llama", "budget_ms": 300, "cache": {"ttl_s": 900}, "index": tables})
    found = {name: settings.find_index_settings(name) for name in tables}
    assert {name: (t.generator, t.budget_ms, t.cache_ttl_s) for name, t in found.items() if t is not None} == {
        "a": (("llama",), 300, 900),
        "b": (("table:b.jsonl", "feedback"), 20, 60),
    }
    assert settings.list_generator_names() == ("llama", "table:b.jsonl", "feedback")
    assert settings.find_generator_names("unknown") == ("llama",)


def test_several_indices_are_expanded_together_when_one_writes_out_the_top_levels_values() -> None:
    tables = {"a": {}, "b": {"generator": "llama", "budget_ms": 300}, "c": {"budget_ms": 20}}
    settings = parse_settings({"generator": "llama", "budget_ms": 300, "index": tables})
    assert settings.find_index_settings("a,b") is not None
    assert settings.find_index_settings("a,c") is None


def test_a_generator_that_replaces_the_settings_one_serves_every_index() -> None:
    settings = parse_settings({"generator": "llama", "index": {"a": {"generator": "feedback"}, "b": {}}})
    replaced = replace_generator(settings, "none")
    assert [replaced.find_generator_names(index) for index in ("a", "b", "c")] == [("none",)] * 3


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"generator": []}, "index.a.generator is []: it names no generator; name one, or 'none'"),
        (
            {"generator": ["none", "llama"]},
            "index.a.generator is ['none', 'llama']: 'none' stands in a list with others; remove it, or write 'none' alone",
        ),
        (
            {"generator": ["llama", "llama"]},
            "index.a.generator is ['llama', 'llama']: it names a generator twice; name each one once",
        ),
        ({"generator": 3}, "index.a.generator is 3: name a generator, or a list of them"),
        ({"fields": "title"}, "index.a.fields is 'title': write a list, like [\"title\"]"),
        ({"budget_ms": -1}, "index.a.budget_ms is -1: input should be greater than or equal to 0"),
        ({"cache_ttl_s": 0}, "index.a.cache_ttl_s is 0: input should be greater than 0"),
        ({"cache_ttl_s": 1e30}, "index.a.cache_ttl_s is 1e+30: input should be less than or equal to 315360000"),
        ({"budget_ms": math.inf}, "index.a.budget_ms is inf: input should be a finite number"),
    ],
)
def test_a_wrong_value_in_an_index_table_is_one_sentence(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as raised:
        parse_settings({"index": {"a": table}})
    assert str(raised.value) == f"settings: {sentence}"


def test_a_file_that_an_editor_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    assert _load_text(tmp_path, "\ufeffbudget_ms = 50\n").budget_ms == 50


def test_an_empty_address_switches_the_admin_page_off() -> None:
    assert parse_settings({"admin": ""}).admin is None


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"engine": "http://a:99999"}, "engine is 'http://a:99999': use a URL like http://127.0.0.1:9200"),
        ({"engine": "http://[::1:9200"}, "engine is 'http://[::1:9200': use a URL like http://127.0.0.1:9200"),
        ({"engine": "http://a:9200/?x=1"}, "engine is 'http://a:9200/?x=1': leave out what follows ? or # in the URL"),
        ({"engine": 9}, "engine is 9: write a text, or a list of texts"),
        ({"engine_connect_timeout_s": math.inf}, "engine_connect_timeout_s is inf: input should be a finite number"),
        (
            {"tracing": {"endpoint": "http://x:99999"}},
            "tracing.endpoint is 'http://x:99999': use a URL like http://collector:4318",
        ),
        (
            {"sniffing_address": "http://x:9"},
            "sniffing_address is 'http://x:9': 'http://x:9' is not an address; use HOST:PORT, like 127.0.0.1:9280",
        ),
        (
            {"listen": "[::1:9280"},
            "listen is '[::1:9280': '[::1:9280' is not an address; use HOST:PORT, like 127.0.0.1:9280",
        ),
        (
            {"listen": "h:\u00b2"},
            "listen is 'h:\u00b2': 'h:\u00b2' is not an address; use HOST:PORT, like 127.0.0.1:9280",
        ),
        ({"aws": {"regoin": "eu-central-1"}}, "aws.regoin is not a setting; docs/reference/settings.md lists them"),
    ],
)
def test_an_address_or_a_number_that_could_not_work_is_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as raised:
        parse_settings(values)
    assert str(raised.value) == f"settings: {sentence}"
