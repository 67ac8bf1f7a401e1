"""The flow decides what is sent; it needs no network, no clock and no model."""

import json
import logging
from collections.abc import Callable

import pytest

from querylift.plugin import dsl
from querylift.plugin.broker import Answer, Question
from querylift.plugin.expansion import Expansion
from querylift.plugin.flow import (
    Refused,
    Result,
    Rules,
    Search,
    explain,
    join_msearch,
    run,
    search_flow,
    split_msearch,
    summary,
)
from querylift.plugin.outcome import KINDS, REASONS, Outcome
from querylift.plugin.proxy.journal import query_hash
from querylift.plugin.settings import check
from querylift.plugin.testing import ManualClock

BODY = b'{"query": {"match": {"text": "download  a page"}}}'
PAGE = Expansion(text="urlopen fetches")
EXPANDED = Answer(PAGE, Outcome("expanded"))


def _rules(clock: ManualClock | None = None, **settings: object) -> Rules:
    given = {"index": {"docs": {"weight": 0.5}, "off": {"enabled": False}}} | settings
    return Rules(check(given), clock=clock or ManualClock())


def _answering(answer: Answer) -> Callable[[Question], Answer]:
    return lambda question: answer


def _run(search: Search, rules: Rules | None = None, answer: Answer = EXPANDED) -> Result:
    return run(search_flow(search, rules or _rules()), _answering(answer))


def test_a_search_on_a_listed_index_gains_the_expansion() -> None:
    result = _run(Search("docs", BODY))
    assert result.outcome == Outcome("expanded")
    assert json.loads(result.body or b"") == {
        "query": {
            "bool": {
                "must": [{"match": {"text": "download  a page"}}],
                "should": [{"match": {"text": {"query": "urlopen fetches", "boost": 0.5, "lenient": True}}}],
            }
        }
    }


def test_the_question_carries_the_words_the_fields_and_the_deadline() -> None:
    asked: list[Question] = []

    def answer(question: Question) -> Answer:
        asked.append(question)
        return EXPANDED

    run(search_flow(Search("docs", BODY, deadline_s=7), _rules()), answer)
    assert (asked[0].ask.text, asked[0].ask.index, asked[0].ask.fields) == ("download a page", "docs", ("text",))
    assert asked[0].deadline_s == 7


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
def test_a_search_that_is_not_ours_is_left_alone_and_the_reason_is_said(
    index: str | None, body: bytes, reason: str
) -> None:
    result = _run(Search(index, body))
    assert (result.body, result.outcome) == (None, Outcome("skipped", reason))


def test_a_point_in_time_search_takes_the_table_that_the_settings_name() -> None:
    body = b'{"pit": {"id": "x"}, "query": {"match": {"text": "words here"}}}'
    assert _run(Search(None, body), _rules(pit_index="docs")).outcome == Outcome("expanded")


def test_everything_is_off_with_one_setting() -> None:
    assert _run(Search("docs", BODY), _rules(enabled=False)).outcome == Outcome("skipped", "off")


def test_an_answer_without_expansion_leaves_the_search_as_it_came() -> None:
    result = _run(Search("docs", BODY), answer=Answer(None, Outcome("late", "budget")))
    assert (result.body, result.outcome.header()) == (None, "late;budget")


def test_an_index_whose_engine_refused_pauses_and_comes_back() -> None:
    clock = ManualClock()
    rules = _rules(clock)
    rules.pause("docs")
    assert _run(Search("docs", BODY), rules).outcome == Outcome("skipped", "paused")
    clock.advance(61)
    assert _run(Search("docs", BODY), rules).outcome == Outcome("expanded")


def test_a_fault_of_ours_sends_the_original(caplog: pytest.LogCaptureFixture) -> None:
    def broken(question: Question) -> Answer:
        return "no answer at all"  # type: ignore[return-value]

    with caplog.at_level(logging.ERROR, "querylift"):
        result = run(search_flow(Search("docs", BODY), _rules()), broken)
    assert (result.body, result.outcome) == (None, Outcome("error", "internal"))
    assert "the original search was sent" in caplog.text


