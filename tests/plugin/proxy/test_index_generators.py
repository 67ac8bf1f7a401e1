"""Generators of several indices in one proxy, and what SIGHUP does with them, with real files."""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from querylift.plugin.fast_expander.expander_folder import RECORD_FILE
from querylift.plugin.proxy.engine_check import list_ineffective_tables
from querylift.plugin.proxy.settings_reload import reload_settings
from querylift.plugin.settings import Settings, parse_settings
from tests.helpers.expanders import remove_document_ids, write_expander, write_tiny_encoder
from tests.helpers.proxy_scenarios import RAW_BODY, run_with_proxy, send_search
from tests.helpers.upstream_stub import RunningProxy, StubEngine


def _write_table(path: Path, text: str) -> str:
    """Write a table that expands the query of the searches by `text`, and return the name of its generator."""
    path.write_text(json.dumps({"query": "download a page", "text": text}) + "\n", encoding="utf-8")
    return f"table:{path}"


def _change(proxy: RunningProxy, **values: Any) -> Callable[[], Settings]:
    """Return a function that reads the proxy's settings with other values."""
    settings = proxy.application.settings
    return lambda: parse_settings({**settings.model_dump(), **values})


async def _send(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine, index: str) -> tuple[str, str]:
    """Search an index through the proxy. Return the outcome, and the text that the engine got beside the query."""
    outcome = (await send_search(client, proxy, path=f"/{index}/_search"))[1]
    query = json.loads(engine.requests[-1].body)["query"]
    return outcome, query["bool"]["should"][0]["match"]["text"]["query"] if "bool" in query else ""


def test_each_index_has_its_own_generator_and_several_share_an_open_one(tmp_path: Path) -> None:
    products, jobs = (_write_table(tmp_path / f"{name}.jsonl", f"{name} words") for name in ("products", "jobs"))
    tables = {
        "products": {"generator": products},
        "help": {"generator": products},
        "jobs": {"generator": jobs},
        "docs": {},
    }

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert await _send(client, proxy, engine, "products") == ("expanded", "products words")
        assert await _send(client, proxy, engine, "help") == ("cached", "products words")
        assert await _send(client, proxy, engine, "jobs") == ("expanded", "jobs words")
        assert await _send(client, proxy, engine, "docs") == ("expanded", "urlopen fetches")
        assert await _send(client, proxy, engine, "products,help") == ("cached", "products words")
        assert await _send(client, proxy, engine, "products,jobs") == ("skipped;index", "")
        assert len(proxy.application.brokers.generators) == 3

    run_with_proxy(check, index=tables)


def test_each_index_has_its_own_time_budget_also_in_one_msearch(tmp_path: Path) -> None:
    tables = {"docs": {}, "quick": {"budget_ms": 0}}
    lines = [b'{"index":"docs"}', RAW_BODY, b'{"index":"quick"}', RAW_BODY, b""]

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await _send(client, proxy, engine, "quick"))[0] == "late;budget"
        assert (await _send(client, proxy, engine, "docs"))[0] == "expanded"
        headers = {"Content-Type": "application/x-ndjson"}
        await send_search(client, proxy, path="/_msearch", data=b"\n".join(lines), headers=headers)
        sent = engine.requests[-1].body.split(b"\n")
        assert b"urlopen" in sent[1]
        assert sent[3] == RAW_BODY

    run_with_proxy(check, index=tables)


def test_a_reload_opens_new_generators_and_those_whose_file_was_written_again(tmp_path: Path) -> None:
    first = _write_table(tmp_path / "first.jsonl", "old words")

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert await _send(client, proxy, engine, "docs") == ("expanded", "old words")
        untouched = proxy.application.brokers.generators[first]
        await reload_settings(proxy.application, _change(proxy))
        assert proxy.application.brokers.generators[first] is untouched

        _write_table(tmp_path / "first.jsonl", "rebuilt words")
        await reload_settings(proxy.application, _change(proxy))
        assert await _send(client, proxy, engine, "docs") == ("expanded", "rebuilt words")

        second = _write_table(tmp_path / "second.jsonl", "words of another table")
        await reload_settings(proxy.application, _change(proxy, index={"docs": {"generator": second}}))
        assert await _send(client, proxy, engine, "docs") == ("expanded", "words of another table")
        assert first not in proxy.application.brokers.generators

    run_with_proxy(check, index={"docs": {"generator": first}})


