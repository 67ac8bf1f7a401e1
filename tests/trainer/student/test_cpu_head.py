"""The head for CPUs gives the results of TRL's."""

from __future__ import annotations

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

import torch
from trl.trainer.utils import add_fused_lm_head

from querylift.trainer.student import models
from querylift.trainer.student.cpu_head import use_cpu_head
from tests.helpers.training import NO_LABEL


@pytest.mark.parametrize("base", ["made:llama", "made:qwen3"])
@pytest.mark.parametrize("shared", [0, 9])
def test_our_head_gives_the_log_probabilities_and_gradients_of_trls(base: str, shared: int) -> None:
    ids = torch.randint(3, 900, (4, 24), generator=torch.Generator().manual_seed(1))
    ids[:, :shared] = ids[:1, :shared]
    mask = torch.ones_like(ids)
    mask[1, 15:] = mask[2, 20:] = 0
    labels = ids.masked_fill(mask == 0, NO_LABEL)
    labels[:, :12] = NO_LABEL
    outputs, gradients = [], []
    for use_ours in (False, True):
        model, _ = models.load_model_and_tokenizer(base)
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
        if use_ours:
            use_cpu_head(model)
        output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        output.log_probs.sum().backward()
        outputs.append(output)
        gradients.append([weights.grad for weights in model.parameters()])
    theirs, ours = outputs
    torch.testing.assert_close(theirs.log_probs.detach(), ours.log_probs.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs.mean_logits, ours.mean_logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(theirs.is_top1, ours.is_top1) and torch.equal(theirs.label_mask, ours.label_mask)
    for their_gradient, our_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(their_gradient, our_gradient, atol=1e-4, rtol=1e-4)


def test_prompts_that_are_padded_on_the_left_give_the_log_probabilities_of_trls_at_a_temperature() -> None:
    """GRPO pads so. The first column is padding in every row, and the shared tokens come after it."""
    ids = torch.randint(3, 900, (3, 20), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    for row, (start, end) in enumerate([(1, 20), (4, 16), (3, 19)]):
        ids[row, start : start + 6] = torch.arange(100, 106)
        mask[row, :start] = mask[row, end:] = 0
    labels = ids.masked_fill(mask == 0, NO_LABEL)
    labels[:, :12] = NO_LABEL
    outputs = []
    for use_ours in (False, True):
        model, _ = models.load_model_and_tokenizer("made:llama")
        add_fused_lm_head(model, temperature=0.7)
        if use_ours:
            use_cpu_head(model, temperature=0.7)
        outputs.append(model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs.detach())
    theirs, ours = outputs
    assert ours.shape == (3, 19) and ours.count_nonzero() == 8 + 4 + 7
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
