"""`querylift train teach`: its options, its sources together, leaks, and runs that stop and go on."""

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from querylift.plugin.errors import GeneratorError, QueryliftError, SettingsError
from querylift.trainer.candidates import SourceDocument, read_candidates
from querylift.trainer.commands.teach import teach
from tests.helpers.paths import ROOT
from tests.helpers.teach_command import is_done, make_row, run_teach, run_teach_against_server, write_rows
from tests.helpers.teacher_server import TeacherServer, make_answer, make_failing_handler


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
        (["--import", "gone.jsonl", "--limit", "1"], "--limit does not limit --import"),
        (["--judged", "1", "--held-out", "nowhere:dev"], "no corpus 'nowhere'"),
        (["--endpoint", "h", "--model", "m"], "the endpoint is 'h'"),
    ],
)
def test_a_wrong_option_is_reported_in_one_sentence(
    tmp_path: Path, judged_corpus: Path, arguments: list[str], sentence: str
) -> None:
    with pytest.raises(QueryliftError) as caught:
        run_teach(str(judged_corpus), "--split", "train", "--out", str(tmp_path / "out.jsonl"), *arguments)
    assert sentence in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_corpus_with_several_splits_needs_the_name_of_one(tmp_path: Path, judged_corpus: Path) -> None:
    sentence = "^'docs' has several splits: dev, train; name one with --split NAME$"
    with pytest.raises(SettingsError, match=sentence):
        run_teach(str(judged_corpus), "--judged", "1", "--out", str(tmp_path / "out.jsonl"))


