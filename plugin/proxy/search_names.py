"""Give the searches of an experiment ids, and tell the client: a click is logged with the id of its search."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace

from querylift.plugin.experiments import QUERY_ID_HEADER
from querylift.plugin.flow import FlowResult
from querylift.plugin.proxy.responder import Responder

_QUERY_ID_HEADER = QUERY_ID_HEADER.lower().encode()
MAX_NAMED_SEARCHES = 16
"""An `_msearch` with more searches gets no header with ids. Routers refuse answers with long headers."""


def name_searches(responder: Responder, results: Sequence[FlowResult]) -> list[FlowResult]:
    """Return the results with an id for every search of an experiment. The ids stand in a header of the answer.

    An `_msearch` has one id for each search, between commas, and nothing for a search that is in no experiment.
    """
    named_results = [_name_search(result) for result in results]
    if len(results) <= MAX_NAMED_SEARCHES:
        ids = [result.assignment.query_id if result.assignment else "" for result in named_results]
        responder.answer_headers.append((_QUERY_ID_HEADER, ",".join(ids).encode()))
    return named_results


def _name_search(result: FlowResult) -> FlowResult:
    if result.assignment is None:
        return result
    return replace(result, assignment=result.assignment.name_search(lambda: str(uuid.uuid4())))
