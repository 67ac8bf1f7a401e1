"""Candidates from a teacher over HTTP: a real model behind llama-cpp-python's server, and a small server that misbehaves."""

import asyncio
import gzip
import json
import os
import pty
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from querylift.index_tools.corpora.loading import load
from querylift.index_tools.proxy_process import free_ports
from querylift.plugin.errors import DataError, GeneratorError, QueryliftError, SettingsError
from querylift.plugin.generators.llama.generator import packaged_model
from querylift.trainer.candidates import Candidate, read
from querylift.trainer.commands.teach import teach as command
from querylift.trainer.teaching.prompts import (
    Example,
    Plan,
    estimate,
    examples,
    few_shot,
    from_judged,
    messages_for,
    requests,
    shots_for,
    zero_shot,
)
from querylift.trainer.teaching.teacher import Added, Pacer, Taught, api_key, append, imported, missing, teach
from tests.helpers.paths import ROOT, SHARED_DATA

QUERIES = {"1": "what causes a rainbow", "2": "why do cats purr", "3": "history of the steam engine"}
PASSAGE = "Certainly! Here is a passage:\n\nSunlight bends in drops of water."
Handler = Callable[[web.Request], Awaitable[web.Response]]


def _plan(url: str = "http://127.0.0.1:9/v1", **changes: Any) -> Plan:
    return replace(Plan("m", url, max_tokens=20), **changes)


def _answer(text: str = PASSAGE, tokens_in: int = 50, tokens_out: int = 10) -> web.Response:
    usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    body = {"id": "a", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return web.json_response(body)


async def _fine(request: web.Request) -> web.Response:
    return _answer()


class Server:
    """A real HTTP server that answers by `handler` and remembers what it was asked."""

    def __init__(self, handler: Handler = _fine) -> None:
        self._handler = handler
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.times_s: list[float] = []
        self.under_way = self.most_under_way = 0
        self.url = ""

    async def __aenter__(self) -> "Server":
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        self.keys.append(request.headers["Authorization"])
        self.times_s.append(time.monotonic())
        self.under_way += 1
        self.most_under_way = max(self.under_way, self.most_under_way)
        try:
            return await self._handler(request)
        finally:
            self.under_way -= 1

    def asked(self) -> list[str]:
        """The last turn of each request, in order of arrival."""
        return [body["messages"][-1]["content"] for body in self.bodies]


def _taught(tmp_path: Path, server: Server, *, key: str = "k", **changes: Any) -> Taught:
    """What comes of asking `server` for whatever is still missing in out.jsonl."""

    async def run() -> Taught:
        async with server:
            plan, out = _plan(server.url, **changes), tmp_path / "out.jsonl"
            return await teach(missing(QUERIES, plan, out), plan, out, key=key)

    return asyncio.run(run())


def _written(tmp_path: Path) -> list[Candidate]:
    return list(read(tmp_path / "out.jsonl"))


def _failing(status: int, times: int, headers: Mapping[str, str] | None = None) -> Handler:
    left = [times]

    async def handle(request: web.Request) -> web.Response:
        left[0] -= 1
        return (
            web.json_response({"error": {"message": "not\nnow"}}, status=status, headers=headers)
            if left[0] >= 0
            else _answer()
        )

    return handle


# --- what is asked


def test_a_plan_asks_each_query_for_every_sample_a_first_one_of_all_before_the_second_of_any() -> None:
    plan = _plan(prompts=("zero-shot", "few-shot"), samples=2, temperatures=(0, 0.7))
    asked = list(requests(QUERIES, plan))
    assert len(asked) == len({a.key for a in asked}) == 3 * 2 * (1 + 2)
    assert [(a.query_id, a.method) for a in asked[:4]] == [
        ("1", "zero-shot"),
        ("2", "zero-shot"),
        ("3", "zero-shot"),
        ("1", "few-shot"),
    ]
    assert [a.params["sample"] for a in asked] == [0] * 12 + [1] * 6
    assert {a.params["temperature"] for a in asked[12:]} == {0.7}
    assert [a.params.get("examples") for a in asked[:4]] == [None, None, None, 4]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompts": ("cot",)}, "prompts are cot; choose among zero-shot, few-shot"),
        ({"prompts": ()}, "prompts are none"),
        ({"temperatures": ()}, r"temperatures are \[\]"),
        ({"temperatures": (2.5,)}, r"temperatures are \[2.5\]; name at least one, from 0 to 2"),
        ({"samples": 0}, "samples is 0; name a number above 0"),
        ({"token_budget": -1}, "token_budget is -1"),
        ({"requests_per_minute": 0}, "requests_per_minute is 0"),
        ({"base_url": "localhost:80"}, "the endpoint is 'localhost:80'; name a URL such as"),
    ],
)
def test_a_plan_that_asks_for_nothing_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        _plan(**changes)


def test_an_endpoints_account_is_not_shown() -> None:
    plan = _plan("https://user:secret@host:1/v1?key=secret")
    assert plan.place == "https://host:1/v1"
    assert "secret" not in repr(plan)


