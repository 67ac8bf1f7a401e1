"""A sentence encoder as an eight-bit file: the vectors are those of transformers, or the folder is refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from querylift.index_tools.corpora import builtin_corpus
from querylift.index_tools.fast_expander.encoder_conversion import (
    find_packaged_encoder,
    write_bert_graph,
    write_encoder,
)
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.encoder import (
    MODEL_FILE,
    TOKENIZER_FILE,
    Encoder,
    EncoderSettings,
    find_unknown_token_id,
)
from tests.helpers.expanders import (
    BERT,
    MEAN,
    TEXTS,
    TOPICS,
    write_sentence_transformers_files,
    write_tiny_encoder,
    write_tokenizer,
)
from tests.helpers.folders import edit_json_file

CLS = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
LONG = " ".join(word for topic in TOPICS.values() for word in topic)
MIXED = [*list(TEXTS.values())[::4], "boats", "Stars, moons: 42 planets!", "zzz", "🍕!?" * 3, LONG]


def save_random_bert(folder: Path, pooling: Mapping[str, bool] = MEAN, kind: str = "BertModel") -> Any:
    """A random BERT of two layers as transformers saves it, with every scale and shift of its norms random too."""
    import torch
    import transformers

    write_sentence_transformers_files(folder, pooling=pooling)
    size = write_tokenizer(folder)
    config = BERT | {"vocab_size": size, "num_hidden_layers": 2, "layer_norm_eps": 1e-5, "initializer_range": 0.2}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        model = getattr(transformers, kind)(transformers.BertConfig(**config)).eval()
        for name, weights in model.named_parameters():
            if weights.ndim == 1:
                weights.uniform_(*((0.5, 1.5) if name.endswith("LayerNorm.weight") else (-0.2, 0.2)))
    model.save_pretrained(folder)
    return getattr(model, "bert", model)


def encode_with_transformers(
    folder: Path, model: Any, text: str, *, pooling: str = "mean", max_tokens: int = 64
) -> Any:
    """The vector by transformers, in float32."""
    import torch

    with torch.no_grad():
        tokens = model(torch.tensor([tokenize(folder, text, max_tokens)])).last_hidden_state[0].numpy()
    pooled = tokens.mean(axis=0) if pooling == "mean" else tokens[0]
    return pooled / np.linalg.norm(pooled)


def tokenize(folder: Path, text: str, max_tokens: int) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return list(tokenizer.encode(text).ids)


def convert_and_open(folder: Path, out: Path) -> Encoder:
    out.mkdir()
    return Encoder(out, write_encoder(folder, out))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take many times as long where something else runs."""
    import torch

    thread_count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(thread_count)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """The tiny encoder, to be changed."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


# -- the same vectors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM"])
@pytest.mark.parametrize(("pooling", "modes"), [("mean", MEAN), ("cls", CLS)])
def test_a_vector_in_eight_bits_is_that_of_transformers_to_a_cosine_of_0_999(
    tmp_path: Path, kind: str, pooling: str, modes: Mapping[str, bool]
) -> None:
    model = save_random_bert(tmp_path / "bert", modes, kind)
    encoder = convert_and_open(tmp_path / "bert", tmp_path / "out")
    vectors = [encoder.encode_document(text) for text in MIXED]
    for text, vector in zip(MIXED, vectors, strict=True):
        assert vector.shape == (32,)
        assert vector.dtype == np.float32
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        assert vector @ encode_with_transformers(tmp_path / "bert", model, text, pooling=pooling) > 0.999
    assert (
        np.stack(vectors) @ np.stack(vectors).T
    ).min() < 0.7  # a model in which all texts are alike would tell nothing


def test_the_graph_before_it_is_made_eight_bits_is_transformers_to_five_digits(tmp_path: Path) -> None:
    """A folder's own onnx/model.onnx may be one of ours."""
    import onnxruntime

    model = save_random_bert(tmp_path / "bert")
    session = onnxruntime.InferenceSession(str(write_bert_graph(tmp_path / "bert", tmp_path / "whole.onnx")))
    for text in MIXED:
        ids = tokenize(tmp_path / "bert", text, 64)
        tokens = session.run(None, {"input_ids": np.array([ids], dtype=np.int64)})[0][0]
        pooled = tokens.mean(axis=0) / np.linalg.norm(tokens.mean(axis=0))
        np.testing.assert_allclose(pooled, encode_with_transformers(tmp_path / "bert", model, text), atol=1e-5)


