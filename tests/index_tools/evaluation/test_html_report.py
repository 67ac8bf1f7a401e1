"""The page and the table: hostile input stays text, every number stands where it belongs, nothing is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from querylift.index_tools.evaluation.comparison import Comparison, compare_runs
from querylift.index_tools.evaluation.html_report import (
    Hit,
    QueryDetail,
    Report,
    Scale,
    SystemRow,
    create_bars,
    format_difference,
    format_milliseconds,
    format_p_value,
    format_query_count,
    format_verdict,
    render_report,
    write_report,
)
from querylift.index_tools.evaluation.measures import Evaluation, evaluate_run
from querylift.index_tools.evaluation.text_table import render_table
from querylift.plugin.errors import SettingsError
from tests.helpers.page import Page

HOSTILE = """</title><script>alert(1)</script><img src=x onerror='alert(2)'>" onload="alert(3)" {{ 7 * 7 }}"""
QRELS = {f"q{i}": {"good": 2, "bad": 0} for i in range(8)}
BEFORE = evaluate_run({f"q{i}": ["bad", "good"] for i in range(8)}, QRELS)
AFTER = evaluate_run({f"q{i}": ["good", "bad"] if i else ["bad", "other"] for i in range(8)}, QRELS)


def compare_evaluations(before: Evaluation = BEFORE, after: Evaluation = AFTER) -> Comparison:
    return compare_runs(before.per_query["ndcg_at_10"], after.per_query["ndcg_at_10"])


def create_detail(text: str = "aspirin") -> QueryDetail:
    hits = (Hit("good", text, 2), Hit("bad", text, 0), Hit(text))
    return QueryDetail(text, expansion=text, hits_before=hits, hits_after=hits[1:])


def create_report(text: str = "aspirin", **changes: Any) -> Report:
    details = {f"q{i}": create_detail(text) for i in range(7)}
    systems = (
        SystemRow(f"none {text}", BEFORE),
        SystemRow(f"model {text}", AFTER, compare_evaluations(), 4.25, 12.0, details),
    )
    facts: dict[str, Any] = dict.fromkeys(("corpus", "split", "index", "engine", "date", "generator", "mode"), text)
    return Report(systems, **(facts | {"weight": 0.1} | changes))


def extract_words(page: str) -> str:
    return " ".join(Page(page).text.split())


def test_hostile_texts_are_shown_as_text_wherever_they_stand() -> None:
    page = Page(render_report(create_report(HOSTILE)))
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) > 20
    assert "49" not in page.text, "a text is no template"


def test_a_hostile_query_id_is_shown_as_text() -> None:
    before, after = evaluate_run({}, {HOSTILE: {"d": 1}}), evaluate_run({HOSTILE: ["d"]}, {HOSTILE: {"d": 1}})
    systems = (SystemRow("none", before), SystemRow("model", after, compare_evaluations(before, after)))
    page = Page(render_report(Report(systems, "tiny")))
    assert not {"script", "img"} & set(page.tags)
    assert HOSTILE in page.text


def test_the_page_loads_nothing_runs_nothing_and_forbids_both() -> None:
    page = render_report(create_report())
    for loader in ("http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link", "javascript:"):
        assert loader not in page
    assert "default-src 'none'" in page


def test_every_element_is_closed_and_every_id_is_used_once() -> None:
    page = Page(render_report(create_report()))
    assert page.open_tags == []
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    labelling_ids = " ".join(value or "" for name, value in page.attributes if name == "aria-labelledby").split()
    assert set(labelling_ids) <= set(ids)


def test_the_plot_has_a_title_and_a_description_and_the_table_has_scopes() -> None:
    page = Page(render_report(create_report()))
    assert {"svg", "title", "desc"} <= set(page.tags)
    assert ("scope", "col") in page.attributes and ("scope", "row") in page.attributes
    assert "1 query got worse, 0 stayed equal, 7 got better" in page.text


def test_the_page_names_what_was_measured() -> None:
    words = extract_words(
        render_report(create_report(generator="student.gguf", engine="OpenSearch 3.8.0", weight=0.25))
    )
    assert "Generator student.gguf" in words and "Engine OpenSearch 3.8.0" in words and "Weight 0.25" in words


