"""A candidate is worth what its query gains on a real engine, through the rewrite that is served."""

import asyncio
import json
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from querylift.index_tools.corpora.trec_files import Document, write_qrels
from querylift.index_tools.engine import Engine, action, compact
from querylift.index_tools.evaluation.measures import Evaluation, evaluate
from querylift.index_tools.indexing import IndexPlan, build
from querylift.index_tools.searching import expand_all, search_body, search_offline
from querylift.plugin.errors import DataError, EngineError, SettingsError
from querylift.plugin.expansion import parse
from querylift.plugin.flow import Rules
from querylift.plugin.generators import factory
from querylift.plugin.proxy.server import expander_for
from querylift.plugin.settings import check
from querylift.plugin.testing import ManualClock
from querylift.trainer.candidates import Candidate
from querylift.trainer.commands.score import score as score_command
from querylift.trainer.rewards.labels import Labels, labels_from
from querylift.trainer.rewards.ranker import Ranker
from querylift.trainer.rewards.ranking_cache import RankingCache, snapshot
from querylift.trainer.rewards.ranking_measures import Measurer
from querylift.trainer.rewards.retry import Away, Patience
from querylift.trainer.rewards.scored_candidates import Basis, read_scored, write_scored
from querylift.trainer.rewards.scoring import RewardOptions, Scoring, passage, score, served
from tests.helpers.relay import Relay, relay_to
from tests.index_tools.test_indexing import Few

INDEX = "rewards-test"
WORDS = "axon neuron cell nerve fibre signal muscle brain blood heart lung vessel tissue organ skin bone".split()
DOCUMENTS = [
    Document(f"d{i}", WORDS[i % 16], " ".join(WORDS[(i * k) % 16] for k in range(1, 2 + i % 9)) + f" rare{i % 40}")
    for i in range(200)
]
QUERIES = {"q1": "axon signal", "q2": "blood vessel", "q3": "bone tissue", "q4": '"quoted words"', "q5": "lung organ"}
QRELS = {
    "q1": {"d3": 2, "d17": 1, "d33": 1, "d7": 0},
    "q2": {"d8": 1, "d24": 1, "d11": 2},
    "q3": {"d15": 1, "d31": 1, "d12": 1},
    "q4": {"d0": 1},
    "q5": {"d10": 1, "d26": 1},
}
LABELS = Labels(QRELS, "made/all")
TEXTS = {
    "q1": "Here is a passage: Neurons carry the nerve signal along a fibre.",
    "q2": "The heart pumps blood through every vessel; rare11 rare24.",
    "q3": "Skin and bone are tissue, rare15 rare31.",
    "q4": "words that were quoted",
    "q5": "The heart, the brain and the muscle.",
}


def _candidate(query_id: str, text: str, method: str = "zero-shot", sample: int = 0) -> Candidate:
    return Candidate(query_id, QUERIES[query_id], method, "teacher", text, {"sample": sample})


CANDIDATES = [_candidate(query_id, text) for query_id, text in TEXTS.items()]
OPTIONS = RewardOptions(index=INDEX, weights=(0.4,))


@pytest.fixture
def engine(opensearch: str) -> Iterator[Engine]:
    with Engine(check({"engine": opensearch})) as made:
        build(made, Few(DOCUMENTS), IndexPlan(INDEX))
        yield made
        made.call("DELETE", f"/{INDEX}")


def _score(engine: Engine, candidates: Sequence[Candidate] = CANDIDATES, **changes: Any) -> Scoring:
    given = {"labels": LABELS, "options": OPTIONS, "settings": check({"engine": engine.url}), **changes}
    return score(candidates, engine=engine, **given)


def _evaluated(engine: Engine, path: Path, *, weight: float) -> Evaluation:
    """What `querylift evaluate --generator table:FILE` measures."""
    path.write_text("".join(json.dumps(candidate.to_json()) + "\n" for candidate in CANDIDATES), encoding="utf-8")
    settings = check({"engine": engine.url, "generator": f"table:{path}", "index": {INDEX: {"weight": weight}}})

    async def expanded() -> Any:
        async with expander_for(settings, factory.make(settings.generator, settings)) as expander:
            rules = Rules(settings, clock=ManualClock())
            return await expand_all(QUERIES, index=INDEX, rules=rules, expander=expander)

    return evaluate(search_offline(engine, QUERIES, index=INDEX, results=asyncio.run(expanded())).run, QRELS)


