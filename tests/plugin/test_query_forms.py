"""A query has one form for look-ups, however a keyboard wrote its letters."""

import asyncio
import hashlib
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from querylift.plugin.broker import ExpansionBroker
from querylift.plugin.cache import MemoryCache, cache_key
from querylift.plugin.expansion import PROMPT_VERSION, Expansion, build_prompt, clean_query, fold_query, normalize_query
from querylift.plugin.flow import ExpansionRules, Search, make_match_body, run_flow_async, search_flow
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.table import TableGenerator
from querylift.plugin.outcome import Outcome
from querylift.plugin.settings import parse_settings
from querylift.plugin.testing import ManualClock, ScriptedGenerator
from querylift.plugin.warming.table_store import TableStore
from tests.helpers.warming import read_expansions

CAFE = "caf\u00e9 crema"
CAFE_DECOMPOSED = "cafe\u0301 crema"
CAFE_FULL_WIDTH = "\uff43\uff41\uff46\u00e9\u3000\uff43\uff52\uff45\uff4d\uff41"
BEANS = Expansion(text="espresso beans")


@pytest.mark.parametrize("query", [CAFE, CAFE_DECOMPOSED, CAFE_FULL_WIDTH])
def test_a_cached_expansion_serves_every_form_of_its_query(query: str) -> None:
    generator = ScriptedGenerator({CAFE: BEANS})

    async def main() -> None:
        clock = ManualClock()
        broker = ExpansionBroker(generator, MemoryCache(9, clock), clock=clock)
        rules = ExpansionRules(parse_settings({"index": {"docs": {}}}), clock=clock)
        for text, outcome in ((query, Outcome("expanded")), (CAFE, Outcome("cached"))):
            flow = search_flow(Search("docs", make_match_body(text, "text")), rules)
            assert (await run_flow_async(flow, broker.answer)).outcome == outcome
        await broker.close()

    asyncio.run(main())
    assert generator.queries == [CAFE]  # so the expansion does not depend on the form that came first


@pytest.mark.parametrize("line_query", [CAFE, CAFE_DECOMPOSED, "CAF\u00c9 CREMA", CAFE_FULL_WIDTH])
@pytest.mark.parametrize("query", [CAFE, CAFE_DECOMPOSED, CAFE_FULL_WIDTH])
def test_a_table_line_serves_every_form_of_its_query(tmp_path: Path, line_query: str, query: str) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text(f'{{"query": "{line_query}", "text": "espresso beans"}}\n', encoding="utf-8")

    async def look_up() -> Expansion | None:
        table = TableGenerator(path)
        await table.start()
        return await table.expand(ExpansionRequest(query))

    assert asyncio.run(look_up()) == BEANS


def test_an_exported_table_holds_one_line_for_every_form_of_a_query(tmp_path: Path) -> None:
    store = TableStore(tmp_path / "t.jsonl", ScriptedGenerator({}))
    asyncio.run(store.save(ExpansionRequest(CAFE), BEANS))
    assert asyncio.run(store.has_answer(ExpansionRequest(CAFE_DECOMPOSED)))
    assert store.write_table([ExpansionRequest(CAFE_FULL_WIDTH)], is_complete=True) == 1
    store.close()
    assert read_expansions(tmp_path / "t.jsonl", CAFE_DECOMPOSED) == [BEANS]


@pytest.mark.parametrize("query", ["axon terminal", "what is 3 < 4?", CAFE, "US", "東京の天気", "می‌خواهم"])
def test_the_keys_and_prompts_of_queries_in_the_common_form_have_not_changed(query: str) -> None:
    assert normalize_query(query) == query
    assert build_prompt(normalize_query(query)) == build_prompt(query)
    text_of_key = "\x00".join(["scripted", PROMPT_VERSION, clean_query(query)])
    assert cache_key(ScriptedGenerator({}), ExpansionRequest(query)) == hashlib.sha256(text_of_key.encode()).hexdigest()


@given(st.text())
def test_the_form_of_a_query_is_its_own_form(text: str) -> None:
    assert normalize_query(normalize_query(text)) == normalize_query(text)
    assert fold_query(fold_query(text)) == fold_query(text)
    valid_text = clean_query(text)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert normalize_query(unicodedata.normalize(form, valid_text)) == normalize_query(valid_text)
