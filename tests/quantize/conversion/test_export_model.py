"""A model as transformers saves it becomes a GGUF file with which llama.cpp does the same."""

import asyncio
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="needs the training stack: pip install 'querylift[train]'")

import torch

from querylift.plugin.expansion import MAX_TOKENS, PROMPT_VERSION, Expansion, parse, prompt
from querylift.plugin.generators.base import Ask
from querylift.plugin.generators.llama.generator import LlamaGenerator
from querylift.plugin.generators.llama.model_file import file_digest, packaged_model
from querylift.quantize.commands.quantize import quantize
from querylift.quantize.conversion.export_model import Converted, export_model
from querylift.trainer.student import models
from tests.helpers.adapters import read_gguf
from tests.helpers.folders import ADDED, edit, made, metadata, safetensors_bytes, tiny, tiny_model

PASSAGE = "A rainbow is caused by the refraction of sunlight in drops of rain, at an angle of 42 degrees."
QUERIES = [
    "what causes a rainbow", "how to compress a folder", "vitamin D deficiency symptoms", "why do cats purr",
    "history of the steam engine",
]  # fmt: skip
SMOLLM_WORDS = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}
QWEN_PATTERN = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
QWEN_WORDS = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    ],
}


pytestmark = pytest.mark.timeout(900)  # half a gigabyte is made and read several times


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take many times as long where something else runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SmolLM2-135M as the trainer saves it: float32, half a gigabyte."""
    folder = tmp_path_factory.mktemp("student") / "smollm"
    models.save(*models.load("smollm2-135m"), folder)
    yield folder
    shutil.rmtree(folder)


# --- the same numbers as in transformers


def _differences(folder: Path, out: Path) -> tuple[float, float]:
    """The largest and the mean difference among all logits after each token of a prompt and a passage."""
    import torch
    from llama_cpp import Llama

    model, tokenizer = models.load(folder)
    tokens = tokenizer(prompt("what causes a rainbow") + PASSAGE)["input_ids"]
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0].numpy()
    float32 = 0
    llama = Llama(
        str(out), logits_all=True, n_ctx=256, n_batch=256, n_threads=1, n_threads_batch=1,
        type_k=float32, type_v=float32, verbose=False,
    )  # fmt: skip
    with closing(llama):
        llama.eval(tokens)
        differences = np.abs(np.array(llama.scores[: len(tokens)]) - wanted)
    return float(differences.max()), float(differences.mean())


@pytest.mark.model
@pytest.mark.parametrize(
    ("number_type", "largest", "mean"), [("f32", 5e-4, 5e-5), ("f16", 0.2, 0.02), ("bf16", 1.2, 0.2)]
)
def test_smollm_gives_the_logits_that_it_gives_in_transformers(
    tmp_path: Path, smollm: Path, number_type: str, largest: float, mean: float
) -> None:
    """Measured, of logits that span 61: 0.0001 and 0.00001 on average, 0.064 and 0.007, 0.38 and 0.057."""
    out = tmp_path / "a.gguf"
    assert export_model(smollm, out, number_type=number_type) == Converted("smollm", "llama", 272, 134_515_008)
    found = _differences(smollm, out)
    out.unlink()
    assert found[0] < largest and found[1] < mean


OLD_FORM = {"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": None}
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("made:llama", {}),
    ("made:llama", {"head_dim": 48, "tie_word_embeddings": False, "num_key_value_heads": 1}),
    ("made:llama", {"rms_norm_eps": 1e-3, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    ("made:qwen3", {}),
    ("made:qwen3", {"head_dim": 48}),
    ("made:qwen3", {"head_dim": 48, "tie_word_embeddings": False, "vocab_size": 2304}),
]


@pytest.mark.parametrize(("base", "shape"), SHAPES, ids=lambda one: str(one))
def test_a_model_of_any_shape_gives_the_logits_that_it_gives_in_transformers(
    tmp_path: Path, base: str, shape: dict[str, Any]
) -> None:
    """Of a hidden size of 128 and 4 heads. Measured, of logits that span 12: 0.00001, 0.011 and 0.11."""
    folder, out = made(tmp_path / "made", base, **shape), tmp_path / "a.gguf"
    for number_type, largest in [("f32", 5e-5), ("f16", 0.03), ("bf16", 0.3)]:
        done = export_model(folder, out, number_type=number_type)
        assert done.architecture == base.removeprefix("made:")
        assert _differences(folder, out)[0] < largest


def test_what_older_transformers_wrote_gives_the_same_file(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5e5}
    folder = made(tmp_path / "made", "made:qwen3", head_dim=48, rope_parameters=rope)
    export_model(folder, tmp_path / "new.gguf")
    edit(folder / "config.json", {**OLD_FORM, "dtype": None, "torch_dtype": "float32", "layer_types": None})
    merges = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    edit(folder / "tokenizer.json", {"model": {"merges": [" ".join(pair) for pair in merges]}})
    token = {"content": "<|endoftext|>", "lstrip": False}
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    edit(folder / "tokenizer_config.json", {"pad_token": token, "chat_template": template})
    (folder / "chat_template.jinja").unlink()
    export_model(folder, tmp_path / "old.gguf")
    assert (tmp_path / "old.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()


# --- the same text


@pytest.mark.model
@pytest.mark.parametrize("number_type", ["f32", "f16"])
def test_it_writes_what_transformers_writes(
    tmp_path: Path, smollm: Path, by_transformers: list[Expansion | None], number_type: str
) -> None:
    out = tmp_path / "a.gguf"
    export_model(smollm, out, number_type=number_type)
    written = asyncio.run(_written(out))
    out.unlink()
    assert written == by_transformers


async def _written(model: Path) -> list[Expansion | None]:
    generator = LlamaGenerator(model, max_seconds=200)
    await generator.start()
    try:
        return list(await asyncio.gather(*(generator.expand(Ask(query)) for query in QUERIES)))
    finally:
        await generator.close()


@pytest.fixture(scope="module")
def by_transformers(smollm: Path) -> list[Expansion | None]:
    """What it makes of the queries, greedily, in float32."""
    model, tokenizer = models.load(smollm)
    tokenizer.padding_side = "left"
    tokens = tokenizer([prompt(query) for query in QUERIES], return_tensors="pt", padding=True)
    with torch.no_grad():
        written = model.generate(**tokens, max_new_tokens=MAX_TOKENS, do_sample=False)
    texts = tokenizer.batch_decode(written[:, tokens["input_ids"].shape[1] :])
    return [parse(text, query=query) for text, query in zip(texts, QUERIES, strict=True)]


# --- the same tokens

PIECES = [
    "rain", "Rain", "RAIN", "don't", "DON'T", "we'LL", "'s", " 'S", "it’s", "2024", "3.14", "1,000,000", "²", "½", "Ⅷ",
    "٣٤", "१२", "𝟗", "café", "naïve", "Zürich", "ſ", "'ſ", "ß", "İ", "ﬁ", "中文", "什么是彩虹", "東京タワー", "ひらがな",
    "한국어", "हिन्दी", "ไทย", "עברית", "العربية", "ελληνικά", "русский", "ქართული", "አማርኛ", "ខ្មែរ", "😀", "👨‍👩‍👧", "🇩🇪",
    "👍🏽", "☃️", "𓀀", "𝒜", "𠀀", "\u200d", "\u200b", "\ufeff", "\u00ad", "\u2028", "\u00a0", "\u3000", "\u2003", "\u0085",
    "\u180e", "\u202f", " ", "  ", "   ", "\t", "\t\t", "\n", "\n\n", "\r\n", "\r", "\n \n", " \n", "\x00", "\x01", "\x07",
    "\x0b", "\x0c", "\x1b", "\x1f", "\x7f", "\x80", "\ue000", "\uffff", "\U0010ffff", "\U000e0041", "\u0301", "\u20dd",
    "def f(x):\n    return x**2", "if (a<b && c>=d) {", "<div class='a'>", "x_1", "snake_case", "camelCase", "a.b.c",
    "http://a.b/c?d=e&f#g", "C++", "$$$", "...", "!!!", "—", "“q”", "•", "€5", "°C", "№", "™", "∑", "→", "__", "--", "''", '"',
    "`", "```", "\\n", "|", "<|", "|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|", "<|IM_START|>",
    "< |im_end|>", "<|im_end|><|im_end|>", "<repo_name>", "<think>", "</think>\n\n", "<s>", "</s>", "[PAD1]", "<0x0A>", "Ġ",
    "Ċ", "Ġthe", "ĉ",
]  # fmt: skip
GAPS = ["  ", "   ", "\n\n", "\t ", "  \n ", "\u00a0\u00a0", "\u3000 "]
AFTER_A_GAP = ["2", "a", "½", "中", "!", "'s", "😀", "<|im_end|>", "é"]


def _strings() -> list[str]:
    """500 of them: every piece, every gap before each kind of character, and pieces of two kinds side by side."""
    gaps = [before + gap + after for gap in GAPS for after in AFTER_A_GAP for before in ("", "x", "7 ")]
    numbered = list(enumerate(PIECES * 2))
    pairs = [
        one + " 0\n"[i % 4 : i % 4 + 1] + PIECES[(3 * i + 1 + i // len(PIECES)) % len(PIECES)] for i, one in numbered
    ]
    return list(dict.fromkeys([*PIECES, *gaps, *pairs]))[:500]


def _tokenised_otherwise(folder: Path, out: Path, strings: list[str]) -> dict[str, list[list[str]]]:
    """The strings of which llama.cpp and transformers make different tokens, with those of each."""
    from llama_cpp import Llama
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    different = {}
    with closing(Llama(str(out), vocab_only=True, verbose=False)) as llama:
        for text in strings:
            both = [llama.tokenize(text.encode(), add_bos=False, special=True), tokenizer(text)["input_ids"]]
            if both[0] != both[1]:
                different[text] = [tokenizer.convert_ids_to_tokens(one) for one in both]
    return different


def _with_words(folder: Path, source: Path, pre_tokenizer: Mapping[str, Any]) -> Path:
    """`source` with another way to cut a text into words."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).symlink_to(file)
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "pre_tokenizer": pre_tokenizer}), encoding="utf-8")
    return folder


