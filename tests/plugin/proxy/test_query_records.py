"""Query records: their shape is that of UBI 1.3, and they arrive in a file or in an index without delaying a search."""

import asyncio
import json
import logging
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from querylift.index_tools.proxy_process import run_proxy as run_proxy_process
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.flow import FlowResult
from querylift.plugin.outcome import Outcome
from querylift.plugin.proxy.query_records import record_queue
from querylift.plugin.proxy.query_records.index_place import MAPPING
from querylift.plugin.proxy.query_records.record import SearchOrigin, build_query_record
from querylift.plugin.proxy.query_records.record_queue import PlaceDown, RecordQueue
from querylift.plugin.proxy.server import open_proxy
from querylift.plugin.proxy.settings_reload import reload_settings
from querylift.plugin.settings import Settings, parse_settings
from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.proxy_scenarios import JSON_HEADERS, RAW_BODY, run_with_proxy, send_search
from tests.helpers.upstream_stub import RunningProxy, StubEngine
from tests.plugin.proxy.test_metrics import read_samples

RESULT = FlowResult(b"{}", Outcome("expanded"), "download a page", Expansion(text="urlopen fetches"))
UBI_BODY = {
    "query": {"match": {"text": "download a page"}},
    "ext": {"ubi": {"query_id": "q-1", "client_id": "ann", "application": "shop", "object_id_field": "sku", "x": 1}},
}
OPAQUE_ID = [(b"x-opaque-id", b"browser-7")]
UBI_KEYS = {
    "application", "query_id", "client_id", "user_query", "query_attributes", "object_id_field", "timestamp",
}  # fmt: skip
"""The keys of version 1.3 of the schema of UBI, without those of the answer."""


# -- the record ---------------------------------------------------------------------------------------------------------


def test_a_record_has_the_shape_of_a_query_of_ubi() -> None:
    record = build_query_record("docs", RESULT, 0.0123, origin=SearchOrigin(b"{}", OPAQUE_ID), with_text=True)
    assert set(record) <= UBI_KEYS
    assert (record["application"], record["client_id"]) == ("querylift", "browser-7")
    assert record["user_query"] == "download a page"
    assert datetime.fromisoformat(record["timestamp"]).tzinfo is not None
    assert len(record["query_id"]) == 36
    attributes = record["query_attributes"]
    assert (attributes["index"], attributes["outcome"], attributes["reason"]) == ("docs", "expanded", "")
    assert (attributes["added_ms"], attributes["expansion_words"]) == (12.3, 2)


def test_two_searches_for_the_same_words_have_different_ids_and_the_same_hash() -> None:
    first, second = (build_query_record("docs", RESULT, 0, with_text=True) for _ in range(2))
    assert first["query_id"] != second["query_id"]
    assert first["query_attributes"]["query_hash"] == second["query_attributes"]["query_hash"]


def test_without_query_text_the_record_holds_a_hash() -> None:
    record = build_query_record("docs", RESULT, 0, with_text=False)
    assert record["user_query"] == record["query_attributes"]["query_hash"]
    assert "download" not in json.dumps(record)


def test_a_search_without_a_query_has_an_empty_one() -> None:
    record = build_query_record("docs", FlowResult(None, Outcome("skipped", "no-text")), 0, with_text=False)
    assert record["user_query"] == ""


def test_the_ids_of_the_engine_s_ubi_plugin_go_into_the_record_and_stand_above_the_header() -> None:
    origin = SearchOrigin(json.dumps(UBI_BODY).encode(), OPAQUE_ID)
    record = build_query_record("docs", RESULT, 0, origin=origin, with_text=False)
    assert (record["query_id"], record["client_id"]) == ("q-1", "ann")
    assert (record["application"], record["object_id_field"]) == ("shop", "sku")
    assert set(record) == UBI_KEYS