def test_what_decides_the_answers_is_told_from_what_only_takes_time_or_money() -> None:
    same = _plan().decisive()
    assert same == _plan("http://h/v1", concurrency=1, token_budget=9, price_in=1.0, requests_per_minute=5).decisive()
    for changes in ({"samples": 2}, {"temperatures": (0.1,)}, {"model": "n"}, {"max_tokens": 9}, {"shots": 1}):
        assert _plan(**changes).decisive() != same


def test_a_zero_shot_prompt_is_a_task_and_the_query_on_one_line() -> None:
    system, user = zero_shot("what\n causes\x00a rainbow")
    assert (system["role"], user) == ("system", {"role": "user", "content": "Search query: what causes a rainbow"})
    assert "60 words" in system["content"]


def test_a_few_shot_prompt_shows_the_examples_as_answered_turns() -> None:
    turns = few_shot("q", [Example("1", "first", "one"), Example("2", "second", "two")])
    assert turns[0] == zero_shot("q")[0]
    assert [(t["role"], t["content"]) for t in turns[1:]] == [
        ("user", "Search query: first"), ("assistant", "one"),
        ("user", "Search query: second"), ("assistant", "two"),
        ("user", "Search query: q"),
    ]  # fmt: skip


def test_the_query_that_is_asked_is_never_an_example_by_id_or_by_text() -> None:
    drawn = [Example("1", "a", "one"), Example("2", "b", "two"), Example("3", "c", "three")]
    assert [e.query_id for e in shots_for("9", "z", drawn, k=2)] == ["1", "2"]
    assert [e.query_id for e in shots_for("1", "a", drawn, k=2)] == ["2", "3"]
    assert [e.query_id for e in shots_for("9", " B", drawn, k=2)] == ["1", "3"]


