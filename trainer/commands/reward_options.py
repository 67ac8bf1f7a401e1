"""Options that say what a reward is: the index, the weights, the measures and the labels. `score` and `grpo` share them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.plugin.errors import SettingsError

if TYPE_CHECKING:
    from querylift.plugin.settings import Settings
    from querylift.trainer.rewards.labels import Labels
    from querylift.trainer.rewards.scoring import RewardOptions

relevant_from_option = click.option(
    "--relevant-from",
    type=click.IntRange(min=1),
    help="Lowest grade that counts as relevant for recall [default: the corpus's or the judge's, or 1].",
)
index_option = click.option("--index", required=True, help="Index to search.")
weights_option = click.option(
    "--weight",
    "weights",
    multiple=True,
    type=float,
    default=[0.2],
    show_default=True,
    help="Weight of the expansion; repeatable. The reward is the mean over all weights.",
)
mix_option = click.option(
    "--mix",
    multiple=True,
    metavar="MEASURE=SHARE",
    default=["ndcg_at_10=1"],
    show_default=True,
    help="Measure of the reward and its share; repeatable.",
)
cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="File that keeps the rankings of all searches [default: rankings.sqlite in the folder of --out].",
)
patience_option = click.option(
    "--patience",
    type=float,
    default=600.0,
    show_default=True,
    help="Seconds to wait for an engine that does not answer.",
)


def parse_mix(items: Sequence[str]) -> dict[str, float]:
    """Return the share of each measure of MEASURE=SHARE. Raises SettingsError when a share is no number."""
    return dict(_parse_share(item) for item in items)


def _parse_share(text: str) -> tuple[str, float]:
    measure, equals, share = text.partition("=")
    try:
        return measure.strip(), float(share if equals else "1")
    except ValueError:
        raise SettingsError(f"--mix is {text!r}; write MEASURE=SHARE, for example recall_at_100=0.3") from None


def collect_reward_settings(reward_options: RewardOptions, settings: Settings) -> dict[str, Any]:
    """Return the settings that decide rewards, for a manifest. The labels and the state of the index are not in them."""
    index_settings = settings.find_index_settings(reward_options.index)
    return {
        "index": reward_options.index,
        "weights": reward_options.weights,
        "mix": reward_options.mix,
        "table": index_settings.model_dump(exclude={"weight", "enabled"}) if index_settings else {},
    }


def read_labels_file(path: Path, *, relevant_from: int | None, default_grade: int, prefix: str = "") -> Labels:
    """Read a file of qrels. What is relevant is `relevant_from`, else what a model's sidecar says, else `default_grade`."""
    from querylift.index_tools.judging.judged_qrels import choose_relevant_grade, find_grade_source
    from querylift.trainer.rewards.labels import read_labels

    lowest_grade = relevant_from or choose_relevant_grade(find_grade_source(path), default=default_grade)
    return read_labels(path, relevant_from=lowest_grade, prefix=prefix)


def describe_labels(labels: Labels, path: str | Path | None) -> dict[str, Any]:
    """Return the name and the digest of labels, and the model that made them when its sidecar lies beside the file."""
    from querylift.index_tools.judging.judged_qrels import find_grade_source

    source = find_grade_source(Path(path)) if path is not None else None
    judged_by = {"judged_by": source.to_json()} if source else {}
    return {"labels": labels.source, "labels_sha256": labels.compute_digest(), **judged_by}
