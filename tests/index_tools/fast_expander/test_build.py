"""An expander is built from an index once, and after that from what has changed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.build import BuildRequest, BuildResult, build_expander
from querylift.index_tools.fast_expander.document_parts import DocumentParts
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.fast_expander.expander_folder import RECORD_FILE, ExpansionShape, read_expander_record
from querylift.plugin.fast_expander.neighbours_weigher import VECTORS_FILE
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.fast_expander import FastExpanderGenerator, open_expander_model
from querylift.plugin.settings import parse_settings
from tests.helpers.expanders import (
    PROPERTIES,
    TEXTS,
    TOPICS,
    create_index,
    fill_index,
    list_part_files,
    remove_document_ids,
    remove_indices,
    write_tiny_encoder,
)

pytestmark = pytest.mark.engine
INDEX = "expander-build"
DATED = PROPERTIES | {"changed": {"type": "date"}, "number": {"type": "long"}}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("build") / "encoder")


@pytest.fixture
def engine(opensearch: str) -> Iterator[Engine]:
    with Engine(parse_settings({"engine": opensearch})) as connected_engine:
        remove_indices(connected_engine, INDEX)
        yield connected_engine
        remove_indices(connected_engine, INDEX)


@pytest.fixture
def topics(engine: Engine) -> Engine:
    """The engine with the forty documents."""
    create_index(engine, INDEX, DATED)
    fill_index(engine, INDEX, TEXTS)
    return engine


def build_into(engine: Engine, folder: Path, encoder: Path, **options: Any) -> BuildResult:
    return build_expander(engine, BuildRequest(INDEX, "contents", folder, encoder=encoder, **options))


def expand_with(folder: Path, text: str) -> Expansion:
    expansion = open_expander_model(folder)[1].expand(text)
    assert expansion is not None
    return expansion


def expand_through_generator(folder: Path, url: str) -> Expansion | None:
    """What is served from the folder, once the engine has been asked whether the index is still the same."""

    async def main() -> Expansion | None:
        generator = FastExpanderGenerator(folder, url)
        try:
            await generator.start()
            return await generator.expand(ExpansionRequest("boats", INDEX))
        finally:
            await generator.close()

    return asyncio.run(main())


# -- the first build ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["neighbours", "terms"])
def test_terms_stand_as_in_the_index_with_their_commonest_words(
    topics: Engine, encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, form: Any
) -> None:
    fill_index(topics, INDEX, {"more": "zebra zebras Zebras zebras", "other": "Zebra"})
    seen: list[tuple[int, int]] = []
    request = BuildRequest(INDEX, "contents", tmp_path / "out", encoder=encoder, form=form)
    built = build_expander(topics, request, progress=lambda done, of: seen.append((done, of)))
    assert (built.encoded, built.without_text, built.record.source.documents, built.record.form) == (42, 0, 42, form)
    assert seen == [(42, 42)]
    expansion = expand_through_generator(tmp_path / "out", topics.url)
    assert expansion is not None and expansion.field == "contents"
    surfaces = {term.term: term.surface for term in expansion.terms}
    assert {"sail": "sailing", "boat": "boats"}.items() <= surfaces.items()
    assert {term.surface for term in expansion.terms[:8]} < set(TOPICS["sea"])
    vocabulary = open_expander_model(tmp_path / "out")[1].vocabulary
    everything = dict(vocabulary[number] for number in range(len(vocabulary)))
    assert len(everything) == 41 and everything["zebra"] == "zebras" and everything["galaxi"] == "galaxies"
    assert caplog.messages == []


def test_the_record_says_where_it_came_from(topics: Engine, encoder: Path, tmp_path: Path) -> None:
    source = build_into(topics, tmp_path / "out", encoder).record.source
    assert (source.index, source.indices, source.aliases) == (INDEX, (INDEX,), ())
    assert (source.documents, source.in_index, source.changed_until) == (40, 40, "")
    assert source.engine.startswith(("OpenSearch ", "Elasticsearch "))
    assert source.probe["galaxies"] == ("galaxi",) and len(source.probe) == 40


# -- the builds after it ------------------------------------------------------------------------------------------------


def test_the_folder_has_the_ids_of_the_documents_and_the_scale_of_their_scores(
    topics: Engine, encoder: Path, tmp_path: Path
) -> None:
    record = build_into(topics, tmp_path / "x", encoder).record
    assert {document.doc_id for document in expand_with(tmp_path / "x", "comets").documents} == {
        f"sky-{i}" for i in range(10)
    }
    neighbour_id, opening = "sky-1", TEXTS["sky-0"]  # the next text shares three of its four words
    body = {
        "query": {"bool": {"must": {"match": {"contents": opening}}, "filter": {"ids": {"values": [neighbour_id]}}}}
    }
    best_score = topics.call("POST", f"/{INDEX}/_search", body)["hits"]["max_score"]
    assert record.score_scale == pytest.approx(best_score, rel=0.01)


def test_a_folder_of_an_older_querylift_gets_its_ids_without_encoding_again(
    topics: Engine, encoder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "x"
    build_into(topics, folder, encoder)
    remove_document_ids(folder)
    assert not expand_with(folder, "comets").documents
    assert build_into(topics, folder, encoder).encoded == 0
    assert expand_with(folder, "comets").documents


def test_an_index_in_which_no_two_documents_share_a_word_has_the_usual_scale(
    engine: Engine, encoder: Path, tmp_path: Path
) -> None:
    create_index(engine, INDEX)
    fill_index(engine, INDEX, {"1": "comets", "2": "boats"})
    assert build_into(engine, tmp_path / "x", encoder).record.score_scale == 8.0


def test_a_second_build_encodes_nothing_and_comes_to_the_same(topics: Engine, encoder: Path, tmp_path: Path) -> None:
    first_build = build_into(topics, tmp_path / "out", encoder)
    second_build = build_into(topics, tmp_path / "out", encoder)
    assert (first_build.encoded, second_build.encoded) == (40, 0)
    assert second_build.record == first_build.record
    assert len(list(list_part_files(tmp_path / "out"))) == 1


def test_a_build_with_nothing_new_writes_no_file_but_the_record(topics: Engine, encoder: Path, tmp_path: Path) -> None:
    build_into(topics, tmp_path / "out", encoder)
    inode = (tmp_path / "out" / VECTORS_FILE).stat().st_ino
    build_into(topics, tmp_path / "out", encoder)
    assert (tmp_path / "out" / VECTORS_FILE).stat().st_ino == inode
    (tmp_path / "out" / VECTORS_FILE).write_bytes(b"damaged")
    build_into(topics, tmp_path / "out", encoder)
    assert {term.surface for term in expand_with(tmp_path / "out", "courts").terms[:8]} < set(TOPICS["law"])
    cooler = build_into(topics, tmp_path / "out", encoder, shape=ExpansionShape(temperature=0.02))
    assert (cooler.encoded, cooler.record.shape.temperature) == (0, 0.02)


@pytest.mark.parametrize("form", ["neighbours", "terms"])
def test_what_is_no_longer_in_the_index_leaves_the_folder(
    engine: Engine, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    monkeypatch.setattr("querylift.index_tools.fast_expander.incremental_read._PART_DOCUMENTS", 10)
    create_index(engine, INDEX, DATED)
    fill_index(engine, INDEX, TEXTS)
    build_into(engine, tmp_path / "out", encoder, form=form)
    assert [len(part.keys) for part in DocumentParts.open_existing(tmp_path / "out")] == [10, 10, 10, 10]
    gone = [*list(TEXTS)[:10], *list(TEXTS)[10:17], *list(TEXTS)[20:23]]  # all of a topic, seven and three of others
    for doc_id in gone:
        engine.call("DELETE", f"/{INDEX}/_doc/{doc_id}", params={"refresh": "true"})
    built = build_into(engine, tmp_path / "out", encoder, form=form)
    assert (built.encoded, built.record.source.documents) == (0, 20)
    assert [len(part.keys) for part in DocumentParts.open_existing(tmp_path / "out")] == [3, 10, 10]
    fresh = build_into(engine, tmp_path / "fresh", encoder, form=form)
    assert fresh.record.source == built.record.source
    for query in ("courts", "stars planets", "ovens"):
        assert expand_with(tmp_path / "out", query) == expand_with(tmp_path / "fresh", query)
    assert build_into(engine, tmp_path / "out", encoder, form=form).encoded == 0


def test_another_form_is_made_of_what_has_been_encoded(topics: Engine, encoder: Path, tmp_path: Path) -> None:
    build_into(topics, tmp_path / "out", encoder)
    rebuilt = build_into(topics, tmp_path / "out", encoder, form="terms")
    assert (rebuilt.encoded, rebuilt.record.form) == (0, "terms")
    assert {term.surface for term in expand_with(tmp_path / "out", "courts").terms[:8]} < set(TOPICS["law"])


def test_only_what_has_changed_is_encoded_and_what_was_deleted_is_gone(
    topics: Engine, encoder: Path, tmp_path: Path
) -> None:
    build_into(topics, tmp_path / "out", encoder)
    fill_index(topics, INDEX, {"sea-0": "zebras lions", "new": "zebras lions tigers", "sea-1": TEXTS["sea-1"]})
    changed = build_into(topics, tmp_path / "out", encoder)
    assert (changed.encoded, changed.record.source.documents) == (2, 41)
    assert "zebra" in changed.record.source.probe["zebras"]
    for doc_id in ("sea-0", "new"):
        topics.call("DELETE", f"/{INDEX}/_doc/{doc_id}", params={"refresh": "true"})
    fill_index(topics, INDEX, {"sea-2": "boats"})
    less = build_into(topics, tmp_path / "out", encoder)
    assert (less.encoded, less.record.source.documents) == (1, 39)
    assert "zebras" not in less.record.source.probe
    assert "zebra" not in {term.term for term in expand_with(tmp_path / "out", "zebras lions").terms}


def test_a_document_that_loses_its_text_is_gone(topics: Engine, encoder: Path, tmp_path: Path) -> None:
    build_into(topics, tmp_path / "out", encoder)
    fill_index(topics, INDEX, {"sea-0": "", "sea-1": {"other": "boats"}, "sea-2": {"contents": [" ", None]}})
    built = build_into(topics, tmp_path / "out", encoder)
    assert (built.encoded, built.without_text, built.record.source.documents) == (0, 3, 37)
    assert built.record.source.in_index == 40


def test_a_document_that_comes_back_as_it_was_is_encoded_at_most_once_more(
    topics: Engine, encoder: Path, tmp_path: Path
) -> None:
    build_into(topics, tmp_path / "out", encoder)
    topics.call("DELETE", f"/{INDEX}/_doc/sea-0", params={"refresh": "true"})
    assert build_into(topics, tmp_path / "out", encoder).record.source.documents == 39
    fill_index(topics, INDEX, {"sea-0": TEXTS["sea-0"]})
    back = build_into(topics, tmp_path / "out", encoder)
    assert (back.encoded, back.record.source.documents) == (0, 40)


def create_dated_document(doc_id: str, day: int, text: str | None = None) -> dict[str, Any]:
    return {doc_id: {"contents": text or TEXTS.get(doc_id, ""), "changed": f"2025-01-{day:02}", "number": day}}


@pytest.mark.parametrize("changed_field", ["changed", "number"])
def test_with_a_field_of_changes_only_newer_documents_are_asked_for(
    engine: Engine, encoder: Path, tmp_path: Path, changed_field: str
) -> None:
    create_index(engine, INDEX, DATED)
    fill_index(
        engine,
        INDEX,
        {
            key: document
            for i, doc_id in enumerate(TEXTS)
            for key, document in create_dated_document(doc_id, 1 + i // 4).items()
        },
    )
    options: Any = {"changed_field": changed_field}
    first_build = build_into(engine, tmp_path / "out", encoder, **options)
    assert first_build.encoded == 40
    assert first_build.record.source.changed_until in ("2025-01-10T00:00:00.000Z", 10.0)
    assert build_into(engine, tmp_path / "out", encoder, **options).encoded == 0
    fill_index(
        engine,
        INDEX,
        create_dated_document("sea-0", 11, "zebras")
        | create_dated_document("law-9", 10, "lions")
        | create_dated_document("sea-1", 9, "unseen"),
    )
    fill_index(engine, INDEX, create_dated_document("sea-2", 12, " "))
    engine.call("DELETE", f"/{INDEX}/_doc/sky-0", params={"refresh": "true"})
    read_counts: list[int] = []
    request = BuildRequest(INDEX, "contents", tmp_path / "out", encoder=encoder, **options)
    later = build_expander(engine, request, progress=lambda done, of: read_counts.append(done))
    assert read_counts[-1] == 6  # those of the tenth and after
    assert (later.encoded, later.without_text, later.record.source.documents) == (2, 1, 38)
    assert (
        build_into(engine, tmp_path / "out", encoder).encoded == 1
    )  # asked for all, it sees the one whose day did not change


def test_a_document_that_comes_back_with_its_old_date_is_read_again(
    engine: Engine, encoder: Path, tmp_path: Path
) -> None:
    """As when an index is made anew from a backup, a part at a time."""
    copies = {f"copy-{doc_id}": {"contents": text, "changed": "2025-02-01"} for doc_id, text in TEXTS.items()}
    dated = [create_dated_document(doc_id, 1) for doc_id in TEXTS]
    counts = []
    for there in ([*dated, copies], [*dated[:10], copies], dated[10:]):
        if copies in there:
            remove_indices(engine, INDEX)
            create_index(engine, INDEX, DATED)
        for documents in there:
            fill_index(engine, INDEX, documents)
        built = build_into(engine, tmp_path / "out", encoder, changed_field="changed")
        counts.append((built.encoded, built.record.source.documents))
    assert counts == [(80, 80), (0, 50), (30, 80)]


def test_a_document_that_lost_its_text_stays_away_from_the_builds_after(
    engine: Engine, encoder: Path, tmp_path: Path
) -> None:
    create_index(engine, INDEX, DATED)
    for doc_id in TEXTS:
        fill_index(engine, INDEX, create_dated_document(doc_id, 1))
    build_into(engine, tmp_path / "out", encoder, changed_field="changed")
    fill_index(engine, INDEX, {"sea-0": {"contents": "", "changed": "2025-01-02", "number": 2}})
    document_counts = [build_into(engine, tmp_path / "out", encoder, changed_field="changed").record.source.documents]
    for day in (3, 4):
        fill_index(engine, INDEX, create_dated_document("sea-1", day, f"boats {day}"))
        document_counts.append(
            build_into(engine, tmp_path / "out", encoder, changed_field="changed").record.source.documents
        )
    assert document_counts == [39, 39, 39]


@pytest.mark.parametrize("form", ["neighbours", "terms"])
def test_a_build_that_failed_before_its_files_were_placed_is_made_anew(
    topics: Engine, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    build_into(topics, tmp_path / "out", encoder, form=form)
    fill_index(topics, INDEX, {f"new-{number}": "zebras lions tigers" for number in range(3)})
    with monkeypatch.context() as broken, pytest.raises(OSError, match="full"):
        broken.setattr("querylift.index_tools.fast_expander.build.place_files", raise_disk_full)
        build_into(topics, tmp_path / "out", encoder, form=form)
    built = build_into(topics, tmp_path / "out", encoder, form=form)
    assert (built.encoded, built.record.source.documents) == (0, 43)
    assert "zebra" in {word.term for word in expand_with(tmp_path / "out", "zebras lions").terms}


def raise_disk_full(*_: Any, **__: Any) -> None:
    raise OSError("full")


def test_terms_that_the_analyzer_no_longer_makes_are_asked_for_again(
    topics: Engine, encoder: Path, tmp_path: Path
) -> None:
    """What a synonyms file or an upgrade of the engine changes stands in no setting of the index."""
    about = build_into(topics, tmp_path / "out", encoder).record
    right = about.source.probe
    source = about.source.model_copy(update={"probe": {**right, "galaxies": ("galaxies",)}})
    (tmp_path / "out" / RECORD_FILE).write_text(
        about.model_copy(update={"source": source}).model_dump_json(), encoding="utf-8"
    )
    assert read_expander_record(tmp_path / "out").source.probe != right
    assert build_into(topics, tmp_path / "out", encoder).record.source.probe == right


def test_a_field_of_changes_without_a_date_is_named(topics: Engine, encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        build_into(topics, tmp_path / "out", encoder, changed_field="changed")
    assert str(caught.value) == (
        f"--changed-since is 'changed': no document of {INDEX} has a date or a number there; name another field"
    )


# -- a build that is stopped --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["neighbours", "terms"])
def test_an_index_in_another_language_than_the_encoders_is_refused(
    engine: Engine, encoder: Path, tmp_path: Path, form: Any
) -> None:
    create_index(engine, INDEX, DATED)
    fill_index(
        engine, INDEX, {str(number): f"合同法第{number}条" for number in range(30)} | dict(list(TEXTS.items())[:20])
    )
    with pytest.raises(SettingsError, match=r"30 of 50 random documents of .* name an encoder of their language"):
        build_into(engine, tmp_path / "out", encoder, form=form)


def test_documents_in_another_language_are_counted_and_the_others_served(
    topics: Engine, encoder: Path, tmp_path: Path
) -> None:
    fill_index(topics, INDEX, {str(number): f"合同法第{number}条" for number in range(10)})
    built = build_into(topics, tmp_path / "out", encoder)
    assert (built.record.source.documents, built.unreadable) == (50, 10)
    assert "boat" in {word.term for word in expand_with(tmp_path / "out", "sailing anchors").terms}
    assert open_expander_model(tmp_path / "out")[1].expand("合同法") is None


def test_a_killed_build_goes_on_where_it_was(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    create_index(engine, INDEX)
    texts = list(TEXTS.values())
    fill_index(engine, INDEX, {str(i): f"{texts[i % 40]} {i}" for i in range(4400)})
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "querylift", "expander", "build", INDEX, "--engine", engine.url]
    command += ["--out", str(folder), "--encoder", str(encoder), "--threads", "1"]
    with subprocess.Popen(command) as running:
        deadline_s = time.monotonic() + 120
        while not list(list_part_files(folder)) and running.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    part_files = {path: path.read_bytes() for path in list_part_files(folder)}
    assert 1 <= len(part_files) <= 2 and not (folder / "expander.json").exists()
    built = build_into(engine, folder, encoder)
    assert (built.encoded, built.record.source.documents) == (4400 - 2000 * len(part_files), 4400)
    assert {path: path.read_bytes() for path in part_files} == part_files
    assert not [path for path in folder.iterdir() if path.name.startswith(".new")]
    assert {path.suffix for path in (folder / "parts").iterdir()} == {".json", ".npz"}
    assert built.record.terms == 40


def test_a_part_that_cannot_be_read_is_named_and_may_be_deleted(topics: Engine, encoder: Path, tmp_path: Path) -> None:
    build_into(topics, tmp_path / "out", encoder)
    (part,) = list_part_files(tmp_path / "out")
    intact = part.read_bytes()
    for broken in (b"", b"nonsense", intact[: len(intact) // 2], intact[:-5]):
        part.write_bytes(broken)
        with pytest.raises(SettingsError, match=rf"{part} cannot be read \(.*\); delete it, and build again"):
            build_into(topics, tmp_path / "out", encoder)
    part.unlink()
    assert build_into(topics, tmp_path / "out", encoder).encoded == 40


def test_a_proxy_that_serves_is_not_disturbed_by_a_later_build(topics: Engine, encoder: Path, tmp_path: Path) -> None:
    build_into(topics, tmp_path / "out", encoder)
    _, serving = open_expander_model(tmp_path / "out")
    expansions_before = [serving.expand(text) for text in TEXTS.values()]
    fill_index(topics, INDEX, {doc_id: "zebras lions" for doc_id in list(TEXTS)[:30]})
    build_into(topics, tmp_path / "out", encoder)
    assert [serving.expand(text) for text in TEXTS.values()] == expansions_before
    assert expand_with(tmp_path / "out", "boats") != expansions_before[0]
