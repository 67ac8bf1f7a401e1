"""One HTML file that says whether expansion helps on an index, by how much, and for which queries.

The file needs no script, no network and no other file. Query and document texts are hostile input: the template escapes
everything that it is given, and a content policy in the file forbids scripts and outside resources besides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from querylift.index_tools.corpora.trec_files import replacing
from querylift.index_tools.evaluation.comparison import Comparison
from querylift.index_tools.evaluation.measures import LABELS, Evaluation
from querylift.plugin.errors import MissingExtra, SettingsError

if TYPE_CHECKING:
    from jinja2 import Template

SHOWN_HITS = 5
"""Documents shown for each query and system."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that a search found. `grade` is None where nobody judged it."""

    doc_id: str
    title: str = ""
    grade: int | None = None


@dataclass(frozen=True, slots=True)
class QueryDetail:
    """What one query was and became; hits are best first, and the first five are shown."""

    query: str
    expansion: str
    """Words that were added, as text; empty where none were."""
    hits_before: tuple[Hit, ...] = ()
    hits_after: tuple[Hit, ...] = ()


@dataclass(frozen=True, slots=True)
class SystemRow:
    """One system and how it did. `comparison` sets it against the first system; the first has none."""

    name: str
    evaluation: Evaluation
    comparison: Comparison | None = None
    added_ms_p50: float | None = None
    added_ms_p95: float | None = None
    details: Mapping[str, QueryDetail] = field(default_factory=dict)
    """By query id; a query without an entry is listed by its id. Only the ten worst and ten best are read."""

    @property
    def timed(self) -> bool:
        """Whether it was measured how long it makes a search wait."""
        return self.added_ms_p50 is not None or self.added_ms_p95 is not None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that the page shows. A fact that is empty or None is left out; `date` is shown as it is given."""

    systems: tuple[SystemRow, ...]
    """The one that the others are compared with comes first."""
    corpus: str
    split: str = ""
    index: str = ""
    engine: str = ""
    date: str = ""
    generator: str = ""
    mode: str = ""
    weight: float | None = None
    measure: str = "ndcg_at_10"
    """The measure that every comparison is made in."""
    relevant_from: int = 1

    def __post_init__(self) -> None:
        if not self.systems or [s.comparison is None for s in self.systems] != [True] + [False] * (
            len(self.systems) - 1
        ):
            raise ValueError("a report has one system without a comparison, first, and only systems with one after it")

    @property
    def compared(self) -> tuple[SystemRow, ...]:
        """The systems after the first."""
        return self.systems[1:]

    @property
    def timed(self) -> bool:
        """Whether any system has times to show."""
        return any(system.timed for system in self.systems)

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures that the summary shows, that of the comparisons first."""
        return tuple(dict.fromkeys((self.measure, "ndcg_at_10", "recall_at_100", "mrr_at_10")))

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """(name, value) of what was measured and on what."""
        weight = "" if self.weight is None else f"{self.weight:g}"
        queries = f"{self.systems[0].evaluation.queries:,}"
        named = (
            ("Corpus", self.corpus),
            ("Split", self.split),
            ("Queries", queries),
            ("Index", self.index),
            ("Engine", self.engine),
            ("Generator", self.generator),
            ("Mode", self.mode),
            ("Weight", weight),
        )
        return tuple((name, value) for name, value in named if value)


def write_report(path: Path, report: Report) -> None:
    """Write `report` as one HTML file, or leave an old one as it was. Raises SettingsError where `path` takes no file."""
    page = render_report(report).encode(errors="replace")  # half a surrogate pair in a document has no UTF-8
    try:
        with replacing(path) as stream:
            stream.write(page)
    except OSError as error:
        raise SettingsError(f"the report cannot be written to {path}: {error.strerror}") from error


