"""The same forward pass as TRL's fused head, made for a CPU: less is multiplied, and in the precision of autocast.

TRL's own head projects every position on devices without Triton, the prompt and the padding too, twice, and partly in float32.
Here only the positions that carry a label are projected, and the tokens that every row of a batch begins with (the instruction in
front of the query) run through the network once instead of once a row. Both give the same log-probabilities; `bench/head`
measures what they save.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from transformers import DynamicCache
from trl.trainer.utils import FusedCausalLMOutput

_IGNORED = -100


def use_cpu_head(model: Any) -> None:
    """Make `model(..., labels=..., fused_lm_head=True)` take the short way. Call it after TRL has put its own head on.

    `model` is a Hugging Face causal language model, or a PEFT model around one. Rows are padded on the right, as TRL pads
    them. Entropy is not computed: it is NaN in the logs.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    original = inner.forward

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head or args or "input_ids" not in kwargs:
            return original(*args, **({**kwargs, "fused_lm_head": True} if fused_lm_head else kwargs))
        return _forward(self, kwargs["input_ids"], kwargs.get("attention_mask"), kwargs["labels"])

    inner.forward = types.MethodType(forward, inner)


def _forward(model: Any, ids: torch.Tensor, mask: torch.Tensor | None, labels: torch.Tensor) -> FusedCausalLMOutput:
    """`ids`, `mask` and `labels` are (rows, tokens); the output's fields are (rows, tokens - 1)."""
    mask = torch.ones_like(ids) if mask is None else mask
    targets = labels[:, 1:]
    labelled = targets != _IGNORED
    hidden = _hidden(model, ids, mask, shared=_shared_prefix(ids, labelled))
    rows, columns = labelled.nonzero(as_tuple=True)
    logits = model.get_output_embeddings()(hidden[rows, columns - (ids.size(1) - hidden.size(1))])
    wanted = targets[labelled]
    log_probs = -torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none")

    def placed(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(labelled.shape).masked_scatter(labelled, values)

    with torch.no_grad():
        is_top1, mean_logits = placed(logits.argmax(-1) == wanted), placed(logits.float().mean(-1))
    return FusedCausalLMOutput(
        log_probs=placed(log_probs),
        entropy=torch.full(labelled.shape, float("nan")),
        mean_logits=mean_logits,
        is_top1=is_top1,
        label_mask=labelled,
    )


def _shared_prefix(ids: torch.Tensor, labelled: torch.Tensor) -> int:
    """How many tokens all rows begin with, before the first position that predicts a label; 0 where sharing gains nothing."""
    if ids.size(0) < 2 or not labelled.any():
        return 0
    same = (ids == ids[:1]).all(dim=0)
    first_label = int(labelled.any(dim=0).nonzero()[0])
    alike = int(same.long().cumprod(0).sum())
    return min(alike, first_label)


def _hidden(model: Any, ids: torch.Tensor, mask: torch.Tensor, *, shared: int) -> torch.Tensor:
    """Hidden states (rows, tokens - shared, width): those of the shared tokens are left out."""
    if shared == 0:
        plain: torch.Tensor = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return plain
    prefix = model.base_model(input_ids=ids[:1, :shared], use_cache=True, past_key_values=DynamicCache())
    cache = prefix.past_key_values
    rows = ids.size(0)
    for layer in cache.layers:
        layer.keys = layer.keys.expand(rows, -1, -1, -1)
        layer.values = layer.values.expand(rows, -1, -1, -1)
    hidden: torch.Tensor = model.base_model(
        input_ids=ids[:, shared:], attention_mask=mask, past_key_values=cache, use_cache=True
    ).last_hidden_state
    return hidden
