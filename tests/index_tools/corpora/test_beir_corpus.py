"""A folder in BEIR's layout is a corpus, with splits by its file names."""

from __future__ import annotations

from pathlib import Path

import pytest

from querylift.index_tools.corpora.corpus_names import load_corpus
from querylift.index_tools.corpora.records import Document
from querylift.plugin.errors import DataError, SettingsError
from tests.helpers.corpus_files import QRELS_HEADER, format_jsonl, read_all_splits, write_text_file
from tests.helpers.paths import SHARED_DATA


def test_a_beir_folder_without_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"has no corpus.jsonl; name a folder in BEIR's layout"):
        load_corpus(f"beir:{tmp_path}")


def test_a_beir_folder_has_a_split_for_each_file_of_judgments(tmp_path: Path) -> None:
    write_text_file(
        tmp_path / "corpus.jsonl", '{"_id": "d1", "title": "T", "text": "one"}\n{"_id": "d2", "text": ""}\n'
    )
    write_text_file(tmp_path / "queries.jsonl", format_jsonl(q1="first", q2="second", q3="never judged"))
    write_text_file(tmp_path / "qrels" / "test.tsv", QRELS_HEADER + "q1\td1\t1\n")
    write_text_file(tmp_path / "qrels" / "train.tsv", QRELS_HEADER + "q2\td2\t2\nq2\td1\t0\n")
    corpus = load_corpus(str(tmp_path))
    assert list(corpus.iter_documents()) == [Document("d1", "T", "one"), Document("d2", "", "")]
    assert read_all_splits(corpus) == {
        "test": ({"q1": "first"}, {"q1": {"d1": 1}}),
        "train": ({"q2": "second"}, {"q2": {"d2": 2, "d1": 0}}),
    }


def test_a_split_with_queries_of_its_own_has_all_of_them(tmp_path: Path) -> None:
    write_text_file(tmp_path / "corpus.jsonl", format_jsonl(d1="one"))
    write_text_file(tmp_path / "queries.dev.jsonl", format_jsonl(q1="first", q2="never judged"))
    write_text_file(tmp_path / "qrels.dev.tsv", QRELS_HEADER + "q1\td1\t1\n")
    write_text_file(tmp_path / "queries.blind.jsonl", format_jsonl(q9="no judgments at all"))
    assert read_all_splits(load_corpus(f"beir:{tmp_path}")) == {
        "blind": ({"q9": "no judgments at all"}, {}),
        "dev": ({"q1": "first", "q2": "never judged"}, {"q1": {"d1": 1}}),
    }


def test_files_without_a_split_make_the_split_all(tmp_path: Path) -> None:
    write_text_file(tmp_path / "corpus.jsonl", format_jsonl(d1="one"))
    write_text_file(tmp_path / "queries.jsonl", format_jsonl(q1="first", q2="never judged"))
    write_text_file(tmp_path / "qrels.tsv", QRELS_HEADER + "q1\td1\t1\n")
    corpus = load_corpus(str(tmp_path))
    assert read_all_splits(corpus) == {"all": ({"q1": "first", "q2": "never judged"}, {"q1": {"d1": 1}})}
    assert corpus.read_queries() == corpus.read_queries("all")


def test_one_file_of_judgments_serves_the_queries_of_every_split(tmp_path: Path) -> None:
    write_text_file(tmp_path / "corpus.jsonl", format_jsonl(d1="one"))
    write_text_file(tmp_path / "queries.a.jsonl", format_jsonl(q1="first"))
    write_text_file(tmp_path / "queries.b.jsonl", format_jsonl(q2="second"))
    write_text_file(tmp_path / "qrels.tsv", QRELS_HEADER + "q1\td1\t1\nq2\td1\t2\nq3\td1\t1\n")
    assert read_all_splits(load_corpus(str(tmp_path))) == {
        "a": ({"q1": "first"}, {"q1": {"d1": 1}}),
        "b": ({"q2": "second"}, {"q2": {"d1": 2}}),
    }


def test_a_folder_of_gzip_files_is_read_like_any_other(tmp_path: Path) -> None:
    write_text_file(tmp_path / "corpus.jsonl.gz", format_jsonl(d1="one"))
    write_text_file(tmp_path / "queries.jsonl.gz", format_jsonl(q1="first"))
    write_text_file(tmp_path / "qrels" / "test.tsv.gz", QRELS_HEADER + "q1\td1\t1\n")
    corpus = load_corpus(str(tmp_path))
    assert list(corpus.iter_documents()) == [Document("d1", "", "one")]
    assert read_all_splits(corpus) == {"test": ({"q1": "first"}, {"q1": {"d1": 1}})}


