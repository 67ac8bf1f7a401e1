"""Where the training data of a stage came from, as its manifest records it for the card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from querylift.index_tools.corpora.json_rows import read_jsonl
from querylift.trainer.candidates import find_source_document
from querylift.trainer.training_config import TrainingConfig


class TextOrigin(NamedTuple):
    """Who wrote texts, for the queries of which source. `writer` is "" when the rows do not name a model."""

    source: str
    writer: str
    method: str


def describe_origin(files: Sequence[Path], config: TrainingConfig) -> dict[str, Any]:
    """Return the origins of all texts in `files`, their licences, and what was held out, as JSON.

    The licences are those that the configuration states.
    """
    return _describe_counts(Counter(origin for file in files for origin in _list_origins(file)), config)


def describe_own_texts(source: str, count: int, config: TrainingConfig) -> dict[str, Any]:
    """Return the same for `count` texts that the student wrote in training, for the queries of `source`."""
    return _describe_counts(Counter({TextOrigin(source, "the student itself", "grpo"): count}), config)


def _describe_counts(counts: Counter[TextOrigin], config: TrainingConfig) -> dict[str, Any]:
    return {
        "texts": [{**origin._asdict(), "count": count} for origin, count in sorted(counts.items())],
        "license": config.card.license,
        "licenses": dict(config.card.licenses),
        "held_out": list(config.held_out),
        "held_out_by": config.held_out_by,
    }


def _list_origins(file: Path) -> Iterator[TextOrigin]:
    """Yield an origin for each text: one for a candidate's row, two for a row of a pair."""
    for _, row in read_jsonl(file):
        source = _name_source(row, file)
        if "chosen" in row:
            for side in ("chosen", "rejected"):
                yield TextOrigin(source, "", str(row.get(f"{side}_method") or "unknown"))
        else:
            yield TextOrigin(source, str(row.get("model") or ""), str(row.get("method") or "imported"))


def _name_source(row: Mapping[str, Any], file: Path) -> str:
    """Return the name in the query's id ("fiqa:9188"), or the corpus of the row's document, or the name of the file."""
    name, colon, _ = str(row.get("query_id", "")).partition(":")
    if colon and name:
        return name
    document = find_source_document(row)
    return document.corpus if document and document.corpus else file.name.partition(".")[0]
