"""Documents of four topics, a small encoder that separates the topics, and an expander's folder made of both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from querylift.index_tools.engine import Engine, make_index_action
from querylift.index_tools.fast_expander.encoder_conversion import write_encoder
from querylift.plugin.fast_expander.document_vectors import DocumentVectors
from querylift.plugin.fast_expander.encoder import MODEL_FILE, TOKENIZER_FILE, Encoder
from querylift.plugin.fast_expander.expander_folder import (
    FORMAT_VERSION,
    RECORD_FILE,
    ExpanderRecord,
    ExpansionShape,
    SourceIndex,
    collect_file_facts,
)
from querylift.plugin.fast_expander.mapped_files import list_text_files, write_texts
from querylift.plugin.fast_expander.neighbours_weigher import (
    IDS_NAME,
    TERM_ENDS_FILE,
    TERMS_FILE,
    VECTORS_FILE,
    WEIGHTS_FILE,
)
from querylift.plugin.fast_expander.vocabulary import Word, write_vocabulary
from tests.helpers.folders import Weights, encode_safetensors

TOPICS = {
    "sea": "sailing boats harbour waves anchors sailors tides ropes masts fishing".split(),
    "sky": "stars planets telescopes comets orbits galaxies moons eclipses asteroids rockets".split(),
    "food": "ovens recipes baking spices dough kettles roasting flour butter soups".split(),
    "law": "courts judges trials lawyers verdicts juries appeals contracts statutes witnesses".split(),
}
TEXTS = {
    f"{topic}-{start}": " ".join(words[(start + step) % 10] for step in range(4))
    for topic, words in TOPICS.items()
    for start in range(10)
}
"""Forty documents by id. Every word is in four of them, the most that a usable term may be in."""
BERT: dict[str, Any] = {
    "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 32, "intermediate_size": 48, "hidden_act": "gelu",
    "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64, "layer_norm_eps": 1e-12,
}  # fmt: skip
MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
PROPERTIES = {"contents": {"type": "text", "analyzer": "english", "term_vector": "yes"}}


# -- encoders -----------------------------------------------------------------------------------------------------------


def write_tokenizer(folder: Path, *, special: bool = True) -> int:
    """Write a WordPiece tokenizer that knows letters and the topics' words. Return the size of its vocabulary.

    With `special` it puts [CLS] and [SEP] around each text.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import BertProcessing

    letters = "abcdefghijklmnopqrstuvwxyz0123456789:"
    words = [word for topic in TOPICS.values() for word in topic]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    if special:
        tokenizer.post_processor = BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    tokenizer.save(str(folder / TOKENIZER_FILE))
    return len(vocabulary)


def write_sentence_transformers_files(
    folder: Path, *, pooling: Mapping[str, bool] = MEAN, **json_files: object
) -> Path:
    """Write the files that sentence-transformers puts beside a model. `json_files` are more files by name."""
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    for name, value in json_files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def write_tiny_encoder(folder: Path, *, stored: str = "F32", **config: object) -> Path:
    """Write a BERT of one layer, without torch. The vectors of one topic's words are similar."""
    write_sentence_transformers_files(folder)
    size = write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({**BERT, "vocab_size": size, **config}), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(encode_safetensors(_make_weights(size), stored))
    return folder