def test_examples_are_on_the_few_shot_prompt_only() -> None:
    drawn = [Example("1", "a", "one")]
    asked = Candidate("9", "q", "few-shot", "m", "")
    assert messages_for(asked, drawn, shots=1) == few_shot("q", drawn)
    assert messages_for(replace(asked, method="zero-shot"), drawn, shots=1) == zero_shot("q")


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """Four documents, a train split of three judged queries, a dev split of one."""
    folder = tmp_path / "docs"
    folder.mkdir()
    long = " ".join(f"w{n}" for n in range(100))
    documents = [
        ("d1", "Rainbows", f"Light bends. {long}"),
        ("d2", "", "Cats purr."),
        ("d3", "Steam", "Watt."),
        ("d4", "Only a title", ""),
    ]
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": i, "title": t, "text": x}) + "\n" for i, t, x in documents), encoding="utf-8"
    )
    for split, queries in {"train": QUERIES, "dev": {"8": "what makes thunder loud"}}.items():
        lines = [json.dumps({"_id": i, "text": t}) + "\n" for i, t in queries.items()]
        (folder / f"queries.{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    rows = ["1\td1\t2", "1\td2\t1", "1\td3\t0", "2\td2\t1", "2\td4\t1", "2\tgone\t1", "3\td3\t1"]
    (folder / "qrels.train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(rows) + "\n", encoding="utf-8")
    (folder / "qrels.dev.tsv").write_text("query-id\tcorpus-id\tscore\n8\td1\t1\n", encoding="utf-8")
    return folder


def test_examples_are_judged_queries_with_the_start_of_their_best_graded_document(beir: Path) -> None:
    corpus = load(str(beir))
    drawn = examples(corpus, "train", k=2, seed=1)
    assert drawn == examples(corpus, "train", k=2, seed=1)
    found = {example.query_id: example for example in drawn}
    assert {"1", "3"} <= found.keys() <= {"1", "2", "3"}
    assert found["1"].passage.startswith("Light bends. w0 w1")
    assert len(found["1"].passage.split()) == 60
    assert (found["3"].query, found["3"].passage) == ("history of the steam engine", "Watt.")
    assert len({tuple(e.query_id for e in examples(corpus, "train", k=1, seed=seed)) for seed in range(20)}) > 1


def test_relevant_documents_are_candidates_best_grade_first_as_far_as_the_corpus_has_them(beir: Path) -> None:
    made = list(from_judged(load(str(beir)), "train", per_query=2, words=3))
    assert made[0] == Candidate(
        "1", "what causes a rainbow", "relevant-document", "judgments", "Rainbows Light bends. w0",
        {"doc_id": "d1", "grade": 2, "words": 3},
    )  # fmt: skip
    assert [(c.query_id, c.text) for c in made if c.query_id != "2"][1:] == [("1", "Cats purr."), ("3", "Steam Watt.")]
    assert {c.text for c in made if c.query_id == "2"} <= {"Cats purr.", "Only a title"}
    chosen = {
        tuple(
            c.params["doc_id"]
            for c in from_judged(load(str(beir)), "train", per_query=1, seed=seed)
            if c.query_id == "2"
        )
        for seed in range(20)
    }
    assert chosen == {("d2",), ("d4",), ()}


def test_an_estimate_counts_prompts_about_and_answers_at_full_length() -> None:
    plan = _plan(samples=2, price_in=1.0, price_out=10.0)
    todo = list(requests(QUERIES, plan))
    found = estimate(todo, plan)
    assert (found.requests, found.tokens_out) == (6, 120)
    assert 6 * 60 < found.tokens_in < 6 * 140
    assert found.cost == pytest.approx((found.tokens_in + 10 * 120) / 1e6)
    assert estimate(todo, _plan()).cost is None
    drawn = [Example("9", "z", "word " * 60)]
    assert (
        estimate(list(requests(QUERIES, _plan(prompts=("few-shot",)))), plan, drawn=drawn).tokens_in
        > found.tokens_in / 2
    )
    chinese = [Candidate("1", "夫妻一方经营个体工商户", "zero-shot", "m", "")]
    assert estimate(chinese, plan).tokens_in - estimate([replace(chinese[0], query="")], plan).tokens_in == 11


def test_the_key_is_the_teachers_own_before_that_of_openai() -> None:
    assert api_key({"OPENAI_API_KEY": "o", "QUERYLIFT_TEACHER_API_KEY": "t"}) == "t"
    assert api_key({"OPENAI_API_KEY": "o", "QUERYLIFT_TEACHER_API_KEY": ""}) == "o"
    assert api_key({}) == "none"


# --- asking


def test_answers_are_cleaned_counted_and_written_with_how_they_were_asked_for(tmp_path: Path) -> None:
    server = Server()
    done = _taught(tmp_path, server, price_in=1.0, price_out=2.0)
    assert done == Taught(written=3, tokens_in=150, tokens_out=30, cost=pytest.approx(210 / 1e6))
    first = min(_written(tmp_path), key=lambda c: c.query_id)
    assert (first.query_id, first.query, first.method, first.model) == ("1", "what causes a rainbow", "zero-shot", "m")
    assert first.text == "Sunlight bends in drops of water."
    assert first.params == {"temperature": 0.7, "sample": 0, "max_tokens": 20, "prompt": "teacher-1", "seed": 0}
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.7, 20)
    assert len({body["seed"] for body in server.bodies}) == 3
    assert set(server.keys) == {"Bearer k"}


def test_an_answer_without_words_is_counted_and_not_written(tmp_path: Path) -> None:
    async def handle(request: web.Request) -> web.Response:
        query = (await request.json())["messages"][-1]["content"]
        return _answer("<think>hm" if "cats" in query else PASSAGE)

    assert _taught(tmp_path, Server(handle)) == Taught(written=2, empty=1, tokens_in=150, tokens_out=30)
    assert {c.query_id for c in _written(tmp_path)} == {"1", "3"}


def test_a_second_run_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    _taught(tmp_path, Server())
    again = Server()
    assert _taught(tmp_path, again) == Taught()
    assert again.bodies == []
    assert _taught(tmp_path, Server(), samples=2).written == 3
    assert [c.params["sample"] for c in _written(tmp_path)] == [0, 0, 0, 1, 1, 1]


def test_too_many_requests_and_server_errors_are_tried_again(tmp_path: Path) -> None:
    for status in (429, 503):
        folder = tmp_path / str(status)
        server = Server(_failing(status, times=2, headers={"retry-after-ms": "30"}))
        assert _taught(folder, server, concurrency=1).written == 3
        assert len(server.bodies) == 5
        assert server.asked()[:3] == ["Search query: what causes a rainbow"] * 3


def test_retry_after_is_waited_for(tmp_path: Path) -> None:
    server = Server(_failing(429, times=1, headers={"Retry-After": "1"}))
    _taught(tmp_path, server, concurrency=1)
    assert server.times_s[1] - server.times_s[0] >= 0.99


def test_a_request_that_fails_for_good_is_counted_and_asked_again_in_the_next_run(tmp_path: Path) -> None:
    assert _taught(tmp_path, Server(_failing(400, times=1)), concurrency=1) == Taught(
        written=2, failed=1, tokens_in=100, tokens_out=20
    )
    assert {c.query_id for c in _written(tmp_path)} == {"2", "3"}
    assert _taught(tmp_path, Server()).written == 1


def test_a_teacher_that_fails_request_after_request_ends_the_run_and_what_was_written_stays(tmp_path: Path) -> None:
    served = [0]

    async def handle(request: web.Request) -> web.Response:
        served[0] += 1
        return _answer() if served[0] == 1 else web.json_response({"error": {"message": "out\nof memory"}}, status=500)

    with pytest.raises(GeneratorError) as caught:
        _taught(tmp_path, Server(handle), samples=3, concurrency=1, max_retries=0)
    assert "failed 5 requests in a row (500 " in str(caught.value)
    assert "what it wrote before is kept: run the same command again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (served[0], len(_written(tmp_path))) == (6, 1)


def test_a_page_that_is_no_answer_is_a_failure(tmp_path: Path) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(text="<html>hello</html>", content_type="text/html")

    with pytest.raises(GeneratorError, match=r"failed 3 requests in a row \(an answer without choices\)"):
        _taught(tmp_path, Server(handle))


def test_a_teacher_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    plan = _plan(f"http://127.0.0.1:{free_ports(1)[0]}/v1", max_retries=1)
    with pytest.raises(GeneratorError, match=r"failed 3 requests in a row \(Connection error"):
        asyncio.run(teach(list(requests(QUERIES, plan)), plan, tmp_path / "out.jsonl", key="k"))


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(401, "does not take the API key; set QUERYLIFT_TEACHER_API_KEY"), (403, "does not let the API key use 'm'"),
     (404, "knows no model 'm', or is no OpenAI-compatible API; name another --model")],
)  # fmt: skip
def test_a_refused_key_or_model_ends_the_run_at_once_in_one_sentence(
    tmp_path: Path, status: int, sentence: str
) -> None:
    server = Server(_failing(status, times=99))
    with pytest.raises(SettingsError) as caught:
        _taught(tmp_path, server, key="sk-secret", concurrency=1)
    assert sentence in str(caught.value)
    assert "secret" not in str(caught.value)
    assert len(server.bodies) == 1


