"""A model as transformers saves it becomes a GGUF file with which llama.cpp computes the same."""

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="needs the training stack: pip install '.[train]'")

import torch

from querylift.plugin.expansion import MAX_TOKENS, PROMPT_VERSION, Expansion, build_prompt, parse_output
from querylift.plugin.files import compute_file_digest
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.llama.generator import LlamaGenerator
from querylift.plugin.generators.llama.model_file import find_packaged_model
from querylift.quantize.commands.quantize import quantize
from querylift.quantize.conversion.export_model import ExportedModel, export_model
from querylift.quantize.gguf_file import open_gguf_reader
from querylift.trainer.student import models
from tests.helpers.adapters import read_gguf
from tests.helpers.folders import (
    ADDED,
    edit_json_file,
    encode_safetensors,
    make_random_model,
    make_tiny_weights,
    read_gguf_metadata,
    write_tiny_model,
)
from tests.helpers.saved_model import SavedModel

PASSAGE = "A rainbow is caused by the refraction of sunlight in drops of rain, at an angle of 42 degrees."
QUERIES = [
    "what causes a rainbow", "how to compress a folder", "vitamin D deficiency symptoms", "why do cats purr",
    "history of the steam engine",
]  # fmt: skip
SMOLLM_PRE_TOKENIZER = {
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
QWEN_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    ],
}


pytestmark = pytest.mark.timeout(900)  # half a gigabyte is written and read several times


@pytest.fixture(scope="module", autouse=True)
def use_one_thread() -> Iterator[None]:
    """Several threads would wait for each other, and take much longer on a busy machine."""
    thread_count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(thread_count)


@pytest.fixture(scope="module")
def smollm(saved_smollm: SavedModel) -> Path:
    """SmolLM2-135M as the trainer saves it."""
    return saved_smollm.folder


@pytest.fixture(scope="module")
def loaded_smollm(smollm: Path) -> tuple[Any, Any]:
    """The model and the tokenizer of that folder, in float32."""
    return models.load_model_and_tokenizer(smollm)


Export = Callable[[str], tuple[Path, ExportedModel]]


