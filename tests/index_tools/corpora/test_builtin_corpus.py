"""The built-in corpus documents this Python, and its queries and judgments are sound."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from importlib.resources import files
from pathlib import Path

import pytest

from querylift.index_tools.corpora import builtin_corpus
from querylift.index_tools.corpora.corpus_names import load_corpus
from querylift.index_tools.corpora.records import Document


@pytest.fixture(scope="module")
def documents() -> dict[str, Document]:
    return {document.doc_id: document for document in load_corpus("builtin").iter_documents()}


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


def test_the_built_in_corpus_documents_the_library_and_the_language(documents: dict[str, Document]) -> None:
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
def test_an_object_with_two_names_is_documented_once(documents: dict[str, Document], doc_id: str, alias: str) -> None:
    assert doc_id in documents
    assert alias not in documents


def test_the_built_in_corpus_is_the_same_each_time(documents: dict[str, Document]) -> None:
    second_reading = list(builtin_corpus.iter_documents())
    assert second_reading == list(documents.values())
    assert len({document.doc_id for document in second_reading}) == len(second_reading)


def test_no_document_shows_environment_variables_or_addresses(
    documents: dict[str, Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUERYLIFT_TEST_SECRET", "open-sesame")
    leaks = [document for document in builtin_corpus.iter_documents() if "open-sesame" in "".join(document)]
    addresses = [document.title for document in documents.values() if re.search("at 0x[0-9a-f]{6}", document.title)]
    assert (leaks, addresses) == ([], [])


def test_every_document_has_text_and_an_id_that_trec_files_can_hold(documents: dict[str, Document]) -> None:
    assert [d for d in documents.values() if not d.text or not d.title or d.doc_id.split() != [d.doc_id]] == []


def test_collecting_does_not_change_this_process(capfd: pytest.CaptureFixture[str]) -> None:
    modules, threads = set(sys.modules), threading.active_count()
    list(builtin_corpus.iter_documents())
    assert {name for name in set(sys.modules) - modules if "." not in name} == set()
    assert threading.active_count() == threads
    assert capfd.readouterr() == ("", "")


def test_collecting_is_not_disturbed_by_the_users_files_or_variables(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the user was imported')")
    command = [
        sys.executable,
        "-c",
        "from querylift.index_tools.corpora import builtin_corpus; print(len(list(builtin_corpus.iter_documents())))",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(builtin_corpus.__file__).parents[3]), "PYTHONSAFEPATH": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert int(result.stdout) > 5000


def test_every_judged_document_is_in_the_corpus(documents: dict[str, Document]) -> None:
    judged = {doc_id for grades in builtin_corpus.read_all_qrels().values() for doc_id in grades}
    assert judged - set(documents) <= NOT_IN_EVERY_PYTHON
    assert judged >= NOT_IN_EVERY_PYTHON


def test_judgments_of_documents_that_this_python_lacks_are_left_out(documents: dict[str, Document]) -> None:
    judged = {doc_id for grades in load_corpus("builtin").read_qrels().values() for doc_id in grades}
    assert judged == {doc_id for grades in builtin_corpus.read_all_qrels().values() for doc_id in grades} & set(
        documents
    )


def test_over_a_hundred_queries_are_judged_and_each_has_a_document_of_grade_2() -> None:
    corpus = load_corpus("builtin")
    queries, qrels = corpus.read_queries(), corpus.read_qrels()
    assert corpus.split_names == ("all",)
    assert len(queries) > 100
    assert len(set(queries.values())) == len(queries)
    assert list(qrels) == list(queries)
    assert {grade for grades in qrels.values() for grade in grades.values()} == {1, 2}
    assert [query_id for query_id, grades in qrels.items() if 2 not in grades.values()] == []


def test_no_judgment_is_repeated() -> None:
    lines = (files("querylift.index_tools.corpora") / "builtin_data" / "qrels.tsv").read_text().splitlines()[1:]
    pairs = [tuple(line.split("\t")[:2]) for line in lines]
    assert len(set(pairs)) == len(pairs)


def test_no_query_holds_the_name_of_a_relevant_document() -> None:
    queries, qrels = builtin_corpus.read_queries(), builtin_corpus.read_all_qrels()
    words = {query_id: set(re.findall(r"[\w.]+", text)) for query_id, text in queries.items()}
    violations = [
        (query_id, doc_id)
        for query_id, grades in qrels.items()
        for doc_id in grades
        if doc_id in words[query_id] or ("_" in doc_id and doc_id.split(".")[-1] in words[query_id])
    ]
    assert violations == []