def test_the_packaged_encoder_gives_fifty_texts_the_vectors_of_transformers_to_a_cosine_of_0_98(tmp_path: Path) -> None:
    """The built-in corpus's queries, and documents of which some are cut at 256 tokens."""
    from transformers import BertModel

    folder = find_packaged_encoder()
    model = BertModel.from_pretrained(folder).eval()
    encoder = convert_and_open(folder, tmp_path / "out")
    documents = [document.text for document in islice(builtin_corpus.iter_documents(), 0, 580, 20)]
    texts = [" ".join(documents), *documents, *islice(builtin_corpus.read_queries().values(), 20)]
    assert len(texts) == 50
    assert len(tokenize(folder, texts[0], 512)) > 256
    same = [
        encoder.encode_query(text) @ encode_with_transformers(folder, model, text, max_tokens=256) for text in texts
    ]
    assert min(same) > 0.98
    assert (tmp_path / "out" / MODEL_FILE).stat().st_size < 24e6


@pytest.mark.filterwarnings("ignore")  # torch tells of its tracer's limits
def test_the_folders_own_graph_is_taken_whatever_its_architecture(tmp_path: Path) -> None:
    """One that asks for the mask and the types too, by torch's older exporter, which tells that it is older."""
    import torch

    folder = tmp_path / "bert"
    model = save_random_bert(folder, CLS)

    class Tokens(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any, types: Any) -> Any:
            return model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state

    ids = torch.tensor([[2, 5, 6, 3]])
    names = ["input_ids", "attention_mask", "token_type_ids"]
    (folder / "onnx").mkdir()
    torch.onnx.export(
        Tokens().eval(),
        (ids, torch.ones_like(ids), torch.zeros_like(ids)),
        folder / "onnx" / "model.onnx",
        input_names=names,
        dynamic_axes={name: {1: "n"} for name in names},
        dynamo=False,
    )
    edit_json_file(folder / "config.json", {"architectures": ["SomethingNew"]})
    (folder / "model.safetensors").unlink()
    encoder = convert_and_open(folder, tmp_path / "out")
    for text in MIXED:
        assert encoder.encode_query(text) @ encode_with_transformers(folder, model, text, pooling="cls") > 0.999


def test_weights_in_sixteen_bits_are_read(tiny: Path, tmp_path: Path) -> None:
    folder = write_tiny_encoder(tmp_path / "half", stored="F16")
    float32_encoder, float16_encoder = convert_and_open(tiny, tmp_path / "a"), convert_and_open(folder, tmp_path / "b")
    assert all(float32_encoder.encode_query(text) @ float16_encoder.encode_query(text) > 0.9999 for text in MIXED)


# -- how a text is read -------------------------------------------------------------------------------------------------


def test_the_prefixes_of_the_folder_go_before_the_text(copy: Path, tiny: Path, tmp_path: Path) -> None:
    plain = convert_and_open(tiny, tmp_path / "plain")
    write_sentence_transformers_files(
        copy, config_sentence_transformers={"prompts": {"query": "query: ", "passage": "passage: "}}
    )
    encoder = convert_and_open(copy, tmp_path / "out")
    np.testing.assert_array_equal(encoder.encode_query("boats"), plain.encode_query("query: boats"))
    np.testing.assert_array_equal(encoder.encode_document("boats"), plain.encode_document("passage: boats"))
    assert encoder.encode_query("boats") @ plain.encode_query("boats") < 0.99
    write_sentence_transformers_files(copy, config_sentence_transformers={"prompts": {"document": "doc: "}})
    assert write_encoder(copy, tmp_path / "out") == EncoderSettings("mean", 64, "", "doc: ")


