"""Merging of an adapter into its base. The result is a Hugging Face folder that can be converted to GGUF."""

from __future__ import annotations

from pathlib import Path

from querylift.plugin.errors import SettingsError
from querylift.trainer.cards.card import write_card
from querylift.trainer.manifest import Manifest
from querylift.trainer.student import model_bases, models
from querylift.trainer.student.shared_training import Say


def merge_adapter(adapter: Path, *, out: Path, dtype: str = "bfloat16", say: Say) -> Path:
    """Merge `adapter` into its base, write the model into `out` in `dtype`, and return `out`.

    An adapter on another adapter, as after DPO, merges both. The sums are computed in float32 whatever `dtype` is. Raises
    SettingsError when `adapter` is not the folder of an adapter.
    """
    if not model_bases.is_adapter(adapter):
        raise SettingsError(f"{adapter} is not an adapter's folder; name one that `querylift train sft` or `dpo` wrote")
    manifest = Manifest(
        out,
        stage="merge",
        inputs=model_bases.list_model_inputs(adapter, name="adapter"),
        settings={"dtype": dtype},
        is_folder=True,
        essential_files=model_bases.ESSENTIAL_FILES,
    )
    if manifest.is_done:
        say(f"{out} is done")
        return out
    with manifest.record_run() as results:
        model, tokenizer = models.load_model_and_tokenizer(adapter, dtype=dtype)
        models.save_model(model, tokenizer, out)
        results["made_of"] = model_bases.list_base_chain(adapter)
        results["parameters"] = sum(weights.numel() for weights in model.parameters())
    write_card(out)
    say(f"merged into {out}, {results['parameters'] / 1e6:.0f} million weights in {dtype}")
    return out
