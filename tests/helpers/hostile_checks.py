"""Send a hostile query through the served path, and find the faults of the bodies that were made of it.

Standard library and the served path only, so that `bench/hostile` asks a real model what the tests ask a fake one.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Awaitable, Callable, Iterator, Mapping
from itertools import groupby
from typing import Any

from querylift.plugin.broker import Answer, Question
from querylift.plugin.expansion import MAX_WORD_CHARS, MAX_WORDS
from querylift.plugin.flow import ExpansionRules, FlowResult, Search, run_flow_async, search_flow
from tests.helpers.hostile_languages import LATIN_LANGUAGES
from tests.helpers.hostile_queries import HostileQuery

INDEX = "docs"
CLAUSES: dict[str, Callable[[str], dict[str, Any]]] = {
    "match": lambda text: {"match": {"body": text}},
    "multi_match": lambda text: {"multi_match": {"query": text, "fields": ["title^3", "body"]}},
    "query_string": lambda text: {"query_string": {"query": text, "fields": ["title^3", "body"]}},
}
"""The kinds of clause in which every query is sent."""


async def run_searches(
    query: HostileQuery, rules: ExpansionRules, answer: Callable[[Question], Awaitable[Answer]]
) -> dict[str, FlowResult]:
    """Run the search for `query` once for each kind of clause. Return the results by kind."""
    return {
        kind: await run_flow_async(search_flow(Search(INDEX, build_search_body(query, kind)), rules), answer)
        for kind in CLAUSES
    }


def describe_faults(query: HostileQuery, results: Mapping[str, FlowResult]) -> list[str]:
    """Return one line for each fault of the rewritten bodies among `results`."""
    return [
        f"{query.kind}, {query.text[:60]!a}, {kind}: {fault}"
        for kind, result in results.items()
        if result.body is not None
        for fault in find_faults(query, kind, result.body)
    ]


def build_search_body(query: HostileQuery, kind: str) -> bytes:
    """Return the body that a client sends."""
    return json.dumps({"size": 10, "query": CLAUSES[kind](query.text)}, separators=(",", ":")).encode()


def find_faults(query: HostileQuery, kind: str, body: bytes) -> list[str]:
    """Return what is wrong with `body`, a rewrite of `build_search_body(query, kind)`. A right body has no faults."""
    original_clause = json.dumps(CLAUSES[kind](query.text), separators=(",", ":")).encode()
    prefix = b'{"size":10,"query":{"bool":{"must":[' + original_clause + b'],"should":['
    if not body.startswith(prefix) or not body.endswith(b"]}}}"):
        return ["the original clause does not stand in the body byte for byte"]
    added_clause = json.loads(body[len(prefix) : -len(b"]}}}")])
    match added_clause, kind:
        case {"match": {"body": {"query": str(text), "boost": float(), "lenient": True, **extra_options}}}, "match":
            pass
        case (
            {
                "multi_match": {
                    "query": str(text),
                    "boost": float(),
                    "lenient": True,
                    "fields": list(fields),
                    **extra_options,
                }
            },
            "multi_match" | "query_string",
        ) if fields == ["title^3", "body"]:
            pass
        case _:
            return [f"the added clause is not a plain one: {added_clause}"]
    if extra_options or len(added_clause) > 1:
        return [f"the added clause has options of its own: {added_clause}"]
    return [*_find_odd_words(text), *_find_foreign_text(query, text)]


def _find_odd_words(text: str) -> Iterator[str]:
    words = text.split(" ")
    if len(words) > MAX_WORDS or max(map(len, words)) > MAX_WORD_CHARS:
        yield f"{len(words)} words, the longest of {max(map(len, words))} characters"
    for word in words:
        # Letters, marks and digits. Inside a word also hyphens, apostrophes, dots, and the joiners of Persian and Hindi.
        odd_chars = [
            char for char in word if unicodedata.category(char)[0] not in "LMN" and char not in "-'’.\u200c\u200d"
        ]
        if odd_chars or not word[:1].isalnum() or (not word.isprintable() and not set("\u200c\u200d") & set(word)):
            yield f"{word!a} is not a plain word"


def _find_foreign_text(query: HostileQuery, text: str) -> Iterator[str]:
    own_text = unicodedata.normalize("NFC", query.text).casefold()
    foreign_runs = [
        run for script, run in _split_by_script(text) if script not in query.scripts and run.casefold() not in own_text
    ]
    if foreign_runs:
        yield f"letters of another script: {foreign_runs!a}"
    if query.language in LATIN_LANGUAGES and query.language != "English" and _is_english(text):
        yield f"an English answer to a query in {query.language}"


def _split_by_script(text: str) -> Iterator[tuple[str, str]]:
    """Yield a script and its letters, wherever the script changes. One or two Greek letters are symbols, not Greek."""
    for script, letters in groupby((char for char in text if char.isalpha() or char == " "), key=_find_script):
        run = "".join(letters)
        if script and (script != "GREEK" or len(run) > 2):
            yield script, run


def _find_script(letter: str) -> str:
    """Return the first word of the letter's Unicode name. Return "" for a space, and for apostrophes that are letters."""
    name = unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "").split(" ")[0]
    return {"KATAKANA-HIRAGANA": "KATAKANA", "MODIFIER": "", "SPACE": ""}.get(name, name)


def _is_english(text: str) -> bool:
    function_words = {"the", "and", "of", "that", "with", "are", "which", "it", "this", "can"}
    return len(function_words & set(text.casefold().split())) > 2
