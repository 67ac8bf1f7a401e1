"""Splitting a corpus in two, and refusing to train on evaluation splits."""

import json
from collections.abc import Mapping
from pathlib import Path

import ir_datasets
import pytest
from click.testing import CliRunner
from ir_datasets.datasets.base import Dataset
from ir_datasets.formats import GenericDoc, TrecQrels, TsvDocs, TsvQueries
from ir_datasets.util import LocalDownload

from querylift.index_tools.corpora.corpus_names import load_corpus
from querylift.plugin.errors import SettingsError
from querylift.trainer.candidates import read_candidates
from querylift.trainer.commands.held_out import load_held_out_splits, raise_on_held_out_rows
from querylift.trainer.commands.split import split
from querylift.trainer.commands.teach import teach

TEXTS = {"1": "how do I sort a list", "2": "How do I sort a list?", "3": "what is a generator", "4": "open a file"}


def _write_corpus(folder: Path, texts: Mapping[str, str], *, name: str = "") -> Path:
    """Write a BEIR folder with these queries. Each is judged, except "5". `name` is its split."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix = f".{name}" if name else ""
    lines = [json.dumps({"_id": q, "text": text}) + "\n" for q, text in texts.items()]
    (folder / f"queries{suffix}.jsonl").write_text("".join(lines))
    rows = "".join(f"{q}\td\t1\n" for q in texts if q != "5")
    (folder / f"qrels{suffix}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    return folder


def _run_split(corpus: object, out: Path, *arguments: str) -> str:
    """Return what the command prints. Raise what it raises."""
    return CliRunner().invoke(split, [str(corpus), "--out", str(out), *arguments], catch_exceptions=False).output


def _read_ids(out: Path, name: str) -> set[str]:
    return {json.loads(line)["_id"] for line in (out / f"queries.{name}.jsonl").read_text().splitlines()}


# --- split


def test_a_split_leaves_queries_like_the_held_out_ones_out_of_training(tmp_path: Path) -> None:
    corpus = _write_corpus(tmp_path / "c", {**TEXTS, "5": "unjudged"})
    held_ids = set()
    for seed in range(8):
        out = tmp_path / f"split-{seed}"
        _run_split(corpus, out, "--hold-out", "1", "--seed", str(seed))
        held = _read_ids(out, "held")
        assert len(held) == 1
        assert _read_ids(out, "train") == set(TEXTS) - held - ({"1", "2"} if held & {"1", "2"} else set())
        held_ids |= held
    assert len(held_ids) > 1


def test_two_corpora_of_the_same_name_are_both_kept_apart(tmp_path: Path) -> None:
    corpus = _write_corpus(
        tmp_path / "c",
        {"6": "locks and threads", "7": "a first question", "8": "why do cats purr", "9": "history of steam"},
    )
    first_corpus = _write_corpus(tmp_path / "one" / "same", {"x": "why do cats purr?"}, name="dev")
    second_corpus = _write_corpus(tmp_path / "two" / "same", {"y": "steam history"}, name="dev")
    output = _run_split(
        corpus,
        tmp_path / "out",
        "--hold-out",
        "1",
        "--apart-from",
        f"{first_corpus}:dev",
        "--apart-from",
        f"{second_corpus}:dev",
    )
    assert _read_ids(tmp_path / "out", "train") | _read_ids(tmp_path / "out", "held") >= {"6", "7"}
    assert not _read_ids(tmp_path / "out", "train") & {"8", "9"}
    assert "left out as too alike" in output


def test_changed_queries_or_judgments_are_refused(tmp_path: Path) -> None:
    corpus, out = _write_corpus(tmp_path / "c", TEXTS), tmp_path / "cut-1.5"
    apart = _write_corpus(tmp_path / "apart", {"a": "open a file"}, name="dev")
    arguments = ["--hold-out", "1", "--apart-from", f"{apart}:dev"]
    assert _run_split(corpus, out, *arguments) == _run_split(corpus, out, *arguments)
    original = (out / "queries.train.jsonl").read_bytes()
    _write_corpus(apart, {"a": "something else"}, name="dev")
    with pytest.raises(SettingsError, match=r"cut-1\.5 was begun with another setting \(apart_from_sha256"):
        _run_split(corpus, out, *arguments)
    _write_corpus(apart, {"a": "open a file"}, name="dev")
    (corpus / "qrels.tsv").write_text("".join(f"{q}\td\t2\n" for q in TEXTS))
    with pytest.raises(SettingsError, match=r"another setting \(qrels_sha256"):
        _run_split(corpus, out, *arguments)
    _write_corpus(corpus, {**TEXTS, "4": "close a file"})
    with pytest.raises(SettingsError, match=r"another setting \(queries_sha256"):
        _run_split(corpus, out, *arguments)
    assert (out / "queries.train.jsonl").read_bytes() == original


def test_the_result_links_to_the_documents_of_a_folder(tmp_path: Path) -> None:
    corpus = _write_corpus(tmp_path / "c", TEXTS)
    (corpus / "corpus.jsonl").write_text('{"_id": "d", "text": "lists are sorted in place"}\n')
    _run_split(corpus, tmp_path / "out", "--hold-out", "1")
    assert (tmp_path / "out" / "corpus.jsonl").resolve() == corpus / "corpus.jsonl"


def test_a_corpus_without_documents_can_be_split(tmp_path: Path) -> None:
    _run_split(_write_corpus(tmp_path / "c", TEXTS), tmp_path / "out", "--hold-out", "1")
    assert not (tmp_path / "out" / "corpus.jsonl").exists()


def test_documents_of_trec_files_are_copied_and_teach_accepts_the_folder(tmp_path: Path) -> None:
    source = tmp_path / "trec"
    source.mkdir()
    (source / "documents.trec").write_text(
        "<DOC>\n<DOCNO>d1</DOCNO>\n<TITLE>Rainbows</TITLE>\n<TEXT>Light bends.</TEXT>\n</DOC>\n"
        "<DOC>\n<DOCNO>d2</DOCNO>\n<TEXT>Cats purr, café.</TEXT>\n</DOC>\n"
    )
    (source / "topics.tsv").write_text("1\twhat causes a rainbow\n2\twhy do cats purr\n")
    (source / "qrels.txt").write_text("1 0 d1 1\n2 0 d2 1\n")
    corpus, out = f"trec:{source}", tmp_path / "out"
    _run_split(corpus, out, "--hold-out", "1")
    assert list(load_corpus(str(out)).iter_documents()) == list(load_corpus(corpus).iter_documents())
    arguments = [str(out), "--split", "train", "--judged", "1", "--out", str(tmp_path / "taught.jsonl")]
    assert CliRunner().invoke(teach, arguments, catch_exceptions=False).exit_code == 0
    assert [c.text for c in read_candidates(tmp_path / "taught.jsonl")] in (
        ["Rainbows Light bends."],
        ["Cats purr, café."],
    )


def test_the_built_in_corpus_is_split_with_its_documents(tmp_path: Path) -> None:
    _run_split("builtin", tmp_path / "out", "--hold-out", "5")
    corpus, builtin = load_corpus(str(tmp_path / "out")), load_corpus("builtin")
    assert set(corpus.split_names) == {"held", "train"}
    assert list(corpus.iter_documents()) == list(builtin.iter_documents())


def test_language_and_lowest_relevant_grade_survive_repeated_splits(tmp_path: Path) -> None:
    docs, queries, qrels = (tmp_path / name for name in ("docs.tsv", "queries.tsv", "qrels.txt"))
    docs.write_text("d\t列表\n")
    queries.write_text("".join(f"{q}\t{text}\n" for q, text in TEXTS.items()))
    qrels.write_text("".join(f"{q} 0 d 2\n" for q in TEXTS))
    parts = TsvDocs(LocalDownload(docs), GenericDoc, lang="zh"), TsvQueries(LocalDownload(queries))
    name = "msmarco-passage/trec-dl-made"
    ir_datasets.registry.register(name, Dataset(*parts, TrecQrels(LocalDownload(qrels), {})))
    _run_split(f"ir:{name}", tmp_path / "once", "--hold-out", "1")
    _run_split(tmp_path / "once", tmp_path / "twice", "--split", "train", "--hold-out", "1")
    for out in ("once", "twice"):
        corpus = load_corpus(str(tmp_path / out))
        assert (corpus.language, corpus.relevant_from) == ("zh", 2)


def test_a_corpus_with_several_splits_needs_the_name_of_one(tmp_path: Path) -> None:
    corpus = _write_corpus(_write_corpus(tmp_path / "bc", TEXTS, name="dev"), TEXTS, name="train")
    with pytest.raises(SettingsError, match=r"^'bc' has several splits: dev, train; name one with --split NAME$"):
        _run_split(corpus, tmp_path / "out")
    with pytest.raises(SettingsError, match="'bc' has no split 'test'; its splits are dev, train"):
        _run_split(corpus, tmp_path / "out", "--split", "test")


# --- split by document


SHARING = {
    "1": "how do I sort a list",
    "2": "reverse order",
    "3": "what is a generator",
    "4": "open a file",
    "5": "lock",
}
SHARED_DOCUMENTS = {"1": ["a", "b"], "2": ["b"], "3": ["c"], "4": ["c", "d"], "5": ["e"]}


def _write_sharing_corpus(folder: Path, *, name: str = "") -> Path:
    """Write a corpus in which the queries 1 and 2 share a document, and 3 and 4 do."""
    suffix = f".{name}" if name else ""
    _write_corpus(folder, SHARING, name=name)
    rows = "".join(f"{q}\t{d}\t1\n" for q, doc_ids in SHARED_DOCUMENTS.items() for d in doc_ids)
    (folder / f"qrels{suffix}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    texts = {
        "a": "Sorting puts elements in order.",
        "b": "Slices may run backwards.",
        "c": "Values come lazily.",
        "d": "Paths name files.",
        "e": "Threads wait.",
    }
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": d, "text": t}) + "\n" for d, t in texts.items()))
    return folder


def test_queries_that_share_a_document_stay_on_one_side(tmp_path: Path) -> None:
    corpus = _write_sharing_corpus(tmp_path / "c")
    held_sets = set()
    for seed in range(6):
        out = tmp_path / f"split-{seed}"
        output = _run_split(corpus, out, "--by", "document", "--hold-out", "2", "--seed", str(seed))
        assert output == f"{out}: 3 queries to train on, 2 held out, 0 left out as too alike\n"
        held_sets.add(frozenset(_read_ids(out, "held")))
    assert held_sets == {frozenset({"1", "2"}), frozenset({"3", "4"})}


def test_a_number_that_groups_cannot_make_is_met_as_nearly_as_possible_and_said(tmp_path: Path) -> None:
    corpus = _write_sharing_corpus(tmp_path / "c")
    rows = "1\ta\t1\n2\ta\t1\n3\tc\t1\n4\tc\t1\n5\tc\t1\n"
    (corpus / "qrels.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    output = _run_split(corpus, tmp_path / "out", "--by", "document", "--hold-out", "4")
    assert (
        "2 queries to train on, 3 held out (--hold-out is 4; groups of queries that share documents stay whole)"
        in output
    )


def test_a_split_by_query_says_how_many_queries_share_a_document(tmp_path: Path) -> None:
    corpus = _write_sharing_corpus(tmp_path / "c")
    dev = _write_sharing_corpus(tmp_path / "held" / "c", name="dev")
    (dev / "queries.dev.jsonl").write_text('{"_id": "9", "text": "why do cats purr"}\n')
    (dev / "qrels.dev.tsv").write_text("query-id\tcorpus-id\tscore\n9\tb\t1\n9\ta\t1\n")
    output = _run_split(corpus, tmp_path / "by-query", "--hold-out", "1", "--seed", "1", "--apart-from", f"{dev}:dev")
    assert "1 queries of c:dev share a relevant document with a train query; --by document keeps them apart" in output
    manifest = json.loads((tmp_path / "by-query" / "manifest.json").read_text())
    assert manifest["results"]["sharing_documents"]["c:dev"] == 1
    assert "by" not in manifest["settings"]


def test_train_queries_that_share_a_document_with_an_evaluation_split_are_left_out(tmp_path: Path) -> None:
    corpus = _write_sharing_corpus(tmp_path / "c")
    other = _write_sharing_corpus(tmp_path / "other", name="dev")
    (other / "queries.dev.jsonl").write_text('{"_id": "9", "text": "why do cats purr"}\n')
    (other / "qrels.dev.tsv").write_text("query-id\tcorpus-id\tscore\n9\tz\t1\n")
    (other / "corpus.jsonl").write_text('{"_id": "z", "text": "Threads wait!"}\n')  # the text of document e
    arguments = ["--by", "document", "--hold-out", "2", "--apart-from", f"{other}:dev"]
    output = _run_split(corpus, tmp_path / "out", *arguments)
    assert "2 queries to train on, 2 held out, 0 left out as too alike, 1 for a document that they share" in output
    assert "5" not in _read_ids(tmp_path / "out", "train")


def test_a_split_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    corpus = _write_corpus(tmp_path / "c", {"1": "how do I sort a list", "2": "How do I sort a list?"})
    with pytest.raises(SettingsError, match=r"^no query of c is left to train on: .*; lower --hold-out, or name fewer"):
        _run_split(corpus, tmp_path / "out", "--hold-out", "1")


def test_a_folder_that_was_split_by_query_is_not_split_again_by_document(tmp_path: Path) -> None:
    corpus, out = _write_sharing_corpus(tmp_path / "c"), tmp_path / "out"
    _run_split(corpus, out, "--hold-out", "2")
    with pytest.raises(SettingsError, match=r"begun with another setting \(by None, now document\)"):
        _run_split(corpus, out, "--hold-out", "2", "--by", "document")


# --- held-out rows


def _write_rows(path: Path, *queries: tuple[str, str]) -> Path:
    path.write_text("".join(json.dumps({"query_id": i, "query": q, "text": "x"}) + "\n" for i, q in queries))
    return path


def test_training_refuses_rows_of_an_evaluation_split(tmp_path: Path) -> None:
    rows = _write_rows(tmp_path / "rows.jsonl", ("a", "How do I sort a list?"))
    evaluation = _write_corpus(tmp_path / "held", {"9": "how do i sort a LIST"}, name="dev")
    with pytest.raises(SettingsError, match=r"1 training query is in an evaluation split: 'a' is '9' of held:dev"):
        raise_on_held_out_rows([rows], (f"{evaluation}:dev",), (), by="query")
    raise_on_held_out_rows([rows], ("none",), (f"{evaluation}:dev",), by="query")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_training_refuses_rows_of_two_corpora_of_the_same_name(tmp_path: Path, order: tuple[int, int]) -> None:
    rows = _write_rows(tmp_path / "rows.jsonl", ("a", "How do I sort a list?"))
    first_corpus = _write_corpus(tmp_path / "one" / "same", {"9": "how do i sort a LIST"}, name="dev")
    second_corpus = _write_corpus(tmp_path / "two" / "same", {"9": "what is a generator"}, name="dev")
    specs = (f"{first_corpus}:dev", f"{second_corpus}:dev")
    with pytest.raises(SettingsError, match=rf"'a' is '9' of {first_corpus}:dev \(the same text\)"):
        raise_on_held_out_rows([rows], tuple(specs[n] for n in order), (), by="query")


def test_a_split_that_is_named_twice_is_loaded_once_under_its_short_name(tmp_path: Path) -> None:
    spec = f"{_write_corpus(tmp_path / 'c', TEXTS, name='dev')}:dev"
    assert [split.name for split in load_held_out_splits([spec, spec], by="query")] == ["c:dev"]


def test_the_same_id_is_a_leak_only_when_the_texts_are_alike(tmp_path: Path) -> None:
    spec = f"{_write_corpus(tmp_path / 'held', TEXTS, name='dev')}:dev"
    raise_on_held_out_rows(
        [_write_rows(tmp_path / "other.jsonl", ("1", "what is a rainbow"), ("3", "sort a tuple"))],
        (spec,),
        (),
        by="query",
    )
    rows = _write_rows(tmp_path / "own.jsonl", ("3", "a generator expression"))
    with pytest.raises(SettingsError, match=r"'3' is '3' of held:dev \(the same id, \d\d% alike\)"):
        raise_on_held_out_rows([rows], (spec,), (), by="query")
    raise_on_held_out_rows(
        [_write_rows(tmp_path / "renamed.jsonl", ("8", "a generator expression"))], (spec,), (), by="query"
    )


def test_training_needs_the_name_of_an_evaluation_split(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no evaluation split is named"):
        raise_on_held_out_rows([tmp_path / "rows.jsonl"], (), (), by="query")


def test_an_unfilled_variable_of_a_configuration_is_named(tmp_path: Path) -> None:
    rows = _write_rows(tmp_path / "rows.jsonl", ("a", "q"))
    sentence = (
        r"held_out is '\{data\}/trec_dl:dl19', whose variables are filled in by `querylift train run` only; "
        "name what is measured with --held-out CORPUS:SPLIT"
    )
    with pytest.raises(SettingsError, match=sentence):
        raise_on_held_out_rows([rows], (), ("builtin", "{data}/trec_dl:dl19"), by="query")
    raise_on_held_out_rows([rows], ("none",), ("{data}/trec_dl:dl19",), by="query")


def test_a_held_out_corpus_with_several_splits_needs_the_name_of_one(tmp_path: Path) -> None:
    corpus = _write_corpus(_write_corpus(tmp_path / "bc", TEXTS, name="dev"), TEXTS, name="train")
    with pytest.raises(SettingsError, match="no corpus"):
        load_held_out_splits(["nowhere:dev"], by="query")
    with pytest.raises(SettingsError, match=rf"'beir:{corpus}' names no split; write .*:SPLIT, its splits are dev, tr"):
        load_held_out_splits([f"beir:{corpus}"], by="query")


def test_by_document_training_refuses_texts_of_documents_of_an_evaluation_split(tmp_path: Path) -> None:
    held_out = (f"{_write_sharing_corpus(tmp_path / 'held', name='dev')}:dev",)
    row = {"query_id": "77", "query": "how are elements ordered"}
    sentence = (
        r"1 training text is of a document that is relevant to held-out queries: a text of '77' is relevant to '1' of"
    )
    for texts in (
        {"text": "Sorting puts elements in order"},
        {"chosen": "Sort.", "rejected": "Sorting puts elements in order"},
    ):
        rows = tmp_path / "rows.jsonl"
        rows.write_text(json.dumps(row | texts) + "\n")
        raise_on_held_out_rows([rows], held_out, (), by="query")
        with pytest.raises(SettingsError, match=sentence) as caught:
            raise_on_held_out_rows([rows], held_out, (), by="document")
        assert "`querylift train teach --held-out-by document --drop-leaks` leaves them out" in str(caught.value)
