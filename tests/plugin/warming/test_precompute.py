"""Expansions made ahead of traffic are those that would be served, each made once, whatever happens on the way."""

import asyncio
import contextlib
import gzip
import json
import logging
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from querylift.index_tools.proxy_process import free_ports
from querylift.plugin.broker import Expander
from querylift.plugin.cache import FileCache, MemoryCache, encode, key_of
from querylift.plugin.errors import Busy, DataError, GeneratorError, QueryliftError, SettingsError
from querylift.plugin.expansion import Expansion, clean_prose, from_terms, from_words
from querylift.plugin.flow import Rules, Search, run_async, search_flow
from querylift.plugin.generators.base import Ask
from querylift.plugin.generators.llama.generator import LlamaGenerator, packaged_model
from querylift.plugin.generators.table import TableGenerator
from querylift.plugin.outcome import Outcome
from querylift.plugin.proxy.server import match_body
from querylift.plugin.settings import IndexSettings, check
from querylift.plugin.testing import ManualClock, ScriptedGenerator
from querylift.plugin.warming.precompute import AsServed, Maker, Plan, Tally, as_served, lanes, plan
from querylift.plugin.warming.query_log import QueryLog, read_queries
from querylift.plugin.warming.stores import CacheStore, TableStore, cache_store, table_key, table_row

PAGE = Expansion(text="urlopen fetches")
QUERIES = (
    "what causes a rainbow", "how to compress a folder", "vitamin D deficiency symptoms", "why do cats purr",
    "history of the steam engine", "treatment of acute bronchitis", "best time to plant tomatoes",
    "how are volcanoes formed", "effects of sleep on memory", "what is a black hole", "cheap flights to lisbon",
    "okay here is a question about the weather",
)  # fmt: skip
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("QUERYLIFT_")}
SERVER = shutil.which("valkey-server") or shutil.which("redis-server")
DOCS = '[index.docs]\nfields = ["title", "text"]\n'


# Reading a log.


@pytest.mark.parametrize(
    ("lines", "texts", "read"),
    [
        (b"axon\nneuron\n", ("axon", "neuron"), 2),
        (b"axon\nneuron\nneuron\n", ("neuron", "axon"), 3),
        (b"axon\t3\nneuron\t12\n", ("neuron", "axon"), 2),
        (b"axon\t3\r\nneuron\t2\r\n neuron \t2\n", ("neuron", "axon"), 3),
        (b"axon terminal\naxon \t terminal\n", ("axon terminal",), 2),
        (b"\xef\xbb\xbfaxon\n\n  \n\t7\n", ("axon",), 1),
        (b'{"query": "axon"}\n{"query": "neuron", "count": 4, "user": 1}\n', ("neuron", "axon"), 2),
        (b'{axon}\n{"q": "neuron"}\n[1]\n', ("{axon}", '{"q": "neuron"}', "[1]"), 3),
        (b'{"query": ""}\n{"query": 5}\naxon\n', ('{"query": 5}', "axon"), 2),
        (b"axon\tmany\nneuron\t" + b"9" * 5000 + b"\n", ("axon\tmany", "neuron\t" + "9" * 5000), 2),
        (b"caf\xe9\n", ("caf\ufffd",), 1),
    ],
)
def test_a_log_is_read_the_most_frequent_first(tmp_path: Path, lines: bytes, texts: tuple[str, ...], read: int) -> None:
    (tmp_path / "plain").write_bytes(lines)
    (tmp_path / "packed").write_bytes(gzip.compress(lines))
    for name in ("plain", "packed"):
        assert read_queries(tmp_path / name) == QueryLog(read, texts)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist; name a file with one query a line"),
        (b"\n \n", "holds no query; write one a line"),
        (gzip.compress(b"axon\n" * 999)[:20], "cannot be read"),
        (b"\x1f\x8bno gzip at all", "cannot be read"),
    ],
)
def test_a_log_that_is_none_is_named(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "log").write_bytes(content)
    with pytest.raises(SettingsError, match=sentence):
        read_queries(tmp_path / "log")


def test_the_repr_of_a_log_has_no_query() -> None:
    assert repr(QueryLog(2, ("axon",))) == "QueryLog(2 queries, 1 distinct)"


# What the served flow would ask for.

TEXTS = (
    "axon terminal", '"axon terminal"', "B00X-12", "axon*", "long " * 65, "axon ", "Axon terminal", " ", "神経細胞",
    "what's an axon?", "\x00", "axon\x00terminal",
)  # fmt: skip


@pytest.mark.parametrize("reads_index", [False, True])
def test_what_is_planned_is_what_a_served_search_asks_for_and_the_rest_is_skipped_alike(reads_index: bool) -> None:
    settings = check({"index": {"docs": {"fields": ["text"]}}})
    generator = ScriptedGenerator({})
    generator.reads_index = reads_index

    async def served() -> tuple[list[str], Counter[str]]:
        reasons: Counter[str] = Counter()
        expander = Expander(generator, MemoryCache(99, ManualClock()), clock=ManualClock())
        for text in TEXTS:
            flow = search_flow(Search("docs", match_body(text, "text")), Rules(settings, clock=ManualClock()))
            reasons[(await run_async(flow, expander.answer)).outcome.reason] += 1
        await expander.close()
        return generator.asked, reasons

    planned = _plan(TEXTS, as_served(settings, generator, "docs"), generator)
    asked, reasons = asyncio.run(served())
    assert [ask.text for ask in planned.asks] == asked
    assert planned.skipped == {reason: count for reason, count in reasons.items() if reason != "nothing"}
    assert planned.skipped == {"quoted": 1, "code": 3, "wildcard": 1, "long": 1, "no-text": 1}


