"""A level of quantisation is accepted by what it does to searches on a real engine, and the shipped student becomes one file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result

from querylift.index_tools.corpora.loading import load
from querylift.index_tools.engine import Engine
from querylift.index_tools.indexing import IndexPlan, build
from querylift.plugin.errors import SettingsError
from querylift.plugin.generators import factory
from querylift.plugin.generators.llama.model_file import packaged_model, prepared_student, shipped_adapter
from querylift.plugin.settings import check
from querylift.quantize import shipped_student
from querylift.quantize.acceptance.gate import Level, Measured, judge, smallest
from querylift.quantize.acceptance.model_card import Found, sentence
from querylift.quantize.adapters.merge_adapter import merge
from querylift.quantize.commands.quantize import quantize
from querylift.quantize.levels.make_levels import make
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
QUERIES = {
    "q1": ("what makes a rainbow", "d1"),
    "q2": ("why do cats purr", "d2"),
    "q3": ("when to plant tomatoes", "d3"),
    "q4": ("how to treat a fever", "d4"),
    "q5": ("who improved the steam engine", "d5"),
    "q6": ("what is gravity", "d6"),
}


# --- judging, by hand


def measured(name: str, *, size: int, parsed: int = 100, **ndcg: float) -> Measured:
    return Measured(
        level=Level(name, Path(f"{name}.gguf")),
        file_bytes=size,
        peak_bytes=None,
        passages=100,
        parsed=parsed,
        tokens=1000,
        took_s=10.0,
        ndcg={f"docs:{query}": value for query, value in ndcg.items()},
    )


def test_the_smallest_of_those_that_lose_provably_less_than_the_bound_is_chosen() -> None:
    reference = measured("reference", size=400, q1=0.5, q2=0.6, q3=0.7)
    same = measured("Q8_0", size=200, q1=0.5, q2=0.6, q3=0.7)
    better = measured("Q4_0", size=100, q1=0.6, q2=0.6, q3=0.7)
    worse = measured("Q2_K", size=50, q1=0.49, q2=0.59, q3=0.69)
    verdicts = judge(reference, [same, better, worse], bound=0.005)
    assert [verdict.passes for verdict in verdicts] == [True, True, False]
    assert (chosen := smallest(verdicts)) and chosen.measured.level.name == "Q4_0"


def test_a_level_of_whose_passages_fewer_can_be_used_does_not_pass() -> None:
    reference = measured("reference", size=400, q1=0.5)
    verdicts = judge(reference, [measured("Q4_0", size=100, parsed=98, q1=0.5)], bound=0.005)
    assert (verdicts[0].test.holds, verdicts[0].passes, smallest(verdicts)) == (True, False, None)


def test_a_gate_where_expansion_changes_nothing_says_that_there_is_nothing_to_lose() -> None:
    reference = measured("reference", size=400, q1=0.5, q2=0.6)
    (verdict,) = judge(reference, [measured("Q4_0", size=100, q1=0.5, q2=0.6)], bound=0.005)
    found = Found(reference.ndcg, reference, [verdict], verdict, [], "OpenSearch", 0.005, "mode boost", 1)
    assert sentence(found).splitlines() == [
        "Q4_0.gguf is the smallest that loses provably less than 0.005 of nDCG@10 on 2 queries.",
        "But the reference itself gains only +0.0000 over no expansion here, so there is little that a level could lose: "
        "measure where expansion helps.",
    ]
    helped = replace(found, plain={"docs:q1": 0.4, "docs:q2": 0.5})
    assert "measure where expansion helps" not in sentence(helped)


# --- the real thing


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, opensearch: str) -> Iterator[str]:
    """A small corpus on disc and in the index, as --on names it."""
    folder = tmp_path_factory.mktemp("corpus")
    documents = [{"_id": name, "title": "", "text": text} for name, text in DOCUMENTS.items()]
    queries = [{"_id": name, "text": text} for name, (text, _) in QUERIES.items()]
    for file, rows in (("corpus.jsonl", documents), ("queries.jsonl", queries)):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "qrels").mkdir()
    lines = "".join(f"{query}\t{doc}\t1\n" for query, (_, doc) in QUERIES.items())
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}", encoding="utf-8")
    with Engine(check({"engine": opensearch})) as engine:
        build(engine, load(str(folder)), IndexPlan(INDEX))
        yield f"{INDEX}={folder}:test"
        engine.call("DELETE", f"/{INDEX}")


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped student as one file, and made small: by a half, and by what leaves nothing of it."""
    folder = tmp_path_factory.mktemp("levels")
    adapter = shipped_adapter()
    assert adapter
    merge(packaged_model(), adapter, folder / "student.gguf")
    assert [level.type for level in make(folder / "student.gguf", folder / "made", ["Q8_0", "TQ1_0"])] == [
        "Q8_0",
        "TQ1_0",
    ]
    return folder / "made"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(quantize, ["gate", *arguments])