def test_a_negative_number_of_relevant_documents_is_refused(tmp_path: Path, judged_corpus: Path) -> None:
    result = CliRunner().invoke(teach, [str(judged_corpus), "--judged", "-1", "--out", str(tmp_path / "out.jsonl")])
    assert (result.exit_code, "--judged" in result.output) == (2, True)


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        (["modle=72B"], "has modle=72B; choose rows that it has"),
        (["model=72B", "params.mode=fs", "params.mode=xs"], "has params.mode=fs or xs; choose"),
        (["model=7B", "method=mugi"], "has model=7B and method=mugi; choose"),
    ],
)
def test_conditions_that_no_row_meets_are_named(
    tmp_path: Path, judged_corpus: Path, where: list[str], sentence: str
) -> None:
    source = write_rows(tmp_path / "in.jsonl", make_row("1", "a", method="mugi"), make_row("2", "b", model="7B"))
    conditions = [argument for item in where for argument in ("--where", item)]
    arguments = [judged_corpus, "--split", "train", "--import", source, "--out", tmp_path / "out.jsonl"]
    with pytest.raises(SettingsError) as caught:
        run_teach(*arguments, *conditions)
    assert f"no row of {source} {sentence}" in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_an_imported_file_without_rows_is_refused(tmp_path: Path, judged_corpus: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl")
    with pytest.raises(SettingsError, match=r"in\.jsonl holds no expansions; name another file"):
        run_teach(str(judged_corpus), "--split", "train", "--import", str(source), "--out", str(tmp_path / "out.jsonl"))


def test_a_run_without_a_candidate_is_not_done(tmp_path: Path, judged_corpus: Path) -> None:
    arguments = [judged_corpus, "--split", "train"]
    held_out = ["--judged", "1", "--drop-leaks", "--held-out", f"{judged_corpus}:train"]
    with pytest.raises(SettingsError, match=r"there is nothing to collect: .*all are held out"):
        run_teach(*arguments, *held_out, "--out", tmp_path / "a.jsonl")
    source = write_rows(tmp_path / "in.jsonl", make_row("1", "<b></b>"))
    with pytest.raises(GeneratorError, match=r"b\.jsonl holds no candidate"):
        run_teach(*arguments, "--import", source, "--out", tmp_path / "b.jsonl")


def test_a_spent_token_budget_leaves_the_stage_unfinished_and_names_the_remedy(
    tmp_path: Path, judged_corpus: Path
) -> None:
    out = tmp_path / "out.jsonl"
    arguments = [str(judged_corpus), "--split", "train", "--out", str(out), "--concurrency", "1"]
    with pytest.raises(GeneratorError) as caught:
        run_teach_against_server(TeacherServer(), *arguments, "--token-budget", "1")
    assert str(caught.value) == (
        "3 requests are left: 0 failed, 3 beyond the token budget; "
        "raise --token-budget: 1 does not pay for the first of them"
    )
    assert not is_done(out)
    with pytest.raises(GeneratorError, match=r"^2 requests are left: .*; run the same command again to go on$"):
        run_teach_against_server(TeacherServer(), *arguments, "--token-budget", "250")
    assert (len(list(read_candidates(out))), is_done(out)) == (1, False)
    assert run_teach_against_server(TeacherServer(), *arguments)["teacher"]["written"] == 2
    assert is_done(out)


def test_a_limit_cuts_the_queries_with_relevant_documents(tmp_path: Path, judged_corpus: Path) -> None:
    out = tmp_path / "out.jsonl"
    run_teach(str(judged_corpus), "--split", "train", "--out", str(out), "--judged", "1", "--limit", "1")
    assert [candidate.query_id for candidate in read_candidates(out)] == ["1"]


def test_by_document_a_relevant_document_of_a_held_out_query_is_refused_or_left_out(
    tmp_path: Path, judged_corpus: Path
) -> None:
    arguments = [judged_corpus, "--split", "train", "--judged", "2"]  # d1 is relevant to query 1 and to query 8 of dev
    assert run_teach(*arguments, "--out", tmp_path / "by-query.jsonl")["given"]["written"] == 5
    by_document = [*arguments, "--held-out-by", "document", "--out", tmp_path / "out.jsonl"]
    with pytest.raises(
        SettingsError, match=r"^1 training text is .*'d1' of '1' is relevant to '8' of docs:dev \(the same"
    ):
        run_teach(*by_document)
    results = run_teach(*by_document, "--drop-leaks")
    assert (results["dropped"], results["dropped_by_document"], results["given"]["written"]) == (0, 1, 4)
    documents = [candidate.document for candidate in read_candidates(tmp_path / "out.jsonl")]
    assert documents[0] == SourceDocument("docs", "d2")
    assert SourceDocument("docs", "d1") not in documents
    with pytest.raises(SettingsError, match=r"another setting \(held_out_by document, now None\)"):
        run_teach(*arguments, "--drop-leaks", "--out", tmp_path / "out.jsonl")


def test_by_document_an_imported_text_of_a_held_out_document_is_left_out_and_counted(
    tmp_path: Path, judged_corpus: Path
) -> None:
    text = "Rainbows Light bends. " + " ".join(f"w{n}" for n in range(100))
    source = write_rows(tmp_path / "in.jsonl", make_row("1", text), make_row("1", "Drops of rain."))
    arguments = [str(judged_corpus), "--split", "train", "--import", str(source), "--out", str(tmp_path / "out.jsonl")]
    result = CliRunner().invoke(teach, [*arguments, "--held-out-by", "document", "--drop-leaks"])
    assert result.stdout.splitlines()[:2] == [
        "1 rows left out: their documents are relevant to held-out queries",
        "given: 1 written, 0 there before, 0 without words, 0 did not end",
    ]


def test_by_document_a_query_that_shares_a_held_out_document_is_never_an_example(
    tmp_path: Path, judged_corpus: Path
) -> None:
    arguments = [judged_corpus, "--split", "train", "--prompt", "few-shot", "--shots", "3", "--held-out-by", "document"]
    server = TeacherServer()
    run_teach_against_server(server, *arguments, "--out", tmp_path / "out.jsonl")
    assert server.bodies
    assert not [body for body in server.bodies if "Light bends" in str(body)]


def test_a_held_out_query_is_never_an_example(tmp_path: Path, judged_corpus: Path) -> None:
    held_out_corpus = tmp_path / "held"
    held_out_corpus.mkdir()
    write_rows(
        held_out_corpus / "queries.jsonl",
        {"_id": "x", "text": "why do cats purr?"},
        {"_id": "y", "text": "causes of a rainbow"},
    )
    arguments = [
        str(judged_corpus),
        "--split",
        "train",
        "--out",
        str(tmp_path / "out.jsonl"),
        "--held-out",
        str(held_out_corpus),
    ]
    arguments += ["--drop-leaks", "--prompt", "few-shot", "--shots", "3"]
    with pytest.raises(SettingsError, match="docs has no judged query to show"):
        run_teach_against_server(TeacherServer(), *arguments, "--held-out", f"{judged_corpus}:train")
    server = TeacherServer()
    results = run_teach_against_server(server, *arguments, "--held-out", f"{judged_corpus}:dev")
    assert results["dropped"] == 2
    assert not [body for body in server.bodies if "purr" in str(body) or "rainbow" in str(body)]


def test_the_command_collects_from_a_teacher_a_file_and_the_judgments(tmp_path: Path, judged_corpus: Path) -> None:
    out = tmp_path / "out.jsonl"
    source = write_rows(tmp_path / "in.jsonl", make_row("1", "a"), make_row("2", "b", model="7B"))
    arguments = [judged_corpus, "--split", "train", "--out", out]
    arguments += ["--import", f"other={source}", "--where", "model=72B"]
    arguments += ["--judged", "1", "--prompt", "few-shot", "--shots", "1", "--limit", "2"]
    server = TeacherServer()
    results = run_teach_against_server(server, *arguments)
    assert results["given"] == {"written": 3, "known": 0, "empty": 0, "without_end": 1}
    assert (results["teacher"]["written"], results["dropped"]) == (2, 0)
    assert [len(body["messages"]) for body in server.bodies] == [4, 4]
    methods = [(c.method, c.query_id) for c in read_candidates(out)]
    assert methods[0] == ("query2doc", "other:1")
    assert sorted(methods[3:]) == [("few-shot", "1"), ("few-shot", "2")]
    manifest = json.loads((tmp_path / "out.jsonl.manifest.json").read_text(encoding="utf-8"))
    assert (manifest["stage"], manifest["done"], manifest["results"]) == ("teach", True, results)
    assert "127.0.0.1" not in json.dumps(manifest["settings"])

    repeated = run_teach_against_server(TeacherServer(), *arguments, "--concurrency", "1")
    assert (repeated["given"]["known"], repeated["teacher"]["written"]) == (3, 0)
    with pytest.raises(SettingsError, match=r"begun with another setting \(judged 1, now 2\)"):
        run_teach_against_server(TeacherServer(), *arguments, "--judged", "2")


def test_the_summary_counts_written_and_unanswered_requests(tmp_path: Path, judged_corpus: Path) -> None:
    server = TeacherServer(make_failing_handler(400, times=1))

    async def run() -> Result:
        async with server:
            arguments = [str(judged_corpus), "--split", "train", "--out", str(tmp_path / "out.jsonl")]
            arguments += [
                "--judged",
                "1",
                "--yes",
                "--endpoint",
                server.url,
                "--model",
                "m",
                "--concurrency",
                "1",
                "--price-out",
                "1000",
            ]
            return await asyncio.to_thread(CliRunner().invoke, teach, arguments)

    result = asyncio.run(run())
    assert str(result.exception).startswith(
        "1 request is left: 1 failed, 0 beyond the token budget; run the same command"
    )
    assert re.sub(r"\d+\.\d candidates", "N candidates", result.stdout).splitlines() == [
        "given: 3 written, 0 there before, 0 without words, 1 did not end",
        "teacher: 2 written, 0 without words, 0 refused, 1 failed, 0 repeat a held-out document, 0 did not end; "
        "100 prompt and 20 answer tokens; N candidates per second, cost 0.020",
        f"candidates: {tmp_path / 'out.jsonl'}",
    ]


def test_the_other_splits_are_held_out_by_default(tmp_path: Path, judged_corpus: Path) -> None:
    source = write_rows(
        tmp_path / "in.jsonl",
        make_row("1", "a"),
        make_row("1", "b") | {"query_id": "8", "query": "what makes thunder loud"},
    )
    arguments = [str(judged_corpus), "--split", "train", "--import", str(source), "--out"]
    with pytest.raises(SettingsError, match=r"1 training query is in an evaluation split: '8' is '8' of docs:dev"):
        run_teach(*arguments, str(tmp_path / "a.jsonl"))
    assert not (tmp_path / "a.jsonl").exists()
    results = run_teach(*arguments, str(tmp_path / "b.jsonl"), "--drop-leaks")
    assert (results["dropped"], results["given"]["written"]) == (1, 1)
    assert run_teach(*arguments, str(tmp_path / "c.jsonl"), "--held-out", "none")["given"]["written"] == 2
    run_teach(*arguments, str(tmp_path / "d.jsonl"), "--held-out", f"{judged_corpus}:train", "--drop-leaks")
    assert [c.query_id for c in read_candidates(tmp_path / "d.jsonl")] == ["8"]


def test_an_answer_that_repeats_a_held_out_document_is_counted_and_not_written(
    tmp_path: Path, judged_corpus: Path
) -> None:
    document = "Rainbows Light bends. " + " ".join(f"w{n}" for n in range(100))  # relevant to the query of docs:dev
    answers = iter([document, "Light bends in drops.", f"{document} and more"])

    async def answer_next(request: web.Request) -> web.Response:
        return make_answer(next(answers))

    out = tmp_path / "out.jsonl"
    arguments = [str(judged_corpus), "--split", "train", "--held-out-by", "document", "--out", str(out)]
    results = run_teach_against_server(TeacherServer(answer_next), *arguments, "--concurrency", "1")
    assert (results["teacher"]["written"], results["teacher"]["held_out"]) == (1, 2)
    assert [candidate.text for candidate in read_candidates(out)] == ["Light bends in drops."]


def test_a_killed_run_goes_on_and_writes_each_answer_once(tmp_path: Path) -> None:
    folder, out = tmp_path / "many", tmp_path / "out.jsonl"
    folder.mkdir()
    rows = [{"_id": str(n), "text": f"question number {n}"} for n in range(60)]
    write_rows(folder / "queries.jsonl", *rows)
    code = "import sys; from querylift.trainer.commands.teach import teach; teach(sys.argv[1:])"

    async def answer_slowly(request: web.Request) -> web.Response:
        await asyncio.sleep(0.03)
        return make_answer("A passage. " * 40)

    async def run() -> tuple[int, int]:
        async with TeacherServer(answer_slowly) as server:
            arguments = [str(folder), "--out", str(out), "--endpoint", server.url, "--model", "m", "--concurrency", "4"]
            command_line = [sys.executable, "-c", code, *arguments]
            killed_run = await asyncio.create_subprocess_exec(*command_line, cwd=ROOT)
            while not out.exists() or out.read_bytes().count(b"\n") < 10:
                await asyncio.sleep(0.01)
                assert killed_run.returncode is None
            killed_run.kill()
            await killed_run.wait()
            with out.open("ab") as stream:  # an incomplete last line
                stream.write(b'{"query_id": "5')
            written_count = out.read_bytes().count(b"\n")
            request_count = len(server.bodies)
            second_run = await asyncio.create_subprocess_exec(*command_line, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
            stdout, _ = await second_run.communicate()
            assert second_run.returncode == 0
            assert stdout.decode().startswith(f"teacher: {60 - written_count} written")
            return written_count, len(server.bodies) - request_count

    written_count, second_request_count = asyncio.run(run())
    assert 10 <= written_count < 60
    assert second_request_count == 60 - written_count
    assert sorted(int(c.query_id) for c in read_candidates(out)) == list(range(60))