def test_without_an_index_a_query_is_asked_for_that_some_table_allows() -> None:
    tables = {"a": {"max_query_words": 2}, "b-*": {"max_query_words": 4}, "c": {"max_query_words": 9, "enabled": False}}
    served = as_served(check({"index": tables}), ScriptedGenerator({}), None)
    assert served.ask("one two three four") == Ask("one two three four", "any", ("text",))
    assert served.ask("one two three four five") == "long"


@pytest.mark.parametrize(
    ("settings", "index", "reads_index", "sentence"),
    [
        ({}, None, False, r"no index; add a table like \[index\.products\]"),
        ({"index": {"docs": {"enabled": False}}}, None, False, r"no index; add a table"),
        ({"enabled": False, "index": {"docs": {}}}, None, False, "set QUERYLIFT_ENABLED=true"),
        ({"enabled": False, "index": {"docs": {}}}, "docs", False, "searches on 'docs' are not expanded"),
        ({"index": {"docs": {}}}, "logs", False, "searches on 'logs' are not expanded .* name another --index"),
        ({"index": {"docs": {}}}, None, True, "generator is 'feedback', which reads the index; name it with --index"),
        ({"index": {"docs": {}}}, "docs", True, "list them as fields in the settings' table of 'docs'"),
    ],
)
def test_settings_by_which_nothing_would_be_asked_are_named(
    settings: dict[str, Any], index: str | None, reads_index: bool, sentence: str
) -> None:
    generator = ScriptedGenerator({})
    generator.reads_index = reads_index
    with pytest.raises(SettingsError, match=sentence):
        as_served(check({"generator": "feedback", **settings}), generator, index)


def test_as_many_are_under_way_as_the_model_has_slots_and_queue() -> None:
    llama = {"slots": 3, "queue_size": 5}
    assert lanes(check({"generator": "llama:m.gguf", "llama": llama})) == 8
    assert lanes(check({"generator": "http://host/v1", "llama": llama})) == 16


# Making them.


class Shelf:
    """A store in memory that keeps what it is given, in order."""

    def __init__(self, *there: str) -> None:
        self.there = set(there)
        self.kept: list[str] = []

    async def has(self, ask: Ask) -> bool:
        """Whether it was there from the start."""
        return ask.text in self.there

    async def keep(self, ask: Ask, expansion: Expansion | None) -> None:
        """Remember it, after a moment in which one may be cancelled."""
        await asyncio.sleep(0.01)
        self.kept.append(ask.text)


class Moody(ScriptedGenerator):
    """Fails for a text as often as `moods` says, and only then answers."""

    def __init__(self, moods: dict[str, list[Exception]], *, delay_s: float = 0) -> None:
        super().__init__({}, delay_s=delay_s)
        self.moods = moods
        self.at_once = 0
        self.most_at_once = 0

    async def expand(self, ask: Ask) -> Expansion | None:
        """The next mood, or an answer."""
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await super().expand(ask)
        finally:
            self.at_once -= 1
        if self.moods.get(ask.text):
            raise self.moods[ask.text].pop(0)
        return PAGE


def _plan(texts: tuple[str, ...], served: AsServed, generator: ScriptedGenerator) -> Plan:
    return plan(QueryLog(len(texts), texts), served, key=lambda ask: key_of(generator, ask))


def _asks(*texts: str) -> tuple[Ask, ...]:
    return tuple(Ask(text) for text in texts)


async def _no_time(seconds: float) -> None:
    await asyncio.sleep(0)


def _make(generator: ScriptedGenerator, shelf: Any, *texts: str, lanes: int = 2) -> Tally:
    tally = Tally(distinct=len(texts))
    done: list[None] = []
    maker = Maker(generator, shelf, tally, lanes=lanes, sleep=_no_time)
    asyncio.run(maker.run(_asks(*texts), lambda: done.append(None)))
    assert len(done) == len(texts)
    assert tally.left == 0
    return tally


def test_what_is_there_is_not_made_again_and_the_rest_is_made_once() -> None:
    generator, shelf = Moody({}), Shelf("b")
    tally = _make(generator, shelf, "a", "b", "c")
    assert (tally.made, tally.there, tally.failed) == (2, 1, 0)
    assert sorted(generator.asked) == sorted(shelf.kept) == ["a", "c"]


def test_a_busy_generator_loses_no_query() -> None:
    generator, shelf = Moody({"a": [Busy("full")] * 50, "b": [Busy("full")]}), Shelf()
    tally = _make(generator, shelf, "a", "b", "c")
    assert (tally.made, tally.failed, sorted(shelf.kept)) == (3, 0, ["a", "b", "c"])


def test_a_worker_that_ended_is_waited_for() -> None:
    ended = GeneratorError("the model's worker ended before it answered")
    generator, shelf = Moody({"a": [ended], "b": [ended, ended]}), Shelf()
    assert _make(generator, shelf, "a", "b", "c").failed == 0
    assert sorted(shelf.kept) == ["a", "b", "c"]


