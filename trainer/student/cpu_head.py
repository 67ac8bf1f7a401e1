"""A faster forward pass for training on a CPU, with the results of TRL's fused head.

On devices without Triton, TRL's own head projects every position twice, the prompt and the padding too, and partly in
float32. This head projects only the positions that carry a label, in the precision of autocast. The tokens that all rows of
a batch begin with (the instruction before the query) run through the network once and not once per row. Both heads give the
same log-probabilities. `bench/head` measures the difference in speed.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from transformers import DynamicCache
from trl.trainer.utils import FusedCausalLMOutput

_NO_LABEL = -100


def use_cpu_head(model: Any, *, temperature: float = 1.0) -> None:
    """Make `model(..., labels=..., fused_lm_head=True)` use this head. Call it after TRL has installed its own.

    `model` is a Hugging Face causal language model, or a PEFT model around one. Rows may be padded on the left, on the
    right or on both sides. The logits are divided by `temperature`. The entropy is not computed and is NaN in the logs.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    original_forward = inner.forward

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head or args or "input_ids" not in kwargs:
            return original_forward(*args, **({**kwargs, "fused_lm_head": True} if fused_lm_head else kwargs))
        return _compute_log_probs(
            self, kwargs["input_ids"], kwargs.get("attention_mask"), kwargs["labels"], temperature=temperature
        )

    inner.forward = types.MethodType(forward, inner)


def _compute_log_probs(
    model: Any, ids: torch.Tensor, mask: torch.Tensor | None, labels: torch.Tensor, *, temperature: float
) -> FusedCausalLMOutput:
    """Return the log-probabilities of the labels. `ids`, `mask` and `labels` have the shape (rows, tokens).

    The fields of the output have the shape (rows, tokens - 1). The values are computed on rows without padding on the
    left. Moving the padding keeps the order of the labels of a row, so each value is put back at its place.
    """
    mask = torch.ones_like(ids) if mask is None else mask
    is_output = labels[:, 1:] != _NO_LABEL
    ids, mask, labels = _move_padding_to_the_right(ids, mask, labels)
    targets = labels[:, 1:]
    is_labelled = targets != _NO_LABEL
    hidden = _compute_hidden_states(model, ids, mask, shared=_count_shared_tokens(ids, is_labelled))
    rows, columns = is_labelled.nonzero(as_tuple=True)
    states = hidden[rows, columns - (ids.size(1) - hidden.size(1))] / temperature  # cheaper than to divide the logits
    logits = model.get_output_embeddings()(states)
    target_ids = targets[is_labelled]
    log_probs = -torch.nn.functional.cross_entropy(logits.float(), target_ids, reduction="none")

    def scatter(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(is_output.shape).masked_scatter(is_output, values)

    with torch.no_grad():
        is_top1, mean_logits = scatter(logits.argmax(-1) == target_ids), scatter(logits.float().mean(-1))
    return FusedCausalLMOutput(
        log_probs=scatter(log_probs),
        entropy=torch.full(is_output.shape, float("nan")),
        mean_logits=mean_logits,
        is_top1=is_top1,
        label_mask=is_output,
    )


def _move_padding_to_the_right(
    ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the same rows, each without padding on the left. Columns that are padding in every row are left out."""
    width = int(mask.sum(dim=1).max())
    columns = mask.argsort(dim=1, descending=True, stable=True)[:, :width]
    return ids.gather(1, columns), mask.gather(1, columns), labels.gather(1, columns)


def _count_shared_tokens(ids: torch.Tensor, is_labelled: torch.Tensor) -> int:
    """Count the tokens that all rows begin with, up to the first position that predicts a label. 0 disables sharing."""
    if ids.size(0) < 2 or not is_labelled.any():
        return 0
    is_same = (ids == ids[:1]).all(dim=0)
    first_label = int(is_labelled.any(dim=0).nonzero()[0])
    same_tokens = int(is_same.long().cumprod(0).sum())
    return min(same_tokens, first_label)


def _compute_hidden_states(model: Any, ids: torch.Tensor, mask: torch.Tensor, *, shared: int) -> torch.Tensor:
    """Return hidden states of the shape (rows, tokens - shared, width). The shared tokens are left out."""
    if shared == 0:
        states: torch.Tensor = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return states
    prefix = model.base_model(input_ids=ids[:1, :shared], use_cache=True, past_key_values=DynamicCache())
    cache = prefix.past_key_values
    rows = ids.size(0)
    for layer in cache.layers:
        layer.keys = layer.keys.expand(rows, -1, -1, -1)
        layer.values = layer.values.expand(rows, -1, -1, -1)
    states = model.base_model(
        input_ids=ids[:, shared:], attention_mask=mask, past_key_values=cache, use_cache=True
    ).last_hidden_state
    return states
