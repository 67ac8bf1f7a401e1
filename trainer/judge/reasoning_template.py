"""The one template that writes a reasoning from criteria and facts, for rows that have grades but no reasoning.

Some models graded criteria and listed what a good answer would say, and wrote no reasoning. The template says in two
sentences which of these facts the document mentions and which it lacks. One short sentence about each criterion follows.
The text never states the grade, because a judge that reads the grade learns nothing else.

The rule for a fact: its content words are its words without function words. A document mentions the fact when it has at
least half of them. Words are compared by their stem, which is the word without a common English ending.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from querylift.index_tools.corpora.json_rows import get_json_id, get_json_text, read_jsonl
from querylift.plugin.errors import DataError
from querylift.plugin.words import take_first_words
from querylift.trainer.judge.annotations import CRITERIA

_SHOWN_MENTIONS, _SHOWN_LACKS = 2, 1
_MAX_FACT_WORDS = 6
_MENTIONED_SHARE = 0.5

_SENTENCES: Mapping[str, tuple[str, str, str, str]] = {
    "exactness": (
        "It does not answer the question.",
        "It only hints at an answer.",
        "It answers, though not exactly.",
        "It gives the exact answer.",
    ),
    "topicality": (
        "It is about another topic.",
        "It touches on the topic.",
        "It is mostly on topic.",
        "It stays on topic.",
    ),
    "coverage": (
        "None of it treats the query.",
        "Little of it treats the query.",
        "Much of it treats the query.",
        "All of it treats the query.",
    ),
    "contextual_fit": (
        "It gives no background.",
        "It gives little background.",
        "It gives some background.",
        "It gives good background.",
    ),
}
"""What the text says about each criterion, by its grade 0 to 3."""

_WORD = re.compile(r"[^\W_]+")
_FUNCTION_WORDS = frozenset(
    "a about after all also an and any are as at be been before being between both but by can could did do does during for "
    "from had has have he her his how i if in into is it its may might more most must no not of on one or other our over "
    "s she should so some such than that the their them then there these they this those through to too under up use used "
    "using was we were what when where which while who whom whose why will with within without would you your".split()
)
_ENDINGS = ("ations", "ation", "ments", "ment", "ings", "ing", "ies", "ed", "es", "s", "y", "e")
_MIN_STEM_CHARS = 4


@dataclass(frozen=True, slots=True)
class QueryFacts:
    """The key facts that a good answer to a query would state."""

    query_id: str
    query: str
    nuggets: tuple[str, ...] = ()


def read_facts(path: Path) -> dict[str, QueryFacts]:
    """Read a JSONL file of {"query_id", "query", "nuggets"}, by query id. Raises DataError, SettingsError."""
    facts: dict[str, QueryFacts] = {}
    for number, row in read_jsonl(path):
        query_id = get_json_id(path, number, row, names=("query_id",))
        if query_id in facts:
            raise DataError(path, number, f"query {query_id!r} comes twice; keep one of the two lines")
        nuggets = row.get("nuggets", [])
        if not isinstance(nuggets, list) or not all(isinstance(nugget, str) for nugget in nuggets):
            raise DataError(path, number, f"'nuggets' is {nuggets!r}; write a list of texts, or leave it out")
        query = get_json_text(path, number, row, names=("query",))
        facts[query_id] = QueryFacts(query_id, query, tuple(nugget for nugget in nuggets if nugget.strip()))
    return facts


def describe_reasoning(criteria: Mapping[str, int], facts: QueryFacts | None, document: str) -> str:
    """Return the reasoning about `document`, some 40 words long. Criteria that are missing are left out.

    Without facts, only the sentences about the criteria remain.
    """
    sentences = [] if facts is None else _describe_facts(facts, document)
    sentences += [_SENTENCES[name][criteria[name]] for name in CRITERIA if name in criteria]
    return " ".join(sentences)


def find_mentioned_facts(facts: QueryFacts, document: str) -> list[str]:
    """Return those of the nuggets that the document mentions, in their order. The module says the rule."""
    document_stems = set(list_content_stems(document))
    return [nugget for nugget in facts.nuggets if _is_mentioned(nugget, document_stems)]


def _describe_facts(facts: QueryFacts, document: str) -> list[str]:
    """Return a sentence about the facts that the document mentions, and one about a fact that it lacks."""
    mentioned = find_mentioned_facts(facts, document)
    lacking = [nugget for nugget in facts.nuggets if nugget not in mentioned]
    sentences = []
    if mentioned:
        sentences.append(
            f"It mentions {_count_in_words(mentioned, facts)}: {_join_facts(mentioned[:_SHOWN_MENTIONS])}."
        )
    elif lacking:
        sentences.append("It mentions no key fact.")
    if lacking:
        sentences.append(f"It lacks {_join_facts(lacking[:_SHOWN_LACKS])}.")
    return sentences


def _count_in_words(mentioned: Sequence[str], facts: QueryFacts) -> str:
    """Return the number of the mentioned facts as words. A digit could be read as a grade."""
    if len(mentioned) == 1:
        return "one key fact"
    share = len(mentioned) / len(facts.nuggets)
    return "all key facts" if share == 1 else "most key facts" if share > _MENTIONED_SHARE else "some key facts"


def _join_facts(nuggets: Sequence[str]) -> str:
    return "; ".join(take_first_words(nugget.rstrip("."), _MAX_FACT_WORDS) for nugget in nuggets)


def _is_mentioned(nugget: str, document_stems: Collection[str]) -> bool:
    fact_stems = set(list_content_stems(nugget))
    return bool(fact_stems) and len(fact_stems.intersection(document_stems)) >= _MENTIONED_SHARE * len(fact_stems)


def list_content_stems(text: str) -> Iterator[str]:
    """Yield the stem of each content word of a text, in their order."""
    for word in _WORD.findall(text.lower()):
        if word not in _FUNCTION_WORDS:
            ending = next((e for e in _ENDINGS if word.endswith(e) and len(word) - len(e) >= _MIN_STEM_CHARS), "")
            yield word.removesuffix(ending)