def test_while_its_worker_is_away_a_generator_is_not_asked() -> None:
    class Away(Moody):
        """Has no worker for the first looks."""

        looks = 0

        @property
        def pid(self) -> int | None:
            """As LlamaGenerator.pid."""
            self.looks += 1
            return 7 if self.looks > 500 else None

        async def expand(self, ask: Ask) -> Expansion | None:
            assert self.looks > 500
            return await super().expand(ask)

    tally = _make(Away({}), Shelf(), *"abcdefgh")
    assert (tally.made, tally.failed) == (8, 0)


def test_a_query_that_fails_is_counted_with_the_first_reason_and_loses_no_other() -> None:
    generator = Moody(
        {"b": [GeneratorError("the query is longer than 190 tokens of the model")] * 9, "d": [KeyError()] * 9}
    )
    shelf = Shelf()
    tally = _make(generator, shelf, "a", "b", "c", "d", "e", lanes=1)
    assert (tally.made, tally.failed, sorted(shelf.kept)) == (3, 2, ["a", "c", "e"])
    assert tally.first_failure == "the query is longer than 190 tokens of the model"
    assert Counter(generator.asked)["b"] == 3


def test_where_all_fails_nothing_is_tried_twice_until_something_succeeds() -> None:
    gone = GeneratorError("the endpoint did not answer")
    texts = [f"q{i}" for i in range(100)]
    generator = Moody({text: [gone] * 3 for text in texts})
    tally = _make(generator, Shelf(), *texts, "good", lanes=4)
    assert (tally.failed, tally.made) == (100, 1)
    assert len(generator.asked) < 130


def test_no_more_are_under_way_than_there_are_lanes() -> None:
    generator = Moody({}, delay_s=0.01)
    _make(generator, Shelf(), *"abcdefgh", lanes=3)
    assert generator.most_at_once == 3


def test_when_stopped_it_gives_up_what_is_under_way_and_keeps_what_was_made() -> None:
    async def main() -> None:
        generator, shelf, tally = Moody({}), Shelf(), Tally(distinct=3)
        making = asyncio.ensure_future(Maker(generator, shelf, tally, lanes=1).run(_asks("a", "b", "c"), lambda: None))
        while not generator.asked:
            await asyncio.sleep(0)
        await asyncio.sleep(0.002)  # now it is being kept
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        assert (shelf.kept, tally.made, tally.left) == (["a"], 1, 2)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_store_that_keeps_nothing_more_ends_the_run() -> None:
    class Full(Shelf):
        """Takes one."""

        async def keep(self, ask: Ask, expansion: Expansion | None) -> None:
            if self.kept:
                raise QueryliftError("the cache takes nothing more")
            self.kept.append(ask.text)

    generator, tally = Moody({}), Tally(distinct=9)
    with pytest.raises(QueryliftError, match="takes nothing more"):
        asyncio.run(Maker(generator, Full(), tally, lanes=2).run(_asks(*"abcdefghi"), lambda: None))
    assert (tally.made, len(generator.asked) < 5) == (1, True)


def test_the_summary_is_one_line() -> None:
    tally = Tally(queries=9, distinct=8, made=3, there=1, failed=1, seconds=1.5)
    tally.skipped.update({"quoted": 1, "code": 1})
    assert tally.line() == (
        "9 queries, 8 distinct: 3 made, 1 already there, 2 skipped (code 1, quoted 1), 1 failed, 1 left; 2.0 made a second"
    )


# Into the proxy's cache.


@pytest.mark.parametrize("reads_index", [False, True])
def test_what_is_warmed_is_what_a_served_search_finds(tmp_path: Path, reads_index: bool) -> None:
    """Also by a generator that reads the index, for which the key has index and fields in it."""
    settings = check({"index": {"docs": {"fields": ["title", "text"]}}, "cache": {"file": str(tmp_path / "kept.db")}})
    generator = ScriptedGenerator({"axon terminal": PAGE})
    generator.reads_index = reads_index

    async def main() -> None:
        asks = _plan(("axon  terminal", "nothing to add"), as_served(settings, generator, "docs"), generator).asks
        async with cache_store(settings.cache, generator) as store:
            await Maker(generator, store, Tally(), lanes=2).run(asks, lambda: None)
        expander = Expander(generator, FileCache(tmp_path / "kept.db", 9, time.monotonic), clock=time.monotonic)
        for field, text, outcome in (
            ("text", "axon terminal", Outcome("cached")),
            ("title", " axon terminal", Outcome("cached")),
            ("text", "nothing to add", Outcome("skipped", "nothing")),
        ):
            flow = search_flow(Search("docs", match_body(text, field)), Rules(settings, clock=time.monotonic))
            assert (await run_async(flow, expander.answer)).outcome == outcome
        await expander.close()
        assert sorted(generator.asked) == ["axon terminal", "nothing to add"]

    asyncio.run(main())


