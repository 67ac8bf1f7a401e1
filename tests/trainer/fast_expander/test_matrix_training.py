"""A fast expander's matrix is trained: from the index, from judgments, from what sets of terms do on the engine."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.build import BuildRequest, build_expander
from querylift.index_tools.fast_expander.encoder_conversion import write_encoder
from querylift.plugin.commands.main import querylift
from querylift.plugin.fast_expander.encoder import Encoder
from querylift.plugin.fast_expander.expander_folder import ExpansionShape
from querylift.plugin.generators.fast_expander import ExpanderModel, open_expander_model
from querylift.plugin.settings import parse_settings
from querylift.plugin.settings_tables.generators import EncoderEndpointSettings
from querylift.trainer.candidates import Candidate
from querylift.trainer.fast_expander.inverse_cloze import create_pseudo_queries
from querylift.trainer.rewards.rewarded_text import EXPANSION_PARAM, make_rewarded_text
from tests.helpers.embeddings_server import run_embeddings_server
from tests.helpers.expanders import TEXTS, TOPICS, create_index, fill_index, remove_indices, write_tiny_encoder

INDEX = "expander-training"


def run_expander_training(*arguments: str) -> str:
    done = CliRunner().invoke(querylift, ["train", "expander", *arguments])
    assert done.exit_code in (0, 2), done.output
    return done.output


@pytest.fixture(scope="module")
def url(opensearch: str) -> Iterator[str]:
    with Engine(parse_settings({"engine": opensearch})) as engine:
        remove_indices(engine, INDEX)
        create_index(engine, INDEX)
        fill_index(engine, INDEX, TEXTS)
        yield opensearch
        remove_indices(engine, INDEX)


@pytest.fixture(scope="module")
def folder(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained expander of the forty documents, which adds five terms."""
    place = tmp_path_factory.mktemp("training")
    encoder = write_tiny_encoder(place / "encoder")
    for form in ("neighbours", "terms"):
        with Engine(parse_settings({"engine": url})) as engine:
            build_expander(
                engine,
                BuildRequest(
                    INDEX,
                    "contents",
                    place / form,
                    form=form,
                    encoder=encoder,
                    shape=ExpansionShape(terms=5, documents=2, temperature=0.01),
                ),
            )
    return place / "terms"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty questions, each a word, answered by the document that ends with it; three others have it too."""
    place = tmp_path_factory.mktemp("corpus")
    questions = {f"q-{word}": (topic, word) for topic, words in TOPICS.items() for word in words}
    (place / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": d, "title": "", "text": text}) + "\n" for d, text in TEXTS.items()), encoding="utf-8"
    )
    (place / "queries.train.jsonl").write_text(
        "".join(json.dumps({"_id": q, "text": word}) + "\n" for q, (_, word) in questions.items()), encoding="utf-8"
    )
    rows = [
        f"{q}\t{d}\t1\n" for q, (_, word) in questions.items() for d, text in TEXTS.items() if text.endswith(f" {word}")
    ]
    (place / "qrels.train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows), encoding="utf-8")
    return place


def write_training_config(path: Path, **changes: object) -> str:
    table = {"epochs": 30, "batch_size": 16, "judged_epochs": 10, "preference_epochs": 3, **changes}
    path.write_text("[expander]\n" + "".join(f"{key} = {value}\n" for key, value in table.items()), encoding="utf-8")
    return str(path)


def parse_losses(output: str) -> list[float]:
    return [float(line.rsplit(" ", 1)[1]) for line in output.splitlines() if "cross-entropy" in line]


@pytest.mark.engine
def test_the_index_alone_teaches_the_matrix_what_the_nearest_documents_say(
    folder: Path, url: str, tmp_path: Path
) -> None:
    out = tmp_path / "trained"
    toml = write_training_config(tmp_path / "t.toml", neighbours=2, temperature=0.01)
    losses = parse_losses(run_expander_training(str(folder), "--engine", url, "--out", str(out), "--training", toml))
    assert len(losses) == 30
    assert losses[-1] < losses[0] - 0.1
    about, parts = open_expander_model(out)
    assert about.trained == ("index",)
    _, untrained = open_expander_model(folder)
    _, nearest = open_expander_model(folder.parent / "neighbours")
    agreed = [calculate_agreement(expander, nearest) for expander in (untrained, parts)]
    assert agreed[1] >= agreed[0]


@pytest.mark.engine
def test_an_expander_whose_vectors_an_endpoint_makes_is_trained_with_them(url: str, tmp_path: Path) -> None:
    settings = write_encoder(write_tiny_encoder(tmp_path / "encoder"), tmp_path)
    toml = write_training_config(tmp_path / "t.toml", neighbours=2, epochs=1)
    with (
        run_embeddings_server(Encoder(tmp_path, settings)) as server,
        Engine(parse_settings({"engine": url})) as engine,
    ):
        endpoint = EncoderEndpointSettings(model="tiny")
        request = BuildRequest(
            INDEX, "contents", tmp_path / "terms", form="terms", encoder=server.url, endpoint=endpoint
        )
        build_expander(engine, request)
        out = tmp_path / "trained"
        arguments = ["--engine", url, "--out", str(out), "--training", toml, "--stage", "index"]
        assert "cross-entropy" in run_expander_training(str(tmp_path / "terms"), *arguments)
        record, model = open_expander_model(out)
        assert record.trained == ("index",) and record.endpoint is not None and record.endpoint.model == "tiny"
        assert model.expand("boats") is not None


def calculate_agreement(expander: ExpanderModel, other_expander: ExpanderModel) -> float:
    """The share of the five heaviest terms that two expanders have in common, over every text."""
    shares = []
    for text in TEXTS.values():
        expansion, other_expansion = expander.expand(text), other_expander.expand(text)
        assert expansion is not None and other_expansion is not None
        shares.append(len({t.term for t in expansion.terms} & {t.term for t in other_expansion.terms}) / 5)
    return float(np.mean(shares))


@pytest.mark.engine
def test_judgments_and_the_engine_follow_and_a_stage_that_ended_is_not_run_again(
    folder: Path, url: str, corpus: Path, tmp_path: Path
) -> None:
    out, toml = tmp_path / "trained", write_training_config(tmp_path / "t.toml", epochs=3, margin=0.01)
    candidates = tmp_path / "teacher.jsonl"
    candidates.write_text(
        json.dumps(Candidate("q-boats", "boats", "m", "t", "Here is a passage: harbours and tides").to_json()) + "\n",
        encoding="utf-8",
    )
    stages = ("--stage", "index", "--stage", "judged", "--stage", "preferences")
    judged = ("--corpus", str(corpus), "--split", "train", "--held-out", "none", "--candidates", str(candidates))
    arguments = (str(folder), "--engine", url, "--out", str(out), "--training", toml, *stages, *judged)
    output = run_expander_training(*arguments)
    assert "40 judged queries" in output
    assert "of 40 queries give a pair" in output
    assert "pairs right" in output
    assert open_expander_model(out)[0].trained == ("index", "judged", "preferences")
    written_at_ns = (out / "training" / "2-judged.npz").stat().st_mtime_ns
    (out / "manifest.json").unlink()
    (out / "training" / "3-preferences.npz").unlink()
    second_output = run_expander_training(*arguments)
    assert second_output.count("done before") == 2
    assert (out / "training" / "2-judged.npz").stat().st_mtime_ns == written_at_ns
    assert "pair" not in run_expander_training(*arguments)


@pytest.mark.engine
def test_the_same_seed_gives_the_same_matrix(folder: Path, url: str, tmp_path: Path) -> None:
    toml = write_training_config(tmp_path / "t.toml", epochs=2)
    for name in ("a", "b"):
        run_expander_training(
            str(folder), "--engine", url, "--out", str(tmp_path / name), "--training", toml, "--seed", "5"
        )
    rows_a, rows_b = (np.load(tmp_path / name / "training" / "1-index.npz")["rows"] for name in ("a", "b"))
    assert np.array_equal(rows_a, rows_b)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--stage", "preferences"), "stage preferences needs judged queries; name them with --corpus and --split"),
        (
            ("--stage", "judged", "--stage", "index"),
            "--stage is judged, index; give each once, in the order index, judged",
        ),
    ],
)
def test_a_stage_that_cannot_be_is_one_sentence(arguments: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(querylift, ["train", "expander", str(tmp_path), "--out", str(tmp_path / "o"), *arguments])
    assert sentence in str(done.exception or "") + done.output


@pytest.mark.engine
def test_only_the_form_terms_is_trained(folder: Path, url: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        querylift,
        ["train", "expander", str(folder.parent / "neighbours"), "--engine", url, "--out", str(tmp_path / "o")],
    )
    assert "is of the form 'neighbours', which is not trained; build one with --form terms" in str(done.exception)


@pytest.mark.engine
def test_queries_that_are_measured_are_refused(folder: Path, url: str, corpus: Path, tmp_path: Path) -> None:
    for kind in ("queries.{}.jsonl", "qrels.{}.tsv"):
        held = corpus / kind.format("held")
        held.write_text((corpus / kind.format("train")).read_text(encoding="utf-8"), encoding="utf-8")
    arguments = ["train", "expander", str(folder), "--engine", url, "--out", str(tmp_path / "o"), "--stage", "judged"]
    try:
        done = CliRunner().invoke(querylift, [*arguments, "--corpus", str(corpus), "--split", "train"])
    finally:
        for kind in ("queries.held.jsonl", "qrels.held.tsv"):
            (corpus / kind).unlink()
    assert "40 training queries are in an evaluation split" in str(done.exception)


def test_by_document_judged_queries_and_candidates_of_held_out_documents_are_refused(tmp_path: Path) -> None:
    corpus = tmp_path / "judged"
    corpus.mkdir()
    texts = {"d1": "Anchors hold boats in a harbour.", "d2": "The tide turns every six hours."}
    lines = [json.dumps({"_id": doc_id, "text": text}) + "\n" for doc_id, text in texts.items()]
    (corpus / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")
    for split, query, doc_id in (("train", "mooring", "d1"), ("dev", "ships at rest", "d1"), ("test", "the sea", "d2")):
        (corpus / f"queries.{split}.jsonl").write_text(
            json.dumps({"_id": query, "text": query}) + "\n", encoding="utf-8"
        )
        rows = f"query-id\tcorpus-id\tscore\n{query}\t{doc_id}\t1\n"
        (corpus / f"qrels.{split}.tsv").write_text(rows, encoding="utf-8")
    candidates = tmp_path / "c.jsonl"
    row = Candidate("mooring", "mooring", "relevant-document", "judgments", "The tide turns every six hours.")
    candidates.write_text(json.dumps(row.to_json()) + "\n", encoding="utf-8")

    arguments = [
        "train",
        "expander",
        str(tmp_path),
        "--out",
        str(tmp_path / "o"),
        "--stage",
        "judged",
        "--split",
        "train",
    ]
    arguments += ["--corpus", str(corpus), "--candidates", str(candidates)]
    for held_out, sentence in {
        "dev": "document 'd1' of 'mooring' is relevant to 'ships at rest' of judged:dev (the same id); leave them out with",
        "test": "a text of 'mooring' is relevant to 'the sea' of judged:test (the same text); leave them out with",
    }.items():
        spec = f"{corpus}:{held_out}"
        by_query = CliRunner().invoke(querylift, [*arguments, "--held-out", spec])
        assert "relevant to" not in str(by_query.exception)
        by_document = CliRunner().invoke(querylift, [*arguments, "--held-out", spec, "--held-out-by", "document"])
        assert sentence in str(by_document.exception)


def test_pseudo_queries_are_short_texts_of_the_document_and_the_same_for_the_same_seed() -> None:
    text = (
        "Anchors hold boats in a harbour. The tide turns every six hours! Sailors mend ropes and sails all winter long."
    )
    queries, same_queries = (create_pseudo_queries(text, count=5, draw=random.Random(4)) for _ in range(2))
    assert queries == same_queries
    assert 3 <= len(queries) <= 5
    assert all(
        set(query.split()) <= set(text.replace(".", " ").replace("!", " ").split()) | set(text.split())
        for query in queries
    )
    assert create_pseudo_queries("", count=5, draw=random.Random(4)) == []


def test_a_candidate_of_terms_is_served_as_these_terms() -> None:
    terms_json = {"field": "contents", "terms": {"boat": 1.0, "tide": 0.5}}
    expansion = make_rewarded_text(
        Candidate("q", "anchors", "expander", "expander", "boat tide", {EXPANSION_PARAM: terms_json})
    ).expansion
    assert expansion is not None
    assert expansion.to_json() == terms_json