def test_facts_that_are_not_known_are_left_out() -> None:
    words = extract_words(render_report(Report((SystemRow("none", BEFORE),), "tiny")))
    assert "Queries 8" in words
    assert not [name for name in ("Split", "Index", "Engine", "Generator", "Mode", "Weight") if f"{name} " in words]


def test_the_summary_has_every_number_of_a_system() -> None:
    words = extract_words(render_report(create_report()))
    # Before, the good document is second, 1 / log2(3); after, it is first for 7 of 8 and not there for one.
    assert "none aspirin 0.631 1.000 0.500 – – – – –" in words
    low, high = compare_evaluations().interval
    # p: of the 256 sums of seven ±.369 and one ±.631, 2 * (1 + 1 + 7) are as far from zero as 7 * .369 - .631.
    assert f"model aspirin 0.875 0.875 0.875 +0.244 {low:+.3f} to {high:+.3f}".replace("-", "−") in words
    assert "0.070 7 / 0 / 1 4.2 / 12" in words


def test_a_query_is_shown_with_its_expansion_both_values_and_graded_hits() -> None:
    details = {"q0": QueryDetail("head ache", "aspirin ibuprofen", (Hit("d7", "On aspirin", 2),), (Hit("d9"),))}
    systems = (SystemRow("none", BEFORE), SystemRow("model", AFTER, compare_evaluations(), details=details))
    words = extract_words(render_report(Report(systems, "tiny")))
    assert "Asked head ache q0 Added aspirin ibuprofen" in words
    assert "none 0.631 On aspirin d7 grade 2" in words
    assert "model 0.000 d9 not judged" in words


def test_a_query_without_detail_is_listed_by_its_id() -> None:
    systems = (SystemRow("none", BEFORE), SystemRow("model", AFTER, compare_evaluations()))
    assert "q0 0.631 → 0.000 −0.631" in extract_words(render_report(Report(systems, "tiny")))


def test_only_the_first_five_hits_are_shown() -> None:
    details = {"q0": QueryDetail("x", "y", tuple(Hit(f"doc{i}") for i in range(7)))}
    words = extract_words(
        render_report(
            Report((SystemRow("n", BEFORE), SystemRow("m", AFTER, compare_evaluations(), details=details)), "t")
        )
    )
    assert "doc4" in words and "doc5" not in words
    assert "m 0.000 No documents." in words


def test_times_are_shown_only_where_some_system_has_them() -> None:
    untimed = Report((SystemRow("none", BEFORE), SystemRow("model", AFTER, compare_evaluations())), "tiny")
    assert "Added ms" not in extract_words(render_report(untimed))
    assert "Added ms" in extract_words(render_report(create_report()))


def test_identical_systems_make_a_page_too() -> None:
    systems = (SystemRow("none", BEFORE), SystemRow("same", BEFORE, compare_evaluations(BEFORE, BEFORE)))
    words = extract_words(render_report(Report(systems, "tiny")))
    assert "No measurable difference" not in words  # the capital is made by the style sheet
    assert "no measurable difference : 0.000 nDCG@10, p = 1.000" in words
    assert "No query got worse." in words and "No query got better." in words


def test_queries_that_count_zero_or_are_left_out_are_told() -> None:
    qrels = {"q1": {"d": 1}, "q2": {"d": 1}, "none": {"d": 0}}
    before, after = evaluate_run({"q1": ["d"]}, qrels), evaluate_run({"q1": ["d"], "q2": ["d"]}, qrels)
    systems = (SystemRow("base", before), SystemRow("model", after, compare_evaluations(before, after)))
    words = extract_words(render_report(Report(systems, "tiny")))
    assert "Left out: 1 judged query without any." in words
    assert "finds nothing for counts 0: 1 with base ." in words


