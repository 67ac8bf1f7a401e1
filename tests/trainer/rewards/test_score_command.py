"""`querylift train score` writes scored candidates, a manifest and a cache, and refuses what it could not score."""

import json
import math
import threading
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from querylift.index_tools.engine import Engine
from querylift.plugin.errors import DataError, EngineError, SettingsError
from querylift.plugin.settings import parse_settings
from querylift.trainer.candidates import Candidate
from querylift.trainer.rewards.labels import read_labels
from querylift.trainer.rewards.ranking_cache import take_snapshot
from querylift.trainer.rewards.scored_candidates import RewardBasis, read_scored_candidates, write_scored_candidates
from tests.helpers.rewards import (
    CANDIDATES,
    INDEX,
    NO_ENGINE_URL,
    open_relay,
    run_score_command,
    write_score_arguments,
)


@pytest.mark.engine
def test_the_command_scores_a_file_and_leaves_a_manifest_and_a_cache(engine: Engine, tmp_path: Path) -> None:
    out = tmp_path / "out" / "scored.jsonl"
    arguments = write_score_arguments(tmp_path, engine.url)
    arguments += ["--weight", "0.2", "--weight", "0.4", "--mix", "ndcg_at_10=0.7", "--mix", "recall_at_100=0.3"]
    output = run_score_command(arguments)
    second_output = run_score_command([*arguments, "--json"])
    assert "searches     13 made, 0 from the cache" in output
    assert "zero-shot" in output
    results = json.loads(second_output)
    assert (results["scored"], results["searches"], results["from_cache"]) == (5, 0, 13)
    assert len(list(read_scored_candidates(out))) == 5
    assert json.loads((tmp_path / "out" / "scored.jsonl.manifest.json").read_text())["results"] == results
    assert next(iter(read_scored_candidates(out))).labels == "judge.txt"


@pytest.mark.engine
def test_the_command_without_a_weight_takes_the_one_that_its_help_names(engine: Engine, tmp_path: Path) -> None:
    run_score_command(write_score_arguments(tmp_path, engine.url))
    assert "[default: 0.2]" in " ".join(run_score_command(["--help"]).split())
    scored_candidates = read_scored_candidates(tmp_path / "out" / "scored.jsonl")
    assert {tuple(scored.reward.by_weight) for scored in scored_candidates} == {(0.2,)}


@pytest.mark.engine
def test_every_scored_line_holds_the_basis_of_its_reward(engine: Engine, tmp_path: Path) -> None:
    options = ["--weight", "0.4", "--weight", "0.1", "--mix", "recall_at_100=0.3"]
    run_score_command([*write_score_arguments(tmp_path, engine.url), *options])
    scored_candidates = read_scored_candidates(tmp_path / "out" / "scored.jsonl")
    (basis_json,) = {json.dumps(asdict(scored.basis)) for scored in scored_candidates if scored.basis}
    basis = RewardBasis.from_json(json.loads(basis_json))
    assert (basis.weights, basis.mix, basis.index) == ((0.1, 0.4), {"recall_at_100": 0.3}, INDEX)
    assert basis.index_state == take_snapshot(engine, INDEX).fingerprint[:16]
    assert basis.labels_digest == read_labels(tmp_path / "judge.txt").compute_digest()[:16]


@pytest.mark.engine
def test_an_index_that_changes_during_scoring_leaves_nothing_done(engine: Engine, tmp_path: Path) -> None:
    stop = threading.Event()

    def write_documents() -> None:
        with Engine(parse_settings({"engine": engine.url})) as writer:
            while not stop.is_set():
                writer.call("POST", f"/{INDEX}/_doc", {"text": "axon"})

    with open_relay(engine.url) as relay:
        relay.delay_s = 0.2
        thread = threading.Thread(target=write_documents)
        thread.start()
        try:
            with pytest.raises(EngineError, match="'rewards-test' changed while it was searched; score again once"):
                run_score_command(write_score_arguments(tmp_path, relay.url))
        finally:
            stop.set()
            thread.join()
            engine.call("POST", f"/{INDEX}/_refresh")
    manifest = json.loads((tmp_path / "out" / "scored.jsonl.manifest.json").read_text(encoding="utf-8"))
    assert manifest["done"] is False
    assert not (tmp_path / "out" / "scored.jsonl").exists()
    run_score_command(write_score_arguments(tmp_path, engine.url))
    assert len(list(read_scored_candidates(tmp_path / "out" / "scored.jsonl"))) == len(CANDIDATES)


