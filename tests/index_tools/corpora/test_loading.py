"""The four kinds of corpora: their files, splits and refusals; the built-in one and its judgments."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import threading
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import ir_datasets
import pytest
from ir_datasets.datasets.base import Dataset
from ir_datasets.formats import GenericDoc, JsonlDocs, TrecQrels, TsvDocs, TsvQueries
from ir_datasets.util import LocalDownload

from querylift.index_tools.corpora import builtin
from querylift.index_tools.corpora.loading import Corpus, load
from querylift.index_tools.corpora.trec_files import Document, read_qrels
from querylift.plugin.errors import DataError, MissingExtra, SettingsError
from tests.helpers.paths import SHARED_DATA


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def jsonl(**texts: str) -> str:
    return "".join(json.dumps({"_id": row_id, "text": text}) + "\n" for row_id, text in texts.items())


HEADER = "query-id\tcorpus-id\tscore\n"


def in_memory(corpus: Corpus) -> dict[str, tuple[dict[str, str], dict[str, dict[str, int]]]]:
    return {split: (corpus.queries(split), corpus.qrels(split)) for split in corpus.splits()}


# --- what is refused


@pytest.mark.parametrize("spec", ["", "built-in", "no/such/folder", "ir:", "beir:", "trec:", "msmarco-passage/dev"])
def test_an_unknown_corpus_is_refused_with_the_four_kinds(spec: str):
    with pytest.raises(SettingsError) as caught:
        load(spec)
    assert str(caught.value).startswith(f"no corpus {spec!r}; name 'builtin', a BEIR folder")
    assert all(kind in str(caught.value) for kind in ("beir:PATH", "trec:FOLDER", "ir:ID"))


def test_a_beir_folder_without_documents_is_refused(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"no corpus.jsonl in .*; name a folder in BEIR's layout"):
        load(f"beir:{tmp_path}")


# --- BEIR


def test_a_beir_folder_has_a_split_for_each_file_of_judgments(tmp_path: Path):
    put(tmp_path / "corpus.jsonl", '{"_id": "d1", "title": "T", "text": "one"}\n{"_id": "d2", "text": ""}\n')
    put(tmp_path / "queries.jsonl", jsonl(q1="first", q2="second", q3="never judged"))
    put(tmp_path / "qrels" / "test.tsv", HEADER + "q1\td1\t1\n")
    put(tmp_path / "qrels" / "train.tsv", HEADER + "q2\td2\t2\nq2\td1\t0\n")
    corpus = load(str(tmp_path))
    assert list(corpus.documents()) == [Document("d1", "T", "one"), Document("d2", "", "")]
    assert in_memory(corpus) == {
        "test": ({"q1": "first"}, {"q1": {"d1": 1}}),
        "train": ({"q2": "second"}, {"q2": {"d2": 2, "d1": 0}}),
    }


def test_a_split_with_queries_of_its_own_has_all_of_them(tmp_path: Path):
    put(tmp_path / "corpus.jsonl", jsonl(d1="one"))
    put(tmp_path / "queries.dev.jsonl", jsonl(q1="first", q2="never judged"))
    put(tmp_path / "qrels.dev.tsv", HEADER + "q1\td1\t1\n")
    put(tmp_path / "queries.blind.jsonl", jsonl(q9="no judgments at all"))
    assert in_memory(load(f"beir:{tmp_path}")) == {
        "blind": ({"q9": "no judgments at all"}, {}),
        "dev": ({"q1": "first", "q2": "never judged"}, {"q1": {"d1": 1}}),
    }


def test_files_without_a_split_make_the_split_all(tmp_path: Path):
    put(tmp_path / "corpus.jsonl", jsonl(d1="one"))
    put(tmp_path / "queries.jsonl", jsonl(q1="first", q2="never judged"))
    put(tmp_path / "qrels.tsv", HEADER + "q1\td1\t1\n")
    corpus = load(str(tmp_path))
    assert in_memory(corpus) == {"all": ({"q1": "first", "q2": "never judged"}, {"q1": {"d1": 1}})}
    assert corpus.queries() == corpus.queries("all")


def test_one_file_of_judgments_serves_the_queries_of_every_split(tmp_path: Path):
    put(tmp_path / "corpus.jsonl", jsonl(d1="one"))
    put(tmp_path / "queries.a.jsonl", jsonl(q1="first"))
    put(tmp_path / "queries.b.jsonl", jsonl(q2="second"))
    put(tmp_path / "qrels.tsv", HEADER + "q1\td1\t1\nq2\td1\t2\nq3\td1\t1\n")
    assert in_memory(load(str(tmp_path))) == {
        "a": ({"q1": "first"}, {"q1": {"d1": 1}}),
        "b": ({"q2": "second"}, {"q2": {"d1": 2}}),
    }


def test_a_folder_of_gzip_files_is_read_like_any_other(tmp_path: Path):
    put(tmp_path / "corpus.jsonl.gz", jsonl(d1="one"))
    put(tmp_path / "queries.jsonl.gz", jsonl(q1="first"))
    put(tmp_path / "qrels" / "test.tsv.gz", HEADER + "q1\td1\t1\n")
    corpus = load(str(tmp_path))
    assert list(corpus.documents()) == [Document("d1", "", "one")]
    assert in_memory(corpus) == {"test": ({"q1": "first"}, {"q1": {"d1": 1}})}


def test_documents_alone_are_a_corpus_without_splits(tmp_path: Path):
    put(tmp_path / "corpus.jsonl", jsonl(d1="one"))
    corpus = load(str(tmp_path))
    assert corpus.splits() == ()
    for split in (None, "dev"):
        with pytest.raises(SettingsError, match=f"^{tmp_path.name!r} has no questions; name a corpus that has$"):
            corpus.queries(split)


def test_a_split_has_to_be_named_where_there_are_several(tmp_path: Path):
    put(tmp_path / "corpus.jsonl", jsonl(d1="one"))
    put(tmp_path / "queries.jsonl", jsonl(q1="first"))
    put(tmp_path / "qrels.dev.tsv", HEADER)
    put(tmp_path / "qrels.test.tsv", HEADER)
    corpus = load(str(tmp_path))
    with pytest.raises(SettingsError, match=f"^{tmp_path.name!r} has several splits: dev, test; name one of them$"):
        corpus.qrels()
    with pytest.raises(SettingsError, match=f"^{tmp_path.name!r} has no split 'train'; its splits are dev, test$"):
        corpus.qrels("train")


def test_two_files_of_one_split_are_refused(tmp_path: Path):
    put(tmp_path / "corpus.jsonl", jsonl(d1="one"))
    put(tmp_path / "queries.jsonl", jsonl(q1="first"))
    put(tmp_path / "qrels.dev.tsv", HEADER)
    put(tmp_path / "qrels" / "dev.tsv", HEADER)
    with pytest.raises(SettingsError, match=r"qrels\.dev\.tsv' and .*dev\.tsv' are files of one split"):
        load(str(tmp_path))
    put(tmp_path / "queries.jsonl.gz", jsonl(q1="first"))
    with pytest.raises(SettingsError, match=r"queries\.jsonl' and .*queries\.jsonl\.gz' are files of one split"):
        load(str(tmp_path))


def test_judgments_without_any_queries_are_refused(tmp_path: Path):
    put(tmp_path / "corpus.jsonl", jsonl(d1="one"))
    put(tmp_path / "qrels.dev.tsv", HEADER + "q1\td1\t1\n")
    with pytest.raises(SettingsError, match=r"judges queries that no file holds; add the queries of split 'dev'"):
        load(str(tmp_path)).queries("dev")


def test_a_judged_query_without_text_is_refused_because_it_would_count_as_a_miss(tmp_path: Path):
    put(tmp_path / "corpus.jsonl", jsonl(d1="one"))
    put(tmp_path / "queries.jsonl", jsonl(q1="first"))
    put(tmp_path / "qrels.tsv", HEADER + "q1\td1\t1\nq7\td1\t1\n")
    with pytest.raises(
        DataError, match=r"qrels\.tsv:3: query 'q7' is judged but not in .*queries\.jsonl; add its text"
    ):
        load(str(tmp_path)).qrels()


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
        ("[]", "a JSON list, not an object"),
    ],
)
def test_a_broken_document_is_named_by_path_and_line_when_it_is_reached(tmp_path: Path, line: str, problem: str):
    path = put(tmp_path / "corpus.jsonl", jsonl(d1="one") + line + "\n")
    documents = load(str(tmp_path)).documents()
    assert next(documents) == Document("d1", "", "one")
    with pytest.raises(DataError) as caught:
        next(documents)
    assert (caught.value.path, caught.value.line) == (str(path), 2)
    assert problem in str(caught.value)


def test_documents_are_streamed_anew_for_everyone_who_asks(tmp_path: Path):
    put(tmp_path / "corpus.jsonl", jsonl(d1="one", d2="two"))
    corpus = load(str(tmp_path))
    assert list(corpus.documents()) == list(corpus.documents()) != []


def test_language_and_lowest_relevant_grade_are_english_and_1_and_can_be_set(tmp_path: Path):
    put(tmp_path / "corpus.jsonl", jsonl(d1="one"))
    plain, told = load(str(tmp_path)), load(str(tmp_path), language="zh", relevant_from=2)
    assert (plain.language, plain.relevant_from) == ("en", 1)
    assert (told.language, told.relevant_from) == ("zh", 2)


@pytest.mark.parametrize(
    ("about", "language", "relevant_from"),
    [
        ('{"language": "zh", "relevant_from": 2}', "zh", 2),
        ('{"language": "zh"}', "zh", 1),
        ('{"relevant_from": 2}', "en", 2),
        ("{}", "en", 1),
    ],
)
def test_a_beir_folder_says_in_about_json_what_its_other_files_cannot(
    tmp_path: Path, about: str, language: str, relevant_from: int
):
    put(tmp_path / "corpus.jsonl", jsonl(d1="one"))
    put(tmp_path / "about.json", about)
    corpus, told = load(str(tmp_path)), load(f"beir:{tmp_path}", language="de", relevant_from=3)
    assert (corpus.language, corpus.relevant_from) == (language, relevant_from)
    assert (told.language, told.relevant_from) == ("de", 3)


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", 'is not like {"language": "en", "relevant_from": 1}; give either or both of the two'),
        ('{"lang": "zh"}', "is not like"),
        ('{"language": 1}', "is not like"),
        ('{"relevant_from": "2"}', "is not like"),
        ('{"relevant_from": true}', "is not like"),
        ('{"relevant_from": 0}', "relevant_from is 0 in "),
    ],
)
def test_an_about_json_that_says_something_else_is_refused(tmp_path: Path, about: str, sentence: str):
    put(tmp_path / "corpus.jsonl", jsonl(d1="one"))
    put(tmp_path / "about.json", about)
    with pytest.raises(SettingsError) as caught:
        load(str(tmp_path))
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
def test_real_beir_folders_load(name: str, documents: int, split: str, queries: int, judgments: int):
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no {SHARED_DATA}")
    corpus = load(str(SHARED_DATA / name))
    assert sum(1 for _ in corpus.documents()) == documents
    assert len(corpus.queries(split)) == queries
    assert sum(map(len, corpus.qrels(split).values())) == judgments


# --- TREC

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


def test_a_trec_folder_holds_documents_topics_and_judgments(tmp_path: Path):
    put(tmp_path / "documents.1.trec.gz", TRECTEXT)
    put(tmp_path / "documents.2.jsonl", '{"id": "x", "contents": "other"}\n')
    put(tmp_path / "topics.txt", "<top>\n<num> Number: 301\n<title> crime\n</top>\n")
    put(tmp_path / "qrels.txt", "301 0 FT911-1 1\n")
    corpus = load(f"trec:{tmp_path}")
    assert list(corpus.documents()) == [
        Document("FT911-1", "FT  14 MAY 91 / Crime & punishment", "A  first  line,\n5 < 6.\nMore."),
        Document("FT911-2", "", ""),
        Document("x", "", "other"),
    ]
    assert in_memory(corpus) == {"all": ({"301": "crime"}, {"301": {"FT911-1": 1}})}


def test_a_trec_folder_names_its_splits_before_the_extension(tmp_path: Path):
    put(tmp_path / "documents.jsonl", jsonl(d1="one"))
    put(tmp_path / "topics.dev.tsv", "1\tfirst\n")
    put(tmp_path / "topics.robust.04.txt.gz", "2\tsecond\n")
    put(tmp_path / "qrels.dev.txt", "1 0 d1 1\n")
    assert in_memory(load(f"trec:{tmp_path}")) == {
        "dev": ({"1": "first"}, {"1": {"d1": 1}}),
        "robust.04": ({"2": "second"}, {}),
    }


def test_trec_files_can_be_named_one_by_one(tmp_path: Path):
    documents = put(tmp_path / "a,b" / "docs.jsonl", jsonl(d1="one"))
    topics, qrels = put(tmp_path / "t", "1\tfirst\n"), put(tmp_path / "q", "1 0 d1 1\n")
    corpus = load(f"trec:documents={documents},topics={topics},qrels={qrels}")
    assert (corpus.name, list(corpus.documents())) == ("docs", [Document("d1", "", "one")])
    assert in_memory(corpus) == {"all": ({"1": "first"}, {"1": {"d1": 1}})}


def test_a_document_id_that_comes_twice_in_two_files_is_refused(tmp_path: Path):
    put(tmp_path / "documents.1.jsonl", jsonl(d1="one"))
    put(tmp_path / "documents.2.jsonl", jsonl(d2="two", d1="one"))
    with pytest.raises(DataError, match=r"documents\.2\.jsonl:2: document id 'd1' comes twice"):
        list(load(f"trec:{tmp_path}").documents())


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("<DOC>\n<TEXT>no id</TEXT>\n</DOC>\n", 1, "no <DOCNO> in this <DOC>"),
        ("<DOC>\n<DOCNO> </DOCNO>\n</DOC>\n", 1, "no <DOCNO> in this <DOC>"),
        ("<DOC>\n<DOCNO>1</DOCNO>\n</DOC>\n<DOC>\n<DOCNO>2</DOCNO>\n", 4, "this <DOC> has no </DOC>"),
        ("<DOC>\n<DOCNO>1</DOCNO>\n<DOC>\n", 3, "not between <DOC> and </DOC>"),
        ("<DOC><DOCNO>1</DOCNO></DOC>\n", 1, "put each tag on a line of its own"),
    ],
)
def test_a_broken_tagged_document_is_named_by_path_and_line(tmp_path: Path, text: str, line: int, problem: str):
    put(tmp_path / "documents.trec", text)
    with pytest.raises(DataError) as caught:
        list(load(f"trec:{tmp_path}").documents())
    assert caught.value.line == line
    assert problem in str(caught.value)


def test_a_trec_folder_that_is_missing_or_empty_is_refused(tmp_path: Path):
    with pytest.raises(SettingsError, match="no folder"):
        load(f"trec:{tmp_path}/missing")
    with pytest.raises(SettingsError, match=r"no documents\.\* in"):
        load(f"trec:{tmp_path}")
    with pytest.raises(SettingsError, match="no documents in 'trec:topics=t'"):
        load("trec:topics=t")


# --- ir_datasets


class TitledDoc(NamedTuple):
    doc_id: str
    title: str
    abstract: str

    def default_text(self) -> str:
        return f"{self.title} {self.abstract}"


class BareDoc(NamedTuple):
    doc_id: str
    title: str
    text: str


def register(name: str, folder: Path, *, docs: JsonlDocs | TsvDocs) -> None:
    queries = put(folder / "queries.tsv", "q1\tfirst\nq2\tnever judged\n")
    qrels = put(folder / "qrels.txt", "q1 0 d1 2\nq1 0 d2 0\nno-text 0 d1 1\n")
    parts = TsvQueries(LocalDownload(queries)), TrecQrels(LocalDownload(qrels), {})
    ir_datasets.registry.register(name, Dataset(docs, *parts))


def test_a_dataset_of_ir_datasets_is_loaded_by_its_id(tmp_path: Path):
    docs = put(tmp_path / "docs.tsv", "d1\tone\nd2\ttwo\n")
    register("querylift-test/plain", tmp_path, docs=TsvDocs(LocalDownload(docs), GenericDoc, lang="zh"))
    for spec in ("ir:querylift-test/plain", "irds:querylift-test/plain"):
        corpus = load(spec)
        assert (corpus.name, corpus.language, corpus.relevant_from) == ("querylift-test/plain", "zh", 1)
        assert list(corpus.documents()) == [Document("d1", "", "one"), Document("d2", "", "two")]
        assert in_memory(corpus) == {"all": ({"q1": "first", "q2": "never judged"}, {"q1": {"d1": 2, "d2": 0}})}


@pytest.mark.parametrize("doc_class", [TitledDoc, BareDoc])
def test_the_title_of_a_dataset_stands_once_apart_from_its_text(tmp_path: Path, doc_class: type):
    row = dict(zip(doc_class._fields, ("d1", "A title", "and a text"), strict=True))
    docs = JsonlDocs(LocalDownload(put(tmp_path / "docs.jsonl", json.dumps(row) + "\n")), doc_class)
    register(f"querylift-test/{doc_class.__name__}", tmp_path, docs=docs)
    corpus = load(f"ir:querylift-test/{doc_class.__name__}")
    assert corpus.language == "en"
    assert list(corpus.documents()) == [Document("d1", "A title", "and a text")]


def test_the_passages_of_trec_deep_learning_are_relevant_from_2():
    assert load("ir:msmarco-passage/trec-dl-2019/judged").relevant_from == 2
    assert load("ir:msmarco-document/trec-dl-2019/judged").relevant_from == 1
    assert load("ir:msmarco-passage/trec-dl-2019/judged", relevant_from=3).relevant_from == 3


def test_an_unknown_dataset_is_refused():
    with pytest.raises(SettingsError, match="ir_datasets knows no 'querylift-test/nothing'"):
        load("ir:querylift-test/nothing")


def test_without_ir_datasets_the_line_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(
        MissingExtra, match=r"ir_datasets is not installed; add it with: pip install 'querylift\[index\]'"
    ):
        load("ir:beir/scifact/test")


# --- the built-in corpus


@pytest.fixture(scope="module")
def documents() -> dict[str, Document]:
    return {document.doc_id: document for document in load("builtin").documents()}


NOT_IN_EVERY_PYTHON = {
    "asyncio.TaskGroup",  # these four: not in every 3.11
    "asyncio.TaskGroup.create_task",
    "asyncio.Timeout",
    "asyncio.Timeout.reschedule",
    "http.client.HTTPResponse.read",
    "mimetypes.MimeTypes.guess_file_type",  # 3.13
    "mimetypes.guess_file_type",
    "pathlib.Path.walk",  # 3.12
    "pdb.set_trace",  # documented from 3.12 on
    "types.UnionType",  # another name of typing.Union from 3.14 on
    "warnings.deprecated",  # 3.13
}


def test_the_built_in_corpus_documents_the_library_and_the_language(documents: dict[str, Document]):
    assert 5000 < len(documents) < 8000
    assert documents["json"].text.startswith("JSON (JavaScript Object Notation)")
    assert documents["urllib.request.urlopen"].title.startswith("urllib.request.urlopen(url, data=None, timeout=")
    assert documents["str.strip"].title == "str.strip(self, chars=None, /)"
    assert documents["topic:lambda"].title == "Lambdas"
    assert "number of seconds" in documents["threading.Timer"].text


@pytest.mark.parametrize(
    ("doc_id", "alias"),
    [
        ("open", "io.open"),
        ("OSError", "IOError"),
        ("random.choice", "random.Random.choice"),
        ("threading.Event", "multiprocessing.dummy.Event"),
        ("os.path.join", "posixpath.join"),
        ("socket.socket.connect", "socket.SocketType.connect"),
        ("contextlib.ExitStack.callback", "contextlib.AsyncExitStack.callback"),
        ("concurrent.futures.ThreadPoolExecutor", "concurrent.futures.thread.ThreadPoolExecutor"),
    ],
)
def test_an_object_with_two_names_is_documented_once(documents: dict[str, Document], doc_id: str, alias: str):
    assert doc_id in documents
    assert alias not in documents


def test_the_built_in_corpus_is_the_same_each_time(documents: dict[str, Document]):
    again = list(builtin.documents())
    assert again == list(documents.values())
    assert len({document.doc_id for document in again}) == len(again)


def test_no_document_shows_the_machine_that_it_was_read_on(
    documents: dict[str, Document], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("QUERYLIFT_TEST_SECRET", "open-sesame")
    seen = [document for document in builtin.documents() if "open-sesame" in "".join(document)]
    addresses = [document.title for document in documents.values() if re.search("at 0x[0-9a-f]{6}", document.title)]
    assert (seen, addresses) == ([], [])


def test_every_document_has_text_and_an_id_that_trec_files_can_hold(documents: dict[str, Document]):
    assert [d for d in documents.values() if not d.text or not d.title or d.doc_id.split() != [d.doc_id]] == []


def test_collecting_leaves_this_process_alone(capfd: pytest.CaptureFixture[str]):
    modules, threads = set(sys.modules), threading.active_count()
    list(builtin.documents())
    assert {name for name in set(sys.modules) - modules if "." not in name} == set()
    assert threading.active_count() == threads
    assert capfd.readouterr() == ("", "")


def test_the_built_in_corpus_needs_neither_our_packages_nor_their_folder(tmp_path: Path):
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the user was imported')")
    command = [
        sys.executable,
        "-c",
        "from querylift.index_tools.corpora import builtin; print(len(list(builtin.documents())))",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(builtin.__file__).parents[1]), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 5000


def test_every_judged_document_is_in_the_corpus(documents: dict[str, Document]):
    judged = {doc_id for grades in all_judgments().values() for doc_id in grades}
    assert judged - set(documents) <= NOT_IN_EVERY_PYTHON
    assert judged >= NOT_IN_EVERY_PYTHON


def test_judgments_of_documents_that_this_python_lacks_are_left_out(documents: dict[str, Document]):
    kept = {doc_id for grades in load("builtin").qrels().values() for doc_id in grades}
    assert kept == {doc_id for grades in all_judgments().values() for doc_id in grades} & set(documents)


def test_there_are_over_a_hundred_questions_each_judged_and_answered():
    corpus = load("builtin")
    queries, qrels = corpus.queries(), corpus.qrels()
    assert corpus.splits() == ("all",)
    assert len(queries) > 100
    assert len(set(queries.values())) == len(queries)
    assert list(qrels) == list(queries)
    assert {grade for grades in qrels.values() for grade in grades.values()} == {1, 2}
    assert [query_id for query_id, grades in qrels.items() if 2 not in grades.values()] == []


def test_no_judgment_is_made_twice():
    lines = (files("index_tools") / "builtin_data" / "qrels.tsv").read_text().splitlines()[1:]
    pairs = [tuple(line.split("\t")[:2]) for line in lines]
    assert len(set(pairs)) == len(pairs)


def test_no_question_holds_the_name_of_a_document_that_answers_it():
    queries, qrels = builtin.queries(), all_judgments()
    words = {query_id: set(re.findall(r"[\w.]+", text)) for query_id, text in queries.items()}
    named = [
        (query_id, doc_id)
        for query_id, grades in qrels.items()
        for doc_id in grades
        if doc_id in words[query_id] or ("_" in doc_id and doc_id.split(".")[-1] in words[query_id])
    ]
    assert named == []


def all_judgments() -> dict[str, dict[str, int]]:
    return read_qrels(str(files("index_tools") / "builtin_data" / "qrels.tsv"))


def test_queries_and_judgments_alone_are_enough_to_measure_and_documents_are_asked_for_by_name(tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text('{"_id": "1", "text": "axon"}\n', encoding="utf-8")
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n1\td\t1\n", encoding="utf-8")
    corpus = load(str(tmp_path))
    assert (corpus.queries(), corpus.qrels()) == ({"1": "axon"}, {"1": {"d": 1}})
    with pytest.raises(SettingsError, match=r"no corpus\.jsonl in .*; measuring needs none, but indexing does"):
        next(corpus.documents())
