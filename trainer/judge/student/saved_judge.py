"""A trained judge as a folder, and its export for serving: eight-bit ONNX, classifier, tokenizer and record."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from querylift.index_tools.fast_expander.encoder_conversion import quantize_onnx_file, write_bert_graph
from querylift.index_tools.judging.grade_scale import GradeScale
from querylift.index_tools.judging.judge_folder import (
    CLASSIFIER_FILE,
    MODEL_FILE,
    RECORD_FILE,
    SERVED_FILES,
    TOKENIZER_FILE,
    JudgeRecord,
    read_judge_record,
    write_judge_record,
)
from querylift.plugin.errors import SettingsError
from querylift.plugin.files import compute_file_digest
from querylift.trainer.judge.student.judge_model import JudgeModel, load_judge_model
from querylift.trainer.judge.student.student_config import StudentOptions

WEIGHTS_FILE = "model.safetensors"


def make_record(
    options: StudentOptions,
    scale: GradeScale,
    *,
    name: str,
    teacher: str,
    thresholds: tuple[float, ...],
    annotation_count: int,
) -> JudgeRecord:
    """Return the record of a judge that was trained today."""
    return JudgeRecord(
        name=name,
        teacher=teacher,
        base=Path(options.base).name,
        reading=options.reading,
        scale_name=scale.name,
        meanings=scale.meanings,
        relevant_from=scale.relevant_from,
        thresholds=thresholds,
        query_tokens=options.query_tokens,
        document_tokens=options.document_tokens,
        annotations=annotation_count,
        created=date.today().isoformat(),
    )


def save_judge(model: JudgeModel, record: JudgeRecord, folder: Path) -> None:
    """Write the judge into `folder` as a BERT folder of transformers, with its classifier and its record."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    model.bert.save_pretrained(folder)
    model.tokenizer.save(str(folder / TOKENIZER_FILE))
    np.savez(
        folder / CLASSIFIER_FILE,
        weight=model.classifier.weight.detach().numpy(),
        bias=model.classifier.bias.detach().numpy(),
    )
    write_judge_record(folder, record)


def load_judge(folder: Path) -> tuple[JudgeModel, JudgeRecord]:
    """Load a trained judge, to run it with PyTorch. Raises SettingsError when the folder is not complete."""
    import numpy as np
    import torch

    record = read_trained_record(folder)
    options = StudentOptions(
        base=str(folder),
        reading=record.reading,
        trained_layers=1,
        query_tokens=record.query_tokens,
        document_tokens=record.document_tokens,
    )
    model = load_judge_model(options, grade_count=len(record.meanings), folder=folder)
    with np.load(folder / CLASSIFIER_FILE, allow_pickle=False) as arrays, torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(arrays["weight"]))
        model.classifier.bias.copy_(torch.from_numpy(arrays["bias"]))
    return model, record


def export_judge(folder: Path, out: Path) -> JudgeRecord:
    """Write the served files of the trained judge in `folder` into `out`, and return their record.

    The weights get eight bits. Raises SettingsError when the folder is not complete, MissingExtra.
    """
    record = read_trained_record(folder)
    if out.exists() and not (out / RECORD_FILE).is_file() and any(out.iterdir()):
        raise SettingsError(f"--out is {out}, which holds files but no judge; name another folder")
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out) as work:
        quantize_onnx_file(write_bert_graph(folder, Path(work) / "float32.onnx"), out / MODEL_FILE)
    for name in (TOKENIZER_FILE, CLASSIFIER_FILE):
        shutil.copyfile(folder / name, out / name)
    files = {name: compute_file_digest(out / name) for name in SERVED_FILES}
    exported = record.model_copy(update={"files": files})
    write_judge_record(out, exported)
    return exported


def read_trained_record(folder: Path) -> JudgeRecord:
    """Return the record of a trained judge. Raises SettingsError when a file is missing, or the classifier is damaged."""
    record = read_judge_record(folder)
    for name in (WEIGHTS_FILE, "config.json", TOKENIZER_FILE, CLASSIFIER_FILE):
        if not (folder / name).is_file():
            raise SettingsError(f"{folder} lacks {name}; train the judge again with `querylift judge train`")
    _check_classifier(folder / CLASSIFIER_FILE, grade_count=len(record.meanings))
    return record


def _check_classifier(path: Path, *, grade_count: int) -> None:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            shapes: Any = (arrays["weight"].shape[0], arrays["bias"].shape[0])
    except Exception as error:  # a cut file raises errors of zipfile, numpy or the system
        raise SettingsError(
            f"{path} is damaged ({error}); train the judge again with `querylift judge train`"
        ) from None
    if shapes != (grade_count, grade_count):
        raise SettingsError(
            f"{path} has {shapes[0]} grades, and {RECORD_FILE} has {grade_count}; train the judge again"
        )