@pytest.mark.engine
def test_an_output_whose_name_has_no_suffix_is_a_file_too(engine: Engine, tmp_path: Path) -> None:
    run_score_command([*write_score_arguments(tmp_path, engine.url), "--out", str(tmp_path / "scored")])
    assert len(list(read_scored_candidates(tmp_path / "scored"))) == len(CANDIDATES)


@pytest.mark.engine
@pytest.mark.parametrize("prefix", ["x:", "q"], ids=["of the candidates alone", "of the labels as well"])
def test_a_prefix_is_put_before_the_ids_of_a_judges_file_too(engine: Engine, tmp_path: Path, prefix: str) -> None:
    candidates = [
        replace(candidate, query_id=prefix + candidate.query_id.removeprefix(prefix)) for candidate in CANDIDATES
    ]
    arguments = write_score_arguments(tmp_path, engine.url, candidates=candidates)
    results = json.loads(run_score_command([*arguments, "--prefix", prefix, "--json"]))
    assert (results["scored"], results["without_labels"]) == (5, 0)


def test_the_command_does_not_wait_for_an_engine_that_never_answered(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        run_score_command(write_score_arguments(tmp_path, NO_ENGINE_URL))
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        "no search engine answers at http://127.0.0.1:9; "
        "start one with `querylift node up`, or name another with --engine"
    )


class _WebPage(BaseHTTPRequestHandler):
    """Answers every request with a web page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<p>It works!</p>")

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


def test_the_command_does_not_wait_when_a_web_page_answers_in_place_of_the_engine(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), _WebPage) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(SettingsError, match=f"no search engine answers at {url};"):
                run_score_command(write_score_arguments(tmp_path, url))
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("candidates", "options", "sentence"),
    [
        ([], [], r"candidates\.jsonl holds no candidate; write candidates there with `querylift train teach`"),
        (
            [replace(CANDIDATES[0], query_id="z9")],
            [],
            r"the first is 'z9'\) has a relevant document in judge\.txt; name",
        ),
        (CANDIDATES, ["--relevant-from", "3"], r"the first is 'q1'\) has a relevant document in judge\.txt; name"),
        (CANDIDATES, ["--split", "test"], "--split is 'test' without a corpus; give --corpus"),
        (CANDIDATES, ["--weight", "0.2", "--weight", "0.2"], r"weights are \(0.2, 0.2\); give each of them once"),
    ],
    ids=["an empty file", "queries nobody judged", "grades too low", "a split of nothing", "a weight twice"],
)
def test_a_command_that_could_score_nothing_is_refused(
    tmp_path: Path, candidates: list[Candidate], options: list[str], sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        run_score_command([*write_score_arguments(tmp_path, NO_ENGINE_URL, candidates=candidates), *options])
    assert not (tmp_path / "out" / "scored.jsonl.manifest.json").exists()


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("", "a folder; name a file, such as "),
        ("candidates.jsonl", "which is also read; name another file"),
        ("judge.txt", "which is also read; name another file"),
        ("judge.txt/scored.jsonl", "whose folder cannot be made"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_search(tmp_path: Path, out: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        run_score_command([*write_score_arguments(tmp_path, NO_ENGINE_URL), "--out", str(tmp_path / out)])


def test_an_error_names_the_broken_line_of_scored_candidates(tmp_path: Path) -> None:
    path = tmp_path / "scored.jsonl"
    row = {
        **CANDIDATES[0].to_json(),
        "passage": "p",
        "words": "p",
        "labels": "l",
        "reward": 0.25,
        "base": {"ndcg_at_10": 0.5},
        "by_weight": {"0.2": {"ndcg_at_10": 0.75}},
    }
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (scored,) = read_scored_candidates(path)
    assert scored.reward.by_weight == {0.2: {"ndcg_at_10": 0.75}}
    write_scored_candidates(path, [scored])
    assert list(read_scored_candidates(path)) == [scored]
    for change in ({"basis": {"mix": 1}}, {"reward": "much"}, {"by_weight": [1]}, {"base": None}, {"reward": math.nan}):
        path.write_text(json.dumps(row) + "\n" + json.dumps(row | change) + "\n", encoding="utf-8")
        with pytest.raises(DataError, match=r"scored\.jsonl:2: "):
            list(read_scored_candidates(path))
