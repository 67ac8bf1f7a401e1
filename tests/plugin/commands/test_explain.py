"""`querylift explain` on a real index: it says when the search names fields that the index lacks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from querylift.index_tools.engine import Engine
from querylift.plugin.commands.main import querylift
from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import parse_settings
from tests.helpers.corpus_files import write_text_file

pytestmark = pytest.mark.engine
INDEX = "explain-test"


@pytest.fixture
def folder(opensearch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a working folder with settings for an index whose only text fields are `title` and `body`."""
    fields = {name: {"type": "text"} for name in ("title", "body")}
    write_text_file(tmp_path / "table.jsonl", '{"query": "download a page", "text": "urlopen fetches"}\n')
    _write_settings(tmp_path, opensearch)
    monkeypatch.chdir(tmp_path)
    with Engine(parse_settings({"engine": opensearch})) as engine:
        engine.call("PUT", f"/{INDEX}", {"mappings": {"properties": fields}})
        yield tmp_path
        engine.call("DELETE", f"/{INDEX}")


def _write_settings(folder: Path, engine: str, fields: str = "[]") -> None:
    text = f'engine = "{engine}"\ngenerator = "table:table.jsonl"\n[index."explain-*"]\nfields = {fields}\n'
    write_text_file(folder / "querylift.toml", text)


def _explain(*options: str, index: str = INDEX) -> Result:
    arguments = ["explain", "download a page", "--index", index, "--json", *options]
    return CliRunner().invoke(querylift, arguments, standalone_mode=False)


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ((), "'text'"),
        (("--field", "titel", "--field", "text^2"), "'titel' or 'text'"),
        (("--body", "body.json"), "'contents'"),
    ],
)
def test_a_search_on_fields_that_the_index_lacks_is_not_called_expanded(
    folder: Path, options: tuple[str, ...], fields: str
) -> None:
    write_text_file(folder / "body.json", '{"query": {"match": {"contents": "download a page"}}}')
    with pytest.raises(SettingsError, match=f"explain-test has no field {fields}, so the search would find nothing; "):
        raise _explain(*options).exception or AssertionError("no error")


def test_one_field_that_the_index_has_is_enough(folder: Path) -> None:
    explanation = json.loads(_explain("--field", "title", "--field", "nowhere").stdout)
    assert explanation["outcome"] == "expanded"
    assert explanation["body"]["query"]["bool"]["must"][0]["multi_match"]["fields"] == ["title", "nowhere"]


def test_the_fields_of_the_index_table_are_searched_by_default(folder: Path, opensearch: str) -> None:
    _write_settings(folder, opensearch, '["title", "body"]')
    clause = json.loads(_explain().stdout)["body"]["query"]["bool"]["must"][0]
    assert clause == {"multi_match": {"query": "download a page", "fields": ["title", "body"]}}


def test_fields_that_nobody_could_check_are_told_beside_the_explanation(folder: Path, opensearch: str) -> None:
    result = _explain(index="explain-gone")
    assert json.loads(result.stdout)["outcome"] == "expanded"
    assert result.stderr == (
        f"querylift: the fields text were not checked, because {opensearch} has no index explain-gone\n"
    )
    _write_settings(folder, "http://127.0.0.1:9")
    assert "because the engine at http://127.0.0.1:9 does not answer" in _explain().stderr


def test_what_is_not_expanded_needs_no_engine(folder: Path) -> None:
    _write_settings(folder, "http://127.0.0.1:9")
    result = _explain(index="other")
    assert (json.loads(result.stdout)["reason"], result.stderr) == ("index", "")
