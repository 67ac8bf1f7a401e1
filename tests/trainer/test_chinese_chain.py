"""Every stage of a training takes Chinese: its words are counted, its texts are cut at signs, and no side is empty."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

from querylift.index_tools.corpora.corpus_names import load_corpus
from querylift.index_tools.engine import Engine
from querylift.index_tools.indexing import IndexPlan, build_index
from querylift.plugin.expansion import MAX_TOKENS, expansion_from_text
from querylift.plugin.settings import parse_settings
from querylift.trainer.candidates import read_candidates
from querylift.trainer.commands.train import train
from querylift.trainer.rewards.pair_file import read_passage_pairs
from querylift.trainer.rewards.scored_candidates import read_scored_candidates
from querylift.trainer.student.models import load_tokenizer
from querylift.trainer.student.training_texts import encode_text
from tests.helpers.corpus_files import QRELS_HEADER, format_jsonl, write_text_file

INDEX = "chinese-chain"
QUERIES = {"1": "谁可以成为个体工商户", "2": "债务由谁承担", "3": "劳动合同如何解除", "4": "房屋租赁期限"}
SUBJECTS = {
    "1": "公民从事工商业经营，经依法登记，为个体工商户。个体工商户可以起字号。",
    "2": "个体工商户的债务，个人经营的，以个人财产承担；家庭经营的，以家庭财产承担。",
    "3": "用人单位与劳动者协商一致，可以解除劳动合同。劳动者提前三十日以书面形式通知用人单位。",
    "4": "租赁期限不得超过二十年。超过二十年的，超过部分无效。租赁期限届满，当事人可以续订租赁合同。",
}
CONFIG = """
[model]
base = "made:qwen3"
compute = "float32"
[lora]
rank = 4
[sft]
validation_share = 0.0
batch_size = 4
save_steps = 0
[sample]
samples = 3
[dpo]
validation_share = 0.0
batch_size = 4
save_steps = 0
"""


class Chain(NamedTuple):
    folder: Path
    outputs: dict[str, str]

    def read_results(self, name: str) -> dict[str, Any]:
        """Return the results in the manifest of an output."""
        folder = self.folder / name
        path = folder / "manifest.json" if folder.is_dir() else folder.with_name(f"{name}.manifest.json")
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["results"]
        return results


def _run_stage(*arguments: object) -> str:
    return CliRunner().invoke(train, list(map(str, arguments)), catch_exceptions=False).output


def _write_corpus(folder: Path) -> Path:
    documents = {f"d{key}": text * 5 for key, text in SUBJECTS.items()}
    documents |= {f"x{number}": text[number : number + 20] for number, text in enumerate(SUBJECTS.values())}
    write_text_file(folder / "corpus.jsonl", format_jsonl(**documents))
    write_text_file(folder / "queries.jsonl", format_jsonl(**QUERIES))
    write_text_file(folder / "qrels/train.tsv", QRELS_HEADER + "".join(f"{key}\td{key}\t1\n" for key in QUERIES))
    return folder


def _list_rows(texts: Sequence[str]) -> str:
    """Return rows of candidates: the right subject, another one, and an answer without words."""
    keys = list(QUERIES)
    rows = [
        {"query_id": key, "query": QUERIES[key], "method": method, "model": "t", "text": text}
        for number, key in enumerate(keys)
        for method, text in (
            ("zero-shot", texts[number] * 5),
            ("few-shot", texts[(number + 1) % len(keys)]),
            ("empty", "……"),
        )
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture(scope="module")
def chain(opensearch: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    folder = tmp_path_factory.mktemp("chinese")
    corpus = _write_corpus(folder / "corpus")
    config = write_text_file(folder / "config.toml", CONFIG)
    rows = write_text_file(folder / "rows.jsonl", _list_rows(list(SUBJECTS.values())))
    scoring = ["--corpus", corpus, "--index", INDEX, "--engine", opensearch]
    with Engine(parse_settings({"engine": opensearch})) as engine:
        build_index(engine, load_corpus(str(corpus)), IndexPlan(INDEX, analyzer="cjk"))
        outputs = {
            "teach": _run_stage(
                "teach", corpus, "--judged", 1, "--import", rows, "--held-out", "none", "--out", folder / "teach.jsonl"
            ),
            "sft": _run_stage(
                "sft", folder / "teach.jsonl", "--config", config, "--held-out", "none", "--out", folder / "sft"
            ),
            "sample": _run_stage(
                "sample", folder / "sft", corpus, "--config", config, "--out", folder / "sample.jsonl"
            ),
            "score": _run_stage(
                "score", folder / "teach.jsonl", *scoring, "--student", folder / "sft", "--out", folder / "score.jsonl"
            ),
            "own": _run_stage("score", folder / "sample.jsonl", *scoring, "--out", folder / "own.jsonl"),
            "pairs": _run_stage(
                "pairs", folder / "score.jsonl", "--strategy", "all", "--margin", 0, "--no-floor",
                "--out", folder / "pairs.jsonl",
            ),
            "dpo": _run_stage(
                "dpo", folder / "pairs.jsonl", "--config", config, "--model", folder / "sft", "--held-out", "none",
                "--out", folder / "dpo",
            ),
        }  # fmt: skip
        yield Chain(folder, outputs)
        engine.call("DELETE", f"/{INDEX}")


def test_documents_and_imported_texts_become_candidates_and_those_without_words_are_counted(chain: Chain) -> None:
    candidates = list(read_candidates(chain.folder / "teach.jsonl"))
    assert chain.read_results("teach.jsonl")["given"] == {"written": 16, "known": 0, "empty": 0, "without_end": 4}
    assert len(candidates) == 16
    documents = [candidate for candidate in candidates if candidate.method == "relevant-document"]
    assert len(documents) == 4 and not any(candidate.ended for candidate in documents)
    assert all(90 < len(candidate.text) < 160 for candidate in documents)  # 60 words of two signs, and punctuation
    assert "4 did not end" in chain.outputs["teach"]


def test_every_candidate_with_words_becomes_a_row_and_none_is_cut_to_nothing(chain: Chain) -> None:
    results = chain.read_results("sft")
    # A document and the text of its subject begin alike, so that they are one row once cut.
    assert results["texts"] == {"no_words": 4, "repeated": 4, "cut": 8, "without_end": 8}
    assert results["examples"] == 8
    assert "texts were cut at 64 tokens" in chain.outputs["sft"]


def test_samples_that_did_not_end_are_counted(chain: Chain) -> None:
    candidates = list(read_candidates(chain.folder / "sample.jsonl"))
    endless = [candidate for candidate in candidates if not candidate.ended]
    assert len(candidates) == chain.read_results("sample.jsonl")["passages"] == 12
    assert len(endless) == chain.read_results("sample.jsonl")["without_end"]
    assert not any(candidate.text.endswith("\ufffd") for candidate in endless)
    assert f"{len(endless)} of the 12 passages there did not end" in chain.outputs["sample"]
    assert chain.read_results("own.jsonl")["without_end"] == len(endless)


def test_what_is_rewarded_is_what_the_student_may_write(chain: Chain) -> None:
    tokenizer = load_tokenizer(chain.folder / "sft")
    scored = [row for row in read_scored_candidates(chain.folder / "score.jsonl") if row.passage]
    assert len(scored) == 12
    for row in scored:
        assert 0 < len(encode_text(row.passage, tokenizer)) <= MAX_TOKENS
        assert row.candidate.text.startswith(row.passage)
        assert row.ended == (row.candidate.ended and row.passage == row.candidate.text)
        served = expansion_from_text(row.passage)
        assert served is not None and served.text == row.words
    assert chain.read_results("score.jsonl")["cut"] >= 8
    assert "cut to what the student may write" in chain.outputs["score"]


def test_what_is_learned_of_a_pair_is_what_was_rewarded(chain: Chain) -> None:
    passages = {row.passage: row.ended for row in read_scored_candidates(chain.folder / "score.jsonl")}
    pairs = list(read_passage_pairs(chain.folder / "pairs.jsonl"))
    assert pairs
    for pair in pairs:
        assert (passages[pair.chosen], passages[pair.rejected]) == (pair.chosen_ended, pair.rejected_ended)
    results = chain.read_results("dpo")
    endless = sum((not pair.chosen_ended) + (not pair.rejected_ended) for pair in pairs)
    assert results["texts"] == {"no_words": 0, "repeated": 0, "cut": 0, "without_end": endless}
    assert results["examples"] == len(pairs) and results["steps"] > 0
    assert chain.read_results("pairs.jsonl")["without_end"] == endless
