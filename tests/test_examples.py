"""The examples run as their README says."""

import json
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from querylift.index_tools.engine import Engine, make_index_action
from querylift.index_tools.proxy_process import run_proxy
from querylift.plugin.settings import parse_settings
from tests.helpers.paths import ROOT

EXAMPLES = ROOT / "examples"
DOCUMENTS = {
    "sku-1": "trainers: light shoes for long distances",
    "sku-2": "waterproof anorak",
    "sku-3": "warm mittens",
    "sku-4": "office shoes",
}
TABLE = [
    {"query": "running shoes", "text": "trainers jogging distances"},
    {"query": "winter gloves", "text": "mittens warm"},
]


def _run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def shop(opensearch: str) -> Iterator[str]:
    """URL of an engine with the indices that the examples name."""
    indices = ("products", "articles", "help-public", "help-internal")
    with Engine(parse_settings({"engine": opensearch})) as engine:
        for index in indices:
            mappings = {"properties": {name: {"type": "text"} for name in ("title", "description")}}
            engine.call("PUT", f"/{index}", {"settings": {"number_of_replicas": 0}, "mappings": mappings})
            actions = [make_index_action(index, doc_id, {"title": text}) for doc_id, text in DOCUMENTS.items()]
            assert all(ok for ok, _ in engine.send_bulk_actions(actions))
            engine.call("POST", f"/{index}/_refresh")
        yield opensearch
        for index in indices:
            engine.call("DELETE", f"/{index}")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TABLE), encoding="utf-8")
    return path


def _settings(name: str, shop: str, table: Path) -> dict[str, object]:
    """The example's settings, with an engine, a generator and a cache that exist here."""
    settings = tomllib.loads((EXAMPLES / "settings" / f"{name}.toml").read_text(encoding="utf-8"))
    settings |= {"engine": shop, "generator": f"table:{table}"}
    settings.pop("engine_ca_file", None)
    settings.pop("engine_username", None)
    settings.get("cache", {}).pop("url", None)
    return settings


def _outcome(url: str, index: str) -> str:
    body = json.dumps({"query": {"match": {"title": "running shoes"}}}).encode()
    request = urllib.request.Request(f"{url}/{index}/_search", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.headers["X-Querylift"])


@pytest.mark.engine
def test_the_application_finds_other_documents_through_the_proxy(shop: str, table: Path) -> None:
    with run_proxy(_settings("one-index", shop, table)) as proxy:
        script = EXAMPLES / "opensearch_app" / "search.py"
        done = _run(script, "running shoes", "--url", proxy.url, "--index", "products", "--field", "title")
    assert done.stderr == ""
    assert done.stdout == "expanded: sku-1, sku-4\nplain:    sku-4, sku-1\n"


@pytest.mark.engine
@pytest.mark.parametrize(
    ("name", "index", "outcome"),
    [
        ("one-index", "products", "expanded"),
        ("one-index", "articles", "skipped;index"),
        ("secured-cluster", "help-public", "expanded"),
        ("secured-cluster", "help-internal", "skipped;off"),
        ("prepared-table", "articles", "expanded"),
        ("prepared-table", "products", "skipped;index"),
    ],
)
def test_each_settings_file_expands_what_its_comments_say(
    name: str, index: str, outcome: str, shop: str, table: Path
) -> None:
    with run_proxy(_settings(name, shop, table)) as proxy:
        assert _outcome(proxy.url, index) == outcome


@pytest.mark.parametrize("path", sorted((EXAMPLES / "settings").glob("*.toml")), ids=lambda path: path.stem)
def test_each_settings_file_is_valid(path: Path) -> None:
    parse_settings(tomllib.loads(path.read_text(encoding="utf-8")))


@pytest.mark.engine
def test_a_spreadsheet_becomes_a_corpus_that_evaluate_reads(tmp_path: Path, shop: str, table: Path) -> None:
    corpus = tmp_path / "my-corpus"
    folder = EXAMPLES / "csv_to_beir"
    done = _run(folder / "convert.py", str(folder / "ratings.csv"), "--out", str(corpus))
    assert (done.stdout, done.stderr) == (f"{corpus}: 3 queries, 4 ratings\n", "")
    assert (corpus / "qrels.tsv").read_text(encoding="utf-8").splitlines()[:2] == [
        "query-id\tcorpus-id\tscore",
        "q1\tsku-1\t3",
    ]
    command = [sys.executable, "-m", "querylift", "evaluate", str(corpus), "--index", "products", "--engine", shop]
    options = ["--field", "title", "--mode", "widen", "--generator", f"table:{table}", "--json"]
    measured = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert measured.stderr == ""
    assert [system["name"] for system in json.loads(measured.stdout)["systems"]] != []


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["query,doc,rating", "a,b,1"], "has no column 'docid'; name it with"),
        (["query,docid,rating", "a,b,good"], "2: write a query, a document id and a whole number of 0 or more"),
    ],
)
def test_a_spreadsheet_that_cannot_be_read_is_one_sentence(tmp_path: Path, lines: list[str], sentence: str) -> None:
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = _run(EXAMPLES / "csv_to_beir" / "convert.py", str(ratings), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert sentence in done.stderr
    assert not (tmp_path / "out").exists()
