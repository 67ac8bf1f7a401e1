"""Warming plans exactly the requests that serving makes."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from querylift.plugin.broker import ExpansionBroker
from querylift.plugin.cache import MemoryCache
from querylift.plugin.errors import SettingsError
from querylift.plugin.flow import ExpansionRules, Search, make_match_body, run_flow_async, search_flow
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.settings import parse_settings
from querylift.plugin.settings_tables.index import IndexSettings
from querylift.plugin.testing import ManualClock, ScriptedGenerator
from querylift.plugin.warming.planning import RequestPlanner, make_request_planner, plan_warming
from querylift.plugin.warming.query_log import QueryLog
from querylift.plugin.warming.table_store import make_table_key
from tests.helpers.warming import plan_queries

QUERIES = (
    "axon terminal", '"axon terminal"', "B00X-12", "axon*", "long " * 257, "axon ", "Axon terminal", " ", "神経細胞",
    "what's an axon?", "\x00", "axon\x00terminal",
)  # fmt: skip


@pytest.mark.parametrize("reads_index", [False, True])
def test_the_plan_holds_the_requests_of_served_searches_and_skips_the_same_queries(reads_index: bool) -> None:
    settings = parse_settings({"index": {"docs": {"fields": ["text"]}}})
    generator = ScriptedGenerator({})
    generator.reads_index = reads_index

    async def serve_queries() -> tuple[list[str], Counter[str]]:
        reasons: Counter[str] = Counter()
        broker = ExpansionBroker(generator, MemoryCache(99, ManualClock()), clock=ManualClock())
        for query in QUERIES:
            flow = search_flow(
                Search("docs", make_match_body(query, "text")), ExpansionRules(settings, clock=ManualClock())
            )
            reasons[(await run_flow_async(flow, broker.answer)).outcome.reason] += 1
        await broker.close()
        return generator.queries, reasons

    plan = plan_queries(QUERIES, make_request_planner(settings, "none", generator, "docs"), generator)
    served_queries, reasons = asyncio.run(serve_queries())
    assert [request.text for request in plan.requests] == served_queries
    assert plan.skip_counts == {reason: count for reason, count in reasons.items() if reason != "nothing"}
    assert plan.skip_counts == {"quoted": 1, "code": 3, "wildcard": 1, "long": 1, "no-text": 1}


def test_without_an_index_a_query_is_planned_when_any_enabled_table_allows_it() -> None:
    tables = {"a": {"max_query_words": 2}, "b-*": {"max_query_words": 4}, "c": {"max_query_words": 9, "enabled": False}}
    planner = make_request_planner(parse_settings({"index": tables}), "none", ScriptedGenerator({}), None)
    assert planner.find_request("one two three four") == ExpansionRequest("one two three four", "any", ("text",))
    assert planner.find_request("one two three four five") == "long"


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
def test_settings_that_make_no_request_are_refused_with_the_remedy(
    settings: dict[str, Any], index: str | None, reads_index: bool, sentence: str
) -> None:
    generator = ScriptedGenerator({})
    generator.reads_index = reads_index
    with pytest.raises(SettingsError, match=sentence):
        make_request_planner(parse_settings({"generator": "feedback", **settings}), "feedback", generator, index)


def test_of_queries_that_differ_only_in_case_the_most_frequent_one_is_planned() -> None:
    log = QueryLog(9, ("Axon terminal", "neuron", "axon terminal"))
    planner = RequestPlanner.for_any_index([IndexSettings()])
    plan = plan_warming(log, planner, make_key=make_table_key)
    assert [request.text for request in plan.requests] == ["Axon terminal", "neuron"]
