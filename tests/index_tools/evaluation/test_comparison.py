"""The paired test, its interval and its counts; hand-computed where small, against scipy where not."""

from __future__ import annotations

import json
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test

from querylift.index_tools.commands.compare import compare as compare_command
from querylift.index_tools.corpora.trec_files import write_qrels, write_run
from querylift.index_tools.evaluation.comparison import Comparison, compare_runs, correct_comparisons
from querylift.index_tools.evaluation.html_report import format_verdict
from querylift.plugin.errors import DataError, SettingsError


def create_runs(*differences: float) -> tuple[dict[str, float], dict[str, float]]:
    """Two runs whose values differ by `differences` at queries q0, q1, ..."""
    a = {f"q{i}": 0.5 for i in range(len(differences))}
    return a, {f"q{i}": 0.5 + d for i, d in enumerate(differences)}


def draw_runs(n: int, shift: float, seed: int = 7) -> tuple[dict[str, float], dict[str, float]]:
    return create_runs(*np.random.default_rng(seed).normal(shift, 0.1, n))


@pytest.mark.parametrize(
    ("differences", "p_value"),
    [
        ((0.2,), 2 / 2),
        ((0.2, 0.1), 2 / 4),
        ((0.1, 0.2, 0.3), 2 / 8),
        ((-0.1, -0.2, -0.3), 2 / 8),
        ((0.1, 0.2, -0.1), 6 / 8),  # the sums are .4 -.4 .2 .2 -.2 -.2 0 0, and .2 was seen
        ((0.1, 0.1, 0.1, 0.1, 0.1), 2 / 32),
        ((0.1, 0.1, 0.1, 0.1, -0.1), 12 / 32),  # five one way: 2 patterns; four one way: 10
    ],
)
def test_small_sets_have_the_exact_p_value(differences: tuple[float, ...], p_value: float) -> None:
    assert compare_runs(*create_runs(*differences)).p_value == pytest.approx(p_value)


def test_ties_do_not_change_the_p_value() -> None:
    assert compare_runs(*create_runs(0.1, 0.2, 0.3, *[0.0] * 50)).p_value == 2 / 8


@pytest.mark.parametrize("n", [10, 16])
def test_the_exact_test_agrees_with_scipy(n: int) -> None:
    a, b = draw_runs(n, 0.05)
    assert compare_runs(a, b).p_value == pytest.approx(calculate_scipy_p_value(a, b, n_resamples=np.inf))


def test_the_drawn_test_agrees_with_scipy() -> None:
    a, b = draw_runs(60, 0.02)
    assert compare_runs(a, b).p_value == pytest.approx(calculate_scipy_p_value(a, b, n_resamples=20_000), abs=0.01)


def test_a_drawn_p_value_counts_the_pattern_that_was_seen() -> None:
    assert compare_runs(*create_runs(*[0.1] * 40), permutations=999).p_value == 1 / 1000


def test_a_drawn_p_value_is_near_the_binomial_one() -> None:
    # 17 equal differences, 13 up and 4 down: p = 2 * (C(17,0) + ... + C(17,4)) / 2**17
    expected = 2 * (1 + 17 + 136 + 680 + 2380) / 2**17
    assert compare_runs(*create_runs(*[0.1] * 13, *[-0.1] * 4)).p_value == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize("n", [12, 40])
def test_about_one_in_twenty_is_called_a_difference_where_there_is_none(n: int) -> None:
    rng = np.random.default_rng(1)
    null = [create_runs(*rng.normal(0, 0.1, n)) for _ in range(600)]
    called = [compare_runs(a, b, permutations=399, resamples=1).p_value < 0.05 for a, b in null]
    assert 0.03 < np.mean(called) < 0.07


