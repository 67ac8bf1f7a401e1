"""Judgments, runs and queries are read and written in every form, and errors name path and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from querylift.index_tools.corpora.trec_files import read_qrels, read_run, read_topics, write_qrels, write_run
from querylift.plugin.errors import DataError, SettingsError
from tests.helpers.corpus_files import write_text_file

# --- judgments


def test_judgments_are_read_in_trec_form_tabs_or_spaces(tmp_path: Path) -> None:
    path = write_text_file(tmp_path / "qrels.txt", "301 0 FR940202-2-00150 1\n301\t0\tdoc2\t0\n\n302 Q0 doc1 -2\n")
    assert read_qrels(path) == {"301": {"FR940202-2-00150": 1, "doc2": 0}, "302": {"doc1": -2}}


def test_judgments_are_read_in_beir_form_with_its_header(tmp_path: Path) -> None:
    path = write_text_file(tmp_path / "test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td 2\t1\n")
    assert read_qrels(path) == {"q1": {"d1": 2, "d 2": 1}}


def test_judgments_are_read_in_beir_form_without_a_header(tmp_path: Path) -> None:
    assert read_qrels(write_text_file(tmp_path / "test.tsv", "q1\td1\t2\n")) == {"q1": {"d1": 2}}


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_an_id(tmp_path: Path) -> None:
    assert read_qrels(write_text_file(tmp_path / "q", "\ufeffq1 0 d1 1\r\nq1 0 d2 0\r\n")) == {"q1": {"d1": 1, "d2": 0}}


def test_the_same_judgment_twice_counts_once(tmp_path: Path) -> None:
    assert read_qrels(write_text_file(tmp_path / "q", "q1 0 d1 1\nq1 0 d1 1\n")) == {"q1": {"d1": 1}}


def test_an_empty_file_of_judgments_holds_none(tmp_path: Path) -> None:
    assert read_qrels(write_text_file(tmp_path / "q", "\n")) == {}


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("q1 0 d1 1\nq1 0 d1 2\n", 2, "already has grade 1 for query 'q1'; keep one"),
        ("q1 0 d1 high\n", 1, "grade 'high' is not a whole number"),
        ("q1 0 d1 1_0\n", 1, "grade '1_0' is not a whole number"),
        ("q1 0 d1 １\n", 1, "grade '１' is not a whole number"),
        ("q1\td1\t1.0\n", 1, "grade '1.0' is not a whole number"),
        ("q1 0 d1 1\nq1 0 d2 1001\n", 2, "grade 1001 is beyond 1000, so it looks like an id; put the columns in order"),
        ("q1 0 1 2147483647\n", 1, "grade 2147483647 is beyond 1000"),
        ("q1 0 d1 -2000\n", 1, "grade -2000 is beyond 1000"),
        ("q1 0 d1 " + "9" * 20 + "\n", 1, "is not a whole number"),
        ("q1 d1 1\n", 1, "3 columns in a judgment; write 'query 0 document grade', or 'query<TAB>document<TAB>grade'"),
        ("q1 0 d1 1\nq1 d2 1\n", 2, "3 columns in a judgment; write 'query 0 document grade', as the first line does"),
        ("query-id\tcorpus-id\tscore\nq1 0 d1 1\n", 2, "1 columns in a judgment; write 'query<TAB>document<TAB>grade'"),
        ("query-id\tcorpus-id\tscore\n\td1\t1\n", 2, "an id of this judgment is empty"),
    ],
)
def test_a_broken_judgment_is_named_by_path_and_line(tmp_path: Path, text: str, line: int, problem: str) -> None:
    path = write_text_file(tmp_path / "qrels", text)
    with pytest.raises(DataError) as caught:
        read_qrels(path)
    assert (caught.value.path, caught.value.line) == (str(path), line)
    assert problem in str(caught.value)


def test_written_judgments_are_read_back_unchanged(tmp_path: Path) -> None:
    qrels = {"q1": {"d1": 2, "d2": 0}, "q2": {"日本": 1}}
    write_qrels(tmp_path / "qrels.txt", qrels)
    assert (tmp_path / "qrels.txt").read_text() == "q1 0 d1 2\nq1 0 d2 0\nq2 0 日本 1\n"
    assert read_qrels(tmp_path / "qrels.txt") == qrels


# --- runs


def test_a_run_is_ordered_by_score_and_equal_scores_by_rank(tmp_path: Path) -> None:
    lines = ["q1 Q0 low 1 +.5 t", "q1 Q0 tie2 3 2.0 t", "q1 Q0 tie1 2 2.0 t", "q1 Q0 best 9 1e3 t", "q2 Q0 d 1 -1 t"]
    run = read_run(write_text_file(tmp_path / "run", "\n".join(lines)))
    assert run == {"q1": ["best", "tie1", "tie2", "low"], "q2": ["d"]}


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("q1 Q0 d1 1 2.0\n", 1, "this line has 5 columns, but a run has 6; write 'query Q0 document rank score tag'"),
        ("q1 Q0 d1 1 2.0 t\nq1 Q0 d1 2 1.0 t\n", 2, "'d1' is already in the run for query 'q1'"),
        ("q1 Q0 d1 first 2.0 t\n", 1, "rank 'first' is not a whole number"),
        ("q1 Q0 d1 1_0 2.0 t\n", 1, "rank '1_0' is not a whole number"),
        ("q1 Q0 d1 1 much t\n", 1, "score 'much' is not a finite number"),
        ("q1 Q0 d1 1 nan t\n", 1, "score 'nan' is not a finite number"),
        ("q1 Q0 d1 1 inf t\n", 1, "score 'inf' is not a finite number"),
        ("q1 Q0 d1 1 1e999 t\n", 1, "score '1e999' is not a finite number"),
        ("q1 Q0 d1 1 1_0.5 t\n", 1, "score '1_0.5' is not a finite number"),
    ],
)
def test_a_broken_line_of_a_run_is_named_by_path_and_line(tmp_path: Path, text: str, line: int, problem: str) -> None:
    with pytest.raises(DataError, match="run:") as caught:
        read_run(write_text_file(tmp_path / "run", text))
    assert caught.value.line == line
    assert problem in str(caught.value)


def test_a_written_run_has_scores_that_fall_with_every_rank(tmp_path: Path) -> None:
    write_run(tmp_path / "run.txt", {"q1": ["b", "a", "c"], "none": [], "q2": ["a"]}, "bm25")
    assert (tmp_path / "run.txt").read_text() == (
        "q1 Q0 b 1 3 bm25\nq1 Q0 a 2 2 bm25\nq1 Q0 c 3 1 bm25\nq2 Q0 a 1 1 bm25\n"
    )


def test_a_written_run_is_read_back_unchanged(tmp_path: Path) -> None:
    run = {"q1": [f"d{n * 7 % 1000}" for n in range(1000)], "q2": ["d1"]}
    write_run(tmp_path / "run.txt.gz", run, "t")
    assert read_run(tmp_path / "run.txt.gz") == run


def test_the_same_run_makes_the_same_gzip_file(tmp_path: Path) -> None:
    write_run(tmp_path / "a.gz", {"q": ["d"]}, "t")
    write_run(tmp_path / "b.gz", {"q": ["d"]}, "t")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


@pytest.mark.parametrize("doc_id", ["two words", "tab\tinside", " ahead", "", "wide\u3000space"])
def test_an_id_that_a_column_cannot_hold_is_refused(tmp_path: Path, doc_id: str) -> None:
    with pytest.raises(DataError, match="cannot stand in a TREC file") as caught:
        write_run(tmp_path / "run", {"q1": ["fine", doc_id]}, "t")
    assert caught.value.line == 2
    with pytest.raises(DataError, match="rename it without spaces"):
        write_qrels(tmp_path / "qrels", {"q1": {doc_id: 1}})


def test_a_document_that_comes_twice_in_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="document 'd1' comes twice for query 'q1'"):
        write_run(tmp_path / "run", {"q1": ["d1", "d2", "d1"]}, "t")


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = write_text_file(tmp_path / "run", "old\n")
    with pytest.raises(DataError):
        write_run(path, {"q1": ["d1", "d 2"]}, "t")
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_to_a_missing_folder_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"missing.* cannot be written: No such file or directory; name another place"
    ):
        write_run(tmp_path / "missing" / "run", {"q": ["d"]}, "t")


# --- queries


def test_topics_are_read_from_tagged_text(tmp_path: Path) -> None:
    text = """
