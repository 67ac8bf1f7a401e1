"""The gate accepts a quantised level by its search results on a real engine. The shipped student becomes one file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from querylift.index_tools.corpora.corpus_names import load_corpus
from querylift.index_tools.engine import Engine
from querylift.index_tools.indexing import IndexPlan, build_index
from querylift.plugin.errors import SettingsError
from querylift.plugin.generators import factory
from querylift.plugin.generators.llama.model_file import (
    find_packaged_model,
    find_shipped_adapter,
    get_prepared_student_path,
)
from querylift.plugin.settings import parse_settings
from querylift.quantize import shipped_student
from querylift.quantize.acceptance.gate import (
    LevelMeasurement,
    ModelFile,
    check_query_count,
    choose_smallest,
    decide_levels,
)
from querylift.quantize.acceptance.model_card import GateResult, format_conclusion
from querylift.quantize.adapters.merge_adapter import merge_adapter
from querylift.quantize.commands.quantize import quantize
from querylift.quantize.gguf_file import open_gguf_reader
from querylift.quantize.levels.make_levels import make_levels
from tests.helpers.adapters import read_gguf

INDEX = "gate-test"
DOCUMENTS = {
    "d1": "A rainbow is an arc of colors in the sky: sunlight is refracted and reflected by water droplets of rain.",
    "d2": "A cat purrs by the muscles of its larynx as it breathes; a content and relaxed animal makes the sound.",
    "d3": "Tomatoes are planted outdoors in spring, in full sun, once the soil is warm and the frost is past; water them.",
    "d4": "A fever is a high body temperature, often by infection, and is treated with rest, fluids and medicine.",
    "d5": "James Watt, a Scottish inventor, improved the steam engine of the industrial revolution with a condenser.",
    "d6": "Gravity is the force of attraction between objects with mass, such as the earth and the moon, said Newton.",
    "x1": "Rainbow.",
    "x2": "Cats purr.",
    "x3": "Plant tomatoes.",
    "x4": "Treat fever.",
    "x5": "Improved steam engine.",
    "x6": "Gravity.",
}
COPIES = 130
"""How often each query is in the corpus, under ids of its own. The gate refuses fewer than 736 queries for two levels."""
QUERIES = {
    "q1": ("what makes a rainbow", "d1"),
    "q2": ("why do cats purr", "d2"),
    "q3": ("when to plant tomatoes", "d3"),
    "q4": ("how to treat a fever", "d4"),
    "q5": ("who improved the steam engine", "d5"),
    "q6": ("what is gravity", "d6"),
}


# --- decisions on figures written by hand


def make_measurement(name: str, *, size: int, parsed: int = 100, ndcg: Sequence[float]) -> LevelMeasurement:
    """Return a level that has these values of nDCG@10 on as many queries."""
    return LevelMeasurement(
        model_file=ModelFile(name, Path(f"{name}.gguf")),
        file_bytes=size,
        peak_bytes=None,
        passages=100,
        parsed=parsed,
        tokens=1000,
        elapsed_s=10.0,
        ndcg={f"docs:q{number}": value for number, value in enumerate(ndcg)},
    )


def test_the_smallest_level_that_is_proven_to_lose_less_than_the_bound_is_chosen() -> None:
    reference = make_measurement("reference", size=400, ndcg=[0.5, 0.6] * 450)
    equal = make_measurement("Q8_0", size=200, ndcg=[0.5, 0.6] * 450)
    better = make_measurement("Q4_0", size=100, ndcg=[0.6, 0.6] * 450)
    worse = make_measurement("Q2_K", size=50, ndcg=[0.49, 0.59] * 450)
    decisions = decide_levels(reference, [equal, better, worse], bound=0.005)
    assert [decision.passes for decision in decisions] == [True, True, False]
    chosen = choose_smallest(decisions)
    assert chosen and chosen.measurement.model_file.name == "Q4_0"


def test_a_level_that_would_pass_alone_may_fail_beside_four_others() -> None:
    reference = make_measurement("reference", size=400, ndcg=[0.5] * 700)
    levels = [make_measurement(f"level {number}", size=100, ndcg=[0.5] * 700) for number in range(5)]
    assert decide_levels(reference, levels[:1], bound=0.005)[0].passes
    assert not any(decision.passes for decision in decide_levels(reference, levels, bound=0.005))


def test_two_queries_without_a_difference_prove_nothing() -> None:
    reference = make_measurement("reference", size=400, ndcg=[0.5, 0.6])
    (decision,) = decide_levels(reference, [make_measurement("Q4_0", size=100, ndcg=[0.5, 0.6])], bound=0.005)
    assert not decision.passes


@pytest.mark.parametrize(
    ("queries", "levels", "bound", "sentence"),
    [
        (597, 1, 0.005, "names 597 judged queries, and to prove a loss below 0.5 points for 1 level takes 598"),
        (2, 5, 0.01, "names 2 judged queries, and to prove a loss below 1 points for 5 levels takes 459"),
    ],
)
def test_too_few_queries_are_refused_with_the_number_that_is_needed(
    queries: int, levels: int, bound: float, sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        check_query_count(queries, level_count=levels, bound=bound)
    check_query_count(598, level_count=levels, bound=bound)


def test_a_level_with_fewer_usable_passages_does_not_pass() -> None:
    reference = make_measurement("reference", size=400, ndcg=[0.5] * 600)
    decisions = decide_levels(reference, [make_measurement("Q4_0", size=100, parsed=98, ndcg=[0.5] * 600)], bound=0.005)
    assert (decisions[0].test.is_non_inferior, decisions[0].passes, choose_smallest(decisions)) == (True, False, None)


def test_the_conclusion_warns_where_expansion_gains_nothing_that_a_level_could_lose() -> None:
    reference = make_measurement("reference", size=400, ndcg=[0.5, 0.6] * 300)
    (decision,) = decide_levels(reference, [make_measurement("Q4_0", size=100, ndcg=[0.5, 0.6] * 300)], bound=0.005)
    result = GateResult(reference.ndcg, reference, [decision], decision, [], "OpenSearch", 0.005, "mode boost", 1)
    assert format_conclusion(result).splitlines() == [
        "Q4_0.gguf is the smallest level that is proven to lose less than 0.005 of nDCG@10 on 600 queries.",
        "But the reference gains only +0.0000 over no expansion here, so a level can lose little. "
        "Measure where expansion helps.",
    ]
    with_gain = replace(result, unexpanded={"docs:q0": 0.4, "docs:q1": 0.5})
    assert "Measure where expansion helps" not in format_conclusion(with_gain)


# --- the command on a real engine


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, opensearch: str) -> Iterator[str]:
    """The value of --on for a small corpus on disc and in an index."""
    folder = tmp_path_factory.mktemp("corpus")
    documents = [{"_id": name, "title": "", "text": text} for name, text in DOCUMENTS.items()]
    queries = [{"_id": f"{name}-{copy}", "text": text} for name, (text, _) in QUERIES.items() for copy in range(COPIES)]
    for file, rows in (("corpus.jsonl", documents), ("queries.jsonl", queries)):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "qrels").mkdir()
    lines = "".join(f"{name}-{copy}\t{doc}\t1\n" for name, (_, doc) in QUERIES.items() for copy in range(COPIES))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}", encoding="utf-8")
    with Engine(parse_settings({"engine": opensearch})) as engine:
        build_index(engine, load_corpus(str(folder)), IndexPlan(INDEX))
        yield f"{INDEX}={folder}:test"
        engine.call("DELETE", f"/{INDEX}")


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two levels of the shipped student: Q8_0, which is nearly exact, and TQ1_0, which destroys the model."""
    folder = tmp_path_factory.mktemp("levels")
    adapter = find_shipped_adapter()
    assert adapter
    merge_adapter(find_packaged_model(), adapter, folder / "student.gguf")
    assert [level.type for level in make_levels(folder / "student.gguf", folder / "made", ["Q8_0", "TQ1_0"])] == [
        "Q8_0",
        "TQ1_0",
    ]
    return folder / "made"


