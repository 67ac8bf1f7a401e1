"""An exported table gives back the words that the model wrote, and an unfinished table can be resumed."""

import asyncio
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from querylift.plugin.cache import Cache, MemoryCache, cache_key, encode_expansion
from querylift.plugin.errors import DataError, QueryliftError, SettingsError
from querylift.plugin.expansion import Expansion, clean_prose, expansion_from_terms, expansion_from_text
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.testing import ManualClock, ScriptedGenerator
from querylift.plugin.warming.table_store import TableStore, make_table_row
from tests.helpers.warming import PAGE, make_requests, read_expansions, read_json_lines

TERMS = expansion_from_terms([("neuron", 0.1 + 0.2), ("axon", 1e-9)], field="text")


def _open_store(
    out: Path, generator: ScriptedGenerator, *expansions: tuple[str, Expansion | None], cache: Cache | None = None
) -> TableStore:
    store = TableStore(out, generator, cache=cache)
    for query, expansion in expansions:
        asyncio.run(store.save(ExpansionRequest(query), expansion))
    return store


def test_a_table_has_the_expansions_in_the_order_of_the_queries(tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    store = _open_store(out, ScriptedGenerator({}), ("b", TERMS), ("c", None), ("A  x", PAGE))
    assert not out.exists()
    assert store.write_table(make_requests("A  x", "b", "c", "never made"), is_complete=True) == 2
    store.close()
    assert read_json_lines(out) == [
        {"query": "A x", "text": "urlopen fetches"},
        {"query": "b", "field": "text", "terms": {"neuron": 0.1 + 0.2, "axon": 1e-9}},
    ]
    assert read_expansions(out, "a x", "b", "c") == [PAGE, TERMS, None]
    assert os.listdir(tmp_path) == ["t.jsonl"]


def test_a_table_can_be_a_gzip_file(tmp_path: Path) -> None:
    store = _open_store(tmp_path / "t.jsonl.gz", ScriptedGenerator({}), ("a", PAGE))
    store.write_table(make_requests("a"), is_complete=True)
    store.close()
    assert read_expansions(tmp_path / "t.jsonl.gz", "a") == [PAGE]


@pytest.mark.parametrize(
    "unfinished_line", [b"", b'{"query": "c", "te', b'{"query": "c", "text": "w"}', "{ü".encode()[:-1], b"\x00" * 9]
)
def test_a_table_is_resumed_after_its_last_finished_line(tmp_path: Path, unfinished_line: bytes) -> None:
    out, generator = tmp_path / "t.jsonl", ScriptedGenerator({})
    _open_store(out, generator, ("a", PAGE), ("b", None)).close()
    part = tmp_path / "t.jsonl.part"
    finished_lines = part.read_bytes()
    part.write_bytes(finished_lines + unfinished_line)
    store = _open_store(out, generator)
    has_answers = [asyncio.run(store.has_answer(request)) for request in make_requests("a", "A", "b", "c")]
    assert has_answers == [True, True, True, False]
    assert part.read_bytes() == finished_lines
    asyncio.run(store.save(ExpansionRequest("c"), PAGE))
    assert store.write_table(make_requests("c", "a", "b"), is_complete=True) == 2
    store.close()
    assert [row["query"] for row in read_json_lines(out)] == ["c", "a"]


@pytest.mark.parametrize("size", range(60))
def test_a_part_file_may_end_anywhere_in_its_first_line(tmp_path: Path, size: int) -> None:
    out, generator = tmp_path / "t.jsonl", ScriptedGenerator({})
    _open_store(out, generator).close()
    part = tmp_path / "t.jsonl.part"
    first_line = part.read_bytes()
    part.write_bytes(first_line[:size])
    _open_store(out, generator).close()
    assert part.read_bytes() == first_line


def test_a_part_file_of_another_model_is_refused_and_stays_unchanged(tmp_path: Path) -> None:
    other_generator = ScriptedGenerator({})
    other_generator.identity = "another"
    _open_store(tmp_path / "t.jsonl", other_generator, ("a", PAGE)).close()
    part_bytes = (tmp_path / "t.jsonl.part").read_bytes()
    with pytest.raises(SettingsError, match="was begun with another model or prompt"):
        _open_store(tmp_path / "t.jsonl", ScriptedGenerator({}))
    assert (tmp_path / "t.jsonl.part").read_bytes() == part_bytes


def test_a_model_that_is_replaced_during_the_run_ends_it(tmp_path: Path) -> None:
    generator = ScriptedGenerator({})
    store = _open_store(tmp_path / "t.jsonl", generator, ("a", PAGE))
    generator.identity = "another"
    with pytest.raises(QueryliftError, match="the model was replaced"):
        asyncio.run(store.save(ExpansionRequest("b"), PAGE))
    store.close()


def test_a_part_file_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl.part").write_text("notes\n")
    with pytest.raises(DataError, match=r"t\.jsonl\.part:1: export-table did not write this line"):
        _open_store(tmp_path / "t.jsonl", ScriptedGenerator({}))
    with pytest.raises(SettingsError, match=r"cannot be written: No such file or directory; name another --out"):
        _open_store(tmp_path / "nowhere" / "t.jsonl", ScriptedGenerator({}))


def test_expansions_in_the_cache_are_copied(tmp_path: Path) -> None:
    generator, cache = ScriptedGenerator({}), MemoryCache(9, ManualClock())

    async def main() -> None:
        for query, value in (("a", encode_expansion(PAGE)), ("b", encode_expansion(None)), ("c", "{damaged")):
            await cache.set(cache_key(generator, ExpansionRequest(query)), value, ttl_s=9)
        store = TableStore(tmp_path / "t.jsonl", generator, cache=cache)
        assert [await store.has_answer(request) for request in make_requests(*"abcd")] == [True, True, False, False]
        assert store.write_table(make_requests("a", "b"), is_complete=False) == 1
        store.close()

    asyncio.run(main())
    assert read_expansions(tmp_path / "t.jsonl", "a", "b") == [PAGE, None]
    assert read_json_lines(tmp_path / "t.jsonl.part")[1:] == [{"query": "a", "text": PAGE.text}, {"query": "b"}]


@pytest.mark.parametrize(
    "text",
    ["okay here is rain", "Certainly here", "ok.com sells", "the answer is", "a.b", "ก" * 39 + "กิ" + "ก" * 30],
)
def test_a_table_gives_back_words_that_its_cleaning_would_change(tmp_path: Path, text: str) -> None:
    expansion = expansion_from_text(text)
    assert expansion is not None
    row = make_table_row("q", expansion)
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    assert read_expansions(tmp_path / "t.jsonl", "q") == [expansion]


def test_cleaning_does_change_some_words() -> None:
    """Otherwise the test above would prove nothing."""
    assert expansion_from_text(clean_prose("okay here is rain")) == Expansion(text="here is rain")


@given(st.text(st.one_of(st.sampled_from("ok here,.:-*'’_ \nกิ่ー神"), st.characters()), max_size=120))
def test_every_text_has_a_row_that_a_table_reads_back_word_for_word(text: str) -> None:
    expansion = expansion_from_text(clean_prose(text))
    if expansion is not None:
        row = make_table_row("q", expansion)
        assert row is not None and expansion_from_text(clean_prose(row["text"])) == expansion
