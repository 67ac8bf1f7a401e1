"""Students made on the spot: a few small, random layers and a tokenizer, enough to prove the way from text to a saved model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from querylift.plugin.expansion import prompt

VOCABULARY = 2048
"""Tokens at most; the tokenizer has fewer where its texts are short."""
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,  # with 0.02 frozen embeddings this narrow keep every loss above 5
}


def make(architecture: str, *, attention: str, seed: int, texts: Iterable[str] | None) -> tuple[Any, Any]:
    """A model of `architecture` ("llama" or "qwen3") and its tokenizer; the same ones for the same seed and texts."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    tokenizer = _tokenizer(_builtin_texts() if texts is None else texts)
    config_class = {"llama": LlamaConfig, "qwen3": Qwen3Config}[architecture]
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = config_class(vocab_size=len(tokenizer), **_SIZES, **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention), tokenizer


def _tokenizer(texts: Iterable[str]) -> Any:
    """Byte-level BPE, as SmolLM2 and Qwen have: every text comes back byte for byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*texts, prompt("query").replace("<|", "").replace("|>", "")], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _builtin_texts() -> Iterator[str]:
    from querylift.index_tools.corpora import builtin

    yield from builtin.queries().values()
    for document in islice(builtin.documents(), 2000):
        yield document.text
