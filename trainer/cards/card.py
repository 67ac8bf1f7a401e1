"""The card of a student: what it is, how it was trained, on which data under which licences, and what it measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from querylift.plugin.expansion import PROMPT_VERSION
from querylift.plugin.files import open_for_replacement
from querylift.trainer.cards.lineage import Lineage, has_card_stage, read_lineage
from querylift.trainer.cards.sections import UNKNOWN, render_data, render_held_out, render_measured, render_training
from querylift.trainer.manifest import CARD_NAME
from querylift.trainer.student.libraries import silence_libraries
from querylift.trainer.student.model_bases import PACKAGED_BASE, RANDOM_BASES, is_adapter
from querylift.trainer.training_config import CardOptions

_PACKAGED_BASE_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


def write_card(folder: Path, options: CardOptions | None = None, *, results: Mapping[str, Any] | None = None) -> bool:
    """Write README.md into the folder of a student. Return False, and write nothing, when no stage with a card made it.

    `options` state licences that the manifests lack. `results` is the JSON of `querylift train report`.
    """
    if not has_card_stage(folder):
        return False
    text = render_card(folder, options or CardOptions(), results=results)
    with open_for_replacement(folder / CARD_NAME) as stream:
        stream.write(text.encode())
    return True


def render_card(folder: Path, options: CardOptions, *, results: Mapping[str, Any] | None = None) -> str:
    """Return the text of the card, front matter first. A stage with a card must have made `folder`."""
    lineage = read_lineage(folder)
    options = _add_recorded_licenses(options, lineage)
    sections = [
        f"---\n{_render_front_matter(folder, lineage, options)}\n---\n",
        f"# {folder.resolve().name}\n",
        _describe_model(folder, lineage, options),
        "## Training\n",
        render_training(lineage),
        "## Data\n",
        render_data(lineage, options.licenses),
        "## Held out\n",
        render_held_out(lineage),
        "## Measured\n",
        render_measured(results),
        "## Limits\n",
        "Passages can be wrong. They are search terms at a low weight, and never an answer for a reader.",
    ]
    return "\n".join(sections) + "\n"


def _add_recorded_licenses(options: CardOptions, lineage: Lineage) -> CardOptions:
    """Add the licences that the manifests record. Those of `options` come first."""
    recorded = [record.origin for record in lineage.stages]
    licenses = {name: text for origin in recorded for name, text in dict(origin.get("licenses") or {}).items()}
    own_license = options.license or next(
        (origin["license"] for origin in reversed(recorded) if origin.get("license")), ""
    )
    return CardOptions(license=own_license, licenses={**licenses, **options.licenses})


def _render_front_matter(folder: Path, lineage: Lineage, options: CardOptions) -> str:
    silence_libraries()
    from huggingface_hub import ModelCardData

    names_adapter = is_adapter(folder)
    base = _name_base(lineage.base)
    stages = [record.stage for record in lineage.stages]
    texts = [text for record in lineage.stages for text in record.origin.get("texts", ())]
    data = ModelCardData(
        base_model=base or None,
        base_model_relation=("adapter" if names_adapter else "finetune") if base else None,
        license=options.license.lower() or None,
        library_name="peft" if names_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["querylift", "query-expansion", *(["lora"] if names_adapter else []), *dict.fromkeys(stages)],
        datasets=sorted({text["source"] for text in texts}) or None,
    )
    return data.to_yaml()


def _describe_model(folder: Path, lineage: Lineage, options: CardOptions) -> str:
    kind = "A LoRA adapter on" if is_adapter(folder) else "A whole model, made from"
    base = _name_base(lineage.base) or "a small model with random weights"
    stages = ", ".join(record.stage for record in lineage.stages)
    base_license = options.licenses.get(lineage.base) or options.licenses.get(base) or UNKNOWN
    own_license = options.license or "unknown: state it with `license` under `[card]`"
    return (
        f"{kind} {base}. Querylift trained it; the stages are: {stages}. It answers a search query with a short "
        f"passage, whose words are added to the search. It reads the prompt version `{PROMPT_VERSION}`.\n\n"
        f"- Licence of this model: {own_license}\n"
        f"- Licence of the base: {base_license}\n"
    )


def _name_base(base: str) -> str:
    """Return the base without its folder. "" stands for a model that was made on the spot."""
    name = Path(base).name
    if base == PACKAGED_BASE:
        return _PACKAGED_BASE_ON_HUB
    return "" if base in RANDOM_BASES else name