def test_documents_alone_are_a_corpus_without_splits(tmp_path: Path) -> None:
    write_text_file(tmp_path / "corpus.jsonl", format_jsonl(d1="one"))
    corpus = load_corpus(str(tmp_path))
    assert corpus.split_names == ()
    for split in (None, "dev"):
        with pytest.raises(SettingsError, match=f"^{tmp_path.name!r} has no queries; name a corpus that has some$"):
            corpus.read_queries(split)


def test_a_split_has_to_be_named_where_there_are_several(tmp_path: Path) -> None:
    write_text_file(tmp_path / "corpus.jsonl", format_jsonl(d1="one"))
    write_text_file(tmp_path / "queries.jsonl", format_jsonl(q1="first"))
    write_text_file(tmp_path / "qrels.dev.tsv", QRELS_HEADER)
    write_text_file(tmp_path / "qrels.test.tsv", QRELS_HEADER)
    corpus = load_corpus(str(tmp_path))
    with pytest.raises(SettingsError, match=f"^{tmp_path.name!r} has several splits: dev, test; name one of them$"):
        corpus.read_qrels()
    with pytest.raises(SettingsError, match=f"^{tmp_path.name!r} has no split 'train'; its splits are dev, test$"):
        corpus.read_qrels("train")


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    write_text_file(tmp_path / "corpus.jsonl", format_jsonl(d1="one"))
    write_text_file(tmp_path / "queries.jsonl", format_jsonl(q1="first"))
    write_text_file(tmp_path / "qrels.dev.tsv", QRELS_HEADER)
    write_text_file(tmp_path / "qrels" / "dev.tsv", QRELS_HEADER)
    with pytest.raises(SettingsError, match=r"qrels\.dev\.tsv' and .*dev\.tsv' are files of one split"):
        load_corpus(str(tmp_path))
    write_text_file(tmp_path / "queries.jsonl.gz", format_jsonl(q1="first"))
    with pytest.raises(SettingsError, match=r"queries\.jsonl' and .*queries\.jsonl\.gz' are files of one split"):
        load_corpus(str(tmp_path))


def test_judgments_without_any_queries_are_refused(tmp_path: Path) -> None:
    write_text_file(tmp_path / "corpus.jsonl", format_jsonl(d1="one"))
    write_text_file(tmp_path / "qrels.dev.tsv", QRELS_HEADER + "q1\td1\t1\n")
    with pytest.raises(SettingsError, match=r"judges queries that no file holds; add the queries of split 'dev'"):
        load_corpus(str(tmp_path)).read_queries("dev")


def test_a_judged_query_without_text_is_refused_because_it_would_count_as_a_miss(tmp_path: Path) -> None:
    write_text_file(tmp_path / "corpus.jsonl", format_jsonl(d1="one"))
    write_text_file(tmp_path / "queries.jsonl", format_jsonl(q1="first"))
    write_text_file(tmp_path / "qrels.tsv", QRELS_HEADER + "q1\td1\t1\nq7\td1\t1\n")
    with pytest.raises(
        DataError, match=r"qrels\.tsv:3: query 'q7' is judged but not in .*queries\.jsonl; add its text"
    ):
        load_corpus(str(tmp_path)).read_qrels()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"_id": "d1", "text": "again"}', "document id 'd1' comes twice"),
        ('{"_id": "", "text": "t"}', "'_id' is empty"),
        ('{"text": "t"}', "'_id' is missing"),
        ('{"_id": "d2", "title": "t"}', "'text' is missing"),
        ('{"_id": "d2", "text": null}', "'text' is missing"),
        ('{"_id": "d2", "title": 1, "text": ""}', "'title' is a int"),
        ('{"_id": "d2", "text": "t"', "not JSON"),
        ("[]", "this line is a JSON list; write an object"),
    ],
)
def test_a_broken_document_is_named_by_path_and_line_when_it_is_reached(
    tmp_path: Path, line: str, problem: str
) -> None:
    path = write_text_file(tmp_path / "corpus.jsonl", format_jsonl(d1="one") + line + "\n")
    documents = load_corpus(str(tmp_path)).iter_documents()
    assert next(documents) == Document("d1", "", "one")
    with pytest.raises(DataError) as caught:
        next(documents)
    assert (caught.value.path, caught.value.line) == (str(path), 2)
    assert problem in str(caught.value)


