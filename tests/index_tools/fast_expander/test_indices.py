"""Indices of every shape become an expander, or one sentence says why not."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.build import BuildRequest, BuildResult, build_expander
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.fast_expander.expander_folder import read_expander_record
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
    remove_indices,
    write_old_encoder_folder,
    write_tiny_encoder,
)
from tests.helpers.upstream_stub import run_proxy

pytestmark = pytest.mark.engine
ONE, TWO, THREE = INDICES = ("expander-shape-1", "expander-shape-2", "expander-shape-3")
ENGLISH = {"type": "text", "analyzer": "english"}
HALF = dict(list(TEXTS.items())[::2])
REST = dict(list(TEXTS.items())[1::2])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("shapes") / "encoder")


@pytest.fixture
def engine(opensearch: str) -> Iterator[Engine]:
    with Engine(parse_settings({"engine": opensearch})) as connected_engine:
        remove_indices(connected_engine, *INDICES)
        yield connected_engine
        remove_indices(connected_engine, *INDICES)


class Builder:
    """Builds into one folder."""

    def __init__(self, engine: Engine, folder: Path, encoder: Path) -> None:
        self.engine, self.folder, self._encoder = engine, folder, encoder

    def __call__(self, index: str = ONE, field: str = "contents", **options: Any) -> BuildResult:
        request = BuildRequest(index, field, self.folder, **{"encoder": self._encoder, **options})
        return build_expander(self.engine, request)

    def refused(self, index: str = ONE, field: str = "contents", **options: Any) -> str:
        with pytest.raises(SettingsError) as caught:
            self(index, field, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def terms(self, text: str = "boats") -> dict[str, str]:
        """Term to surface, the heaviest ten."""
        found = open_expander_model(self.folder)[1].expand(text)
        return {term.term: term.surface for term in found.terms[:10]} if found else {}

    def served(self, index: str = ONE) -> Expansion | None:
        async def main() -> Expansion | None:
            generator = FastExpanderGenerator(self.folder, self.engine.url)
            try:
                await generator.start()
                return await generator.expand(ExpansionRequest("boats", index))
            finally:
                await generator.close()

        return asyncio.run(main())


@pytest.fixture
def builds(engine: Engine, tmp_path: Path, encoder: Path) -> Builder:
    return Builder(engine, tmp_path / "out", encoder)


# -- where a text stands ------------------------------------------------------------------------------------------------


def test_a_sub_field_takes_its_text_from_its_parent_and_its_terms_from_its_own_analyzer(builds: Builder) -> None:
    create_index(
        builds.engine, ONE, {"title": {"type": "text", "fields": {"english": ENGLISH, "raw": {"type": "keyword"}}}}
    )
    fill_index(builds.engine, ONE, TEXTS, field="title")
    assert builds(field="title.english").encoded == 40
    assert {"boat": "boats", "sail": "sailing"}.items() <= builds.terms().items()
    builds.folder = builds.folder.with_name("plain")
    builds(field="title")
    assert {"boats": "boats", "sailing": "sailing"}.items() <= builds.terms().items()


@pytest.mark.parametrize("kept", [{}, {"term_vector": "yes"}], ids=["vectors made anew", "vectors stored"])
def test_a_field_that_others_are_copied_to_takes_its_text_from_all_of_them(builds: Builder, kept: Any) -> None:
    copied = ENGLISH | {"copy_to": ["contents"]}
    deep = {"properties": {"name": {"type": "keyword", "copy_to": "contents"}}}
    fields = {"text": copied, "title": copied, "by": deep, "other": ENGLISH, "contents": ENGLISH | kept}
    create_index(builds.engine, ONE, fields)
    documents: dict[str, Any] = {
        "all": {"title": "sailors", "text": ["boats", "waves"], "by": [{"name": "anchors"}, {"name": "ropes"}]},
        "same": {"title": "waves sailors", "text": "boats waves", "by": {"name": ["anchors", "ropes"]}},
        "title only": {"title": "tides", "by": None, "other": "no"},
        "other only": {"other": "no"},
    }
    fill_index(builds.engine, ONE, documents)
    built = builds()
    assert (built.encoded, built.without_text, built.record.terms) == (3, 1, 1)
    plan = json.loads((builds.folder / "parts" / "plan.json").read_text(encoding="utf-8"))
    assert plan["text"] == ["title", "by.name", "text"]  # a title first, as the end of a long text is not read


def test_the_fields_to_read_may_be_named(builds: Builder) -> None:
    create_index(builds.engine, ONE, PROPERTIES | {"summary": {"type": "keyword"}})
    fill_index(builds.engine, ONE, {doc_id: {"contents": text, "summary": "boats"} for doc_id, text in HALF.items()})
    builds(sources=("summary",))
    with np.load(next(list_part_files(builds.folder))) as part:
        assert len(np.unique(part["vectors"], axis=0)) == 1


def test_a_text_is_found_however_its_objects_are_written(builds: Builder) -> None:
    create_index(builds.engine, ONE, {"doc": {"properties": {"body": ENGLISH}}})
    ways: list[Any] = [{"doc": {"body": "boats"}}, {"doc.body": "boats"}, {"doc": [{"body": "boats"}, {"x": 1}]}]
    fill_index(builds.engine, ONE, {"other": {"doc": {"body": "stars"}}} | {str(i): way for i, way in enumerate(ways)})
    built = builds(field="doc.body")
    assert (built.encoded, built.without_text) == (4, 0)
    with np.load(next(list_part_files(builds.folder))) as part:
        assert sorted(np.unique(part["digests"], return_counts=True)[1]) == [1, 3]


def test_half_of_a_surrogate_pair_and_a_null_stop_nothing(builds: Builder) -> None:
    create_index(builds.engine, ONE)
    fill_index(builds.engine, ONE, HALF)
    connection = http.client.HTTPConnection(builds.engine.url.removeprefix("http://"), timeout=60)
    body = b'{"contents": "boats \\ud83d harbour \\u0000 waves"}'
    connection.request("PUT", f"/{ONE}/_doc/half?refresh=true", body, {"Content-Type": "application/json"})
    assert connection.getresponse().read()
    connection.close()
    assert builds().encoded == 21
    assert builds().encoded == 0


# -- several indices, several shards ------------------------------------------------------------------------------------


def test_two_indices_behind_an_alias_are_one(builds: Builder, caplog: pytest.LogCaptureFixture) -> None:
    for index, documents in ((ONE, HALF), (TWO, REST)):
        create_index(builds.engine, index)
        fill_index(builds.engine, index, documents | {"same id": "boats moons"})
        builds.engine.call("PUT", f"/{index}/_alias/expander-alias")
    built = builds("expander-alias")
    source = built.record.source
    assert (built.encoded, source.documents, source.indices, source.aliases) == (
        42,
        42,
        (ONE, TWO),
        ("expander-alias",),
    )
    for index in ("expander-alias", ONE, TWO, f"{ONE},{TWO}"):
        assert builds.served(index) is not None
    assert caplog.messages == []
    create_index(builds.engine, THREE)
    fill_index(builds.engine, THREE, {"new": "boats ropes"})
    builds.engine.call("PUT", f"/{THREE}/_alias/expander-alias")
    later = builds("expander-alias")
    assert (later.encoded, later.record.source.indices) == (1, INDICES)


def test_an_index_that_lacks_the_field_is_named_among_several(builds: Builder) -> None:
    create_index(builds.engine, ONE)
    create_index(builds.engine, TWO, {"title": ENGLISH})
    assert builds.refused(f"{ONE},{TWO}") == f"--field is 'contents': {TWO} has no such field; its text fields: title"


def test_documents_of_every_shard_have_their_terms_whatever_they_are_routed_by(builds: Builder) -> None:
    """Without stored term vectors too, which the engine then makes anew from the source."""
    create_index(builds.engine, ONE, {"contents": ENGLISH}, number_of_shards=3)
    for doc_id, text in TEXTS.items():
        builds.engine.call("PUT", f"/{ONE}/_doc/{doc_id}", {"contents": text}, params={"routing": doc_id[::-1]})
    builds.engine.call("POST", f"/{ONE}/_refresh")
    shards = builds.engine.call("GET", f"/{ONE}/_stats/docs", params={"level": "shards"})["indices"][ONE]["shards"]
    assert sum(copy[0]["docs"]["count"] > 0 for copy in shards.values()) > 1
    assert builds().record.terms == 40
    with np.load(next(list_part_files(builds.folder))) as part:
        assert np.diff(part["ends"], prepend=0).tolist() == part["lengths"].tolist() == [4] * 40
    assert builds().encoded == 0


# -- what is in it ------------------------------------------------------------------------------------------------------


def test_documents_without_text_are_left_out_and_are_no_change(
    builds: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    create_index(builds.engine, ONE)
    fill_index(builds.engine, ONE, TEXTS | {f"empty {i}": {"other": i} for i in range(30)} | {"blank": "  "})
    built = builds()
    assert (built.encoded, built.without_text) == (40, 31)
    assert (built.record.source.documents, built.record.source.in_index) == (40, 71)
    assert builds.served() is not None and caplog.messages == []
    fill_index(builds.engine, ONE, {f"new {i}": "boats" for i in range(8)})
    assert builds.served() is not None
    assert caplog.messages == [
        f"{ONE} holds 79 documents now, but held 71 when the expander {builds.folder} was built; build the expander again"
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 19, 20])
def test_a_small_index_is_expanded_too(builds: Builder, count: int) -> None:
    create_index(builds.engine, ONE)
    fill_index(builds.engine, ONE, dict(list(TEXTS.items())[::2][:count]))
    assert builds().record.terms > 0
    assert builds.served() is not None


def test_an_index_in_which_every_document_is_alike_has_no_term_to_add(builds: Builder) -> None:
    create_index(builds.engine, ONE)
    fill_index(builds.engine, ONE, {str(i): "boats and waves" for i in range(30)})
    assert builds.refused() == f"contents of {ONE} has no term to add to a query; name another field"
    assert not (builds.folder / "expander.json").exists()


def test_an_analyzer_that_makes_many_terms_of_a_word_is_asked_in_smaller_pieces(builds: Builder) -> None:
    grams = {"type": "edge_ngram", "min_gram": 1, "max_gram": 12}
    analysis = {"filter": {"grams": grams}, "analyzer": {"auto": {"tokenizer": "standard", "filter": ["grams"]}}}
    limit = {"max_token_count": 50}
    create_index(
        builds.engine, ONE, {"contents": {"type": "text", "analyzer": "auto"}}, analysis=analysis, analyze=limit
    )
    fill_index(builds.engine, ONE, TEXTS)
    assert builds().encoded == 40
    assert builds.terms()


# -- refused ------------------------------------------------------------------------------------------------------------


def test_an_index_that_is_not_there_is_named(builds: Builder) -> None:
    for index in (ONE, "expander-shape-*", f"{ONE},{TWO}"):
        assert builds.refused(index) == f"there is no index {index} at {builds.engine.url}; name another"
    assert not builds.folder.exists()


def test_a_field_that_has_no_terms_is_named_with_those_that_have(builds: Builder) -> None:
    title = {"type": "text", "fields": {"english": ENGLISH}}
    create_index(builds.engine, ONE, {"title": title, "tag": {"type": "keyword"}, "a": {"properties": {"b": ENGLISH}}})
    fields = "its text fields: a.b, title, title.english"
    assert builds.refused(field="nope") == f"--field is 'nope': {ONE} has no such field; {fields}"
    assert builds.refused(field="tag") == f"--field is 'tag': {ONE} has one of type keyword; {fields}"
    create_index(builds.engine, TWO, {"tag": {"type": "keyword"}})
    assert builds.refused(TWO, "tag") == f"--field is 'tag': {TWO} has one of type keyword; its text fields: none"


def test_a_build_that_made_nothing_binds_the_next_one_to_nothing(builds: Builder) -> None:
    create_index(builds.engine, ONE)
    fill_index(builds.engine, ONE, HALF)
    assert builds.refused(sources=("nope",)) == f"no document of {ONE} has text in nope; name others with --text"
    assert builds().encoded == 20
    assert builds.refused(sources=("nope",)) == (
        f"{builds.folder} holds an expander of other settings (text was ['contents']); name another folder, or delete it"
    )


def test_a_folder_that_is_none_is_named(builds: Builder) -> None:
    create_index(builds.engine, ONE)
    builds.folder.write_text("a file", encoding="utf-8")
    assert builds.refused() == f"{builds.folder} cannot be written: File exists; name another folder"
    builds.folder.unlink()
    encoder = write_tiny_encoder(builds.folder.parent / "encoder")
    (encoder / "model.safetensors").unlink()
    assert builds.refused(encoder=encoder) == (
        f"{encoder} has neither model.safetensors nor onnx/model.onnx; name a sentence-transformers folder"
    )


def test_an_encoder_in_the_layout_of_an_early_version_is_found(builds: Builder, tmp_path: Path) -> None:
    create_index(builds.engine, ONE)
    fill_index(builds.engine, ONE, TEXTS)
    builds(encoder=write_old_encoder_folder(tmp_path / "old"))
    reading = read_expander_record(builds.folder).reading
    assert reading is not None and reading.pooling == "cls"


def test_a_changed_analyzer_is_refused_by_the_build_and_by_the_server(builds: Builder) -> None:
    create_index(builds.engine, ONE)
    fill_index(builds.engine, ONE, TEXTS)
    builds()
    remove_indices(builds.engine, ONE)
    create_index(builds.engine, ONE, {"contents": {"type": "text", "analyzer": "standard"}})
    fill_index(builds.engine, ONE, TEXTS)
    problem = builds.refused()
    assert problem.startswith(f"{builds.folder} holds an expander of other settings (analysis was '")
    with pytest.raises(SettingsError) as caught:
        builds.served()
    assert str(caught.value) == (
        f"the analyzer of contents on {ONE} makes anchors of 'anchors', but made anchor when {builds.folder} was built; "
        "build the expander again"
    )


def test_an_encoder_that_reads_otherwise_is_another_expander(builds: Builder, tmp_path: Path) -> None:
    create_index(builds.engine, ONE)
    fill_index(builds.engine, ONE, HALF)
    encoder = write_tiny_encoder(tmp_path / "other")
    builds(encoder=encoder)
    (encoder / "sentence_bert_config.json").write_text('{"max_seq_length": 4}', encoding="utf-8")
    assert "holds an expander of other settings (reading was" in builds.refused(encoder=encoder)


def test_a_mapping_that_gains_a_field_is_no_change(builds: Builder) -> None:
    create_index(builds.engine, ONE)
    fill_index(builds.engine, ONE, TEXTS)
    builds()
    fill_index(builds.engine, ONE, {"new": {"contents": "boats", "never seen before": "words"}})
    assert builds().encoded == 1


# -- as a user meets it -------------------------------------------------------------------------------------------------


def run_querylift(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "querylift", "expander", "build", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


def test_the_command_tells_what_it_made_and_what_it_cannot_make(engine: Engine, tmp_path: Path, encoder: Path) -> None:
    create_index(engine, ONE)
    fill_index(engine, ONE, TEXTS | {"empty": ""})
    out = str(tmp_path / "out")
    options = ("--engine", engine.url, "--out", out, "--encoder", str(encoder), "--threads", "2", "--field", "contents")
    done = run_querylift(ONE, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{out}: 40 documents (40 encoded now), 40 terms, 0.1 MB\n1 documents have no text and are left out\n"
    )
    wrong = run_querylift(ONE, "--engine", engine.url, "--out", out, "--encoder", str(encoder), "--field", "nope")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == f"querylift: --field is 'nope': {ONE} has no such field; its text fields: contents\n"


def test_a_search_through_the_proxy_finds_what_its_words_do_not_stand_in(builds: Builder) -> None:
    """By the terms of the field, and on a field that is analysed another way by the words that they are made of."""
    create_index(builds.engine, ONE, PROPERTIES | {"plain": {"type": "text"}})
    fill_index(builds.engine, ONE, {doc_id: {"contents": text, "plain": text} for doc_id, text in TEXTS.items()})
    builds()
    options: Any = {"index": {ONE: {"mode": "widen", "weight": 0.5}}, "budget_ms": 20_000}

    async def main() -> dict[str, tuple[str, set[str]]]:
        found = {}
        generator = FastExpanderGenerator(builds.folder, builds.engine.url)
        async with run_proxy(builds.engine.url, generator, **options) as front, aiohttp.ClientSession() as client:
            for field in ("contents", "plain"):
                body = {"query": {"match": {field: "fishing"}}, "size": 10}
                async with client.post(f"{front.url}/{ONE}/_search", json=body) as answer:
                    hits = (await answer.json())["hits"]["hits"]
                    found[field] = answer.headers["X-Querylift"], {hit["_id"].split("-")[0] for hit in hits}
                    assert len(hits) == 10
        return found

    assert asyncio.run(main()) == {field: ("expanded", {"sea"}) for field in ("contents", "plain")}
    assert sum("fishing" in text for text in TEXTS.values()) == 4 and "fishing" in TOPICS["sea"]
