"""Texts of documents, from a real engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from querylift.index_tools.engine import Engine, make_index_action
from querylift.index_tools.judging.document_texts import fetch_document_texts
from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import parse_settings

pytestmark = pytest.mark.engine
INDEX = "document-texts-test"
SOURCES: dict[str, dict[str, Any]] = {
    "d1": {"text": "carries the\nnerve  signal", "title": "Axon"},
    "d2": {"text": ["blood vessel", "of the heart"]},
    "d3": {"title": "", "product": {"name": "bone saw"}},
}


@pytest.fixture(scope="module")
def engine(opensearch: str) -> Iterator[Engine]:
    with Engine(parse_settings({"engine": opensearch})) as engine:
        actions = [make_index_action(INDEX, doc_id, source) for doc_id, source in SOURCES.items()]
        assert all(ok for ok, _ in engine.send_bulk_actions(actions))
        engine.call("POST", f"/{INDEX}/_refresh")
        yield engine
        engine.call("DELETE", f"/{INDEX}")


def test_the_title_comes_before_the_text_and_white_space_is_one_space(engine: Engine) -> None:
    assert fetch_document_texts(engine, INDEX, ["d2", "d1", "d1"]) == {
        "d1": "Axon carries the nerve signal",
        "d2": "blood vessel of the heart",
    }


def test_a_document_without_text_or_that_the_index_lacks_is_left_out(engine: Engine) -> None:
    assert fetch_document_texts(engine, INDEX, {"d1", "d3", "d9"}).keys() == {"d1"}
    assert fetch_document_texts(engine, INDEX, ["d9"]) == {}
    assert fetch_document_texts(engine, INDEX, []) == {}


def test_fields_may_be_named_also_within_objects(engine: Engine) -> None:
    assert fetch_document_texts(engine, INDEX, ["d1", "d3"], ["product.name"]) == {"d3": "bone saw"}


def test_fields_that_no_document_has_are_an_error(engine: Engine) -> None:
    with pytest.raises(
        SettingsError, match="no document of document-texts-test has a text in nowhere; name the fields"
    ):
        fetch_document_texts(engine, INDEX, ["d1"], ["nowhere"])


def test_a_named_field_that_no_document_has_is_warned_about_and_a_default_one_is_not(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch_document_texts(engine, INDEX, ["d2"]) == {"d2": "blood vessel of the heart"}
    assert capsys.readouterr().err == ""
    fetch_document_texts(engine, INDEX, ["d1", "d3"], ["product.name", "titel"])
    assert capsys.readouterr().err == "warning: none of the 2 documents that are read has a text in titel\n"
