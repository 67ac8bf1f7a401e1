"""The reasons for which a search goes to the engine without an expansion."""

from __future__ import annotations

REASONS = {
    "not-json": "the body is not one JSON object in UTF-8",
    "duplicate-key": "an object in the body has a key twice, and only the engine knows which value counts",
    "number": "a number in the body cannot be written again exactly",
    "too-deep": "the body is nested too deeply",
    "no-text": "no clause scores the words of a user",
    "fields": "the clauses search only fields that the policy does not list",
    "several-texts": "the clauses hold different texts, so the user's query is unknown",
    "too-many-clauses": "the query is searched in more clauses or fields than an expansion may be added to",
    "phrase": "the words must stand together as a phrase",
    "quoted": "the user put words in quotation marks",
    "wildcard": "the text has wildcards",
    "operators": "the text uses query syntax",
    "code": "the text looks like an id or a code",
    "long": "the text is longer than the policy's max_query_words",
    "size-0": "the search asks for no hits",
    "sort": "the hits are not sorted by score",
    "min-score": "scores are compared with a bound, or decide which hits are counted",
    "scroll": "a scroll cannot be widened",
    "uri-query": "the query is in the URL parameter q",
    "highlight": "highlighting would show words that the user did not type",
    "empty": "the expansion has nothing for the fields that the query searches",
}
"""Every reason, with its meaning as a sentence for a reader."""


class Skip(Exception):
    """The search goes to the engine unchanged. `reason` is a key of REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(REASONS[reason])
        self.reason = reason
