"""Supervised fine-tuning: the student learns to write what the teacher wrote, after the prompt that is served."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import from_words
from querylift.trainer import candidates
from querylift.trainer.candidates import Candidate
from querylift.trainer.settings import Settings, SftSettings
from querylift.trainer.student import models, shared_training, training_texts
from querylift.trainer.student.shared_training import Say, Trained

_NO_LABEL = -100


class Example(NamedTuple):
    """Tokens of a prompt and of the passage that follows it; no label on the prompt's."""

    query_id: str
    input_ids: list[int]
    labels: list[int]

    def row(self) -> dict[str, Any]:
        """For the trainer."""
        return {"input_ids": self.input_ids, "labels": self.labels, "length": len(self.input_ids)}


def train(
    rows: Sequence[Path],
    settings: Settings,
    *,
    out: Path,
    base: str | Path | None = None,
    seed: int | None = None,
    say: Say,
) -> Trained:
    """Train on the candidates of `rows`, and write an adapter (or a whole model), curves and a manifest into `out`.

    `base` and `seed` stand in for the settings' own. A run that was killed goes on from its last checkpoint; one that has
    ended is not run again. Raises SettingsError, DataError, MissingExtra.
    """
    base = settings.model.base if base is None else base
    seed = settings.seed if seed is None else seed
    manifest = shared_training.manifest(out, "sft", rows, settings, base=base, seed=seed, table="sft")
    return shared_training.once(
        manifest, lambda: _train(rows, settings, out=out, base=base, seed=seed, say=say), out=out, say=say
    )


def examples(rows: Iterable[Candidate], tokenizer: Any, settings: SftSettings) -> list[Example]:
    """What is trained on; candidates without a word are left out, and so is what an earlier row of its query says too."""
    made: dict[tuple[str, tuple[int, ...]], Example] = {}
    for row in rows:
        written = training_texts.completion(row.query, row.text, tokenizer, settings)
        if from_words(written.text.removesuffix(models.END)) is None:  # nothing of it would be served
            continue
        both = [*written.prompt_ids, *written.ids]
        labels = [_NO_LABEL] * len(written.prompt_ids) + written.ids
        made.setdefault((row.query_id, tuple(both)), Example(row.query_id, both, labels))
    return list(made.values())


def _train(rows: Sequence[Path], settings: Settings, *, out: Path, base: str | Path, seed: int, say: Say) -> Trained:
    model, tokenizer = models.load(base, dtype=settings.model.dtype, seed=seed)
    read = [candidate for path in rows for candidate in candidates.read(path)]
    usable = examples(read, tokenizer, settings.sft)
    if not usable:
        raise SettingsError(f"{', '.join(map(str, rows))} has no candidate with a word in it; name another file")
    base = _kept_base(model, tokenizer, base, out=out, whole=settings.lora.rank == 0)
    taught, checked = training_texts.split(usable, settings.sft.validation_share)
    say(f"{len(taught)} passages to learn, {len(checked)} of other queries to check, on {models.device()}")
    trainer = trainer_for(model, tokenizer, settings, taught, checked, out=out, seed=seed)
    left_out = len(read) - len(usable)
    return shared_training.trained(
        trainer, tokenizer, out=out, base=base, examples=len(taught), left_out=left_out, say=say
    )


def _kept_base(model: Any, tokenizer: Any, base: str | Path, *, out: Path, whole: bool) -> str | Path:
    """A base that was made on the spot is kept beside its adapter: it may not come out the same elsewhere."""
    if whole or str(base) not in models.MADE:
        return base
    if shared_training.is_first_process():
        models.save(model, tokenizer, out / "base")
    return out / "base"


@models.harmless_warnings()
def trainer_for(
    model: Any,
    tokenizer: Any,
    settings: Settings,
    taught: Sequence[Example],
    checked: Sequence[Example],
    *,
    out: Path,
    seed: int,
) -> Any:
    """TRL's trainer for `taught`, which validates on `checked`; nothing is trained yet."""
    from trl import SFTConfig, SFTTrainer

    shared = shared_training.arguments(settings, settings.sft, out=out, seed=seed, validate=bool(checked))
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**shared, completion_only_loss=True),
        train_dataset=shared_training.dataset([example.row() for example in taught]),
        eval_dataset=shared_training.dataset([example.row() for example in checked]) if checked else None,
        processing_class=tokenizer,
        peft_config=shared_training.lora(settings.lora),
    )
    shared_training.prepare(trainer)
    return trainer
