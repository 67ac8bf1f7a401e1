"""Documents of four topics, a small encoder that tells the topics apart, and an expander's folder made by hand of the two."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from querylift.index_tools.engine import Engine, action
from querylift.index_tools.fast_expander.encoder_conversion import write_encoder
from querylift.plugin.fast_expander.document_vectors import Vectors
from querylift.plugin.fast_expander.encoder import MODEL, TOKENIZER, Encoder
from querylift.plugin.fast_expander.folder import ABOUT, VERSION, About, Shape, Source, facts_of_all
from querylift.plugin.fast_expander.neighbours import ENDS, TERMS, VECTORS, WEIGHTS
from querylift.plugin.fast_expander.vocabulary import Word, write_vocabulary
from tests.helpers.folders import Weights, safetensors_bytes

TOPICS = {
    "sea": "sailing boats harbour waves anchors sailors tides ropes masts fishing".split(),
    "sky": "stars planets telescopes comets orbits galaxies moons eclipses asteroids rockets".split(),
    "food": "ovens recipes baking spices dough kettles roasting flour butter soups".split(),
    "law": "courts judges trials lawyers verdicts juries appeals contracts statutes witnesses".split(),
}
TEXTS = {
    f"{topic}-{first}": " ".join(words[(first + step) % 10] for step in range(4))
    for topic, words in TOPICS.items()
    for first in range(10)
}
"""Forty documents: a word stands in four of them, which is the tenth that it may stand in."""
BERT: dict[str, Any] = {
    "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 32, "intermediate_size": 48, "hidden_act": "gelu",
    "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64, "layer_norm_eps": 1e-12,
}  # fmt: skip
MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
PROPERTIES = {"contents": {"type": "text", "analyzer": "english", "term_vector": "yes"}}


# -- encoders -----------------------------------------------------------------------------------------------------------


def tokenizer_file(folder: Path, *, special: bool = True) -> int:
    """A WordPiece tokenizer of the topics' words and of letters; the size of its vocabulary."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import BertProcessing

    letters = "abcdefghijklmnopqrstuvwxyz0123456789:"
    words = [word for topic in TOPICS.values() for word in topic]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    made = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    if special:
        made.post_processor = BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    made.save(str(folder / TOKENIZER))
    return len(vocabulary)


def sentence_folder(folder: Path, *, pooling: Mapping[str, bool] = MEAN, **others: object) -> Path:
    """What sentence-transformers puts beside a model: `others` are more files by name, as JSON."""
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    for name, value in others.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def tiny_encoder(folder: Path, *, stored: str = "F32", **config: object) -> Path:
    """A BERT of one layer, without torch: words of one topic have vectors that are alike."""
    sentence_folder(folder)
    size = tokenizer_file(folder)
    (folder / "config.json").write_text(json.dumps({**BERT, "vocab_size": size, **config}), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(safetensors_bytes(_weights(size), stored))
    return folder


def _weights(size: int) -> Weights:
    random = np.random.default_rng(7)

    def drawn(*shape: int, scale: float = 0.05) -> Any:
        return (random.standard_normal(shape) * scale).astype("f4")

    words = drawn(size, 32, scale=0.5)
    for number in range(4):
        words[size - 40 + 10 * number : size - 30 + 10 * number] += drawn(32, scale=1)
    weights: Weights = {"embeddings.word_embeddings.weight": words}
    weights["embeddings.position_embeddings.weight"] = drawn(64, 32)
    weights["embeddings.token_type_embeddings.weight"] = drawn(2, 32)
    layer = "encoder.layer.0."
    shapes = {"attention.self.query": (32, 32), "attention.self.key": (32, 32), "attention.self.value": (32, 32)}
    shapes |= {"attention.output.dense": (32, 32), "intermediate.dense": (48, 32), "output.dense": (32, 48)}
    for name, shape in shapes.items():
        weights[f"{layer}{name}.weight"], weights[f"{layer}{name}.bias"] = drawn(*shape), drawn(shape[0])
    for name in ("embeddings.", f"{layer}attention.output.", f"{layer}output."):
        weights[f"{name}LayerNorm.weight"], weights[f"{name}LayerNorm.bias"] = np.ones(32, "f4"), np.zeros(32, "f4")
    return weights


# -- an expander without an engine --------------------------------------------------------------------------------------


def made_expander(folder: Path, encoder: Path, *, engine: str = "http://127.0.0.1:9") -> Path:
    """An expander of the forty documents on an index `topics`, with words for terms as the english analyzer makes them."""
    folder.mkdir()
    reading = write_encoder(encoder, folder)
    words = [Word(word.rstrip("s"), word) for topic in TOPICS.values() for word in topic]
    numbers = {word.surface: number for number, word in enumerate(words)}
    said = Encoder(folder, reading)
    read = np.stack([said.document(text) for text in TEXTS.values()])
    vectors = Vectors.new(read)
    vectors.add(read)
    vectors.write(folder / VECTORS)
    terms = [numbers[word] for text in TEXTS.values() for word in text.split()]
    np.save(folder / ENDS, np.arange(4, 164, 4, dtype=np.int64))
    np.save(folder / TERMS, np.array(terms, dtype=np.uint32))
    np.save(folder / WEIGHTS, np.ones(160, dtype=np.float16))
    files = [MODEL, TOKENIZER, VECTORS, ENDS, TERMS, WEIGHTS, *write_vocabulary(folder, words)]
    source = Source(
        index="topics", indices=("topics-1",), aliases=("topics",), uuids=("u",), field="contents", documents=40, in_index=40,
        engine="OpenSearch 3.8.0", probe={"boats": ("boat",)},
    )  # fmt: skip
    about = About(
        version=VERSION, form="neighbours", built="2025-01-01", source=source, reading=reading, encoder="tiny", width=32,
        terms=40, shape=Shape(), files=facts_of_all(folder, files),
    )  # fmt: skip
    (folder / ABOUT).write_text(about.model_dump_json(indent=1), encoding="utf-8")
    return folder


# -- indices ------------------------------------------------------------------------------------------------------------


def fill(engine: Engine, index: str, documents: Mapping[str, Any], *, field: str = "contents") -> None:
    """Put `documents` (text, or a whole source) by id into `index`, to be found at once."""
    done = engine.bulk(
        action(index, doc_id, given if isinstance(given, dict) else {field: given})
        for doc_id, given in documents.items()
    )
    assert all(ok for ok, _ in done)
    engine.call("POST", f"/{index}/_refresh")


def create(engine: Engine, index: str, properties: Mapping[str, Any] = PROPERTIES, **settings: object) -> None:
    """An empty index."""
    body = {"settings": {"number_of_replicas": 0, **settings}, "mappings": {"properties": properties}}
    engine.call("PUT", f"/{index}", body)


def removed(engine: Engine, *indices: str) -> None:
    """Delete those of `indices` that are there."""
    for index in indices:
        if engine.exists(index):
            engine.call("DELETE", f"/{index}")


def parts_of(folder: Path) -> Iterator[Path]:
    """The part files of an expander."""
    return iter(sorted((folder / "parts").glob("*.npz")))
