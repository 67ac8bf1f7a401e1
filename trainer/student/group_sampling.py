"""Samples for GRPO: the texts that the student writes now for the queries of an update.

They are written by `sample_requests`, as those of `querylift train sample` are: the same prompt, stop rule, limit and
random numbers, and with the adapter merged. A copy of the student writes them. It takes over the trained weights before each
update, so that writing a token costs no computation of an adapter. The copy has the number format of `model.compute`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from querylift.plugin.expansion import MAX_TOKENS
from querylift.trainer.candidates import Candidate
from querylift.trainer.student import libraries
from querylift.trainer.student.sampling import STUDENT_METHOD, Sample, SampleRequest, find_stop_ids, sample_requests
from querylift.trainer.student.training_texts import encode_text
from querylift.trainer.training_config import SamplingOptions, TrainingConfig

CANDIDATE_FIELD = "candidate"
"""The field of TRL's rows that holds the candidate of a sample, for the reward."""


@dataclass(frozen=True, slots=True)
class TrainingQuery:
    """A query and the prompt that a student reads for it."""

    query_id: str
    query: str
    prompt: str

    def to_row(self) -> dict[str, Any]:
        """Return a row for TRL's trainer."""
        return {"prompt": self.prompt}


class GroupSampler:
    """Writes the samples of an update. It is TRL's `rollout_func`.

    In training, the samples of the run are numbered, so that a query gets other random numbers in each epoch. A run that
    continues from a checkpoint gives the same numbers again. In validation, the likeliest tokens are written, which is what
    would be served.
    """

    def __init__(
        self, model: Any, tokenizer: Any, queries: Sequence[TrainingQuery], config: TrainingConfig, *, seed: int
    ) -> None:
        """`model` is the student before a trainer changes it. Queries with one prompt must have one id."""
        options = config.grpo
        number_format = libraries.choose_number_format(config.model.compute)
        self._writer = copy.deepcopy(model).to(getattr(torch, number_format)).eval()
        self._writer.set_attn_implementation("eager")  # a step is one token long; fused attention is slower for it
        self._tokenizer, self._seed = tokenizer, seed
        self._queries: Mapping[str, TrainingQuery] = {query.prompt: query for query in queries}
        self._stop_ids = find_stop_ids(tokenizer)
        self._options = SamplingOptions(
            samples=options.samples,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            batch_size=config.sample.batch_size,
        )
        self._greedy_options = self._options.model_copy(update={"temperature": 0.0})

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """Return TRL's columns of a sample for each prompt. The tokens are exactly those that were sampled."""
        student = trainer.accelerator.unwrap_model(trainer.model)
        self._writer.to(trainer.accelerator.device)
        copy_weights(student, self._writer)
        if student.training:
            first_number = trainer.state.global_step * trainer.args.generation_batch_size
            samples = self._write_samples(
                prompts, self._options, first_number + trainer.accelerator.process_index * len(prompts)
            )
        else:
            samples = self._write_samples(prompts, self._greedy_options, 0)
        return {
            "prompt_ids": [encode_text(prompt, self._tokenizer) for prompt in prompts],
            "completion_ids": [list(sample.tokens) for sample in samples],
            "logprobs": None,  # TRL computes them anew, with gradients
            CANDIDATE_FIELD: [_make_candidate(sample) for sample in samples],
        }

    def _write_samples(self, prompts: Sequence[str], options: SamplingOptions, first_number: int) -> list[Sample]:
        """Return a sample for each prompt, in their order."""
        queries = [self._queries[prompt] for prompt in prompts]
        requests = [
            SampleRequest(query.query_id, query.query, number, encode_text(query.prompt, self._tokenizer))
            for number, query in enumerate(queries, first_number)
        ]
        samples = sample_requests(
            self._writer,
            self._tokenizer,
            requests,
            options,
            max_tokens=MAX_TOKENS,
            seed=self._seed,
            stop_ids=self._stop_ids,
        )
        return sorted(samples, key=lambda sample: sample.number)


def _make_candidate(sample: Sample) -> Candidate:
    params = {"sample": sample.number}
    return Candidate(sample.query_id, sample.query, STUDENT_METHOD, "", sample.text, params, sample.ended)


def copy_weights(student: Any, writer: Any) -> None:
    """Give `writer` the weights of `student`, which is a PEFT model or a whole model. Adapters are merged on the way."""
    from peft.tuners.lora import LoraLayer

    with torch.no_grad():
        if not hasattr(student, "peft_config"):
            for target, source in zip(writer.parameters(), student.parameters(), strict=True):
                target.copy_(source)
            return
        for name, layer in student.get_base_model().named_modules():
            if isinstance(layer, LoraLayer):
                merged = layer.get_base_layer().weight + layer.get_delta_weight("default")
                writer.get_submodule(name).weight.copy_(merged)