@pytest.fixture(scope="module")
def export_smollm(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Export]:
    """A function that exports SmolLM2 in a number type, once. With "digits", numbers are split as in the published model."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def export(name: str) -> tuple[Path, ExportedModel]:
        out = folder / f"{name}.gguf"
        if name == "digits":
            return out, export_model(replace_pre_tokenizer(folder / name, smollm, SMOLLM_PRE_TOKENIZER), out)
        return out, export_model(smollm, out, number_type=name)

    yield export
    shutil.rmtree(folder)


# --- the same numbers as in transformers


def compute_differences(model: Any, tokenizer: Any, out: Path) -> tuple[float, float]:
    """Return the largest and the mean difference from transformers, over all logits of a prompt and a passage."""
    import torch
    from llama_cpp import Llama

    tokens = tokenizer(build_prompt("what causes a rainbow") + PASSAGE)["input_ids"]
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    float32 = 0
    llama = Llama(
        str(out), logits_all=True, n_ctx=256, n_batch=256, n_threads=1, n_threads_batch=1,
        type_k=float32, type_v=float32, verbose=False,
    )  # fmt: skip
    with closing(llama):
        llama.eval(tokens)
        differences = np.abs(np.array(llama.scores[: len(tokens)]) - expected)
    return float(differences.max()), float(differences.mean())


@pytest.mark.model
@pytest.mark.parametrize(
    ("number_type", "max_difference", "max_mean"), [("f32", 5e-4, 5e-5), ("f16", 0.2, 0.02), ("bf16", 1.2, 0.2)]
)
def test_smollm_gives_the_logits_of_transformers(
    loaded_smollm: tuple[Any, Any], export_smollm: Export, number_type: str, max_difference: float, max_mean: float
) -> None:
    """Of logits that span 61, the largest and mean differences were 0.0001 and 0.00001, 0.064 and 0.007, 0.38 and 0.057."""
    out, exported = export_smollm(number_type)
    assert exported == ExportedModel("smollm", "llama", 272, 134_515_008)
    largest, mean = compute_differences(*loaded_smollm, out)
    assert largest < max_difference and mean < max_mean


OLD_ROPE_KEYS = {"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": None}
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("made:llama", {}),
    ("made:llama", {"head_dim": 48, "tie_word_embeddings": False, "num_key_value_heads": 1}),
    ("made:llama", {"rms_norm_eps": 1e-3, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    ("made:qwen3", {}),
    ("made:qwen3", {"head_dim": 48}),
    ("made:qwen3", {"head_dim": 48, "tie_word_embeddings": False, "vocab_size": 2304}),
]


@pytest.mark.parametrize(("base", "shape"), SHAPES, ids=str)
def test_a_model_of_any_shape_gives_the_logits_of_transformers(
    tmp_path: Path, base: str, shape: dict[str, Any]
) -> None:
    """The hidden size is 128, with 4 heads. Of logits that span 12, the largest differences were 0.00001, 0.011 and 0.11."""
    folder, out = make_random_model(tmp_path / "made", base, **shape), tmp_path / "a.gguf"
    loaded = models.load_model_and_tokenizer(folder)
    for number_type, max_difference in [("f32", 5e-5), ("f16", 0.03), ("bf16", 0.3)]:
        exported = export_model(folder, out, number_type=number_type)
        assert exported.architecture == base.removeprefix("made:")
        assert compute_differences(*loaded, out)[0] < max_difference


def test_a_folder_of_an_older_transformers_version_gives_the_same_file(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5e5}
    folder = make_random_model(tmp_path / "made", "made:qwen3", head_dim=48, rope_parameters=rope)
    export_model(folder, tmp_path / "new.gguf")
    edit_json_file(
        folder / "config.json", {**OLD_ROPE_KEYS, "dtype": None, "torch_dtype": "float32", "layer_types": None}
    )
    merges = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    edit_json_file(folder / "tokenizer.json", {"model": {"merges": [" ".join(pair) for pair in merges]}})
    token = {"content": "<|endoftext|>", "lstrip": False}
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    edit_json_file(folder / "tokenizer_config.json", {"pad_token": token, "chat_template": template})
    (folder / "chat_template.jinja").unlink()
    export_model(folder, tmp_path / "old.gguf")
    assert (tmp_path / "old.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()


# --- the same text


@pytest.mark.model
@pytest.mark.parametrize("number_type", ["f32", "f16"])
def test_the_exported_model_writes_the_texts_of_transformers(
    export_smollm: Export, transformers_expansions: list[Expansion | None], number_type: str
) -> None:
    out, _ = export_smollm(number_type)
    assert asyncio.run(write_expansions(out)) == transformers_expansions


async def write_expansions(model: Path) -> list[Expansion | None]:
    generator = LlamaGenerator(model, max_seconds=200)
    await generator.start()
    try:
        return list(await asyncio.gather(*(generator.expand(ExpansionRequest(query)) for query in QUERIES)))
    finally:
        await generator.close()


@pytest.fixture(scope="module")
def transformers_expansions(loaded_smollm: tuple[Any, Any]) -> list[Expansion | None]:
    """The expansions that transformers writes for the queries without sampling, in float32."""
    model, tokenizer = loaded_smollm
    tokenizer.padding_side = "left"
    tokens = tokenizer([build_prompt(query) for query in QUERIES], return_tensors="pt", padding=True)
    with torch.no_grad():
        output = model.generate(**tokens, max_new_tokens=MAX_TOKENS, do_sample=False)
    texts = tokenizer.batch_decode(output[:, tokens["input_ids"].shape[1] :])
    return [parse_output(text, query=query) for text, query in zip(texts, QUERIES, strict=True)]


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


def list_test_strings() -> list[str]:
    """Return 500 strings: every piece, every gap before each kind of character, and pairs of pieces."""
    gaps = [before + gap + after for gap in GAPS for after in AFTER_A_GAP for before in ("", "x", "7 ")]
    numbered = list(enumerate(PIECES * 2))
    pairs = [
        piece + " 0\n"[i % 4 : i % 4 + 1] + PIECES[(3 * i + 1 + i // len(PIECES)) % len(PIECES)]
        for i, piece in numbered
    ]
    return list(dict.fromkeys([*PIECES, *gaps, *pairs]))[:500]


def find_token_differences(folder: Path, out: Path, strings: list[str]) -> dict[str, list[list[str]]]:
    """Return the strings that llama.cpp and transformers split into different tokens, with the tokens of both."""
    from llama_cpp import Llama
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    differences = {}
    with closing(Llama(str(out), vocab_only=True, verbose=False)) as llama:
        for text in strings:
            ids = [llama.tokenize(text.encode(), add_bos=False, special=True), tokenizer(text)["input_ids"]]
            if ids[0] != ids[1]:
                differences[text] = [tokenizer.convert_ids_to_tokens(side) for side in ids]
    return differences


def replace_pre_tokenizer(folder: Path, source: Path, pre_tokenizer: Mapping[str, Any]) -> Path:
    """Make a folder like `source` with another pre_tokenizer."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).symlink_to(file)
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "pre_tokenizer": pre_tokenizer}), encoding="utf-8")
    return folder


@pytest.mark.model
def test_500_strings_become_the_same_tokens_as_in_transformers_with_smollm(smollm: Path, export_smollm: Export) -> None:
    """With the folder as it is, and with the pre_tokenizer of the published SmolLM2, which separates digits."""
    strings = list_test_strings()
    assert len(strings) == 500
    (out, _), (digits_out, _) = export_smollm("f16"), export_smollm("digits")
    assert find_token_differences(smollm, out, strings) == {}
    assert find_token_differences(digits_out.with_suffix(""), digits_out, strings) == {}
    assert read_gguf_metadata(digits_out)["tokenizer.ggml.pre"] == "smollm"


