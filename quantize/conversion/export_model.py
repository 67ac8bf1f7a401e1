"""Write a whole model, as transformers or `querylift train merge` saves it, as a GGUF file that llama.cpp runs.

A model whose chat template writes our prompt, or that has none, is a student. Its file gets this version's `PROMPT_VERSION`. A
model with another template is untrained, and its file names no prompt. The file also holds the folder's name and a digest
of its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from querylift.plugin.chat_template import brings_other_prompt
from querylift.plugin.expansion import PROMPT_VERSION, STOP_STRINGS
from querylift.plugin.files import replace_file
from querylift.plugin.generators.llama.model_file import PROMPT_VERSION_KEY
from querylift.quantize.adapters.export_adapter import BASE_NAME_KEY, BASE_SHA256_KEY
from querylift.quantize.conversion.architecture import Architecture, read_architecture
from querylift.quantize.conversion.tensor_plan import NUMBER_TYPES, TensorPlan, encode_blocks, plan_tensors
from querylift.quantize.conversion.tokenizer import BpeTokenizer, read_tokenizer
from querylift.quantize.conversion.weights import compute_digest, find_weight_files, locate_tensors

STOP_KEY = "querylift.stop"
"""The metadata key of the texts that end a passage."""
_FILE_TYPES = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "f32": gguf.LlamaFileType.ALL_F32,
}


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """The folder's name, GGUF's name of the architecture, and how many tensors and numbers were written."""

    name: str
    architecture: str
    tensors: int
    numbers: int


def export_model(folder: Path, out: Path, *, number_type: str = "f16") -> ExportedModel:
    """Write the model in `folder` to `out`, atomically. Only a few megabytes of it are in memory at a time.

    Raises SettingsError when llama.cpp would not compute what transformers computes from the folder.
    """
    model = read_architecture(folder)
    files = find_weight_files(folder)
    tensors = plan_tensors(model, locate_tensors(files), folder, number_type=number_type)
    tokenizer = read_tokenizer(folder, size=model.vocabulary)
    name = folder.resolve().name
    with replace_file(out) as part:
        writer = gguf.GGUFWriter(part, model.name)
        _add_general_metadata(writer, name, number_type, sha256=compute_digest(files))
        _add_architecture_metadata(writer, model)
        _add_tokenizer_metadata(writer, tokenizer)
        _write_header(writer, tensors)
        _append_tensors(part, tensors, alignment=writer.data_alignment)
    return ExportedModel(name, model.name, len(tensors), sum(int(np.prod(tensor.shape)) for tensor in tensors))


def _add_general_metadata(writer: gguf.GGUFWriter, name: str, number_type: str, *, sha256: str) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[number_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_array(STOP_KEY, list(STOP_STRINGS))
    writer.add_string(BASE_NAME_KEY, name)
    writer.add_string(BASE_SHA256_KEY, sha256)


def _add_architecture_metadata(writer: gguf.GGUFWriter, model: Architecture) -> None:
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


def _add_tokenizer_metadata(writer: gguf.GGUFWriter, tokenizer: BpeTokenizer) -> None:
    writer.add_tokenizer_model("gpt2")  # GGUF's name of byte-level BPE
    writer.add_tokenizer_pre(tokenizer.pre_tokenizer)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    writer.add_token_merges(tokenizer.merges)
    writer.add_bos_token_id(tokenizer.start_id)
    writer.add_eos_token_id(tokenizer.end_id)
    writer.add_pad_token_id(tokenizer.padding_id)
    if tokenizer.unknown_id is not None:
        writer.add_unk_token_id(tokenizer.unknown_id)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    if not brings_other_prompt(tokenizer.chat_template):
        writer.add_string(PROMPT_VERSION_KEY, PROMPT_VERSION)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _write_header(writer: gguf.GGUFWriter, tensors: Sequence[TensorPlan]) -> None:
    """Write everything that precedes the tensors' data."""
    for tensor in tensors:
        raw_dtype = NUMBER_TYPES[tensor.number_type]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype("<f4"), tensor.size_bytes, raw_dtype=raw_dtype)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _append_tensors(path: Path, tensors: Sequence[TensorPlan], *, alignment: int) -> None:
    """Append the tensors' data, each tensor at a multiple of `alignment` bytes. GGUFWriter would load whole tensors."""
    with path.open("ab") as file:
        for tensor in tensors:
            file.write(bytes(-file.tell() % alignment))
            for block in encode_blocks(tensor):
                file.write(block.data)
        file.write(bytes(-file.tell() % alignment))