@pytest.mark.engine
@pytest.mark.model
def test_the_gate_prints_its_table_writes_the_card_and_takes_the_level_that_searches_as_well(
    levels: Path, corpus: str, opensearch: str
) -> None:
    done = run(str(levels), "--on", corpus, "--engine", opensearch, "--licence", "Apache-2.0")
    lines = done.stdout.splitlines()
    assert done.exit_code == 0, done.output
    assert max(map(len, lines[:5])) <= 80
    assert lines[1].startswith("no expansion") and lines[2].startswith("reference")
    assert lines[3].endswith("passes") and lines[4].endswith("FAILS")
    assert "student-Q8_0.gguf is the smallest that loses provably less than 0.005 of nDCG@10 on 6 queries." in lines
    found = json.loads((levels / "gate.json").read_text(encoding="utf-8"))
    assert found["no_expansion"] < found["reference"]["ndcg_at_10"]["all"]
    assert (found["chosen"], found["queries"]) == ("student-Q8_0.gguf", 6)
    assert found["reference"]["parse_rate"] == 1.0 and found["reference"]["tokens_per_s"] > 0
    assert found["levels"][1]["ndcg_at_10"]["all"] < found["reference"]["ndcg_at_10"]["all"]
    card = (levels / "README.md").read_text(encoding="utf-8")
    assert "- **Licence**: Apache-2.0" in card and found["levels"][0]["sha256"] in card
    assert "- **Made for the prompt**: passage-2" in card and "smollm2-135m" in card.lower()


@pytest.mark.engine
@pytest.mark.model
def test_expansion_is_on_for_every_collection_that_is_named(levels: Path, corpus: str, opensearch: str) -> None:
    other = corpus.replace(INDEX, f"{INDEX}-2", 1)
    with Engine(check({"engine": opensearch})) as engine:
        build(engine, load(other.partition("=")[2].rpartition(":")[0]), IndexPlan(f"{INDEX}-2"))
        done = run(str(levels), "--on", corpus, "--on", other, "--engine", opensearch, "--levels", "Q8_0", "--json")
        engine.call("DELETE", f"/{INDEX}-2")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["reference"]["ndcg_at_10"]
    assert found[INDEX] == found[f"{INDEX}-2"] == found["all"]


@pytest.mark.engine
@pytest.mark.model
def test_where_no_level_passes_the_exit_code_is_1(levels: Path, corpus: str, opensearch: str) -> None:
    done = run(str(levels), "--on", corpus, "--engine", opensearch, "--levels", "tq1_0")
    assert done.exit_code == 1
    assert "No level loses provably less than 0.005 of nDCG@10 on 6 queries" in done.stdout


