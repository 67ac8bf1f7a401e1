"""The rewrite, case by case from tests/data/dsl.

A case has a `name`, a `body`, and either `expected`, the whole rewritten body, or `skip`, the reason. `raw`, `raw_hex` or
`raw_repeat` replace `body` with bytes. `policy`, `params` and `expansion` replace the usual ones. `nest` puts so many bools
around the query, and `fill` puts so many numbers into a list. Both apply to `body` and to `expected`.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from querylift.plugin import dsl
from querylift.plugin.expansion import Expansion
from querylift.plugin.outcome import BODY_REASONS, Skip
from querylift.plugin.policy import Policy
from querylift.plugin.testing import remove_expansion
from tests.helpers.paths import TEST_DATA
from tests.helpers.rewrite_checks import has_highlight_query, run_search
from tests.helpers.search_bodies import Body

FOLDER = TEST_DATA / "dsl"
EXPANSION = {"text": "myocardial infarction"}
Case = dict[str, Any]


def _read_cases() -> dict[str, Case]:
    cases = [
        (path.stem, case) for path in sorted(FOLDER.glob("*.json")) for case in json.loads(path.read_text("utf-8"))
    ]
    return {f"{stem}: {case['name']}": case for stem, case in cases}


CASES = _read_cases()
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def _build_raw_body(case: Case) -> bytes:
    if "raw" in case:
        return bytes(case["raw"], "utf-8")
    if "raw_hex" in case:
        return bytes.fromhex(case["raw_hex"])
    if "raw_repeat" in case:
        part = {"head": "", "middle": "", "close": "", "tail": ""} | case["raw_repeat"]
        repeated = part["unit"] * part["times"] + part["middle"] + part["close"] * part["times"]
        return bytes(part["head"] + repeated + part["tail"], "utf-8")
    return json.dumps(_grow_body(case["body"], case)).encode()


def _grow_body(body: Body, case: Case) -> Body:
    for _ in range(case.get("nest", 0)):
        body = body | {"query": {"bool": {"must": [body["query"]]}}}
    if "fill" in case:
        body = copy.deepcopy(body)
        position: Any = body
        for key in case["fill"]["at"]:
            position = position[key]
        position.extend(range(case["fill"]["numbers"]))
    return body


def _build_policy(case: Case) -> Policy:
    options = case.get("policy", {})
    return Policy(**options | {"fields": tuple(options.get("fields", ()))})


def _rewrite_case(case: Case) -> Body:
    """Return the rewritten body of a case. Assert that the input does not change, and that the rewrite can be undone."""
    raw = _build_raw_body(case)
    body, original = dsl.parse_body(raw), dsl.parse_body(raw)
    policy = _build_policy(case)
    user_query = dsl.find_user_query(body, policy, dsl.UrlParameters(**case.get("params", {})))
    expansion = Expansion.from_json(case.get("expansion", EXPANSION))
    rewrite = dsl.rewrite_search(body, user_query, expansion, policy)
    assert body == original
    restored = remove_expansion(
        rewrite.body,
        user_query,
        document_path=rewrite.document_path,
        keep_highlight_query=has_highlight_query(body),
    )
    assert restored == original
    written_body: Body = json.loads(dsl.dump_body(rewrite.body))
    return written_body


@each_case
def test_each_case_is_rewritten_or_skipped_as_it_says(case: Case) -> None:
    if "skip" in case:
        with pytest.raises(Skip) as skipped:
            _rewrite_case(case)
        assert skipped.value.reason == case["skip"]
    else:
        expected = _grow_body(case["expected"], case)
        assert _rewrite_case(case) == expected
        assert _replace_values_by_types(_rewrite_case(case)) == _replace_values_by_types(expected)  # 1 == 1.0 == True


def _replace_values_by_types(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace_values_by_types(item) for key, item in value.items()}
    return [_replace_values_by_types(item) for item in value] if isinstance(value, list) else type(value)


def test_the_cases_are_well_formed_and_have_different_names() -> None:
    optional_keys = {"name", "body", "raw", "raw_hex", "raw_repeat", "policy", "params", "expansion", "nest", "fill"}
    files = [json.loads(path.read_text("utf-8")) for path in FOLDER.glob("*.json")]
    assert sum(map(len, files)) == len(CASES) > 120
    for name, case in CASES.items():
        assert len(case.keys() & {"expected", "skip"}) == 1, name
        assert len(case.keys() & {"body", "raw", "raw_hex", "raw_repeat"}) == 1, name
        assert not case.keys() - optional_keys - {"expected", "skip"}, name


def test_every_reason_is_reached_by_a_case() -> None:
    assert {case["skip"] for case in CASES.values() if "skip" in case} == set(BODY_REASONS)


@pytest.mark.parametrize(
    "case", [case for case in CASES.values() if "raw_repeat" in case], ids=lambda case: case["name"]
)
def test_a_huge_body_is_skipped_with_its_reason(case: Case) -> None:
    assert run_search(_build_raw_body(case), case.get("policy"))[0] == f"skipped;{case['skip']}"
