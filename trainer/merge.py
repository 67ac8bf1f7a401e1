"""An adapter becomes part of its base: a plain Hugging Face folder, ready to be converted to GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plugin.errors import SettingsError
from trainer import models
from trainer.manifest import Manifest
from trainer.training import Say

DTYPES = ("bfloat16", "float32")


def merge(adapter: Path, *, out: Path, dtype: str = "bfloat16", say: Say) -> Path:
    """Write the model that `adapter` makes of its base into `out`, in `dtype`; returns `out`.

    An adapter on an adapter (preferences after supervised fine-tuning) takes both in. The sums are float32 whatever
    `dtype`. Raises SettingsError where `adapter` is no adapter's folder.
    """
    if not models.is_adapter(adapter):
        raise SettingsError(f"{adapter} is no adapter's folder; name what `querylift train sft` or `dpo` wrote")
    manifest = Manifest(out, stage="merge", inputs=_inputs(adapter), settings={"dtype": dtype})
    if manifest.done:
        say(f"{out} is done")
        return out
    with manifest.running() as results:
        model, tokenizer = models.load(adapter, dtype=dtype)
        models.save(model, tokenizer, out)
        results.update(_described(model, adapter))
    say(f"merged into {out}, {results['parameters'] / 1e6:.0f} million weights in {dtype}")
    return out


def chain(adapter: Path) -> list[str]:
    """`adapter`, what it was trained on, and so on down to a whole model."""
    named = [str(adapter)]
    while models.is_adapter(Path(named[-1])):
        named.append(models.base_of(Path(named[-1])))
    return named


def _inputs(adapter: Path) -> dict[str, Path]:
    paths = [Path(name) for name in chain(adapter)]
    names = ["adapter", *(f"base {number}" for number in range(1, len(paths)))]
    return {name: path for name, path in zip(names, paths, strict=True) if path.exists()}


def _described(model: Any, adapter: Path) -> dict[str, Any]:
    return {"made_of": chain(adapter), "parameters": sum(weights.numel() for weights in model.parameters())}