@pytest.mark.engine
@pytest.mark.model
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--levels", "Q4_0"], "holds no level Q4_0, only Q8_0, TQ1_0; make it with `quantize make`"),
        (
            ["--reference", "{base}"],
            "{base} is not student.gguf, which the levels were made from; name it with --reference",
        ),
    ],
)
def test_what_is_not_there_is_named(
    levels: Path, corpus: str, opensearch: str, arguments: list[str], sentence: str
) -> None:
    given = [argument.format(base=packaged_model()) for argument in arguments]
    done = run(str(levels), "--on", corpus, "--engine", opensearch, *given)
    assert isinstance(done.exception, SettingsError)
    assert str(done.exception).endswith(sentence.format(base=packaged_model()))


def test_a_collection_is_an_index_and_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(
        json.dumps({"format": 1, "source": {"file": "x.gguf", "sha256": "0"}, "levels": {}}), encoding="utf-8"
    )
    done = run(str(tmp_path), "--on", "builtin")
    assert isinstance(done.exception, SettingsError)


# --- the student as one file


@pytest.mark.model
def test_the_merged_weights_are_the_base_with_the_adapter_on_it(levels: Path) -> None:
    adapter = shipped_adapter()
    assert adapter
    (_, base), (_, lora) = read_gguf(packaged_model()), read_gguf(adapter)
    described, merged = read_gguf(levels.parent / "student.gguf")
    name = "blk.7.attn_q.weight"
    change = lora[f"{name}.lora_b"] @ lora[f"{name}.lora_a"]
    assert np.allclose(merged[name], base[name] + change, rtol=1e-3, atol=1e-4)
    assert not np.allclose(merged[name], base[name], rtol=1e-3, atol=1e-3)
    assert np.array_equal(merged["blk.7.attn_norm.weight"], base["blk.7.attn_norm.weight"])
    assert base.keys() == merged.keys()
    assert described["querylift.prompt_version"] == "passage-2"
    assert described["querylift.stop"] == ["<|im_end|>", "<|endoftext|>", "\n"]
    assert described["tokenizer.ggml.model"] == "gpt2"


@pytest.mark.model
def test_an_adapter_of_another_model_is_not_merged(levels: Path, tmp_path: Path) -> None:
    adapter = shipped_adapter()
    assert adapter
    with pytest.raises(
        SettingsError, match=r"was made for SmolLM2-135M-Instruct.Q4_1.gguf, not for .*; name that model"
    ):
        merge(levels / "student-Q8_0.gguf", adapter, tmp_path / "out.gguf")
    with pytest.raises(SettingsError, match="is no LoRA adapter; make one with `querylift quantize export`"):
        merge(packaged_model(), levels / "student-Q8_0.gguf", tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.model
def test_the_prepared_student_is_made_once_and_served_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, levels: Path
) -> None:
    monkeypatch.setenv("QUERYLIFT_CACHE", str(tmp_path))
    adapter = shipped_adapter()
    assert adapter
    apart = factory.make("llama", check({}))
    assert apart.identity == f"llama:{packaged_model().name}+{adapter.name}"
    done = CliRunner().invoke(quantize, ["student"])
    made = prepared_student(packaged_model(), adapter)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{made}: ") and made.is_file()
    assert [path.name for path in made.parent.iterdir()] == [made.name]
    assert factory.make("llama", check({})).identity == f"llama:{made.name}"
    assert factory.make("llama:base", check({})).identity == f"llama:{packaged_model().name}"
    before = made.stat().st_mtime_ns
    assert CliRunner().invoke(quantize, ["student"]).exit_code == 0
    assert made.stat().st_mtime_ns == before
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(made).tensors}
    assert types == {"IQ4_NL", "F32"}


@pytest.mark.model
def test_a_full_disc_leaves_no_prepared_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUERYLIFT_CACHE", str(tmp_path))
    adapter = tmp_path / "broken.gguf"
    shutil.copy(packaged_model(), adapter)
    with pytest.raises(SettingsError):
        shipped_student.prepare(packaged_model(), adapter)
    assert not list((tmp_path / "students").iterdir())