def test_the_run_stops_before_the_token_budget_is_exceeded_and_a_second_one_goes_on(tmp_path: Path) -> None:
    async def handle(request: web.Request) -> web.Response:
        return _answer(tokens_in=100, tokens_out=20)

    # Before a request there is room for what it may use, about 125 tokens, of which 120 are used.
    done = _taught(tmp_path, Server(handle), token_budget=400)
    assert (done.left, done.written) in {(1, 2), (0, 3)}
    assert done.tokens_in + done.tokens_out <= 400
    first = _taught(tmp_path / "b", Server(handle), samples=3, token_budget=400)
    assert first.written + first.left == 9
    assert first.left > 5
    assert _taught(tmp_path / "b", Server(handle), samples=3).written == first.left


def test_no_more_requests_are_under_way_than_asked_for(tmp_path: Path) -> None:
    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(0.05)
        return _answer()

    server = Server(slow)
    assert _taught(tmp_path, server, samples=4, concurrency=3).written == 12
    assert server.most_under_way == 3


def test_requests_are_spread_over_the_minute() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def turns(per_minute: float | None) -> list[float]:
        slept.clear()
        pacer = Pacer(per_minute, clock=lambda: 1000.0, sleep=sleep)
        for _ in range(4):
            await pacer.turn()
        return list(slept)

    assert asyncio.run(turns(30)) == [2.0, 4.0, 6.0]
    assert asyncio.run(turns(None)) == []


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """llama-cpp-python's own server with the small model."""
    port = free_ports(1)[0]
    command = [sys.executable, "-W", "ignore", "-m", "llama_cpp.server", "--model", str(packaged_model())]
    command += ["--port", str(port), "--n_ctx", "1024", "--n_threads", "1", "--chat_format", "chatml"]
    with (tmp_path_factory.mktemp("llama") / "log").open("wb") as log:
        with subprocess.Popen(command, stdout=log, stderr=log) as server:
            try:
                _wait_for(f"http://127.0.0.1:{port}/v1/models")
                yield f"http://127.0.0.1:{port}/v1"
            finally:
                server.kill()


def _wait_for(url: str) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError("the server did not come up")


@pytest.mark.model
def test_a_real_model_writes_several_passages_for_a_query(tmp_path: Path, llama: str) -> None:
    plan = Plan(
        "smollm2",
        llama,
        samples=2,
        temperatures=(0.9,),
        max_tokens=12,
        concurrency=1,
        prompts=("zero-shot", "few-shot"),
    )
    out = tmp_path / "out.jsonl"
    drawn = [Example("8", "why is the sky blue", "Air scatters blue light more than red light.")]
    todo = missing({"1": "what causes a rainbow"}, plan, out)
    done = asyncio.run(teach(todo, plan, out, key="none", drawn=drawn))
    made = list(read(out))
    assert (done.written, done.failed, len(made)) == (4, 0, 4)
    assert len({candidate.text for candidate in made}) > 2
    assert [c.method for c in made] == ["zero-shot", "few-shot", "zero-shot", "few-shot"]
    assert 4 * 60 < done.tokens_in < 4 * 300
    assert 4 <= done.tokens_out <= 4 * 12
    assert 0.5 < estimate(todo, plan, drawn=drawn).tokens_in / done.tokens_in < 2
    assert missing({"1": "what causes a rainbow"}, plan, out) == []


# --- what others wrote


def _rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _row(query_id: str, text: str, model: str = "72B", mode: str = "zs", **changes: Any) -> dict[str, Any]:
    row = {"query_id": query_id, "query": QUERIES[query_id], "method": "query2doc", "params": {"mode": mode}}
    return row | {"model": model, "text": text} | changes


