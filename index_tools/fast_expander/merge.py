"""Merges the slices of an expander, which several machines or processes have built, into one expander."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.document_parts import LOCK_FILE, DocumentParts, list_planned_fields
from querylift.index_tools.fast_expander.document_selection import DocumentSelection
from querylift.index_tools.fast_expander.index_fields import AnalysedFields, find_fields
from querylift.index_tools.fast_expander.score_scale import measure_score_scale
from querylift.index_tools.fast_expander.served_folder import (
    WORK_FOLDER_PREFIX,
    create_folder,
    open_surface_words,
    place_files,
    remove_leftovers,
    write_form,
)
from querylift.index_tools.fast_expander.source_record import (
    compute_analysis_digest,
    create_field_groups,
    describe_source,
)
from querylift.index_tools.fast_expander.temperature import measure_temperature
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.expander_folder import (
    ExpanderRecord,
    check_listed_files,
    collect_file_facts,
    read_expander_record,
)
from querylift.plugin.files import hold_lock


@dataclass(frozen=True, slots=True)
class _Slice:
    """A slice's folder, its record, and the plan of its parts without the slice's name."""

    folder: Path
    record: ExpanderRecord
    plan: dict[str, Any]
    selection: DocumentSelection

    @classmethod
    def read(cls, folder: Path) -> _Slice:
        record = read_expander_record(folder)
        if not record.source.slice:
            raise SettingsError(f"{folder} is a whole expander; merge the folders that were built with --slice")
        check_listed_files(folder, record)
        plan = DocumentParts.open_existing(folder).read_plan()
        plan.pop("slice", None)
        selection = DocumentSelection.parse(sample=record.source.sample, slice_text=record.source.slice)
        return cls(folder, record, plan, selection)

    def list_facts(self) -> dict[str, Any]:
        """Return what all slices of one expander have in common, by the name that a person knows it by."""
        return {
            **self.plan,
            "form": self.record.form,
            "temperature": (self.record.shape.temperature, self.record.measures_temperature),
            "shape": self.record.shape,
            "sample": self.selection.sample,
            "number of slices": self.selection.count,
            "changed-since": self.record.source.changed_field,
            "encoder's files": self.record.files,
        }


def merge_slices(engine: Engine, folder: Path, slice_folders: Sequence[Path]) -> ExpanderRecord:
    """Write the expander of all slices into `folder`, and return its record. The slices stay as they are.

    The expander is the one that a build of all documents at once would give. Only the documents' numbers differ, and so
    may the nearest documents of a large index, which are looked up approximately. Later builds continue in `folder`.

    Raises SettingsError when a slice is missing, doubled or of another expander, and when an analyzer has changed.
    """
    with ExitStack() as locks:
        for slice_folder in dict.fromkeys(slice_folders):
            if slice_folder.is_dir():
                locks.enter_context(hold_lock(slice_folder / LOCK_FILE, output=slice_folder))
        slices = sorted(map(_Slice.read, slice_folders), key=lambda piece: piece.selection.number)
        _check_slices(slices)
        first = slices[0]
        names = list_planned_fields(first.plan)
        fields = find_fields(engine, first.plan["index"], names, sources=first.plan["text"])
        if compute_analysis_digest(engine, first.plan["index"], fields) != first.plan["analysis"]:
            raise SettingsError(
                f"the analyzers of {first.plan['index']} have changed since the slices were built; build them again"
            )
        create_folder(folder)
        locks.enter_context(hold_lock(folder / LOCK_FILE, output=folder))
        remove_leftovers(folder)
        return _write_merged_folder(engine, folder, slices, fields)


def _check_slices(slices: Sequence[_Slice]) -> None:
    """Raise SettingsError when the slices are not those of one expander, each of them once."""
    first, *others = slices
    facts = first.list_facts()
    for other in others:
        other_facts = other.list_facts()
        if different_names := [name for name in facts if facts[name] != other_facts.get(name)]:
            raise SettingsError(
                f"{other.folder} and {first.folder} are slices of two expanders, because they differ in "
                f"{', '.join(different_names)}; merge slices that were built alike"
            )
    folders_by_number: dict[int, Path] = {}
    for piece in slices:
        if (number := piece.selection.number) in folders_by_number:
            raise SettingsError(
                f"slice {piece.selection.slice_name} is in {folders_by_number[number]} and in {piece.folder}; "
                "give each slice once"
            )
        folders_by_number[number] = piece.folder
    count = first.selection.count
    missing = [f"{number}/{count}" for number in range(1, count + 1) if number not in folders_by_number]
    if missing:
        raise SettingsError(
            f"no folder holds slice {' or '.join(missing)}; build with --slice {missing[0]}, and merge all {count}"
        )


def _write_merged_folder(
    engine: Engine, folder: Path, slices: Sequence[_Slice], fields: AnalysedFields
) -> ExpanderRecord:
    first = slices[0]
    parts_by_slice = [DocumentParts.open_existing(piece.folder) for piece in slices]
    current_rows = [rows for slice_parts in parts_by_slice for rows in slice_parts.read_current_rows()]
    parts = DocumentParts(folder, first.plan)
    parts.replace_files([path for slice_parts in parts_by_slice for path in slice_parts.list_files()])
    surfaces = open_surface_words(engine, fields)
    with TemporaryDirectory(dir=folder, prefix=WORK_FOLDER_PREFIX) as work:
        new_folder = Path(work)
        for name in first.record.files:
            shutil.copyfile(first.folder / name, new_folder / name)
        served = write_form(first.record.form, new_folder, parts, current_rows, surfaces, fields)
        source = describe_source(
            engine,
            first.plan["index"],
            fields,
            create_field_groups(fields, surfaces, served.words),
            documents=sum(map(len, current_rows)),
            in_index=max(piece.record.source.in_index for piece in slices),
            changed_field=first.record.source.changed_field,
            changed_until=_find_earliest_change(slices),
            selection=DocumentSelection(first.selection.sample),
        )
        files = collect_file_facts(new_folder, [*first.record.files, *served.names])
        changes: dict[str, Any] = {
            "source": source,
            "built": datetime.now(UTC).date().isoformat(),
            "width": served.width,
            "terms": sum(map(len, served.words)),
            "score_scale": measure_score_scale(engine, first.plan["index"], fields),
            "files": files,
        }
        if first.record.measures_temperature:
            temperature = measure_temperature(parts, current_rows)
            changes["shape"] = first.record.shape.model_copy(update={"temperature": temperature})
        record = first.record.model_copy(update=changes)
        place_files(new_folder, folder, record, names=files)
        parts.write_current_rows(current_rows)
    return record


def _find_earliest_change(slices: Sequence[_Slice]) -> str | float:
    """Return the smallest of the slices' values, so that the next build misses no change; "" when a slice has none."""
    values = [piece.record.source.changed_until for piece in slices]
    return "" if "" in values else min(values)  # all texts, or all numbers
