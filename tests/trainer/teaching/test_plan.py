"""The plan of a teaching run: its checks, its manifest settings, and the requests that it makes."""

from typing import Any

import pytest

from querylift.plugin.errors import SettingsError
from querylift.trainer.teaching.prompts import list_requests
from tests.helpers.teacher_server import QUERIES, make_plan


def test_every_query_gets_its_first_sample_before_any_query_gets_its_second() -> None:
    plan = make_plan(prompts=("zero-shot", "few-shot"), samples=2, temperatures=(0, 0.7))
    requests = list(list_requests(QUERIES, plan))
    assert len(requests) == len({request.request_key for request in requests}) == 3 * 2 * (1 + 2)
    assert [(request.query_id, request.method) for request in requests[:4]] == [
        ("1", "zero-shot"),
        ("2", "zero-shot"),
        ("3", "zero-shot"),
        ("1", "few-shot"),
    ]
    assert [request.params["sample"] for request in requests] == [0] * 12 + [1] * 6
    assert {request.params["temperature"] for request in requests[12:]} == {0.7}
    assert [request.params.get("examples") for request in requests[:4]] == [None, None, None, 4]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompts": ("cot",)}, "prompts are cot; choose among zero-shot, few-shot"),
        ({"prompts": ()}, "prompts are none"),
        ({"temperatures": ()}, r"temperatures are \[\]"),
        ({"temperatures": (2.5,)}, r"temperatures are \[2.5\]; name at least one, from 0 to 2"),
        ({"samples": 0}, "samples is 0; name a number above 0"),
        ({"token_budget": -1}, "token_budget is -1"),
        ({"requests_per_minute": 0}, "requests_per_minute is 0"),
        ({"base_url": "localhost:80"}, "the endpoint is 'localhost:80'; name a URL such as"),
    ],
)
def test_a_plan_with_a_value_out_of_range_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        make_plan(**changes)


def test_a_plan_does_not_show_the_account_of_its_endpoint() -> None:
    plan = make_plan("https://user:secret@host:1/v1?key=secret")
    assert plan.public_url == "https://host:1/v1"
    assert "secret" not in repr(plan)


def test_the_manifest_settings_are_those_that_decide_the_answers() -> None:
    settings = make_plan().to_manifest()
    other_plan = make_plan("http://h/v1", concurrency=1, token_budget=9, price_in=1.0, requests_per_minute=5)
    assert settings == other_plan.to_manifest()
    for changes in ({"samples": 2}, {"temperatures": (0.1,)}, {"model": "n"}, {"max_tokens": 9}, {"shots": 1}):
        assert make_plan(**changes).to_manifest() != settings