def run_gate(*arguments: str) -> Result:
    return CliRunner().invoke(quantize, ["gate", *arguments])


@pytest.mark.engine
@pytest.mark.model
def test_the_gate_prints_a_table_writes_the_card_and_chooses_the_level_that_searches_as_well(
    levels: Path, corpus: str, opensearch: str
) -> None:
    result = run_gate(str(levels), "--on", corpus, "--engine", opensearch, "--licence", "Apache-2.0")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0, result.output
    assert max(map(len, lines[:5])) <= 80
    assert lines[1].startswith("no expansion") and lines[2].startswith("reference")
    assert lines[3].endswith("passes") and lines[4].endswith("FAILS")
    assert (
        "student-Q8_0.gguf is the smallest level that is proven to lose less than 0.005 of nDCG@10 on 780 queries."
        in lines
    )
    figures = json.loads((levels / "gate.json").read_text(encoding="utf-8"))
    assert figures["no_expansion"] < figures["reference"]["ndcg_at_10"]["all"]
    assert (figures["chosen"], figures["queries"]) == ("student-Q8_0.gguf", 780)
    assert figures["reference"]["parse_rate"] == 1.0 and figures["reference"]["tokens_per_s"] > 0
    assert figures["levels"][1]["ndcg_at_10"]["all"] < figures["reference"]["ndcg_at_10"]["all"]
    card = (levels / "README.md").read_text(encoding="utf-8")
    assert "- **Licence**: Apache-2.0" in card and figures["levels"][0]["sha256"] in card
    assert "- **Made for the prompt**: passage-2" in card and "smollm2-135m" in card.lower()


