"""One HTML file that says whether expansion helps on an index, by how much, and for which queries.

The file needs no script, no network and no other file. Texts of queries and documents are hostile input. So the template
escapes everything that it prints, and a content policy in the file forbids scripts and outside resources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from querylift.index_tools.evaluation.comparison import Comparison
from querylift.index_tools.evaluation.measures import LABELS, MAIN_MEASURE, SUMMARY_MEASURES, Evaluation
from querylift.index_tools.judging.grade_source import GradeSource
from querylift.plugin.errors import MissingExtra, SettingsError
from querylift.plugin.files import open_for_replacement

if TYPE_CHECKING:
    from jinja2 import Template

SHOWN_HITS = 5
"""The number of documents shown for each query and system."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that a search returned. `grade` is None when nobody judged it."""

    doc_id: str
    title: str = ""
    grade: int | None = None


@dataclass(frozen=True, slots=True)
class QueryDetail:
    """One query with its expansion, and its hits without and with the expansion, best first."""

    query: str
    expansion: str
    """The words that were added. It is empty when there were none."""
    hits_before: tuple[Hit, ...] = ()
    hits_after: tuple[Hit, ...] = ()


@dataclass(frozen=True, slots=True)
class SystemRow:
    """One system and its measures. `comparison` compares it with the first system, which itself has none."""

    name: str
    evaluation: Evaluation
    comparison: Comparison | None = None
    added_ms_p50: float | None = None
    added_ms_p95: float | None = None
    details: Mapping[str, QueryDetail] = field(default_factory=dict)
    """By query id, for the ten worst and the ten best queries. A query without details is listed by its id."""
    expanded_count: int | None = None
    """The number of queries that were expanded, if it is known."""
    refused_count: int = 0
    """The number of searches that the engine refused. Each counts 0."""

    @property
    def has_times(self) -> bool:
        """Whether the time that it adds to a search was measured."""
        return self.added_ms_p50 is not None or self.added_ms_p95 is not None

    @property
    def was_tried(self) -> bool:
        """Whether a comparison means anything. It means nothing when no query was expanded."""
        return self.expanded_count != 0


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that the page shows. A fact that is empty or None is left out. `date` is shown unchanged."""

    systems: tuple[SystemRow, ...]
    """The system that the others are compared with comes first."""
    corpus: str
    split: str = ""
    index: str = ""
    engine: str = ""
    date: str = ""
    generator: str = ""
    mode: str = ""
    weight: float | None = None
    measure: str = MAIN_MEASURE
    """The measure of every comparison."""
    relevant_from: int = 1
    judged_document_count: int = 0
    missing_document_count: int = 0
    """How many of the judged documents are not in the index."""
    judged_by: GradeSource | None = None
    """The model that made the judgments, and None when people made them."""

    def __post_init__(self) -> None:
        lacks_comparison = [system.comparison is None for system in self.systems]
        if not lacks_comparison or lacks_comparison != [True] + [False] * (len(lacks_comparison) - 1):
            raise ValueError("the first system of a report must have no comparison, and every later one must have one")

    @property
    def compared_systems(self) -> tuple[SystemRow, ...]:
        """The systems after the first."""
        return self.systems[1:]

    @property
    def has_times(self) -> bool:
        """Whether any system has times to show."""
        return any(system.has_times for system in self.systems)

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures of the summary. The compared measure comes first."""
        return tuple(dict.fromkeys((self.measure, *SUMMARY_MEASURES, "mrr_at_10")))

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """(name, value) of the facts about the measurement that are known."""
        facts = (
            ("Corpus", self.corpus),
            ("Split", self.split),
            ("Queries", f"{self.systems[0].evaluation.query_count:,}"),
            ("Judged by", self.judged_by.label if self.judged_by else ""),
            ("Judged documents", f"{self.judged_document_count:,}" if self.judged_document_count else ""),
            ("Not in the index", f"{self.missing_document_count:,} judged" if self.missing_document_count else ""),
            ("Index", self.index),
            ("Engine", self.engine),
            ("Generator", self.generator),
            ("Mode", self.mode),
            ("Weight", "" if self.weight is None else f"{self.weight:g}"),
        )
        return tuple((name, value) for name, value in facts if value)


def write_report(path: Path, report: Report) -> None:
    """Write `report` as one HTML file. An older file stays when that fails. Raises SettingsError when it fails."""
    page = render_report(report).encode(errors="replace")  # half of a surrogate pair in a document has no UTF-8
    try:
        with open_for_replacement(path) as stream:
            stream.write(page)
    except OSError as error:
        raise SettingsError(f"the report cannot be written to {path}: {error.strerror}; name another file") from error


def render_report(report: Report) -> str:
    """Return the page that `write_report` writes. Raises MissingExtra when Jinja is not installed."""
    comparisons = [_get_comparison(system) for system in report.compared_systems]
    differences = (difference for comparison in comparisons for difference in comparison.differences.values())
    interval_ends = (end for comparison in comparisons for end in comparison.interval)
    return _load_template().render(
        report=report,
        baseline=report.systems[0],
        label=LABELS[report.measure],
        labels=LABELS,
        chart_scale=create_scale(differences, parts=7),
        interval_scale=create_scale(interval_ends, parts=4),
        create_bars=create_bars,
        format_verdict=lambda system, label: _typeset_minus(_format_system_verdict(system, label)),
        shown_hits=SHOWN_HITS,
    )


