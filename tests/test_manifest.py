"""What a stage was made from, and what happens when it is begun again with something else."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from plugin.errors import SettingsError
from trainer.manifest import Manifest, digest, place, versions


def _manifest(out: Path, source: Path, **changes: Any) -> Manifest:
    given: dict[str, Any] = {"stage": "score", "inputs": {"candidates": source}, "settings": {"depth": 100}, "seed": 7}
    return Manifest(out, **(given | changes))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("one\n", encoding="utf-8")
    return path


def _finish(out: Path, manifest: Manifest) -> None:
    with manifest.running() as results:
        out.write_text("made\n", encoding="utf-8")
        results["rows"] = 3


def test_a_finished_stage_is_done_and_says_what_it_was_made_from(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    first = _manifest(out, source)
    assert not first.done
    _finish(out, first)
    again = _manifest(out, source)
    assert (first.done, again.done, again.results) == (True, True, {"rows": 3})
    found = json.loads((tmp_path / "out.jsonl.manifest.json").read_text(encoding="utf-8"))
    assert (found["stage"], found["seed"], found["settings"], found["done"]) == ("score", 7, {"depth": 100}, True)
    assert found["inputs"]["candidates"]["sha256"] == hashlib.sha256(b"one\n").hexdigest()
    assert found["took_s"] >= 0 and found["started"] and found["versions"]["python"]


def test_a_stage_that_was_stopped_is_not_done_and_may_go_on(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("half\n", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), _manifest(out, source).running():
        raise KeyboardInterrupt
    again = _manifest(out, source)
    assert not again.done
    _finish(out, again)
    assert _manifest(out, source).done


def test_a_finished_stage_whose_output_is_gone_is_not_done(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    _finish(out, _manifest(out, source))
    out.unlink()
    assert not _manifest(out, source).done


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
    _finish(out, _manifest(out, source))
    with pytest.raises(SettingsError) as caught:
        _manifest(out, source, **changes)
    assert sentence in str(caught.value)
    assert str(caught.value).endswith("remove it to start over, or name another output")


def test_an_input_that_changed_is_refused_and_one_that_moved_is_not(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    _finish(out, _manifest(out, source))
    moved = source.rename(tmp_path / "moved.jsonl")
    assert _manifest(out, moved).done
    moved.write_text("two\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"another input \(candidates: .*moved\.jsonl\)"):
        _manifest(out, moved)


def test_settings_compare_as_json(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    _finish(out, _manifest(out, source, settings={"fields": ("title", "text"), "body": Path("b.json")}))
    assert _manifest(out, source, settings={"fields": ["title", "text"], "body": "b.json"}).done


def test_a_file_has_its_manifest_beside_it_and_a_folder_inside(tmp_path: Path) -> None:
    assert place(tmp_path / "c.jsonl") == tmp_path / "c.jsonl.manifest.json"
    assert place(tmp_path / "student") == tmp_path / "student" / "manifest.json"
    (tmp_path / "smollm2.135m").mkdir()
    assert place(tmp_path / "smollm2.135m") == tmp_path / "smollm2.135m" / "manifest.json"


def test_the_digest_of_a_folder_follows_names_and_bytes_but_not_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    before = digest(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    assert digest(tmp_path) == before
    (tmp_path / "a").rename(tmp_path / "b")
    assert digest(tmp_path) != before


def test_a_missing_input_and_a_broken_manifest_are_named(tmp_path: Path, source: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone cannot be read \(No such file"):
        _manifest(tmp_path / "o.jsonl", tmp_path / "gone")
    (tmp_path / "o.jsonl.manifest.json").write_text("{")
    with pytest.raises(SettingsError, match=r"cannot be read as JSON .*; remove it to start over"):
        _manifest(tmp_path / "o.jsonl", source)


def test_versions_hold_python_and_what_is_installed() -> None:
    assert {"python", "querylift"} <= versions().keys()
