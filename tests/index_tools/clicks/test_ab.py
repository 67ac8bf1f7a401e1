"""`querylift ab` reads a log and clicks, and says what to do. Bad input ends it with one sentence."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner, Result

from querylift.index_tools.clicks.click_events import Click
from querylift.index_tools.clicks.search_log import LoggedSearch
from querylift.index_tools.commands.ab import ab
from querylift.plugin.errors import QueryliftError
from querylift.plugin.proxy.journal import SEARCH_LOGGER
from tests.helpers.click_simulation import simulate_groups, simulate_teams, write_clicks, write_search_log
from tests.helpers.proxy_scenarios import JSON_HEADERS, RAW_BODY, run_with_proxy
from tests.helpers.upstream_stub import RunningProxy, StubEngine

Experiment = tuple[list[LoggedSearch], list[Click]]
ROW: dict[str, Any] = {
    "query_id": "q1",
    "query_attributes": {"experiment": "shop", "variant": "control", "traffic": 0.5, "unit": "u"},
}
CLICK: dict[str, Any] = {"action_name": "click", "query_id": "q1"}


def _compare(folder: Path, experiment: Experiment, *options: str) -> Result:
    log = write_search_log(folder / "log.jsonl", experiment[0])
    clicks = write_clicks(folder / "clicks.jsonl", experiment[1])
    return CliRunner().invoke(ab, [str(log), str(clicks), *options], catch_exceptions=False)


@pytest.mark.parametrize(
    ("simulate", "verdict", "sentence"),
    [
        (
            lambda: simulate_groups(1, users=2400, lift=0.06),
            "rose",
            "Clicks per search rose (+16.3%). Switch expansion on",
        ),
        (lambda: simulate_groups(1, users=2400, lift=-0.1), "fell", "Switch expansion off: enabled = false."),
        (
            lambda: simulate_groups(2, users=2400),
            "no difference seen",
            "With these 2,400 users, a difference of 0.0577",
        ),
        (lambda: simulate_groups(3, users=80), "too little", "the control group has 39 users, and 100 are needed"),
        (lambda: simulate_teams(4, users=400, preference=0.6), "expanded wins", "57.9% preferred the expanded one"),
        (
            lambda: simulate_teams(4, users=400, preference=0.4),
            "original wins",
            "Switch expansion off: enabled = false.",
        ),
        (lambda: simulate_teams(4, users=400), "no difference seen", "No difference could be seen"),
        (lambda: simulate_teams(4, users=20), "too little", "users preferred a list, and 20 are needed"),
    ],
)
def test_the_sentence_says_what_the_clicks_did_and_what_to_do(
    tmp_path: Path, simulate: Callable[[], Experiment], verdict: str, sentence: str
) -> None:
    experiment = simulate()
    text = _compare(tmp_path, experiment).stdout
    assert sentence in " ".join(text.split())
    assert all(len(line) <= 80 for line in text.splitlines())
    report = json.loads(_compare(tmp_path, experiment, "--json").stdout)
    assert report["verdict"] == verdict
    assert sentence in report["sentence"]


def test_groups_of_a_size_that_chance_does_not_make_have_no_conclusion(tmp_path: Path) -> None:
    searches, clicks = simulate_groups(1, users=1000, lift=0.2)
    lost_units = {f"user {i}" for i in range(0, 1000, 2)}
    seen_searches = [search for search in searches if search.variant == "control" or search.unit not in lost_units]
    report = json.loads(_compare(tmp_path, (seen_searches, clicks), "--json").stdout)
    assert report["verdict"] == "wrong sizes"
    assert "where the share is 0.5. Chance does not make that" in report["sentence"]


def test_what_was_left_out_or_guessed_is_said(tmp_path: Path) -> None:
    searches, clicks = simulate_groups(1, users=400)
    clicks = [Click(click.query_id, click.object_id, (click.position or 1) - 1) for click in clicks]
    clicks += [Click("gone"), Click(searches[0].query_id)]
    searches[0] = replace(searches[0], unit="query:0123456789abcdef")
    text = " ".join(_compare(tmp_path, (searches, clicks)).stdout.split())
    assert "1 clicks belong to no search of this experiment and were left out." in text
    assert "1 of the users are queries, because their searches named no user." in text
    assert "Positions in the file of clicks begin at 0, so 1 was added to each." in text
    assert "1 clicks have no position and count 0 in the last row." in text


def test_a_header_that_names_requests_is_suspected(tmp_path: Path) -> None:
    searches, clicks = simulate_groups(1, users=2400)
    searches = [search for search in searches if search.query_id.endswith("-0")]
    assert "Nearly every user searched once." in _compare(tmp_path, (searches, clicks)).stdout


def _write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


ATTRIBUTES = ROW["query_attributes"]
BAD_LOG_LINES: list[tuple[object, str]] = [
    ("2026-11-29 INFO querylift serving", 'log.jsonl:2: this line is no JSON object; set format = "json"'),
    ('{"query_id": ', "log.jsonl:2: this line is not JSON"),
    (ROW | {"query_attributes": 7}, "log.jsonl:2: query_attributes is 7; write an object"),
    (ROW | {"query_attributes": ATTRIBUTES | {"variant": "b"}}, "log.jsonl:2: variant is 'b'; it is one of expanded"),
    (ROW | {"query_attributes": ATTRIBUTES | {"traffic": 50}}, "log.jsonl:2: traffic is 50; it is the share of users"),
    (ROW | {"query_attributes": ATTRIBUTES | {"unit": None}}, "log.jsonl:2: unit is missing; use the log"),
    (ROW | {"query_attributes": ATTRIBUTES | {"teams": "oe"}}, "log.jsonl:2: teams is 'oe'; it has o, e or ="),
    (ROW | {"query_id": []}, "log.jsonl:2: query_id is []; write a text"),
    (ROW | {"timestamp": "noon"}, "log.jsonl:2: timestamp is 'noon'; write a time like"),
    (ROW | {"timestamp": float("inf")}, "log.jsonl:2: timestamp is inf; write a time like"),
    (
        ROW | {"query_attributes": ATTRIBUTES | {"experiment": "help"}},
        "has searches with experiment 'help' and 'shop'; name one of them with --experiment",
    ),
    (
        ROW | {"query_attributes": ATTRIBUTES | {"traffic": 0.1}},
        "has searches with traffic 0.1 and 0.5; name one of them with --traffic",
    ),
]


@pytest.mark.parametrize(("row", "sentence"), BAD_LOG_LINES)
def test_a_bad_line_of_the_log_is_named(tmp_path: Path, row: object, sentence: str) -> None:
    log = _write_lines(tmp_path / "log.jsonl", ROW, row)
    clicks = _write_lines(tmp_path / "clicks.jsonl", CLICK)
    with pytest.raises(QueryliftError) as caught:
        CliRunner().invoke(ab, [str(log), str(clicks)], catch_exceptions=False)
    assert sentence in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("query_id\tq1", "clicks.jsonl:1: this line is not JSON"),
        ([], "clicks.jsonl:1: this line is a JSON list"),
        ({"query_id": "q1"}, "clicks.jsonl:1: action_name is None; write \"click\" for a click"),
        ({"action_name": "click"}, "clicks.jsonl:1: the click has no query_id; write it, or client_id"),
        (CLICK | {"event_attributes": []}, "clicks.jsonl:1: event_attributes is []; write an object"),
        (CLICK | {"event_attributes": {"position": {"ordinal": -1}}}, "clicks.jsonl:1: position.ordinal is -1"),
        (CLICK | {"event_attributes": {"position": {"ordinal": "1"}}}, "clicks.jsonl:1: position.ordinal is '1'"),
        (CLICK | {"query_id": "q9"}, "belongs to a search of"),
        ({"action_name": "impression"}, "has no click; write a line with"),
    ],
)  # fmt: skip
def test_a_bad_line_of_the_clicks_is_named(tmp_path: Path, row: object, sentence: str) -> None:
    log = _write_lines(tmp_path / "log.jsonl", ROW)
    clicks = _write_lines(tmp_path / "clicks.jsonl", row)
    with pytest.raises(QueryliftError) as caught:
        CliRunner().invoke(ab, [str(log), str(clicks)], catch_exceptions=False)
    assert sentence in str(caught.value)


def test_a_log_without_an_experiment_is_refused(tmp_path: Path) -> None:
    log = _write_lines(tmp_path / "log.jsonl", {"message": "serving"}, {"query_id": "q", "query_attributes": {}})
    with pytest.raises(QueryliftError, match="has no search with a variant; set traffic below 1"):
        CliRunner().invoke(ab, [str(log), str(log)], catch_exceptions=False)


def test_a_file_that_does_not_exist_ends_the_command_with_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "querylift", "ab", "gone.jsonl", "clicks.jsonl"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "querylift: 'gone.jsonl' cannot be read: No such file or directory; name another file\n"


def test_the_command_reads_what_the_proxy_writes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """20 users search twice each through a proxy. The even ones click, with the id that the answer named."""
    caplog.set_level("INFO", SEARCH_LOGGER)
    events = []

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        for i in range(40):
            headers = JSON_HEADERS | {"X-Opaque-Id": f"user {i // 2}"}
            async with client.post(f"{proxy.url}/docs/_search", data=RAW_BODY, headers=headers) as answer:
                if i % 4 == 0:
                    events.append({"action_name": "click", "query_id": answer.headers["X-Querylift-Query-Id"]})
        await asyncio.sleep(0)

    run_with_proxy(check, index={"docs": {"traffic": 0.5}}, log={"searches": True})
    lines = [record.getMessage() for record in caplog.records if record.name == SEARCH_LOGGER]
    log = _write_lines(tmp_path / "log.jsonl", *lines)
    clicks = _write_lines(tmp_path / "clicks.jsonl", *events)
    report = json.loads(CliRunner().invoke(ab, [str(log), str(clicks), "--json"], catch_exceptions=False).stdout)
    groups = report["groups"]
    assert (report["experiment"], report["searches"], report["clicks"], report["lost_clicks"]) == ("docs", 40, 10, 0)
    assert groups["control"]["users"] + groups["expanded"]["users"] == 20
    assert groups["control"]["expanded_searches"] == 0
    assert groups["expanded"]["expanded_searches"] == groups["expanded"]["searches"] > 0
