"""What writes the passages of `querylift train sample`: a model in this process, or a student that a server runs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from querylift.index_tools.commands.options import show_progress
from querylift.plugin.errors import GeneratorError, SettingsError
from querylift.trainer.commands.endpoint_options import format_left_requests

if TYPE_CHECKING:
    from querylift.trainer.candidates import Candidate
    from querylift.trainer.student.endpoint_sampling import SamplePlan
    from querylift.trainer.training_config import SamplingOptions

    Unwritten = Mapping[tuple[str, int], Candidate]

DEFAULT_CONCURRENCY = 32
"""Requests to a served student that run at the same time."""


class PassageWriter(Protocol):
    """What writes the passages: a model that is loaded, or one that a server runs."""

    @property
    def name(self) -> str:
        """The name of the model in the candidates."""

    def get_manifest_settings(self) -> dict[str, Any]:
        """Return the settings that decide which passages come out, besides the sampling options."""

    def get_manifest_inputs(self) -> dict[str, Path]:
        """Return the files that the model consists of, by name."""

    def write(self, unwritten: Unwritten, *, out: Path, seed: int, known: int) -> dict[str, Any]:
        """Append the passages to `out`, which has `known` ones already. Return counts and rate as JSON."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is loaded into this process."""

    model: str
    options: SamplingOptions
    own_template: str | None

    @property
    def name(self) -> str:
        from querylift.trainer.student.model_bases import PACKAGED_BASE, RANDOM_BASES

        return self.model if self.model in (PACKAGED_BASE, *RANDOM_BASES) else Path(self.model).resolve().name

    def get_manifest_settings(self) -> dict[str, Any]:
        return {"prompt": "its own chat template"} if self.own_template else {}

    def get_manifest_inputs(self) -> dict[str, Path]:
        from querylift.trainer.student.model_bases import list_model_inputs

        return list_model_inputs(self.model, name="model")

    def write(self, unwritten: Unwritten, *, out: Path, seed: int, known: int) -> dict[str, Any]:
        from querylift.plugin.chat_template import choose_prompt_writer
        from querylift.trainer.chat.throughput import Throughput
        from querylift.trainer.student import libraries, models
        from querylift.trainer.student.sampling import write_samples

        # A step is only one token long, and eager attention is faster for it than fused attention.
        dtype = libraries.choose_number_format("auto")
        student, tokenizer = models.load_model_and_tokenizer(self.model, dtype=dtype, attention="eager", seed=seed)
        student = student.to(libraries.choose_device())
        write_prompt = choose_prompt_writer(self.own_template)
        started_s = time.monotonic()
        with show_progress("sampling", len(unwritten)) as advance:
            write_samples(
                student,
                tokenizer,
                unwritten,
                self.options,
                out=out,
                seed=seed,
                write_prompt=write_prompt,
                progress=advance,
            )
        return {"written": len(unwritten), **Throughput(len(unwritten), time.monotonic() - started_s).to_json()}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A student that a server runs."""

    plan: SamplePlan
    options: SamplingOptions

    @property
    def name(self) -> str:
        return self.plan.model

    def get_manifest_settings(self) -> dict[str, Any]:
        return {"served": True}

    def get_manifest_inputs(self) -> dict[str, Path]:
        return {}

    def write(self, unwritten: Unwritten, *, out: Path, seed: int, known: int) -> dict[str, Any]:
        from querylift.trainer.chat.endpoint_plan import choose_api_key
        from querylift.trainer.student.endpoint_sampling import sample_from_endpoint

        with show_progress("asking the student", len(unwritten)) as advance:
            sampling = sample_from_endpoint(
                unwritten.values(),
                self.options,
                self.plan,
                out=out,
                api_key=choose_api_key(os.environ),
                answered_before=known,
                progress=advance,
            )
            result = asyncio.run(sampling)
        if sentence := format_left_requests(
            failed=result.failed,
            left=0,
            tokens_in=result.tokens_in,
            plan=self.plan,
            last_failure=result.last_failure,
        ):
            raise GeneratorError(sentence)
        return result.to_json()


def choose_writer(
    model: str, options: SamplingOptions, *, endpoint: str | None, concurrency: int | None
) -> PassageWriter:
    """Return the writer that the options name. Raises SettingsError when --concurrency has no effect."""
    from querylift.trainer.student.base_templates import read_own_template
    from querylift.trainer.student.endpoint_sampling import make_sample_plan

    if endpoint is not None:
        plan = make_sample_plan(model, endpoint, options, concurrency=concurrency or DEFAULT_CONCURRENCY)
        return ServedModel(plan, options)
    if concurrency is not None:
        raise SettingsError(f"--concurrency {concurrency} needs a server; give --endpoint, or leave --concurrency out")
    own_template = read_own_template(model)
    if own_template:
        click.echo(f"note: {model} is untrained, so its own chat template asks it, with thinking off", err=True)
    return LoadedModel(model, options, own_template)