def test_an_entry_that_cannot_be_read_or_is_too_old_is_made_again(tmp_path: Path) -> None:
    async def main() -> None:
        generator, clock = ScriptedGenerator({}), ManualClock()
        cache = FileCache(tmp_path / "kept.db", 9, clock, wall_clock=clock)
        store = CacheStore(generator, writes=cache, reads=cache, ttl_s=60)
        for text, value in (("old", encode(PAGE)), ("broken", "{"), ("fine", encode(PAGE)), ("nothing", encode(None))):
            await cache.set(key_of(generator, Ask(text)), value, ttl_s=5 if text == "old" else 100)
        clock.advance(6)
        there = [await store.has(Ask(text)) for text in ("old", "broken", "never", "fine", "nothing")]
        assert there == [False, False, False, True, True]
        await store.keep(Ask("old"), PAGE)
        clock.advance(59)
        assert await store.has(Ask("old"))
        clock.advance(2)
        assert not await store.has(Ask("old"))
        await cache.close()

    asyncio.run(main())


def test_a_cache_that_silently_keeps_nothing_is_found_out() -> None:
    class Sieve(MemoryCache):
        """Says nothing of what it drops, as a full disk behind a cache file."""

        async def set(self, key: str, value: str, *, ttl_s: float) -> None:
            self.tries = getattr(self, "tries", 0) + 1

    sieve = Sieve(9, time.monotonic)
    store = CacheStore(ScriptedGenerator({}), writes=sieve, reads=sieve, ttl_s=9, sleep=_no_time)
    with pytest.raises(QueryliftError, match="the cache takes nothing more: it is full or gone"):
        asyncio.run(store.keep(Ask("a"), PAGE))
    assert sieve.tries == 4


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A Valkey or Redis: its URL and its process."""
    if SERVER is None:
        pytest.skip("neither valkey-server nor redis-server is installed")
    port = free_ports(1)[0]
    command = [SERVER, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        yield f"redis://127.0.0.1:{port}", process
        process.kill()


def test_a_shared_cache_is_filled_for_all_and_a_run_ends_where_it_goes_away(
    tmp_path: Path, shared: tuple[str, "subprocess.Popen[bytes]"]
) -> None:
    url, process = shared
    settings = check({"cache": {"url": url}}).cache
    generator = ScriptedGenerator({"a": PAGE})

    async def main() -> None:
        async with asyncio.timeout(30):
            while not await _answers(settings, generator):
                await asyncio.sleep(0.1)
        async with cache_store(settings, generator) as store, cache_store(settings, generator) as another:
            await store.keep(Ask("a"), PAGE)
            assert await another.has(Ask("a")) and not await another.has(Ask("b"))
            process.kill()
            process.wait()
            hasty = CacheStore(generator, writes=store._writes, reads=store._reads, ttl_s=9, sleep=_no_time)
            with pytest.raises(QueryliftError, match="takes nothing more"):
                await hasty.keep(Ask("b"), PAGE)
        with pytest.raises(SettingsError, match=r"^cache\.url does not keep what is written to it"):
            async with cache_store(settings, generator):
                pass

    asyncio.run(main())


async def _answers(settings: Any, generator: ScriptedGenerator) -> bool:
    try:
        async with cache_store(settings, generator):
            return True
    except SettingsError:
        return False


# Into a table.


def _read_back(path: Path, *texts: str) -> list[Expansion | None]:
    async def main() -> list[Expansion | None]:
        table = TableGenerator(path)
        await table.start()
        return [await table.expand(Ask(text)) for text in texts]

    return asyncio.run(main())


def _store(
    out: Path, generator: ScriptedGenerator, *made: tuple[str, Expansion | None], cache: Any = None
) -> TableStore:
    store = TableStore(out, generator, cache=cache)
    for text, expansion in made:
        asyncio.run(store.keep(Ask(text), expansion))
    return store


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


TERMS = from_terms([("neuron", 0.1 + 0.2), ("axon", 1e-9)], field="text")


def test_a_table_has_the_expansions_in_the_order_of_the_queries(tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    store = _store(out, ScriptedGenerator({}), ("b", TERMS), ("c", None), ("A  x", PAGE))
    assert not out.exists()
    assert store.finish(_asks("A  x", "b", "c", "never made"), whole=True) == 2
    store.close()
    assert _rows(out) == [
        {"query": "A x", "text": "urlopen fetches"},
        {"query": "b", "field": "text", "terms": {"neuron": 0.1 + 0.2, "axon": 1e-9}},
    ]
    assert _read_back(out, "a x", "b", "c") == [PAGE, TERMS, None]
    assert os.listdir(tmp_path) == ["t.jsonl"]


def test_a_table_may_be_packed(tmp_path: Path) -> None:
    store = _store(tmp_path / "t.jsonl.gz", ScriptedGenerator({}), ("a", PAGE))
    store.finish(_asks("a"), whole=True)
    store.close()
    assert _read_back(tmp_path / "t.jsonl.gz", "a") == [PAGE]


@pytest.mark.parametrize(
    "torn", [b"", b'{"query": "c", "te', b'{"query": "c", "text": "w"}', "{ü".encode()[:-1], b"\x00" * 9]
)
def test_a_table_goes_on_after_its_last_whole_line(tmp_path: Path, torn: bytes) -> None:
    out, generator = tmp_path / "t.jsonl", ScriptedGenerator({})
    _store(out, generator, ("a", PAGE), ("b", None)).close()
    part = tmp_path / "t.jsonl.part"
    before = part.read_bytes()
    part.write_bytes(before + torn)
    store = _store(out, generator)
    assert [asyncio.run(store.has(Ask(text))) for text in ("a", "A", "b", "c")] == [True, True, True, False]
    assert part.read_bytes() == before
    asyncio.run(store.keep(Ask("c"), PAGE))
    assert store.finish(_asks("c", "a", "b"), whole=True) == 2
    store.close()
    assert [row["query"] for row in _rows(out)] == ["c", "a"]


@pytest.mark.parametrize("size", range(60))
def test_a_part_may_end_anywhere_in_its_first_line(tmp_path: Path, size: int) -> None:
    out, generator = tmp_path / "t.jsonl", ScriptedGenerator({})
    _store(out, generator).close()
    part = tmp_path / "t.jsonl.part"
    whole = part.read_bytes()
    part.write_bytes(whole[:size])
    _store(out, generator).close()
    assert part.read_bytes() == whole


def test_a_part_of_another_model_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    other = ScriptedGenerator({})
    other.identity = "another"
    _store(tmp_path / "t.jsonl", other, ("a", PAGE)).close()
    before = (tmp_path / "t.jsonl.part").read_bytes()
    with pytest.raises(SettingsError, match="was begun with another model or prompt"):
        _store(tmp_path / "t.jsonl", ScriptedGenerator({}))
    assert (tmp_path / "t.jsonl.part").read_bytes() == before


def test_a_model_replaced_under_way_ends_the_run(tmp_path: Path) -> None:
    generator = ScriptedGenerator({})
    store = _store(tmp_path / "t.jsonl", generator, ("a", PAGE))
    generator.identity = "another"
    with pytest.raises(QueryliftError, match="the model was replaced"):
        asyncio.run(store.keep(Ask("b"), PAGE))
    store.close()


def test_a_part_that_is_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl.part").write_text("notes\n")
    with pytest.raises(DataError, match=r"t\.jsonl\.part:1: this line is none that export-table wrote"):
        _store(tmp_path / "t.jsonl", ScriptedGenerator({}))
    with pytest.raises(SettingsError, match=r"cannot be written: No such file or directory; name another --out"):
        _store(tmp_path / "nowhere" / "t.jsonl", ScriptedGenerator({}))


def test_what_the_cache_holds_is_taken_from_there(tmp_path: Path) -> None:
    generator, cache = ScriptedGenerator({}), MemoryCache(9, ManualClock())

    async def main() -> None:
        for text, value in (("a", encode(PAGE)), ("b", encode(None)), ("c", "{broken")):
            await cache.set(key_of(generator, Ask(text)), value, ttl_s=9)
        store = TableStore(tmp_path / "t.jsonl", generator, cache=cache)
        assert [await store.has(Ask(text)) for text in "abcd"] == [True, True, False, False]
        assert store.finish(_asks("a", "b"), whole=False) == 1
        store.close()

    asyncio.run(main())
    assert _read_back(tmp_path / "t.jsonl", "a", "b") == [PAGE, None]
    assert _rows(tmp_path / "t.jsonl.part")[1:] == [{"query": "a", "text": PAGE.text}, {"query": "b"}]


def test_of_queries_that_differ_in_case_the_more_frequent_one_is_asked_for() -> None:
    log = QueryLog(9, ("Axon terminal", "neuron", "axon terminal"))
    served = AsServed.anywhere([IndexSettings()])
    assert [ask.text for ask in plan(log, served, key=table_key).asks] == ["Axon terminal", "neuron"]


@pytest.mark.parametrize(
    "text",
    ["okay here is rain", "Certainly here", "ok.com sells", "the answer is", "a.b", "ก" * 39 + "กิ" + "ก" * 30],
)
def test_a_table_gives_back_words_that_its_cleaning_would_alter(tmp_path: Path, text: str) -> None:
    expansion = from_words(text)
    assert expansion is not None
    row = table_row("q", expansion)
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    assert _read_back(tmp_path / "t.jsonl", "q") == [expansion]


def test_that_cleaning_does_alter_some_words() -> None:
    """Else the test above proves nothing."""
    thai = from_words("ก" * 39 + "กิ" + "ก" * 30)
    assert thai is not None
    assert from_words(clean_prose(thai.text)) != thai
    assert from_words(clean_prose("okay here is rain")) == Expansion(text="here is rain")


@given(st.text(st.one_of(st.sampled_from("ok here,.:-*'’_ \nกิ่ー神"), st.characters()), max_size=120))
def test_every_text_has_a_row_that_a_table_reads_back_word_for_word(text: str) -> None:
    expansion = from_words(clean_prose(text))
    if expansion is not None:
        row = table_row("q", expansion)
        assert row is not None and from_words(clean_prose(row["text"])) == expansion


# The commands, as a user meets them.


def _command(*arguments: str, **environment: str) -> dict[str, Any]:
    return {
        "args": [sys.executable, "-m", "querylift", *arguments],
        "env": ENVIRONMENT | environment,
        "text": True,
        "encoding": "utf-8",
    }


def _querylift(
    folder: Path, *arguments: str, stdin: str = "", **environment: str
) -> "subprocess.CompletedProcess[str]":
    given = _command(*arguments, **environment)
    return subprocess.run(cwd=folder, input=stdin, capture_output=True, timeout=280, check=False, **given)


def _settings(folder: Path, generator: str, *, cache: bool = True, more: str = "") -> None:
    file = '\n[cache]\nfile = "kept.db"\n' if cache else ""
    (folder / "querylift.toml").write_text(f'generator = "{generator}"\n{more}{DOCS}{file}', encoding="utf-8")


def _log(folder: Path, *texts: str) -> None:
    (folder / "log.txt").write_text("".join(text + "\n" for text in texts), encoding="utf-8")


def _values(folder: Path) -> list[str]:
    """What the cache file holds just now, without the probe."""
    if not (folder / "kept.db").exists():
        return []
    kept = sqlite3.connect(folder / "kept.db", timeout=10)
    try:
        return [row[0] for row in kept.execute("SELECT value FROM kept WHERE key != 'warming'")]
    except sqlite3.OperationalError:  # it is being made
        return []
    finally:
        kept.close()


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        if condition():
            return True
        time.sleep(0.02)
    return False


class Endpoint:
    """An OpenAI-compatible endpoint that answers the first `most` requests and leaves later ones waiting."""

    def __init__(self) -> None:
        self.most = 10**9
        self.refused = "no such words"
        self.asked: list[str] = []
        self.answered: list[str] = []
        self._turn = threading.Lock()
        self._over = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.answer(self, body["messages"][-1]["content"].partition("query: ")[2])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.generator = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, to: BaseHTTPRequestHandler, query: str) -> None:
        with self._turn:
            self.asked.append(query)
            waits = len(self.answered) >= self.most
            if not waits:
                self.answered.append(query)
        if waits:
            self._over.wait(60)
            return
        content = json.dumps({"choices": [{"message": {"content": f"a passage on {query}"}}]}).encode()
        to.send_response(500 if self.refused in query else 200)
        to.send_header("Content-Length", str(len(content)))
        to.end_headers()
        with contextlib.suppress(BrokenPipeError):  # it was stopped
            to.wfile.write(content)

    def close(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("arguments", "more", "sentence"),
    [
        (["warm", "log.txt"], {}, "name a file that serve reads too as cache.file, or a Valkey or Redis as cache.url"),
        (["warm", "gone.txt"], {"QUERYLIFT_CACHE__FILE": "kept.db"}, "gone.txt does not exist"),
        (["warm", "log.txt", "--index", "x"], {"QUERYLIFT_CACHE__FILE": "kept.db"}, "searches on 'x' are not expanded"),
        (["warm", "log.txt"], {"QUERYLIFT_CACHE__FILE": "no/kept.db"}, "cache.file is no/kept.db: it cannot be used"),
        (["warm", "log.txt"], {"QUERYLIFT_CACHE__FILE": "k", "QUERYLIFT_CACHE__URL": "redis://h"}, "are both set"),
        (["warm", "log.txt"], {"QUERYLIFT_CACHE__URL": "redis://127.0.0.1:9"}, "cache.url does not keep"),
        (
            ["warm", "log.txt"],
            {"QUERYLIFT_CACHE__FILE": "kept.db", "QUERYLIFT_GENERATOR": "feedback"},
            "generator is 'feedback', which reads the index; name it with --index",
        ),
        (["warm", "log.txt"], {"QUERYLIFT_CACHE__FILE": "kept.db", "QUERYLIFT_GENERATOR": "gpt"}, "generator is 'gpt'"),
        (["export-table", "log.txt", "--out", "log.txt"], {}, "log.txt exists; delete it, or name another --out"),
        (["export-table", "log.txt", "--out", "no/t.jsonl"], {}, "no/t.jsonl.part cannot be written"),
        (["export-table", "log.txt", "--out", "t"], {"QUERYLIFT_GENERATOR": "feedback"}, "words depend on the index"),
    ],
)
def test_a_wrong_argument_is_one_sentence_and_exit_code_2(
    tmp_path: Path, arguments: list[str], more: dict[str, str], sentence: str
) -> None:
    _settings(tmp_path, "none", cache=False)
    _log(tmp_path, "axon terminal")
    done = _querylift(tmp_path, *arguments, **more)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_a_log_may_come_through_standard_input_and_most_are_told_of_by_reason(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    _settings(tmp_path, endpoint.generator)
    stdin = 'axon terminal\nwhat is an axon\t5\naxon  terminal\n\n"axon terminal"\nB00X-12\n'
    done = _querylift(tmp_path, "warm", "-", "--concurrency", "1", stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.sub(r"[\d.]+ made a", "N made a", done.stdout) == (
        "5 queries, 4 distinct: 2 made, 0 already there, 2 skipped (code 1, quoted 1), 0 failed; N made a second\n"
    )
    assert endpoint.asked == ["what is an axon", "axon terminal"]
    shown = json.loads(_querylift(tmp_path, "explain", "axon terminal", "--index", "docs", "--json").stdout)
    assert (shown["outcome"], len(endpoint.asked)) == ("cached", 2)


def test_a_query_that_fails_is_exit_code_1_and_its_text_is_not_told(tmp_path: Path, endpoint: Endpoint) -> None:
    _settings(tmp_path, endpoint.generator)
    _log(tmp_path, "axon terminal", "poison ivy", "what is an axon")
    endpoint.refused = "poison"
    done = _querylift(tmp_path, "warm", "log.txt", "--concurrency", "2")
    assert done.returncode == 1
    assert "2 made, 0 already there, 0 skipped, 1 failed;" in done.stdout
    assert re.fullmatch(
        r"querylift: 1 of 3 queries failed, the first one because http\S+ answered with status 500; "
        r"the same command tries them again\n",
        done.stderr,
    )
    assert not {"poison", "ivy", "axon"} & set(re.findall(r"\w+", done.stdout + done.stderr))
    endpoint.refused = "no such words"
    again = _querylift(tmp_path, "warm", "log.txt")
    assert (again.returncode, "1 made, 2 already there" in again.stdout) == (0, True)


def test_a_table_lacks_a_query_that_failed_until_the_same_command_succeeds(tmp_path: Path, endpoint: Endpoint) -> None:
    _settings(tmp_path, endpoint.generator, cache=False)
    _log(tmp_path, "axon terminal", "poison ivy")
    endpoint.refused = "poison"
    export = ("export-table", "log.txt", "--out", "t.jsonl")
    assert _querylift(tmp_path, *export).returncode == 1
    assert [row["query"] for row in _rows(tmp_path / "t.jsonl")] == ["axon terminal"]
    endpoint.refused = "no such words"
    done = _querylift(tmp_path, *export)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "t.jsonl: 2 queries")
    assert [row["query"] for row in _rows(tmp_path / "t.jsonl")] == ["axon terminal", "poison ivy"]
    assert not (tmp_path / "t.jsonl.part").exists()


def test_more_queries_than_the_cache_file_keeps_are_warned_of(tmp_path: Path, endpoint: Endpoint) -> None:
    _settings(tmp_path, endpoint.generator)
    _log(tmp_path, "rare words", "axon terminal\t9", "what is an axon\t5")
    done = _querylift(tmp_path, "warm", "log.txt", QUERYLIFT_CACHE__SIZE="2")
    assert done.returncode == 0
    assert done.stderr == (
        "cache.size is 2, and the cache file keeps no more than that: of 3 queries only the 2 most frequent are made; "
        "raise it, for serve too\n"
    )
    assert "3 distinct: 2 made, 0 already there, 0 skipped, 0 failed, 1 left" in done.stdout
    assert sorted(endpoint.asked) == ["axon terminal", "what is an axon"]


def test_a_cache_file_forgets_the_oldest_which_warming_would_make_the_most_frequent(tmp_path: Path) -> None:
    """Why no more than cache.size are made."""

    async def main() -> list[bool]:
        cache = FileCache(tmp_path / "kept.db", 10, time.monotonic)
        for i in range(1000):
            await cache.set(str(i), "x", ttl_s=100 + i)
        await cache.close()
        again = FileCache(tmp_path / "kept.db", 10, time.monotonic)
        there = [await again.get(str(i)) is not None for i in range(1000)]
        await again.close()
        return there

    assert asyncio.run(main()) == [False] * 990 + [True] * 10


def test_a_disk_that_is_full_ends_the_run_with_what_was_kept(tmp_path: Path, endpoint: Endpoint) -> None:
    """A limit on the size of files stands for the disk."""
    _settings(tmp_path, endpoint.generator, cache=False)
    _log(tmp_path, *(f"axon terminal {'very ' * 30} number {'x' * i}" for i in range(1, 31)))
    given = _command("export-table", "log.txt", "--out", "t.jsonl")
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # noqa: E731
    done = subprocess.run(cwd=tmp_path, capture_output=True, timeout=120, check=False, preexec_fn=small, **given)
    assert done.returncode == 1
    assert done.stderr == (
        "querylift: t.jsonl.part takes nothing more: File too large; mend that and go on with the same command\n"
    )
    assert (tmp_path / "t.jsonl.part").read_bytes().endswith(b"}\n")
    again = _querylift(tmp_path, "export-table", "log.txt", "--out", "t.jsonl")
    assert (again.returncode, again.stdout.splitlines()[0]) == (0, "t.jsonl: 30 queries")
    made = {row["query"] for row in _rows(tmp_path / "t.jsonl")}
    assert made == set(endpoint.answered) and len(made) == 30


def _obey_control_c() -> None:
    """What a shell starts in the background ignores it, and so would the command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_control_c_ends_cleanly_and_the_same_command_goes_on(tmp_path: Path, endpoint: Endpoint) -> None:
    _settings(tmp_path, endpoint.generator)
    _log(tmp_path, *QUERIES)
    endpoint.most = 5
    given = _command("warm", "log.txt", "--concurrency", "3")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(cwd=tmp_path, preexec_fn=_obey_control_c, **pipes, **given) as process:
        assert _within(60, lambda: len(_values(tmp_path)) == 5 and len(endpoint.asked) == 8)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "")
    assert "12 distinct: 5 made, 0 already there, 0 skipped, 0 failed, 7 left;" in out
    endpoint.most = 10**9
    again = _querylift(tmp_path, "warm", "log.txt")
    assert "7 made, 5 already there" in again.stdout
    assert Counter(endpoint.answered) == Counter(QUERIES)


