"""A flow decides which body is sent. It needs no network, no clock and no model."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from querylift.plugin import dsl
from querylift.plugin.broker import Answer, Question
from querylift.plugin.expansion import Expansion
from querylift.plugin.flow import (
    ExpansionRules,
    FlowResult,
    Search,
    explain_result,
    run_flow,
    search_flow,
    summarize_outcomes,
)
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.outcome import OUTCOME_KINDS, REASONS, Outcome
from querylift.plugin.proxy.query_records.record import hash_query
from querylift.plugin.settings import parse_settings
from querylift.plugin.testing import ManualClock

BODY = b'{"query": {"match": {"text": "download  a page"}}}'
MATCH = {"match": {"text": "download a page"}}
ALL_WORDS = {"match": {"text": {"query": "download a page", "operator": "and"}}}
PAGE = Expansion(text="urlopen fetches")
EXPANDED = Answer(PAGE, Outcome("expanded"))


def _make_rules(clock: ManualClock | None = None, **settings: object) -> ExpansionRules:
    values = {"index": {"docs": {"weight": 0.5}, "off": {"enabled": False}}} | settings
    return ExpansionRules(parse_settings(values), clock=clock or ManualClock())


def _make_answerer(answer: Answer) -> Callable[[Question], Answer]:
    return lambda question: answer


def _run_search(search: Search, rules: ExpansionRules | None = None, answer: Answer = EXPANDED) -> FlowResult:
    return run_flow(search_flow(search, rules or _make_rules()), _make_answerer(answer))


def test_a_search_on_a_listed_index_gains_the_expansion() -> None:
    result = _run_search(Search("docs", BODY))
    assert result.outcome == Outcome("expanded")
    assert json.loads(result.body or b"") == {
        "query": {
            "bool": {
                "must": [{"match": {"text": "download  a page"}}],
                "should": [{"match": {"text": {"query": "urlopen fetches", "boost": 0.5, "lenient": True}}}],
            }
        }
    }


def test_the_question_holds_the_query_the_fields_and_the_deadline() -> None:
    questions: list[Question] = []

    def answer(question: Question) -> Answer:
        questions.append(question)
        return EXPANDED

    run_flow(search_flow(Search("docs", BODY, deadline_s=7), _make_rules()), answer)
    assert questions[0].request == ExpansionRequest("download a page", "docs", ("text",))
    assert questions[0].deadline_s == 7
    assert not questions[0].shows_words


@pytest.mark.parametrize(
    ("body", "url_parameters", "shows_words"),
    [
        ({"profile": True}, {}, True),
        ({"profile": "true"}, {}, True),
        ({"profile": False}, {}, False),
        ({"explain": True}, {}, True),
        ({"aggs": {"top": {"top_hits": {"explain": True}}}}, {}, True),
        ({}, {"explain": ""}, True),
        ({}, {"explain": "true"}, True),
        ({}, {"explain": "false"}, False),
        ({"_source": ["profile", "explain"]}, {}, False),
    ],
)
def test_the_question_says_whether_the_answer_will_show_the_words(
    body: dict[str, Any], url_parameters: dict[str, str], shows_words: bool
) -> None:
    questions: list[Question] = []

    def answer(question: Question) -> Answer:
        questions.append(question)
        return EXPANDED

    raw = json.dumps(body | {"query": {"match": {"text": "download a page"}}}).encode()
    run_flow(search_flow(Search("docs", raw, dsl.UrlParameters(**url_parameters)), _make_rules()), answer)
    assert [question.shows_words for question in questions] == [shows_words]


@pytest.mark.parametrize(
    ("index", "body", "reason"),
    [
        ("other", BODY, "index"),
        (None, BODY, "index"),
        ("off", BODY, "off"),
        (None, b'{"pit": {"id": "x"}, "query": {"match": {"text": "words here"}}}', "pit"),
        ("docs", b"{", "not-json"),
        ("docs", b"", "not-json"),
        ("docs", b'{"size": 0, "query": {"match": {"text": "words here"}}}', "size-0"),
    ],
)
def test_a_search_that_is_not_expanded_stays_unchanged_and_has_a_reason(
    index: str | None, body: bytes, reason: str
) -> None:
    result = _run_search(Search(index, body))
    assert (result.body, result.outcome) == (None, Outcome("skipped", reason))


def test_a_point_in_time_search_uses_the_table_of_pit_index() -> None:
    body = b'{"pit": {"id": "x"}, "query": {"match": {"text": "words here"}}}'
    assert _run_search(Search(None, body), _make_rules(pit_index="docs")).outcome == Outcome("expanded")


def test_one_setting_switches_expansion_off_everywhere() -> None:
    assert _run_search(Search("docs", BODY), _make_rules(enabled=False)).outcome == Outcome("skipped", "off")


def test_an_answer_without_expansion_leaves_the_search_unchanged() -> None:
    result = _run_search(Search("docs", BODY), answer=Answer(None, Outcome("late", "budget")))
    assert (result.body, result.outcome.format_header()) == (None, "late;budget")


@pytest.mark.parametrize(
    ("changes", "url_parameters", "is_later_page"),
    [
        ({}, {}, False),
        ({"from": 0}, {}, False),
        ({"from": 10}, {}, True),
        ({}, {"from": "10"}, True),
        ({}, {"from": "0"}, False),
        ({"search_after": [1.5]}, {}, True),
    ],
)
def test_a_question_says_whether_the_search_asks_for_a_later_page(
    changes: dict[str, object], url_parameters: dict[str, str], is_later_page: bool
) -> None:
    body = json.dumps(json.loads(BODY) | changes).encode()
    search = Search("docs", body, dsl.UrlParameters.from_mapping(url_parameters))
    assert next(search_flow(search, _make_rules())).continues_hits == is_later_page


def test_an_index_pauses_after_a_rejection_and_resumes_later() -> None:
    clock = ManualClock()
    rules = _make_rules(clock)
    rules.pause_index("docs")
    assert _run_search(Search("docs", BODY), rules).outcome == Outcome("skipped", "paused")
    clock.advance(61)
    assert _run_search(Search("docs", BODY), rules).outcome == Outcome("expanded")


def test_a_fault_of_querylift_sends_the_original_search(caplog: pytest.LogCaptureFixture) -> None:
    def answer_wrongly(question: Question) -> Answer:
        return "no answer at all"  # type: ignore[return-value]

    with caplog.at_level(logging.ERROR, "querylift"):
        result = run_flow(search_flow(Search("docs", BODY), _make_rules()), answer_wrongly)
    assert (result.body, result.outcome) == (None, Outcome("error", "internal"))
    assert "the original search was sent" in caplog.text


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ({"query": MATCH}, "expanded"),
        ({"query": MATCH, "aggs": {"t": {"terms": {"field": "tag"}}}}, "expanded;same-hits"),
        ({"query": MATCH, "aggregations": {"t": {"terms": {"field": "tag"}}}}, "expanded;same-hits"),
        ({"query": MATCH, "collapse": {"field": "tag"}}, "expanded;same-hits"),
        ({"retriever": {"standard": {"query": MATCH, "collapse": {"field": "tag"}}}}, "expanded;same-hits"),
        ({"query": ALL_WORDS}, "expanded;required-words"),
        ({"query": {"bool": {"should": [MATCH, ALL_WORDS]}}}, "expanded"),
        (
            {"query": {"bool": {"should": [MATCH, {"term": {"a": 1}}], "minimum_should_match": 2}}},
            "expanded;required-words",
        ),
    ],
)
def test_a_search_under_widen_that_is_served_as_boost_says_why(body: dict[str, Any], outcome: str) -> None:
    search = Search("docs", json.dumps(body).encode())
    widening = _make_rules(index={"docs": {"mode": "widen"}})
    assert _run_search(search, widening).outcome.format_header() == outcome
    assert _run_search(search).outcome.format_header() == "expanded"
    cached = _run_search(search, widening, Answer(PAGE, Outcome("cached")))
    assert cached.outcome.format_header() == outcome.replace("expanded", "cached")


def test_a_very_long_index_expression_matches_no_table() -> None:
    assert _run_search(Search("docs," * 1000, BODY)).outcome == Outcome("skipped", "index")


def test_the_summary_of_several_outcomes_is_an_expanded_one_if_there_is_any() -> None:
    skipped = FlowResult(None, Outcome("skipped", "index"))
    assert summarize_outcomes([skipped, skipped, FlowResult(b"{}", Outcome("cached"))]) == Outcome("cached")
    assert summarize_outcomes([skipped]) == Outcome("skipped", "index")
    assert summarize_outcomes([]) == Outcome("skipped", "no-text")


def test_an_explanation_has_the_sent_body_and_the_reason() -> None:
    search = Search("docs", BODY)
    explanation = explain_result(_run_search(search), search)
    assert (explanation["outcome"], explanation["text"], explanation["expansion"]) == (
        "expanded",
        "download a page",
        {"text": "urlopen fetches"},
    )
    off_explanation = explain_result(_run_search(Search("off", BODY)), Search("off", BODY))
    assert off_explanation["body"] == {"query": {"match": {"text": "download  a page"}}}
    assert off_explanation["sentence"] == "skipped: expansion is switched off, by the request or by the settings"


def test_no_repr_shows_the_query() -> None:
    search = Search("docs", BODY)
    for text in (repr(search), repr(_run_search(search)), repr(Question(_capture_question().request, 1)), repr(PAGE)):
        assert "page" not in text
        assert "urlopen" not in text


def _capture_question() -> Question:
    questions: list[Question] = []

    def answer(question: Question) -> Answer:
        questions.append(question)
        return EXPANDED

    run_flow(search_flow(Search("docs", BODY), _make_rules()), answer)
    return questions[0]


def test_every_reason_has_a_sentence_and_an_unknown_reason_is_refused() -> None:
    assert all(sentence and "\n" not in sentence for sentence in REASONS.values())
    with pytest.raises(ValueError, match="is not a reason"):
        Outcome("skipped", "whim")
    assert set(OUTCOME_KINDS) == {"expanded", "cached", "skipped", "late", "error"}


def test_a_query_hash_stands_for_a_query_without_showing_it() -> None:
    assert hash_query("download a page") == hash_query("download a page") != hash_query("download a file")
    assert len(hash_query("x")) == 16
