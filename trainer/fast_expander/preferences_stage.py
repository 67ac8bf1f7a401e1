"""The stage `preferences`: it learns from preferred sets of terms.

It draws sets of terms from the matrix and searches with them. Then it trains the matrix by DPO to prefer the set that ranked
best over the set that ranked worst.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from querylift.index_tools.evaluation.measures import SUMMARY_MEASURES
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import expansion_from_groups
from querylift.trainer.candidates import Candidate
from querylift.trainer.fast_expander.matrix_training import (
    MatrixWeights,
    TermSetPair,
    fit_to_preferences,
    sample_term_sets,
)
from querylift.trainer.fast_expander.training_context import JudgedTrainingQueries, TrainingContext
from querylift.trainer.rewards.rewarded_text import EXPANSION_PARAM
from querylift.trainer.rewards.scoring import RewardOptions, score_candidates

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.mapped_files import Array

_BATCH_SIZE = 64


def train_on_preferences(
    context: TrainingContext, weights: MatrixWeights, judged: JudgedTrainingQueries
) -> MatrixWeights:
    """Train on pairs of term sets, and return `weights` unchanged when no query gives a pair.

    Raises SettingsError when no query has a relevant document.
    """
    query_ids = [query_id for query_id in judged.labels.select_usable_qrels() if query_id in judged.queries]
    if not query_ids:
        raise SettingsError("no judged query has a relevant document; name a split whose queries have some")
    vectors = context.encode_queries(judged.queries[query_id] for query_id in query_ids)
    probabilities = weights.calculate_probabilities(vectors)
    # A set of all terms compares with nothing.
    size = min(context.record.shape.terms, max(1, probabilities.shape[1] // 2))
    draw = np.random.default_rng(context.seed)
    samples = [sample_term_sets(probabilities, size=size, draw=draw) for _ in range(context.options.samples)]
    rewards = _measure_rewards(context, judged, query_ids, probabilities, samples)
    pairs = _choose_pairs(query_ids, samples, rewards, margin=context.options.margin)
    context.tell(f"{len(pairs)} of {len(query_ids)} queries give a pair")
    if not pairs:
        return weights
    return fit_to_preferences(
        weights,
        vectors,
        pairs,
        beta=context.options.beta,
        epochs=context.options.preference_epochs,
        learning_rate=context.options.preference_learning_rate,
        batch_size=_BATCH_SIZE,
        seed=context.seed,
        tell=context.tell,
    )


def _measure_rewards(
    context: TrainingContext,
    judged: JudgedTrainingQueries,
    query_ids: Sequence[str],
    probabilities: Array,
    samples: Sequence[Array],
) -> dict[str, list[tuple[float, int]]]:
    """Return, by query id, the (reward, number of the sample) of each term set that could be scored on the engine."""
    main_measure, recall = SUMMARY_MEASURES
    reward_options = RewardOptions(
        index=context.record.source.index,
        weights=context.options.weights,
        mix={main_measure: 1.0, recall: context.options.recall_share},
    )
    result = score_candidates(
        _create_candidates(context, judged, query_ids, probabilities, samples),
        engine=context.engine,
        settings=context.settings,
        labels=judged.labels,
        options=reward_options,
    )
    rewards: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for scored in result.scored:
        sample_number = int(scored.candidate.params["sample"])
        rewards[scored.candidate.query_id].append((scored.reward.value, sample_number))
    return rewards


def _create_candidates(
    context: TrainingContext,
    judged: JudgedTrainingQueries,
    query_ids: Sequence[str],
    probabilities: Array,
    samples: Sequence[Array],
) -> Iterator[Candidate]:
    """Yield the term sets as candidates, each term with its probability to a power as weight."""
    terms = list(context.term_numbers)
    power = context.record.shape.power
    fields = context.record.source.list_groups(len(terms))[0].names
    for sample_number, sample in enumerate(samples):
        for row, query_id in enumerate(query_ids):
            weighted_terms = (
                (terms[int(number)], float(probabilities[row][number]) ** power) for number in sample[row]
            )
            expansion = expansion_from_groups([(fields, weighted_terms, {})])
            assert expansion is not None
            params = {"sample": sample_number, EXPANSION_PARAM: expansion.to_json()}
            yield Candidate(query_id, judged.queries[query_id], "expander", "expander", expansion.to_text(), params)


def _choose_pairs(
    query_ids: Sequence[str],
    samples: Sequence[Array],
    rewards: dict[str, list[tuple[float, int]]],
    *,
    margin: float,
) -> list[TermSetPair]:
    """Pair the best and the worst term set of each query whose rewards differ by at least `margin`."""
    pairs = []
    for row, query_id in enumerate(query_ids):
        ranked = sorted(rewards[query_id])
        if ranked and ranked[-1][0] - ranked[0][0] >= margin:
            (_, worst), (_, best) = ranked[0], ranked[-1]
            pairs.append(TermSetPair(row, chosen=samples[best][row], rejected=samples[worst][row]))
    return pairs
