"""A manifest records what a stage was made from, and refuses to go on with anything else."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from querylift.plugin.errors import SettingsError
from querylift.trainer.manifest import Manifest, collect_versions, compute_digest, locate_manifest
from tests.helpers.paths import ROOT


def _open_manifest(out: Path, source: Path, **changes: Any) -> Manifest:
    arguments: dict[str, Any] = {
        "stage": "score",
        "inputs": {"candidates": source},
        "settings": {"depth": 100},
        "seed": 7,
    }
    return Manifest(out, **(arguments | changes))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("one\n", encoding="utf-8")
    return path


def _run_to_end(out: Path, manifest: Manifest) -> None:
    with manifest.record_run() as results:
        out.write_text("made\n", encoding="utf-8")
        results["rows"] = 3


def test_a_finished_stage_is_done_and_says_what_it_was_made_from(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    manifest = _open_manifest(out, source)
    assert not manifest.is_done
    _run_to_end(out, manifest)
    reopened = _open_manifest(out, source)
    assert (manifest.is_done, reopened.is_done, reopened.results) == (True, True, {"rows": 3})
    record = json.loads((tmp_path / "out.jsonl.manifest.json").read_text(encoding="utf-8"))
    assert (record["stage"], record["seed"], record["settings"], record["done"]) == ("score", 7, {"depth": 100}, True)
    assert record["inputs"]["candidates"]["sha256"] == hashlib.sha256(b"one\n").hexdigest()
    assert record["took_s"] >= 0 and record["started"] and record["versions"]["python"]


def test_a_stage_that_was_stopped_is_not_done_and_may_go_on(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("half\n", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), _open_manifest(out, source).record_run():
        raise KeyboardInterrupt
    manifest = _open_manifest(out, source)
    assert not manifest.is_done
    _run_to_end(out, manifest)
    assert _open_manifest(out, source).is_done


def test_a_finished_stage_whose_output_is_gone_is_not_done(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    _run_to_end(out, _open_manifest(out, source))
    out.unlink()
    assert not _open_manifest(out, source).is_done


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stage": "pairs"}, "another stage (score, now pairs)"),
        ({"settings": {"depth": 200}}, "another setting (depth 100, now 200)"),
        ({"settings": {"depth": 100, "mode": "boost"}}, "another setting (mode None, now boost)"),
        ({"seed": 8}, "another seed (7, now 8)"),
        ({"inputs": {}}, "another set of inputs"),
    ],
)
def test_an_output_begun_with_something_else_is_refused(
    tmp_path: Path, source: Path, changes: dict[str, Any], sentence: str
) -> None:
    out = tmp_path / "out.jsonl"
    _run_to_end(out, _open_manifest(out, source))
    with pytest.raises(SettingsError) as caught:
        _open_manifest(out, source, **changes)
    assert sentence in str(caught.value)
    assert str(caught.value).endswith("remove it to start over, or name another output")


def test_an_input_that_changed_is_refused_and_one_that_moved_is_not(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    _run_to_end(out, _open_manifest(out, source))
    moved_source = source.rename(tmp_path / "moved.jsonl")
    assert _open_manifest(out, moved_source).is_done
    moved_source.write_text("two\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"another input \(candidates: .*moved\.jsonl\)"):
        _open_manifest(out, moved_source)


def test_an_output_with_nothing_in_it_yet_takes_other_settings(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "student"
    with (
        pytest.raises(SettingsError),
        _open_manifest(folder, source, is_folder=True, settings={"base": "k9"}).record_run(),
    ):
        raise SettingsError("no model 'k9'")
    (folder / "checkpoints").mkdir()
    (folder / "curves.jsonl").touch()
    assert not _open_manifest(folder, source, is_folder=True, settings={"base": "smollm2-135m"}).is_done
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    with pytest.raises(SettingsError, match="another setting"):
        _open_manifest(folder, source, is_folder=True, settings={"base": "smollm2-135m"})


def test_a_finished_folder_is_not_done_once_a_vital_file_is_gone_or_torn(tmp_path: Path, source: Path) -> None:
    folder, essential = tmp_path / "student", ("*.safetensors",)
    with _open_manifest(folder, source, is_folder=True, essential_files=essential).record_run():
        for name in ("a.safetensors", "curves.png", "base/model.safetensors"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"0123456789")
    (folder / "curves.png").unlink()
    (folder / "a.gguf").write_bytes(b"added")
    assert _open_manifest(folder, source, is_folder=True, essential_files=essential).is_done
    for name in ("a.safetensors", "base/model.safetensors"):
        manifest = _open_manifest(folder, source, is_folder=True, essential_files=essential)
        (folder / name).write_bytes(b"0123")
        assert (manifest.is_done, manifest.damaged_output) == (False, name)
        (folder / name).unlink()
        assert (manifest.is_done, manifest.damaged_output) == (False, name)
        (folder / name).write_bytes(b"0123456789")
        assert manifest.is_done


def test_a_finished_manifest_of_an_earlier_release_stays_done(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    _run_to_end(out, _open_manifest(out, source))
    record = json.loads((tmp_path / "out.jsonl.manifest.json").read_text(encoding="utf-8"))
    earlier = {name: value for name, value in record.items() if name not in ("format", "outputs")}
    (tmp_path / "out.jsonl.manifest.json").write_text(json.dumps(earlier), encoding="utf-8")
    more_inputs = {"candidates": source, "packaged model": source}
    assert _open_manifest(out, source).is_done and _open_manifest(out, source, inputs=more_inputs).is_done
    with pytest.raises(SettingsError, match="another set of inputs"):
        _open_manifest(out, source, inputs={"packaged model": source})


def test_the_seconds_of_attempts_that_were_stopped_are_added(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    for last_written_s in (100, 30):
        with pytest.raises(KeyboardInterrupt):
            _run_and_stop(out, _open_manifest(out, source), last_written_s)
    _run_to_end(out, _open_manifest(out, source))
    assert _read_took_s(out) == pytest.approx(130, abs=5)
    _run_to_end(out, _open_manifest(out, source))  # from the start: what is done is another attempt's
    assert _read_took_s(out) < 5


def _run_and_stop(out: Path, manifest: Manifest, last_written_s: float) -> None:
    """Leave what a killed attempt leaves that wrote for so many seconds."""
    with manifest.record_run():
        out.write_text("half\n", encoding="utf-8")
        begun_s = manifest.path.stat().st_mtime
        os.utime(out, (begun_s + last_written_s, begun_s + last_written_s))
        raise KeyboardInterrupt


def _read_took_s(out: Path) -> float:
    return float(json.loads(locate_manifest(out).read_text(encoding="utf-8"))["took_s"])


_HOLD = """
import sys
from pathlib import Path
from querylift.trainer.manifest import Manifest
out, source = map(Path, sys.argv[1:])
with Manifest(out, stage="score", inputs={"candidates": source}, settings={"depth": 100}, seed=7).record_run():
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_ends_however_it_does(tmp_path: Path, source: Path) -> None:
    out, root = tmp_path / "out.jsonl", str(ROOT)
    arguments = [sys.executable, "-c", _HOLD, str(out), str(source)]
    with subprocess.Popen(arguments, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "writing\n"
            with pytest.raises(SettingsError) as caught, _open_manifest(out, source).record_run():
                pytest.fail("two processes write at once")
        finally:
            process.send_signal(signal.SIGKILL)
    assert str(caught.value) == f"{out} is being written by another process; wait for it to end, or name another output"
    _run_to_end(out, _open_manifest(out, source))
    with pytest.raises(KeyboardInterrupt), _open_manifest(out, source).record_run():
        raise KeyboardInterrupt
    _run_to_end(out, _open_manifest(out, source))
    assert not list(tmp_path.glob("*.lock"))


def test_an_output_that_another_process_began_with_something_else_meanwhile_is_refused(
    tmp_path: Path, source: Path
) -> None:
    out = tmp_path / "out.jsonl"
    late_manifest = _open_manifest(out, source, seed=8)
    _run_to_end(out, _open_manifest(out, source))
    with pytest.raises(SettingsError, match=r"another seed \(7, now 8\)"), late_manifest.record_run():
        pytest.fail("two runs mix")


def test_an_output_that_cannot_be_made_is_named(tmp_path: Path, source: Path) -> None:
    for out, reason in ((source / "below", "Not a directory"), (Path("/proc/none/out"), "No such file or directory")):
        manifest = _open_manifest(out, source, is_folder=True)
        with pytest.raises(SettingsError) as caught, manifest.record_run():
            pytest.fail("it was made")
        assert str(caught.value) == f"{out} cannot be written ({reason}); name another output"


def test_settings_compare_as_json(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    _run_to_end(out, _open_manifest(out, source, settings={"fields": ("title", "text"), "body": Path("b.json")}))
    assert _open_manifest(out, source, settings={"fields": ["title", "text"], "body": "b.json"}).is_done


def test_a_file_has_its_manifest_beside_it_and_a_folder_inside(tmp_path: Path) -> None:
    assert locate_manifest(tmp_path / "c.jsonl") == tmp_path / "c.jsonl.manifest.json"
    assert locate_manifest(tmp_path / "student") == tmp_path / "student" / "manifest.json"
    (tmp_path / "made.jsonl").mkdir()
    assert locate_manifest(tmp_path / "made.jsonl") == tmp_path / "made.jsonl" / "manifest.json"
    (tmp_path / "made").touch()
    assert locate_manifest(tmp_path / "made") == tmp_path / "made.manifest.json"


@pytest.mark.parametrize("name", ["sft-1.5", "qwen3-0.6b-x", "smollm2.135m", "student"])
def test_a_dot_in_the_name_makes_no_file_of_a_folder(tmp_path: Path, source: Path, name: str) -> None:
    assert (
        locate_manifest(tmp_path / name)
        == locate_manifest(tmp_path / name, is_folder=True)
        == tmp_path / name / "manifest.json"
    )
    for folder in (None, True):
        with _open_manifest(tmp_path / name, source, is_folder=folder).record_run():
            (tmp_path / name / "weights").write_bytes(b"0")
        assert _open_manifest(tmp_path / name, source, is_folder=folder).is_done
    assert not (tmp_path / f"{name}.manifest.json").exists()


@pytest.mark.parametrize("name", ["samples", "c.v2", "c.jsonl", "c.jsonl.gz"])
def test_a_stage_that_writes_a_file_has_its_manifest_beside_it(tmp_path: Path, name: str) -> None:
    assert locate_manifest(tmp_path / name, is_folder=False) == tmp_path / f"{name}.manifest.json"


def test_the_digest_of_a_folder_follows_names_and_bytes_but_not_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    original = compute_digest(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "manifest.json.lock").touch()
    assert compute_digest(tmp_path) == original
    (tmp_path / "a").rename(tmp_path / "b")
    assert compute_digest(tmp_path) != original


def test_a_missing_input_and_a_broken_manifest_are_named(tmp_path: Path, source: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone cannot be read \(No such file"):
        _open_manifest(tmp_path / "o.jsonl", tmp_path / "gone")
    (tmp_path / "o.jsonl.manifest.json").write_text("{")
    with pytest.raises(SettingsError, match=r"cannot be read as JSON .*; remove it to start over"):
        _open_manifest(tmp_path / "o.jsonl", source)


def test_versions_hold_python_and_what_is_installed() -> None:
    assert {"python", "querylift"} <= collect_versions().keys()
