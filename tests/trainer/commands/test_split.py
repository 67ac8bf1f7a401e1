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
    corpus = _write_corpus(tmp_path / "c", {"7": "a first question", "8": "why do cats purr", "9": "history of steam"})
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
    assert _read_ids(tmp_path / "out", "train") | _read_ids(tmp_path / "out", "held") >= {"7"}
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


# --- held-out rows


def _write_rows(path: Path, *queries: tuple[str, str]) -> Path:
    path.write_text("".join(json.dumps({"query_id": i, "query": q, "text": "x"}) + "\n" for i, q in queries))
    return path


def test_training_refuses_rows_of_an_evaluation_split(tmp_path: Path) -> None:
    rows = _write_rows(tmp_path / "rows.jsonl", ("a", "How do I sort a list?"))
    evaluation = _write_corpus(tmp_path / "held", {"9": "how do i sort a LIST"}, name="dev")
    with pytest.raises(SettingsError, match=r"1 training query is in an evaluation split: 'a' is '9' of held:dev"):
        raise_on_held_out_rows([rows], (f"{evaluation}:dev",), ())
    raise_on_held_out_rows([rows], ("none",), (f"{evaluation}:dev",))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_training_refuses_rows_of_two_corpora_of_the_same_name(tmp_path: Path, order: tuple[int, int]) -> None:
    rows = _write_rows(tmp_path / "rows.jsonl", ("a", "How do I sort a list?"))
    first_corpus = _write_corpus(tmp_path / "one" / "same", {"9": "how do i sort a LIST"}, name="dev")
    second_corpus = _write_corpus(tmp_path / "two" / "same", {"9": "what is a generator"}, name="dev")
    specs = (f"{first_corpus}:dev", f"{second_corpus}:dev")
    with pytest.raises(SettingsError, match=rf"'a' is '9' of {first_corpus}:dev \(the same text\)"):
        raise_on_held_out_rows([rows], tuple(specs[n] for n in order), ())


def test_a_split_that_is_named_twice_is_loaded_once_under_its_short_name(tmp_path: Path) -> None:
    spec = f"{_write_corpus(tmp_path / 'c', TEXTS, name='dev')}:dev"
    assert [split.name for split in load_held_out_splits([spec, spec])] == ["c:dev"]


def test_the_same_id_is_a_leak_only_when_the_texts_are_alike(tmp_path: Path) -> None:
    spec = f"{_write_corpus(tmp_path / 'held', TEXTS, name='dev')}:dev"
    raise_on_held_out_rows(
        [_write_rows(tmp_path / "other.jsonl", ("1", "what is a rainbow"), ("3", "sort a tuple"))], (spec,), ()
    )
    rows = _write_rows(tmp_path / "own.jsonl", ("3", "a generator expression"))
    with pytest.raises(SettingsError, match=r"'3' is '3' of held:dev \(the same id, \d\d% alike\)"):
        raise_on_held_out_rows([rows], (spec,), ())
    raise_on_held_out_rows([_write_rows(tmp_path / "renamed.jsonl", ("8", "a generator expression"))], (spec,), ())


def test_training_needs_the_name_of_an_evaluation_split(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no evaluation split is named"):
        raise_on_held_out_rows([tmp_path / "rows.jsonl"], (), ())


def test_an_unfilled_variable_of_a_configuration_is_named(tmp_path: Path) -> None:
    rows = _write_rows(tmp_path / "rows.jsonl", ("a", "q"))
    sentence = (
        r"held_out is '\{data\}/trec_dl:dl19', whose variables are filled in by `querylift train run` only; "
        "name what is measured with --held-out CORPUS:SPLIT"
    )
    with pytest.raises(SettingsError, match=sentence):
        raise_on_held_out_rows([rows], (), ("builtin", "{data}/trec_dl:dl19"))
    raise_on_held_out_rows([rows], ("none",), ("{data}/trec_dl:dl19",))


def test_a_held_out_corpus_with_several_splits_needs_the_name_of_one(tmp_path: Path) -> None:
    corpus = _write_corpus(_write_corpus(tmp_path / "bc", TEXTS, name="dev"), TEXTS, name="train")
    with pytest.raises(SettingsError, match="no corpus"):
        load_held_out_splits(["nowhere:dev"])
    with pytest.raises(SettingsError, match=rf"'beir:{corpus}' names no split; write .*:SPLIT, its splits are dev, tr"):
        load_held_out_splits([f"beir:{corpus}"])