def test_the_interval_holds_the_true_difference_about_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(2)
    runs = [create_runs(*rng.normal(0.03, 0.1, 50)) for _ in range(300)]
    intervals = [compare_runs(a, b, permutations=1, resamples=400).interval for a, b in runs]
    assert 0.90 < np.mean([low <= 0.03 <= high for low, high in intervals]) < 0.98


def test_the_interval_is_near_the_one_of_the_normal_distribution() -> None:
    a, b = draw_runs(400, 0.05)
    d = np.array([b[q] - a[q] for q in a])
    half = 1.96 * d.std() / 20
    assert compare_runs(a, b).interval == pytest.approx((d.mean() - half, d.mean() + half), abs=0.001)


def test_one_query_has_an_interval_of_one_point() -> None:
    assert compare_runs(*create_runs(0.25)).interval == (0.25, 0.25)


def test_identical_runs_do_not_differ() -> None:
    a = {"q1": 0.3, "q2": 0.7}
    same = compare_runs(a, dict(a))
    assert (same.p_value, same.interval, same.difference) == (1.0, (0.0, 0.0), 0.0)
    assert (same.wins, same.ties, same.losses, same.worst, same.best) == (0, 2, 0, (), ())
    assert same.verdict == "no measurable difference"


def test_means_and_counts_are_of_b_against_a() -> None:
    c = compare_runs({"x": 0.2, "y": 0.4, "z": 0.6}, {"x": 0.5, "y": 0.4, "z": 0.5})
    assert (c.mean_a, c.mean_b) == pytest.approx((0.4, 1.4 / 3))
    assert c.difference == pytest.approx(0.2 / 3)
    assert (c.wins, c.ties, c.losses) == (1, 1, 1)


def test_a_difference_below_a_billionth_is_a_tie() -> None:
    c = compare_runs(*create_runs(0.9e-9, -0.9e-9, 1.1e-9))
    assert (c.wins, c.ties, c.losses) == (1, 2, 0)


def test_the_order_of_the_queries_does_not_matter() -> None:
    a, b = draw_runs(50, 0.02)
    turned = compare_runs(dict(reversed(a.items())), b)
    assert turned == compare_runs(a, b)
    assert list(turned.differences) == list(compare_runs(a, b).differences)


def test_exchanging_the_runs_turns_the_result_round() -> None:
    a, b = draw_runs(14, 0.05)
    there, back = compare_runs(a, b), compare_runs(b, a)
    assert there.p_value == back.p_value
    assert there.difference == -back.difference
    assert (there.wins, there.losses) == (back.losses, back.wins)
    assert there.worst == tuple((q, -d) for q, d in back.best)


def test_the_same_seed_gives_the_same_result_and_another_seed_another() -> None:
    a, b = draw_runs(40, 0.02)
    assert compare_runs(a, b, seed=3) == compare_runs(a, b, seed=3)
    assert compare_runs(a, b, seed=3).interval != compare_runs(a, b, seed=4).interval


def test_worst_and_best_are_ten_at_most_ordered_by_difference_then_query_id() -> None:
    c = compare_runs(*create_runs(*[-0.1] * 6, *[-0.2] * 6, *[0.1] * 2, *[0.0] * 5))
    assert [q for q, _ in c.worst] == ["q10", "q11", "q6", "q7", "q8", "q9", "q0", "q1", "q2", "q3"]
    assert [q for q, _ in c.best] == ["q12", "q13"]


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((0.1,) * 6, "helps"),
        ((-0.1,) * 6, "harms"),
        ((0.1,) * 5, "no measurable difference"),  # p = 2/32
    ],
)
def test_the_verdict_needs_p_below_five_percent(differences: tuple[float, ...], verdict: str) -> None:
    assert compare_runs(*create_runs(*differences)).verdict == verdict


def test_a_p_value_of_exactly_five_percent_is_no_difference() -> None:
    assert Comparison(0.1, 0.2, 0.05, (0.0, 0.2), {"q": 0.1}).verdict == "no measurable difference"


