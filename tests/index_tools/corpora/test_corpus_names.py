"""A corpus is opened by its name, and an unknown name is refused."""

from __future__ import annotations

import pytest

from querylift.index_tools.corpora.corpus_names import load_corpus
from querylift.plugin.errors import SettingsError


@pytest.mark.parametrize("spec", ["", "built-in", "no/such/folder", "ir:", "beir:", "trec:", "msmarco-passage/dev"])
def test_an_unknown_corpus_is_refused_with_the_four_kinds(spec: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_corpus(spec)
    assert str(caught.value).startswith(f"there is no corpus {spec!r}; name 'builtin', a BEIR folder")
    assert all(kind in str(caught.value) for kind in ("beir:PATH", "trec:FOLDER", "ir:ID"))
