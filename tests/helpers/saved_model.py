"""The packaged model, SmolLM2-135M, as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class SavedModel(NamedTuple):
    """A model that the trainer saved, and whether input and output embeddings were one matrix when it was loaded."""

    folder: Path
    shares_embeddings: bool


def save_packaged_model(folder: Path) -> SavedModel:
    """Load SmolLM2-135M from its GGUF file and save it as the trainer does: float32, half a gigabyte."""
    from querylift.trainer.student import models

    model, tokenizer = models.load_model_and_tokenizer("smollm2-135m")
    shares_embeddings = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    models.save_model(model, tokenizer, folder)
    return SavedModel(folder, shares_embeddings and model.config.tie_word_embeddings)
