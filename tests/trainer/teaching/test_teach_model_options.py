"""The options of `querylift train teach` that say how a model is asked: the switch for thinking, and keys of the server."""

import json
from pathlib import Path

import pytest

from querylift.plugin.errors import SettingsError
from tests.helpers.teach_command import run_teach, run_teach_against_server
from tests.helpers.teacher_server import TeacherServer


def test_the_command_passes_the_switch_and_the_keys_on_and_records_them(tmp_path: Path, judged_corpus: Path) -> None:
    server, out = TeacherServer(), tmp_path / "out.jsonl"
    arguments = [judged_corpus, "--split", "train", "--out", out, "--no-thinking", "--extra-body", '{"top_p": 0.8}']
    results = run_teach_against_server(server, *arguments)
    expected = {"top_p": 0.8, "chat_template_kwargs": {"enable_thinking": False}}
    assert all(body.items() >= expected.items() for body in server.bodies)
    manifest = json.loads((tmp_path / "out.jsonl.manifest.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["teacher"]["extra_body"] == expected
    assert results["teacher"]["per_second"] > 0
    assert manifest["results"]["teacher"]["seconds"] > 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--extra-body", "{"], "--extra-body is '{': it is not JSON"),
        (["--extra-body", "[1]"], r"--extra-body is '\[1\]': it is no JSON object; write one such as"),
        (["--extra-body", '{"model": "x"}'], "--extra-body: 'model' is a key that Querylift sets itself; leave it out"),
    ],
)
def test_an_extra_body_that_cannot_be_sent_is_refused(
    tmp_path: Path, judged_corpus: Path, options: list[str], problem: str
) -> None:
    arguments = [judged_corpus, "--split", "train", "--out", tmp_path / "o.jsonl", *options]
    with pytest.raises(SettingsError, match=problem):
        run_teach_against_server(TeacherServer(), *arguments)


def test_the_switch_without_a_teacher_is_refused(tmp_path: Path, judged_corpus: Path) -> None:
    with pytest.raises(SettingsError, match="--thinking needs a teacher; give --endpoint and --model, or leave it out"):
        run_teach(judged_corpus, "--split", "train", "--out", tmp_path / "o.jsonl", "--judged", 1, "--no-thinking")