@pytest.mark.parametrize(
    ("settings", "max_tokens"), [({"max_seq_length": 6}, 6), ({"max_seq_length": 512}, 64), ({}, 64)]
)
def test_a_text_is_cut_at_the_folders_length_and_at_the_models_positions(
    copy: Path, tmp_path: Path, settings: Mapping[str, int], max_tokens: int
) -> None:
    write_sentence_transformers_files(copy, sentence_bert_config=settings)
    encoder = convert_and_open(copy, tmp_path / "out")
    words = " ".join([LONG] * 3).split()  # two tokens go to the marks at both ends
    cut, longer, shorter = (" ".join(words[:count]) for count in (max_tokens - 2, 120, max_tokens - 3))
    np.testing.assert_array_equal(encoder.encode_document(longer), encoder.encode_document(cut))
    assert (encoder.encode_document(cut) != encoder.encode_document(shorter)).any()


def test_a_text_without_a_token_is_all_zeros(copy: Path, tmp_path: Path) -> None:
    assert np.linalg.norm(convert_and_open(copy, tmp_path / "marks").encode_query("")) == pytest.approx(1)
    write_tokenizer(copy, special=False)
    for pooling in (MEAN, CLS):
        write_sentence_transformers_files(copy, pooling=pooling)
        encoder = convert_and_open(copy, tmp_path / str(pooling["pooling_mode_cls_token"]))
        assert encoder.encode_query("").tolist() == [0] * 32


def test_a_text_in_words_that_the_tokenizer_does_not_know_is_all_zeros(tiny: Path, tmp_path: Path) -> None:
    encoder = convert_and_open(tiny, tmp_path / "out")
    assert encoder.encode_query("法 judges trials courts").any()
    assert encoder.encode_query("judges! 🍕 ?").any()  # signs are no letters
    assert encoder.encode_query("法律 judges").any()  # two of eight letters
    assert not encoder.encode_query("法律书 judges").any()  # three of nine
    assert not encoder.encode_document("离婚后孩子归谁").any()


def test_a_tokenizer_that_spells_everything_out_knows_every_text(tiny: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram

    encoder = convert_and_open(tiny, tmp_path / "out")
    unigram = Tokenizer(Unigram([("a", -1.0), ("b", -1.0)], None, byte_fallback=False))
    assert find_unknown_token_id(unigram) is None
    assert find_unknown_token_id(Tokenizer(Unigram([("<unk>", 0.0), ("a", -1.0)], 0))) == 0
    assert find_unknown_token_id(encoder._tokenizer) == 1


def test_a_vector_is_the_same_whoever_asks_beside_it(tiny: Path, tmp_path: Path) -> None:
    encoder = convert_and_open(tiny, tmp_path / "out")
    expected_vectors = [encoder.encode_query(text) for text in MIXED]
    with ThreadPoolExecutor(8) as pool:
        for vector, expected in zip(pool.map(encoder.encode_query, MIXED * 20), expected_vectors * 20, strict=True):
            np.testing.assert_array_equal(vector, expected)


# -- refused ------------------------------------------------------------------------------------------------------------


def refused(folder: Path, out: Path) -> str:
    """What is said of the folder, in one sentence, with nothing left but the tokenizer."""
    out.mkdir(exist_ok=True)
    with pytest.raises(SettingsError) as caught:
        write_encoder(folder, out)
    assert {path.name for path in out.iterdir()} <= {TOKENIZER_FILE}
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("config", {"architectures": ["RobertaModel"]},
         "its architecture is 'RobertaModel'; only BERT can be converted; add the encoder's own onnx/model.onnx"),
        ("config", {"architectures": None, "model_type": "mpnet"}, "its architecture is 'mpnet'; only BERT"),
        ("config", {"hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu' can be converted"),
        ("config", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'; only 'absolute'"),
        ("config", {"num_hidden_layers": 2}, "its weights cannot be read (KeyError('encoder.layer.1.attention"),
        ("config", {"hidden_size": None}, "its weights cannot be read (KeyError('hidden_size'))"),
    ],
)  # fmt: skip
def test_a_model_that_would_be_computed_otherwise_is_refused(
    copy: Path, tmp_path: Path, file: str, changes: Mapping[str, Any], sentence: str
) -> None:
    edit_json_file(copy / f"{file}.json", changes)
    assert f"{copy}: {sentence}" in refused(copy, tmp_path / "out")


@pytest.mark.parametrize("length", ["long", 0, -1, 2.5, True])
def test_a_length_that_is_none_is_named(copy: Path, tmp_path: Path, length: object) -> None:
    (copy / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}), encoding="utf-8")
    assert f"{copy}: it reads {length!r} tokens at most" in refused(copy, tmp_path / "out")


