"""The judge as a PyTorch module: a BERT of transformers, and one classifier over what it reads.

The standard pass reads a query and a document. The reasoning pass reads the same with a reasoning behind the document. Both
passes use the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from querylift.index_tools.fast_expander.encoder_conversion import (
    PACKAGED_ENCODER_NAME,
    SUPPORTED_BERT,
    find_packaged_encoder,
)
from querylift.index_tools.judging.judge_folder import load_judge_tokenizer, tokenize_text
from querylift.plugin.errors import SettingsError
from querylift.trainer.judge.student.student_config import StudentOptions
from querylift.trainer.student.libraries import silence_libraries

BASE_FILES = ("config.json", "model.safetensors", "tokenizer.json")
"""The files of a base that decide what a judge learns from it."""
_BERT_REMEDY = "name a BERT folder with config.json, model.safetensors and tokenizer.json"


class JudgeModel:
    """A BERT, a tokenizer and a classifier with a row for each grade.

    The lower layers never change while a judge trains, so `kept_states` keeps their output for each text that `keep_states`
    was asked for. Judges of the same base and the same `trained_layers` may share it.
    """

    def __init__(self, bert: Any, tokenizer: Any, options: StudentOptions, *, grade_count: int) -> None:
        import torch

        layers = list(bert.encoder.layer)
        if options.trained_layers > len(layers):
            raise SettingsError(
                f"student.trained_layers is {options.trained_layers}, but {options.base} has {len(layers)} layers; lower it"
            )
        self.bert, self.tokenizer, self.options = bert, tokenizer, options
        self.width = int(bert.config.hidden_size)
        self._lower = layers[: len(layers) - options.trained_layers]
        self._upper = torch.nn.ModuleList(layers[len(layers) - options.trained_layers :])
        for parameter in bert.parameters():
            parameter.requires_grad_(False)
        for parameter in self._upper.parameters():
            parameter.requires_grad_(True)
        feature_count = self.width if options.reading == "joint" else 2 * self.width + 1
        self.classifier = torch.nn.Linear(feature_count, grade_count)
        torch.nn.init.zeros_(self.classifier.weight)
        torch.nn.init.zeros_(self.classifier.bias)
        self.kept_states: dict[tuple[int, ...], Any] = {}

    def list_layer_parameters(self) -> list[Any]:
        """Return the parameters of the layers that learn."""
        return list(self._upper.parameters())

    def set_training(self, training: bool) -> None:
        """Switch dropout in the layers that learn on or off. The lower layers never have any."""
        self.bert.eval()
        self._upper.train(training)

    def tokenize_pair(self, query: str, document: str, reasoning: str = "") -> tuple[tuple[int, ...], ...]:
        """Return the token ids of the texts that are read: one text when they are read jointly, else two.

        Each text begins with the model's first token and ends with its last one. The reasoning comes behind the document.
        """
        options = self.options
        query_ids = tokenize_text(self.tokenizer, query, options.query_tokens)
        document_ids = tokenize_text(self.tokenizer, document, options.document_tokens)
        if reasoning.strip():
            document_ids += tokenize_text(self.tokenizer, reasoning, options.reasoning_tokens)[1:]
        return (query_ids + document_ids[1:],) if options.reading == "joint" else (query_ids, document_ids)

    def compute_features(self, pairs: Sequence[tuple[tuple[int, ...], ...]], *, keep_states: bool = False) -> Any:
        """Return what the classifier reads of each pair: shape (pairs, features).

        `keep_states` keeps the output of the lower layers for every text, for the next time that it is read.
        """
        import torch

        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        vectors = self._compute_vectors(texts, keep_states=keep_states)
        position_by_text = {text: position for position, text in enumerate(texts)}
        parts = [vectors[[position_by_text[pair[part]] for pair in pairs]] for part in range(len(pairs[0]))]
        if self.options.reading == "joint":
            return parts[0]
        query, document = (torch.nn.functional.normalize(part, dim=1) for part in parts)
        scale = self.width**0.5
        cosine = (query * document).sum(1, keepdim=True)
        return torch.cat([query * document * scale, (query - document).abs() * scale, cosine], dim=1)

    def _compute_vectors(self, texts: Sequence[tuple[int, ...]], *, keep_states: bool) -> Any:
        """Return a vector of each text: shape (texts, width). It is the first token's, or the mean over the tokens."""
        states, mask = pad_states([*self._iter_states(texts, keep_states=keep_states)])
        hidden = _run_layers(self._upper, states, mask)
        if self.options.reading == "joint":
            return hidden[:, 0]
        return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)

    def _iter_states(self, texts: Sequence[tuple[int, ...]], *, keep_states: bool) -> Iterable[Any]:
        """Yield the output of the lower layers for each text: shape (tokens, width)."""
        unknown = [text for text in texts if text not in self.kept_states]
        fresh = dict(zip(unknown, self._run_lower_layers(unknown), strict=True)) if unknown else {}
        if keep_states:
            self.kept_states.update({text: states.half() for text, states in fresh.items()})
        for text in texts:
            yield (fresh[text] if text in fresh else self.kept_states[text]).float()

    def _run_lower_layers(self, texts: Sequence[tuple[int, ...]]) -> list[Any]:
        import torch

        length = max(map(len, texts))
        ids = torch.tensor([[*text, *[0] * (length - len(text))] for text in texts])
        mask = torch.tensor([[1.0] * len(text) + [0.0] * (length - len(text)) for text in texts])
        with torch.no_grad():
            hidden = _run_layers(self._lower, self.bert.embeddings(input_ids=ids), mask)
        return [row[: len(text)] for row, text in zip(hidden, texts, strict=True)]