@pytest.mark.engine
def test_a_reward_is_what_evaluating_the_same_expansion_gives_to_the_last_digit(engine: Engine, tmp_path: Path) -> None:
    plain = evaluate(search_offline(engine, QUERIES, index=INDEX).run, QRELS).per_query
    expanded = _evaluated(engine, tmp_path / "table.jsonl", weight=0.4).per_query
    scored = _score(engine).scored
    assert [one.reward.query_id for one in scored] == list(QUERIES)
    for one in scored:
        for measure in ("ndcg_at_10", "recall_at_100"):
            assert one.reward.base[measure] == plain[measure][one.reward.query_id]
            assert one.reward.by_weight[0.4][measure] == expanded[measure][one.reward.query_id]
        assert one.reward.reward == one.reward.by_weight[0.4]["ndcg_at_10"] - one.reward.base["ndcg_at_10"]
    assert len({one.reward.reward for one in scored}) > 2


@pytest.mark.engine
def test_a_reward_is_the_mean_over_weights_of_the_mix_of_differences(engine: Engine) -> None:
    mix = {"ndcg_at_10": 0.7, "recall_at_100": 0.2, "ndcg_at_100": 0.1}
    for one in _score(engine, options=RewardOptions(index=INDEX, weights=(0.1, 0.5), mix=mix)).scored:
        base, values = one.reward.base, one.reward.by_weight
        by_hand = sum(mix[m] * (values[w][m] - base[m]) for w in (0.1, 0.5) for m in mix) / 2
        assert one.reward.reward == pytest.approx(by_hand, abs=1e-12)
        assert values.keys() == {0.1, 0.5}


@pytest.mark.engine
def test_equal_searches_are_made_once_and_never_again_whatever_the_labels(engine: Engine, tmp_path: Path) -> None:
    twice = [*CANDIDATES, _candidate("q1", TEXTS["q1"], sample=1)]
    with RankingCache(tmp_path / "new" / "cache.sqlite") as cache:
        first = _score(engine, twice, cache=cache)
    with RankingCache(tmp_path / "new" / "cache.sqlite") as cache:
        again = _score(engine, twice, cache=cache)
        other = Labels({"q1": {"d100": 1}}, "judge")
        judged = _score(engine, twice, cache=cache, labels=other, options=replace(OPTIONS, mix={"ndcg_at_100": 1}))
    assert (first.searched, first.from_cache) == (9, 0)  # five queries, and four of them rewritten
    assert (again.searched, again.from_cache) == (0, 9)
    assert again.scored == first.scored
    assert (judged.searched, judged.unlabelled, len(judged.scored)) == (0, 4, 2)
    assert {one.labels for one in judged.scored} == {"judge"}


@pytest.mark.engine
def test_an_index_built_anew_with_other_settings_is_searched_anew(engine: Engine) -> None:
    with RankingCache() as cache:
        first = _score(engine, cache=cache)
        build(engine, Few(DOCUMENTS), IndexPlan(INDEX, k1=0.1, b=0.0))
        second = _score(engine, cache=cache)
    assert (second.searched, second.from_cache) == (9, 0)
    assert second.fingerprint != first.fingerprint
    assert [one.reward for one in second.scored] != [one.reward for one in first.scored]


@pytest.mark.engine
@pytest.mark.parametrize("doc_id", ["d7", "new"], ids=["written again", "added"])
def test_a_document_that_is_written_makes_it_another_index(engine: Engine, doc_id: str) -> None:
    before = snapshot(engine, INDEX)
    assert snapshot(engine, INDEX) == before
    assert all(ok for ok, _ in engine.bulk([action(INDEX, doc_id, {"text": "axon axon axon"})]))
    engine.call("POST", f"/{INDEX}/_refresh")
    assert snapshot(engine, INDEX).fingerprint != before.fingerprint


