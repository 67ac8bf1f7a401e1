"""A trained judge as a folder, and its export for serving: eight-bit ONNX, classifier, tokenizer and record."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from querylift.index_tools.fast_expander.encoder_conversion import quantize_onnx_file, write_bert_graph
from querylift.index_tools.fast_expander.encoder_folder import read_json_object
from querylift.index_tools.judging.grade_scale import GradeScale
from querylift.index_tools.judging.judge_folder import (
    CLASSIFIER_FILE,
    MODEL_FILE,
    RECORD_FILE,
    SERVED_FILES,
    TOKENIZER_FILE,
    JudgeRecord,
    load_judge_tokenizer,
    read_classifier,
    read_judge_record,
    write_judge_record,
)
from querylift.plugin.errors import SettingsError
from querylift.plugin.files import compute_file_digest
from querylift.trainer.judge.student.judge_model import JudgeModel, load_judge_model
from querylift.trainer.judge.student.student_config import StudentOptions

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
_REMEDY = "train the judge again with `querylift judge train`"


def make_record(
    options: StudentOptions,
    scale: GradeScale,
    *,
    name: str,
    teacher: str,
    thresholds: tuple[float, ...],
    annotation_count: int,
    learned_queries: tuple[str, ...] = (),
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
        learned_queries=learned_queries,
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
    weight, bias = read_classifier(folder / CLASSIFIER_FILE, record, width=model.width, remedy=_REMEDY)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(weight))
        model.classifier.bias.copy_(torch.from_numpy(bias))
    return model, record


def export_judge(folder: Path, out: Path) -> JudgeRecord:
    """Write the served files of the trained judge in `folder` into `out`, and return their record.

    The weights get eight bits. When `out` holds the same judge already, the agreement that was recorded for it stays.
    Raises SettingsError when the folder is not complete, and MissingExtra when a package is not installed.
    """
    record = read_trained_record(folder)
    check_export_folder(out)
    earlier_record = _find_record(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out is {out}, which cannot be made ({error.strerror}); name another folder") from None
    with TemporaryDirectory(dir=out) as work:
        quantize_onnx_file(write_bert_graph(folder, Path(work) / "float32.onnx"), out / MODEL_FILE)
    for name in (TOKENIZER_FILE, CLASSIFIER_FILE):
        shutil.copyfile(folder / name, out / name)
    files = {name: compute_file_digest(out / name) for name in SERVED_FILES}
    exported = record.model_copy(update={"files": files})
    if earlier_record and earlier_record.model_copy(update={"agreement": None}) == exported:
        exported = earlier_record
    write_judge_record(out, exported)
    return exported


def _find_record(folder: Path) -> JudgeRecord | None:
    """Return the record of the judge in `folder`, or None when there is none that can be read."""
    try:
        return read_judge_record(folder)
    except SettingsError:
        return None


def check_export_folder(out: Path) -> None:
    """Raise SettingsError when `out` is a file, a trained judge, or a folder with files that no export wrote."""
    if not out.exists():
        return
    if not out.is_dir():
        raise SettingsError(f"--out is {out}, which is a file; name a folder")
    names = {path.name for path in out.iterdir()}
    if WEIGHTS_FILE in names:
        raise SettingsError(f"--out is {out}, which holds a trained model; name another folder")
    if RECORD_FILE not in names and names - set(SERVED_FILES):
        raise SettingsError(f"--out is {out}, which holds files but no judge; name another folder")


def read_trained_record(folder: Path) -> JudgeRecord:
    """Return the record of a trained judge. Raises SettingsError when a file is missing, or a small one is damaged."""
    record = read_judge_record(folder, writer="querylift judge train")
    if record.files:
        raise SettingsError(f"{folder} holds an exported judge; name the folder that `querylift judge train` wrote")
    for name in (WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE, CLASSIFIER_FILE):
        if not (folder / name).is_file():
            raise SettingsError(f"{folder} lacks {name}; {_REMEDY}")
    load_judge_tokenizer(folder / TOKENIZER_FILE, remedy=_REMEDY)
    width = int(read_json_object(folder / CONFIG_FILE).get("hidden_size", 0))
    read_classifier(folder / CLASSIFIER_FILE, record, width=width, remedy=_REMEDY)
    return record
