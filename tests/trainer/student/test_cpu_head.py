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
