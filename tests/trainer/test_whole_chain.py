"""`train run` on the files of the large students: a made model of the same architecture, a real engine and a real endpoint."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import web

from querylift.index_tools.corpora import corpus_names
from querylift.index_tools.engine import Engine
from querylift.index_tools.indexing import IndexPlan, build_index
from querylift.plugin.settings import parse_settings
from tests.helpers.folders import make_random_model
from tests.helpers.teacher_server import TeacherServer, make_answer


@contextmanager
def run_teacher() -> Iterator[TeacherServer]:
    """Run a teacher in a thread. It answers each question with words of the question, and a sentence of its own."""

    async def answer(request: web.Request) -> web.Response:
        question = (await request.json())["messages"][-1]["content"]
        await asyncio.sleep(0.05)
        return make_answer(f"The documentation of {question[-60:]} names the function and its arguments.")

    server, loop = TeacherServer(answer), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def index(opensearch: str) -> str:
    """An index of the built-in corpus."""
    with Engine(parse_settings({"engine": opensearch})) as engine:
        build_index(engine, corpus_names.load_corpus("builtin"), IndexPlan("whole-chain"))
    return "whole-chain"


def start_run(folder: Path, name: str, *options: str) -> subprocess.Popen[str]:
    """Start `querylift train run` in `folder`, on 12 train queries of the built-in corpus."""
    command = [sys.executable, "-m", "querylift", "train", "run", name, "--corpus", "builtin", *options]
    command += ["--set", "split=all", "--set", "hold_out=95"]
    environment = {**os.environ, "QUERYLIFT_TEACHER_API_KEY": "k"}
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


@pytest.mark.engine
def test_the_chain_of_qwen3_4b_is_killed_in_the_middle_and_goes_on(opensearch: str, index: str, tmp_path: Path) -> None:
    make_random_model(tmp_path / "Qwen3-4B", "made:qwen3")
    work = tmp_path / "runs/qwen3-4b"
    with run_teacher() as teacher:
        options = ["--index", index, "--engine", opensearch, "--endpoint", teacher.url, "--model", "teacher-72b"]
        first_run = start_run(tmp_path, "qwen3-4b", *options)
        while not (work / "sft-1/manifest.json").exists() and first_run.poll() is None:
            time.sleep(0.05)
        first_run.send_signal(signal.SIGKILL)
        first_output = first_run.communicate()[0]
        assert "  3  sft      runs/qwen3-4b/sft-1           to do\n" in first_output
        assert len(teacher.bodies) == 24
        second_run = start_run(tmp_path, "qwen3-4b", *options)
        second_output = second_run.communicate()[0]
    assert second_run.returncode == 0, second_output
    assert "  2  teach    runs/qwen3-4b/teacher.jsonl   done\n  3  sft      runs/qwen3-4b/sft-1           begun\n" in (
        second_output
    )
    assert len(teacher.bodies) == 24  # no question was asked again
    methods = [json.loads(line)["method"] for line in (work / "teacher.jsonl").read_text().splitlines()]
    assert sorted(methods) == ["few-shot"] * 12 + ["zero-shot"] * 12
    served = [json.loads(line) for line in (work / "served-1.jsonl").read_text().splitlines()]
    assert len({row["query"] for row in served}) == 95
    assert json.loads((work / "merged-1/config.json").read_text())["model_type"] == "qwen3"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "querylift: qwen3-4b needs a value for index, endpoint, model; give --index VALUE\n"),
        (
            ("--index", "a", "--set", "index=b"),
            "querylift: --index is 'a' and --set index is 'b'; give one of the two\n",
        ),
    ],
)
def test_a_variable_that_is_missing_or_given_twice_is_named(
    tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    assert start_run(tmp_path, "qwen3-4b", *options).communicate()[0] == sentence
    assert list(tmp_path.iterdir()) == []
