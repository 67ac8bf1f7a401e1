"""`querylift judge convert`: annotations of rows that were made elsewhere."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from querylift.index_tools.judging.grade_scale import DEFAULT_SCALE, parse_scale
from querylift.plugin.errors import DataError, QueryliftError, SettingsError
from querylift.trainer.commands.judge.convert import convert
from querylift.trainer.judge.annotations import Annotation, read_annotations
from tests.helpers.lessons import write_json_lines
from tests.helpers.paths import ROOT

DATA = ROOT.parent / "shared" / "data"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A BEIR folder of two queries and four documents. One document has no text, and one has 200 words."""
    folder = tmp_path / "snow"
    folder.mkdir()
    documents = [
        {"_id": "d1", "title": "Snow", "text": "Ice crystals scatter all light."},
        {"_id": "d2", "title": "", "text": "word " * 200},
        {"_id": "d3", "title": "", "text": "Rain is wet."},
        {"_id": "d4", "title": "", "text": ""},
    ]
    write_json_lines(folder / "corpus.jsonl", documents)
    queries = [{"_id": "1", "text": "why is snow white"}, {"_id": "2", "text": "what is rain"}]
    write_json_lines(folder / "queries.jsonl", queries)
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n1\td1\t3\n1\td2\t0\n2\td3\t1\n", encoding="utf-8")
    return folder


def _run_convert(*arguments: object) -> dict[str, Any]:
    """Return the JSON that the command prints. Raise what the command raises."""
    result = CliRunner().invoke(convert, [*map(str, arguments), "--json"])
    if result.exception is not None:
        raise result.exception
    return dict(json.loads(result.stdout))


def _make_criteria_row(doc_id: str, *grades: int, **changes: Any) -> dict[str, Any]:
    names = ("exactness", "topicality", "coverage", "contextual_fit")
    return {"query_id": "1", "doc_id": doc_id, "model": "m", **dict(zip(names, grades, strict=True))} | changes


def _make_annotation_row(grade: object, **changes: Any) -> dict[str, Any]:
    row = {"query_id": "9", "doc_id": "x", "query": "q", "document": "d", "grade": grade, "criteria": {}}
    return row | {"reasoning": "r", "model": "m"} | changes


def test_criteria_become_annotations_with_grade_and_reasoning(corpus: Path, tmp_path: Path) -> None:
    rows = [
        _make_criteria_row("d1", 3, 3, 3, 3),
        _make_criteria_row("d2", 1, 2, 2, 2),
        _make_criteria_row("d3", 0, 1, 0, 0),
    ]
    path = write_json_lines(tmp_path / "criteria.jsonl", rows)
    facts = write_json_lines(
        tmp_path / "facts.jsonl",
        [{"query_id": "1", "query": "why is snow white", "nuggets": ["Crystals scatter light", "Snow absorbs little"]}],
    )
    out = tmp_path / "out.jsonl"
    counts = _run_convert(path, "--corpus", corpus, "--facts", facts, "--out", out)
    assert counts == {
        "rows": 3, "other_models": 0, "lost": 0, "written": 3, "conflicts": 0, "without_reasoning": 0,
        "cuts": [7, 9, 12], "grades": {"0": 1, "1": 1, "2": 0, "3": 1},
    }  # fmt: skip
    first, second, _ = read_annotations(out, DEFAULT_SCALE)
    assert (first.query, first.document, first.grade, first.model) == (
        "why is snow white", "Snow Ice crystals scatter all light.", 3, "m",
    )  # fmt: skip
    assert first.criteria == {"exactness": 3, "topicality": 3, "coverage": 3, "contextual_fit": 3}
    assert first.reasoning == (
        "It mentions one key fact: Crystals scatter light. It lacks Snow absorbs little. It gives the exact answer. "
        "It stays on topic. All of it treats the query. It gives good background."
    )
    assert len(second.document.split()) == 150


def test_thresholds_are_given_or_set_like_judgments(corpus: Path, tmp_path: Path) -> None:
    rows = [
        _make_criteria_row("d1", 3, 2, 1, 1),
        _make_criteria_row("d2", 1, 1, 1, 1),
        _make_criteria_row("d3", 0, 0, 0, 1),
    ]
    path = write_json_lines(tmp_path / "criteria.jsonl", rows)
    arguments = [path, "--corpus", corpus, "--out", tmp_path / "out.jsonl"]
    assert _run_convert(*arguments, "--cut", 4, "--cut", 5, "--cut", 6)["grades"] == {"0": 1, "1": 1, "2": 0, "3": 1}
    like = tmp_path / "like.tsv"
    like.write_text("1\td1\t2\n1\td2\t2\n1\td9\t-1\n", encoding="utf-8")
    counts = _run_convert(*arguments, "--like", like)
    assert (counts["cuts"], counts["grades"]) == ([2, 2, 8], {"0": 1, "1": 0, "2": 2, "3": 0})
    assert _run_convert(*arguments, "--scale", "binary", "--cut", 5)["grades"] == {"0": 2, "1": 1}


