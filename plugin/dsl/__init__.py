"""Find the user's words in a search request and add an expansion beside them. Pure functions, standard library only.

`parse` reads a body, `find` locates the text clauses, `rewrite` adds the expansion; each raises `Skip` with a reason
where the request is to be left alone.
"""

from __future__ import annotations

from querylift.plugin.dsl.body import dump, parse
from querylift.plugin.dsl.find import Found, Leaf, find
from querylift.plugin.dsl.params import Params
from querylift.plugin.dsl.rewrite import rewrite
from querylift.plugin.dsl.skip import Skip

__all__ = ["Found", "Leaf", "Params", "Skip", "dump", "find", "parse", "rewrite"]
