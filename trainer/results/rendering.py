"""The results as text for a terminal, as JSON, as Markdown and as one HTML file.

The HTML file needs no script, no network and no other file. Names are hostile input: the template escapes everything that it
is given, and a content policy in the file forbids scripts and outside resources besides.
"""

from __future__ import annotations

import base64
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from querylift.index_tools.evaluation.comparison import Comparison
from querylift.index_tools.evaluation.report import number, p_text, queries, scale_over, signed, signed_minus, tick
from querylift.index_tools.evaluation.text_table import WIDTH, aligned
from querylift.plugin.errors import MissingExtra, SettingsError
from querylift.trainer.results.measurement import Block, Cell, Results

if TYPE_CHECKING:
    from jinja2 import Template

NONE = "-"
"""What stands where there is nothing to say."""
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT_HEADINGS = (
    ("", "", "", "share", "gain", "p", "p"),
    ("", "nDCG@10", "seeds", "kept", "kept", "plain", "above"),
)
_LEGEND = (
    "seeds: how many, and the standard deviation of nDCG@10 over them.",
    "share kept: of the teacher's nDCG@10; gain kept: of what the teacher gains over the first row.",
    "p: two-sided paired randomisation test over queries, each with its mean nDCG@10 over seeds, against the first row "
    "(plain) and the row above; not corrected for the number of tests.",
)
_MARKS = {"helps": " ▲", "harms": " ▼"}
_MARKS_LEGEND = "▲ better, ▼ worse than the first row with p < 0.05."


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG that a row brings along."""

    row: str
    caption: str
    png: bytes = field(repr=False)

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def read_pictures(curves: Mapping[str, Iterable[Path]]) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    """The PNG files of each row, and one sentence for each file that is none or cannot be read."""
    pictures, problems = [], []
    for row, path in ((row, path) for row, paths in curves.items() for path in paths):
        try:
            pictures.append(Picture(row, "/".join(path.parts[-3:]), _png(path)))
        except SettingsError as error:
            problems.append(f"a picture of {row} is left out: {error}")
    return tuple(pictures), tuple(problems)


def _png(path: Path) -> bytes:
    try:
        png = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror})") from None
    if not png.startswith(_PNG):
        raise SettingsError(f"{path} is no PNG; draw the curves as PNG")
    return png


# --- text


def render_text(results: Results) -> str:
    """The tables for a terminal of 80 columns, one a collection; longer row names are cut."""
    parts = [textwrap.fill(f"{results.engine}, weight {results.weight:g}", WIDTH)]
    parts += [_text_block(block, results.rows) for block in results.blocks]
    parts.append(_wrapped((*results.notes, *_LEGEND)))
    return "\n\n".join(parts)


def _text_block(block: Block, rows: Sequence[str]) -> str:
    lines = [*_TEXT_HEADINGS, *((name, *_text_cells(block.cells.get(name))) for name in rows)]
    title = textwrap.fill(f"{block.name}: {facts(block)}", WIDTH)
    return "\n".join(filter(None, (title, aligned(lines), _wrapped(block.notes))))


def facts(block: Block) -> str:
    """ "trec_dl dl19 on index trec_dl, 43 queries"."""
    task = block.task
    return f"{task.corpus} {task.split} on index {task.index}, {queries(block.queries)}"


def _text_cells(cell: Cell | None) -> tuple[str, ...]:
    if cell is None:
        return (NONE,) * 6
    return (
        number(cell.ndcg_at_10),
        seeds(cell),
        percent(cell.kept),
        percent(cell.gain_kept),
        p_of(cell.against_plain),
        p_of(cell.against_above),
    )


def seeds(cell: Cell) -> str:
    """ "3 ±0.006", or "-" where there is one."""
    return NONE if cell.deviation is None else f"{len(cell.seeds)} ±{number(cell.deviation)}"


def percent(share: float | None) -> str:
    """A share in whole percent; "-" for None."""
    if share is None:
        return NONE
    text = f"{share:.0%}"
    return "0%" if text == "-0%" else text


def p_of(comparison: Comparison | None) -> str:
    """The p-value; "-" where nothing was compared."""
    return NONE if comparison is None else p_text(comparison.p_value)


def _wrapped(notes: Iterable[str]) -> str:
    return "\n".join(textwrap.fill(f"* {note}", WIDTH, subsequent_indent="  ") for note in notes)


# --- JSON


def to_json(results: Results) -> dict[str, Any]:
    """The numbers for a program. A row that a collection lacks is not among its rows."""
    return {
        "engine": results.engine,
        "date": results.date,
        "weight": results.weight,
        "teacher": results.teacher,
        "rows": list(results.rows),
        "collections": [_block_json(block, results) for block in results.blocks],
        "notes": list(results.notes),
    }


def _block_json(block: Block, results: Results) -> dict[str, Any]:
    return {
        "name": block.name,
        "corpus": block.task.corpus,
        "split": block.task.split,
        "index": block.task.index,
        "mode": block.mode,
        "relevant_from": block.task.relevant_from,
        "queries": block.queries,
        "rows": [_cell_json(name, cell, results.row_weights.get(name)) for name, cell in block.cells.items()],
        "notes": list(block.notes),
    }


def _cell_json(name: str, cell: Cell, weight: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "weight": weight,
        "ndcg_at_10": cell.ndcg_at_10,
        "ndcg_at_10_by_seed": list(cell.by_seed),
        "ndcg_at_10_deviation": cell.deviation,
        "recall_at_100": cell.recall_at_100,
        "kept": cell.kept,
        "gain_kept": cell.gain_kept,
        "against_plain": _comparison_json(cell.against_plain),
        "above": cell.above or None,
        "against_above": _comparison_json(cell.against_above),
        "seeds": [
            {"generator": s.generator, "unexpanded": s.unexpanded, "outcomes": dict(s.outcomes)} for s in cell.seeds
        ],
    }


def _comparison_json(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    c = comparison
    numbers = {"difference": c.difference, "p_value": c.p_value, "interval": list(c.interval)}
    return numbers | {"wins": c.wins, "ties": c.ties, "losses": c.losses}


# --- Markdown


def render_markdown(results: Results) -> str:
    """A table of all collections side by side, then one a collection with everything that the text says."""
    parts = [_overview(results), f"nDCG@10 on {_escaped(results.engine)}, weight {results.weight:g}. {_MARKS_LEGEND}"]
    for block in results.blocks:
        parts += [f"### {_escaped(block.name)}", f"{_escaped(facts(block))}.", _markdown_block(block, results.rows)]
        parts.append(_bullets(block.notes))
    parts += ["### How to read it", _bullets((*results.notes, *_LEGEND))]
    return "\n\n".join(filter(None, parts)) + "\n"


def _bullets(notes: Iterable[str]) -> str:
    return "\n".join(f"* {_escaped(note)}" for note in notes)


def _overview(results: Results) -> str:
    lines = [("", *(block.name for block in results.blocks))]
    lines += [(name, *(marked(block.cells.get(name)) for block in results.blocks)) for name in results.rows]
    return _markdown(lines)


def marked(cell: Cell | None) -> str:
    """nDCG@10 with a mark where it differs from the first row's by more than chance."""
    if cell is None:
        return NONE
    return number(cell.ndcg_at_10) + _MARKS.get(cell.against_plain.verdict if cell.against_plain else "", "")


