"""The command line, as a user meets it."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from querylift.plugin.commands.main import COMMANDS_ENTRY_POINT, load_command
from querylift.plugin.errors import MissingExtra

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("QUERYLIFT_") or k == "QUERYLIFT_CACHE"}


def _run_querylift(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "querylift", *arguments]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=280)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["serve", "--config", "gone.toml"], "gone.toml does not exist"),
        (["explain", "words", "--index", "docs", "--generator", "gpt"], "generator is 'gpt'; use one of"),
        (["explain", "words", "--index", "docs", "--generator", "llama:gone.gguf"], "gone.gguf"),
        (["table", "gone.jsonl", "--out", "t.jsonl"], "'gone.jsonl' cannot be read: No such file"),
        (["warm", "q.txt"], "generator is 'none', so there is no expansion to make; set generator in querylift.toml"),
        (["export-table", "q.txt", "--out", "t.jsonl"], "generator is 'none', so there is no expansion to make"),
        (["table", "gone.jsonl", "--where", "model", "--out", "t.jsonl"], "--where is 'model'; write KEY=VALUE"),
        (["index", "nonsense", "--index", "i"], "nonsense"),
        (["index", "builtin", "--index", "i", "--k1", "-1"], "k1 is -1.0"),
        (["index", "builtin", "--index", "i", "--k1", "nan"], "k1 is nan; use 0 or more"),
        (["evaluate", "builtin", "--index", "i"], "either --generator or --via"),
        (["evaluate", "builtin", "--index", "i", "--generator", "none", "--weight", "99"], "weight is 99"),
        (["evaluate", "builtin", "--index", "i", "--generator", "none", "--split", "dev"], "--split is 'dev'"),
        (
            ["evaluate", "builtin", "--index", "i", "--generator", "none", "--body", "gone.json"],
            "'gone.json' cannot be read",
        ),
        (
            ["evaluate", "builtin", "--index", "i", "--via", "http://h", "--weight", "0.3"],
            "--via uses the proxy's own mode and weight",
        ),
        (["compare", "a.run", "b.run", "--qrels", "q"], "'q' cannot be read"),
        (
            ["expander", "build", "i", "--out", "o", "--form", "terms", "--form=cluster"],
            "--form is given as 'terms' and 'cluster'; give it once",
        ),
        (
            ["warm", "q", "--concurrency", "1", "--concurrency", "2"],
            "--concurrency is given as '1' and '2'; give it once",
        ),
        (["train", "pairs", "x", "--out", "o", "--floor", "--no-floor"], "--floor is given as True and False"),
    ],
)
def test_a_wrong_argument_is_one_sentence_and_exit_code_2(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    result = _run_querylift(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments", [["index", "builtin", "--index", "i"], ["evaluate", "builtin", "--index", "i", "--generator", "none"]]
)
def test_an_engine_that_does_not_answer_is_one_sentence_and_exit_code_1(tmp_path: Path, arguments: list[str]) -> None:
    result = _run_querylift(*arguments, "--engine", "http://127.0.0.1:9", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "querylift: no search engine answers at http://127.0.0.1:9; "
        "start one with `querylift node up`, or name another with --engine\n"
    )


def test_an_option_that_takes_several_values_and_one_without_a_value_may_be_repeated(tmp_path: Path) -> None:
    build = (
        "expander",
        "build",
        "i",
        "--out",
        "o",
        "--text",
        "title",
        "--text",
        "body",
        "--engine",
        "http://127.0.0.1:9",
    )
    assert "no search engine answers" in _run_querylift(*build, cwd=tmp_path).stderr
    result = _run_querylift("explain", "words", "--index", "i", "--json", "--json", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


def test_an_address_in_use_is_named(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken_socket:
        listen = f"127.0.0.1:{taken_socket.getsockname()[1]}"
        result = _run_querylift("serve", cwd=tmp_path, QUERYLIFT_LISTEN=listen, QUERYLIFT_GENERATOR="none")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"cannot listen on {listen}" in result.stderr


def test_explain_prints_the_sent_search_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "table.jsonl").write_text('{"query": "download a page", "text": "urlopen fetches"}\n', encoding="utf-8")
    (tmp_path / "querylift.toml").write_text(
        'generator = "table:table.jsonl"\n[index.docs]\nweight = 0.3\n', encoding="utf-8"
    )
    explanation = json.loads(
        _run_querylift("explain", "download a page", "--index", "docs", "--json", cwd=tmp_path).stdout
    )
    assert explanation["body"]["query"]["bool"]["should"][0]["match"]["text"]["boost"] == 0.3
    plain = _run_querylift("explain", "download a page", "--index", "other", cwd=tmp_path).stdout
    assert plain.startswith("skipped: no settings table allows expansion on every index searched\nsent:\n")


@pytest.mark.parametrize(
    ("package", "extra"), [("index_tools", "index"), ("trainer", "train"), ("quantize", "quantize")]
)
def test_a_command_without_its_packages_names_the_extra_to_install(package: str, extra: str) -> None:
    entry = EntryPoint("gone", f"querylift.{package}.commands.gone:gone", COMMANDS_ENTRY_POINT)
    with pytest.raises(MissingExtra, match=rf"pip install '\.\[{extra}\]'"):
        load_command(entry)


@pytest.mark.engine
def test_a_corpus_is_indexed_evaluated_and_compared(tmp_path: Path, opensearch: str) -> None:
    table = [{"query": "go over two lists side by side", "text": "zip iterables parallel tuples iterate"}]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    engine = ("--engine", opensearch, "--index", "commands-builtin")
    index_result = _run_querylift("index", "builtin", *engine, cwd=tmp_path)
    assert index_result.returncode == 0, index_result.stderr
    assert index_result.stdout.startswith("commands-builtin: 5")
    evaluate_result = _run_querylift(
        "evaluate", "builtin", *engine, "--generator", "table:table.jsonl", "--out", "out", cwd=tmp_path
    )
    assert evaluate_result.returncode == 0, evaluate_result.stderr
    assert "queries: 1 expanded, 106 skipped, 0 failed" in evaluate_result.stdout
    assert (tmp_path / "out/plain.run").read_text() != (tmp_path / "out/expanded.run").read_text()
    assert "Leave expansion off" in evaluate_result.stdout
    assert all(len(line) <= 80 for line in evaluate_result.stdout.splitlines() if not line.startswith("report"))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "expanded.run",
        "expansions.jsonl",
        "plain.run",
        "qrels.txt",
        "report.html",
    }
    wrong_field_result = _run_querylift(
        "evaluate", "builtin", *engine, "--generator", "none", "--field", "nowhere", cwd=tmp_path
    )
    assert (wrong_field_result.returncode, wrong_field_result.stderr) == (
        2,
        "querylift: no query finds anything on commands-builtin; name what to search with --field or --body\n",
    )
    grade_result = _run_querylift(
        "evaluate", "builtin", *engine, "--generator", "none", "--relevant-from", "9", cwd=tmp_path
    )
    assert (grade_result.returncode, grade_result.stderr.count("\n")) == (2, 1)
    tls_result = _run_querylift(
        "index", "builtin", "--index", "i", "--engine", opensearch.replace("http", "https"), cwd=tmp_path
    )
    assert (tls_result.returncode, "cannot be reached over TLS" in tls_result.stderr) == (1, True)
    runs = ("compare", "out/plain.run", "out/expanded.run", "--qrels", "out/qrels.txt", "--json")
    compared = json.loads(_run_querylift(*runs, cwd=tmp_path).stdout)
    as_json = json.loads(
        _run_querylift(
            "evaluate", "builtin", *engine, "--generator", "table:table.jsonl", "--json", cwd=tmp_path
        ).stdout
    )
    assert as_json["systems"][1]["outcomes"] == {"skipped;nothing": 106, "expanded": 1}
    counts = {k: as_json["systems"][1]["comparison"][k] for k in ("wins", "ties", "losses")}
    assert sum(counts.values()) == 107
    assert json.dumps(compared).count("ndcg_at_10") >= 1


@pytest.mark.engine
@pytest.mark.model
def test_the_demo_measures_three_systems_and_stops_what_it_started(tmp_path: Path) -> None:
    result = _run_querylift("demo", "--report", "report.html", cwd=tmp_path, QUERYLIFT_CACHE=_find_cache_folder())
    assert result.returncode == 0, result.stderr
    for line in (
        "no expansion",
        "RM3 feedback",
        "language model",
        "fast expander",
        "Report: report.html",
        "are stopped",
    ):
        assert line in result.stdout
    assert "<svg" in (tmp_path / "report.html").read_text(encoding="utf-8")
    processes = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False)
    assert processes.stdout == ""


def _find_cache_folder() -> str:
    from querylift.plugin.files import find_cache_folder

    return str(find_cache_folder())