def test_one_model_is_selected(corpus: Path, tmp_path: Path) -> None:
    rows = [_make_criteria_row("d1", 1, 1, 1, 1), _make_criteria_row("d1", 3, 3, 3, 3, model="n")]
    path = write_json_lines(tmp_path / "criteria.jsonl", rows)
    arguments = [path, "--corpus", corpus, "--out", tmp_path / "out.jsonl"]
    counts = _run_convert(*arguments, "--model", "n")
    assert (counts["rows"], counts["other_models"], counts["grades"]["3"]) == (1, 1, 1)
    with pytest.raises(SettingsError, match=r"the criteria are of several models \(m, n\); name one with --model"):
        _run_convert(*arguments)
    with pytest.raises(SettingsError, match="no row is of the model 'o'; name one of m, n"):
        _run_convert(*arguments, "--model", "o")


def test_judgments_become_annotations_by_people_without_reasoning(corpus: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "qrels.txt", tmp_path / "out.jsonl"
    path.write_text("1 0 d1 3\n1 0 d2 -1\n2 0 d3 1\n2 0 d4 1\n2 0 gone 1\n7 0 d1 1\n", encoding="utf-8")
    counts = _run_convert(path, "--corpus", corpus, "--out", out)
    assert (counts["written"], counts["lost"], counts["without_reasoning"], counts["cuts"]) == (3, 3, 3, [])
    assert counts["grades"] == {"0": 1, "1": 1, "2": 0, "3": 1}
    assert next(read_annotations(out, DEFAULT_SCALE)) == Annotation(
        "1", "d1", "why is snow white", "Snow Ice crystals scatter all light.", 3, "people"
    )
    assert _run_convert(corpus / "qrels.tsv", "--corpus", corpus, "--out", out, "--model", "nist")["written"] == 3
    assert {row.model for row in read_annotations(out, DEFAULT_SCALE)} == {"nist"}


def test_whole_annotations_need_no_corpus_and_are_read_gzipped(tmp_path: Path) -> None:
    rows = [_make_annotation_row(2), _make_annotation_row(1, doc_id="y", exactness=2, model=None)]
    path, out = tmp_path / "rows.jsonl.gz", tmp_path / "out.jsonl"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert _run_convert(path, "--out", out)["written"] == 2
    assert list(read_annotations(out, DEFAULT_SCALE)) == [
        Annotation("9", "x", "q", "d", 2, "m", reasoning="r"),
        Annotation("9", "y", "q", "d", 1, "unknown", {"exactness": 2}, "r"),
    ]


def test_texts_that_annotations_lack_come_from_the_corpus(corpus: Path, tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "rows.jsonl", [{"query_id": 1, "doc_id": "d1", "grade": 2, "reasoning": "r"}])
    _run_convert(path, "--corpus", corpus, "--out", tmp_path / "out.jsonl")
    (row,) = read_annotations(tmp_path / "out.jsonl", DEFAULT_SCALE)
    assert (row.query, row.document, row.reasoning, row.model) == (
        "why is snow white",
        "Snow Ice crystals scatter all light.",
        "r",
        "unknown",
    )
    write_json_lines(path, [{"query_id": 1, "doc_id": "d1", "grade": 2}])
    _run_convert(path, "--corpus", corpus, "--out", tmp_path / "out.jsonl")
    assert [row.model for row in read_annotations(tmp_path / "out.jsonl", DEFAULT_SCALE)] == ["unknown"]


def test_different_grades_of_a_pair_are_merged_and_counted(tmp_path: Path) -> None:
    first = write_json_lines(tmp_path / "a.jsonl", [_make_annotation_row(3), _make_annotation_row(1, reasoning="low")])
    second = write_json_lines(tmp_path / "b.jsonl", [_make_annotation_row(1), _make_annotation_row(0, doc_id="y")])
    counts = _run_convert(first, second, "--out", tmp_path / "out.jsonl")
    assert (counts["rows"], counts["written"], counts["conflicts"]) == (4, 2, 1)
    merged = next(read_annotations(tmp_path / "out.jsonl", DEFAULT_SCALE))
    assert (merged.grade, merged.reasoning) == (1, "low")


def test_the_summary_is_text_by_default(corpus: Path, tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "criteria.jsonl", [_make_criteria_row("d1", 3, 3, 3, 3)])
    out = tmp_path / "out.jsonl"
    result = CliRunner().invoke(convert, [str(path), "--corpus", str(corpus), "--out", str(out)])
    assert result.stdout.splitlines() == [
        "rows: 1 read, 0 of other models left out, 0 left out without a text",
        "pairs: 1 written, 0 of them had different grades, 0 without reasoning",
        "cuts: 7, 9, 12",
        "grades: 0: 0, 1: 0, 2: 0, 3: 1",
        f"annotations: {out}",
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (json.dumps(_make_annotation_row(4)), r"rows:1: grade 4 is off the scale; give a whole number from 0 to 3"),
        (json.dumps(_make_annotation_row("2")), "rows:1: grade '2' is off the scale"),
        ("1 0 d1 1\n1 0 d2 4\n", r"rows:2: grade 4 is off the scale of 4 grades; give 0 to 3, or another --scale"),
        (
            json.dumps(_make_criteria_row("d1", 1, 1, 1, 5)),
            "rows:1: criterion 'contextual_fit' is 5; give a whole number",
        ),
        ('{"query_id": "1", "doc_id": "d", "exactness": 1}', "rows:1: this row has no grade and lacks criteria; write"),
        (json.dumps(_make_criteria_row("", 1, 1, 1, 1)), "rows:1: 'doc_id' is empty"),
        ('{"query_id": "1", "doc_id": "d1"', "rows:1: this line is not JSON"),
        (
            json.dumps(_make_annotation_row(2, document="")),
            "rows:1: this row lacks the text of its query or its document",
        ),
    ],
)
def test_broken_rows_are_told_with_their_line_and_nothing_is_written(
    tmp_path: Path, content: str, sentence: str
) -> None:
    path = tmp_path / "rows"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=sentence):
        _run_convert(path, "--out", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_wrong_options_are_told(corpus: Path, tmp_path: Path) -> None:
    rows = write_json_lines(tmp_path / "rows.jsonl", [_make_criteria_row("d1", 1, 1, 1, 1)])
    judgments, empty = tmp_path / "qrels.txt", tmp_path / "empty.txt"
    judgments.write_text("1 0 d1 1\n", encoding="utf-8")
    empty.write_text("", encoding="utf-8")
    out = tmp_path / "out.jsonl"
    cases: list[tuple[list[object], str]] = [
        ([rows, "--cut", 5], "--cut is 5; give it once for each grade from 1 to 3"),
        ([rows, "--cut", 5, "--cut", 7, "--cut", 9, "--like", judgments], "--cut and --like are both given"),
        ([rows, "--like", empty], r"--like is .*empty\.txt, which judges nothing"),
        ([judgments, "--like", judgments], "but no row has criteria alone"),
        ([empty], "the files hold no row"),
        ([tmp_path / "gone"], "gone' cannot be read"),
        ([rows, "--split", "dev"], "has no split 'dev'"),
        (
            [write_json_lines(tmp_path / "far.jsonl", [_make_criteria_row("far", 1, 1, 1, 1)])],
            "no row has its query and its",
        ),
    ]
    for arguments, sentence in cases:
        with pytest.raises(QueryliftError, match=sentence):
            _run_convert(*arguments, "--corpus", corpus, "--out", out)
    with pytest.raises(SettingsError, match="which is also read; name another file"):
        _run_convert(rows, "--corpus", corpus, "--out", rows)
    assert not out.exists()


def test_answers_of_annotate_are_never_written_over(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "annotations.jsonl"
    out.write_text("paid\n", encoding="utf-8")
    (tmp_path / "annotations.jsonl.manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"annotations\.jsonl', which holds answers of `querylift judge annotate`"):
        _run_convert(corpus / "qrels.tsv", "--corpus", corpus, "--out", out)
    assert out.read_text(encoding="utf-8") == "paid\n"


def test_grades_that_no_judge_can_learn_from_are_warned_about(corpus: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "qrels.txt", tmp_path / "out.jsonl"
    arguments = ["--corpus", corpus, "--out", out]
    path.write_text("1 0 d1 1\n1 0 d2 0\n", encoding="utf-8")
    result = CliRunner().invoke(convert, list(map(str, [path, *arguments])))
    assert "warning: no annotation has a grade of 2 or more, which counts as relevant" in result.stderr
    assert "next: " not in result.stdout
    result = CliRunner().invoke(convert, list(map(str, [path, *arguments, "--scale", "binary"])))
    assert (result.stderr, result.stdout.splitlines()[-1]) == (
        "", f"next: querylift judge train {out} --scale binary --out judge",
    )  # fmt: skip
    path.write_text("1 0 d1 1\n", encoding="utf-8")
    result = CliRunner().invoke(convert, list(map(str, [path, *arguments])))
    assert "warning: all annotations have grade 1, and a judge learns from two grades or more" in result.stderr


@pytest.mark.data
@pytest.mark.skipif(not (DATA / "judgments").is_dir(), reason="the judgments are not here")
def test_the_criteria_of_a_large_model_become_annotations_of_nearly_all_pairs(tmp_path: Path) -> None:
    corpus, out = DATA / "trec_dl", tmp_path / "out.jsonl"
    criteria, facts = (DATA / "judgments" / name for name in ("dl19_criteria.jsonl.gz", "dl19_facts.jsonl"))
    options = ["--model", "Llama-3-70B-Instruct", "--facts", facts, "--like", corpus / "qrels.dl19.tsv"]
    counts = _run_convert(criteria, "--corpus", corpus, "--split", "dl19", *options, "--out", out)
    assert (counts["written"], counts["lost"], counts["cuts"]) == (9258, 0, [7, 9, 12])
    reasonings = [row.reasoning for row in read_annotations(out, parse_scale("umbrela"))]
    assert 30 < sum(len(reasoning.split()) for reasoning in reasonings) / len(reasonings) < 60
    assert not any("grade" in reasoning.casefold().split() for reasoning in reasonings)