@pytest.mark.engine
@pytest.mark.parametrize("shards", [1, 3])
def test_ids_and_order_are_those_of_a_plain_search_on_one_shard_and_on_several(engine: Engine, shards: int) -> None:
    name = f"{INDEX}-{shards}"
    body = engine.call("GET", f"/{INDEX}/_mapping")[INDEX]["mappings"]
    engine.call("PUT", f"/{name}", {"settings": {"number_of_shards": shards}, "mappings": body})
    try:
        list(engine.bulk(action(name, d.doc_id, {"title": d.title, "text": d.text}) for d in DOCUMENTS))
        list(engine.bulk([action(name, "d3", {"text": "axon"})]))
        engine.call("POST", f"/{name}/_refresh")
        bodies = [search_body(text, 100) for text in QUERIES.values()]
        with RankingCache() as cache:
            ranked = Ranker(engine, name, cache=cache, patience=Patience(), batch=2).rank(bodies)
        plain = [[hit["_id"] for hit in answer["hits"]["hits"]] for answer in engine.msearch(name, bodies)]
    finally:
        engine.call("DELETE", f"/{name}")
    assert [ranked[body] for body in bodies] == plain
    assert len(plain[0]) > 20


@contextmanager
def _relay(url: str) -> Iterator[Relay]:
    """A relay on a loop of its own, as scoring blocks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    opened = relay_to(url)
    try:
        yield asyncio.run_coroutine_threadsafe(opened.__aenter__(), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(opened.__aexit__(None, None, None), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.engine
def test_an_engine_that_goes_away_is_waited_for_and_scoring_goes_on(engine: Engine) -> None:
    bodies = [search_body(text, 100) for text in QUERIES.values()]
    slept: list[float] = []
    told: list[str] = []
    with _relay(engine.url) as relay, Engine(check({"engine": relay.url})) as far, RankingCache() as cache:

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 3:
                relay.cut_after = None

        patience = Patience(60, sleep=sleep, clock=ManualClock(), tell=told.append)
        ranker = Ranker(far, INDEX, cache=cache, patience=patience)
        relay.cut_after = 0
        found = ranker.rank(bodies)
    assert slept == [0.5, 1.0, 2.0]
    assert [line.split("; ")[-1] for line in told] == [
        "asking again in 0.5 s",
        "asking again in 1 s",
        "asking again in 2 s",
        "the engine is back",
    ]
    assert found.keys() == set(bodies)
    assert ranker.searched == len(bodies)


@pytest.mark.engine
def test_patience_ends_and_what_was_found_until_then_is_kept(engine: Engine) -> None:
    bodies = [search_body(text, 100) for text in QUERIES.values()]
    clock = ManualClock()
    with _relay(engine.url) as relay, Engine(check({"engine": relay.url})) as far, RankingCache() as cache:
        ranker = Ranker(far, INDEX, cache=cache, patience=Patience(10, sleep=clock.advance, clock=clock))
        ranker.rank(bodies[:2])
        relay.cut_after = 0
        with pytest.raises(EngineError, match="waited 10 s: what was found is kept, so run the same command again"):
            ranker.rank(bodies)
        assert clock() == 1000 + 0.5 + 1 + 2 + 4
        again = Ranker(engine, INDEX, cache=cache, patience=Patience(0))
        again.rank(bodies)
    assert (again.from_cache, again.searched) == (2, 3)


@pytest.mark.engine
def test_an_engine_that_is_away_at_the_last_look_is_waited_for(engine: Engine) -> None:
    told: list[str] = []
    with _relay(engine.url) as relay, Engine(check({"engine": relay.url})) as far:

        def sleep(seconds: float) -> None:
            relay.cut_after = None

        def leave(count: int) -> None:
            relay.cut_after = 0

        patience = Patience(60, sleep=sleep, clock=ManualClock(), tell=told.append)
        found = _score(engine=far, patience=patience, progress=leave)
    assert len(found.scored) == len(CANDIDATES)
    assert not found.changed
    assert [line.split("; ")[-1] for line in told] == ["asking again in 0.5 s", "the engine is back"]


@pytest.mark.engine
def test_an_index_whose_shards_are_not_ready_yet_is_waited_for(engine: Engine) -> None:
    name = f"{INDEX}-starting"
    nowhere = "index.routing.allocation.require._name"
    given = {"settings": {"number_of_shards": 2, nowhere: "no such node"}}
    engine.call("PUT", f"/{name}", given, params={"wait_for_active_shards": 0})

    def sleep(seconds: float) -> None:
        engine.call("PUT", f"/{name}/_settings", {nowhere: None})
        engine.call("GET", f"/_cluster/health/{name}", params={"wait_for_status": "yellow"})

    try:
        with pytest.raises(Away):
            snapshot(engine, name)
        with RankingCache() as cache:
            ranker = Ranker(engine, name, cache=cache, patience=Patience(60, sleep=sleep, clock=ManualClock()))
            assert ranker.rank([search_body("axon", 10)]) == {search_body("axon", 10): []}
    finally:
        engine.call("DELETE", f"/{name}")


def _strict(text: str, depth: int) -> bytes:
    fuzziness = "nonsense" if "organ" in text else "0"
    match = {"contents": {"query": text, "fuzziness": fuzziness}}
    return compact({"query": {"match": match}, "size": depth, "_source": False})


@pytest.mark.engine
def test_a_search_that_the_engine_refuses_is_named_and_the_others_are_scored(engine: Engine) -> None:
    found = _score(engine, options=replace(OPTIONS, form=_strict))
    assert [one.candidate.query_id for one in found.scored] == ["q1", "q2", "q3", "q4"]
    assert list(found.refused) == [CANDIDATES[-1].key]
    assert "status 400" in found.refused[CANDIDATES[-1].key]


@pytest.mark.engine
def test_a_body_that_spoils_its_whole_batch_is_found_and_the_rest_goes_on(engine: Engine) -> None:
    good = [search_body(text, 100) for text in QUERIES.values()]
    with RankingCache() as cache:
        ranker = Ranker(engine, INDEX, cache=cache, patience=Patience(0))
        found = ranker.rank([*good[:2], b'["no search"]', *good[2:]])
    assert list(found) == good
    assert list(ranker.refused) == [b'["no search"]']


@pytest.mark.engine
def test_an_index_and_an_engine_that_were_never_there_are_errors_at_once(engine: Engine) -> None:
    with pytest.raises(EngineError, match="status 404: no such index"):
        _score(engine, options=RewardOptions(index="rewards-absent"))
    with (
        Engine(check({"engine": "http://127.0.0.1:9"})) as nothing,
        pytest.raises(SettingsError, match="no search engine answers"),
    ):
        _score(nothing)


@pytest.mark.engine
def test_what_adds_nothing_to_a_query_scores_nothing_and_is_counted(engine: Engine) -> None:
    found = _score(engine, [CANDIDATES[3], _candidate("q1", "... !"), replace(CANDIDATES[0], query_id="q9")])
    assert [(one.reward.reward, one.words) for one in found.scored] == [(0.0, "words that were quoted"), (0.0, "")]
    assert found.as_it_is == {"skipped;quoted": 1, "skipped;nothing": 1}
    assert found.unlabelled == 1


def _arguments(folder: Path, engine_url: str, *, candidates: Sequence[Candidate] = CANDIDATES) -> list[str]:
    """Of a command that scores candidates by a judge's file, both of them in `folder`."""
    source, qrels = folder / "candidates.jsonl", folder / "judge.txt"
    source.write_text("".join(json.dumps(candidate.to_json()) + "\n" for candidate in candidates), encoding="utf-8")
    write_qrels(qrels, QRELS)
    arguments = [str(source), "--labels", str(qrels), "--index", INDEX, "--engine", engine_url]
    return [*arguments, "--out", str(folder / "out" / "scored.jsonl")]