@pytest.mark.engine
@pytest.mark.model
def test_too_few_queries_are_refused_before_a_level_writes_anything(levels: Path, corpus: str, opensearch: str) -> None:
    result = run_gate(str(levels), "--on", corpus, "--engine", opensearch, "--limit", "20")
    assert isinstance(result.exception, SettingsError)
    assert str(result.exception) == (
        "--on names 20 judged queries, and to prove a loss below 0.5 points for 2 levels takes 736; "
        "add collections, raise --bound, or name fewer levels with --levels"
    )
    assert "reference" not in result.stderr


@pytest.mark.parametrize("bound", ["0", "100", "-1"])
def test_a_bound_that_is_no_loss_is_refused(bound: str) -> None:
    assert run_gate("levels", "--on", "index=corpus", "--bound", bound).exit_code == 2


@pytest.mark.engine
@pytest.mark.model
def test_expansion_is_enabled_on_every_collection(levels: Path, corpus: str, opensearch: str) -> None:
    second_collection = corpus.replace(INDEX, f"{INDEX}-2", 1)
    with Engine(parse_settings({"engine": opensearch})) as engine:
        build_index(
            engine, load_corpus(second_collection.partition("=")[2].rpartition(":")[0]), IndexPlan(f"{INDEX}-2")
        )
        result = run_gate(
            str(levels), "--on", corpus, "--on", second_collection, "--engine", opensearch, "--levels", "Q8_0", "--json"
        )
        engine.call("DELETE", f"/{INDEX}-2")
    assert result.exit_code == 0, result.output
    ndcg = json.loads(result.stdout)["reference"]["ndcg_at_10"]
    assert ndcg[f"{INDEX}-2"] == ndcg[INDEX]
    assert ndcg["all"] == pytest.approx(ndcg[INDEX])


@pytest.mark.engine
@pytest.mark.model
def test_the_exit_code_is_1_when_no_level_passes(levels: Path, corpus: str, opensearch: str) -> None:
    result = run_gate(str(levels), "--on", corpus, "--engine", opensearch, "--levels", "tq1_0")
    assert result.exit_code == 1
    assert "No level is proven to lose less than 0.005 of nDCG@10 on 780 queries" in result.stdout


