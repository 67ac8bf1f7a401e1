"""The paths that are search routes."""

import pytest

from querylift.plugin.proxy import routes


@pytest.mark.parametrize(
    ("path", "api", "index"),
    [("/docs/_search", "_search", "docs"), ("/_search", "_search", None), ("/a,b*/_msearch", "_msearch", "a,b*"),
     ("/%3Clogs-%7Bnow%7D%3E/_search", "_search", "<logs-{now}>"), ("/_all/_search", "_search", "_all"),
     ("/docs/_async_search", "_async_search", "docs")],
)  # fmt: skip
def test_a_search_route_is_known_by_its_path(path: str, api: str, index: str | None) -> None:
    assert routes.match_search_route("POST", path) == routes.Route(api, index)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/docs/_search"), ("DELETE", "/_async_search/id"), ("GET", "/_async_search/id"), ("POST", "/docs/type/_search"),
     ("POST", "/_search/scroll"), ("GET", "/_render/_search"), ("POST", "//_search"), ("GET", "/")],
)  # fmt: skip
def test_other_methods_and_paths_are_not_search_routes(method: str, path: str) -> None:
    assert routes.match_search_route(method, path) is None


@pytest.mark.parametrize(
    ("path", "index"),
    [("/docs/_search/template", "docs"), ("/a%2Cb/_msearch/template", "a,b"), ("/_search/scroll", None), ("/", None)],
)
def test_the_index_of_a_search_that_is_not_read_is_known_by_its_path(path: str, index: str | None) -> None:
    assert routes.find_first_index(path) == index
