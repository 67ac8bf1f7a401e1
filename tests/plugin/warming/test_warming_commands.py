"""`querylift warm` and `export-table`, as a user meets them."""

import json
import re
from pathlib import Path

import pytest

from tests.helpers.warming import read_json_lines
from tests.helpers.warming_commands import Endpoint, run_querylift, write_log, write_settings


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (["warm", "log.txt"], {}, "set cache.file to a file that serve reads too, or cache.url to a Valkey or Redis"),
        (["warm", "gone.txt"], {"QUERYLIFT_CACHE__FILE": "kept.db"}, "'gone.txt' cannot be read: No such file"),
        (["warm", "log.txt", "--index", "x"], {"QUERYLIFT_CACHE__FILE": "kept.db"}, "searches on 'x' are not expanded"),
        (["warm", "log.txt"], {"QUERYLIFT_CACHE__FILE": "no/kept.db"}, "cache.file is no/kept.db: it cannot be used"),
        (["warm", "log.txt"], {"QUERYLIFT_CACHE__FILE": "k", "QUERYLIFT_CACHE__URL": "redis://h"}, "are both set"),
        (["warm", "log.txt"], {"QUERYLIFT_CACHE__URL": "redis://127.0.0.1:9"}, "cache.url does not keep"),
        (
            ["warm", "log.txt"],
            {"QUERYLIFT_CACHE__FILE": "kept.db", "QUERYLIFT_GENERATOR": "feedback"},
            "generator is 'feedback', which reads the index; name it with --index",
        ),
        (["warm", "log.txt"], {"QUERYLIFT_CACHE__FILE": "kept.db", "QUERYLIFT_GENERATOR": "gpt"}, "generator is 'gpt'"),
        (["export-table", "log.txt", "--out", "log.txt"], {}, "log.txt exists; delete it, or name another --out"),
        (["export-table", "log.txt", "--out", "no/t.jsonl"], {}, "no/t.jsonl.part cannot be written"),
        (["export-table", "log.txt", "--out", "t"], {"QUERYLIFT_GENERATOR": "feedback"}, "a table serves every index"),
    ],
)
def test_a_wrong_argument_is_one_sentence_and_exit_code_2(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], sentence: str
) -> None:
    write_settings(tmp_path, "http://127.0.0.1:9/v1", cache=False)
    write_log(tmp_path, "axon terminal")
    result = run_querylift(tmp_path, *arguments, **environment)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_a_log_can_come_from_standard_input_and_skipped_queries_are_counted_by_reason(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    write_settings(tmp_path, endpoint.generator)
    stdin = 'axon terminal\nwhat is an axon\t5\naxon  terminal\n\n"axon terminal"\nB00X-12\n'
    result = run_querylift(tmp_path, "warm", "-", "--concurrency", "1", stdin=stdin)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.sub(r"[\d.]+ made a", "N made a", result.stdout) == (
        "5 queries, 4 distinct: 2 made, 0 already there, 2 skipped (code 1, quoted 1), 0 failed; N made a second\n"
    )
    assert endpoint.asked_queries == ["what is an axon", "axon terminal"]
    explanation = json.loads(run_querylift(tmp_path, "explain", "axon terminal", "--index", "docs", "--json").stdout)
    assert (explanation["outcome"], len(endpoint.asked_queries)) == ("cached", 2)


def test_a_query_that_fails_is_exit_code_1_and_its_text_is_not_printed(tmp_path: Path, endpoint: Endpoint) -> None:
    write_settings(tmp_path, endpoint.generator)
    write_log(tmp_path, "axon terminal", "poison ivy", "what is an axon")
    endpoint.failing_word = "poison"
    result = run_querylift(tmp_path, "warm", "log.txt", "--concurrency", "2")
    assert result.returncode == 1
    assert "2 made, 0 already there, 0 skipped, 1 failed;" in result.stdout
    assert re.fullmatch(
        r"querylift: 1 of 3 queries failed, the first one because http\S+ answered with status 500; "
        r"run the same command again to retry them\n",
        result.stderr,
    )
    assert not {"poison", "ivy", "axon"} & set(re.findall(r"\w+", result.stdout + result.stderr))
    endpoint.failing_word = "no such words"
    second_result = run_querylift(tmp_path, "warm", "log.txt")
    assert (second_result.returncode, "1 made, 2 already there" in second_result.stdout) == (0, True)


def test_a_table_lacks_a_query_that_failed_until_a_second_run_succeeds(tmp_path: Path, endpoint: Endpoint) -> None:
    write_settings(tmp_path, endpoint.generator, cache=False)
    write_log(tmp_path, "axon terminal", "poison ivy")
    endpoint.failing_word = "poison"
    command = ("export-table", "log.txt", "--out", "t.jsonl")
    assert run_querylift(tmp_path, *command).returncode == 1
    assert [row["query"] for row in read_json_lines(tmp_path / "t.jsonl")] == ["axon terminal"]
    endpoint.failing_word = "no such words"
    result = run_querylift(tmp_path, *command)
    assert (result.returncode, result.stdout.splitlines()[0]) == (0, "t.jsonl: 2 queries")
    assert [row["query"] for row in read_json_lines(tmp_path / "t.jsonl")] == ["axon terminal", "poison ivy"]
    assert not (tmp_path / "t.jsonl.part").exists()


def test_more_queries_than_the_cache_file_keeps_are_a_warning(tmp_path: Path, endpoint: Endpoint) -> None:
    write_settings(tmp_path, endpoint.generator)
    write_log(tmp_path, "rare words", "axon terminal\t9", "what is an axon\t5")
    result = run_querylift(tmp_path, "warm", "log.txt", QUERYLIFT_CACHE__SIZE="2")
    assert result.returncode == 0
    assert result.stderr == (
        "cache.size is 2, and a cache file keeps no more entries: only the 2 most frequent of 3 queries are warmed; "
        "raise cache.size, for serve too\n"
    )
    assert "3 distinct: 2 made, 0 already there, 0 skipped, 0 failed, 1 left" in result.stdout
    assert sorted(endpoint.asked_queries) == ["axon terminal", "what is an axon"]