def test_rows_of_one_model_and_mode_are_taken_over_cleaned_and_only_once(tmp_path: Path) -> None:
    source = _rows(
        tmp_path / "in.jsonl",
        _row("1", PASSAGE), _row("1", "other", mode="fs"), _row("2", "other", model="7B"), _row("3", "Sure!\n\n"),
    )  # fmt: skip
    out, where = tmp_path / "out.jsonl", {"model": "72B", "params.mode": "zs"}
    assert append(imported(source, where), out) == Added(written=1, empty=1)
    assert list(read(out)) == [
        Candidate("1", QUERIES["1"], "query2doc", "72B", "Sunlight bends in drops of water.", {"mode": "zs"})
    ]
    assert append(imported(source, where), out) == Added(known=1, empty=1)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("Sure, here's a passage:\nLight bends.", "Light bends."),
        ("Of course! Below is the answer:\n\nLight\nbends.", "Light bends."),
        ("Passage: Light bends.", "Light bends."),
        ("<think>A rainbow...</think>Light bends.", "Light bends."),
        ("Light bends <b>twice</b>.", "Light bends twice ."),
    ],
)
def test_a_chatty_lead_in_is_cleaned_away(tmp_path: Path, written: str, kept: str) -> None:
    append([Candidate("1", "q", "zero-shot", "m", written)], tmp_path / "out.jsonl")
    assert [c.text for c in _written(tmp_path)] == [kept]


def test_a_key_may_have_one_of_several_values(tmp_path: Path) -> None:
    rows = [_row("1", "a"), _row("1", "b", model="7B"), _row("1", "c", model="gpt"), _row("2", "d", method="mugi")]
    source = _rows(tmp_path / "in.jsonl", *rows)
    assert [c.text for c in imported(source, {"model": {"72B", "7B"}, "method": "query2doc"})] == ["a", "b"]


def test_rows_that_answer_one_request_twice_are_numbered_and_repeated_rows_are_not(tmp_path: Path) -> None:
    source = _rows(tmp_path / "in.jsonl", _row("1", "a"), _row("1", "b"), _row("1", "a"), _row("1", "c"))
    made = list(imported(source, {}))
    assert [(c.text, c.params) for c in made] == [
        ("a", {"mode": "zs"}), ("b", {"mode": "zs", "sample": 1}), ("c", {"mode": "zs", "sample": 2})
    ]  # fmt: skip
    assert len({c.key for c in made}) == 3


def test_an_id_that_stands_for_two_queries_is_refused_and_a_prefix_mends_it(tmp_path: Path) -> None:
    one = _rows(tmp_path / "one.jsonl", _row("1", "a"))
    two = _rows(tmp_path / "two.jsonl", _row("2", "x"), _row("1", "b", query="another question"))
    out = tmp_path / "out.jsonl"
    append(imported(one, {}), out)
    with pytest.raises(SettingsError, match="query id '1' stands for two queries; give one file a prefix"):
        append(imported(two, {}), out)
    assert len(_written(tmp_path)) == 1
    assert append(imported(two, {}, prefix="two:"), out).written == 2
    assert [c.query_id for c in _written(tmp_path)] == ["1", "two:2", "two:1"]


def test_a_broken_line_stops_the_import_and_is_named(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl.gz"
    source.write_bytes(gzip.compress(json.dumps(_row("1", "a")).encode() + b"\n\n{oops\n"))
    with pytest.raises(DataError, match=r"in\.jsonl\.gz:3: not JSON"):
        append(imported(source, {}), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.data
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the retrieval data is not beside the project (../shared/data)")
def test_published_expansions_are_imported_from_several_files(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    where = {"model": ("Qwen2.5-72B-Instruct", "Qwen2.5-7B-Instruct"), "params.mode": "zs", "method": "query2doc"}
    added = {
        name: append(imported(SHARED_DATA / "expansions" / f"{name}.jsonl.gz", where, prefix=f"{name}:"), out)
        for name in ("trec_covid", "trec_news", "trec_dl19")
    }
    made = list(read(out))
    assert len({c.key for c in made}) == len(made) == sum(found.written for found in added.values())
    assert added["trec_covid"].written >= 2 * 50
    assert {c.query_id.split(":")[0] for c in made} == {"trec_covid", "trec_news", "trec_dl19"}
    assert {c.model for c in made} == set(where["model"])
    chatty = [c for c in made if c.text.lower().startswith(("certainly", "sure", "here is", "here's"))]
    assert len(chatty) < len(made) / 100


# --- the command


def _run(*arguments: str) -> dict[str, Any]:
    """The JSON that the command prints; what it raises is raised."""
    done = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=True)
    if done.exception is not None:
        raise done.exception
    return dict(json.loads(done.stdout))


def _run_against(server: Server, *arguments: str) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        async with server:
            return await asyncio.to_thread(_run, *arguments, "--endpoint", server.url, "--model", "m")

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing to collect; name --endpoint and --model, or --import, or --judged"),
        (["--model", "m"], "--endpoint and --model belong together"),
        (["--import", "gone.jsonl"], "gone.jsonl cannot be read"),
        (["--judged", "1", "--where", "model"], "--where is 'model'; write KEY=VALUE"),
        (["--judged", "1", "--where", "model=m"], "--where chooses rows of --import, which is not given"),
        (["--judged", "1", "--prompt", "few-shot"], "--prompt needs a teacher; give --endpoint and --model"),
        (["--judged", "1", "--samples", "1"], "--samples needs a teacher"),
        (["--endpoint", "http://h/v1", "--model", "m", "--shots", "2"], "--shots needs --prompt few-shot"),
        (["--import", "gone.jsonl", "--limit", "1"], "--limit does not cut what --import takes"),
        (["--judged", "1", "--held-out", "nowhere:dev"], "no corpus 'nowhere'"),
        (["--endpoint", "h", "--model", "m"], "the endpoint is 'h'"),
    ],
)
def test_a_wrong_option_is_one_sentence(tmp_path: Path, beir: Path, arguments: list[str], sentence: str) -> None:
    with pytest.raises(QueryliftError) as caught:
        _run(str(beir), "--split", "train", "--out", str(tmp_path / "out.jsonl"), *arguments)
    assert sentence in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_corpus_of_several_splits_is_not_taken_without_the_name_of_one(tmp_path: Path, beir: Path) -> None:
    sentence = "^'docs' has several splits: dev, train; say which with --split NAME$"
    with pytest.raises(SettingsError, match=sentence):
        _run(str(beir), "--judged", "1", "--out", str(tmp_path / "out.jsonl"))


