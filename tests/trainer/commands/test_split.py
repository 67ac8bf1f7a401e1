"""A corpus cut in two, for training and for choosing; and training refuses what is measured."""

import json
from collections.abc import Mapping
from pathlib import Path

import ir_datasets
import pytest
from click.testing import CliRunner
from ir_datasets.datasets.base import Dataset
from ir_datasets.formats import GenericDoc, TrecQrels, TsvDocs, TsvQueries
from ir_datasets.util import LocalDownload

from querylift.index_tools.corpora.loading import load
from querylift.plugin.errors import SettingsError
from querylift.trainer.candidates import read
from querylift.trainer.commands.held_out import held_out_of, refuse_held_out
from querylift.trainer.commands.split import split
from querylift.trainer.commands.teach import teach

TEXTS = {"1": "how do I sort a list", "2": "How do I sort a list?", "3": "what is a generator", "4": "open a file"}


def _corpus(folder: Path, texts: Mapping[str, str], *, name: str = "") -> Path:
    """A BEIR folder with these queries, each judged but for "5"; its split is `name`, or the only one."""
    folder.mkdir(parents=True, exist_ok=True)
    dotted = f".{name}" if name else ""
    lines = [json.dumps({"_id": q, "text": text}) + "\n" for q, text in texts.items()]
    (folder / f"queries{dotted}.jsonl").write_text("".join(lines))
    judged = "".join(f"{q}\td\t1\n" for q in texts if q != "5")
    (folder / f"qrels{dotted}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    return folder


def _run(corpus: object, out: Path, *arguments: str) -> str:
    """What the command prints; what it raises is raised."""
    return CliRunner().invoke(split, [str(corpus), "--out", str(out), *arguments], catch_exceptions=False).output


def _ids(out: Path, name: str) -> set[str]:
    return {json.loads(line)["_id"] for line in (out / f"queries.{name}.jsonl").read_text().splitlines()}


# --- split


def test_a_split_holds_out_queries_and_keeps_those_like_them_out_of_training(tmp_path: Path) -> None:
    corpus = _corpus(tmp_path / "c", {**TEXTS, "5": "unjudged"})
    seen = set()
    for seed in range(8):
        out = tmp_path / f"split-{seed}"
        _run(corpus, out, "--hold-out", "1", "--seed", str(seed))
        held = _ids(out, "held")
        assert len(held) == 1
        assert _ids(out, "train") == set(TEXTS) - held - ({"1", "2"} if held & {"1", "2"} else set())
        seen |= held
    assert len(seen) > 1


def test_two_corpora_of_one_name_are_both_kept_apart(tmp_path: Path) -> None:
    corpus = _corpus(tmp_path / "c", {"7": "a first question", "8": "why do cats purr", "9": "history of steam"})
    one = _corpus(tmp_path / "one" / "same", {"x": "why do cats purr?"}, name="dev")
    two = _corpus(tmp_path / "two" / "same", {"y": "steam history"}, name="dev")
    told = _run(corpus, tmp_path / "out", "--hold-out", "1", "--apart-from", f"{one}:dev", "--apart-from", f"{two}:dev")
    assert _ids(tmp_path / "out", "train") | _ids(tmp_path / "out", "held") >= {"7"}
    assert not _ids(tmp_path / "out", "train") & {"8", "9"}
    assert "left out as too alike" in told


def test_queries_or_judgments_that_changed_are_refused_and_the_same_ones_are_not(tmp_path: Path) -> None:
    corpus, out = _corpus(tmp_path / "c", TEXTS), tmp_path / "cut-1.5"
    apart = _corpus(tmp_path / "apart", {"a": "open a file"}, name="dev")
    arguments = ["--hold-out", "1", "--apart-from", f"{apart}:dev"]
    assert _run(corpus, out, *arguments) == _run(corpus, out, *arguments)
    before = (out / "queries.train.jsonl").read_bytes()
    _corpus(apart, {"a": "something else"}, name="dev")
    with pytest.raises(SettingsError, match=r"cut-1\.5 was begun with another setting \(apart_from_sha256"):
        _run(corpus, out, *arguments)
    _corpus(apart, {"a": "open a file"}, name="dev")
    (corpus / "qrels.tsv").write_text("".join(f"{q}\td\t2\n" for q in TEXTS))
    with pytest.raises(SettingsError, match=r"another setting \(qrels_sha256"):
        _run(corpus, out, *arguments)
    _corpus(corpus, {**TEXTS, "4": "close a file"})
    with pytest.raises(SettingsError, match=r"another setting \(queries_sha256"):
        _run(corpus, out, *arguments)
    assert (out / "queries.train.jsonl").read_bytes() == before


def test_the_documents_of_a_folder_are_linked_to(tmp_path: Path) -> None:
    corpus = _corpus(tmp_path / "c", TEXTS)
    (corpus / "corpus.jsonl").write_text('{"_id": "d", "text": "lists are sorted in place"}\n')
    _run(corpus, tmp_path / "out", "--hold-out", "1")
    assert (tmp_path / "out" / "corpus.jsonl").resolve() == corpus / "corpus.jsonl"


def test_a_corpus_without_documents_is_split_without_any(tmp_path: Path) -> None:
    _run(_corpus(tmp_path / "c", TEXTS), tmp_path / "out", "--hold-out", "1")
    assert not (tmp_path / "out" / "corpus.jsonl").exists()


def test_the_documents_of_trec_files_are_written_and_teach_takes_the_folder(tmp_path: Path) -> None:
    source = tmp_path / "trec"
    source.mkdir()
    (source / "documents.trec").write_text(
        "<DOC>\n<DOCNO>d1</DOCNO>\n<TITLE>Rainbows</TITLE>\n<TEXT>Light bends.</TEXT>\n</DOC>\n"
        "<DOC>\n<DOCNO>d2</DOCNO>\n<TEXT>Cats purr, café.</TEXT>\n</DOC>\n"
    )
    (source / "topics.tsv").write_text("1\twhat causes a rainbow\n2\twhy do cats purr\n")
    (source / "qrels.txt").write_text("1 0 d1 1\n2 0 d2 1\n")
    corpus, out = f"trec:{source}", tmp_path / "out"
    _run(corpus, out, "--hold-out", "1")
    assert list(load(str(out)).documents()) == list(load(corpus).documents())
    arguments = [str(out), "--split", "train", "--judged", "1", "--out", str(tmp_path / "taught.jsonl")]
    assert CliRunner().invoke(teach, arguments, catch_exceptions=False).exit_code == 0
    assert [c.text for c in read(tmp_path / "taught.jsonl")] in (["Rainbows Light bends."], ["Cats purr, café."])


def test_the_built_in_corpus_is_split_with_its_documents(tmp_path: Path) -> None:
    _run("builtin", tmp_path / "out", "--hold-out", "5")
    made, builtin = load(str(tmp_path / "out")), load("builtin")
    assert set(made.splits()) == {"held", "train"}
    assert list(made.documents()) == list(builtin.documents())


def test_language_and_lowest_relevant_grade_are_kept_however_often_it_is_cut(tmp_path: Path) -> None:
    docs, queries, qrels = (tmp_path / name for name in ("docs.tsv", "queries.tsv", "qrels.txt"))
    docs.write_text("d\t列表\n")
    queries.write_text("".join(f"{q}\t{text}\n" for q, text in TEXTS.items()))
    qrels.write_text("".join(f"{q} 0 d 2\n" for q in TEXTS))
    parts = TsvDocs(LocalDownload(docs), GenericDoc, lang="zh"), TsvQueries(LocalDownload(queries))
    name = "msmarco-passage/trec-dl-made"
    ir_datasets.registry.register(name, Dataset(*parts, TrecQrels(LocalDownload(qrels), {})))
    _run(f"ir:{name}", tmp_path / "once", "--hold-out", "1")
    _run(tmp_path / "once", tmp_path / "twice", "--split", "train", "--hold-out", "1")
    for out in ("once", "twice"):
        made = load(str(tmp_path / out))
        assert (made.language, made.relevant_from) == ("zh", 2)


def test_a_corpus_of_several_splits_is_not_cut_without_the_name_of_one(tmp_path: Path) -> None:
    corpus = _corpus(_corpus(tmp_path / "bc", TEXTS, name="dev"), TEXTS, name="train")
    with pytest.raises(SettingsError, match=r"^'bc' has several splits: dev, train; say which with --split NAME$"):
        _run(corpus, tmp_path / "out")
    with pytest.raises(SettingsError, match="'bc' has no split 'test'; its splits are dev, train"):
        _run(corpus, tmp_path / "out", "--split", "test")


# --- what training refuses


def _rows(path: Path, *asked: tuple[str, str]) -> Path:
    path.write_text("".join(json.dumps({"query_id": i, "query": q, "text": "x"}) + "\n" for i, q in asked))
    return path


def test_training_refuses_rows_of_an_evaluation_split(tmp_path: Path) -> None:
    rows = _rows(tmp_path / "rows.jsonl", ("a", "How do I sort a list?"))
    evaluation = _corpus(tmp_path / "held", {"9": "how do i sort a LIST"}, name="dev")
    with pytest.raises(SettingsError, match=r"1 training query is in an evaluation split: 'a' is '9' of held:dev"):
        refuse_held_out([rows], (f"{evaluation}:dev",), ())
    refuse_held_out([rows], ("none",), (f"{evaluation}:dev",))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_training_refuses_rows_of_either_of_two_corpora_of_one_name(tmp_path: Path, order: tuple[int, int]) -> None:
    rows = _rows(tmp_path / "rows.jsonl", ("a", "How do I sort a list?"))
    one = _corpus(tmp_path / "one" / "same", {"9": "how do i sort a LIST"}, name="dev")
    two = _corpus(tmp_path / "two" / "same", {"9": "what is a generator"}, name="dev")
    specs = (f"{one}:dev", f"{two}:dev")
    with pytest.raises(SettingsError, match=rf"'a' is '9' of {one}:dev \(the same text\)"):
        refuse_held_out([rows], tuple(specs[n] for n in order), ())


def test_a_split_that_is_given_twice_is_held_out_once_and_keeps_its_short_name(tmp_path: Path) -> None:
    spec = f"{_corpus(tmp_path / 'c', TEXTS, name='dev')}:dev"
    assert [one.name for one in held_out_of([spec, spec])] == ["c:dev"]


def test_ids_that_every_corpus_has_are_no_leak_and_a_reworded_query_of_the_same_id_is(tmp_path: Path) -> None:
    spec = f"{_corpus(tmp_path / 'held', TEXTS, name='dev')}:dev"
    refuse_held_out([_rows(tmp_path / "other.jsonl", ("1", "what is a rainbow"), ("3", "sort a tuple"))], (spec,), ())
    rows = _rows(tmp_path / "own.jsonl", ("3", "a generator expression"))
    with pytest.raises(SettingsError, match=r"'3' is '3' of held:dev \(the same id, \d\d% alike\)"):
        refuse_held_out([rows], (spec,), ())
    refuse_held_out([_rows(tmp_path / "renamed.jsonl", ("8", "a generator expression"))], (spec,), ())


def test_training_asks_what_is_measured_on(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no evaluation split is named"):
        refuse_held_out([tmp_path / "rows.jsonl"], (), ())


def test_a_variable_of_a_configuration_is_said_to_be_filled_in_by_run_alone(tmp_path: Path) -> None:
    rows = _rows(tmp_path / "rows.jsonl", ("a", "q"))
    sentence = (
        r"held_out is '\{data\}/trec_dl:dl19', whose variables are filled in by `querylift train run` only; "
        "name what is measured with --held-out CORPUS:SPLIT"
    )
    with pytest.raises(SettingsError, match=sentence):
        refuse_held_out([rows], (), ("builtin", "{data}/trec_dl:dl19"))
    refuse_held_out([rows], ("none",), ("{data}/trec_dl:dl19",))


def test_a_corpus_of_several_splits_is_held_out_by_the_name_of_one(tmp_path: Path) -> None:
    corpus = _corpus(_corpus(tmp_path / "bc", TEXTS, name="dev"), TEXTS, name="train")
    with pytest.raises(SettingsError, match="no corpus"):
        held_out_of(["nowhere:dev"])
    with pytest.raises(SettingsError, match=rf"'beir:{corpus}' names no split; write .*:SPLIT, its splits are dev, tr"):
        held_out_of([f"beir:{corpus}"])