def test_documents_can_be_streamed_several_times(tmp_path: Path) -> None:
    write_text_file(tmp_path / "corpus.jsonl", format_jsonl(d1="one", d2="two"))
    corpus = load_corpus(str(tmp_path))
    assert list(corpus.iter_documents()) == list(corpus.iter_documents()) != []


def test_language_and_lowest_relevant_grade_are_english_and_1_and_can_be_set(tmp_path: Path) -> None:
    write_text_file(tmp_path / "corpus.jsonl", format_jsonl(d1="one"))
    default, changed = load_corpus(str(tmp_path)), load_corpus(str(tmp_path), language="zh", relevant_from=2)
    assert (default.language, default.relevant_from) == ("en", 1)
    assert (changed.language, changed.relevant_from) == ("zh", 2)


@pytest.mark.parametrize(
    ("about", "language", "relevant_from"),
    [
        ('{"language": "zh", "relevant_from": 2}', "zh", 2),
        ('{"language": "zh"}', "zh", 1),
        ('{"relevant_from": 2}', "en", 2),
        ("{}", "en", 1),
    ],
)
def test_about_json_states_the_language_and_the_lowest_relevant_grade(
    tmp_path: Path, about: str, language: str, relevant_from: int
) -> None:
    write_text_file(tmp_path / "corpus.jsonl", format_jsonl(d1="one"))
    write_text_file(tmp_path / "about.json", about)
    corpus, changed = load_corpus(str(tmp_path)), load_corpus(f"beir:{tmp_path}", language="de", relevant_from=3)
    assert (corpus.language, corpus.relevant_from) == (language, relevant_from)
    assert (changed.language, changed.relevant_from) == ("de", 3)


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", 'must look like {"language": "en", "relevant_from": 1}; either value may be left out'),
        ('{"lang": "zh"}', "must look like"),
        ('{"language": 1}', "must look like"),
        ('{"relevant_from": "2"}', "must look like"),
        ('{"relevant_from": true}', "must look like"),
        ('{"relevant_from": 0}', "relevant_from is 0 in "),
    ],
)
def test_an_about_json_with_other_content_is_refused(tmp_path: Path, about: str, sentence: str) -> None:
    write_text_file(tmp_path / "corpus.jsonl", format_jsonl(d1="one"))
    write_text_file(tmp_path / "about.json", about)
    with pytest.raises(SettingsError) as caught:
        load_corpus(str(tmp_path))
    assert sentence in str(caught.value)
    assert str(tmp_path / "about.json") in str(caught.value)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "documents", "split", "queries", "judgments"),
    [
        ("scifact", 5183, "dev", 200, 234),
        ("scifact", 5183, "train", 809, 919),
        ("nfcorpus", 3633, "dev", 324, 11385),
        ("trec_dl", 40873, "dl19", 43, 9260),
        ("cranfield", 1400, "all", 225, 1837),
        ("stard_zh", 15445, "all", 1000, 1760),
    ],
)
def test_real_beir_folders_load(name: str, documents: int, split: str, queries: int, judgments: int) -> None:
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no {SHARED_DATA}")
    corpus = load_corpus(str(SHARED_DATA / name))
    assert sum(1 for _ in corpus.iter_documents()) == documents
    assert len(corpus.read_queries(split)) == queries
    assert sum(map(len, corpus.read_qrels(split).values())) == judgments


def test_queries_and_judgments_suffice_to_measure_but_indexing_needs_documents(tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text('{"_id": "1", "text": "axon"}\n', encoding="utf-8")
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n1\td\t1\n", encoding="utf-8")
    corpus = load_corpus(str(tmp_path))
    assert (corpus.read_queries(), corpus.read_qrels()) == ({"1": "axon"}, {"1": {"d": 1}})
    with pytest.raises(SettingsError, match=r"has no corpus\.jsonl, which indexing needs; add that file"):
        next(corpus.iter_documents())


def test_white_space_around_an_id_separates_no_document_from_its_judgments(tmp_path: Path) -> None:
    write_text_file(tmp_path / "corpus.jsonl", '{"_id": "d1 ", "text": "one"}\n{"_id": " d2\\t", "text": "two"}\n')
    write_text_file(tmp_path / "queries.jsonl", '{"_id": " q1", "text": "first"}\n')
    write_text_file(tmp_path / "qrels.tsv", QRELS_HEADER + "q1 \td1 \t1\nq1\t d2\t2\n")
    corpus = load_corpus(str(tmp_path))
    assert [document.doc_id for document in corpus.iter_documents()] == ["d1", "d2"]
    assert read_all_splits(corpus) == {"all": ({"q1": "first"}, {"q1": {"d1": 1, "d2": 2}})}