@pytest.mark.parametrize("command", [("warm", "log.txt"), ("export-table", "log.txt", "--out", "t.jsonl")])
def test_after_a_kill_nothing_is_generated_twice_and_nothing_is_missing(
    tmp_path: Path, endpoint: Endpoint, command: tuple[str, ...]
) -> None:
    _settings(tmp_path, endpoint.generator, cache=command[0] == "warm")
    _log(tmp_path, *QUERIES)
    endpoint.most = 5

    def kept() -> int:
        part = tmp_path / "t.jsonl.part"
        return len(_values(tmp_path)) if command[0] == "warm" else part.exists() and part.read_bytes().count(b"\n") - 1

    given = _command(*command, "--concurrency", "3")
    with subprocess.Popen(cwd=tmp_path, stdout=subprocess.DEVNULL, **given) as process:
        assert _within(60, lambda: kept() == 5 and len(endpoint.asked) == 8)
        process.kill()
    endpoint.most = 10**9
    again = _querylift(tmp_path, *command)
    assert again.returncode == 0, again.stderr
    assert "7 made, 5 already there" in again.stdout
    assert Counter(endpoint.answered) == Counter(QUERIES)
    if command[0] == "warm":
        assert len(_values(tmp_path)) == 12
    else:
        assert [row["query"] for row in _rows(tmp_path / "t.jsonl")] == list(QUERIES)


