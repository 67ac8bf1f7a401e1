"""A large index is read as a sample, or in slices that several machines build and one merges."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.build import BuildRequest, BuildResult, build_expander
from querylift.index_tools.fast_expander.document_parts import DocumentParts
from querylift.index_tools.fast_expander.document_selection import DocumentSelection
from querylift.index_tools.fast_expander.merge import merge_slices
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.fast_expander.expander_folder import read_expander_record
from querylift.plugin.generators.fast_expander import open_expander_model
from querylift.plugin.settings import parse_settings
from tests.helpers.expanders import (
    PROPERTIES,
    TEXTS,
    TOPICS,
    create_index,
    fill_index,
    remove_indices,
    write_tiny_encoder,
)

pytestmark = pytest.mark.engine
INDEX = "expander-slices"
WORDS = [word for words in TOPICS.values() for word in words]
QUERIES = [*WORDS, *(f"{first} {second}" for first, second in zip(WORDS, WORDS[3:] + WORDS[:3], strict=True))]
DATED = PROPERTIES | {"changed": {"type": "date"}}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("slices") / "encoder")


@pytest.fixture
def engine(opensearch: str) -> Iterator[Engine]:
    """The engine with the forty documents."""
    with Engine(parse_settings({"engine": opensearch})) as connected_engine:
        remove_indices(connected_engine, INDEX)
        create_index(connected_engine, INDEX, DATED)
        fill_index(connected_engine, INDEX, TEXTS)
        yield connected_engine
        remove_indices(connected_engine, INDEX)


def build(
    engine: Engine, folder: Path, encoder: Path, *, sample: float = 1.0, piece: str = "", **options: Any
) -> BuildResult:
    selection = DocumentSelection.parse(sample=sample, slice_text=piece)
    return build_expander(
        engine, BuildRequest(INDEX, "contents", folder, encoder=encoder, selection=selection, **options)
    )


def build_slices(engine: Engine, folder: Path, encoder: Path, count: int = 3, **options: Any) -> list[Path]:
    folders = [folder / f"slice-{number}" for number in range(1, count + 1)]
    for number, slice_folder in enumerate(folders, 1):
        build(engine, slice_folder, encoder, piece=f"{number}/{count}", **options)
    return folders


def list_ids(folder: Path) -> list[str]:
    parts = DocumentParts.open_existing(folder)
    pairs = zip(parts, parts.read_current_rows(), strict=True)
    return sorted(part.keys[row].partition("/")[2] for part, rows in pairs for row in rows)


def expand_all(folder: Path) -> list[Expansion | None]:
    model = open_expander_model(folder)[1]
    return [model.expand(query) for query in QUERIES]


def refuse_merge(engine: Engine, folder: Path, *slices: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        merge_slices(engine, folder, slices)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- a sample -----------------------------------------------------------------------------------------------------------


def test_a_sample_is_the_same_in_every_build_and_a_larger_one_holds_it(
    engine: Engine, encoder: Path, tmp_path: Path
) -> None:
    smaller = build(engine, tmp_path, encoder, sample=0.4).record.source
    ids = list_ids(tmp_path)
    assert 8 <= len(ids) == smaller.documents <= 24
    assert (smaller.sample, smaller.in_index) == (0.4, 40)
    assert build(engine, tmp_path, encoder, sample=0.4).encoded == 0
    larger = build(engine, tmp_path, encoder, sample=0.8)
    assert set(ids) < set(list_ids(tmp_path))
    assert larger.encoded == larger.record.source.documents - len(ids)
    everything = build(engine, tmp_path, encoder)
    assert (everything.record.source.documents, everything.record.source.sample) == (40, 1.0)


def test_an_expander_of_a_sample_adds_terms_and_no_documents(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    build(engine, tmp_path / "sample", encoder, sample=0.8)
    build(engine, tmp_path / "whole", encoder)
    for name, has_documents in (("sample", False), ("whole", True)):
        expansion = open_expander_model(tmp_path / name)[1].expand("comets")
        assert expansion is not None and expansion.terms
        assert bool(expansion.documents) == has_documents


def test_a_sample_reads_changed_documents_and_new_ones(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    fill_index(engine, INDEX, {d: {"contents": text, "changed": "2025-01-01"} for d, text in TEXTS.items()})
    build(engine, tmp_path, encoder, sample=0.5, changed_field="changed")
    sampled_ids = list_ids(tmp_path)
    changes = {sampled_ids[0]: {"contents": "new sails", "changed": "2025-02-01"}}
    new_ids = [f"new-{number}" for number in range(10)]
    fill_index(engine, INDEX, changes | {d: {"contents": "new boats", "changed": "2025-02-01"} for d in new_ids})
    again = build(engine, tmp_path, encoder, sample=0.5, changed_field="changed")
    selection = DocumentSelection(0.5)
    assert list_ids(tmp_path) == sorted([*sampled_ids, *filter(selection.includes, new_ids)])
    assert again.encoded == 1 + sum(map(selection.includes, new_ids)) < 11


def test_a_share_of_the_ids_is_selected_and_every_id_is_in_one_slice() -> None:
    ids = [f"document {number}" for number in range(20_000)]
    assert sum(map(DocumentSelection(0.05).includes, ids)) == pytest.approx(1000, rel=0.15)
    for sample in (1.0, 0.3):
        slices = [DocumentSelection(sample, number, 7) for number in range(1, 8)]
        counts = [sum(piece.includes(doc_id) for piece in slices) for doc_id in ids]
        assert counts == [int(DocumentSelection(sample).includes(doc_id)) for doc_id in ids]
    assert DocumentSelection(0.5).includes("\ud800") in (True, False)  # half of a surrogate pair


@pytest.mark.parametrize("sample", [0, -1, 1.01, float("nan")])
def test_a_share_outside_its_range_is_refused(sample: float) -> None:
    with pytest.raises(SettingsError, match=r"^--sample is \S+; use a share above 0 and up to 1, such as 0.25$"):
        DocumentSelection.parse(sample=sample)


@pytest.mark.parametrize("text", ["3", "0/8", "9/8", "3/0", "a/b", "1/2/3", "1/1001", "-1/3", "1/٣"])
def test_a_slice_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        DocumentSelection.parse(slice_text=text)
    assert str(caught.value) == (
        f"--slice is {text!r}; write the number of the slice and how many there are, such as 3/8 (at most 1000)"
    )


def test_the_form_cluster_takes_no_sample(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "knn.json").write_text("{}", encoding="utf-8")
    options: Any = {"form": "cluster", "vector_search": tmp_path / "knn.json"}
    with pytest.raises(SettingsError, match="the form cluster reads no documents; leave --sample and --slice out"):
        build(engine, tmp_path / "out", encoder, sample=0.5, **options)


# -- slices -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["neighbours", "terms"])
def test_merged_slices_expand_as_one_build_does(engine: Engine, encoder: Path, tmp_path: Path, form: Any) -> None:
    whole = build(engine, tmp_path / "whole", encoder, form=form).record
    slices = build_slices(engine, tmp_path, encoder, form=form)
    assert all(len(list_ids(folder)) < 25 for folder in slices)
    assert sorted(doc_id for folder in slices for doc_id in list_ids(folder)) == sorted(TEXTS)
    merged = merge_slices(engine, tmp_path / "merged", slices[::-1])
    changes = {"files": merged.files, "built": merged.built}
    assert merged.model_dump() == whole.model_copy(update=changes).model_dump()
    for expansion, expected in zip(expand_all(tmp_path / "merged"), expand_all(tmp_path / "whole"), strict=True):
        assert expansion is not None and expected is not None
        assert {t.term: t.surface for t in expansion.terms} == {t.term: t.surface for t in expected.terms}
        weights, expected_weights = ({t.term: t.weight for t in e.terms} for e in (expansion, expected))
        assert weights == pytest.approx(expected_weights, rel=1e-4)
        assert expansion.documents == expected.documents


def test_the_merged_files_hold_what_one_build_writes(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    """Byte for byte, apart from what depends on the order of the documents."""
    whole = build(engine, tmp_path / "whole", encoder).record
    merged = merge_slices(engine, tmp_path / "merged", build_slices(engine, tmp_path, encoder))
    assert merged.files.keys() == whole.files.keys()
    for name in ("encoder.onnx", "tokenizer.json", "words.bin", "words.ends.npy"):
        assert merged.files[name] == whole.files[name]
    for name in ("documents.terms.npy", "documents.weights.npy"):
        numbers, expected = (np.load(tmp_path / folder / name) for folder in ("merged", "whole"))
        np.testing.assert_array_equal(np.sort(numbers), np.sort(expected))


def test_a_later_build_continues_in_the_merged_folder(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    slices = build_slices(engine, tmp_path, encoder)
    merge_slices(engine, tmp_path / "merged", slices)
    fill_index(engine, INDEX, {"new": "sails and boats"})
    again = build(engine, tmp_path / "merged", encoder)
    assert (again.encoded, again.record.source.documents) == (1, 41)
    assert all(list_ids(folder) for folder in slices)
    for folder, number in zip(slices, (1, 2, 3), strict=True):
        build(engine, folder, encoder, piece=f"{number}/3")
    assert merge_slices(engine, tmp_path / "merged", slices).source.documents == 41
    assert list_ids(tmp_path / "merged") == sorted([*TEXTS, "new"])


def test_slices_of_a_sample_make_the_sample(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    slices = build_slices(engine, tmp_path, encoder, 2, sample=0.7)
    merged = merge_slices(engine, tmp_path / "merged", slices).source
    build(engine, tmp_path / "whole", encoder, sample=0.7)
    assert (merged.sample, merged.slice) == (0.7, "")
    assert list_ids(tmp_path / "merged") == list_ids(tmp_path / "whole")


def test_a_slice_is_not_served_and_not_continued_as_a_whole(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    build(engine, tmp_path, encoder, piece="1/2")
    with pytest.raises(SettingsError) as caught:
        open_expander_model(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is only slice 1/2 of an expander; merge all slices with `querylift expander merge`"
    )
    with pytest.raises(SettingsError, match=r"other settings \(slice was '1/2'\)"):
        build(engine, tmp_path, encoder)
    with pytest.raises(SettingsError, match=r"other settings \(slice was '1/2'\)"):
        build(engine, tmp_path, encoder, piece="2/2")
    assert build(engine, tmp_path, encoder, piece="1/2").encoded == 0


def test_missing_doubled_and_foreign_slices_are_refused(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    first, second, third = build_slices(engine, tmp_path, encoder)
    out = tmp_path / "merged"
    assert refuse_merge(engine, out, first) == (
        "no folder holds slice 2/3 or 3/3; build with --slice 2/3, and merge all 3"
    )
    assert refuse_merge(engine, out, first, third) == (
        "no folder holds slice 2/3; build with --slice 2/3, and merge all 3"
    )
    assert refuse_merge(engine, out, first, second, third, second) == (
        f"slice 2/3 is in {second} and in {second}; give each slice once"
    )
    whole = tmp_path / "whole"
    build(engine, whole, encoder)
    assert refuse_merge(engine, out, first, whole) == (
        f"{whole} is a whole expander; merge the folders that were built with --slice"
    )
    other = tmp_path / "other"
    build(engine, other, encoder, piece="2/2", sample=0.5)
    assert refuse_merge(engine, out, first, other, third) == (
        f"{other} and {first} are slices of two expanders, because they differ in sample, number of slices; "
        "merge slices that were built alike"
    )
    assert refuse_merge(engine, out, first, tmp_path / "nowhere").startswith(
        f"{tmp_path / 'nowhere'} is not an expander"
    )
    assert not out.exists()


def test_slices_of_another_analyzer_are_refused(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    slices = build_slices(engine, tmp_path, encoder, 2)
    remove_indices(engine, INDEX)
    create_index(engine, INDEX, {"contents": {"type": "text", "analyzer": "simple"}})
    fill_index(engine, INDEX, TEXTS)
    assert refuse_merge(engine, tmp_path / "merged", *slices) == (
        f"the analyzers of {INDEX} have changed since the slices were built; build them again"
    )


def test_another_expander_is_not_overwritten(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    slices = build_slices(engine, tmp_path, encoder, 2)
    build(engine, tmp_path / "other", encoder, sources=("changed", "contents"))
    record = read_expander_record(tmp_path / "other")
    assert "holds an expander of other settings (text was" in refuse_merge(engine, tmp_path / "other", *slices)
    assert read_expander_record(tmp_path / "other") == record
    assert len(list_ids(tmp_path / "other")) == 40


def test_the_commands_build_slices_and_merge_them(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "querylift", "expander", *arguments, "--engine", engine.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    slices = [str(tmp_path / name) for name in ("a", "b")]
    options = ["--field", "contents", "--encoder", str(encoder), "--threads", "1"]
    for number, folder in enumerate(slices, 1):
        output = run("build", INDEX, *options, "--out", folder, "--slice", f"{number}/2", "--sample", "0.9")
        count = len(list_ids(Path(folder)))
        assert output == (
            f"{folder}: slice {number}/2, {count} documents ({count} encoded now); "
            "merge all slices with `querylift expander merge`\n"
        )
    out = tmp_path / "merged"
    count = len(list_ids(Path(slices[0])) + list_ids(Path(slices[1])))
    assert f"{out}: {count} documents, a sample of 90% of 40, " in run("merge", str(out), *slices)
    assert json.loads((out / "expander.json").read_text(encoding="utf-8"))["source"]["sample"] == 0.9


def test_the_temperature_that_suits_the_encoder_is_measured_on_all_slices(
    engine: Engine, encoder: Path, tmp_path: Path
) -> None:
    at_once = build(engine, tmp_path / "at-once", encoder, measures_temperature=True).record.shape.temperature
    slices = build_slices(engine, tmp_path, encoder, measures_temperature=True)
    assert merge_slices(engine, tmp_path / "merged", slices).shape.temperature == at_once != 0.08
    build(engine, slices[1], encoder, piece="2/3")
    assert "they differ in temperature" in refuse_merge(engine, tmp_path / "other", *slices)
