"""An index of 40 documents of all types on a real engine, and searches on it with and without an expansion."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlencode

import pytest

from querylift.plugin import dsl
from querylift.plugin.expansion import Expansion
from querylift.plugin.policy import Policy

Body = dict[str, Any]
ENGINE_EXPANSION = Expansion(text="myocardial infarction coronary 42 10.0.0.1 2020-01-01 true")
WIDEN_POLICY = Policy(mode="widen")
WIDE_FIELDS = [f"wide.f{i}" for i in range(40)]


class EngineIndex:
    """One index of 40 documents on one engine."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        self.version = str(self.call("GET", "/")[1]["version"]["number"])

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a request, and return status and answer. A list is sent as NDJSON."""
        text = "".join(json.dumps(line) + "\n" for line in body) if isinstance(body, list) else json.dumps(body)
        media_type = "application/x-ndjson" if isinstance(body, list) else "application/json"
        self._connection.request(method, path, None if body is None else text.encode(), {"Content-Type": media_type})
        reply = self._connection.getresponse()
        return reply.status, json.loads(reply.read())

    def try_search(self, body: Body, **params: str) -> tuple[int, Any]:
        """Send a search, and return status and answer."""
        return self.call("POST", "/dsl/_search?" + urlencode(params), body)

    def search(self, body: Body, **params: str) -> Body:
        """Return the answer of a search. Assert that no shard failed."""
        status, answer = self.try_search(body, **params)
        assert status == 200, json.dumps(answer)[:600]
        assert answer["_shards"]["failed"] == 0
        return dict(answer)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def build_mappings() -> Body:
    """Return the mappings: text fields, a field of every other type, nested comments, and 40 more text fields."""
    english = {"type": "text", "analyzer": "english"}
    types = "keyword integer date ip boolean long double geo_point integer_range date_range binary flat_object"
    comments = {"type": "nested", "properties": {"text": english, "t": english, "who": {"type": "keyword"}}}
    typed_fields = {f"a_{name}": {"type": name} for name in types.split()}
    text_fields = {"title": english, "body": english, "notes": english, "tag": {"type": "keyword"}, "c": comments}
    wide = {name.removeprefix("wide."): {"type": "text"} for name in WIDE_FIELDS}
    return {"properties": typed_fields | text_fields | {"wide": {"properties": wide}}}


_SENTENCES = (
    "A heart attack needs help at once",
    "Myocardial infarction is what doctors call a heart attack",
    "Coronary arteries feed the heart",
    "A panic attack may feel like one",
    "Myocardial infarction and coronary disease",
    "Bread is baked from flour",
    "The heart of the matter",
    "A surprise attack at dawn",
)


def build_document(i: int) -> Body:
    """Return document `i`: it holds both words of the query, one, none, or words of the expansion, and typed values."""
    sentence, other_sentence = _SENTENCES[i % 8], _SENTENCES[(i * 3 + 1) % 8]
    values = {
        "a_long": i,
        "a_keyword": sentence,
        "a_integer": 42 + i % 3,
        "a_date": "2020-01-01",
        "a_ip": "10.0.0.1",
        "a_boolean": True,
    }
    comments = [
        {"text": other_sentence, "t": sentence, "who": f"w{i % 3}"},
        {"text": sentence, "t": other_sentence, "who": "w9"},
    ]
    text = {"title": other_sentence, "body": f"{sentence}. " * (1 + i % 3) + "filler " * (i % 5), "notes": sentence}
    return values | text | {"tag": f"t{i % 4}", "c": comments, "wide": dict.fromkeys(("f0", "f39"), sentence)}


def expand_search(body: Body, policy: Policy | None = None, expansion: Expansion = ENGINE_EXPANSION) -> Body:
    """Return the rewritten body. Assert that it differs from the original."""
    policy = policy or Policy()
    rewritten = dsl.add_expansion(body, dsl.find_user_query(body, policy), expansion, policy)
    written_body: Body = json.loads(dsl.dump_body(rewritten))
    assert written_body != body
    return written_body


def get_hit_ids(answer: Body) -> list[str]:
    """Return the ids of the hits, best first."""
    return [hit["_id"] for hit in answer["hits"]["hits"]]


def get_scores(answer: Body) -> dict[str, float]:
    """Return the score of every hit, by id."""
    return {hit["_id"]: hit["_score"] for hit in answer["hits"]["hits"]}


def get_per_hit(answer: Body, key: str) -> dict[str, Any]:
    """Return the value of `key` of every hit, by id."""
    return {hit["_id"]: hit.get(key) for hit in answer["hits"]["hits"]}


def skip_if_unknown_query(index: EngineIndex, query: Body) -> None:
    """Skip a test of combined_fields on OpenSearch 2, which does not know it."""
    if "combined_fields" in query and index.version.startswith("2."):
        status, answer = index.try_search({"query": query})
        assert (status, answer["error"]["reason"]) == (400, "unknown query [combined_fields]")
        pytest.skip("OpenSearch 2.19 has no combined_fields")