def test_query_texts_are_in_no_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    generator = Moody({"poison ivy": [GeneratorError("no")] * 9, "axon": [ValueError("axon")] * 9})
    tally = _make(generator, Shelf(), "poison ivy", "axon", "terminal")
    assert tally.failed == 2
    told = caplog.text + tally.line() + tally.first_failure + repr(_asks("poison ivy")) + repr(Plan(_asks("axon"), {}))
    assert not re.search("poison|ivy|axon|terminal", told)


# With the real model.


@pytest.mark.model
def test_a_model_killed_half_way_writes_the_rest_and_the_proxys_search_finds_it(tmp_path: Path) -> None:
    more = "[llama]\nslots = 2\n"
    _settings(tmp_path, "llama", more=more)
    _log(tmp_path, *QUERIES[:6])
    with subprocess.Popen(cwd=tmp_path, stdout=subprocess.DEVNULL, **_command("warm", "log.txt")) as process:
        assert _within(150, lambda: len(_values(tmp_path)) >= 2)
        process.kill()
    kept = len(_values(tmp_path))
    again = _querylift(tmp_path, "warm", "log.txt")
    assert again.returncode == 0, again.stderr
    assert f"6 distinct: {6 - kept} made, {kept} already there, 0 skipped, 0 failed;" in again.stdout
    for query in QUERIES[:2]:
        shown = json.loads(_querylift(tmp_path, "explain", query, "--index", "docs", "--json").stdout)
        assert shown["outcome"] == "cached"
    exported = _querylift(tmp_path, "export-table", "log.txt", "--out", "t.jsonl")
    assert "0 made, 6 already there" in exported.stdout
    assert sorted(json.loads(value)["text"] for value in _values(tmp_path)) == sorted(
        expansion.text for expansion in _read_back(tmp_path / "t.jsonl", *QUERIES[:6]) if expansion
    )