def _invoke(arguments: Sequence[str]) -> str:
    return CliRunner().invoke(score_command, arguments, catch_exceptions=False).output


@pytest.mark.engine
def test_the_command_scores_a_file_and_leaves_a_manifest_and_a_cache(engine: Engine, tmp_path: Path) -> None:
    out = tmp_path / "out" / "scored.jsonl"
    arguments = _arguments(tmp_path, engine.url)
    arguments += ["--weight", "0.2", "--weight", "0.4", "--mix", "ndcg_at_10=0.7", "--mix", "recall_at_100=0.3"]
    first = CliRunner().invoke(score_command, arguments, catch_exceptions=False)
    again = CliRunner().invoke(score_command, [*arguments, "--json"], catch_exceptions=False)
    assert "searches     13 made, 0 from the cache" in first.output
    assert "zero-shot" in first.output
    results = json.loads(again.output)
    assert (results["scored"], results["searches"], results["from_cache"]) == (5, 0, 13)
    assert len(list(read_scored(out))) == 5
    assert json.loads((tmp_path / "out" / "scored.jsonl.manifest.json").read_text())["results"] == results
    assert next(iter(read_scored(out))).labels == "judge.txt"


@pytest.mark.engine
def test_the_command_without_a_weight_takes_that_which_its_help_names(engine: Engine, tmp_path: Path) -> None:
    _invoke(_arguments(tmp_path, engine.url))
    assert "[default: 0.2]" in " ".join(_invoke(["--help"]).split())
    assert {tuple(one.reward.by_weight) for one in read_scored(tmp_path / "out" / "scored.jsonl")} == {(0.2,)}


