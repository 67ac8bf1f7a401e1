"""Generation of a batch of passages, token by token.

Each token is drawn among the `top_k` likeliest. Passages that have ended leave the batch. The tokens that all prompts begin
with are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache

from querylift.trainer.training_config import SamplingOptions

_MIN_UNFINISHED_SHARE = 0.75
"""Finished passages are removed from the batch below this share of unfinished ones. Removing them costs a copy."""


class WrittenToken(NamedTuple):
    """A token of a passage, and its natural log-probability at temperature 1."""

    id: int
    log_prob: float


@dataclass(slots=True)
class _Batch:
    """The unfinished passages of a batch, one in each row.

    `row` holds their rows in the full batch. `mask` covers all tokens so far. `position` and `logits` are those of the next
    token.
    """

    row: torch.Tensor
    cache: DynamicCache
    mask: torch.Tensor
    position: torch.Tensor
    logits: torch.Tensor

    def keep_rows(self, is_unfinished: torch.Tensor) -> None:
        """Remove the finished passages."""
        rows = is_unfinished.nonzero()[:, 0]
        self.row, self.mask, self.position = self.row[rows], self.mask[rows], self.position[rows]
        self.cache.batch_select_indices(rows)


def generate_batch(
    prompts: Sequence[list[int]],
    model: Any,
    *,
    options: SamplingOptions,
    stop_ids: torch.Tensor,
    draws: torch.Tensor,
) -> list[list[WrittenToken]]:
    """Return the tokens after each prompt. The end token is the last, unless the passage is as long as `draws` is wide.

    `draws` holds a random number from 0 to 1 for each token of each passage.
    """
    batch, draws, stop_ids = _read_prompts(prompts, model), draws.to(model.device), stop_ids.to(model.device)
    passages: list[list[WrittenToken]] = [[] for _ in prompts]
    is_unfinished = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    for step in range(draws.size(1)):
        logits = batch.logits.float()
        token_ids = _choose_tokens(logits, draws[batch.row, step], options)
        log_probs = logits.gather(1, token_ids[:, None])[:, 0] - logits.logsumexp(-1)
        columns = torch.stack([batch.row.double(), token_ids.double(), log_probs.double()], dim=1)
        for row, token_id, log_prob in columns[is_unfinished].tolist():
            passages[int(row)].append(WrittenToken(int(token_id), log_prob))
        is_unfinished = is_unfinished & ~torch.isin(token_ids, stop_ids)
        if not is_unfinished.any() or step + 1 == draws.size(1):
            break
        if is_unfinished.float().mean() < _MIN_UNFINISHED_SHARE:
            batch.keep_rows(is_unfinished)
            token_ids, is_unfinished = token_ids[is_unfinished], is_unfinished[is_unfinished]
        _append_tokens(batch, token_ids, model)
    return passages


def _read_prompts(prompts: Sequence[list[int]], model: Any) -> _Batch:
    """Compute the state after the prompts. The tokens that all share are computed once.

    Padding stands between the shared tokens and the rest, so that all prompts end in the same column.
    """
    shared = _count_shared_tokens(prompts)
    longest = max(map(len, prompts))
    suffixes = torch.zeros(len(prompts), longest - shared, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask[:, :shared] = 1
    for row, prompt_ids in enumerate(prompts):
        length = len(prompt_ids) - shared
        suffixes[row, suffixes.size(1) - length :] = torch.tensor(prompt_ids[shared:])
        mask[row, longest - length :] = 1
    suffixes, mask = suffixes.to(model.device), mask.to(model.device)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    cache = _read_shared_prefix(prompts[0][:shared], len(prompts), model)
    logits = model(
        input_ids=suffixes,
        attention_mask=mask,
        position_ids=position[:, shared:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return _Batch(torch.arange(len(prompts), device=model.device), cache, mask, position[:, -1:] + 1, logits)


def _read_shared_prefix(prefix: list[int], rows: int, model: Any) -> DynamicCache:
    """Return the keys and values of `prefix`, repeated for every row."""
    cache = DynamicCache()
    if prefix:
        model(
            input_ids=torch.tensor([prefix], device=model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        for layer in cache.layers:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
    return cache


def _count_shared_tokens(prompts: Sequence[list[int]]) -> int:
    """Count the tokens that all prompts begin with. At least one token of every prompt is not counted."""
    shortest = min(map(len, prompts)) - 1
    is_same = (len(set(column)) == 1 for column in zip(*(prompt[:shortest] for prompt in prompts), strict=True))
    return next((position for position, same in enumerate(is_same) if not same), shortest)


def _append_tokens(batch: _Batch, token_ids: torch.Tensor, model: Any) -> None:
    """Add one token to every passage of the batch, and compute the logits of the next."""
    batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(token_ids), 1)], dim=1)
    batch.logits = model(
        input_ids=token_ids[:, None],
        attention_mask=batch.mask,
        position_ids=batch.position,
        past_key_values=batch.cache,
        use_cache=True,
    ).logits[:, -1]
    batch.position = batch.position + 1


def _choose_tokens(logits: torch.Tensor, draws: torch.Tensor, options: SamplingOptions) -> torch.Tensor:
    """Return the next token of every row: the likeliest at temperature 0, else one of the `top_k` and `top_p` likeliest.

    `draws` holds a random number from 0 to 1 for every row. It decides by inverse transform sampling.
    """
    if options.temperature == 0:
        return logits.argmax(-1)
    values, token_ids = logits.topk(min(options.top_k, logits.size(-1)), dim=-1)  # the likeliest first
    probabilities = (values / options.temperature).softmax(-1)
    preceding = probabilities.cumsum(-1) - probabilities
    cumulative = probabilities.masked_fill(preceding >= options.top_p, 0.0).cumsum(-1)
    choice = (cumulative <= draws[:, None] * cumulative[:, -1:]).sum(-1, keepdim=True)
    return token_ids.gather(1, choice.clamp(max=token_ids.size(1) - 1))[:, 0]