def test_a_layer_after_the_pooling_is_refused_and_a_length_of_one_is_not(copy: Path, tmp_path: Path) -> None:
    package = "sentence_transformers.models."
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense", "Normalize": "3_Normalize"}
    modules = [{"type": package + kind, "path": path} for kind, path in paths.items()]
    write_sentence_transformers_files(copy, modules=modules)
    assert refused(copy, tmp_path / "out") == (
        f"{copy}: its module sentence_transformers.models.Dense is not supported; name another encoder"
    )
    write_sentence_transformers_files(copy, modules=[module for module in modules if "Dense" not in module["type"]])
    assert write_encoder(copy, tmp_path / "out").pooling == "mean"
    broken_modules: tuple[Any, ...] = ({"modules": []}, [{"kind": "Dense"}], ["Dense"])
    for broken in broken_modules:
        write_sentence_transformers_files(copy, modules=broken)
        assert f"{copy}/modules.json cannot be read" in refused(copy, tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("config.json", "{}/config.json cannot be read (No such file or directory)"),
        ("1_Pooling/config.json", "{}/1_Pooling/config.json cannot be read (No such file or directory)"),
        ("tokenizer.json", "{} has no tokenizer.json"),
        ("model.safetensors", "{} has no model.safetensors"),
    ],
)
def test_a_missing_file_is_named(copy: Path, tmp_path: Path, name: str, sentence: str) -> None:
    (copy / name).unlink()
    expected = f"{sentence.format(copy)}; name a folder as sentence-transformers saves one"
    assert refused(copy, tmp_path / "out") == expected


def test_broken_files_are_named(copy: Path, tmp_path: Path) -> None:
    weights = copy / "model.safetensors"
    intact = weights.read_bytes()
    for broken in (b"", b"\x80\x04 no safetensors", intact[:-1], intact[:100], intact.replace(b'"F32"', b'"I99"')):
        weights.write_bytes(broken)
        assert f"{copy}: its weights cannot be read (" in refused(copy, tmp_path / "out")
    weights.write_bytes(intact)
    for name in ("config.json", "1_Pooling/config.json", "config_sentence_transformers.json"):
        for text, problem in [("{", "is not JSON"), ("[]", "holds no JSON object"), ("\udcff", "is not JSON")]:
            intact_text = (copy / name).read_bytes() if (copy / name).exists() else b"{}"
            (copy / name).write_bytes(text.encode(errors="surrogateescape"))
            assert f"{copy / name} {problem}" in refused(copy, tmp_path / "out")
            (copy / name).write_bytes(intact_text)
    (copy / "onnx").mkdir()
    for broken in (b"", b"nonsense"):
        (copy / "onnx" / "model.onnx").write_bytes(broken)
        assert f"{copy}/onnx/model.onnx cannot be quantised to eight bits" in refused(copy, tmp_path / "out")


def test_a_served_file_that_is_none_of_its_kind_is_named(tiny: Path, tmp_path: Path) -> None:
    reading = write_encoder(tiny, tmp_path)
    for name, kind in ((TOKENIZER_FILE, "a tokenizer"), (MODEL_FILE, "an encoder")):
        intact = (tmp_path / name).read_bytes()
        for broken in (b"", b"{}", intact[: len(intact) // 2]):
            (tmp_path / name).write_bytes(broken)
            with pytest.raises(
                SettingsError, match=rf"{name} cannot be read as {kind} \(.*\); build the expander again"
            ):
                Encoder(tmp_path, reading)
        (tmp_path / name).unlink()
        with pytest.raises(SettingsError, match=rf"{name} cannot be read as {kind}"):
            Encoder(tmp_path, reading)
        (tmp_path / name).write_bytes(intact)