@pytest.mark.engine
def test_every_scored_line_says_what_its_reward_was_made_by(engine: Engine, tmp_path: Path) -> None:
    _invoke([*_arguments(tmp_path, engine.url), "--weight", "0.4", "--weight", "0.1", "--mix", "recall_at_100=0.3"])
    (basis,) = {json.dumps(asdict(one.basis)) for one in read_scored(tmp_path / "out" / "scored.jsonl") if one.basis}
    told = Basis.from_json(json.loads(basis))
    assert (told.weights, told.mix, told.index) == ((0.1, 0.4), {"recall_at_100": 0.3}, INDEX)
    assert told.index_state == snapshot(engine, INDEX).fingerprint[:16]
    assert told.labels_digest == labels_from(tmp_path / "judge.txt").digest()[:16]


@pytest.mark.engine
def test_what_else_decides_a_reward_makes_another_basis(engine: Engine) -> None:
    def basis(**changes: Any) -> Basis:
        (told,) = [one.basis for one in _score(engine, CANDIDATES[:1], **changes).scored]
        assert told is not None
        return told

    first = basis()
    widened = check({"engine": engine.url, "index": {INDEX: {"mode": "widen"}}})
    assert basis(settings=widened) == replace(first, rules=basis(settings=widened).rules)
    assert basis(settings=widened).rules != first.rules
    judge = Labels({"q1": {"d3": 1}}, "made/all")
    assert basis(labels=judge).labels_digest != first.labels_digest
    assert basis(settings=check({"engine": engine.url, "index": {INDEX: {"weight": 0.9}}})) == first
    engine.call("POST", f"/{INDEX}/_doc", {"text": "axon"}, params={"refresh": "true"})
    assert basis().index_state != first.index_state


@pytest.mark.engine
def test_an_index_that_changes_while_it_is_scored_leaves_nothing_done(engine: Engine, tmp_path: Path) -> None:
    ended = threading.Event()

    def write() -> None:
        with Engine(check({"engine": engine.url})) as writer:
            while not ended.is_set():
                writer.call("POST", f"/{INDEX}/_doc", {"text": "axon"})

    with _relay(engine.url) as relay:
        relay.delay_s = 0.2
        thread = threading.Thread(target=write)
        thread.start()
        try:
            with pytest.raises(EngineError, match="'rewards-test' changed while it was searched; score again once"):
                _invoke(_arguments(tmp_path, relay.url))
        finally:
            ended.set()
            thread.join()
            engine.call("POST", f"/{INDEX}/_refresh")
    manifest = json.loads((tmp_path / "out" / "scored.jsonl.manifest.json").read_text(encoding="utf-8"))
    assert manifest["done"] is False
    assert not (tmp_path / "out" / "scored.jsonl").exists()
    _invoke(_arguments(tmp_path, engine.url))
    assert len(list(read_scored(tmp_path / "out" / "scored.jsonl"))) == len(CANDIDATES)