def test_fewer_than_no_relevant_documents_are_refused(tmp_path: Path, beir: Path) -> None:
    done = CliRunner().invoke(command, [str(beir), "--judged", "-1", "--out", str(tmp_path / "out.jsonl")])
    assert (done.exit_code, "--judged" in done.output) == (2, True)


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        (["modle=72B"], "has modle=72B; choose rows that it has"),
        (["model=72B", "params.mode=fs", "params.mode=xs"], "has params.mode=fs or xs; choose"),
        (["model=7B", "method=mugi"], "has model=7B and method=mugi; choose"),
    ],
)
def test_a_choice_that_no_row_meets_names_what_none_has(
    tmp_path: Path, beir: Path, where: list[str], sentence: str
) -> None:
    source = _rows(tmp_path / "in.jsonl", _row("1", "a", method="mugi"), _row("2", "b", model="7B"))
    chosen = [part for item in where for part in ("--where", item)]
    with pytest.raises(SettingsError) as caught:
        _run(str(beir), "--split", "train", "--import", str(source), *chosen, "--out", str(tmp_path / "out.jsonl"))
    assert f"no row of {source} {sentence}" in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_file_without_rows_is_refused(tmp_path: Path, beir: Path) -> None:
    source = _rows(tmp_path / "in.jsonl")
    with pytest.raises(SettingsError, match=r"in\.jsonl holds no expansions; name another file"):
        _run(str(beir), "--split", "train", "--import", str(source), "--out", str(tmp_path / "out.jsonl"))


def test_a_run_that_leaves_nothing_or_only_empty_texts_is_not_done(tmp_path: Path, beir: Path) -> None:
    arguments = [str(beir), "--split", "train", "--judged", "1", "--drop-leaks", "--held-out", f"{beir}:train"]
    with pytest.raises(SettingsError, match=r"there is nothing to collect: .*all are held out"):
        _run(*arguments, "--out", str(tmp_path / "a.jsonl"))
    source = _rows(tmp_path / "in.jsonl", _row("1", "<b></b>"))
    with pytest.raises(GeneratorError, match=r"b\.jsonl holds no candidate"):
        _run(str(beir), "--split", "train", "--import", str(source), "--out", str(tmp_path / "b.jsonl"))


def _is_done(out: Path) -> bool:
    return bool(json.loads(out.with_name(out.name + ".manifest.json").read_text(encoding="utf-8"))["done"])


def test_a_spent_budget_leaves_the_stage_undone_and_says_how_to_go_on(tmp_path: Path, beir: Path) -> None:
    out = tmp_path / "out.jsonl"
    arguments = [str(beir), "--split", "train", "--out", str(out), "--concurrency", "1"]
    with pytest.raises(GeneratorError) as caught:
        _run_against(Server(), *arguments, "--token-budget", "1")
    assert str(caught.value) == (
        "3 requests are left: 0 failed, 3 beyond the token budget; "
        "raise --token-budget: 1 does not pay for the first of them"
    )
    assert not _is_done(out)
    with pytest.raises(GeneratorError, match=r"^2 requests are left: .*; run the same command again to go on$"):
        _run_against(Server(), *arguments, "--token-budget", "250")
    assert (len(list(read(out))), _is_done(out)) == (1, False)
    assert _run_against(Server(), *arguments)["teacher"]["written"] == 2
    assert _is_done(out)


def test_a_limit_cuts_the_queries_whose_relevant_documents_are_taken(tmp_path: Path, beir: Path) -> None:
    out = tmp_path / "out.jsonl"
    _run(str(beir), "--split", "train", "--out", str(out), "--judged", "1", "--limit", "1")
    assert [candidate.query_id for candidate in read(out)] == ["1"]


