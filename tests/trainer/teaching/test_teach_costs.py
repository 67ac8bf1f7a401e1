"""`querylift train teach` asks before a run that costs money."""

import asyncio
import os
import pty
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from querylift.plugin.errors import SettingsError
from querylift.trainer.candidates import read_candidates
from tests.helpers.paths import ROOT
from tests.helpers.teach_command import is_done, run_teach_against_server
from tests.helpers.teacher_server import TeacherServer


def test_a_small_cost_is_shown_with_two_digits(tmp_path: Path, judged_corpus: Path) -> None:
    arguments = [str(judged_corpus), "--split", "train", "--out", str(tmp_path / "out.jsonl"), "--price-out", "0.01"]
    with pytest.raises(SettingsError, match=r"and cost at most about 0\.0000038;"):
        run_teach_against_server(TeacherServer(), *arguments)


def test_a_run_that_costs_money_needs_consent(tmp_path: Path, judged_corpus: Path) -> None:
    arguments = [judged_corpus, "--split", "train", "--out", tmp_path / "out.jsonl"]
    arguments += ["--price-in", "100", "--price-out", "300"]
    server = TeacherServer()
    with pytest.raises(SettingsError) as caught:
        run_teach_against_server(server, *arguments)
    assert str(caught.value).startswith("3 requests to m take about ")
    assert "at most 384 answer tokens, and cost at most about 0." in str(caught.value)
    assert str(caught.value).endswith("; no terminal can ask you, so agree with --yes")
    assert (server.bodies, (tmp_path / "out.jsonl").exists()) == ([], False)
    assert run_teach_against_server(server, *arguments, "--yes")["teacher"]["written"] == 3


def _run_on_terminal(arguments: Sequence[str], *, answer: str) -> tuple[int, str]:
    """Run the command on a terminal of its own, and type `answer` when it asks. Return the exit code and the screen."""
    own_end, process_end = pty.openpty()
    with open(own_end, "r+b", buffering=0) as screen:
        process = subprocess.Popen(
            [sys.executable, "-m", "querylift", "train", "teach", *arguments],
            cwd=ROOT, stdin=process_end, stdout=process_end, stderr=process_end,
        )  # fmt: skip
        os.close(process_end)
        question, screen_text = b"[y/N]:", b""
        with process, suppress(OSError):  # Linux raises it when the process has closed the terminal
            while data := screen.read(1024):
                was_asked, screen_text = question in screen_text, screen_text + data
                if question in screen_text and not was_asked:
                    screen.write(answer.encode() + b"\n")
        return process.returncode, screen_text.decode()


def _teach_on_terminal(server: TeacherServer, out: Path, corpus: Path, *, answer: str) -> tuple[int, str]:
    """Start a run that costs money, and answer the question whether to go on."""
    arguments = [str(corpus), "--split", "train", "--out", str(out), "--model", "m", "--price-out", "300"]

    async def run() -> tuple[int, str]:
        async with server:
            return await asyncio.to_thread(_run_on_terminal, [*arguments, "--endpoint", server.url], answer=answer)

    return asyncio.run(run())


def test_on_a_terminal_a_run_that_costs_money_begins_after_yes(tmp_path: Path, judged_corpus: Path) -> None:
    out, server = tmp_path / "out.jsonl", TeacherServer()
    exit_code, screen_text = _teach_on_terminal(server, out, judged_corpus, answer="y")
    assert exit_code == 0
    assert re.search(
        r"3 requests to m take about \d+ prompt tokens .* cost at most about 0\.12\. Go on\? \[y/N\]:", screen_text
    )
    assert f"candidates: {out}" in screen_text
    assert (len(server.bodies), len(list(read_candidates(out)))) == (3, 3)


@pytest.mark.parametrize("answer", ["n", ""], ids=["no", "nothing"])
def test_on_a_terminal_a_run_without_consent_sends_and_writes_nothing(
    tmp_path: Path, judged_corpus: Path, answer: str
) -> None:
    out, server = tmp_path / "out.jsonl", TeacherServer()
    exit_code, screen_text = _teach_on_terminal(server, out, judged_corpus, answer=answer)
    assert (exit_code, screen_text.splitlines()[-1]) == (1, "Aborted!")
    assert (server.bodies, out.exists(), is_done(out)) == ([], False, False)
