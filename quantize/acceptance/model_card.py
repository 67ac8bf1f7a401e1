"""What the gate found, as a table for a terminal, a model card and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import gguf

from querylift.index_tools.evaluation.experiment import Task
from querylift.plugin.expansion import PROMPT_VERSION
from querylift.plugin.generators.llama.model_file import PROMPT_VERSION_KEY, check_gguf, file_digest
from querylift.quantize.acceptance.gate import Measured, Verdict
from querylift.quantize.adapters.export_adapter import ADAPTER_NAMES_KEY, BASE_NAME_KEY, BASE_SHA256_KEY
from querylift.quantize.files import replacing


@dataclass(frozen=True, slots=True)
class Found:
    """A gate's whole result."""

    plain: Mapping[str, float]
    """nDCG@10 of the searches as they are, by the keys of `Measured.ndcg`."""
    reference: Measured
    verdicts: Sequence[Verdict]
    chosen: Verdict | None
    tasks: Sequence[Task]
    engine: str
    bound: float
    rules: str
    """How an expansion is put into a query, as the settings say it."""
    threads: int

    @property
    def plain_mean(self) -> float:
        """nDCG@10 of no expansion."""
        return sum(self.plain.values()) / len(self.plain)

    @property
    def gain(self) -> float:
        """What the reference gains over no expansion, in nDCG@10."""
        return self.reference.mean() - self.plain_mean


def render(found: Found) -> str:
    """The table, 80 columns wide at most."""
    columns = f"{'MB':>6}{'tok/s':>6}{'RAM':>5}{'usable':>8}{'nDCG@10':>8}{'change':>8}{'lower':>8}{'p':>7}"
    plain = f"{'no expansion':<30}{found.plain_mean:>16.4f}"
    lines = [f"{'':<11}{columns}", plain, _row(found.reference, "  the reference")]
    for verdict in found.verdicts:
        test = verdict.test
        numbers = f"{test.difference:>+8.4f}{test.lower:>+8.4f}{test.p_value:>7.3f}"
        lines.append(f"{_row(verdict.measured, numbers)} {'passes' if verdict.passes else 'FAILS'}")
    lines.append("RAM: most MB of the worker. Lower: 95% of the changes that chance allows lie above.")
    return "\n".join(lines)


def sentence(found: Found) -> str:
    """What follows from it."""
    queries = len(found.reference.ndcg)
    on = f"on {queries} queries"
    if found.chosen is None:
        reasons = (
            "" if any(v.test.holds for v in found.verdicts) else "; more queries narrow the interval, if it is that"
        )
        return f"No level loses provably less than {found.bound:g} of nDCG@10 {on}{reasons}."
    measured = found.chosen.measured
    told = f"{measured.level.path.name} is the smallest that loses provably less than {found.bound:g} of nDCG@10 {on}."
    if found.gain > found.bound:
        return told
    return (
        f"{told}\nBut the reference itself gains only {found.gain:+.4f} over no expansion here, so there is little that a level "
        "could lose: measure where expansion helps."
    )


def as_json(found: Found) -> dict[str, Any]:
    """All numbers but the single queries'."""
    return {
        "bound": found.bound,
        "queries": len(found.reference.ndcg),
        "collections": [{"corpus": t.corpus, "split": t.split, "index": t.index} for t in found.tasks],
        "engine": found.engine,
        "rules": found.rules,
        "threads": found.threads,
        "prompt_version": PROMPT_VERSION,
        "no_expansion": found.plain_mean,
        "reference": _measured_json(found.reference, found.tasks),
        "levels": [_measured_json(v.measured, found.tasks) | _verdict_json(v) for v in found.verdicts],
        "chosen": found.chosen.measured.level.path.name if found.chosen else None,
    }


def write(found: Found, folder: Path, *, about: Mapping[str, str]) -> Path:
    """Write gate.json and the model card into `folder`; the card's place. `about` holds what the files say of themselves."""
    with replacing(folder / "gate.json") as part:
        part.write_text(json.dumps(as_json(found), indent=2) + "\n", encoding="utf-8")
    card = folder / "README.md"
    with replacing(card) as part:
        part.write_text(_card(found, about), encoding="utf-8")
    return card


