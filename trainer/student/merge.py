"""An adapter becomes part of its base: a plain Hugging Face folder, ready to be converted to GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from querylift.plugin.errors import SettingsError
from querylift.trainer.manifest import Manifest
from querylift.trainer.student import models
from querylift.trainer.student.shared_training import Say

DTYPES = ("bfloat16", "float32")


def merge(adapter: Path, *, out: Path, dtype: str = "bfloat16", say: Say) -> Path:
    """Write the model that `adapter` makes of its base into `out`, in `dtype`; returns `out`.

    An adapter on an adapter (preferences after supervised fine-tuning) takes both in. The sums are float32 whatever
    `dtype`. Raises SettingsError where `adapter` is no adapter's folder.
    """
    if not models.is_adapter(adapter):
        raise SettingsError(f"{adapter} is no adapter's folder; name what `querylift train sft` or `dpo` wrote")
    inputs = models.read_for(adapter, name="adapter")
    manifest = Manifest(out, stage="merge", inputs=inputs, settings={"dtype": dtype}, folder=True, vital=models.VITAL)
    if manifest.done:
        say(f"{out} is done")
        return out
    with manifest.running() as results:
        model, tokenizer = models.load(adapter, dtype=dtype)
        models.save(model, tokenizer, out)
        results.update(_described(model, adapter))
    say(f"merged into {out}, {results['parameters'] / 1e6:.0f} million weights in {dtype}")
    return out


def _described(model: Any, adapter: Path) -> dict[str, Any]:
    return {"made_of": models.chain(adapter), "parameters": sum(weights.numel() for weights in model.parameters())}
