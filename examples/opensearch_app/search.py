"""Search through Querylift with opensearch-py, once expanded and once as it was typed.

    python search.py "running shoes" --url http://127.0.0.1:9280 --index products --field title

The application talks to the proxy as it would talk to OpenSearch. Needs: pip install opensearch-py
"""

import argparse

from opensearchpy import OpenSearch

SWITCHED_OFF = {"X-Querylift": "off"}
"""A request with this header passes through the proxy unchanged."""


def search_ids(client: OpenSearch, index: str, field: str, query: str, headers: dict[str, str]) -> list[str]:
    """Return the ids of the first five hits."""
    body = {"size": 5, "query": {"match": {field: query}}}
    answer = client.search(index=index, body=body, headers=headers)
    return [hit["_id"] for hit in answer["hits"]["hits"]]


def main() -> None:
    """Read the command line, search twice and print both lists of hits."""
    parser = argparse.ArgumentParser(description="Search through Querylift, expanded and plain.")
    parser.add_argument("query")
    parser.add_argument("--url", default="http://127.0.0.1:9280", help="URL of the proxy [%(default)s]")
    parser.add_argument("--index", required=True, help="index to search")
    parser.add_argument("--field", required=True, help="text field to search")
    options = parser.parse_args()

    with OpenSearch(options.url) as client:
        expanded = search_ids(client, options.index, options.field, options.query, headers={})
        plain = search_ids(client, options.index, options.field, options.query, headers=SWITCHED_OFF)
    print("expanded:", ", ".join(expanded))
    print("plain:   ", ", ".join(plain))


if __name__ == "__main__":
    main()
