"""`querylift evaluate` on real indices: what it counts, what it leaves out, and when it refuses to conclude."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from querylift.index_tools.engine import Engine, make_index_action
from querylift.plugin.commands.main import querylift
from querylift.plugin.errors import QueryliftError, SettingsError
from querylift.plugin.settings import parse_settings
from tests.helpers.corpus_files import QRELS_HEADER, format_jsonl, write_text_file

pytestmark = pytest.mark.engine
INDEX = "evaluate-test"
TEXTS = {
    "d1": "axon carries the nerve signal",
    "d2": "blood vessel of the heart",
    "d3": "bone tissue",
    "d4": "muscle fibre and heart",
}
MANY_WORDS = " ".join(f"w{number}" for number in range(1100))
"""More words than the engine's limit of 1,024 clauses."""

IndexWriter = Callable[..., None]


@pytest.fixture
def write_index(opensearch: str) -> Iterator[IndexWriter]:
    with Engine(parse_settings({"engine": opensearch})) as engine:

        def write(texts: Mapping[str, str] = TEXTS, *, name: str = INDEX, **analysis: Any) -> None:
            field = {"type": "text", **({"analyzer": "own"} if analysis else {})}
            settings = {"analysis": analysis, "index.max_ngram_diff": 5} if analysis else {}
            engine.call("PUT", f"/{name}", {"settings": settings, "mappings": {"properties": {"contents": field}}})
            actions = (make_index_action(name, doc_id, {"contents": text}) for doc_id, text in texts.items())
            assert all(ok for ok, _ in engine.send_bulk_actions(actions))
            engine.call("POST", f"/{name}/_refresh")

        yield write
        engine.call("DELETE", f"/{INDEX}*")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a working folder with a corpus of three queries and a table that expands the first one."""
    write_corpus(tmp_path, {"q1": "nerve signal", "q2": "heart", "q3": "bone"}, "q1\td1\t1\nq2\td2\t1\nq3\td3\t1\n")
    write_table(tmp_path, {"nerve signal": "axon carries"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_corpus(folder: Path, queries: dict[str, str], judgments: str) -> None:
    write_text_file(folder / "corpus" / "queries.jsonl", format_jsonl(**queries))
    write_text_file(folder / "corpus" / "qrels.tsv", QRELS_HEADER + judgments)


def write_table(folder: Path, texts: Mapping[str, str]) -> None:
    rows = [json.dumps({"query": query, "text": text}) + "\n" for query, text in texts.items()]
    write_text_file(folder / "table.jsonl", "".join(rows))


def write_too_long_expansion(write_index: IndexWriter, folder: Path) -> None:
    """Write an index and a table. Each word for "heart" makes dozens of n-grams, so its rewrite has too many clauses."""
    own = {"type": "custom", "tokenizer": "grams"}
    write_index(analyzer={"own": own}, tokenizer={"grams": {"type": "ngram", "min_gram": 2, "max_gram": 6}})
    words = " ".join(f"electroencephalographically{number}" for number in range(60))
    write_table(folder, {"heart": words, "bone": "tissue"})


def evaluate(engine: str, *options: str, index: str = INDEX) -> Result:
    arguments = ["evaluate", "corpus", "--index", index, "--engine", engine, *options]
    return CliRunner().invoke(querylift, arguments, standalone_mode=False)


def evaluate_as_json(engine: str, *options: str, index: str = INDEX) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(evaluate(engine, *options, "--json", index=index).stdout)
    return values


# --- searches that the engine refuses


def test_a_query_over_the_clause_limit_is_named_and_counts_0_and_the_others_go_on(
    opensearch: str, write_index: IndexWriter, folder: Path
) -> None:
    write_index()
    write_corpus(folder, {"q1": "nerve signal", "q3": f"bone {MANY_WORDS}"}, "q1\td1\t1\nq3\td3\t1\n")
    result = evaluate(opensearch, "--generator", "table:table.jsonl")
    assert result.exit_code == 0
    assert (
        "no expansion and table:table.jsonl: the engine refused 1 query, counted as 0:\n"
        "    'q3' (failed to create query: maxClauseCount is set to 1024)\n" in result.stdout
    )
    systems = evaluate_as_json(opensearch, "--generator", "table:table.jsonl")["systems"]
    assert [system["means"]["ndcg_at_10"] for system in systems] == [0.5, 0.5]
    assert [list(system["refused_by_engine"]) for system in systems] == [["q3"], ["q3"]]


def test_a_refused_rewrite_is_replaced_by_the_original_search_as_the_proxy_does(
    opensearch: str, write_index: IndexWriter, folder: Path
) -> None:
    write_too_long_expansion(write_index, folder)
    baseline, expanded = evaluate_as_json(opensearch, "--generator", "table:table.jsonl", "--out", "out")["systems"]
    assert expanded["outcomes"] == {"skipped;nothing": 1, "error;rejected": 1, "expanded": 1}
    assert (expanded["expanded"], expanded["skipped"], expanded["failed"]) == (1, 1, 1)
    assert expanded["refused_by_engine"] == baseline["refused_by_engine"] == {}
    assert [line.split()[2] for line in (folder / "out/expanded.run").read_text().splitlines() if "q2" in line]
    assert [json.loads(line)["query"] for line in (folder / "out/expansions.jsonl").read_text().splitlines()] == [
        "bone"
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"query": {"mtach": {"contents": "{{query}}"}}}, r"unknown query \[mtach\]"),
        ({"query": {"match": {"contents": "{{query}}"}}, "sort": ["nowhere"]}, r"No mapping found for \[nowhere\]"),
    ],
)
def test_a_body_that_the_engine_refuses_for_every_query_ends_with_its_reason(
    opensearch: str, write_index: IndexWriter, folder: Path, body: dict[str, Any], reason: str
) -> None:
    write_index()
    (folder / "body.json").write_text(json.dumps(body))
    result = evaluate(opensearch, "--generator", "table:table.jsonl", "--body", "body.json")
    assert isinstance(result.exception, SettingsError)
    with pytest.raises(SettingsError, match=rf"evaluate-test refuses every search: .*{reason}.*; name what to search"):
        raise result.exception


# --- no conclusion where nothing was tried


@pytest.mark.parametrize(
    ("options", "outcome", "sentence"),
    [
        (
            ("--generator", "table:table.jsonl", "--body", "sort.json"),
            "skipped;sort",
            "the hits are not sorted by score",
        ),
        (("--generator", "http://127.0.0.1:9/v1"), "error;generator", "the generator failed"),
    ],
)
def test_nothing_is_concluded_where_no_query_was_expanded(
    opensearch: str, write_index: IndexWriter, folder: Path, options: tuple[str, ...], outcome: str, sentence: str
) -> None:
    write_index()
    (folder / "sort.json").write_text('{"query": {"match": {"contents": "{{query}}"}}, "sort": ["_doc"]}')
    result = evaluate(opensearch, *options, "--out", "out")
    assert isinstance(result.exception, QueryliftError)
    assert result.exception.exit_code == 1
    assert str(result.exception).startswith(f"no query was expanded ({outcome} 3), so nothing was measured; correct ")
    counts = "0 expanded, 3 skipped, 0 failed" if outcome == "skipped;sort" else "0 expanded, 0 skipped, 3 failed"
    assert f"queries: {counts}\n  3 {outcome}: {sentence}\n" in result.stdout
    assert "Leave expansion off" not in result.stdout
    assert "not measured" in (folder / "out/report.html").read_text(encoding="utf-8")
    assert evaluate_as_json(opensearch, *options)["systems"][1]["comparison"]["verdict"] is None


def test_a_proxy_url_at_which_no_proxy_answers_leads_to_no_conclusion(
    opensearch: str, write_index: IndexWriter, folder: Path
) -> None:
    write_index()
    result = evaluate(opensearch, "--via", opensearch)
    assert str(result.exception) == (
        "no query was expanded (sent unchanged 3), so nothing was measured; "
        "name the URL of a Querylift proxy with --via"
    )
    assert "3 sent unchanged: the answer has no header X-Querylift, so no proxy sent it\n" in result.stdout


def test_failed_expansions_are_told_beside_the_conclusion(
    opensearch: str, write_index: IndexWriter, folder: Path
) -> None:
    write_too_long_expansion(write_index, folder)
    result = evaluate(opensearch, "--generator", "table:table.jsonl")
    assert "queries: 1 expanded, 1 skipped, 1 failed\n" in result.stdout
    assert "with 3 queries, 1 of them expanded.\nLeave expansion off on evaluate-test.\n1 expansions failed." in (
        result.stdout
    )


def test_the_generator_none_measures_the_baseline_and_concludes_nothing(
    opensearch: str, write_index: IndexWriter, folder: Path
) -> None:
    write_index()
    result = evaluate(opensearch, "--generator", "none")
    assert (result.exit_code, result.exception) == (0, None)
    assert "Leave expansion off" not in result.stdout


# --- judgments and ids


def test_white_space_around_an_id_of_the_index_separates_no_hit_from_its_judgment(
    opensearch: str, write_index: IndexWriter, folder: Path
) -> None:
    write_index({"d1 ": TEXTS["d1"], " d2": TEXTS["d2"], "d3": TEXTS["d3"]})
    measured = evaluate_as_json(opensearch, "--generator", "none", "--out", "out")
    assert measured["systems"][0]["means"]["ndcg_at_10"] == 1.0
    assert measured["judged_documents"] == {"count": 3, "not_in_index": 0}


def test_an_id_that_no_trec_file_can_hold_costs_the_run_files_but_not_the_result(
    opensearch: str, write_index: IndexWriter, folder: Path
) -> None:
    write_index({"d 1": TEXTS["d1"], "d2": TEXTS["d2"], "d3": TEXTS["d3"]})
    result = evaluate(opensearch, "--generator", "table:table.jsonl", "--out", "out")
    assert "plain.run:1: 'd 1' cannot stand in a TREC file" in str(result.exception)
    assert "queries: 1 expanded, 2 skipped, 0 failed" in result.stdout
    assert (folder / "out/report.html").exists()


def test_judged_documents_that_the_index_lacks_and_hits_that_nobody_judged_are_told(
    opensearch: str, write_index: IndexWriter, folder: Path
) -> None:
    """The query `heart` finds d2 and d4, and d4 is not judged. The index lacks d8 and d9."""
    write_index()
    write_corpus(folder, {"q1": "nerve signal", "q2": "heart"}, "q1\td1\t1\nq1\td9\t0\nq2\td2\t1\nq2\td8\t1\n")
    result = evaluate(opensearch, "--generator", "table:table.jsonl", "--out", "out")
    assert (
        "judged documents: 4, 2 of them not in the index\n"
        "never judged, of the first ten hits: 33% no expansion, 33% table:table.jsonl\n" in result.stdout
    )
    page = (folder / "out/report.html").read_text(encoding="utf-8")
    assert "<dt>Not in the index</dt><dd><bdi>2 judged</bdi></dd>" in page
    assert "Nobody judged 33% of the first ten hits of <bdi>no expansion</bdi>, 33%" in page
    measured = evaluate_as_json(opensearch, "--generator", "table:table.jsonl")
    assert measured["judged_documents"] == {"count": 4, "not_in_index": 2}
    assert measured["systems"][0]["unjudged_share_of_first_ten"] == pytest.approx(1 / 3)
    run = str(folder / "out/plain.run")
    compared = CliRunner().invoke(querylift, ["compare", run, run, "--qrels", str(folder / "out/qrels.txt")])
    assert "never judged      33% of the first ten hits in A, 33% in B\n" in compared.stdout


def test_an_alias_of_several_indices_is_measured_like_one_index(
    opensearch: str, write_index: IndexWriter, folder: Path
) -> None:
    write_index({"d1": TEXTS["d1"], "d2": TEXTS["d2"]}, name=f"{INDEX}-a")
    write_index({"d2": TEXTS["d2"], "d3": TEXTS["d3"]}, name=f"{INDEX}-b")
    measured = evaluate_as_json(opensearch, "--generator", "table:table.jsonl", "--out", "out", index=f"{INDEX}-*")
    assert measured["systems"][0]["means"]["ndcg_at_10"] == 1.0
    assert (folder / "out/plain.run").read_text().splitlines()[1].startswith("q2 Q0 d2 1 1 ")


# --- settings


def test_the_settings_file_of_the_folder_is_read_as_by_every_other_command(
    opensearch: str, write_index: IndexWriter, folder: Path
) -> None:
    write_index()
    settings = f'engine = "{opensearch}"\ngenerator = "table:table.jsonl"\n[index.{INDEX}]\nweight = 0.4\n'
    (folder / "querylift.toml").write_text(settings)
    result = CliRunner().invoke(querylift, ["evaluate", "corpus", "--index", INDEX, "--json"], catch_exceptions=False)
    measured = json.loads(result.stdout)
    assert (measured["weight"], measured["systems"][1]["name"]) == (0.4, "table:table.jsonl")
    assert evaluate_as_json(opensearch, "--weight", "0.3")["weight"] == 0.3


def test_the_fields_of_the_index_table_are_searched_by_default(
    opensearch: str, write_index: IndexWriter, folder: Path
) -> None:
    write_index()
    (folder / "querylift.toml").write_text(f'[index.{INDEX}]\nfields = ["nowhere"]\n')
    result = evaluate(opensearch, "--generator", "table:table.jsonl")
    assert "no query finds anything on evaluate-test" in str(result.exception)
    (folder / "querylift.toml").write_text(f'[index.{INDEX}]\nfields = ["nowhere", "contents"]\n')
    assert evaluate(opensearch, "--generator", "table:table.jsonl").exit_code == 0


def test_without_any_generator_the_command_says_how_to_name_one(folder: Path) -> None:
    result = evaluate("http://127.0.0.1:9")
    assert str(result.exception) == "the settings name no generator; give either --generator or --via"