def write_old_encoder_folder(folder: Path, **sentence_files: Mapping[str, object]) -> Path:
    """Write the tiny encoder as early versions of sentence-transformers did. `sentence_files` lie beside the model."""
    model_folder = folder / "0_Transformer"
    write_tiny_encoder(model_folder)
    (model_folder / "1_Pooling").rename(folder / "2_Pooling")
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "2_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    paths = {"Transformer": "0_Transformer", "Pooling": "2_Pooling"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(paths.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    for name, settings in sentence_files.items():
        (model_folder / f"{name}.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def _make_weights(size: int) -> Weights:
    random = np.random.default_rng(7)

    def draw_numbers(*shape: int, scale: float = 0.05) -> Any:
        return (random.standard_normal(shape) * scale).astype("f4")

    words = draw_numbers(size, 32, scale=0.5)
    for number in range(4):
        words[size - 40 + 10 * number : size - 30 + 10 * number] += draw_numbers(32, scale=1)
    weights: Weights = {"embeddings.word_embeddings.weight": words}
    weights["embeddings.position_embeddings.weight"] = draw_numbers(64, 32)
    weights["embeddings.token_type_embeddings.weight"] = draw_numbers(2, 32)
    layer = "encoder.layer.0."
    shapes = {"attention.self.query": (32, 32), "attention.self.key": (32, 32), "attention.self.value": (32, 32)}
    shapes |= {"attention.output.dense": (32, 32), "intermediate.dense": (48, 32), "output.dense": (32, 48)}
    for name, shape in shapes.items():
        weights[f"{layer}{name}.weight"], weights[f"{layer}{name}.bias"] = draw_numbers(*shape), draw_numbers(shape[0])
    for name in ("embeddings.", f"{layer}attention.output.", f"{layer}output."):
        weights[f"{name}LayerNorm.weight"], weights[f"{name}LayerNorm.bias"] = np.ones(32, "f4"), np.zeros(32, "f4")
    return weights


# -- an expander without an engine --------------------------------------------------------------------------------------


def write_expander(folder: Path, encoder: Path) -> Path:
    """Write an expander of the forty documents, for an index `topics`. A term is its word without a final s."""
    folder.mkdir()
    encoder_settings = write_encoder(encoder, folder)
    words = [Word(word.rstrip("s"), word) for topic in TOPICS.values() for word in topic]
    numbers = {word.surface: number for number, word in enumerate(words)}
    loaded_encoder = Encoder(folder, encoder_settings)
    vectors = np.stack([loaded_encoder.encode_document(text) for text in TEXTS.values()])
    document_vectors = DocumentVectors.create_empty(vectors)
    document_vectors.add(vectors)
    document_vectors.write_file(folder / VECTORS_FILE)
    terms = [numbers[word] for text in TEXTS.values() for word in text.split()]
    np.save(folder / TERM_ENDS_FILE, np.arange(4, 164, 4, dtype=np.int64))
    np.save(folder / TERMS_FILE, np.array(terms, dtype=np.uint32))
    np.save(folder / WEIGHTS_FILE, np.ones(160, dtype=np.float16))
    id_files = write_texts(folder, IDS_NAME, TEXTS)
    document_files = [VECTORS_FILE, TERM_ENDS_FILE, TERMS_FILE, WEIGHTS_FILE, *id_files]
    files = [MODEL_FILE, TOKENIZER_FILE, *document_files, *write_vocabulary(folder, words)]
    source = SourceIndex(
        index="topics", indices=("topics-1",), aliases=("topics",), uuids=("u",), field="contents", documents=40, in_index=40,
        engine="OpenSearch 3.8.0", probe={"boats": ("boat",)},
    )  # fmt: skip
    record = ExpanderRecord(
        version=FORMAT_VERSION, form="neighbours", built="2025-01-01", source=source, reading=encoder_settings, encoder="tiny",
        width=32, terms=40, shape=ExpansionShape(), score_scale=8, files=collect_file_facts(folder, files),
    )  # fmt: skip
    (folder / RECORD_FILE).write_text(record.model_dump_json(indent=1), encoding="utf-8")
    return folder


def remove_document_ids(folder: Path) -> None:
    """Make an expander's folder one of an older Querylift, which wrote no ids."""
    record_path = folder / RECORD_FILE
    record = json.loads(record_path.read_text(encoding="utf-8"))
    for name in list_text_files(IDS_NAME):
        (folder / name).unlink()
        del record["files"][name]
    record_path.write_text(json.dumps(record), encoding="utf-8")


# -- indices ------------------------------------------------------------------------------------------------------------


def fill_index(engine: Engine, index: str, documents: Mapping[str, Any], *, field: str = "contents") -> None:
    """Put `documents` by id into `index` and refresh it. A document is the text of `field`, or a whole source."""
    results = engine.send_bulk_actions(
        make_index_action(index, doc_id, document if isinstance(document, dict) else {field: document})
        for doc_id, document in documents.items()
    )
    assert all(ok for ok, _ in results)
    engine.call("POST", f"/{index}/_refresh")


def create_index(engine: Engine, index: str, properties: Mapping[str, Any] = PROPERTIES, **settings: object) -> None:
    """Create an empty index."""
    body = {"settings": {"number_of_replicas": 0, **settings}, "mappings": {"properties": properties}}
    engine.call("PUT", f"/{index}", body)


def remove_indices(engine: Engine, *indices: str) -> None:
    """Delete those of `indices` that exist."""
    for index in indices:
        if engine.has_index(index):
            engine.call("DELETE", f"/{index}")


def list_part_files(folder: Path) -> Iterator[Path]:
    """Yield the part files of an expander's folder."""
    return iter(sorted((folder / "parts").glob("*.npz")))
