"""Small students made on the spot, with random weights. They are enough to test the way from text to a saved model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from querylift.plugin.expansion import build_prompt

MAX_VOCABULARY = 2048
"""The most tokens of a tokenizer. It has fewer when its texts are short."""
_SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,  # with 0.02, frozen embeddings this narrow keep every loss above 5
}


def make_random_model(architecture: str, *, attention: str, seed: int, texts: Iterable[str] | None) -> tuple[Any, Any]:
    """Return a model of `architecture` ("llama" or "qwen3") and its tokenizer.

    The same seed and texts give the same model. None for `texts` means the built-in corpus.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    tokenizer = _train_tokenizer(_read_builtin_texts() if texts is None else texts)
    config_class = {"llama": LlamaConfig, "qwen3": Qwen3Config}[architecture]
    token_ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = config_class(vocab_size=len(tokenizer), **_SIZES, **token_ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention), tokenizer


def train_builtin_tokenizer() -> Any:
    """Return the tokenizer of a model that is made without `texts`."""
    return _train_tokenizer(_read_builtin_texts())


def _train_tokenizer(texts: Iterable[str]) -> Any:
    """Return a byte-level BPE tokenizer, the kind that SmolLM2 and Qwen have. Every text decodes to the same bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        special_tokens=_SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, build_prompt("query").replace("<|", "").replace("|>", "")], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _read_builtin_texts() -> Iterator[str]:
    from querylift.index_tools.corpora import builtin_corpus

    yield from builtin_corpus.read_queries().values()
    for document in islice(builtin_corpus.iter_documents(), 2000):
        yield document.text