def test_a_held_out_query_is_no_example(tmp_path: Path, beir: Path) -> None:
    held = tmp_path / "held"
    held.mkdir()
    _rows(
        held / "queries.jsonl", {"_id": "x", "text": "why do cats purr?"}, {"_id": "y", "text": "causes of a rainbow"}
    )
    arguments = [str(beir), "--split", "train", "--out", str(tmp_path / "out.jsonl"), "--held-out", str(held)]
    arguments += ["--drop-leaks", "--prompt", "few-shot", "--shots", "3"]
    with pytest.raises(SettingsError, match="docs has no judged query to show"):
        _run_against(Server(), *arguments, "--held-out", f"{beir}:train")
    server = Server()
    told = _run_against(server, *arguments, "--held-out", f"{beir}:dev")
    assert told["dropped"] == 2
    assert not [body for body in server.bodies if "purr" in str(body) or "rainbow" in str(body)]


def test_a_small_cost_is_shown_with_two_digits(tmp_path: Path, beir: Path) -> None:
    arguments = [str(beir), "--split", "train", "--out", str(tmp_path / "out.jsonl"), "--price-out", "0.01"]
    with pytest.raises(SettingsError, match=r"and cost at most about 0\.0000038;"):
        _run_against(Server(), *arguments)


def test_the_command_collects_from_a_teacher_a_file_and_the_judgments(tmp_path: Path, beir: Path) -> None:
    out, source = tmp_path / "out.jsonl", _rows(tmp_path / "in.jsonl", _row("1", "a"), _row("2", "b", model="7B"))
    arguments = [
        str(beir),
        "--split",
        "train",
        "--out",
        str(out),
        "--import",
        f"other={source}",
        "--where",
        "model=72B",
    ]
    arguments += ["--judged", "1", "--prompt", "few-shot", "--shots", "1", "--limit", "2"]
    server = Server()
    told = _run_against(server, *arguments)
    assert told["given"] == {"written": 3, "known": 0, "empty": 0}
    assert (told["teacher"]["written"], told["dropped"]) == (2, 0)
    assert [len(body["messages"]) for body in server.bodies] == [4, 4]
    methods = [(c.method, c.query_id) for c in read(out)]
    assert methods[0] == ("query2doc", "other:1")
    assert sorted(methods[3:]) == [("few-shot", "1"), ("few-shot", "2")]
    manifest = json.loads((tmp_path / "out.jsonl.manifest.json").read_text(encoding="utf-8"))
    assert (manifest["stage"], manifest["done"], manifest["results"]) == ("teach", True, told)
    assert "127.0.0.1" not in json.dumps(manifest["settings"])

    again = _run_against(Server(), *arguments, "--concurrency", "1")
    assert (again["given"]["known"], again["teacher"]["written"]) == (3, 0)
    with pytest.raises(SettingsError, match=r"begun with another setting \(judged 1, now 2\)"):
        _run_against(Server(), *arguments, "--judged", "2")


def test_a_summary_says_what_was_written_and_what_is_left(tmp_path: Path, beir: Path) -> None:
    server = Server(_failing(400, times=1))

    async def run() -> Result:
        async with server:
            arguments = [str(beir), "--split", "train", "--out", str(tmp_path / "out.jsonl"), "--judged", "1", "--yes"]
            arguments += ["--endpoint", server.url, "--model", "m", "--concurrency", "1", "--price-out", "1000"]
            return await asyncio.to_thread(CliRunner().invoke, command, arguments)

    done = asyncio.run(run())
    assert str(done.exception).startswith(
        "1 request is left: 1 failed, 0 beyond the token budget; run the same command"
    )
    assert done.stdout.splitlines() == [
        "given: 3 written, 0 there before, 0 without words",
        "teacher: 2 written, 0 without words, 1 failed; 100 prompt and 20 answer tokens, cost 0.020",
        f"candidates: {tmp_path / 'out.jsonl'}",
    ]


def test_a_run_that_costs_money_is_not_begun_unasked(tmp_path: Path, beir: Path) -> None:
    arguments = [
        str(beir),
        "--split",
        "train",
        "--out",
        str(tmp_path / "out.jsonl"),
        "--price-in",
        "100",
        "--price-out",
        "300",
    ]
    server = Server()
    with pytest.raises(SettingsError) as caught:
        _run_against(server, *arguments)
    assert str(caught.value).startswith("3 requests to m take about ")
    assert "at most 384 answer tokens, and cost at most about 0." in str(caught.value)
    assert str(caught.value).endswith("; agree to it with --yes, as there is no terminal to ask on")
    assert (server.bodies, (tmp_path / "out.jsonl").exists()) == ([], False)
    assert _run_against(server, *arguments, "--yes")["teacher"]["written"] == 3