@pytest.mark.model
def test_a_table_of_the_real_model_serves_its_words_as_it_wrote_them(tmp_path: Path) -> None:
    _settings(tmp_path, "llama:base", cache=False)
    _log(tmp_path, *QUERIES[-8:])
    done = _querylift(tmp_path, "export-table", "log.txt", "--out", "t.jsonl")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "t.jsonl: 8 queries"), done.stderr

    async def written() -> list[Expansion | None]:
        generator = LlamaGenerator(packaged_model(), max_seconds=200)
        await generator.start()
        try:
            return list(await asyncio.gather(*(generator.expand(Ask(query)) for query in QUERIES[-8:])))
        finally:
            await generator.close()

    assert _read_back(tmp_path / "t.jsonl", *QUERIES[-8:]) == asyncio.run(written())


@pytest.mark.model
def test_queries_of_which_the_model_has_too_many_under_way_are_all_made() -> None:
    """More lanes than slots and queue: the generator is busy, and no query is lost."""

    async def main() -> None:
        generator, shelf, tally = (
            LlamaGenerator(packaged_model(), slots=2, queue_size=1, max_seconds=200),
            Shelf(),
            Tally(),
        )
        await generator.start()
        try:
            await Maker(generator, shelf, tally, lanes=8).run(_asks(*QUERIES[:6]), lambda: None)
        finally:
            await generator.close()
        assert sorted(shelf.kept) == sorted(QUERIES[:6])
        assert (tally.made, tally.failed) == (6, 0)

    asyncio.run(main())


@pytest.mark.model
def test_a_worker_that_is_killed_under_way_costs_no_query() -> None:
    async def main() -> None:
        generator, shelf, tally = LlamaGenerator(packaged_model(), slots=2, max_seconds=200), Shelf(), Tally()
        await generator.start()
        try:
            making = asyncio.ensure_future(
                Maker(generator, shelf, tally, lanes=4).run(_asks(*QUERIES[:8]), lambda: None)
            )
            while len(shelf.kept) < 3:
                await asyncio.sleep(0.02)
            os.kill(generator.pid or 0, signal.SIGKILL)
            await making
        finally:
            await generator.close()
        assert sorted(shelf.kept) == sorted(QUERIES[:8])
        assert (tally.made, tally.failed, generator.restarts) == (8, 0, 1)

    asyncio.run(main())