def test_an_msearch_changes_only_the_lines_it_expands() -> None:
    raw = b'{"index":"docs"}\n{"query": {"match": {"text": "download a page"}}}\n{ "index" : "other" }\n{"query":{ }}\n'
    multi = split_msearch(raw, None, deadline_s=9)
    results = [_run(search) for search in multi.searches]
    lines = join_msearch(multi, results).split(b"\n")
    assert lines[0] == b'{"index":"docs"}'
    assert b"urlopen" in lines[1]
    assert lines[2:] == [b'{ "index" : "other" }', b'{"query":{ }}', b""]
    assert [result.outcome.header() for result in results] == ["expanded", "skipped;index"]


@pytest.mark.parametrize(
    ("header", "index"),
    [(b"{}", "url"), (b"", "url"), (b'{"index":["a","b"]}', "a,b"), (b'{"index":"a"}', "a"), (b'{"index":[]}', "url")],
)
def test_an_msearch_header_names_its_index_or_takes_the_urls(header: bytes, index: str) -> None:
    assert split_msearch(header + b"\n{}\n", "url", deadline_s=1).searches[0].index == index


def test_an_msearch_whose_lines_do_not_pair_up_is_left_alone() -> None:
    with pytest.raises(dsl.Skip, match="JSON"):
        split_msearch(b"{}\n{}\n{}\n", None, deadline_s=1)


def test_an_msearch_of_very_many_searches_is_left_alone_at_once() -> None:
    with pytest.raises(Refused) as raised:
        split_msearch(b"{}\n{}\n" * 100_000, "docs", deadline_s=1)
    assert raised.value.reason == "too-many-searches"


def test_a_very_long_index_expression_is_not_looked_up() -> None:
    assert _run(Search("docs," * 1000, BODY)).outcome == Outcome("skipped", "index")


def test_several_outcomes_sum_up_to_the_applied_one() -> None:
    skipped = Result(None, Outcome("skipped", "index"))
    assert summary([skipped, skipped, Result(b"{}", Outcome("cached"))]) == Outcome("cached")
    assert summary([skipped]) == Outcome("skipped", "index")
    assert summary([]) == Outcome("skipped", "no-text")


def test_explain_says_what_is_sent_and_why() -> None:
    search = Search("docs", BODY)
    told = explain(_run(search), search)
    assert (told["outcome"], told["text"], told["expansion"]) == (
        "expanded",
        "download a page",
        {"text": "urlopen fetches"},
    )
    off = explain(_run(Search("off", BODY)), Search("off", BODY))
    assert off["body"] == {"query": {"match": {"text": "download  a page"}}}
    assert off["sentence"] == "skipped: expansion is switched off, by the request or by the settings"


def test_no_repr_shows_the_users_words() -> None:
    search = Search("docs", BODY)
    for shown in (repr(search), repr(_run(search)), repr(Question(search_question().ask, 1)), repr(PAGE)):
        assert "page" not in shown
        assert "urlopen" not in shown


def search_question() -> Question:
    asked: list[Question] = []

    def answer(question: Question) -> Answer:
        asked.append(question)
        return EXPANDED

    run(search_flow(Search("docs", BODY), _rules()), answer)
    return asked[0]


def test_every_reason_has_a_sentence_and_an_unknown_one_is_refused() -> None:
    assert all(sentence and "\n" not in sentence for sentence in REASONS.values())
    with pytest.raises(ValueError, match="no reason"):
        Outcome("skipped", "whim")
    assert set(KINDS) == {"expanded", "cached", "skipped", "late", "error"}


def test_a_query_hash_stands_for_a_query_without_showing_it() -> None:
    assert query_hash("download a page") == query_hash("download a page") != query_hash("download a file")
    assert len(query_hash("x")) == 16
