"""Why a request is left alone."""

from __future__ import annotations

REASONS = {
    "not-json": "the body is not one JSON object in UTF-8",
    "duplicate-key": "an object in the body has a key twice; only the engine knows which one it takes",
    "number": "a number in the body would not survive being written again",
    "too-deep": "the body is nested too deeply",
    "no-text": "no clause that scores the user's words was found",
    "fields": "the clauses found search fields that the policy does not list",
    "several-texts": "the clauses found carry different texts, so which one the user typed is unknown",
    "too-many-clauses": "the words are searched in more clauses or fields than an expansion is added to",
    "phrase": "the words must stand together",
    "quoted": "the user put words in quotes",
    "wildcard": "the text has wildcards",
    "operators": "the text has query syntax",
    "code": "the text looks like an id or a code",
    "long": "the text is longer than the policy's max_query_words",
    "size-0": "no hits are asked for",
    "sort": "the order is not by score",
    "min-score": "scores are held against a bound, or decide what is counted",
    "scroll": "a scroll cannot be widened",
    "uri-query": "the query stands in the parameter q",
    "highlight": "the highlighting would show words that the user did not type",
    "empty": "the expansion has nothing for the fields searched",
}
"""Every reason and what it means to a reader."""


class Skip(Exception):
    """Leave this request as it is. `reason` is a key of REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(REASONS[reason])
        self.reason = reason