@pytest.mark.engine
@pytest.mark.model
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--levels", "Q4_0"], "holds no level Q4_0, only Q8_0, TQ1_0; make it with `querylift quantize make`"),
        (
            ["--reference", "{base}"],
            "{base} is not student.gguf, which the levels were made from; name it with --reference",
        ),
    ],
)
def test_a_missing_level_or_reference_is_named(
    levels: Path, corpus: str, opensearch: str, arguments: list[str], sentence: str
) -> None:
    options = [argument.format(base=find_packaged_model()) for argument in arguments]
    result = run_gate(str(levels), "--on", corpus, "--engine", opensearch, *options)
    assert isinstance(result.exception, SettingsError)
    assert str(result.exception).endswith(sentence.format(base=find_packaged_model()))


def test_a_collection_without_a_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(
        json.dumps({"format": 1, "source": {"file": "x.gguf", "sha256": "0"}, "levels": {}}), encoding="utf-8"
    )
    result = run_gate(str(tmp_path), "--on", "builtin")
    assert isinstance(result.exception, SettingsError)


# --- the student as one file


@pytest.mark.model
def test_the_merged_weights_are_the_base_plus_the_adapter(levels: Path) -> None:
    adapter = find_shipped_adapter()
    assert adapter
    (_, base), (_, lora) = read_gguf(find_packaged_model()), read_gguf(adapter)
    metadata, merged = read_gguf(levels.parent / "student.gguf")
    name = "blk.7.attn_q.weight"
    delta = lora[f"{name}.lora_b"] @ lora[f"{name}.lora_a"]
    assert np.allclose(merged[name], base[name] + delta, rtol=1e-3, atol=1e-4)
    assert not np.allclose(merged[name], base[name], rtol=1e-3, atol=1e-3)
    assert np.array_equal(merged["blk.7.attn_norm.weight"], base["blk.7.attn_norm.weight"])
    assert base.keys() == merged.keys()
    assert metadata["querylift.prompt_version"] == "passage-2"
    assert metadata["querylift.stop"] == ["<|im_end|>", "<|endoftext|>", "\n"]
    assert metadata["tokenizer.ggml.model"] == "gpt2"


@pytest.mark.model
def test_an_adapter_of_another_model_is_not_merged(levels: Path, tmp_path: Path) -> None:
    adapter = find_shipped_adapter()
    assert adapter
    with pytest.raises(
        SettingsError, match=r"was made for SmolLM2-135M-Instruct.Q4_1.gguf, not for .*; name that model with --base"
    ):
        merge_adapter(levels / "student-Q8_0.gguf", adapter, tmp_path / "out.gguf")
    with pytest.raises(SettingsError, match="is not a LoRA adapter; make one with `querylift quantize export`"):
        merge_adapter(find_packaged_model(), levels / "student-Q8_0.gguf", tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.model
def test_the_prepared_student_is_made_once_and_then_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, levels: Path
) -> None:
    monkeypatch.setenv("QUERYLIFT_CACHE", str(tmp_path))
    adapter = find_shipped_adapter()
    assert adapter
    generator = factory.make_generator("llama", parse_settings({}))
    assert generator.identity == f"llama:{find_packaged_model().name}+{adapter.name}"
    result = CliRunner().invoke(quantize, ["student"])
    student_file = get_prepared_student_path(find_packaged_model(), adapter)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{student_file}: ") and student_file.is_file()
    assert [path.name for path in student_file.parent.iterdir()] == [student_file.name]
    assert factory.make_generator("llama", parse_settings({})).identity == f"llama:{student_file.name}"
    assert factory.make_generator("llama:base", parse_settings({})).identity == f"llama:{find_packaged_model().name}"
    changed_ns = student_file.stat().st_mtime_ns
    assert CliRunner().invoke(quantize, ["student"]).exit_code == 0
    assert student_file.stat().st_mtime_ns == changed_ns
    types = {tensor.tensor_type.name for tensor in open_gguf_reader(student_file).tensors}
    assert types == {"IQ4_NL", "F32"}


@pytest.mark.model
def test_a_full_disc_leaves_no_prepared_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUERYLIFT_CACHE", str(tmp_path))
    adapter = tmp_path / "broken.gguf"
    shutil.copy(find_packaged_model(), adapter)
    with pytest.raises(SettingsError):
        shipped_student.prepare_student_file(find_packaged_model(), adapter)
    assert not list((tmp_path / "students").iterdir())
