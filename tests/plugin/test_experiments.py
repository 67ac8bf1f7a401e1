"""Users are drawn into an experiment by a hash, which is the same everywhere and never takes a user away."""

import hashlib
import json
from typing import Any

import pytest

from querylift.plugin.broker import Answer
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import Expansion, WeightedTerm
from querylift.plugin.experiments import Assignment, Experiment, Headers, find_ubi_query_id
from querylift.plugin.flow import ExpansionRules, FlowResult, Search, run_flow, search_flow
from querylift.plugin.outcome import Outcome, OutcomeKind
from querylift.plugin.settings import parse_settings
from querylift.plugin.testing import ManualClock

BODY: dict[str, Any] = {"query": {"match": {"text": "download  a page"}}}
EXPANDED = Answer(Expansion(text="urlopen"), Outcome("expanded"))


def _name_user(name: str) -> Headers:
    return [(b"content-type", b"application/json"), (b"x-opaque-id", name.encode())]


def _assign_users(traffic: float, count: int = 2000, *, name: str = "docs") -> list[Assignment]:
    experiment = Experiment(name, traffic, b"x-opaque-id")
    return [experiment.assign(_name_user(f"user {i}"), "a query") for i in range(count)]


def _find_expanded_users(assignments: list[Assignment]) -> set[str]:
    return {assignment.unit for assignment in assignments if assignment.variant == "expanded"}


def test_a_user_is_drawn_by_the_sha_256_of_the_experiments_name_and_the_user() -> None:
    digest = hashlib.sha256(b"docs\0user\0anna").hexdigest()
    assignment = Experiment("docs", 0.5, b"x-opaque-id").assign(_name_user("anna"), "a query")
    assert assignment.unit == f"user:{digest[:16]}"
    assert assignment.variant == ("expanded" if int(digest[:16], 16) < 2**63 else "control")


@pytest.mark.parametrize("traffic", [0.1, 0.5, 0.9])
def test_the_share_of_users_is_the_one_that_was_set(traffic: float) -> None:
    assert len(_find_expanded_users(_assign_users(traffic))) / 2000 == pytest.approx(traffic, abs=0.03)


def test_a_larger_share_adds_users_and_takes_none_away() -> None:
    tenth, half, all_users = (_find_expanded_users(_assign_users(traffic)) for traffic in (0.1, 0.5, 1))
    assert tenth < half < all_users
    assert len(all_users) == 2000


def test_two_experiments_draw_their_users_independently() -> None:
    first, second = (_assign_users(0.5, name=name) for name in ("docs", "help"))
    both = sum(a.variant == b.variant == "expanded" for a, b in zip(first, second, strict=True))
    assert both / 2000 == pytest.approx(0.25, abs=0.03)


