"""Continued pre-training: the teacher reads the documents of the domain, by plain language modelling.

The texts follow each other with a separator token between them, and are cut into blocks of equal length. So no token is
padding. Every token of a block is learned. Documents are held out for validation, not blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from querylift.index_tools.corpora.records import Document
from querylift.plugin.errors import SettingsError
from querylift.trainer.judge.adaptation.adaptation_config import AdaptationConfig
from querylift.trainer.judge.adaptation.chat_rows import hide_special_tokens
from querylift.trainer.judge.adaptation.domain_texts import read_documents, sample_documents, write_documents
from querylift.trainer.student import libraries, models, sft, shared_training
from querylift.trainer.student.shared_training import Say
from querylift.trainer.student.training_result import TrainingResult
from querylift.trainer.student.training_texts import choose_validation_queries, encode_text

_SEPARATOR = "<|endoftext|>"
"""The token between two texts, when the tokenizer has it. It is the separator of most models that speak ChatML."""


class TokenBlock(NamedTuple):
    """The tokens of one block. Each of them is learned."""

    input_ids: list[int]

    def to_row(self) -> dict[str, Any]:
        """Return a row for TRL's trainer."""
        return {"input_ids": self.input_ids, "labels": list(self.input_ids), "length": len(self.input_ids)}


class DomainSource(NamedTuple):
    """Where the texts come from. `settings` are for the manifest, and `name` is for messages."""

    name: str
    settings: Mapping[str, Any]
    iter_documents: Callable[[], Iterable[Document]]


def pretrain_on_documents(
    source: DomainSource,
    config: AdaptationConfig,
    *,
    model: str | Path,
    out: Path,
    seed: int,
    say: Say,
) -> TrainingResult:
    """Train `model` on the texts of `source`. Write an adapter (or a whole model), curves and a manifest into `out`.

    A run that was killed continues from its last checkpoint, with the documents that it had read. A run that is complete is
    not repeated. `examples` of the result counts blocks, and `left_out` documents. Raises SettingsError and MissingExtra.
    """
    manifest = shared_training.make_model_manifest(
        out,
        "judge pretrain",
        {},
        config,
        sections=("pretrain",),
        base=model,
        seed=seed,
        other_settings=source.settings,
    )
    return shared_training.train_once(
        manifest, lambda: _train(source, config, base=model, out=out, seed=seed, say=say), out=out, say=say
    )


def pack_texts(texts: Iterable[str], tokenizer: Any, *, block_tokens: int) -> list[TokenBlock]:
    """Return the tokens of all texts, in blocks of `block_tokens`. The last block may be shorter, but not one token long."""
    separator_id = _find_separator_id(tokenizer)
    token_ids: list[int] = []
    for text in texts:
        token_ids += [*encode_text(hide_special_tokens(text), tokenizer), separator_id]
    blocks = [token_ids[start : start + block_tokens] for start in range(0, len(token_ids), block_tokens)]
    return [TokenBlock(block) for block in blocks if len(block) > 1]


def _find_separator_id(tokenizer: Any) -> int:
    token_id = tokenizer.convert_tokens_to_ids(_SEPARATOR)
    return int(tokenizer.eos_token_id if token_id in (None, tokenizer.unk_token_id) else token_id)


def _train(
    source: DomainSource, config: AdaptationConfig, *, base: str | Path, out: Path, seed: int, say: Say
) -> TrainingResult:
    options = config.pretrain
    say(
        f"plan: pre-train {base} on up to {options.max_documents:,} documents of {source.name}, in blocks of "
        f"{options.block_tokens:,} tokens, {options.epochs:g} epochs"
    )
    # The model first: one that cannot be loaded must leave the output folder free for another.
    model, tokenizer = models.load_model_and_tokenizer(base, dtype=config.model.dtype, seed=seed)
    documents_path = out / "documents.jsonl"
    documents = store_documents(source, documents_path, count=options.max_documents, seed=seed)
    base = shared_training.store_random_base(base, model, tokenizer, config, out=out)
    validation_ids = choose_validation_queries((document.doc_id for document in documents), options.validation_share)
    training, validation = (
        pack_texts(
            [
                f"{document.title}\n{document.text}".strip()
                for document in documents
                if (document.doc_id in validation_ids) is is_validation
            ],
            tokenizer,
            block_tokens=options.block_tokens,
        )
        for is_validation in (False, True)
    )
    if not training:
        raise SettingsError(f"the documents of {source.name} have no words to learn from; name another source")
    device = libraries.choose_device()
    say(f"{len(training)} training blocks, {len(validation)} validation blocks of other documents, on {device}")
    trainer = sft.make_trainer(model, tokenizer, config, training, validation, out=out, seed=seed, options=options)
    result = shared_training.train_and_save(
        trainer, tokenizer, out=out, base=base, examples=len(training), left_out=0, say=say
    )
    if shared_training.is_first_process():
        documents_path.unlink()
    return result


def store_documents(source: DomainSource, path: Path, *, count: int, seed: int) -> list[Document]:
    """Return the documents of an earlier attempt, or read and store them. Other processes wait for the first one."""
    with shared_training.let_first_process_go_first():
        if not path.is_file():
            documents = sample_documents(source.iter_documents(), count, seed=seed, source=source.name)
            write_documents(documents, path)
    return read_documents(path)
