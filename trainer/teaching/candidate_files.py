"""Import candidates from files, and append candidates to the file that a teaching run writes.

The output file is only ever appended to. A run that is started again skips the requests that the file already answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from querylift.index_tools.corpora.json_rows import read_jsonl
from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.expansion import Expansion, clean_prose, clean_query
from querylift.plugin.files import compute_json_digest
from querylift.plugin.generators.table import get_nested_value
from querylift.plugin.refusals import is_refusal
from querylift.trainer.candidates import Candidate, JsonLinesAppender, parse_candidate, read_candidates


@dataclass(frozen=True, slots=True)
class AppendResult:
    """How many candidates were written, were in the file before, and had no words.

    `without_end` of the written ones are texts that did not end.
    """

    written: int = 0
    known: int = 0
    empty: int = 0
    without_end: int = 0


def read_imported_candidates(
    path: Path,
    where: Mapping[str, str | Collection[str]],
    *,
    prefix: str = "",
    queries: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Candidate]:
    """Yield the candidates of a file whose keys have one of the values of `where`. `prefix` goes before the query ids.

    The file holds candidates, or it is a table of the generator `table`. A row without "query_id" gets the id that its query
    has in `queries`, or else one made of its text. Weighted terms give their surface words as text.

    A key may name a nested value: `params.mode`. Rows with different answers to one request are numbered in
    `params["sample"]`. The text of a model's refusal is left out. Raises DataError with path and line for a broken row, and
    SettingsError when no row matches.
    """
    ids_by_query = {_make_query_key(text): query_id for query_id, text in queries.items()}
    accepted = {key: {value} if isinstance(value, str) else set(value) for key, value in where.items()}
    texts_by_request: dict[str, list[str]] = {}
    match_counts: Counter[str] = Counter()
    for line_number, table_row in read_jsonl(path):
        candidate = parse_candidate(_complete_row(table_row, path, line_number, ids_by_query), path, line_number)
        row = candidate.to_json()
        matches = [key for key, values in accepted.items() if str(get_nested_value(row, key)) in values]
        match_counts.update(["", *matches])
        if len(matches) < len(accepted):
            continue
        texts = texts_by_request.setdefault(candidate.request_key, [])
        if candidate.text not in texts:
            params = dict(candidate.params) | ({"sample": len(texts)} if texts else {})
            texts.append(candidate.text)
            query = clean_query(candidate.query)
            text = "" if is_refusal(clean_prose(candidate.text)) else candidate.text
            yield replace(candidate, query_id=prefix + candidate.query_id, query=query, params=params, text=text)
    if not texts_by_request:
        raise SettingsError(_explain_no_match(path, accepted, match_counts))


def _complete_row(
    row: Mapping[str, Any], path: Path, line_number: int, ids_by_query: Mapping[str, str]
) -> dict[str, Any]:
    """Return the row with "query_id" and "text", which a row of a table may lack."""
    complete_row = dict(row)
    query = row.get("query")
    if "query_id" not in row and isinstance(query, str):
        key = _make_query_key(query)
        complete_row["query_id"] = ids_by_query.get(key) or f"query-{compute_json_digest(key)[:16]}"
    if "text" not in row and "terms" in row:
        try:
            complete_row["text"] = Expansion.from_json(row).to_text()
        except ValueError as error:
            raise DataError(path, line_number, str(error)) from None
    return complete_row


def _make_query_key(query: str) -> str:
    return clean_query(query).casefold()


def _explain_no_match(path: Path, accepted: Mapping[str, Collection[str]], match_counts: Mapping[str, int]) -> str:
    """Return why no row matches. `match_counts` counts the rows that match each key, and all rows under ""."""
    if not match_counts:
        return f"{path} holds no expansions; name another file"
    unmatched = [key for key in accepted if key not in match_counts][:1] or list(accepted)
    conditions = " and ".join(f"{key}={' or '.join(sorted(accepted[key]))}" for key in unmatched)
    return f"no row of {path} has {conditions}; choose rows that it has"


def read_request_keys(out: Path) -> frozenset[str]:
    """Return the keys of the requests that `out` answers; empty when there is no file. Removes an incomplete last line."""
    if not out.exists():
        return frozenset()
    with JsonLinesAppender(out):  # removes the incomplete line
        return frozenset(candidate.request_key for candidate in read_candidates(out))


def append_candidates(candidates: Iterable[Candidate], out: Path) -> AppendResult:
    """Clean the candidates, and append those that `out` lacks. Raises SettingsError when one id stands for two queries."""
    candidates = list(candidates)
    known_keys = set(read_request_keys(out))
    _raise_on_ambiguous_ids([*(read_candidates(out) if out.exists() else ()), *candidates])
    counts: Counter[str] = Counter()
    with JsonLinesAppender(out) as appender:
        for candidate in candidates:
            text = clean_prose(candidate.text)
            if candidate.request_key in known_keys:
                counts["known"] += 1
            elif not text:
                counts["empty"] += 1
            else:
                counts["written"] += 1
                counts["without_end"] += not candidate.ended
                known_keys.add(candidate.request_key)
                appender.append(replace(candidate, text=text).to_json())
    return AppendResult(**counts)


def _raise_on_ambiguous_ids(candidates: Iterable[Candidate]) -> None:
    queries: dict[str, str] = {}
    for candidate in candidates:
        earlier_query = queries.setdefault(candidate.query_id, candidate.query)
        if earlier_query.casefold() != candidate.query.casefold():
            raise SettingsError(
                f"query id {candidate.query_id!r} stands for two queries; give one file a prefix: --import NAME=FILE"
            )