def pad_states(states: Sequence[Any]) -> tuple[Any, Any]:
    """Return the states of several texts as one array with zeros behind shorter texts, and its mask of ones."""
    import torch

    padded = torch.nn.utils.rnn.pad_sequence(list(states), batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(state)) for state in states], batch_first=True)
    return padded, mask


def load_judge_model(options: StudentOptions, *, grade_count: int, folder: Path | None = None) -> JudgeModel:
    """Return a judge with the weights of its base, or of the trained judge in `folder`. Its classifier is all zeros.

    Raises SettingsError when the weights cannot be used.
    """
    silence_libraries()
    from transformers import BertModel

    is_base = folder is None
    folder = folder or find_base_folder(options.base)
    check_bert_folder(folder)
    try:
        bert, report = BertModel.from_pretrained(
            folder,
            local_files_only=True,
            attn_implementation="sdpa",
            add_pooling_layer=False,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and safetensors have no common class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SettingsError(f"{folder} cannot be loaded ({reason}); {_BERT_REMEDY}") from None
    if missing := sorted(report["missing_keys"]):
        raise SettingsError(f"{folder / 'model.safetensors'} lacks the weights {missing[0]}; {_BERT_REMEDY}")
    tokenizer = load_judge_tokenizer(folder / "tokenizer.json", remedy=_BERT_REMEDY)
    if is_base:
        check_text_lengths(options, max_tokens=int(bert.config.max_position_embeddings))
    return JudgeModel(bert.float(), tokenizer, options, grade_count=grade_count)


def check_text_lengths(options: StudentOptions, *, max_tokens: int) -> None:
    """Raise SettingsError when the longest text is longer than the `max_tokens` tokens that the base can read."""
    total = options.document_tokens + options.reasoning_tokens - 1
    names = "student.document_tokens and student.reasoning_tokens"
    if options.reading == "joint":
        total += options.query_tokens - 1
        names = f"student.query_tokens, {names}"
    if total > max_tokens:
        raise SettingsError(f"{names} make {total} tokens, and {options.base} reads at most {max_tokens}; lower them")


def find_base_folder(base: str) -> Path:
    """Return the folder of a base: the packaged encoder by its name, or a folder. Raises SettingsError."""
    folder = Path(base)
    if not folder.is_dir():
        if base != PACKAGED_ENCODER_NAME:
            raise SettingsError(f"student.base is {base!r}, and there is no such folder; {_BERT_REMEDY}")
        folder = find_packaged_encoder()
    nested = folder / "0_Transformer"
    return nested if not (folder / "config.json").is_file() and nested.is_dir() else folder


def check_bert_folder(folder: Path) -> None:
    """Raise SettingsError when a file is missing, or when the model is no BERT whose graph can be exported."""
    for name in BASE_FILES:
        if not (folder / name).is_file():
            raise SettingsError(f"{folder} lacks {name}; {_BERT_REMEDY}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{folder / 'config.json'} cannot be read ({error!r}); {_BERT_REMEDY}") from None
    if kind != "bert":
        raise SettingsError(f"{folder} holds a model of type {kind!r}, not a BERT; {_BERT_REMEDY}")
    for key, supported in SUPPORTED_BERT.items():
        if config.get(key, supported) != supported:
            raise SettingsError(
                f"{folder}: {key} is {config[key]!r}, and only {supported!r} can be exported; name another BERT folder"
            )


def _run_layers(layers: Iterable[Any], hidden: Any, mask: Any) -> Any:
    """Return the output of `layers`, shape (texts, tokens, width). Tokens where `mask` is 0 are not looked at."""
    import torch

    hidden_mask = torch.zeros(mask.shape[0], 1, 1, mask.shape[1]).masked_fill(mask[:, None, None, :] == 0, -1e9)
    for layer in layers:
        output = layer(hidden, hidden_mask)
        hidden = output[0] if isinstance(output, tuple) else output
    return hidden
