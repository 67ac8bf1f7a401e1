"""`querylift judge annotate` on a real engine, with a small server as the teacher, and with a real small model."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from querylift.index_tools.corpora.trec_files import read_qrels
from querylift.index_tools.engine import Engine, make_index_action
from querylift.index_tools.judging.grade_scale import DEFAULT_SCALE
from querylift.index_tools.judging.judged_qrels import find_grade_source
from querylift.plugin.errors import GeneratorError, QueryliftError, SettingsError
from querylift.plugin.settings import parse_settings
from querylift.trainer.commands.judge.annotate import annotate
from querylift.trainer.judge.annotations import read_annotations
from tests.helpers.judge_server import format_judge_answer, make_judge_handler
from tests.helpers.llama_server import run_llama_server
from tests.helpers.paths import ROOT
from tests.helpers.teacher_server import TeacherServer, make_answer

pytestmark = pytest.mark.engine
INDEX = "judge-annotate"
SECRET = "sk-secret-key"
"""The API key. No output may hold it."""


@pytest.fixture(scope="module")
def engine(opensearch: str) -> Iterator[str]:
    """An index of 30 documents about snow. A longer one ranks lower. The last one has no text to read."""
    with Engine(parse_settings({"engine": opensearch})) as client:
        sources: list[dict[str, Any]] = [
            {"name": f"Snow {n}", "body": {"main": "snow " + "word " * n}, "tag": "snow"} for n in range(29)
        ]
        sources.append({"tag": "snow"})
        actions = (make_index_action(INDEX, f"d{n}", source) for n, source in enumerate(sources))
        assert all(ok for ok, _ in client.send_bulk_actions(actions))
        client.call("POST", f"/{INDEX}/_refresh")
        yield opensearch
        client.call("DELETE", f"/{INDEX}")


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    path = tmp_path / "queries.tsv"
    path.write_text("1\twhy is snow white\n2\tsnow  line\n3\tgravel\n", encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _set_api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUERYLIFT_TEACHER_API_KEY", SECRET)


def _list_arguments(engine: str, queries: Path, *arguments: object) -> list[str]:
    values = ["--index", INDEX, "--engine", engine, "--queries", queries, "--model", "m", "--field", "body.main"]
    values += ["--search-field", "body.main", "--first", 2, "--random", 3, "--depth", 20, *arguments]
    return list(map(str, values))


def _invoke(*arguments: object) -> Result:
    """Run the command in this process. Raise what it raises, unless that is an error for the user."""
    result = CliRunner().invoke(annotate, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, QueryliftError):
        raise result.exception
    assert SECRET not in f"{result.output}{result.exception!r}"
    return result


def _invoke_against_server(server: TeacherServer, *arguments: object) -> Result:
    async def run() -> Result:
        async with server:
            return await asyncio.to_thread(_invoke, *arguments, "--endpoint", server.url)

    return asyncio.run(run())


def test_first_and_random_documents_are_annotated(engine: str, queries: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    answers = ("no json", "still none", "no json", format_judge_answer(grade=3), format_judge_answer(grade=0))
    arguments = _list_arguments(engine, queries, "--out", out, "--max-words", 4, "--concurrency", 1)
    result = _invoke_against_server(TeacherServer(make_judge_handler(*answers)), *arguments, "--json")
    assert result.exception is None
    counts = json.loads(result.stdout)
    assert {name: counts[name] for name in ("pairs", "known", "hitless", "textless")} == {
        "pairs": 10, "known": 0, "hitless": 1, "textless": 0,
    }  # fmt: skip
    assert counts["asked"] == 10 == counts["written"] + counts["dropped"] + counts["refused"] + counts["failed"]
    assert (counts["written"], counts["repaired"], counts["dropped"]) == (9, 1, 1)
    assert counts["grades"] == {"0": 8, "1": 0, "2": 0, "3": 1}
    rows = list(read_annotations(out, DEFAULT_SCALE))
    assert {row.query for row in rows} == {"why is snow white", "snow line"}
    ranks = [int(row.doc_id.removeprefix("d")) for row in rows if row.query_id == "2"]
    assert ranks[:2] == [0, 1]
    assert all(2 <= rank < 20 for rank in ranks[2:])
    assert {row.document for row in rows if row.doc_id == "d1"} == {"snow word"}
    assert all(len(row.document.split()) <= 4 for row in rows)
    assert "10 requests to m take about" in result.stderr


def test_a_repeated_command_adds_only_what_the_file_lacks(engine: str, queries: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    arguments = _list_arguments(engine, queries, "--out", out)
    _invoke_against_server(TeacherServer(make_judge_handler(format_judge_answer())), *arguments, "--random", 0)
    server = TeacherServer(make_judge_handler(format_judge_answer(grade=1)))
    result = _invoke_against_server(server, *arguments)
    assert len(server.bodies) == 6
    assert re.sub(r"\d+\.\d annotations", "N annotations", result.stdout).splitlines() == [
        "pairs: 10 chosen, 4 there before, 0 left out without text, queries without a hit: 1",
        "teacher: 6 asked, 6 written (0 of them repaired), 0 dropped, 0 refused, 0 failed, 0 left; "
        "300 prompt and 60 answer tokens; N annotations per second",
        "grades: 0: 0, 1: 6, 2: 4, 3: 0",
        f"annotations: {out}",
        f"next: querylift judge train {out} --out judge",
    ]
    manifest = json.loads((tmp_path / "out.jsonl.manifest.json").read_text(encoding="utf-8"))
    assert (manifest["done"], manifest["settings"]["prompt"], manifest["settings"]["index"]) == (True, "judge-1", INDEX)
    with pytest.raises(SettingsError, match=r"was begun with another setting \(scale graded, now binary\)"):
        raise _invoke(*arguments, "--endpoint", "http://127.0.0.1:9/v1", "--scale", "binary").exception  # type: ignore[misc]


def test_a_model_that_can_think_is_asked_not_to_and_gets_the_keys_of_its_server(
    engine: str, queries: Path, tmp_path: Path
) -> None:
    server = TeacherServer(make_judge_handler(format_judge_answer()))
    arguments = _list_arguments(engine, queries, "--out", tmp_path / "out.jsonl", "--no-thinking")
    _invoke_against_server(server, *arguments, "--extra-body", '{"top_p": 0.8}')
    sent = [(body["top_p"], body["chat_template_kwargs"]) for body in server.bodies]
    assert sent == [(0.8, {"enable_thinking": False})] * 10


def test_a_killed_run_goes_on_where_it_ended(engine: str, queries: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    arguments = _list_arguments(engine, queries, "--out", out, "--concurrency", 1)
    reached_fourth = asyncio.Event()

    async def handle(request: web.Request) -> web.Response:
        if len(server.bodies) == 4:
            reached_fourth.set()
            await asyncio.sleep(30)
        return make_answer(format_judge_answer())

    async def run_until_killed() -> int | None:
        async with server:
            program = "from querylift.trainer.commands.judge.annotate import annotate; annotate()"
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", program, *arguments, "--endpoint", server.url, cwd=ROOT
            )
            await asyncio.wait_for(reached_fourth.wait(), 60)
            process.send_signal(signal.SIGKILL)
            return await process.wait()

    server = TeacherServer(handle)
    assert asyncio.run(run_until_killed()) == -signal.SIGKILL
    assert len(list(read_annotations(out, DEFAULT_SCALE))) == 3
    result = _invoke_against_server(TeacherServer(make_judge_handler(format_judge_answer())), *arguments, "--json")
    assert json.loads(result.stdout)["written"] == 7
    rows = list(read_annotations(out, DEFAULT_SCALE))
    assert len({row.pair_key for row in rows}) == len(rows) == 10


def test_a_dry_run_sends_and_writes_nothing(engine: str, queries: Path, tmp_path: Path) -> None:
    arguments = _list_arguments(engine, queries, "--out", tmp_path / "out.jsonl", "--dry-run")
    arguments += ["--price-in", "1", "--price-out", "2"]
    server = TeacherServer()
    text = _invoke_against_server(server, *arguments).stdout
    assert text.startswith("10 requests to m take about ")
    assert "at most 4,000 answer tokens, and cost at most about 0.01" in text
    usage = json.loads(_invoke_against_server(server, *arguments, "--json").stdout)
    assert (usage["requests"], usage["tokens_out"]) == (10, 4000)
    assert (server.bodies, [path.name for path in tmp_path.iterdir()]) == ([], ["queries.tsv"])


def test_a_run_that_costs_money_needs_consent(engine: str, queries: Path, tmp_path: Path) -> None:
    arguments = _list_arguments(engine, queries, "--out", tmp_path / "out.jsonl", "--price-out", "2")
    server = TeacherServer(make_judge_handler(format_judge_answer()))
    refusal = _invoke_against_server(server, *arguments)
    assert isinstance(refusal.exception, SettingsError)
    assert str(refusal.exception).endswith("no terminal can ask you, so agree with --yes")
    assert server.bodies == []
    assert (
        _invoke_against_server(server, *arguments, "--yes").stdout.splitlines()[1].endswith("per second, cost 0.00020")
    )


def test_a_finished_file_needs_no_request_and_a_single_grade_is_warned_about(
    engine: str, queries: Path, tmp_path: Path
) -> None:
    arguments = _list_arguments(engine, queries, "--out", tmp_path / "out.jsonl", "--limit", 1, "--random", 0)
    server = TeacherServer(make_judge_handler(format_judge_answer(grade=3)))
    result = _invoke_against_server(server, *arguments)
    assert "warning: all annotations have grade 3, and a judge learns from two grades or more" in result.stderr
    assert "next: " not in result.stdout
    again = _invoke(*arguments, "--endpoint", "http://127.0.0.1:9/v1", "--dry-run")
    assert again.stdout == "No request is needed, because the file holds all pairs.\n"


def test_requests_that_failed_are_told_with_the_reason_of_the_last_one(
    engine: str, queries: Path, tmp_path: Path
) -> None:
    arguments = _list_arguments(engine, queries, "--out", tmp_path / "out.jsonl", "--concurrency", 1)
    answer = make_judge_handler(format_judge_answer())

    async def fail_once(request: web.Request) -> web.Response:
        if len(server.bodies) == 1:
            return web.json_response({"error": {"message": "too long"}}, status=400)
        return await answer(request)

    server = TeacherServer(fail_once)
    result = _invoke_against_server(server, *arguments)
    assert "1 failed" in result.stdout
    sentence = str(result.exception)
    assert sentence.startswith("1 request is left: 1 failed (the last one: 400 ")
    assert sentence.endswith("), 0 beyond the token budget; run the same command again to go on")


def test_a_spent_token_budget_is_told_and_the_run_can_go_on(engine: str, queries: Path, tmp_path: Path) -> None:
    arguments = _list_arguments(engine, queries, "--out", tmp_path / "out.jsonl", "--concurrency", 1)
    server = TeacherServer(make_judge_handler(format_judge_answer()))
    result = _invoke_against_server(server, *arguments, "--token-budget", 900)
    assert isinstance(result.exception, GeneratorError)
    assert str(result.exception).endswith("beyond the token budget; run the same command again to go on")
    written = len(list(read_annotations(tmp_path / "out.jsonl", DEFAULT_SCALE)))
    assert 0 < written < 10
    rest = _invoke_against_server(TeacherServer(make_judge_handler(format_judge_answer())), *arguments, "--json")
    assert json.loads(rest.stdout)["written"] == 10 - written


def test_a_model_that_never_answers_usably_is_told(engine: str, queries: Path, tmp_path: Path) -> None:
    arguments = _list_arguments(engine, queries, "--out", tmp_path / "out.jsonl")
    result = _invoke_against_server(TeacherServer(make_judge_handler("no json")), *arguments)
    assert "10 dropped" in result.stdout
    assert isinstance(result.exception, GeneratorError)
    assert "holds no annotation by m: no answer was usable; try --json-mode" in str(result.exception)


def test_a_search_body_of_ones_own_is_used(engine: str, queries: Path, tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text('{"query": {"bool": {"filter": [{"term": {"tag": "snow"}}], "must": []}}, "x": "{{query}}"}')
    arguments = ["--index", INDEX, "--engine", engine, "--queries", queries, "--model", "m"]
    arguments += ["--out", tmp_path / "o.jsonl", "--first", 30, "--random", 0, "--depth", 30, "--limit", 1]
    arguments += ["--field", "body.main", "--field", "name"]
    refused = _invoke(*arguments, "--body", body, "--endpoint", "http://127.0.0.1:9/v1").exception
    assert "refuses the searches" in str(refused)
    clauses = {"must": {"match": {"tag": "snow"}}, "should": {"match": {"name": "{{query}}"}}}
    body.write_text(json.dumps({"query": {"bool": clauses}}))
    server = TeacherServer(make_judge_handler(format_judge_answer()))
    counts = json.loads(_invoke_against_server(server, *arguments, "--body", body, "--json").stdout)
    assert (counts["pairs"], counts["textless"]) == (29, 1)
    row = next(row for row in read_annotations(tmp_path / "o.jsonl", DEFAULT_SCALE) if row.doc_id == "d2")
    assert row.document == "snow word word Snow 2"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--index", "gone"], "there is no index gone at http.*; name another with --index"),
        (["--search-field", "nothing"], f"no query finds anything on {INDEX}; name what to search with --search-field"),
        (["--field", "nothing"], f"no document of {INDEX} has a text in nothing; name the fields to read with --field"),
        (["--scale", "best"], "--scale is 'best'; name one of graded, umbrela, binary"),
        (["--endpoint", "ftp://u:p@host/v1"], "the endpoint is 'ftp://host/v1'; name a URL such as"),
        (["--depth", "4"], "--depth is 4, too few for 2 first and 3 random documents"),
        (["--body", "b.json", "--search-field", "a"], "--search-field and --body are both given"),
        (["--concurrency", "0"], "concurrency is 0; name a number above 0"),
        (["--split", "train"], "--split is 'train', but a file of queries has no splits"),
    ],
)
def test_wrong_options_are_told_before_anything_is_written(
    engine: str, queries: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    values = ["--index", INDEX, "--engine", engine, "--queries", queries, "--model", "m", "--first", 2, "--random", 3]
    values += ["--out", tmp_path / "out.jsonl", "--endpoint", "http://127.0.0.1:9/v1"]
    if "--field" not in arguments:
        values += ["--field", "name"]
    if "--search-field" not in arguments:
        values += ["--search-field", "name"]
    with pytest.raises(SettingsError, match=sentence):
        raise _invoke(*values, *arguments).exception  # type: ignore[misc]
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.model
def test_a_real_small_model_is_asked_and_every_pair_is_accounted_for(
    engine: str, queries: Path, tmp_path: Path
) -> None:
    arguments = _list_arguments(engine, queries, "--limit", 1, "--first", 1, "--random", 0, "--max-words", 5, "--json")
    arguments += ["--scale", "umbrela"]
    with run_llama_server(tmp_path) as url:
        free = _invoke(*arguments, "--endpoint", url, "--out", tmp_path / "free.jsonl", "--max-tokens", 20)
        bound = _invoke(*arguments, "--endpoint", url, "--out", tmp_path / "bound.jsonl", "--json-schema")
    free_counts, bound_counts = (json.loads(result.stdout) for result in (free, bound))
    # So small a model writes no JSON by itself, and has no room for it here. The schema leaves it nothing else to write.
    assert (free_counts["asked"], free_counts["dropped"], free_counts["written"]) == (1, 1, 0)
    assert isinstance(free.exception, GeneratorError)
    assert (bound_counts["asked"], bound_counts["written"], bound_counts["repaired"]) == (1, 1, 0)
    assert min(free_counts["tokens_in"], bound_counts["tokens_in"]) > 250
    (row,) = read_annotations(tmp_path / "bound.jsonl", DEFAULT_SCALE)
    assert (row.query, row.document, row.model) == ("why is snow white", "snow", "m")
    assert 10 <= len(row.reasoning) <= 400


def test_a_large_model_grades_the_first_documents_of_several_systems_into_qrels(
    engine: str, queries: Path, tmp_path: Path
) -> None:
    table, out, qrels = tmp_path / "table.jsonl", tmp_path / "out.jsonl", tmp_path / "m.qrels"
    table.write_text(json.dumps({"query": "gravel", "text": "snow", "model": "writer"}) + "\n", encoding="utf-8")
    systems = ("--system", "plain", "--system", f"table:{table}", "--random", 0)
    arguments = (*_list_arguments(engine, queries, "--out", out), *systems, "--qrels", qrels)
    server = TeacherServer(make_judge_handler(format_judge_answer(grade=2)))
    result = _invoke_against_server(server, *arguments)
    assert result.exception is None
    assert result.stdout.endswith(f"next: querylift compare A.run B.run --qrels {qrels}\n")
    assert read_qrels(qrels) == {query_id: {"d0": 2, "d1": 2} for query_id in ("1", "2")}
    source = find_grade_source(qrels)
    assert source is not None and source.sentence == "judged by m"


def test_a_large_model_that_wrote_the_expansions_may_not_grade_them(engine: str, queries: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.jsonl"
    table.write_text(json.dumps({"query": "gravel", "text": "snow", "model": "org/M"}) + "\n", encoding="utf-8")
    arguments = (*_list_arguments(engine, queries, "--out", tmp_path / "out.jsonl"), "--system", f"table:{table}")
    server = TeacherServer(make_judge_handler(format_judge_answer()))
    refused = _invoke_against_server(server, *arguments)
    assert "org/M makes the expansions and would also judge them; name another --model" in str(refused.exception)
    assert _invoke_against_server(server, *arguments, "--same-model").exception is None


def test_a_persons_qrels_are_not_written_over_by_a_large_model(engine: str, queries: Path, tmp_path: Path) -> None:
    qrels = tmp_path / "people.qrels"
    qrels.write_text("1 0 d0 3\n", encoding="utf-8")
    arguments = (*_list_arguments(engine, queries, "--out", tmp_path / "out.jsonl"), "--qrels", qrels)
    server = TeacherServer(make_judge_handler(format_judge_answer()))
    refused = _invoke_against_server(server, *arguments)
    assert "was not written by a judge; name another file" in str(refused.exception)
    assert qrels.read_text(encoding="utf-8") == "1 0 d0 3\n"
