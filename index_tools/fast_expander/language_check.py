"""Checks before a build whether the encoder knows the language of an index, on a random sample of its documents."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.encoder_sources import PreparedEncoder
from querylift.index_tools.fast_expander.index_reader import search_random_documents
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.text_encoder import TextEncoder

_log = logging.getLogger("querylift")
_SAMPLE = 100
"""The number of documents that tell whether the encoder knows their language."""
_MIN_CHARS = 40
_MIN_TEXTS = 20
_MIN_MATCHES = 0.5
"""Least share of halves that match. English encoders matched .36 of Chinese texts, and others .68 to .96 (docs/log.md)."""


def check_language(
    engine: Engine, index: str, sources: Sequence[str], prepared: PreparedEncoder, *, threads: int
) -> None:
    """Raise SettingsError when the encoder does not know the words of most documents of a random sample.

    `sources` are the fields that hold the text of a document.
    The tokenizer of an endpoint is unknown. Its encoder gives a warning when it does not tell the documents apart.
    """
    documents = search_random_documents(engine, index, sources=sources, size=_SAMPLE)
    texts = [document.text for document in documents if document.text]
    if prepared.endpoint is not None:
        _compare_halves(index, texts, prepared.encoder, threads=threads)
        return
    unreadable = int((~prepared.encoder.encode_documents(texts, threads=threads).any(axis=1)).sum()) if texts else 0
    if 2 * unreadable > len(texts):
        raise SettingsError(
            f"{unreadable} of {len(texts)} random documents of {index} have too many words that the encoder "
            "does not know; name an encoder of their language with --encoder"
        )


def _compare_halves(index: str, texts: Sequence[str], encoder: TextEncoder, *, threads: int) -> None:
    """Warn when the first halves of most texts are not nearest to their own second halves."""
    long_texts = [text[:1000] for text in texts if len(text) >= _MIN_CHARS]
    if len(long_texts) < _MIN_TEXTS:
        return
    halves = [text[: len(text) // 2] for text in long_texts] + [text[len(text) // 2 :] for text in long_texts]
    vectors = encoder.encode_documents(halves, threads=threads)
    cosines = vectors[: len(long_texts)] @ vectors[len(long_texts) :].T
    matches = int((cosines.max(axis=1) <= cosines.diagonal()).sum())
    if matches < _MIN_MATCHES * len(long_texts):
        _log.warning(
            "the encoder finds the second half of only %d of %d random documents of %s by the first half; "
            "if it does not know their language, name another encoder",
            *(matches, len(long_texts), index),
        )