def test_a_reload_with_a_generator_that_cannot_start_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = _write_table(tmp_path / "table.jsonl", "old words")

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        settings = proxy.application.settings
        missing = f"table:{tmp_path / 'missing.jsonl'}"
        tables = {"docs": {"generator": table, "weight": 0.5}, "jobs": {"generator": missing}}
        await reload_settings(proxy.application, _change(proxy, index=tables))
        assert proxy.application.settings is settings
        assert await _send(client, proxy, engine, "docs") == ("expanded", "old words")
        sentences = [message for message in caplog.messages if "were not applied" in message]
        assert len(sentences) == 1
        assert "missing.jsonl" in sentences[0]

    with caplog.at_level(logging.WARNING, logger="querylift"):
        run_with_proxy(check, index={"docs": {"generator": table}})


def test_no_search_is_lost_while_generators_are_replaced_again_and_again(tmp_path: Path) -> None:
    table = _write_table(tmp_path / "table.jsonl", "words 0")
    body_of = {
        number: json.dumps({"query": {"match": {"text": "download a page"}}, "size": number})
        for number in range(1, 201)
    }

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        is_done = False
        outcomes: list[tuple[int, str]] = []

        async def search_on() -> None:
            while not is_done:
                status, outcome, _ = await send_search(client, proxy, data=body_of[len(outcomes) % 200 + 1])
                outcomes.append((status, outcome))

        searching = [asyncio.ensure_future(search_on()) for _ in range(4)]
        for number in range(1, 20):
            _write_table(tmp_path / "table.jsonl", f"words {number}" + " again" * number)
            await reload_settings(proxy.application, _change(proxy))
            await asyncio.sleep(0.01)
        is_done = True
        await asyncio.gather(*searching)
        assert len(outcomes) > 20
        assert set(outcomes) == {(200, "expanded"), (200, "cached")}

    run_with_proxy(check, index={"docs": {"generator": table}})


def test_an_expander_that_was_built_again_into_the_same_folder_is_served_after_a_reload(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_expander(tmp_path / "topics.expander", write_tiny_encoder(tmp_path / "encoder"))
    body = json.dumps({"query": {"match": {"contents": "telescopes and moons"}}})

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async def count_added_documents() -> int:
            status, outcome, _ = await send_search(client, proxy, path="/topics/_search", data=body)
            assert (status, outcome) in ((200, "expanded"), (200, "cached"))
            return engine.requests[-1].body.count(b'"sky-')

        assert await count_added_documents() == 10
        old_expander = proxy.application.brokers.generators[f"expander:{folder}"]

        record = (folder / RECORD_FILE).read_bytes()
        (folder / RECORD_FILE).write_bytes(b"{")  # a build is writing
        await reload_settings(proxy.application, _change(proxy))
        assert "were not applied" in caplog.text
        assert await count_added_documents() == 10

        (folder / RECORD_FILE).write_bytes(record)
        remove_document_ids(folder)
        await reload_settings(proxy.application, _change(proxy))
        assert proxy.application.brokers.generators[f"expander:{folder}"] is not old_expander
        assert await count_added_documents() == 0

    with caplog.at_level(logging.WARNING, logger="querylift"):
        run_with_proxy(check, index={"topics": {"generator": f"expander:{folder}"}})


@pytest.mark.parametrize(
    ("changes", "is_reopened"),
    [
        ({"feedback": {"terms": 7}}, True),
        ({"feedback": {"terms": 7}, "llama": {"slots": 3}}, True),
        ({"llama": {"slots": 3}}, False),
        ({"index": {"docs": {"generator": "feedback:text", "weight": 0.4}}}, False),
    ],
)
def test_a_generator_is_opened_again_when_its_own_settings_have_changed(
    changes: dict[str, Any], is_reopened: bool
) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        opened = proxy.application.brokers.generators["feedback:text"]
        await reload_settings(proxy.application, _change(proxy, **changes))
        now_open = proxy.application.brokers.generators
        assert (now_open["feedback:text"] is not opened) == is_reopened

    run_with_proxy(check, index={"docs": {"generator": "feedback:text"}})


def test_an_expander_of_another_index_is_a_warning_when_serve_starts(tmp_path: Path) -> None:
    folder = write_expander(tmp_path / "topics.expander", write_tiny_encoder(tmp_path / "encoder"))
    name = f"expander:{folder}"
    tables = {"topics": {"generator": name}, "help": {"generator": name}, "off": {"generator": name, "enabled": False}}
    assert list(list_ineffective_tables(parse_settings({"index": tables}))) == [
        f"[index.'help']: the expander {folder} was built from topics, topics-1, but the search is on help; "
        "build one from help"
    ]
