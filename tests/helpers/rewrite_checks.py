"""Checks that a rewrite adds expansion words, and changes nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from querylift.plugin.broker import Answer
from querylift.plugin.dsl.rewrite import UNKNOWN_FIELDS
from querylift.plugin.expansion import Expansion
from querylift.plugin.flow import ExpansionRules, Search, run_flow, search_flow
from querylift.plugin.outcome import Outcome
from querylift.plugin.policy import Policy
from querylift.plugin.settings import parse_settings
from querylift.plugin.testing import ManualClock
from tests.helpers.search_bodies import EXPANSION_WORDS, MARK, Body


def walk_json(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield every path with its value, in order."""
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from walk_json(item, (*path, key))


def to_ordered_json(value: Any) -> str:
    """Return JSON in which the order of keys counts."""
    return json.dumps(value)


def _list_fixed_subtrees(body: Body) -> list[str]:
    """Return the parts that a rewrite never changes, in order. The highlighting may hold a copy of one and is left out."""
    names = {"filter", "must_not", "functions", "neural", "constant_score", "negative", "script", "ids", "inner_hits"}
    query_parts = {key: value for key, value in body.items() if key in ("query", "retriever")}
    subtrees = [to_ordered_json(value) for path, value in walk_json(query_parts) if path and path[-1] in names]
    return [subtree for subtree in subtrees if f'{{"values": ["{MARK}' not in subtree]


def _find_added_words(rewritten: Body) -> list[tuple[tuple[Any, ...], str]]:
    """Return the paths and the texts that contain words of the expansion."""
    return [(path, value) for path, value in walk_json(rewritten) if isinstance(value, str) and MARK in value]


def _count_clauses(rewritten: Body, path: tuple[Any, ...], words: str) -> int:
    """Return the number of clauses that the words at `path` become: words times fields. A pattern counts as many fields."""
    options: Any = rewritten
    for key in path[:-1]:
        options = options[key]
    if "match" in path[-3:] or "term" in path[-3:]:
        return len(words.split())
    fields = options.get("fields", ["*"])
    return len(words.split()) * sum(UNKNOWN_FIELDS if "*" in field else 1 for field in fields)


def assert_rest_is_unchanged(body: Body, rewritten: Body) -> None:
    """Assert that everything beside the query, and every filter in it, is the same byte for byte."""
    assert list(rewritten) == list(body)
    for key in body.keys() - {"query", "retriever", "highlight"}:
        assert to_ordered_json(rewritten[key]) == to_ordered_json(body[key])
    assert _list_fixed_subtrees(rewritten) == _list_fixed_subtrees(body)


def assert_only_words_are_added(rewritten: Body, policy: Policy) -> None:
    """Assert that an expansion is only analysed text, values of terms or ids, and not more than the policy allows."""
    added_words = _find_added_words(rewritten)
    assert added_words
    for path, _ in added_words:
        assert not any(MARK in str(key) for key in path)
        is_text = path[-1] == "query" and ("match" in path[-3:] or path[-2] in ("multi_match", "combined_fields"))
        is_term = path[-1] == "value" and path[-3] == "term"
        assert is_text or is_term or _is_document_id(path), path
    word_clauses = sum(
        _count_clauses(rewritten, path, words) for path, words in added_words if not _is_document_id(path)
    )
    id_clauses = len({path[:-1] for path, _ in added_words if _is_document_id(path)})
    assert word_clauses + id_clauses <= policy.max_clauses


def _is_document_id(path: tuple[Any, ...]) -> bool:
    return path[-3:-1] == ("ids", "values")


def has_highlight_query(body: Body) -> bool:
    """Whether the client set a highlight_query of its own."""
    return isinstance(body.get("highlight"), dict) and "highlight_query" in body["highlight"]


def run_search(raw: bytes, index_settings: Body | None = None) -> tuple[str, bytes | None]:
    """Run one search with a full expansion. Return the outcome, and the rewritten body or None."""
    rules = ExpansionRules(parse_settings({"index": {"docs": index_settings or {}}}), clock=ManualClock())
    answer = Answer(Expansion(text=" ".join(EXPANSION_WORDS)), Outcome("expanded"))
    result = run_flow(search_flow(Search("docs", raw), rules), lambda question: answer)
    return result.outcome.format_header(), result.body
