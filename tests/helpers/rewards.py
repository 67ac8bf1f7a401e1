"""A small index with judged queries and candidates, for tests of rewards on a real engine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from querylift.index_tools.corpora.records import Document
from querylift.index_tools.corpora.trec_files import write_qrels
from querylift.index_tools.engine import Engine
from querylift.plugin.settings import parse_settings
from querylift.trainer.candidates import Candidate
from querylift.trainer.commands.score import score as score_command
from querylift.trainer.rewards.labels import Labels
from querylift.trainer.rewards.scoring import RewardOptions, ScoringResult, score_candidates
from tests.helpers.relay import Relay, run_relay

INDEX = "rewards-test"
WORDS = "axon neuron cell nerve fibre signal muscle brain blood heart lung vessel tissue organ skin bone".split()
DOCUMENTS = [
    Document(f"d{i}", WORDS[i % 16], " ".join(WORDS[(i * k) % 16] for k in range(1, 2 + i % 9)) + f" rare{i % 40}")
    for i in range(200)
]
QUERIES = {"q1": "axon signal", "q2": "blood vessel", "q3": "bone tissue", "q4": '"quoted words"', "q5": "lung organ"}
QRELS = {
    "q1": {"d3": 2, "d17": 1, "d33": 1, "d7": 0},
    "q2": {"d8": 1, "d24": 1, "d11": 2},
    "q3": {"d15": 1, "d31": 1, "d12": 1},
    "q4": {"d0": 1},
    "q5": {"d10": 1, "d26": 1},
}
LABELS = Labels(QRELS, "made/all")
TEXTS = {
    "q1": "Here is a passage: Neurons carry the nerve signal along a fibre.",
    "q2": "The heart pumps blood through every vessel; rare11 rare24.",
    "q3": "Skin and bone are tissue, rare15 rare31.",
    "q4": "words that were quoted",
    "q5": "The heart, the brain and the muscle.",
}
OPTIONS = RewardOptions(index=INDEX, weights=(0.4,))
NO_ENGINE_URL = "http://127.0.0.1:9"


def make_candidate(query_id: str, text: str, method: str = "zero-shot", sample: int = 0) -> Candidate:
    return Candidate(query_id, QUERIES[query_id], method, "teacher", text, {"sample": sample})


CANDIDATES = [make_candidate(query_id, text) for query_id, text in TEXTS.items()]


def score_on_engine(engine: Engine, candidates: Sequence[Candidate] = CANDIDATES, **changes: Any) -> ScoringResult:
    """Score candidates with the labels and options above, unless `changes` names others."""
    arguments = {"labels": LABELS, "options": OPTIONS, "settings": parse_settings({"engine": engine.url}), **changes}
    return score_candidates(candidates, engine=engine, **arguments)


def write_score_arguments(folder: Path, engine_url: str, *, candidates: Sequence[Candidate] = CANDIDATES) -> list[str]:
    """Write the candidates and a judge's file into `folder`. Return the arguments of `score` for them."""
    source, qrels = folder / "candidates.jsonl", folder / "judge.txt"
    source.write_text("".join(json.dumps(candidate.to_json()) + "\n" for candidate in candidates), encoding="utf-8")
    write_qrels(qrels, QRELS)
    arguments = [str(source), "--labels", str(qrels), "--index", INDEX, "--engine", engine_url]
    return [*arguments, "--out", str(folder / "out" / "scored.jsonl")]


def run_score_command(arguments: Sequence[str]) -> str:
    """Return the output of `querylift train score`."""
    return CliRunner().invoke(score_command, arguments, catch_exceptions=False).output


@contextmanager
def open_relay(url: str) -> Iterator[Relay]:
    """Open a relay on an event loop of its own, because scoring blocks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    relay = run_relay(url)
    try:
        yield asyncio.run_coroutine_threadsafe(relay.__aenter__(), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(relay.__aexit__(None, None, None), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