@pytest.mark.model
def test_500_strings_become_the_same_tokens_as_in_transformers_with_smollm(tmp_path: Path, smollm: Path) -> None:
    """With the folder as it is, and with what the published SmolLM2 says of its words: each digit for itself."""
    strings = _strings()
    assert len(strings) == 500
    for folder in (smollm, _with_words(tmp_path / "digits", smollm, SMOLLM_WORDS)):
        out = tmp_path / "a.gguf"
        export_model(folder, out)
        assert _tokenised_otherwise(folder, out, strings) == {}
    assert metadata(out)["tokenizer.ggml.pre"] == "smollm"
    out.unlink()


def qwen(folder: Path, *, normalizer: Mapping[str, Any] | None) -> Path:
    """A made Qwen3 whose tokenizer cuts words as Qwen's does, with tokens that are text too, and more rows than tokens."""
    made(folder, "made:qwen3", vocab_size=2304)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    number = len(tokenizer["model"]["vocab"])
    thoughts = [
        {"id": number, "content": "<think>", "special": False, **ADDED},
        {"id": number + 1, "content": "</think>", "special": False, **ADDED},
    ]
    added = {"added_tokens": tokenizer["added_tokens"] + thoughts, "normalizer": normalizer}
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "pre_tokenizer": QWEN_WORDS, **added}))
    return folder