def test_comparisons_made_together_are_judged_by_their_corrected_p_values() -> None:
    # Six gains: p = 2 / 64. Twice that is above 0.05, so the same difference no longer helps beside another one.
    alone, other = compare_runs(*create_runs(*[0.1] * 6)), compare_runs(*create_runs(0.1, -0.1))
    corrected = correct_comparisons({"first": alone, "second": other})
    assert (alone.verdict, alone.deciding_p_value) == ("helps", 2 / 64)
    assert (corrected["first"].verdict, corrected["first"].p_value) == ("no measurable difference", 2 / 64)
    assert (corrected["first"].deciding_p_value, corrected["second"].deciding_p_value) == (4 / 64, 1.0)


def test_a_comparison_that_stands_alone_is_not_corrected() -> None:
    alone = compare_runs(*create_runs(*[0.1] * 6))
    assert correct_comparisons({"only": alone}) == {"only": alone}


def test_many_queries_are_compared_in_parts_of_bounded_memory() -> None:
    a, b = draw_runs(20_000, 0.01)
    assert compare_runs(a, b, permutations=200, resamples=200).p_value == 1 / 201


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ({}, {}, "no queries"),
        ({"x": 0.1}, {"y": 0.1}, "2 of them are in one run only"),
        ({"x": 0.1}, {"x": float("nan")}, "not a finite number"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(a: dict[str, float], b: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_runs(a, b)


@pytest.mark.parametrize("counts", [{"permutations": 0}, {"resamples": 0}])
def test_counts_below_one_are_refused(counts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        compare_runs(*create_runs(0.1), **counts)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(min_size=1), st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_whatever_the_values_the_result_is_in_range_and_adds_up(pairs: dict[str, tuple[float, float]]) -> None:
    a, b = ({q: pair[side] for q, pair in pairs.items()} for side in (0, 1))
    c = compare_runs(a, b, permutations=50, resamples=50)
    assert 0 < c.p_value <= 1
    assert c.wins + c.ties + c.losses == len(pairs)
    assert min(c.differences.values()) - 1e-12 <= c.interval[0] <= c.interval[1] <= max(c.differences.values()) + 1e-12


def calculate_scipy_p_value(a: dict[str, float], b: dict[str, float], *, n_resamples: float) -> float:
    pair = (np.array(list(a.values())), np.array(list(b.values())))
    result = permutation_test(
        pair,
        lambda x, y, axis: np.mean(y - x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=n_resamples,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


# --- querylift compare


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """a.run finds the good document second, b.run first, save for q0 where it finds nothing good; and their qrels."""
    write_qrels(tmp_path / "qrels", {f"q{i}": {"good": 2, "bad": 0} for i in range(8)} | {"none": {"bad": 0}})
    write_run(tmp_path / "a.run", {f"q{i}": ["bad", "good"] for i in range(8)}, "a")
    write_run(tmp_path / "b.run", {f"q{i}": ["good", "bad"] if i else ["bad"] for i in range(8)}, "b")
    return tmp_path


def run_compare_command(
    folder: Path, *options: str, a: str = "a.run", b: str = "b.run", qrels: str = "qrels"
) -> Result:
    arguments = [str(folder / a), str(folder / b), "--qrels", str(folder / qrels), *options]
    return CliRunner().invoke(compare_command, arguments)


def test_the_command_prints_means_difference_interval_p_counts_and_worst_queries(runs: Path) -> None:
    result = run_compare_command(runs)
    assert result.exit_code == 0
    c = compare_runs(
        {f"q{i}": 1 / log2(3) for i in range(8)},
        {f"q{i}": 1.0 if i else 0.0 for i in range(8)},
    )
    assert result.stdout.splitlines() == [
        f"A  {runs / 'a.run'}",
        f"B  {runs / 'b.run'}",
        "",
        "                 A      B    diff",
        "nDCG@10      0.631  0.875  +0.244",
        "MAP          0.500  0.875  +0.375",
        "MRR@10       0.500  0.875  +0.375",
        "recall@100   1.000  0.875  -0.125",
        "recall@1000  1.000  0.875  -0.125",
        "",
        f"B {format_verdict(c, 'nDCG@10')}",
        f"95% interval      {c.interval[0]:+.3f} to {c.interval[1]:+.3f}",
        "wins/ties/losses  7/0/1 of 8 queries",
        "not counted       1 judged query without a relevant document",
        "never judged      0% of the first ten hits in A, 0% in B",
        "",
        "Most harmed queries, nDCG@10",
        "  -0.631  q0",
    ]


def test_json_is_all_that_stands_on_stdout_even_where_a_report_is_written(runs: Path) -> None:
    result = run_compare_command(runs, "--json", "--report", str(runs / "page.html"), "--measure", "mrr_at_10")
    printed = json.loads(result.stdout)
    assert (printed["measure"], printed["queries"], printed["without_relevant"]) == ("mrr_at_10", 8, ["none"])
    assert (printed["wins"], printed["ties"], printed["losses"]) == (7, 0, 1)
    assert printed["difference"] == pytest.approx(0.375)
    assert printed["worst"] == [{"query_id": "q0", "difference": -0.5}]
    assert printed["b"]["means"]["recall_at_100"] == 0.875
    assert "page.html" in result.stderr
    page = (runs / "page.html").read_text()
    assert "Difference in MRR@10" in page and "b.run" in page


def test_queries_that_a_run_leaves_out_count_zero_and_are_told(runs: Path) -> None:
    write_run(runs / "b.run", {"q1": ["good"]}, "b")
    assert "counted as 0      0 queries in A, 7 in B, without any document" in run_compare_command(runs).stdout
    assert len(json.loads(run_compare_command(runs, "--json").stdout)["b"]["missing"]) == 7


def test_relevant_from_decides_what_the_binary_measures_count(runs: Path) -> None:
    write_qrels(runs / "qrels", {"q1": {"good": 2, "bad": 1}})
    assert json.loads(run_compare_command(runs, "--json").stdout)["a"]["means"]["mrr_at_10"] == 1.0
    assert (
        json.loads(run_compare_command(runs, "--json", "--relevant-from", "2").stdout)["a"]["means"]["mrr_at_10"] == 0.5
    )


def test_an_escape_sequence_in_an_id_does_not_reach_the_terminal(runs: Path) -> None:
    write_qrels(runs / "qrels", {"q\x1b[2J": {"good": 1}})
    write_run(runs / "a.run", {"q\x1b[2J": ["good"]}, "a")
    write_run(runs / "b.run", {"q\x1b[2J": ["bad", "good"]}, "b")
    assert "  -0.369  q?[2J" in run_compare_command(runs).stdout


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"a": "absent.run"}, (), r"'.*absent\.run' cannot be read"),
        ({"qrels": "absent"}, (), r"'.*absent' cannot be read"),
        ({"b": "stranger.run"}, (), r"stranger\.run answers no query that .*qrels judges"),
        ({}, ("--relevant-from", "3"), "no query of the qrels has a document graded 3 or above"),
        ({}, ("--report", "/dev/null/page.html"), "/dev/null"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    runs: Path, files: dict[str, str], options: tuple[str, ...], message: str
) -> None:
    write_run(runs / "stranger.run", {"other": ["good"]}, "x")
    with pytest.raises(SettingsError, match=message):
        raise run_compare_command(runs, *options, **files).exception or AssertionError("no error")


def test_a_broken_line_names_file_and_line(runs: Path) -> None:
    (runs / "b.run").write_text("q1 Q0 good 1\n")
    assert isinstance(run_compare_command(runs).exception, DataError)


def test_an_unknown_measure_is_refused_with_exit_code_two(runs: Path) -> None:
    assert run_compare_command(runs, "--measure", "accuracy").exit_code == 2
