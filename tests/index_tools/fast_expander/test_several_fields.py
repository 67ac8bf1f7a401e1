"""An expander of several fields adds terms to each of them, as that field's own analyzer makes them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.build import BuildRequest, BuildResult, build_expander
from querylift.index_tools.fast_expander.document_parts import read_planned_fields
from querylift.plugin import dsl
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.fast_expander.expander_folder import read_expander_record
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.fast_expander import FastExpanderGenerator, open_expander_model
from querylift.plugin.policy import Policy
from querylift.plugin.settings import parse_settings
from tests.helpers.expanders import TEXTS, create_index, fill_index, remove_indices, write_tiny_encoder

pytestmark = pytest.mark.engine
INDEX = "expander-fields"
ENGLISH = {"type": "text", "analyzer": "english"}
EXACT = {"type": "text", "analyzer": "simple"}
DOCUMENTS = {doc_id: {"title": " ".join(text.split()[:2]), "text": text} for doc_id, text in TEXTS.items()}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("fields") / "encoder")


@pytest.fixture
def engine(opensearch: str) -> Iterator[Engine]:
    with Engine(parse_settings({"engine": opensearch})) as connected_engine:
        remove_indices(connected_engine, INDEX)
        yield connected_engine
        remove_indices(connected_engine, INDEX)


def fill(engine: Engine, **properties: Any) -> None:
    create_index(engine, INDEX, properties)
    fill_index(engine, INDEX, DOCUMENTS)


def build(engine: Engine, folder: Path, encoder: Path, *fields: str, **options: Any) -> BuildResult:
    return build_expander(engine, BuildRequest(INDEX, fields, folder, encoder=encoder, **options))


def expand(folder: Path, text: str = "boats") -> Expansion:
    expansion = open_expander_model(folder)[1].expand(text)
    assert expansion is not None
    return expansion


def build_search(folder: Path, *fields: str) -> dict[str, Any]:
    """The search for boats in `fields`, with the expansion from the folder."""
    body = {"query": {"multi_match": {"query": "boats", "fields": list(fields)}}}
    return dsl.add_expansion(body, dsl.find_user_query(body, Policy()), expand(folder), Policy())


def list_added_terms(search: dict[str, Any]) -> list[tuple[str, str]]:
    """(field, term) of each clause that was added, in their order."""
    clauses = search["query"]["bool"]["should"][0]["bool"]["should"]
    return [(name, options["value"]) for clause in clauses for name, options in clause["term"].items()]


def test_fields_of_one_analyzer_share_their_terms(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    fill(engine, title=ENGLISH, text=ENGLISH)
    record = build(engine, tmp_path, encoder, "title", "text").record
    (group,) = record.source.groups
    assert (group.names, group.terms, record.terms) == (("title", "text"), 40, 40)
    assert group.probe["galaxies"] == ("galaxi",)
    expansion = expand(tmp_path)
    assert {term.fields for term in expansion.terms} == {("title", "text")}
    added = list_added_terms(build_search(tmp_path, "title^2", "text"))
    assert {("title", "boat"), ("text", "boat"), ("title", "sail"), ("text", "sail")} < set(added)


def test_a_word_of_two_fields_counts_in_the_document_twice(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    """The weight of a term is that of title and text read as one text, as in a field that both are copied to."""
    copied = ENGLISH | {"copy_to": "contents"}
    fill(engine, title=copied, text=copied, contents=ENGLISH | {"term_vector": "yes"})
    build(engine, tmp_path / "two", encoder, "title", "text")
    build(engine, tmp_path / "copy", encoder, "contents")
    two, copy = expand(tmp_path / "two"), expand(tmp_path / "copy")
    assert copy.field == "contents"
    assert [(term.term, term.weight, term.surface) for term in two.terms] == [
        (term.term, term.weight, term.surface) for term in copy.terms
    ]


def test_fields_of_two_analyzers_have_terms_of_their_own(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    fill(engine, title=EXACT, text=ENGLISH)
    record = build(engine, tmp_path, encoder, "title", "text").record
    assert [(group.names, group.terms) for group in record.source.groups] == [(("title",), 40), (("text",), 40)]
    assert record.terms == 80
    terms_by_field = {fields: [term.term for term in terms] for fields, terms in expand(tmp_path).group_terms().items()}
    assert terms_by_field.keys() == {("title",), ("text",)}
    assert {"sailing", "boats"} <= set(terms_by_field["title",])
    assert {"sail", "boat"} <= set(terms_by_field["text",])
    assert max(term.weight for term in expand(tmp_path).terms) == 1.0
    added = list_added_terms(build_search(tmp_path, "title", "text"))
    assert {("title", "boats"), ("text", "boat")} < set(added)
    assert not {("title", "boat"), ("text", "boats")} & set(added)
    assert {name for name, _ in list_added_terms(build_search(tmp_path, "text"))} == {"text"}


def test_the_engine_finds_by_the_terms_of_each_field(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    fill(engine, title=EXACT, text=ENGLISH)
    build(engine, tmp_path, encoder, "title", "text")
    search = build_search(tmp_path, "title", "text")
    for name, term in list_added_terms(search):
        assert engine.call("POST", f"/{INDEX}/_count", {"query": {"term": {name: term}}})["count"] > 0
    hits = engine.call("POST", f"/{INDEX}/_search", search)["hits"]["hits"]
    assert {hit["_id"].partition("-")[0] for hit in hits} == {"sea"}


def test_a_later_build_encodes_nothing_and_a_field_more_is_refused(
    engine: Engine, encoder: Path, tmp_path: Path
) -> None:
    fill(engine, title=EXACT, text=ENGLISH)
    first = build(engine, tmp_path, encoder, "title", "text").record
    again = build(engine, tmp_path, encoder, "title", "text")
    assert (again.encoded, again.record.source.groups) == (0, first.source.groups)
    assert read_planned_fields(tmp_path) == ("title", "text")
    with pytest.raises(SettingsError, match=r"other settings \(field was \[\['title'\], \['text'\]\], text was"):
        build(engine, tmp_path, encoder, "text")


def test_a_changed_analyzer_of_any_field_stops_the_start(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    fill(engine, title=EXACT, text=ENGLISH)
    build(engine, tmp_path, encoder, "title", "text")
    remove_indices(engine, INDEX)
    fill(engine, title=ENGLISH, text=ENGLISH)

    async def start() -> None:
        generator = FastExpanderGenerator(tmp_path, engine.url)
        try:
            await generator.start()
            await generator.expand(ExpansionRequest("boats", INDEX))
        finally:
            await generator.close()

    with pytest.raises(SettingsError, match="the analyzer of title on expander-fields makes "):
        asyncio.run(start())


def test_the_form_terms_takes_fields_of_one_analyzer(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    fill(engine, title=ENGLISH, text=ENGLISH, exact=EXACT)
    build(engine, tmp_path / "out", encoder, "title", "text", form="terms")
    assert {term.fields for term in expand(tmp_path / "out").terms} == {("title", "text")}
    with pytest.raises(SettingsError) as caught:
        build(engine, tmp_path / "other", encoder, "title", "exact", form="terms")
    assert str(caught.value) == (
        "--field is title, exact: the form terms takes fields of one analyzer, but title and exact differ; "
        "name fields of one analyzer, or build the form neighbours"
    )


def test_the_form_cluster_takes_one_field(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    fill(engine, title=ENGLISH, text=ENGLISH)
    search = tmp_path / "knn.json"
    search.write_text("{}", encoding="utf-8")
    with pytest.raises(SettingsError, match="--field is title, text: the form cluster takes the terms of one field"):
        build(engine, tmp_path / "out", encoder, "title", "text", form="cluster", vector_search=search)


def test_a_copy_without_term_vectors_is_not_taken_beside_others(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    fill(engine, title=ENGLISH | {"copy_to": "all"}, text=ENGLISH, all=ENGLISH)
    with pytest.raises(SettingsError) as caught:
        build(engine, tmp_path, encoder, "text", "all")
    assert str(caught.value) == (
        "--field is text, all: all holds copies of other fields and has no stored term vectors; name all alone, or "
        "leave it out"
    )


def test_a_folder_of_the_first_layout_is_still_read(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    fill(engine, text=ENGLISH)
    build(engine, tmp_path, encoder, "text")
    path = tmp_path / "expander.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["source"].pop("groups") == []
    path.write_text(json.dumps(record), encoding="utf-8")
    assert (expand(tmp_path).field, expand(tmp_path).terms[0].fields) == ("text", ())
    assert build(engine, tmp_path, encoder, "text").encoded == 0


def test_the_command_looks_at_the_index_and_keeps_what_it_chose(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    fill(engine, title=ENGLISH, text=ENGLISH, sku=EXACT)
    command = [sys.executable, "-m", "querylift", "expander", "build", INDEX, "--engine", engine.url]
    command += ["--out", str(tmp_path / "out"), "--encoder", str(encoder), "--threads", "1"]
    first, second = (subprocess.run(command, capture_output=True, text=True, timeout=280) for _ in range(2))
    assert (first.returncode, first.stderr, second.returncode, second.stderr) == (0, "", 0, "")
    assert first.stdout.splitlines()[:5] == [
        f"text fields of {INDEX}, by a sample of its documents:",
        "  title  english  100% of documents      2 words  chosen",
        "  sku    simple     0% of documents      0 words  left out: no document has it",
        "  text   english  100% of documents      4 words  chosen",
        "reads title, text, and adds their terms; name others with --field",
    ]
    assert second.stdout.splitlines()[0] == f"{tmp_path / 'out'} was begun with the fields title, text, and keeps them"
    assert [group.names for group in read_expander_record(tmp_path / "out").source.groups] == [("title", "text")]
