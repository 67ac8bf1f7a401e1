"""Group relative policy optimisation (GRPO, arXiv 2402.03300): the student learns from the engine's rewards while it writes.

For each query of an update, the student writes several texts. The engine says what each is worth. The student then writes
texts like the better ones of a query more often, and texts like the worse ones less often. DPO learns the same from texts
that the student wrote before its training.

The texts are written by `group_sampling`, and not by TRL: its `rollout_func` takes any function that returns tokens. So they
are sampled as `querylift train sample` does, with the served stop rule, and the shared beginning of all prompts is computed
once. The loss learns exactly these tokens, with the end token where a text ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import MAX_TOKENS, build_prompt, clean_query
from querylift.plugin.files import open_for_replacement
from querylift.trainer.candidates import Candidate
from querylift.trainer.cards.origin import describe_own_texts
from querylift.trainer.rewards.engine_reward import COUNTED, EngineReward
from querylift.trainer.student import libraries, models, shared_training, training_texts
from querylift.trainer.student.best_step import BY_REWARD
from querylift.trainer.student.evaluation_callback import describe_evaluation, make_evaluation
from querylift.trainer.student.group_sampling import CANDIDATE_FIELD, GroupSampler, TrainingQuery
from querylift.trainer.student.search_evaluation import SearchEvaluator
from querylift.trainer.student.shared_training import Say
from querylift.trainer.student.training_result import TrainingResult
from querylift.trainer.training_config import TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardedQueries:
    """Queries of the corpus `source`, with what rewards the texts that are written for them.

    `inputs` and `settings` are what decides the rewards, for the manifest.
    """

    queries: Mapping[str, str] = field(repr=False)
    source: str
    reward: EngineReward
    inputs: Mapping[str, Path]
    settings: Mapping[str, Any]


def train_by_rewards(
    rewarded: RewardedQueries,
    config: TrainingConfig,
    *,
    model: str | Path,
    out: Path,
    seed: int | None = None,
    evaluator: SearchEvaluator | None = None,
    say: Say,
) -> TrainingResult:
    """Train the student `model` on its own texts. Write an adapter (or a whole model), curves and a manifest.

    `seed` overrides that of `config`. `evaluator` measures the student while it trains. A run that was killed continues
    from its last checkpoint. A run that is complete is not repeated. Raises SettingsError, EngineError and MissingExtra.
    """
    seed = config.seed if seed is None else seed
    manifest = shared_training.make_model_manifest(
        out,
        "grpo",
        rewarded.inputs,
        config,
        sections=("grpo",),
        base=model,
        seed=seed,
        other_settings={**rewarded.settings, **describe_evaluation(config.evaluation, evaluator)},
    )
    return shared_training.train_once(
        manifest,
        lambda: _train(rewarded, config, base=model, out=out, seed=seed, evaluator=evaluator, say=say),
        out=out,
        say=say,
    )


def make_training_queries(queries: Mapping[str, str]) -> list[TrainingQuery]:
    """Return the queries with their prompts. Of queries with the same prompt, the first one is taken."""
    by_prompt: dict[str, TrainingQuery] = {}
    for query_id, text in queries.items():
        prompt = build_prompt(text)
        by_prompt.setdefault(prompt, TrainingQuery(query_id, clean_query(text), prompt))
    return list(by_prompt.values())


def _train(
    rewarded: RewardedQueries,
    config: TrainingConfig,
    *,
    base: str | Path,
    out: Path,
    seed: int,
    evaluator: SearchEvaluator | None,
    say: Say,
) -> TrainingResult:
    queries, reward = make_training_queries(rewarded.queries), rewarded.reward
    training, validation = training_texts.split_by_query(queries, config.grpo.validation_share)
    _check_query_count(training, config)
    reward.check_index()
    _raise_when_index_changed(reward, out)
    model, tokenizer = models.load_model_and_tokenizer(base, dtype=config.model.dtype, seed=seed)
    say(
        f"{len(training)} training queries, {len(validation)} validation queries, {config.grpo.samples} samples for each, "
        f"on {libraries.choose_device()}"
    )
    trainer = make_trainer(model, tokenizer, config, training, validation, reward=reward, out=out, seed=seed)
    left_out = len(rewarded.queries) - len(queries)
    result = shared_training.train_and_save(
        trainer,
        tokenizer,
        out=out,
        base=base,
        examples=len(training),
        left_out=left_out,
        say=say,
        evaluation=make_evaluation(
            trainer, config.evaluation, evaluator, out=out, say=say, validation_criterion=BY_REWARD
        ),
    )
    rewarding = _describe_rewarding(trainer, reward)
    return replace(
        result,
        rewarding=rewarding,
        origin=describe_own_texts(rewarded.source, rewarding["samples"], config),
    )


def _check_query_count(training: Sequence[TrainingQuery], config: TrainingConfig) -> None:
    """Raise SettingsError when the queries do not fill one update. TRL would train zero steps."""
    needed = config.grpo.queries_per_update * shared_training.count_processes()
    if len(training) < needed:
        raise SettingsError(
            f"an update needs {needed} queries, and there are {len(training)} to train on; name a larger split, or set "
            "grpo.gradient_accumulation or grpo.batch_size lower"
        )


def _raise_when_index_changed(reward: EngineReward, out: Path) -> None:
    """Raise SettingsError when the index is not as it was when the run was begun. The state lies beside the checkpoints."""
    path = shared_training.checkpoint_folder(out) / "index-state"
    is_resumed = shared_training.find_last_checkpoint(out) is not None and path.is_file()
    if is_resumed and path.read_text(encoding="utf-8") != reward.fingerprint:
        raise SettingsError(
            f"the index {reward.options.index!r} has changed since {out} was begun, and rewards of two states are not "
            "comparable; remove the folder to start over, or restore the index"
        )
    if shared_training.is_first_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_for_replacement(path) as stream:  # a kill must not leave half of it
            stream.write(reward.fingerprint.encode())


def _describe_rewarding(trainer: Any, reward: EngineReward) -> dict[str, Any]:
    """Return what the whole run asked of the engine, and the state of the index."""
    from querylift.trainer.student.group_trainer import read_total_counts

    return {**read_total_counts(trainer.state.log_history), "index_fingerprint": reward.fingerprint}


@libraries.hide_harmless_warnings()
def make_trainer(
    model: Any,
    tokenizer: Any,
    config: TrainingConfig,
    training: Sequence[TrainingQuery],
    validation: Sequence[TrainingQuery],
    *,
    reward: EngineReward,
    out: Path,
    seed: int,
) -> Any:
    """Return TRL's trainer. Nothing is trained yet.

    Validation writes one text for each query with the likeliest tokens. Its reward is what would be served.
    """
    from trl import GRPOConfig

    from querylift.trainer.student.group_trainer import GroupTrainer

    options = config.grpo
    if options.beta and not config.lora.rank:
        raise SettingsError(
            f"grpo.beta is {options.beta:g} with lora.rank 0, which leaves no reference model; set one of the two otherwise"
        )
    arguments = shared_training.make_trainer_arguments(
        config,
        options,
        out=out,
        seed=seed,
        examples=len(training) * options.samples * options.iterations,
        validate=bool(validation),
    )
    sampler = GroupSampler(model, tokenizer, [*training, *validation], config, seed=seed)
    trainer = GroupTrainer(
        counts=reward.counts,
        names=COUNTED,
        model=model,
        reward_funcs=_make_reward_function(reward),
        rollout_func=sampler,
        args=GRPOConfig(
            **arguments,
            num_generations=options.samples,
            num_generations_eval=1,
            max_completion_length=MAX_TOKENS,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            beta=options.beta,
            loss_type=options.loss,
            scale_rewards=options.scale_rewards,
            num_iterations=options.iterations,
            epsilon=options.epsilon,
        ),
        train_dataset=shared_training.make_dataset([query.to_row() for query in training]),
        eval_dataset=shared_training.make_dataset([query.to_row() for query in validation]) if validation else None,
        processing_class=tokenizer,
        peft_config=shared_training.make_lora_config(config.lora),
    )
    shared_training.install_cpu_head(trainer, temperature=options.temperature)
    return trainer


def _make_reward_function(reward: EngineReward) -> Callable[..., list[float]]:
    """Return a function that TRL calls with the columns of its rows."""

    def engine_reward(**columns: Any) -> list[float]:
        candidates: list[Candidate] = columns[CANDIDATE_FIELD]
        return reward.compute_rewards(candidates)

    return engine_reward