@pytest.mark.engine
def test_an_output_whose_name_has_no_suffix_is_a_file_too(engine: Engine, tmp_path: Path) -> None:
    _invoke([*_arguments(tmp_path, engine.url), "--out", str(tmp_path / "scored")])
    assert len(list(read_scored(tmp_path / "scored"))) == len(CANDIDATES)


@pytest.mark.engine
@pytest.mark.parametrize("prefix", ["x:", "q"], ids=["of the candidates alone", "of the labels as well"])
def test_a_prefix_stands_before_the_ids_of_a_judges_file_too(engine: Engine, tmp_path: Path, prefix: str) -> None:
    named = [replace(one, query_id=prefix + one.query_id.removeprefix(prefix)) for one in CANDIDATES]
    told = json.loads(_invoke([*_arguments(tmp_path, engine.url, candidates=named), "--prefix", prefix, "--json"]))
    assert (told["scored"], told["without_labels"]) == (5, 0)


NOWHERE = "http://127.0.0.1:9"


def test_an_engine_that_was_never_reached_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        _invoke(_arguments(tmp_path, NOWHERE))
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        "no search engine answers at http://127.0.0.1:9; "
        "start one with `querylift node up`, or name another with --engine"
    )


class _Page(BaseHTTPRequestHandler):
    """A web page, whatever is asked for."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<p>It works!</p>")

    def log_message(self, *ignored: object) -> None:
        """Say nothing."""


def test_a_web_page_in_the_engines_place_is_not_waited_for(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(
                SettingsError, match=f"no search engine answers at http://127.0.0.1:{server.server_port};"
            ):
                _invoke(_arguments(tmp_path, f"http://127.0.0.1:{server.server_port}"))
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("candidates", "changes", "sentence"),
    [
        ([], [], r"there is no candidate in .*candidates\.jsonl; write candidates there with `querylift train teach`"),
        (
            [replace(CANDIDATES[0], query_id="z9")],
            [],
            r"the first is 'z9'\) has a relevant document in judge\.txt; name",
        ),
        (CANDIDATES, ["--relevant-from", "3"], r"the first is 'q1'\) has a relevant document in judge\.txt; name"),
        (CANDIDATES, ["--split", "test"], "--split is 'test' of no corpus; name it with --corpus"),
        (CANDIDATES, ["--weight", "0.2", "--weight", "0.2"], r"weights are \(0.2, 0.2\); give each of them once"),
    ],
    ids=["an empty file", "queries nobody judged", "grades too low", "a split of nothing", "a weight twice"],
)
def test_a_command_that_would_score_nothing_or_not_what_it_says_is_refused(
    tmp_path: Path, candidates: list[Candidate], changes: list[str], sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        _invoke([*_arguments(tmp_path, NOWHERE, candidates=candidates), *changes])
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
        _invoke([*_arguments(tmp_path, NOWHERE), "--out", str(tmp_path / out)])


def test_a_teachers_text_is_read_as_a_table_reads_it_and_a_students_as_the_model_is() -> None:
    text = "Certainly! Here is a passage: **Axons** carry signals.\nA second line of it."
    assert served(_candidate("q1", text)).text == "Axons carry signals A second line of it"  # type: ignore[union-attr]
    assert served(_candidate("q1", text), max_words=2).text == "Axons carry"  # type: ignore[union-attr]
    students = _candidate("q1", "Axons carry signals.\nand more", method="student")
    assert served(students, max_words=1) == parse(students.text, query=students.query)
    assert served(students).text == "Axons carry signals"  # type: ignore[union-attr]
    assert served(_candidate("q1", " ... ")) is None


def test_a_passage_is_prose_where_the_contract_reads_it_so_and_bare_words_elsewhere() -> None:
    assert passage(_candidate("q1", "Sure! Axons carry\n\nsignals."), max_words=2) == "Axons carry"
    assert passage(_candidate("q1", "1. 2. Axons carry, axons grow.")) == "2 Axons carry grow"
    assert passage(_candidate("q1", "Axons carry.\nMore", method="student")) == "Axons carry"
    assert passage(_candidate("q1", "!")) == ""


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3), min_size=1), st.data())
def test_many_rankings_of_a_query_are_measured_as_evaluate_measures_each(grades: dict[str, int], data: Any) -> None:
    qrels = {"q": {**grades, "sure": 1}, "other": {"a": 1}}
    rankings = data.draw(st.lists(st.lists(st.sampled_from("abcdefghijk"), max_size=14), min_size=1, max_size=4))
    measured = Measurer(qrels, ["ndcg_at_10", "recall_at_100"])([("q", ranking) for ranking in rankings])
    for ranking, values in zip(rankings, measured, strict=True):
        alone = evaluate({"q": ranking}, qrels).per_query
        assert values == {measure: alone[measure]["q"] for measure in ("ndcg_at_10", "recall_at_100")}


def test_ndcg_at_100_is_the_linear_gain_over_the_best_orders() -> None:
    grades = {"a": 3, "b": 1, "c": 2}
    ranking = [*(f"x{i}" for i in range(40)), "b", *(f"y{i}" for i in range(50)), "a"]
    gain = 1 / math.log2(42) + 3 / math.log2(93)
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    assert Measurer({"q": grades}, ["ndcg_at_100"])([("q", ranking)])[0]["ndcg_at_100"] == pytest.approx(gain / ideal)


def test_a_query_without_a_relevant_document_is_not_usable(tmp_path: Path) -> None:
    write_qrels(tmp_path / "judge.txt", {"1": {"a": 2}, "2": {"a": 1}, "3": {"a": 0}})
    assert list(labels_from(tmp_path / "judge.txt").usable()) == ["1", "2"]
    assert list(labels_from(tmp_path / "judge.txt", relevant_from=2).usable()) == ["1"]


def test_a_broken_line_of_scored_candidates_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scored.jsonl"
    good = {
        **CANDIDATES[0].to_json(),
        "passage": "p",
        "words": "p",
        "labels": "l",
        "reward": 0.25,
        "base": {"ndcg_at_10": 0.5},
        "by_weight": {"0.2": {"ndcg_at_10": 0.75}},
    }
    path.write_text(json.dumps(good) + "\n", encoding="utf-8")
    (scored,) = read_scored(path)
    assert scored.reward.by_weight == {0.2: {"ndcg_at_10": 0.75}}
    write_scored(path, [scored])
    assert list(read_scored(path)) == [scored]
    for broken in ({"basis": {"mix": 1}}, {"reward": "much"}, {"by_weight": [1]}, {"base": None}, {"reward": math.nan}):
        path.write_text(json.dumps(good) + "\n" + json.dumps(good | broken) + "\n", encoding="utf-8")
        with pytest.raises(DataError, match=r"scored\.jsonl:2: "):
            list(read_scored(path))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mix": {"bleu": 1.0}}, "'bleu' is no measure; mix any of ndcg_at_5"),
        ({"mix": {}}, "the mix is {}"),
        ({"weights": ()}, "weights are"),
        ({"weights": (0.0,)}, "above 0"),
        ({"max_words": 0}, "max_words is 0"),
    ],
)
def test_options_that_cannot_be_used_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        RewardOptions(index=INDEX, **given)


def test_a_file_that_is_no_cache_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, and long enough to be read as one\n" * 9, encoding="utf-8")
    with pytest.raises(SettingsError, match=r"notes\.txt is no cache of rankings"):
        RankingCache(path)
    assert path.read_text(encoding="utf-8").startswith("not a database")
