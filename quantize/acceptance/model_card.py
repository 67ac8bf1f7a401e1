"""Present the gate's result as a table for a terminal, as a model card, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from querylift.index_tools.evaluation.experiment import Task
from querylift.plugin.expansion import PROMPT_VERSION
from querylift.plugin.files import compute_file_digest, replace_file
from querylift.plugin.generators.llama.model_file import PROMPT_VERSION_KEY, check_gguf_magic
from querylift.quantize.acceptance.gate import LevelDecision, LevelMeasurement
from querylift.quantize.adapters.export_adapter import ADAPTER_NAMES_KEY, BASE_NAME_KEY, BASE_SHA256_KEY
from querylift.quantize.gguf_file import open_gguf_reader


@dataclass(frozen=True, slots=True)
class GateResult:
    """Everything that one run of the gate measured and decided."""

    unexpanded: Mapping[str, float]
    """nDCG@10 of the searches without expansion, by the keys of `LevelMeasurement.ndcg`."""
    reference: LevelMeasurement
    decisions: Sequence[LevelDecision]
    chosen: LevelDecision | None
    tasks: Sequence[Task]
    engine: str
    bound: float
    rules: str
    """The mode and the weight of an expansion, as a text."""
    threads: int

    @property
    def unexpanded_mean(self) -> float:
        """The mean nDCG@10 without expansion."""
        return sum(self.unexpanded.values()) / len(self.unexpanded)

    @property
    def gain(self) -> float:
        """How much nDCG@10 the reference gains over no expansion."""
        return self.reference.mean_ndcg() - self.unexpanded_mean


def format_table(result: GateResult) -> str:
    """Return the result as a table, at most 80 columns wide."""
    columns = f"{'MB':>6}{'tok/s':>6}{'RAM':>5}{'usable':>8}{'nDCG@10':>8}{'change':>8}{'lower':>8}{'p':>7}"
    lines = [
        f"{'':<11}{columns}",
        f"{'no expansion':<30}{result.unexpanded_mean:>16.4f}",
        _format_row(result.reference, "  the reference"),
    ]
    for decision in result.decisions:
        test = decision.test
        figures = f"{test.difference:>+8.4f}{test.lower:>+8.4f}{test.corrected_p_value:>7.3f}"
        lines.append(f"{_format_row(decision.measurement, figures)} {'passes' if decision.passes else 'FAILS'}")
    lines.append("RAM: largest memory of the worker in MB.")
    lines.append("lower: the lower end of a one-sided 95% interval of the change, for one level alone.")
    lines.append("p: exact for rare losses, and corrected for the number of levels (Holm). A level needs p < 0.05.")
    lines += [f"{task.index}: {task.judged_by.sentence}" for task in result.tasks if task.judged_by]
    return "\n".join(lines)


def format_conclusion(result: GateResult) -> str:
    """Return the conclusion in sentences: the chosen level, and whether the measurement could show a loss."""
    bound = f"less than {result.bound:g} of nDCG@10 on {len(result.reference.ndcg)} queries"
    if result.chosen is None:
        if any(decision.test.is_non_inferior for decision in result.decisions):
            return f"Every level that is proven to lose {bound} writes usable passages less often, so no level passes."
        return f"No level is proven to lose {bound}. More queries make the interval narrower."
    file_name = result.chosen.measurement.model_file.path.name
    sentence = f"{file_name} is the smallest level that is proven to lose {bound}."
    if result.gain > result.bound:
        return sentence
    return (
        f"{sentence}\nBut the reference gains only {result.gain:+.4f} over no expansion here, so a level can lose little. "
        "Measure where expansion helps."
    )


def convert_to_json(result: GateResult) -> dict[str, Any]:
    """Return all figures except those of single queries."""
    return {
        "bound": result.bound,
        "queries": len(result.reference.ndcg),
        "collections": [_convert_task(task) for task in result.tasks],
        "engine": result.engine,
        "rules": result.rules,
        "threads": result.threads,
        "prompt_version": PROMPT_VERSION,
        "no_expansion": result.unexpanded_mean,
        "reference": _convert_measurement(result.reference, result.tasks),
        "levels": [
            _convert_measurement(decision.measurement, result.tasks) | _convert_decision(decision)
            for decision in result.decisions
        ],
        "chosen": result.chosen.measurement.model_file.path.name if result.chosen else None,
    }


def write_results(result: GateResult, folder: Path, *, about: Mapping[str, str]) -> Path:
    """Write gate.json and the model card into `folder`, and return the card's path. `about` describes the model."""
    with replace_file(folder / "gate.json") as part:
        part.write_text(json.dumps(convert_to_json(result), indent=2) + "\n", encoding="utf-8")
    card = folder / "README.md"
    with replace_file(card) as part:
        part.write_text(_format_card(result, about), encoding="utf-8")
    return card