@pytest.mark.parametrize(
    "body",
    [
        b'{"ext": {"ubi": ',
        b'{"ext": "ubi", "x": {"ubi": 1}}',
        b'{"ext": {"ubi": ["query_id"]}}',
        b'{"ext": {"ubi": {"query_id": 7, "client_id": ""}}}',
        b'["ubi", "ubi"]',
        b'{"ext": {"ubi": {"query_id": "q"}}, "pad": "' + b"x" * 70_000 + b'"}',
        b"[" * 5000 + b'"ubi"' + b"]" * 5000,
    ],
    ids=["cut", "text", "list", "types", "no-object", "large", "deep"],
)
def test_ids_that_cannot_be_read_are_left_out(body: bytes) -> None:
    record = build_query_record("docs", RESULT, 0, origin=SearchOrigin(body), with_text=False)
    assert len(record["query_id"]) == 36
    assert "client_id" not in record


def test_an_id_that_is_longer_than_ubi_allows_is_cut() -> None:
    record = build_query_record(
        "docs", RESULT, 0, origin=SearchOrigin(b"", [(b"x-opaque-id", b"\xff" * 200)]), with_text=False
    )
    assert record["client_id"] == "\ufffd" * 100


# -- the file -----------------------------------------------------------------------------------------------------------


def read_records(path: Path, count: int) -> list[dict[str, Any]]:
    """Return the records of a file when there are `count`."""
    for _ in range(500):
        lines = path.read_text().splitlines() if path.exists() else []
        if len(lines) >= count:
            return [json.loads(line) for line in lines]
        time.sleep(0.02)
    raise AssertionError(lines)


def _search(url: str, body: Any, **headers: str) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
    with pytest.raises(urllib.error.HTTPError):  # no engine answers
        urllib.request.urlopen(request, timeout=20)


def test_the_file_of_records_is_private_and_is_followed_by_a_new_one_when_it_is_moved(tmp_path: Path) -> None:
    file = tmp_path / "queries.jsonl"
    settings = {"engine": "http://127.0.0.1:9", "log": {"searches_file": str(file), "query_text": True}}
    query = {"query": {"match": {"text": "sailing boats"}}}
    with run_proxy_process(settings | {"index": {"docs": {}}}) as proxy:
        _search(f"{proxy.url}/docs/_search", query, **{"X-Opaque-Id": "ann"})
        (record,) = read_records(file, 1)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.rename(tmp_path / "queries.jsonl.1")
        _search(f"{proxy.url}/docs/_search", UBI_BODY)
        assert [other["query_id"] for other in read_records(file, 1)] == ["q-1"]
        _search(f"{proxy.url}/docs/_search", query)  # the end of the process must not lose it
        log = proxy.log.read_text()
    assert (record["user_query"], record["client_id"]) == ("sailing boats", "ann")
    assert record["query_attributes"]["outcome"] == "error"
    assert len(read_records(file, 2)) == 2
    assert "sailing" not in log, "`searches` is off, so the log must not have the record"


def test_every_search_of_a_request_has_its_record(tmp_path: Path) -> None:
    file = tmp_path / "queries.jsonl"
    other = RAW_BODY.replace(b"download a page", b"a hedgehog")
    lines = [
        b'{"index":"docs"}',
        RAW_BODY,
        b'{"index":"off"}',
        other,
        b'{"index":"docs"}',
        json.dumps(UBI_BODY).encode(),
    ]

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await send_search(client, proxy, path="/_msearch", data=b"\n".join(lines) + b"\n")
        records = await asyncio.to_thread(read_records, file, 3)
        assert [record["query_attributes"]["index"] for record in records] == ["docs", "off", "docs"]
        assert [record["user_query"] for record in records] == ["download a page", "", "download a page"]
        assert records[2]["query_id"] == "q-1"

    run_with_proxy(check, log={"searches_file": str(file), "query_text": True})


def test_a_file_that_cannot_be_written_stops_serve(tmp_path: Path) -> None:
    async def open_and_close() -> None:
        settings = parse_settings({"log": {"searches_file": str(tmp_path / "gone" / "queries.jsonl")}})
        async with open_proxy(settings, ScriptedGenerator({})):
            pass

    with pytest.raises(
        SettingsError, match=r"queries\.jsonl, which cannot be written \(No such file or directory\); name"
    ):
        asyncio.run(open_and_close())


def test_a_full_disc_fails_no_search_and_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        for _ in range(3):
            assert (await send_search(client, proxy))[0] == 200
            await asyncio.sleep(record_queue.INTERVAL_S)

    run_with_proxy(check, log={"searches_file": "/dev/full"})
    assert caplog.messages == [
        "query records for the file /dev/full: the file cannot be written (No space left on device)",
        "3 records for the file /dev/full were not written before the end",
    ]


