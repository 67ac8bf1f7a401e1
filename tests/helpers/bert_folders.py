"""Small BERTs with random weights as transformers saves them, and annotations that a judge learns from in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from querylift.index_tools.judging.grade_scale import DEFAULT_SCALE
from querylift.trainer.judge.annotations import CRITERIA, Annotation
from querylift.trainer.judge.student.judge_model import JudgeModel, load_judge_model
from querylift.trainer.judge.student.student_config import JudgeConfig, StudentOptions
from querylift.trainer.student.libraries import silence_libraries
from tests.helpers.expanders import BERT, TOPICS, write_tokenizer


def write_tiny_bert(folder: Path, *, layers: int = 2, seed: int = 3, **config: object) -> Path:
    """Save a random BERT, 32 wide, with a tokenizer of the topics' words. The scales of its norms are random too."""
    silence_libraries()
    import torch
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    size = write_tokenizer(folder)
    settings: dict[str, Any] = {**BERT, "vocab_size": size, "num_hidden_layers": layers, "max_position_embeddings": 256}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = BertModel(BertConfig(**{**settings, "initializer_range": 0.2, **config}), add_pooling_layer=False)
        for name, weights in model.named_parameters():
            if weights.ndim == 1:
                weights.uniform_(*((0.5, 1.5) if name.endswith("LayerNorm.weight") else (-0.2, 0.2)))
    model.save_pretrained(folder)
    return folder


def load_tiny_judge(folder: Path, **student: Any) -> JudgeModel:
    """Return an untrained judge of four grades on the BERT in `folder`, of which one layer learns unless told."""
    options = StudentOptions(**{"base": str(folder), "trained_layers": 1, **student})
    return load_judge_model(options, grade_count=len(DEFAULT_SCALE.grades))


def make_config(*, student: Any = None, training: Any = None, loss: Any = None) -> JudgeConfig:
    """Return a configuration with some settings changed."""
    return JudgeConfig.model_validate({"student": student or {}, "training": training or {}, "loss": loss or {}})


def make_pair(query: str, document: str, grade: int, *, number: int = 0, reasoning: str | None = None) -> Annotation:
    """Return an annotation whose criteria agree with its grade. Its reasoning names the grade unless given."""
    return Annotation(
        query_id=query.replace(" ", "-"),
        doc_id=f"d{number}",
        query=query,
        document=document,
        grade=grade,
        model="teacher-large",
        criteria=dict.fromkeys(CRITERIA, grade),
        reasoning=f"grade {grade}: {document.split()[0]}" if reasoning is None else reasoning,
    )


def make_topic_pairs() -> list[Annotation]:
    """Return forty annotations: five queries on two documents of each grade, by the number of words that they share."""
    annotations: list[Annotation] = []
    words = [word for topic in TOPICS.values() for word in topic]
    for number in range(5):
        query = words[number : number + 3]
        for grade in DEFAULT_SCALE.grades:
            for copy in (0, 1):
                others = words[20 + 4 * copy + number : 24 + 4 * copy + number - grade]
                document = " ".join([*query[:grade], *others])
                annotations.append(make_pair(" ".join(query), document, grade, number=len(annotations)))
    return annotations
