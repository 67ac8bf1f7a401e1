"""A corpus on which one word helps, and a student that knows it, for tests of GRPO on a real engine.

The relevant document of "what is rain" says "rain" and "gauge" once. Three others say "rain" twice, and "page". So a passage
with "gauge" brings the relevant document to the top, and a passage with "page" does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from querylift.index_tools.corpora import corpus_names
from querylift.index_tools.engine import Engine
from querylift.index_tools.indexing import IndexPlan, build_index
from querylift.plugin.settings import parse_settings
from querylift.trainer.rewards.engine_retry import EngineRetry
from querylift.trainer.rewards.engine_reward import EngineReward
from querylift.trainer.rewards.labels import load_split_labels
from querylift.trainer.rewards.ranking_cache import RankingCache
from querylift.trainer.rewards.scoring import RewardOptions
from querylift.trainer.student import sft
from querylift.trainer.training_config import TrainingConfig, parse_training_config
from tests.helpers.corpus_files import QRELS_HEADER, format_jsonl, write_text_file
from tests.helpers.lessons import TOPICS, write_json_lines
from tests.helpers.training import print_nothing

INDEX = "grpo-test"
GOOD, BAD = "a gauge measures it", "a page about it"
OPTIONS = RewardOptions(index=INDEX, weights=(0.4,))


def write_weather_corpus(folder: Path) -> Path:
    """Write a BEIR folder with a query for each topic.

    The split `other` holds one query without a relevant document. That of `shared` has the same relevant document as rain.
    """
    documents = {f"{topic}-relevant": f"{topic} gauge" for topic in TOPICS}
    documents |= {f"{topic}-{number}": f"{topic} {topic} page" for topic in TOPICS for number in range(3)}
    queries = {topic: f"what is {topic}" for topic in TOPICS} | {"dust": "what is dust", "drizzle": "light drops"}
    write_text_file(folder / "corpus.jsonl", format_jsonl(**documents))
    write_text_file(folder / "queries.jsonl", format_jsonl(**queries))
    judgments = "".join(f"{topic}\t{topic}-relevant\t1\n" for topic in TOPICS)
    write_text_file(folder / "qrels/train.tsv", QRELS_HEADER + judgments)
    write_text_file(folder / "qrels/other.tsv", QRELS_HEADER + "dust\train-0\t0\n")
    write_text_file(folder / "qrels/shared.tsv", QRELS_HEADER + "drizzle\train-relevant\t1\n")
    return folder


def build_weather_index(corpus: Path, url: str) -> None:
    """Index the corpus under the name `INDEX`."""
    with Engine(parse_settings({"engine": url})) as engine:
        build_index(engine, corpus_names.load_corpus(str(corpus)), IndexPlan(INDEX))


def make_grpo_config(**grpo: object) -> TrainingConfig:
    """Return a configuration for a small student. `grpo` overrides options of its section."""
    section = {
        "samples": 8,
        "batch_size": 28,
        "gradient_accumulation": 2,
        "epochs": 12,
        "learning_rate": 5e-3,
        "validation_share": 0.2,
        "validation_steps": 6,
        "save_steps": 0,
    }
    return parse_training_config(
        {
            "model": {"base": "made:llama", "compute": "float32"},
            "lora": {"rank": 16},
            "sft": {"epochs": 60, "learning_rate": 5e-3, "batch_size": 10, "validation_share": 0, "save_steps": 0},
            "grpo": section | grpo,
        }
    )


def teach_weather_student(folder: Path) -> Path:
    """Train a small student that writes a good and a bad passage for each topic about equally often."""
    passages = [{"query_id": t, "query": f"what is {t}", "text": text} for t in TOPICS for text in (GOOD, BAD)]
    rows = write_json_lines(folder / "passages.jsonl", passages)
    sft.train_on_passages([rows], make_grpo_config(), out=folder / "sft", say=print_nothing)
    return folder / "sft"


@contextmanager
def open_weather_reward(corpus: Path, url: str) -> Iterator[EngineReward]:
    """Open the reward of the split `train`, with a cache in memory."""
    settings = parse_settings({"engine": url})
    labels = load_split_labels(corpus_names.load_corpus(str(corpus)), "train")
    with Engine(settings) as engine, RankingCache() as cache:
        yield EngineReward(
            engine=engine, settings=settings, labels=labels, options=OPTIONS, cache=cache, retry=EngineRetry()
        )


def write_config_file(path: Path, config: TrainingConfig) -> Path:
    """Write a configuration as a TOML file of the sections that GRPO reads."""
    lines = []
    for name, section in config.model_dump(mode="json", include={"model", "lora", "grpo"}).items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