def test_a_batch_that_does_not_fit_leaves_no_part_of_a_line(tmp_path: Path) -> None:
    code = (
        "import asyncio, resource, signal, sys\n"
        "from pathlib import Path\n"
        "from querylift.plugin.proxy.query_records.file_place import FilePlace\n"
        "from querylift.plugin.proxy.query_records.record_queue import PlaceDown\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "place = FilePlace(Path(sys.argv[1]))\n"
        "asyncio.run(place.write_lines(['x' * 499]))\n"
        "try:\n"
        "    asyncio.run(place.write_lines(['y' * 499, 'z' * 499]))\n"
        "except PlaceDown as error:\n"
        "    print(error)"
    )
    file = tmp_path / "queries.jsonl"
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "the file cannot be written (File too large)"
    assert file.read_text() == "x" * 499 + "\n"


def test_a_reloaded_file_gets_the_next_record_and_the_old_one_no_more(tmp_path: Path) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await send_search(client, proxy)
        values = proxy.application.settings.model_dump() | {"log": {"searches_file": str(tmp_path / "new")}}
        await reload_settings(proxy.application, lambda: parse_settings(values))
        await send_search(client, proxy)
        await send_search(client, proxy)
        assert len(await asyncio.to_thread(read_records, tmp_path / "new", 2)) == 2
        assert len(await asyncio.to_thread(read_records, tmp_path / "old", 1)) == 1
        values["log"] = {}
        await reload_settings(proxy.application, lambda: parse_settings(values))
        await send_search(client, proxy)

    run_with_proxy(check, log={"searches_file": str(tmp_path / "old")})
    assert len(read_records(tmp_path / "new", 2)) == 2


# -- the index ----------------------------------------------------------------------------------------------------------

UBI_PLUGIN_MAPPING = {
    "dynamic": False,
    "properties": {
        "timestamp": {"type": "date"},
        "query_id": {"type": "keyword", "ignore_above": 100},
        "user_query": {"type": "text"},
        "query_attributes": {"type": "flat_object"},
        "client_id": {"type": "keyword", "ignore_above": 100},
    },
}
"""What the engine's UBI plugin creates `ubi_queries` with, as far as our records are concerned."""


async def _call(method: str, url: str, body: Any = None) -> Any:
    async with aiohttp.request(method, url, json=body) as response:
        return await response.json()


async def _wait_for_count(engine: str, index: str, count: int, **query: Any) -> list[dict[str, Any]]:
    for _ in range(300):
        await _call("POST", f"{engine}/{index}/_refresh")
        answer = await _call("POST", f"{engine}/{index}/_search", {"query": query or {"match_all": {}}, "size": 50})
        hits = answer.get("hits", {}).get("hits", [])
        if len(hits) >= count:
            return [hit["_source"] for hit in hits]
        await asyncio.sleep(0.05)
    raise AssertionError(answer)


@pytest.mark.engine
@pytest.mark.parametrize("mapping", [None, UBI_PLUGIN_MAPPING], ids=["new-index", "index-of-the-plugin"])
def test_the_index_of_records_fills_and_joins_by_the_client_s_ids(opensearch: str, mapping: Any) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await _call("DELETE", f"{opensearch}/ubi_queries")
        if mapping:
            await _call("PUT", f"{opensearch}/ubi_queries", {"mappings": mapping})
        await send_search(client, proxy, data=json.dumps(UBI_BODY).encode())
        await send_search(client, proxy, headers=JSON_HEADERS | {"X-Opaque-Id": "ben"})
        assert len(await _wait_for_count(opensearch, "ubi_queries", 2)) == 2
        (record,) = await _wait_for_count(opensearch, "ubi_queries", 1, term={"query_id": "q-1"})
        assert record["query_attributes"]["reason"] == "original-fails"  # this engine has no UBI plugin
        assert await _wait_for_count(opensearch, "ubi_queries", 1, term={"client_id": "ben"})
        assert await _wait_for_count(opensearch, "ubi_queries", 1, match={"user_query": "download"})
        assert await _wait_for_count(opensearch, "ubi_queries", 2, range={"timestamp": {"gte": "now-1h"}})
        if mapping is None:
            real_mapping = (await _call("GET", f"{opensearch}/ubi_queries/_mapping"))["ubi_queries"]["mappings"]
            assert MAPPING["properties"].items() <= real_mapping["properties"].items()
        samples = read_samples(proxy.application.journal.metrics)
        assert samples['querylift_query_records_total{destination="index",fate="written"}'] == 2
        await _call("DELETE", f"{opensearch}/ubi_queries")

    run_with_records_on(opensearch, check)