def test_searches_without_the_header_are_drawn_by_their_query() -> None:
    experiment = Experiment("docs", 0.5, b"x-opaque-id")
    assert experiment.assign([], "a query") == experiment.assign([(b"x-opaque-id", b" ")], "a query")
    variants = [experiment.assign([], f"query {i}").variant for i in range(2000)]
    assert variants.count("expanded") / 2000 == pytest.approx(0.5, abs=0.03)
    assert experiment.assign([], "a query").unit.startswith("query:")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        (
            "traffic",
            0,
            "index.docs.traffic is 0: use a share above 0 and up to 1, such as 0.5; enabled = false expands",
        ),
        ("traffic", 50, "index.docs.traffic is 50: use a share above 0 and up to 1"),
        ("traffic", float("nan"), "index.docs.traffic is nan: input should be a finite number"),
        ("traffic", "half", "index.docs.traffic is 'half': input should be a valid number"),
        ("traffic_by", "", "index.docs.traffic_by is '': use the name of a request header"),
        ("traffic_by", "x user", "index.docs.traffic_by is 'x user': use the name of a request header"),
        ("interleave", "often", "index.docs.interleave is 'often': input should be a valid boolean"),
        (
            "experiment",
            " a",
            "index.docs.experiment is ' a': use a name of at most 128 letters, without spaces around it",
        ),
        ("experiment", "a\nb", "index.docs.experiment is 'a\\nb': use a name of at most 128 letters"),
    ],
)
def test_a_wrong_value_is_refused_with_one_sentence(key: str, value: object, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings({"index": {"docs": {key: value}}})
    assert sentence in str(caught.value)


def test_without_an_experiment_nothing_is_drawn() -> None:
    assert parse_settings({"index": {"docs": {"traffic": 1}}}).index["docs"].policy.experiment is None


def test_an_experiment_has_the_name_of_its_table_unless_it_has_one() -> None:
    tables = parse_settings({"index": {"a*": {"traffic": 0.5}, "b": {"traffic": 0.5, "experiment": "shop"}}}).index
    assert [table.policy.experiment.name for table in tables.values() if table.policy.experiment] == ["a*", "shop"]


def test_a_search_on_two_indices_belongs_to_one_experiment_or_is_not_expanded() -> None:
    settings = parse_settings({"index": {"a": {"traffic": 0.5}, "b": {"traffic": 0.5}}})
    assert settings.find_index_settings("a,b") is None
    tables = {name: {"traffic": 0.5, "experiment": "shop"} for name in ("a", "b")}
    assert parse_settings({"index": tables}).find_index_settings("a,b") is not None


def _run_search(
    headers: Headers | None, answer: Answer = EXPANDED, body: dict[str, Any] = BODY, **table: object
) -> FlowResult:
    rules = ExpansionRules(parse_settings({"index": {"docs": {"traffic": 0.5} | table}}), clock=ManualClock())
    search = Search("docs", json.dumps(body).encode(), headers=headers)
    return run_flow(search_flow(search, rules), lambda question: answer)


def _find_user(variant: str) -> Headers:
    names = (f"user {i}" for i in range(100))
    experiment = Experiment("docs", 0.5, b"x-opaque-id")
    return next(_name_user(name) for name in names if experiment.assign(_name_user(name), "").variant == variant)


def test_the_control_group_gets_the_original_search_and_no_generator_is_asked() -> None:
    rules = ExpansionRules(parse_settings({"index": {"docs": {"traffic": 0.5}}}), clock=ManualClock())
    search = Search("docs", json.dumps(BODY).encode(), headers=_find_user("control"))
    with pytest.raises(StopIteration) as stop:
        next(search_flow(search, rules))
    assert stop.value.value.outcome.format_header() == "skipped;control"
    assert stop.value.value.query == "download a page"


def test_a_search_that_is_not_expandable_belongs_to_no_variant() -> None:
    body = {"query": {"match": {"text": "download"}}, "size": 0}
    for variant in ("expanded", "control"):
        result = _run_search(_find_user(variant), body=body)
        assert (result.outcome.reason, result.assignment) == ("size-0", None)


@pytest.mark.parametrize(
    ("kind", "reason"), [("skipped", "nothing"), ("late", "budget"), ("error", "generator"), ("skipped", "explain")]
)
def test_a_search_that_got_no_expansion_still_counts_for_its_variant(kind: OutcomeKind, reason: str) -> None:
    """Otherwise the groups would hold different kinds of searches."""
    result = _run_search(_find_user("expanded"), Answer(None, Outcome(kind, reason)))
    assert result.assignment is not None
    assert (result.outcome.reason, result.assignment.variant) == (reason, "expanded")


def test_an_expansion_that_fits_no_field_still_counts_for_its_variant() -> None:
    result = _run_search(
        _find_user("expanded"),
        Answer(Expansion(terms=(WeightedTerm("urlopen", 1.0),), field="title"), Outcome("expanded")),
    )
    assert result.assignment is not None
    assert (result.outcome.reason, result.assignment.variant) == ("empty", "expanded")


def test_outside_of_a_proxy_every_search_is_expanded() -> None:
    result = _run_search(None)
    assert (result.outcome.kind, result.assignment) == ("expanded", None)


def test_pages_of_one_query_have_the_same_variant() -> None:
    bodies = [BODY | {"from": start} for start in (0, 10, 20)]
    for headers in (_find_user("control"), _find_user("expanded"), []):
        units = {_run_search(headers, body=body).assignment for body in bodies}
        assert len(units) == 1


@pytest.mark.parametrize(
    ("ext", "query_id"),
    [
        ({"ubi": {"query_id": "7ae52966-3dd4-4ae5-a152-08cba445daf4"}}, "7ae52966-3dd4-4ae5-a152-08cba445daf4"),
        ({"ubi": {"query_id": "a\r\nx: y"}}, ""),
        ({"ubi": {"query_id": 7}}, ""),
        ({"ubi": []}, ""),
        ([], ""),
    ],
)
def test_the_clients_own_query_id_is_used_when_it_can_stand_in_a_header(ext: object, query_id: str) -> None:
    assert find_ubi_query_id({"ext": ext}) == query_id
