"""Pools of several runs."""

from __future__ import annotations

from querylift.index_tools.judging.pooling import pool_runs


def test_a_pool_has_the_first_documents_of_every_run_each_once() -> None:
    runs = {
        "plain": {"q1": ["a", "b", "c"], "q2": ["a"]},
        "feedback": {"q1": ["d", "a", "e"], "q2": []},
    }
    pool = pool_runs(runs, depth=2)
    assert pool.doc_ids == {"q1": ("a", "b", "d"), "q2": ("a",)}
    assert pool.system_counts == {"plain": 3, "feedback": 2}
    assert pool.pair_count == 4


def test_a_query_without_a_document_in_any_run_is_left_out() -> None:
    pool = pool_runs({"plain": {"q1": []}, "dense": {}})
    assert (dict(pool.doc_ids), pool.system_counts, pool.pair_count) == ({}, {"plain": 0, "dense": 0}, 0)