def make_qwen_model(folder: Path, *, normalizer: Mapping[str, Any] | None) -> Path:
    """Save a random Qwen3 with Qwen's pre_tokenizer, added tokens that are not special, and more rows than tokens."""
    make_random_model(folder, "made:qwen3", vocab_size=2304)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    number = len(tokenizer["model"]["vocab"])
    added_tokens = [
        {"id": number, "content": "<think>", "special": False, **ADDED},
        {"id": number + 1, "content": "</think>", "special": False, **ADDED},
    ]
    changes = {"added_tokens": tokenizer["added_tokens"] + added_tokens, "normalizer": normalizer}
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "pre_tokenizer": QWEN_PRE_TOKENIZER, **changes}))
    return folder


def test_500_strings_become_the_same_tokens_as_in_transformers_with_random_models(tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    for folder in (
        make_random_model(tmp_path / "made", "made:qwen3"),
        make_qwen_model(tmp_path / "qwen", normalizer=None),
    ):
        export_model(folder, out)
        assert find_token_differences(folder, out, list_test_strings()) == {}


def test_a_text_that_is_not_in_nfc_becomes_other_tokens_with_qwen(tmp_path: Path) -> None:
    """Qwen's tokenizer normalizes a text to NFC first. llama.cpp does not, and GGUF has no key for it."""
    folder, out = make_qwen_model(tmp_path / "qwen", normalizer={"type": "NFC"}), tmp_path / "a.gguf"
    export_model(folder, out)
    assert find_token_differences(folder, out, list_test_strings()) == {}
    assert set(find_token_differences(folder, out, ["p\u00e2tes", "pa\u0302tes"])) == {"pa\u0302tes"}


# --- the file


@pytest.mark.model
def test_the_metadata_of_smollm_agrees_with_its_published_gguf_file(export_smollm: Export) -> None:
    out, _ = export_smollm("digits")
    exported, published = open_gguf_reader(out), open_gguf_reader(find_packaged_model())
    for key, field in published.fields.items():
        if key.startswith(("tokenizer.", "llama.")) and key != "tokenizer.chat_template":
            exported_field = exported.get_field(key)
            assert exported_field is not None, key
            assert (exported_field.types, exported_field.contents()) == (field.types, field.contents()), key
    assert {t.name: tuple(t.shape) for t in exported.tensors} == {t.name: tuple(t.shape) for t in published.tensors}


def test_the_file_describes_itself_and_its_origin(tmp_path: Path) -> None:
    folder, out = make_qwen_model(tmp_path / "student", normalizer={"type": "NFC"}), tmp_path / "a.gguf"
    result = CliRunner().invoke(quantize, ["export", str(folder), "--out", str(out)])
    assert result.exception is None
    assert result.output == f"{out}: student (qwen3), 0.6 million weights in 24 tensors as f16, 1.2 MB\n"
    fields = read_gguf_metadata(out)
    assert {key: value for key, value in fields.items() if not key.startswith("GGUF.")} == {
        "general.architecture": "qwen3",
        "general.type": "model",
        "general.name": "student",
        "general.file_type": 1,
        "general.quantization_version": 2,
        "querylift.prompt_version": PROMPT_VERSION,
        "querylift.stop": ["<|im_end|>", "<|endoftext|>", "\n"],
        "querylift.base.name": "student",
        "querylift.base.sha256": compute_file_digest(folder / "model.safetensors"),
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
    reader = open_gguf_reader(out)
    tokens, types = (reader.get_field(f"tokenizer.ggml.{key}").contents() for key in ("tokens", "token_type"))
    types_by_token = dict(zip(tokens, types, strict=True))
    assert [types_by_token[token] for token in ("<|im_end|>", "<think>", "a", "[PAD2303]")] == [3, 4, 1, 5]
    assert (
        sum(kind == 5 for kind in types)
        == 2304 - len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]) - 2
    )
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert {name for name, kind in kinds.items() if kind == "F32"} == {name for name in kinds if "norm" in name}


def test_the_numbers_do_not_depend_on_the_number_of_weight_files_or_their_type(tmp_path: Path) -> None:
    single, out = write_tiny_model(tmp_path / "tiny"), tmp_path / "a.gguf"
    export_model(single, out, number_type="f32")
    expected = read_gguf(out)[1]
    for stored in ("F16", "BF16"):
        export_model(write_tiny_model(tmp_path / "tiny", stored=stored), out, number_type="f32")
        assert all(np.array_equal(values, expected[name]) for name, values in read_gguf(out)[1].items())
    weights = make_tiny_weights()
    names = list(weights)
    folder = write_tiny_model(tmp_path / "sharded" / "tiny")
    (folder / "model.safetensors").unlink()
    for file, part in [("b.safetensors", names[:5]), ("a.safetensors", names[5:])]:
        (folder / file).write_bytes(encode_safetensors({name: weights[name] for name in part}))
    shards = {name: "b.safetensors" if name in names[:5] else "a.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    export_model(folder, out, number_type="f32")
    fields, tensors = read_gguf(out)
    assert all(np.array_equal(values, expected[name]) for name, values in tensors.items())
    joined = (folder / "a.safetensors").read_bytes() + (folder / "b.safetensors").read_bytes()
    (tmp_path / "joined").write_bytes(joined)
    assert fields["querylift.base.sha256"] == compute_file_digest(tmp_path / "joined")