def load_template(package: str, name: str, filters: Mapping[str, Callable[..., str]]) -> Template:
    """Return the template `name` of a package, which escapes everything that it prints. Raises MissingExtra."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtra("jinja2", "index") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= filters
    return environment.from_string(files(package).joinpath(name).read_text(encoding="utf-8"))


def _load_template() -> Template:
    filters: dict[str, Callable[..., str]] = {
        "count": "{:,}".format,
        "difference": typeset_difference,
        "measure": format_measure,
        "milliseconds": format_milliseconds,
        "p_value": format_p_value,
        "query_count": format_query_count,
        "share": "{:.0%}".format,
        "tick": typeset_tick,
    }
    return load_template("querylift.index_tools.evaluation", "report.html.jinja", filters)


def format_verdict(comparison: Comparison, label: str) -> str:
    """Return a sentence such as "helps: +0.050 nDCG@10, p = 0.003". `label` is how people write the measure."""
    p_value = format_p_value(comparison.deciding_p_value)
    relation = p_value.replace("<", "< ") if p_value.startswith("<") else f"= {p_value}"
    return f"{comparison.verdict}: {format_difference(comparison.difference)} {label}, p {relation}"


def _format_system_verdict(system: SystemRow, label: str) -> str:
    if not system.was_tried:
        return "not measured: no query was expanded"
    return format_verdict(_get_comparison(system), label)


def format_measure(value: float) -> str:
    """Return a measure with three decimals."""
    return f"{value:.3f}"


def format_difference(value: float) -> str:
    """Return a difference with its sign and three decimals. It has no sign when it rounds to zero."""
    text = f"{value:+.3f}"
    return "0.000" if text in ("+0.000", "-0.000") else text


def format_p_value(p_value: float) -> str:
    """Return a p-value with three decimals, such as "0.012", or "<0.001"."""
    if p_value < 0.001:
        return "<0.001"
    text = f"{p_value:.3f}"
    # 0.0496 is a difference and 0.0501 is none: "0.050" would not say which.
    return f"{p_value:.4f}" if text == "0.050" else text


def format_query_count(count: int, kind: str = "") -> str:
    """Return "1 query" or "2,590 queries", or with the word `kind` between: "3 judged queries"."""
    return " ".join(filter(None, (f"{count:,}", kind, "query" if count == 1 else "queries")))


def format_milliseconds(value: float | None) -> str:
    """Return a duration: one decimal below 10 ms, none above, and a dash for None."""
    if value is None:
        return "–"
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def typeset_difference(value: float) -> str:
    """Return a difference as `format_difference` does, with the minus sign of print."""
    return _typeset_minus(format_difference(value))


def typeset_tick(value: float) -> str:
    """Return the label of a tick on an axis of differences."""
    return _typeset_minus(f"{value:+g}") if value else "0"


def _typeset_minus(text: str) -> str:
    """Replace the hyphen by the minus sign of print, which is as wide as the plus."""
    return text.replace("-", "\N{MINUS SIGN}")


def _get_comparison(system: SystemRow) -> Comparison:
    if system.comparison is None:
        raise ValueError(f"{system.name} has no comparison")
    return system.comparison


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis from `low` to `high`. Both are ticks, and zero is between them or at one end."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def to_percent(self, value: float) -> float:
        """Return the place of `value`, in percent of the axis from `low`."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


@dataclass(frozen=True, slots=True)
class Bar:
    """The bar of one query: its place from the left, and its top and height in percent of the height of the plot."""

    query_id: str
    difference: float
    x: int
    y: float
    height: float


def create_bars(comparison: Comparison, scale: Scale) -> list[Bar]:
    """Return a bar from zero to the difference of each query, in the order of `comparison.differences`."""
    return [
        Bar(
            query_id,
            difference,
            x,
            y=round(100 - scale.to_percent(max(difference, 0)), 2),
            height=round(abs(scale.to_percent(difference) - scale.to_percent(0)), 2),
        )
        for x, (query_id, difference) in enumerate(comparison.differences.items())
    ]


def create_scale(values: Iterable[float], *, parts: int) -> Scale:
    """Return an axis over `values` and zero, with round ticks that cut it into at most `parts` + 1 parts."""
    numbers = [0.0, *values]
    low, high = min(numbers), max(numbers)
    step = _choose_step((high - low) or 0.1, parts)
    low_step, high_step = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if low_step == high_step:
        low_step, high_step = -1, 1
    ticks = tuple(round(number * step, 6) for number in range(low_step, high_step + 1))
    return Scale(ticks[0], ticks[-1], ticks)


def _choose_step(span: float, parts: int) -> float:
    """Return the smallest step that cuts `span` into at most `parts`: 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(span / parts))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if span / (factor * power) <= parts + 1e-9)
