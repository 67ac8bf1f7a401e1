"""A search that comes again with the same bytes is read once. Everything else about it is decided anew."""

import json
from typing import Any

import pytest

from querylift.plugin.broker import Answer, Question
from querylift.plugin.expansion import Expansion
from querylift.plugin.flow import ExpansionRules, FlowResult, Search, run_flow, search_flow
from querylift.plugin.outcome import Outcome
from querylift.plugin.search_memory import MAX_REMEMBERED_BYTES, ParsedSearch, SearchMemory
from querylift.plugin.settings import parse_settings
from querylift.plugin.testing import ManualClock
from tests.helpers.paths import TEST_DATA

BODY = b'{"query": {"match": {"text": "download a page"}}}'
FIRST, SECOND = Expansion(text="urlopen fetches"), Expansion(text="httpx client")
PLAIN_CASES = [
    case
    for path in sorted((TEST_DATA / "dsl").glob("*.json"))
    for case in json.loads(path.read_text("utf-8"))
    if "body" in case and "expected" in case and not case.keys() & {"params", "nest", "fill"}
]


def _make_rules(clock: ManualClock | None = None, **table: Any) -> ExpansionRules:
    return ExpansionRules(parse_settings({"index": {"docs": table}}), clock=clock or ManualClock())


def _run(rules: ExpansionRules, search: Search, expansion: Expansion = FIRST) -> FlowResult:
    return run_flow(search_flow(search, rules), lambda question: Answer(expansion, Outcome("cached")))


@pytest.mark.parametrize("case", PLAIN_CASES, ids=[case["name"] for case in PLAIN_CASES])
def test_a_remembered_search_is_rewritten_as_the_first_time(case: dict[str, Any]) -> None:
    policy = case.get("policy", {})
    expansion = Expansion.from_json(case.get("expansion", {"text": "myocardial infarction"}))
    search = Search("docs", json.dumps(case["body"]).encode())
    rules = _make_rules(**policy)
    results = [_run(rules, search, chosen) for chosen in (expansion, SECOND, expansion, expansion)]
    assert [result.body for result in results[2:]] == [results[0].body] * 2
    assert json.loads(results[0].body or b"") == case["expected"]
    assert results[1].body == _run(_make_rules(**policy), search, SECOND).body


def test_the_question_of_a_remembered_search_has_its_own_deadline_and_client() -> None:
    questions: list[Question] = []

    def answer(question: Question) -> Answer:
        questions.append(question)
        return Answer(FIRST, Outcome("cached"))

    rules = _make_rules(budget_ms=100)
    for client, started_s in (("ann", 1.0), ("bob", 5.0)):
        run_flow(search_flow(Search("docs", BODY, client=client, started_s=started_s), rules), answer)
    assert [(question.client, question.deadline_s) for question in questions] == [("ann", 1.1), ("bob", 5.1)]
    assert questions[0].request is questions[1].request


def test_a_remembered_search_is_not_expanded_while_expansion_pauses() -> None:
    clock = ManualClock()
    rules = _make_rules(clock)
    assert _run(rules, Search("docs", BODY)).outcome == Outcome("cached")
    rules.pause_index("docs")
    assert _run(rules, Search("docs", BODY)).outcome == Outcome("skipped", "paused")
    clock.advance(61)
    assert _run(rules, Search("docs", BODY)).outcome == Outcome("cached")


def test_searches_that_differ_in_index_body_or_parameters_are_read_apart() -> None:
    rules = _make_rules()
    asked = {"query": {"match": {"text": "download a page"}}, "from": 10}
    questions: list[Question] = []

    def answer(question: Question) -> Answer:
        questions.append(question)
        return Answer(None, Outcome("skipped", "nothing"))

    for body in (BODY, json.dumps(asked).encode(), BODY):
        run_flow(search_flow(Search("docs", body), rules), answer)
    assert [question.continues_hits for question in questions] == [False, True, False]
    assert _run(rules, Search("other", BODY)).outcome == Outcome("skipped", "index")


def test_a_large_body_and_a_search_without_an_index_are_not_remembered() -> None:
    rules = ExpansionRules(parse_settings({"pit_index": "docs", "index": {"docs": {}}}), clock=ManualClock())
    pit_body = json.dumps({**json.loads(BODY), "pit": {"id": "p"}}).encode()
    large_body = json.dumps({**json.loads(BODY), "ext": {"note": "x" * MAX_REMEMBERED_BYTES}}).encode()
    for search in (Search(None, pit_body), Search("docs", large_body)):
        assert _run(rules, search).outcome == Outcome("cached")
        assert rules.memory.find((search.index, search.body, search.url_parameters)) is None


def test_the_search_that_has_not_come_for_longest_is_forgotten_first() -> None:
    memory = SearchMemory(2)
    searches = [Search("docs", BODY + b" " * number) for number in range(3)]
    keys = [(search.index, search.body, search.url_parameters) for search in searches]
    rules = _make_rules()
    _run(rules, searches[0])
    parsed_search = rules.memory.find(keys[0])
    assert isinstance(parsed_search, ParsedSearch)
    for key in (keys[0], keys[1]):
        memory.add(key, parsed_search)
    assert memory.find(keys[0]) is parsed_search
    memory.add(keys[2], parsed_search)
    assert [memory.find(key) is parsed_search for key in keys] == [True, False, True]