def test_500_strings_become_the_same_tokens_as_in_transformers_with_made_models(tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    for folder in (made(tmp_path / "made", "made:qwen3"), qwen(tmp_path / "qwen", normalizer=None)):
        export_model(folder, out)
        assert _tokenised_otherwise(folder, out, _strings()) == {}


def test_a_text_that_is_not_composed_becomes_other_tokens_with_qwen(tmp_path: Path) -> None:
    """Qwen's tokenizer composes a text first (NFC), llama.cpp does not; no key of a GGUF file asks for it."""
    folder, out = qwen(tmp_path / "qwen", normalizer={"type": "NFC"}), tmp_path / "a.gguf"
    export_model(folder, out)
    assert _tokenised_otherwise(folder, out, _strings()) == {}
    assert set(_tokenised_otherwise(folder, out, ["p\u00e2tes", "pa\u0302tes"])) == {"pa\u0302tes"}


# --- what stands in the file


@pytest.mark.model
def test_the_tokenizer_of_smollm_is_that_of_its_own_gguf_file(tmp_path: Path, smollm: Path) -> None:
    out = tmp_path / "a.gguf"
    export_model(_with_words(tmp_path / "digits", smollm, SMOLLM_WORDS), out)
    ours, own = gguf.GGUFReader(out), gguf.GGUFReader(packaged_model())
    for key, field in own.fields.items():
        if key.startswith(("tokenizer.", "llama.")) and key != "tokenizer.chat_template":
            found = ours.get_field(key)
            assert found is not None, key
            assert (found.types, found.contents()) == (field.types, field.contents()), key
    assert {t.name: tuple(t.shape) for t in ours.tensors} == {t.name: tuple(t.shape) for t in own.tensors}
    out.unlink()


def test_the_file_says_what_it_is_and_what_it_was_made_from(tmp_path: Path) -> None:
    folder, out = qwen(tmp_path / "student", normalizer={"type": "NFC"}), tmp_path / "a.gguf"
    done = CliRunner().invoke(quantize, ["export", str(folder), "--out", str(out)])
    assert done.exception is None
    assert done.output == f"{out}: student (qwen3), 0.6 million weights in 24 tensors as f16, 1.2 MB\n"
    fields = metadata(out)
    assert {key: value for key, value in fields.items() if not key.startswith("GGUF.")} == {
        "general.architecture": "qwen3",
        "general.type": "model",
        "general.name": "student",
        "general.file_type": 1,
        "general.quantization_version": 2,
        "querylift.prompt_version": PROMPT_VERSION,
        "querylift.stop": ["<|im_end|>", "<|endoftext|>", "\n"],
        "querylift.base.name": "student",
        "querylift.base.sha256": file_digest(folder / "model.safetensors"),
        "qwen3.block_count": 2,
        "qwen3.context_length": 512,
        "qwen3.embedding_length": 128,
        "qwen3.feed_forward_length": 256,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 32,
        "qwen3.attention.value_length": 32,
        "qwen3.rope.dimension_count": 32,
        "qwen3.rope.freq_base": 10000.0,
        "qwen3.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "qwen3.vocab_size": 2304,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": models.CHAT_TEMPLATE,
    }
    reader = gguf.GGUFReader(out)
    tokens, types = (reader.get_field(f"tokenizer.ggml.{key}").contents() for key in ("tokens", "token_type"))
    named = dict(zip(tokens, types, strict=True))
    assert [named[token] for token in ("<|im_end|>", "<think>", "a", "[PAD2303]")] == [3, 4, 1, 5]
    assert (
        sum(kind == 5 for kind in types)
        == 2304 - len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]) - 2
    )
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert {name for name, kind in kinds.items() if kind == "F32"} == {name for name in kinds if "norm" in name}


