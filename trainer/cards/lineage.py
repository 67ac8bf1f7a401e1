"""The stages that made a student, oldest first, read from their manifests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from querylift.trainer.manifest import locate_manifest
from querylift.trainer.student.model_bases import RANDOM_BASES, is_adapter, read_base_name, read_json_object

CARD_STAGES = ("sft", "dpo", "grpo", "merge")
"""The stages whose output gets a card."""
_BASE_INPUTS = ("adapter", "base")
"""The inputs under which a manifest names the model that a stage began with."""


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What the manifest of one stage says."""

    folder: Path
    stage: str
    seed: int | None
    settings: Mapping[str, Any]
    results: Mapping[str, Any]
    versions: Mapping[str, str]
    started: str

    @property
    def origin(self) -> Mapping[str, Any]:
        """Where the data of the stage came from, {} when that is not recorded."""
        return dict(self.results.get("origin") or {})


@dataclass(frozen=True, slots=True)
class Lineage:
    """The stages of a student, oldest first, and the name of the base that the first one began with."""

    base: str
    stages: tuple[StageRecord, ...]


def read_lineage(folder: Path) -> Lineage:
    """Return the lineage of the student in `folder`, which a stage of `CARD_STAGES` wrote.

    It goes back to the model that none of these stages made, and calls it the base.
    """
    stages: list[StageRecord] = []
    place: Path | None = folder
    base = ""
    while place is not None and has_card_stage(place) and place not in [record.folder for record in stages]:
        manifest = read_json_object(locate_manifest(place, is_folder=True))
        stages.insert(0, _make_record(place, manifest))
        base, place = _find_base(place, manifest)
    made_base = _read_configured_base(stages[0].settings) if stages else ""
    return Lineage(made_base if made_base in RANDOM_BASES else base, tuple(stages))


def has_card_stage(folder: Path) -> bool:
    """Whether a finished stage of `CARD_STAGES` wrote `folder`."""
    path = locate_manifest(folder, is_folder=True)
    if not path.is_file():
        return False
    manifest = read_json_object(path)
    return manifest.get("stage") in CARD_STAGES and bool(manifest.get("done"))


def _make_record(folder: Path, manifest: Mapping[str, Any]) -> StageRecord:
    return StageRecord(
        folder=folder,
        stage=str(manifest["stage"]),
        seed=manifest.get("seed"),
        settings=dict(manifest.get("settings") or {}),
        results=dict(manifest.get("results") or {}),
        versions=dict(manifest.get("versions") or {}),
        started=str(manifest.get("started", "")),
    )


def _read_configured_base(settings: Mapping[str, Any]) -> str:
    """Return the base of a stage's configuration, "" when there is none. A base that was made on the spot has its name there."""
    return str(dict(settings.get("model") or {}).get("base", ""))


def _find_base(folder: Path, manifest: Mapping[str, Any]) -> tuple[str, Path | None]:
    """Return the name of the model that a stage began with, and its folder. The folder is None when it is not there.

    A folder that was moved is looked for beside `folder`.
    """
    if is_adapter(folder):
        name = read_base_name(folder)
    else:
        inputs = dict(manifest.get("inputs") or {})
        paths = [str(inputs[key]["path"]) for key in _BASE_INPUTS if key in inputs]
        name = paths[0] if paths else _read_configured_base(dict(manifest.get("settings") or {}))
    places = (Path(name), folder.parent / Path(name).name)
    return name, next((place for place in places if name and place.is_dir()), None)