def run_with_records_on(engine: str, check: Callable[..., Any]) -> None:
    """Run `check` with a proxy before the engine that writes records into its index `ubi_queries`."""
    run_with_proxy(check, engine=engine, log={"searches_index": "ubi_queries", "query_text": True})


@pytest.mark.engine
def test_records_that_the_mapping_refuses_are_counted_and_the_log_shows_no_query(
    opensearch: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await _call("DELETE", f"{opensearch}/ubi_queries")
        mapping = {"dynamic": "strict", "properties": {"user_query": {"type": "integer"}}}
        await _call("PUT", f"{opensearch}/ubi_queries", {"mappings": mapping})
        assert (await send_search(client, proxy))[1] == "expanded"
        metrics = proxy.application.journal.metrics
        name = 'querylift_query_records_total{destination="index",fate="refused"}'
        while not read_samples(metrics)[name]:
            await asyncio.sleep(0.02)
        await _call("DELETE", f"{opensearch}/ubi_queries")

    with caplog.at_level(logging.WARNING, "querylift"):
        run_with_records_on(opensearch, check)
    (message,) = [message for message in caplog.messages if "refused" in message]
    assert message.startswith("query records for the index ubi_queries: 1 records were refused: ")
    assert "download" not in message


# -- the queue ----------------------------------------------------------------------------------------------------------


class ScriptedPlace:
    """A place that is down until `opens` is set."""

    name = "a place"

    def __init__(self) -> None:
        self.opens = asyncio.Event()
        self.lines: list[str] = []
        self.tries = 0

    async def write_lines(self, lines: Sequence[str]) -> tuple[int, str]:
        self.tries += 1
        if not self.opens.is_set():
            raise PlaceDown("it is closed")
        self.lines += lines
        return 0, ""

    async def close(self) -> None:
        pass


def test_records_wait_while_the_place_is_down_and_those_beyond_the_queue_are_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counts = dict.fromkeys(record_queue.RECORD_FATES, 0)

    async def main() -> None:
        place = ScriptedPlace()

        def count(fate: record_queue.RecordFate, number: int) -> None:
            counts[fate] += number

        queue = RecordQueue(place, count, capacity=3, interval_s=0.01)
        for line in "abcde":
            queue.add_line(line)
        while place.tries < 2:
            await asyncio.sleep(0.01)
        place.opens.set()
        while not place.lines:
            await asyncio.sleep(0.01)
        queue.add_line("f")
        await queue.close()
        assert place.lines == ["a", "b", "c", "f"]

    asyncio.run(main())
    assert counts == {"written": 4, "refused": 0, "dropped": 2}
    assert caplog.messages == ["query records for a place: records are dropped, because too many wait"]


def test_the_end_of_the_process_does_not_wait_for_a_place_that_is_down(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        queue = RecordQueue(ScriptedPlace(), lambda fate, number: None)
        queue.add_line("a")
        async with asyncio.timeout(record_queue.CLOSE_S):
            await queue.close()

    asyncio.run(main())
    assert caplog.messages[-1] == "1 records for a place were not written before the end"


def test_without_a_place_nothing_is_kept() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await send_search(client, proxy)
        assert "querylift_query_records_total{" not in proxy.application.journal.metrics.render().decode()

    run_with_proxy(check)


@pytest.mark.parametrize("name", ["Queries", "a,b", "logs-*", "_queries", "my queries", ""])
def test_a_name_that_no_index_can_have_stops_serve(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings({"log": {"searches_index": name}})
    assert str(caught.value) == (
        f"settings: log.searches_index is {name!r}: name one index in small letters, such as 'ubi_queries'"
    )


def test_records_are_off_by_default() -> None:
    assert (Settings().log.searches_file, Settings().log.searches_index) == (None, None)