def test_half_a_surrogate_pair_in_a_document_does_not_stop_the_report(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", create_report("broken \ud800 title"))
    assert "broken ? title" in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", ["absent/r.html", "."])
def test_a_path_that_takes_no_file_is_one_sentence(tmp_path: Path, path: str) -> None:
    with pytest.raises(SettingsError, match=r"r\.html|is a folder; name a file"):
        write_report(tmp_path / path, create_report())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("systems", [(), (SystemRow("a", BEFORE), SystemRow("b", AFTER))])
def test_a_report_needs_one_baseline_and_it_comes_first(systems: tuple[SystemRow, ...]) -> None:
    with pytest.raises(ValueError, match="the first system of a report must have no comparison"):
        Report(systems, "tiny")


def test_bars_go_from_zero_to_the_difference() -> None:
    comparison = Comparison(0.5, 0.5, 1.0, (0.0, 0.0), {"down": -0.5, "tie": 0.0, "up": 1.0})
    shown_bars = create_bars(comparison, Scale(-1.0, 1.0, (-1.0, 0.0, 1.0)))
    assert [(bar.query_id, bar.x, bar.y, bar.height) for bar in shown_bars] == [
        ("down", 0, 50.0, 25.0),
        ("tie", 1, 50.0, 0.0),
        ("up", 2, 0.0, 50.0),
    ]


@pytest.mark.parametrize(
    ("p_value", "difference", "sentence"),
    [
        (0.003, 0.05, "helps: +0.050 nDCG@10, p = 0.003"),
        (0.00001, 0.05, "helps: +0.050 nDCG@10, p < 0.001"),
        (0.0496, -0.031, "harms: -0.031 nDCG@10, p = 0.0496"),
        (0.0501, -0.031, "no measurable difference: -0.031 nDCG@10, p = 0.0501"),
        (0.482, 0.004, "no measurable difference: +0.004 nDCG@10, p = 0.482"),
    ],
)
def test_the_verdict_is_one_plain_sentence(p_value: float, difference: float, sentence: str) -> None:
    assert format_verdict(Comparison(0.5, 0.5 + difference, p_value, (0.0, 0.0), {}), "nDCG@10") == sentence


def test_numbers_are_rounded_without_a_sign_on_zero_and_without_hiding_a_small_p_value() -> None:
    assert [format_difference(x) for x in (0.0004, -0.0004, 0.0516, -0.25)] == ["0.000", "0.000", "+0.052", "-0.250"]
    assert [format_p_value(p) for p in (0.0009, 0.001, 0.0499, 0.05, 0.5)] == [
        "<0.001",
        "0.001",
        "0.0499",
        "0.0500",
        "0.500",
    ]
    assert [format_query_count(1), format_query_count(2590), format_query_count(0, "judged")] == [
        "1 query",
        "2,590 queries",
        "0 judged queries",
    ]
    assert [format_milliseconds(t) for t in (None, 4.26, 9.96, 1430.4)] == ["–", "4.3", "10", "1,430"]


def test_the_table_has_a_line_per_system() -> None:
    rows = [SystemRow("no expansion", BEFORE), SystemRow("embedded model", AFTER, compare_evaluations(), 4.26, 812.0)]
    assert render_table(rows).splitlines() == [
        "                                                           added ms",
        "system          nDCG@10    diff  recall@100  W/T/L      p   p50/p95",
        "no expansion      0.631       -       1.000      -      -         -",
        "embedded model    0.875  +0.244       0.875  7/0/1  0.070   4.3/812",
    ]


def test_the_table_leaves_the_times_out_where_there_are_none() -> None:
    lines = render_table([SystemRow("a", BEFORE), SystemRow("b", AFTER, compare_evaluations())]).splitlines()
    assert lines[0] == "system  nDCG@10    diff  recall@100  W/T/L      p"
    assert len(lines) == 3


def test_the_table_never_is_wider_than_80_columns() -> None:
    many = Comparison(0.1, 0.2, 0.0001, (0.0, 0.1), {f"q{i}": float(i % 3 - 1) for i in range(100_000)})
    table = render_table([SystemRow("a" * 90, BEFORE), SystemRow("b" * 90, AFTER, many, 12_000.0, 13_000.0)])
    assert max(map(len, table.splitlines())) <= 80


def test_a_name_that_is_too_long_for_its_column_stands_above_its_numbers_and_is_not_cut() -> None:
    name = "expander:/srv/search/expanders/products-of-the-german-shop.expander"
    rows = [SystemRow("none", BEFORE), SystemRow(name, AFTER, compare_evaluations(), 4.26, 812.0)]
    assert render_table(rows).splitlines() == [
        "                                                   added ms",
        "system  nDCG@10    diff  recall@100  W/T/L      p   p50/p95",
        "none      0.631       -       1.000      -      -         -",
        name,
        "          0.875  +0.244       0.875  7/0/1  0.070   4.3/812",
    ]


def test_a_table_of_nothing_is_empty() -> None:
    assert render_table([]) == ""