def read_model_description(path: Path) -> dict[str, str]:
    """Return lines for the card from the metadata of a GGUF model. A missing one is "?". Raises SettingsError."""
    check_gguf_magic(path)
    fields = open_gguf_reader(path).fields

    def format_field(key: str) -> str:
        value = fields[key].contents() if key in fields else "?"
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    return {
        "Architecture": format_field("general.architecture"),
        "Base": f"{format_field(BASE_NAME_KEY)}, SHA-256 {format_field(BASE_SHA256_KEY)}",
        "Adapters in it": format_field(ADAPTER_NAMES_KEY),
        "Made for the prompt": format_field(PROMPT_VERSION_KEY),
    }


def _format_row(measurement: LevelMeasurement, figures: str) -> str:
    ram = f"{measurement.peak_bytes / 1e6:.0f}" if measurement.peak_bytes else "-"
    return (
        f"{measurement.model_file.name:<11}{measurement.file_bytes / 1e6:>6.0f}{measurement.tokens_per_s:>6.0f}{ram:>5}"
        f"{measurement.parse_rate:>8.1%}{measurement.mean_ndcg():>8.4f}{figures}"
    )


def _format_card(result: GateResult, about: Mapping[str, str]) -> str:
    indices = [task.index for task in result.tasks]
    header = [
        "file",
        "MB",
        "tokens/s",
        "RAM MB",
        "usable",
        *(f"nDCG@10 {index}" for index in indices),
        "all",
        "change",
        "lower 95%",
        "p",
    ]
    rows = [_format_card_row(result.reference, indices, ["", "", ""])]
    for decision in result.decisions:
        test = decision.test
        figures = [
            f"{test.difference:+.4f}",
            f"{test.lower:+.4f}",
            f"{test.corrected_p_value:.4f}{'' if decision.passes else ' fails'}",
        ]
        rows.append(_format_card_row(decision.measurement, indices, figures))
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])
    measurements = [result.reference, *(decision.measurement for decision in result.decisions)]
    paths = [measurement.model_file.path for measurement in measurements]
    digests = "\n".join(f"| `{path.name}` | `{compute_file_digest(path)}` |" for path in paths)
    description = "\n".join(f"- **{key}**: {value}" for key, value in about.items())
    collections = ", ".join(
        f"{task.corpus} {task.split} ({len(task.queries)} queries, index {task.index}"
        f"{f', {task.judged_by.sentence}' if task.judged_by else ''})"
        for task in result.tasks
    )
    return f"""# {result.reference.model_file.path.stem}

A model that writes expansions for Querylift, as GGUF files of several sizes.

{description}

`querylift serve` refuses a file that was made for another prompt than its own ({PROMPT_VERSION}).

## How each size changes search results

{format_conclusion(result)}

{table}

- Written without sampling, with {result.threads} thread(s) and up to eight passages at once.
- Searched: {collections}; on {result.engine}, {result.rules}.
- Change, lower end and p describe the difference to the first row, query by query. The test is Gaffke's, one-sided. It counts one
  unseen query that loses everything, so that rare losses are not missed.
- p is corrected for {len(result.decisions)} level(s) by Holm's method. The lower end belongs to one level alone.
- A level passes when p is below 0.05 for a loss of {result.bound:g}, and its passages are usable as often.
- Measured on {date.today().isoformat()}.

| file | SHA-256 |
|---|---|
{digests}
"""


def _convert_task(task: Task) -> dict[str, Any]:
    judged_by = {"judged_by": task.judged_by.to_json()} if task.judged_by else {}
    return {"corpus": task.corpus, "split": task.split, "index": task.index, **judged_by}


def _format_card_row(measurement: LevelMeasurement, indices: Sequence[str], figures: Sequence[str]) -> list[str]:
    return [
        f"`{measurement.model_file.path.name}`",
        f"{measurement.file_bytes / 1e6:.1f}",
        f"{measurement.tokens_per_s:.0f}",
        f"{measurement.peak_bytes / 1e6:.0f}" if measurement.peak_bytes else "-",
        f"{measurement.parse_rate:.1%}",
        *(f"{measurement.mean_ndcg(index):.4f}" for index in indices),
        f"{measurement.mean_ndcg():.4f}",
        *figures,
    ]


def _convert_measurement(measurement: LevelMeasurement, tasks: Sequence[Task]) -> dict[str, Any]:
    path = measurement.model_file.path
    return {
        "level": measurement.model_file.name,
        "file": path.name,
        "sha256": compute_file_digest(path),
        "bytes": measurement.file_bytes,
        "peak_bytes": measurement.peak_bytes,
        "tokens_per_s": round(measurement.tokens_per_s, 1),
        "parse_rate": measurement.parse_rate,
        "ndcg_at_10": {task.index: measurement.mean_ndcg(task.index) for task in tasks}
        | {"all": measurement.mean_ndcg()},
    }


def _convert_decision(decision: LevelDecision) -> dict[str, Any]:
    test = decision.test
    return {
        "difference": test.difference,
        "lower": test.lower,
        "p_value": test.p_value,
        "corrected_p_value": test.corrected_p_value,
        "passes": decision.passes,
    }
