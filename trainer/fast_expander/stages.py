"""Runs the stages of `querylift train expander` in their order.

* The stage `index` learns from the index alone. Queries are made from its texts, and the answers are the terms of the
  nearest documents.
* The stage `judged` learns from judged queries: from the terms of their relevant documents, and from the terms that a
  teacher's candidates agree on.
* The stage `preferences` draws sets of terms from the matrix and compares on the engine what they do to nDCG@10. It learns to
  prefer the better sets.

Each stage saves its matrix in OUT/training, so that a run that was stopped continues after the last finished stage.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from querylift.index_tools.fast_expander.terms_form import UNTRAINED_SCALE, calculate_mean_vectors, write_matrix
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.encoder import MODEL_FILE, TOKENIZER_FILE
from querylift.plugin.fast_expander.expander_folder import RECORD_FILE, collect_file_facts
from querylift.plugin.fast_expander.mapped_files import list_text_files
from querylift.plugin.fast_expander.matrix_weigher import MATRIX_FILE
from querylift.plugin.fast_expander.vocabulary import WORDS_NAME
from querylift.trainer.fast_expander.array_files import load_weights, save_weights
from querylift.trainer.fast_expander.index_stage import train_on_index
from querylift.trainer.fast_expander.judged_stage import train_on_judgments
from querylift.trainer.fast_expander.matrix_training import MatrixWeights
from querylift.trainer.fast_expander.preferences_stage import train_on_preferences
from querylift.trainer.fast_expander.stage_names import StageName
from querylift.trainer.fast_expander.training_context import JudgedTrainingQueries, TrainingContext

_WORK_FOLDER = "training"
_COPIED_FILES = (MODEL_FILE, TOKENIZER_FILE, *list_text_files(WORDS_NAME))
"""The files that training does not change. A folder whose vectors come from an endpoint has no encoder."""


def run_stages(
    context: TrainingContext,
    folder: Path,
    stages: Sequence[StageName],
    out: Path,
    judged: JudgedTrainingQueries | None,
) -> None:
    """Train the expander in `folder` by each stage in turn, and write the trained expander into `out`.

    A stage starts from the matrix of the stage before. Raises SettingsError when a stage lacks its judged queries.
    """
    work_folder = out / _WORK_FOLDER
    work_folder.mkdir(parents=True, exist_ok=True)
    weights = _create_untrained_weights(context)
    trained = list(context.record.trained)
    for stage in stages:
        trained.append(stage)
        path = work_folder / f"{len(trained)}-{stage}.npz"
        if path.is_file():
            context.tell(f"{stage}: done before")
            weights = load_weights(path)
            continue
        context.tell(f"{stage}:")
        weights = _run_stage(context, stage, weights, work_folder, judged)
        save_weights(path, weights)
    _write_trained_expander(context, folder, out, weights, trained)


def _create_untrained_weights(context: TrainingContext) -> MatrixWeights:
    """Return the untrained rows. The bias is the logarithm of each term's share of the weights of all documents."""
    documents = context.documents
    totals = np.bincount(documents.terms, weights=documents.weights, minlength=documents.term_count)
    bias = np.log(totals / totals.sum() + 1e-9).astype(np.float32)
    return MatrixWeights(calculate_mean_vectors(documents) * UNTRAINED_SCALE, bias)


def _run_stage(
    context: TrainingContext,
    stage: StageName,
    weights: MatrixWeights,
    work_folder: Path,
    judged: JudgedTrainingQueries | None,
) -> MatrixWeights:
    if stage == "index":
        return train_on_index(context, weights, work_folder)
    if judged is None:
        raise SettingsError(f"stage {stage} needs judged queries; name them with --corpus and --split")
    if stage == "judged":
        return train_on_judgments(context, weights, judged)
    return train_on_preferences(context, weights, judged)


def _write_trained_expander(
    context: TrainingContext, folder: Path, out: Path, weights: MatrixWeights, trained: Sequence[str]
) -> None:
    """Write the matrix, and copy the other files from `folder`. The record names the stages and the hashes of the files."""
    copied_files = [name for name in _COPIED_FILES if name in context.record.files]
    for name in copied_files:
        shutil.copyfile(folder / name, out / name)
    write_matrix(out / MATRIX_FILE, weights.rows, weights.bias)
    files = collect_file_facts(out, [*copied_files, MATRIX_FILE])
    record = context.record.model_copy(update={"trained": tuple(trained), "files": files})
    (out / RECORD_FILE).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
