"""Find the user's query in a search body and add an expansion beside it. Pure functions, standard library only.

`parse_body` reads a body, `find_user_query` locates the clauses that score the user's words, and `add_expansion` puts an
expansion beside them. `rewrite_search` does that too, and says whether the mode was kept. `check_value_count` bounds the
time that reading takes. Each raises `Skip` with a reason when the search should go to the engine unchanged.
"""

from __future__ import annotations

from querylift.plugin.dsl.body import check_value_count, dump_body, parse_body
from querylift.plugin.dsl.rewrite import Rewrite, add_expansion, rewrite_search
from querylift.plugin.dsl.search_checks import shows_query_words
from querylift.plugin.dsl.url_parameters import UrlParameters
from querylift.plugin.dsl.user_query import Leaf, UserQuery, find_user_query
from querylift.plugin.outcome import Skip

__all__ = [
    "Leaf",
    "Rewrite",
    "Skip",
    "UrlParameters",
    "UserQuery",
    "add_expansion",
    "check_value_count",
    "dump_body",
    "find_user_query",
    "parse_body",
    "rewrite_search",
    "shows_query_words",
]