def _markdown_block(block: Block, rows: Sequence[str]) -> str:
    headings = (
        "",
        "nDCG@10",
        "seeds",
        "share kept",
        "share of gain",
        "difference",
        "95% interval",
        "p plain",
        "p above",
    )
    lines: list[tuple[str, ...]] = [headings]
    for name in rows:
        shown, c = _text_cells(block.cells.get(name)), _plain_comparison(block.cells.get(name))
        difference = (signed(c.difference), " to ".join(map(signed, c.interval))) if c else (NONE, NONE)
        lines.append((name, *shown[:4], *difference, *shown[4:]))
    return _markdown(lines)


def _plain_comparison(cell: Cell | None) -> Comparison | None:
    return cell.against_plain if cell is not None else None


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    first, *others = (f"| {' | '.join(map(_escaped, line))} |" for line in lines)
    return "\n".join((first, "|---" + "|---:" * (len(lines[0]) - 1) + "|", *others))


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", text)


# --- HTML


def render_html(results: Results, pictures: Sequence[Picture] = (), problems: Sequence[str] = ()) -> str:
    """One page; `problems` are said in its notes. Raises MissingExtra where Jinja is not installed."""
    return _template().render(
        results=results,
        pictures=pictures,
        notes=[*results.notes, *problems],
        facts=facts,
        scale_of=lambda block: scale_over(_differences(block), parts=5),
        plotted=plotted,
        seed_differences=seed_differences,
    )


def plotted(block: Block) -> list[tuple[str, Cell, Comparison]]:
    """The rows that the plot shows: those compared with the first."""
    return [(name, cell, cell.against_plain) for name, cell in block.cells.items() if cell.against_plain is not None]


def seed_differences(cell: Cell) -> list[float]:
    """Every seed's nDCG@10 less that of the first row, where there are several."""
    if cell.against_plain is None or len(cell.seeds) < 2:
        return []
    return [value - cell.against_plain.mean_a for value in cell.by_seed]


def _differences(block: Block) -> Iterator[float]:
    for _, cell, comparison in plotted(block):
        yield from comparison.interval
        yield from seed_differences(cell)


def _template() -> Template:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtra("jinja2", "index") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "signed": signed_minus, "tick": tick, "p": p_of, "marked": marked}
    environment.filters["percent"] = lambda share: (
        "–" if share is None else percent(share).replace("-", "\N{MINUS SIGN}")
    )
    return environment.from_string(files("trainer").joinpath("results.html.jinja").read_text(encoding="utf-8"))
