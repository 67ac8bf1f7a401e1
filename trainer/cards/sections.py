"""The sections of a card, as Markdown: training, data, what was held out, and what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from querylift.trainer.cards.lineage import Lineage, StageRecord

UNKNOWN = "unknown: state it"
"""Stands where nobody said which licence a source has."""
_NO_VALUE = "–"


def render_training(lineage: Lineage) -> str:
    """Return a table of all stages with their results, and the settings of each below it."""
    head = ("stage", "rows", "left out", "updates", "seed", "loss", "validation loss", "weights of step")
    table = _render_table(head, (_list_training_values(record) for record in lineage.stages))
    return table + "\n" + "".join(_render_settings(record) for record in lineage.stages)


def render_data(lineage: Lineage, licenses: Mapping[str, str]) -> str:
    """Return a table of all texts by stage, source and writer, with the licences of both."""
    rows = [
        (
            record.stage,
            text["source"],
            licenses.get(text["source"], UNKNOWN),
            text["writer"] or "not recorded",
            licenses.get(text["writer"], UNKNOWN) if text["writer"] else _NO_VALUE,
            text["method"],
            f"{text['count']:,}",
        )
        for record in lineage.stages
        for text in record.origin.get("texts", ())
    ]
    if not rows:
        return "The manifests do not record where the data came from.\n"
    head = ("stage", "source", "its licence", "written by", "its licence", "method", "texts")
    return _render_table(head, rows)


def render_held_out(lineage: Lineage) -> str:
    """Return, for each stage, the splits that training refused, and by what."""
    lines = []
    for record in lineage.stages:
        splits = [_name_split(spec) for spec in record.origin.get("held_out", ()) if spec != "none"]
        by_document = record.origin.get("held_out_by") == "document"
        if record.stage == "merge":
            continue
        if "held_out" not in record.origin:
            lines.append(f"- {record.stage}: not recorded\n")
        elif not splits:
            lines.append(f"- {record.stage}: nothing (`--held-out none`)\n")
        else:
            refused = "queries, and texts of documents that are relevant to them" if by_document else "queries"
            lines.append(f"- {record.stage}: {refused}, of {', '.join(splits)}\n")
    return "Training rows are refused when they are, exactly or nearly, of a held-out split:\n\n" + "".join(lines)


def render_measured(results: Mapping[str, Any] | None) -> str:
    """Return the tables of `querylift train report`, one for each collection."""
    if results is None:
        return (
            "Not measured yet. `querylift train report TABLE.toml --out REPORT` measures it, and\n"
            "`querylift train card FOLDER --results REPORT/results.json` adds the table.\n"
        )
    parts = [f"nDCG@10 on {results['engine']}, {results['date']}. p is corrected for the number of collections.\n"]
    for collection in results["collections"]:
        parts.append(f"**{collection['name']}**, {collection['queries']:,} queries\n")
        head = ("row", "weight", "nDCG@10", "recall@100", "against no expansion", "p")
        parts.append(_render_table(head, map(_list_measured_values, collection["rows"])))
        parts += [f"{note}\n" for note in collection["notes"]]
    return "\n".join(parts)


def _list_training_values(record: StageRecord) -> Sequence[str]:
    results = record.results
    validation = None if results.get("rewarding") else dict(results.get("validation") or {}).get("loss")
    step = dict(results.get("evaluation") or {}).get("step", results.get("steps"))
    return (
        record.stage,
        _format_count(results.get("examples")),
        _format_count(results.get("left_out")),
        _format_count(results.get("steps")),
        _NO_VALUE if record.seed is None else str(record.seed),
        _format_loss(None if results.get("rewarding") else results.get("loss")),
        _format_loss(validation),
        _format_count(step),
    )


def _render_settings(record: StageRecord) -> str:
    """Return the settings and the versions of a stage, one line for each."""
    lines = [f"\n**{record.stage}** ({record.started[:10]})\n\n"]
    for name, value in record.settings.items():
        values = value if isinstance(value, Mapping) else {name: value}
        text = ", ".join(f"{key} {_format_setting(key, item)}" for key, item in values.items())
        lines.append(f"- {name}: {text}\n" if isinstance(value, Mapping) else f"- {text}\n")
    rewarding = dict(record.results.get("rewarding") or {})
    if rewarding:
        searches = rewarding["searches"] + rewarding["cached_searches"]
        reward = dict(record.results.get("validation") or {}).get("reward")
        validation = "" if reward is None else f"; mean reward of the validation queries {reward:+.4f}"
        lines.append(f"- rewarded: {rewarding['samples']:,} samples by {searches:,} searches{validation}\n")
    evaluation = dict(record.results.get("evaluation") or {})
    if "ndcg_at_10" in evaluation:
        scores = f"nDCG@10 {evaluation['ndcg_at_10']:.3f}, without expansion {evaluation['plain_ndcg_at_10']:.3f}"
        lines.append(f"- evaluated while training, at step {evaluation['step']:g}: {scores}\n")
    packages = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return "".join([*lines, f"- made with: {packages}\n"])


def _format_setting(key: str, value: Any) -> str:
    """Return a value as text. A path is cut to its name, so that a card says nothing of a machine."""
    if key == "base":
        return Path(str(value)).name
    return _name_split(str(value)) if key == "on" else str(value)


def _name_split(spec: str) -> str:
    """Return "CORPUS:SPLIT" without the folder of the corpus."""
    corpus, colon, split = spec.rpartition(":")
    return f"{Path(corpus).name}{colon}{split}" if colon else Path(spec).name


def _list_measured_values(row: Mapping[str, Any]) -> Sequence[str]:
    against = row.get("against_plain")
    difference = f"{against['difference']:+.3f}" if against else _NO_VALUE
    p_value = f"{against['corrected_p_value']:.3f}" if against else _NO_VALUE
    weight = _NO_VALUE if row.get("weight") is None else f"{row['weight']:g}"
    return (row["name"], weight, f"{row['ndcg_at_10']:.3f}", f"{row['recall_at_100']:.3f}", difference, p_value)


def _format_count(value: Any) -> str:
    return _NO_VALUE if value is None else f"{int(value):,}"


def _format_loss(value: Any) -> str:
    return _NO_VALUE if value is None else f"{value:.3f}"


def _render_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
