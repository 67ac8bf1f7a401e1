"""A run that is stopped or killed keeps its expansions, and the same command makes the others."""

import resource
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.warming import QUERIES, read_json_lines
from tests.helpers.warming_commands import (
    Endpoint,
    accept_interrupts,
    make_popen_options,
    read_cache_values,
    run_querylift,
    wait_until,
    write_log,
    write_settings,
)


def test_a_full_disk_ends_the_run_and_its_expansions_are_kept(tmp_path: Path, endpoint: Endpoint) -> None:
    """A limit on the size of files stands for the full disk."""
    write_settings(tmp_path, endpoint.generator, cache=False)
    write_log(tmp_path, *(f"axon terminal {'very ' * 30} number {'x' * i}" for i in range(1, 31)))

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    options = make_popen_options("export-table", "log.txt", "--out", "t.jsonl")
    result = subprocess.run(
        cwd=tmp_path, capture_output=True, timeout=120, check=False, preexec_fn=limit_file_size, **options
    )
    assert result.returncode == 1
    assert result.stderr == (
        "querylift: t.jsonl.part cannot be extended: File too large; free some space and run the same command again\n"
    )
    assert (tmp_path / "t.jsonl.part").read_bytes().endswith(b"}\n")
    second_result = run_querylift(tmp_path, "export-table", "log.txt", "--out", "t.jsonl")
    assert (second_result.returncode, second_result.stdout.splitlines()[0]) == (0, "t.jsonl: 30 queries")
    table_queries = {row["query"] for row in read_json_lines(tmp_path / "t.jsonl")}
    assert table_queries == set(endpoint.answered_queries) and len(table_queries) == 30


def test_control_c_ends_the_run_cleanly_and_the_same_command_resumes_it(tmp_path: Path, endpoint: Endpoint) -> None:
    write_settings(tmp_path, endpoint.generator)
    write_log(tmp_path, *QUERIES)
    endpoint.max_answers = 5
    options = make_popen_options("warm", "log.txt", "--concurrency", "3")
    with subprocess.Popen(
        cwd=tmp_path,
        preexec_fn=accept_interrupts,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    ) as process:
        assert wait_until(
            lambda: len(read_cache_values(tmp_path)) == 5 and len(endpoint.asked_queries) == 8, timeout_s=60
        )
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert "12 distinct: 5 made, 0 already there, 0 skipped, 0 failed, 7 left;" in output
    endpoint.max_answers = 10**9
    second_result = run_querylift(tmp_path, "warm", "log.txt")
    assert "7 made, 5 already there" in second_result.stdout
    assert Counter(endpoint.answered_queries) == Counter(QUERIES)


@pytest.mark.parametrize("command", [("warm", "log.txt"), ("export-table", "log.txt", "--out", "t.jsonl")])
def test_after_a_kill_no_expansion_is_made_twice_and_none_is_missing(
    tmp_path: Path, endpoint: Endpoint, command: tuple[str, ...]
) -> None:
    write_settings(tmp_path, endpoint.generator, cache=command[0] == "warm")
    write_log(tmp_path, *QUERIES)
    endpoint.max_answers = 5

    def count_stored() -> int:
        part = tmp_path / "t.jsonl.part"
        if command[0] == "warm":
            return len(read_cache_values(tmp_path))
        return part.read_bytes().count(b"\n") - 1 if part.exists() else 0

    options = make_popen_options(*command, "--concurrency", "3")
    with subprocess.Popen(cwd=tmp_path, stdout=subprocess.DEVNULL, **options) as process:
        assert wait_until(lambda: count_stored() == 5 and len(endpoint.asked_queries) == 8, timeout_s=60)
        process.kill()
    endpoint.max_answers = 10**9
    second_result = run_querylift(tmp_path, *command)
    assert second_result.returncode == 0, second_result.stderr
    assert "7 made, 5 already there" in second_result.stdout
    assert Counter(endpoint.answered_queries) == Counter(QUERIES)
    if command[0] == "warm":
        assert len(read_cache_values(tmp_path)) == 12
    else:
        assert [row["query"] for row in read_json_lines(tmp_path / "t.jsonl")] == list(QUERIES)
