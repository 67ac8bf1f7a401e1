"""A whole model, as transformers saves it and `querylift train merge` writes it, as a GGUF file that llama.cpp runs.

A folder does not say for which prompt its model was trained: the file says it of this version's, `PROMPT_VERSION`, for whoever
converts a model has just made it. What the file was made from stands in it as a name and a digest of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from querylift.plugin.expansion import PROMPT_VERSION, STOP
from querylift.plugin.generators.llama.model_file import PROMPT_VERSION_KEY
from querylift.quantize.adapters.export_adapter import BASE_NAME_KEY, BASE_SHA256_KEY
from querylift.quantize.conversion.architecture import Architecture, read_architecture
from querylift.quantize.conversion.tensors import NUMBER_TYPES, Tensor, numbers, plan
from querylift.quantize.conversion.tokenizer import Vocabulary, read_vocabulary
from querylift.quantize.conversion.weights import digest, find_weights, weight_files
from querylift.quantize.files import replacing

STOP_KEY = "querylift.stop"
"""What ends a passage."""
_FILE_TYPES = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "f32": gguf.LlamaFileType.ALL_F32,
}


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written: the folder's name, GGUF's name of the architecture, how many numbers in how many tensors."""

    name: str
    architecture: str
    tensors: int
    numbers: int


def export_model(folder: Path, out: Path, *, number_type: str = "f16") -> Converted:
    """Write the model in `folder` to `out`, whole or not at all; a few megabytes of it are in memory at any time.

    Raises SettingsError where llama.cpp could not do with the file what transformers does with the folder.
    """
    model = read_architecture(folder)
    files = weight_files(folder)
    tensors = plan(model, find_weights(files), folder, number_type=number_type)
    vocabulary = read_vocabulary(folder, size=model.vocabulary)
    name = folder.resolve().name
    with replacing(out) as part:
        writer = gguf.GGUFWriter(part, model.name)
        _describe(writer, name, number_type, sha256=digest(files))
        _describe_model(writer, model)
        _describe_tokenizer(writer, vocabulary)
        _write_head(writer, tensors)
        _append(part, tensors, alignment=writer.data_alignment)
    return Converted(name, model.name, len(tensors), sum(int(np.prod(tensor.shape)) for tensor in tensors))


def _describe(writer: gguf.GGUFWriter, name: str, number_type: str, *, sha256: str) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[number_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string(PROMPT_VERSION_KEY, PROMPT_VERSION)
    writer.add_array(STOP_KEY, list(STOP))
    writer.add_string(BASE_NAME_KEY, name)
    writer.add_string(BASE_SHA256_KEY, sha256)


def _describe_model(writer: gguf.GGUFWriter, model: Architecture) -> None:
    writer.add_block_count(model.layers)
    writer.add_context_length(model.context_tokens)
    writer.add_embedding_length(model.hidden)
    writer.add_feed_forward_length(model.feed_forward)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_rope_freq_base(model.rope_base)
    writer.add_layer_norm_rms_eps(model.rms_epsilon)
    writer.add_vocab_size(model.vocabulary)


def _describe_tokenizer(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.start)
    writer.add_eos_token_id(vocabulary.end)
    writer.add_pad_token_id(vocabulary.padding)
    if vocabulary.unknown is not None:
        writer.add_unk_token_id(vocabulary.unknown)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    if vocabulary.template:
        writer.add_chat_template(vocabulary.template)


def _write_head(writer: gguf.GGUFWriter, tensors: Sequence[Tensor]) -> None:
    """All that stands before the numbers."""
    for tensor in tensors:
        kind = NUMBER_TYPES[tensor.number_type]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype("<f4"), tensor.size_bytes, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _append(path: Path, tensors: Sequence[Tensor], *, alignment: int) -> None:
    """The numbers, each tensor at a multiple of `alignment`. The writer would have them in memory, a tensor at a time."""
    with path.open("ab") as file:
        for tensor in tensors:
            file.write(bytes(-file.tell() % alignment))
            for block in numbers(tensor):
                file.write(block.data)
        file.write(bytes(-file.tell() % alignment))