def _on_a_terminal(arguments: Sequence[str], *, answer: str) -> tuple[int, str]:
    """Run the command line on a terminal of its own, and type `answer` once it asks: exit code, all that was shown."""
    ours, theirs = pty.openpty()
    with open(ours, "r+b", buffering=0) as screen:
        process = subprocess.Popen(
            [sys.executable, "-m", "querylift", "train", "teach", *arguments],
            cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        question, shown = b"[y/N]:", b""
        with process, suppress(OSError):  # how Linux says that nobody has the terminal open any more
            while data := screen.read(1024):
                asked_before, shown = question in shown, shown + data
                if question in shown and not asked_before:
                    screen.write(answer.encode() + b"\n")
        return process.returncode, shown.decode()


def _asked_on_a_terminal(server: Server, out: Path, corpus: Path, *, answer: str) -> tuple[int, str]:
    """A run that costs money, by somebody who answers the question whether to go on."""
    arguments = [str(corpus), "--split", "train", "--out", str(out), "--model", "m", "--price-out", "300"]

    async def run() -> tuple[int, str]:
        async with server:
            return await asyncio.to_thread(_on_a_terminal, [*arguments, "--endpoint", server.url], answer=answer)

    return asyncio.run(run())


def test_on_a_terminal_a_run_that_costs_money_is_begun_once_somebody_agrees(tmp_path: Path, beir: Path) -> None:
    out, server = tmp_path / "out.jsonl", Server()
    exit_code, shown = _asked_on_a_terminal(server, out, beir, answer="y")
    assert exit_code == 0
    assert re.search(
        r"3 requests to m take about \d+ prompt tokens .* cost at most about 0\.12\. Go on\? \[y/N\]:", shown
    )
    assert f"candidates: {out}" in shown
    assert (len(server.bodies), len(list(read(out)))) == (3, 3)


@pytest.mark.parametrize("answer", ["n", ""], ids=["no", "nothing"])
def test_on_a_terminal_a_run_that_nobody_agrees_to_sends_and_collects_nothing(
    tmp_path: Path, beir: Path, answer: str
) -> None:
    out, server = tmp_path / "out.jsonl", Server()
    exit_code, shown = _asked_on_a_terminal(server, out, beir, answer=answer)
    assert (exit_code, shown.splitlines()[-1]) == (1, "Aborted!")
    assert (server.bodies, out.exists(), _is_done(out)) == ([], False, False)


def test_queries_of_the_other_splits_are_held_out_until_told_otherwise(tmp_path: Path, beir: Path) -> None:
    source = _rows(
        tmp_path / "in.jsonl", _row("1", "a"), _row("1", "b") | {"query_id": "8", "query": "what makes thunder loud"}
    )
    arguments = [str(beir), "--split", "train", "--import", str(source), "--out"]
    with pytest.raises(SettingsError, match=r"1 training query is in an evaluation split: '8' is '8' of docs:dev"):
        _run(*arguments, str(tmp_path / "a.jsonl"))
    assert not (tmp_path / "a.jsonl").exists()
    told = _run(*arguments, str(tmp_path / "b.jsonl"), "--drop-leaks")
    assert (told["dropped"], told["given"]["written"]) == (1, 1)
    assert _run(*arguments, str(tmp_path / "c.jsonl"), "--held-out", "none")["given"]["written"] == 2
    told = _run(*arguments, str(tmp_path / "d.jsonl"), "--held-out", f"{beir}:train", "--drop-leaks")
    assert [c.query_id for c in read(tmp_path / "d.jsonl")] == ["8"]


def test_a_run_that_is_killed_goes_on_and_writes_each_answer_once(tmp_path: Path) -> None:
    folder, out = tmp_path / "many", tmp_path / "out.jsonl"
    folder.mkdir()
    rows = [{"_id": str(n), "text": f"question number {n}"} for n in range(60)]
    _rows(folder / "queries.jsonl", *rows)
    code = "import sys; from querylift.trainer.commands.teach import teach; teach(sys.argv[1:])"

    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(0.03)
        return _answer("A passage. " * 40)

    async def run() -> tuple[int, int]:
        async with Server(slow) as server:
            arguments = [str(folder), "--out", str(out), "--endpoint", server.url, "--model", "m", "--concurrency", "4"]
            command_line = [sys.executable, "-c", code, *arguments]
            first = await asyncio.create_subprocess_exec(*command_line, cwd=ROOT)
            while not out.exists() or out.read_bytes().count(b"\n") < 10:
                await asyncio.sleep(0.01)
                assert first.returncode is None
            first.kill()
            await first.wait()
            with out.open("ab") as stream:  # a line that the kill tore off
                stream.write(b'{"query_id": "5')
            before = out.read_bytes().count(b"\n")
            asked_before = len(server.bodies)
            second = await asyncio.create_subprocess_exec(*command_line, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
            told, _ = await second.communicate()
            assert second.returncode == 0
            assert told.decode().startswith(f"teacher: {60 - before} written")
            return before, len(server.bodies) - asked_before

    before, asked_again = asyncio.run(run())
    assert 10 <= before < 60
    assert asked_again == 60 - before
    assert sorted(int(c.query_id) for c in read(out)) == list(range(60))
