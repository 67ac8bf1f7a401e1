"""TREC files are a corpus, in a folder or named one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from querylift.index_tools.corpora.corpus_names import load_corpus
from querylift.index_tools.corpora.records import Document
from querylift.plugin.errors import DataError, SettingsError
from tests.helpers.corpus_files import format_jsonl, read_all_splits, write_text_file

TRECTEXT = """<DOC>
<DOCNO> FT911-1 </DOCNO>
<HEADLINE>
FT  14 MAY 91 / Crime &amp; punishment
</HEADLINE>
<TEXT>
A <i>first</i> line,
5 &lt; 6.
</TEXT>
<TEXT>More.</TEXT>
</DOC>

<doc>
<docno>FT911-2</docno>
</doc>
"""


def test_a_trec_folder_holds_documents_topics_and_judgments(tmp_path: Path) -> None:
    write_text_file(tmp_path / "documents.1.trec.gz", TRECTEXT)
    write_text_file(tmp_path / "documents.2.jsonl", '{"id": "x", "contents": "other"}\n')
    write_text_file(tmp_path / "topics.txt", "<top>\n<num> Number: 301\n<title> crime\n</top>\n")
    write_text_file(tmp_path / "qrels.txt", "301 0 FT911-1 1\n")
    corpus = load_corpus(f"trec:{tmp_path}")
    assert list(corpus.iter_documents()) == [
        Document("FT911-1", "FT  14 MAY 91 / Crime & punishment", "A  first  line,\n5 < 6.\nMore."),
        Document("FT911-2", "", ""),
        Document("x", "", "other"),
    ]
    assert read_all_splits(corpus) == {"all": ({"301": "crime"}, {"301": {"FT911-1": 1}})}


def test_a_trec_folder_names_its_splits_before_the_extension(tmp_path: Path) -> None:
    write_text_file(tmp_path / "documents.jsonl", format_jsonl(d1="one"))
    write_text_file(tmp_path / "topics.dev.tsv", "1\tfirst\n")
    write_text_file(tmp_path / "topics.robust.04.txt.gz", "2\tsecond\n")
    write_text_file(tmp_path / "qrels.dev.txt", "1 0 d1 1\n")
    assert read_all_splits(load_corpus(f"trec:{tmp_path}")) == {
        "dev": ({"1": "first"}, {"1": {"d1": 1}}),
        "robust.04": ({"2": "second"}, {}),
    }


def test_trec_files_can_be_named_one_by_one(tmp_path: Path) -> None:
    documents = write_text_file(tmp_path / "a,b" / "docs.jsonl", format_jsonl(d1="one"))
    topics, qrels = write_text_file(tmp_path / "t", "1\tfirst\n"), write_text_file(tmp_path / "q", "1 0 d1 1\n")
    corpus = load_corpus(f"trec:documents={documents},topics={topics},qrels={qrels}")
    assert (corpus.name, list(corpus.iter_documents())) == ("docs", [Document("d1", "", "one")])
    assert read_all_splits(corpus) == {"all": ({"1": "first"}, {"1": {"d1": 1}})}


def test_a_document_id_that_comes_twice_in_two_files_is_refused(tmp_path: Path) -> None:
    write_text_file(tmp_path / "documents.1.jsonl", format_jsonl(d1="one"))
    write_text_file(tmp_path / "documents.2.jsonl", format_jsonl(d2="two", d1="one"))
    with pytest.raises(DataError, match=r"documents\.2\.jsonl:2: document id 'd1' comes twice"):
        list(load_corpus(f"trec:{tmp_path}").iter_documents())


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("<DOC>\n<TEXT>no id</TEXT>\n</DOC>\n", 1, "this <DOC> has no <DOCNO>"),
        ("<DOC>\n<DOCNO> </DOCNO>\n</DOC>\n", 1, "this <DOC> has no <DOCNO>"),
        ("<DOC>\n<DOCNO>1</DOCNO>\n</DOC>\n<DOC>\n<DOCNO>2</DOCNO>\n", 4, "this <DOC> has no </DOC>"),
        ("<DOC>\n<DOCNO>1</DOCNO>\n<DOC>\n", 3, "this line is not between <DOC> and </DOC>"),
        ("<DOC><DOCNO>1</DOCNO></DOC>\n", 1, "give each tag its own line"),
    ],
)
def test_a_broken_tagged_document_is_named_by_path_and_line(tmp_path: Path, text: str, line: int, problem: str) -> None:
    write_text_file(tmp_path / "documents.trec", text)
    with pytest.raises(DataError) as caught:
        list(load_corpus(f"trec:{tmp_path}").iter_documents())
    assert caught.value.line == line
    assert problem in str(caught.value)


def test_a_trec_folder_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is not a folder"):
        load_corpus(f"trec:{tmp_path}/missing")
    with pytest.raises(SettingsError, match=r"has no documents\.\* and no topics\.\*; call its files documents\.trec"):
        load_corpus(f"trec:{tmp_path}")
    with pytest.raises(SettingsError, match="'trec:qrels=q' has no documents and no topics"):
        load_corpus("trec:qrels=q")


def test_topics_and_judgments_suffice_to_measure_but_indexing_needs_documents(tmp_path: Path) -> None:
    topics = write_text_file(tmp_path / "topics.txt", "1\tfirst\n")
    qrels = write_text_file(tmp_path / "qrels.txt", "1 0 d1 1\n")
    for location in (str(tmp_path), f"topics={topics},qrels={qrels}"):
        corpus = load_corpus(f"trec:{location}")
        assert read_all_splits(corpus) == {"all": ({"1": "first"}, {"1": {"d1": 1}})}
        assert not corpus.has_documents
        with pytest.raises(SettingsError, match="has no documents, which indexing needs; add a file of documents"):
            next(corpus.iter_documents())
    assert load_corpus(f"trec:topics={topics},qrels={qrels}").name == "topics"