def render_report(report: Report) -> str:
    """The page that `write_report` writes. Raises MissingExtra where Jinja is not installed."""
    return _template().render(
        report=report,
        base=report.systems[0],
        label=LABELS[report.measure],
        labels=LABELS,
        chart_scale=scale_over((d for s in report.compared for d in _comparison(s).differences.values()), parts=7),
        interval_scale=scale_over((x for s in report.compared for x in _comparison(s).interval), parts=4),
        bars=bars,
        verdict=lambda *said: _with_minus(verdict_sentence(*said)),
        shown_hits=SHOWN_HITS,
    )


def _template() -> Template:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtra("jinja2", "index") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "signed": signed_minus, "tick": tick, "p": p_text, "ms": milliseconds}
    environment.filters |= {"queries": queries, "count": "{:,}".format}
    return environment.from_string(files("index_tools").joinpath("report.html.jinja").read_text(encoding="utf-8"))


def verdict_sentence(comparison: Comparison, label: str) -> str:
    """For example "helps: +0.050 nDCG@10, p = 0.003"; `label` is how the measure is written."""
    p = p_text(comparison.p_value)
    relation = p.replace("<", "< ") if p.startswith("<") else f"= {p}"
    return f"{comparison.verdict}: {signed(comparison.difference)} {label}, p {relation}"


def number(value: float) -> str:
    """A measure, three decimals."""
    return f"{value:.3f}"


def signed(value: float) -> str:
    """A difference, three decimals, with its sign; without one where it rounds to zero."""
    text = f"{value:+.3f}"
    return "0.000" if text in ("+0.000", "-0.000") else text


def p_text(p_value: float) -> str:
    """A p-value, three decimals: "0.012", or "<0.001"."""
    if p_value < 0.001:
        return "<0.001"
    text = number(p_value)
    # 0.0496 is a difference and 0.0501 is none: "0.050" would not say which.
    return f"{p_value:.4f}" if text == "0.050" else text


def queries(count: int, kind: str = "") -> str:
    """ "1 query", "2,590 queries", or with a word between: "3 judged queries"."""
    return " ".join(filter(None, (f"{count:,}", kind, "query" if count == 1 else "queries")))


def milliseconds(value: float | None) -> str:
    """A duration: one decimal below 10 ms, whole above; a dash where it was not measured."""
    if value is None:
        return "–"
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def signed_minus(value: float) -> str:
    """A difference with its sign, the minus as a page sets it."""
    return _with_minus(signed(value))


def tick(value: float) -> str:
    """The label of a tick on an axis of differences."""
    return _with_minus(f"{value:+g}") if value else "0"


def _with_minus(text: str) -> str:
    """`text` with the minus sign of print, as wide as the plus."""
    return text.replace("-", "\N{MINUS SIGN}")


def _comparison(system: SystemRow) -> Comparison:
    if system.comparison is None:
        raise ValueError(f"{system.name} has no comparison")
    return system.comparison


@dataclass(frozen=True, slots=True)
class Scale:
    """A vertical or horizontal axis from `low` to `high`, both ticks, zero between them or at one end."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Where `value` lies, in percent of the axis from `low`."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


@dataclass(frozen=True, slots=True)
class Bar:
    """One query of the plot: its place from the left, and its top and height in percent of the plot's height."""

    query_id: str
    difference: float
    x: int
    y: float
    height: float


def bars(comparison: Comparison, scale: Scale) -> list[Bar]:
    """A bar for every query, from zero to its difference, in the order of `comparison.differences`."""
    return [
        Bar(query_id, d, x, y=round(100 - scale.at(max(d, 0)), 2), height=round(abs(scale.at(d) - scale.at(0)), 2))
        for x, (query_id, d) in enumerate(comparison.differences.items())
    ]


def scale_over(values: Iterable[float], *, parts: int) -> Scale:
    """An axis over `values` and zero with round ticks, cut into `parts` + 1 at most."""
    listed = [0.0, *values]
    low, high = min(listed), max(listed)
    step = _step((high - low) or 0.1, parts)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:
        first, last = -1, 1
    ticks = tuple(round(i * step, 6) for i in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks)


def _step(span: float, parts: int) -> float:
    """The smallest round number that cuts `span` into `parts` at most: 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(span / parts))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if span / (m * power) <= parts + 1e-9)
