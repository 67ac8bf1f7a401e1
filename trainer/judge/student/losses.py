"""The terms of the judge's loss, each a mean over the pairs of a batch. All logarithms are natural.

`logits` have the shape (pairs, grades), and `vectors` the shape (pairs, width).
"""

from __future__ import annotations

from typing import Any

from querylift.trainer.judge.student.student_config import LossOptions


def compute_contrast(standard: Any, reasoning: Any, options: LossOptions) -> Any:
    """Return the InfoNCE term (arXiv 1807.03748) that pulls each standard vector to the reasoning vector of its pair.

    For pair i it is -log(exp(s_ii / t) / sum_j exp(s_ij / t)). s_ij is the cosine of the standard vector of pair i and the
    reasoning vector of pair j, and t the temperature. The direction `both` takes the mean with the same term over the
    transposed cosines.
    """
    import torch
    from torch.nn.functional import cross_entropy, normalize

    targets = reasoning.detach() if options.stop_gradient else reasoning
    scores = normalize(standard, dim=1) @ normalize(targets, dim=1).T / options.temperature
    positions = torch.arange(len(scores), device=scores.device)
    forward = cross_entropy(scores, positions)
    return forward if options.direction == "to_reasoning" else (forward + cross_entropy(scores.T, positions)) / 2


def compute_divergence(standard_logits: Any, reasoning_logits: Any, options: LossOptions) -> Any:
    """Return the Kullback-Leibler divergence of the standard pass's probabilities from those of the reasoning pass.

    It is the sum over grades of p_r * (log p_r - log p_s). The temperature of the contrast has no part in it: at 0.1 it would
    make nearly all probabilities 0 or 1.
    """
    from torch.nn.functional import kl_div, log_softmax

    targets = reasoning_logits.detach() if options.stop_gradient else reasoning_logits
    return kl_div(
        log_softmax(standard_logits, dim=1),
        log_softmax(targets, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def compute_soft_cross_entropy(logits: Any, probabilities: Any) -> Any:
    """Return the cross-entropy against soft labels: minus the sum over grades of p * log softmax(logits)."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits, probabilities)
