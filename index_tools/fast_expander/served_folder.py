"""Writes the served files of an expander, and puts them into its folder together."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.document_parts import DocumentParts
from querylift.index_tools.fast_expander.index_fields import AnalysedFields
from querylift.index_tools.fast_expander.neighbours_form import ServedFiles, write_neighbours_form
from querylift.index_tools.fast_expander.surface_words import SurfaceWords
from querylift.index_tools.fast_expander.terms_form import write_terms_form
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.expander_folder import RECORD_FILE, ExpanderRecord

WORK_FOLDER_PREFIX = ".new-"
"""The beginning of the name of the folder, inside the expander's, in which new files are written."""
_WRITERS = {"neighbours": write_neighbours_form, "terms": write_terms_form}


def create_folder(folder: Path) -> None:
    """Create the folder of an expander. Raises SettingsError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error.strerror}; name another folder") from None


def remove_leftovers(folder: Path) -> None:
    """Delete the unfinished files of a build that was killed."""
    for leftover in folder.glob(f"{WORK_FOLDER_PREFIX}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def open_surface_words(engine: Engine, fields: AnalysedFields) -> list[SurfaceWords]:
    """Return what finds the surface words of each group of fields."""
    return [SurfaceWords(engine, fields.indices[0], names[0]) for names in fields.groups]


def write_form(
    form: str,
    new_folder: Path,
    parts: DocumentParts,
    current_rows: Sequence[Sequence[int]],
    surfaces_by_group: Sequence[SurfaceWords],
    fields: AnalysedFields,
) -> ServedFiles:
    """Write the files of a form into `new_folder`. Raises SettingsError when the fields have no usable term."""
    served = _WRITERS[form](new_folder, parts, current_rows, surfaces_by_group)
    if not any(served.words):
        raise SettingsError(
            f"{', '.join(fields.names)} of {', '.join(fields.indices)} has no term to add to a query; name another field"
        )
    return served


def place_files(new_folder: Path, folder: Path, record: ExpanderRecord, *, names: Iterable[str]) -> None:
    """Write the record, and move it and the files `names` into `folder`. Raises SettingsError."""
    try:
        (new_folder / RECORD_FILE).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for name in [*names, RECORD_FILE]:
            (new_folder / name).replace(folder / name)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error.strerror}; free space, and build again") from None