def told_by(path: Path) -> dict[str, str]:
    """What a GGUF model says of itself, for the card; "?" where it does not. Raises SettingsError."""
    check_gguf(path)
    fields = gguf.GGUFReader(path).fields

    def value(key: str) -> str:
        found = fields[key].contents() if key in fields else "?"
        return ", ".join(map(str, found)) if isinstance(found, list) else str(found)

    return {
        "Architecture": value("general.architecture"),
        "Base": f"{value(BASE_NAME_KEY)}, SHA-256 {value(BASE_SHA256_KEY)}",
        "Adapters in it": value(ADAPTER_NAMES_KEY),
        "Made for the prompt": value(PROMPT_VERSION_KEY),
    }


def _row(measured: Measured, rest: str) -> str:
    ram = f"{measured.peak_bytes / 1e6:.0f}" if measured.peak_bytes else "-"
    return (
        f"{measured.level.name:<11}{measured.file_bytes / 1e6:>6.0f}{measured.tokens_per_s:>6.0f}{ram:>5}"
        f"{measured.parse_rate:>8.1%}{measured.mean():>8.4f}{rest}"
    )


def _card(found: Found, about: Mapping[str, str]) -> str:
    columns = [task.index for task in found.tasks]
    head = [
        "file",
        "MB",
        "tokens/s",
        "RAM MB",
        "usable",
        *(f"nDCG@10 {index}" for index in columns),
        "all",
        "change",
        "lower 95%",
        "p",
    ]
    rows = [_card_row(found.reference, columns, ["", "", ""])]
    for verdict in found.verdicts:
        test = verdict.test
        figures = [
            f"{test.difference:+.4f}",
            f"{test.lower:+.4f}",
            f"{test.p_value:.4f}{'' if verdict.passes else ' fails'}",
        ]
        rows.append(_card_row(verdict.measured, columns, figures))
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])
    digests = "\n".join(f"| `{m.level.path.name}` | `{file_digest(m.level.path)}` |" for m in _all(found))
    told = "\n".join(f"- **{key}**: {value}" for key, value in about.items())
    collections = ", ".join(f"{t.corpus} {t.split} ({len(t.queries)} queries, index {t.index})" for t in found.tasks)
    return f"""# {found.reference.level.path.stem}

A model that writes expansions for Querylift, as GGUF files of several sizes.

{told}

`querylift serve` refuses a file that was made for another prompt than its own ({PROMPT_VERSION}).

## What the sizes do to searches

{sentence(found)}

{table}

Written greedily with {found.threads} thread(s), eight passages at once; searched: {collections}; on {found.engine},
{found.rules}. Change, lower end and p are of the paired differences to the first row over all queries (one-sided, bootstrap).
A level passes where its lower end lies above -{found.bound:g} and its passages are usable as often. Measured on
{date.today().isoformat()}.

| file | SHA-256 |
|---|---|
{digests}
"""


def _card_row(measured: Measured, columns: Sequence[str], figures: Sequence[str]) -> list[str]:
    ram = f"{measured.peak_bytes / 1e6:.0f}" if measured.peak_bytes else "-"
    means = [f"{measured.mean(index):.4f}" for index in columns]
    size = f"{measured.file_bytes / 1e6:.1f}"
    speed, usable = f"{measured.tokens_per_s:.0f}", f"{measured.parse_rate:.1%}"
    return [f"`{measured.level.path.name}`", size, speed, ram, usable, *means, f"{measured.mean():.4f}", *figures]


def _all(found: Found) -> list[Measured]:
    return [found.reference, *(verdict.measured for verdict in found.verdicts)]


def _measured_json(measured: Measured, tasks: Sequence[Task]) -> dict[str, Any]:
    return {
        "level": measured.level.name,
        "file": measured.level.path.name,
        "sha256": file_digest(measured.level.path),
        "bytes": measured.file_bytes,
        "peak_bytes": measured.peak_bytes,
        "tokens_per_s": round(measured.tokens_per_s, 1),
        "parse_rate": measured.parse_rate,
        "ndcg_at_10": {task.index: measured.mean(task.index) for task in tasks} | {"all": measured.mean()},
    }


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    test = verdict.test
    return {
        "difference": test.difference,
        "lower": test.lower,
        "p_value": test.p_value,
        "passes": verdict.passes,
    }