def test_the_same_folder_gives_the_same_bytes_in_one_file_or_in_several_and_in_every_type(tmp_path: Path) -> None:
    whole, out = tiny(tmp_path / "tiny"), tmp_path / "a.gguf"
    export_model(whole, out, number_type="f32")
    wanted = read_gguf(out)[1]
    for stored in ("F16", "BF16"):
        export_model(tiny(tmp_path / "tiny", stored=stored), out, number_type="f32")
        assert all(np.array_equal(values, wanted[name]) for name, values in read_gguf(out)[1].items())
    weights = tiny_model()
    names = list(weights)
    folder = tiny(tmp_path / "sharded" / "tiny")
    (folder / "model.safetensors").unlink()
    for file, part in [("b.safetensors", names[:5]), ("a.safetensors", names[5:])]:
        (folder / file).write_bytes(safetensors_bytes({name: weights[name] for name in part}))
    shards = {name: "b.safetensors" if name in names[:5] else "a.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    export_model(folder, out, number_type="f32")
    fields, tensors = read_gguf(out)
    assert all(np.array_equal(values, wanted[name]) for name, values in tensors.items())
    joined = (folder / "a.safetensors").read_bytes() + (folder / "b.safetensors").read_bytes()
    (tmp_path / "joined").write_bytes(joined)
    assert fields["querylift.base.sha256"] == file_digest(tmp_path / "joined")
