"""Search bodies in the shapes that public applications send, from tests/data/dsl/applications.

A case has a `name`, a `body`, and `query`, what the user typed. A case that is left alone has `skip`, the reason, and `why`,
a sentence for people. `policy` replaces the usual one.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from querylift.plugin import dsl
from querylift.plugin.expansion import Expansion
from querylift.plugin.outcome import Skip
from querylift.plugin.policy import Policy
from querylift.plugin.testing import remove_expansion
from tests.helpers.engine_index import EngineIndex, expand_search
from tests.helpers.paths import TEST_DATA
from tests.helpers.rewrite_checks import has_highlight_query

FOLDER = TEST_DATA / "dsl/applications"
CASES: dict[str, dict[str, Any]] = {
    f"{path.stem}: {case['name']}": case
    for path in sorted(FOLDER.glob("*.json"))
    for case in json.loads(path.read_text("utf-8"))
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def _build_policy(case: dict[str, Any]) -> Policy:
    return Policy(fields=tuple(case.get("policy", {}).get("fields", ())))


@each_case
def test_the_whole_query_of_each_application_is_expanded_or_the_search_is_left_alone(case: dict[str, Any]) -> None:
    policy = _build_policy(case)
    if "skip" in case:
        with pytest.raises(Skip) as skipped:
            dsl.find_user_query(case["body"], policy)
        assert skipped.value.reason == case["skip"]
        return
    user_query = dsl.find_user_query(case["body"], policy)
    assert user_query.text == case["query"]
    expansion = Expansion.from_json({"text": "zzadded", "documents": {"zzdocument": 1.0}})
    rewrite = dsl.rewrite_search(case["body"], user_query, expansion, policy)
    assert "zzadded" in json.dumps(rewrite.body) and json.dumps(rewrite.body).count("zzdocument") == 1
    restored = remove_expansion(
        rewrite.body,
        user_query,
        document_path=rewrite.document_path,
        keep_highlight_query=has_highlight_query(case["body"]),
    )
    assert restored == case["body"]


def test_every_query_but_one_is_expanded_and_every_search_that_is_left_alone_says_why() -> None:
    queries = [case for case in CASES.values() if "query" in case]
    assert len(queries) == 52
    assert [case["name"] for case in queries if "skip" in case] == ["a social network: one clause for each word"]
    assert all(len(case["why"].split()) > 2 for case in CASES.values() if "skip" in case)


@pytest.mark.engine
def test_the_engine_gives_the_same_number_of_hits_with_an_expansion(index: EngineIndex) -> None:
    accepted_cases = 0
    for name, case in CASES.items():
        status, original = index.try_search(case["body"])
        if "skip" in case or status != 200 or original["_shards"]["failed"]:
            continue
        rewritten = index.search(expand_search(case["body"], _build_policy(case)))
        assert rewritten["hits"]["total"] == original["hits"]["total"], name
        accepted_cases += 1
    assert accepted_cases > 30