<top>
<num> Number: 301
<title> International
  Organized Crime &amp; Drugs

<desc> Description:
Identify organizations that participate in crime.
</top>
<TOP><NUM>302</NUM><TITLE>x < 3 in Poliomyelitis</TITLE></TOP>
"""
    assert read_topics(write_text_file(tmp_path / "topics.txt", text)) == {
        "301": "International Organized Crime & Drugs",
        "302": "x < 3 in Poliomyelitis",
    }


def test_the_prefix_topic_is_removed_from_a_title(tmp_path: Path) -> None:
    path = write_text_file(tmp_path / "t", "<top>\n<num> Number: 051\n<title> Topic: Airbus Subsidies\n</top>\n")
    assert read_topics(path) == {"051": "Airbus Subsidies"}


def test_topics_are_read_from_lines_with_a_tab(tmp_path: Path) -> None:
    assert read_topics(write_text_file(tmp_path / "t.tsv", "19335\twhat is\ta tab\n47923\taxon\n")) == {
        "19335": "what is\ta tab",
        "47923": "axon",
    }


def test_topics_are_read_from_jsonl_gzipped_too(tmp_path: Path) -> None:
    text = '{"_id": "q1", "text": "one\\u2028line"}\n\n{"id": 2, "query": " two "}\n'
    assert read_topics(write_text_file(tmp_path / "queries.jsonl.gz", text)) == {"q1": "one\u2028line", "2": "two"}


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("q1\tone\nq1\ttwo\n", 2, "query id 'q1' comes twice"),
        ("q1\tone\nq2\t \n", 2, "query 'q2' has no text"),
        ("q1 one\n", 1, "this line has no query id before a tab"),
        ('{"_id": "q1", "text": "one"}\n{"_id": "q2"\n', 2, "this line is not JSON (Expecting ',' delimiter"),
        ('{"_id": "q1", "text": "one"}\n["q2"]\n', 2, "this line is a JSON list; write an object"),
        ('{"text": "one"}\n', 1, "'_id' is missing"),
        ('{"_id": "", "text": "one"}\n', 1, "'_id' is empty"),
        ('{"_id": true, "text": "one"}\n', 1, "'_id' is a bool"),
        ('{"_id": "q1"}\n', 1, "'text' is missing"),
        ('{"_id": "q1", "text": 5}\n', 1, "'text' is a int"),
        ('{"_id": "q1", "text": "\\ud83d"}\n', 1, "half a surrogate pair"),
        ('{"_id": 1' + "0" * 5000 + ', "text": "t"}\n', 1, "Python cannot hold this JSON"),
        ("<top>\n<num> 1\n<title> a\n</top>\n\n<top>\n<num> 2\n</top>\n", 6, "<num>, <title> and a closing </top>"),
        ("<top>\n<num> 1\n<title> a\n<top>\n<num> 2\n<title> b\n</top>\n", 1, "a closing </top>"),
        ("<topics>\n</topics>\n", 1, "the file starts with '<' but has no <top>"),
    ],
)
def test_a_broken_query_is_named_by_path_and_line(tmp_path: Path, text: str, line: int, problem: str) -> None:
    path = write_text_file(tmp_path / "topics", text)
    with pytest.raises(DataError) as caught:
        read_topics(path)
    assert (caught.value.path, caught.value.line) == (str(path), line)
    assert problem in str(caught.value)


@pytest.mark.parametrize("name", ["missing.tsv", "missing.tsv.gz", "."])
def test_a_file_that_cannot_be_opened_is_a_settings_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"cannot be read: .*; name another file"):
        read_topics(tmp_path / name)
