"""Names and sentences stay plain: the figures of `bench/words` keep within what CONTRIBUTING.md asks for."""

import json
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT


@pytest.fixture(scope="module")
def figures() -> dict[str, dict[str, float]]:
    command = [sys.executable, str(ROOT / "bench" / "words"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, dict[str, float]] = json.loads(done.stdout)
    return measured


def test_functions_are_named_by_a_verb_and_its_object(figures: dict[str, dict[str, float]]) -> None:
    assert figures["names"]["functions"] > 1000
    assert figures["names"]["one_word"] < 0.35
    assert figures["names"]["participles"] < 0.02


def test_locals_say_what_they_hold(figures: dict[str, dict[str, float]]) -> None:
    assert figures["names"]["vague_locals"] < 0.02


@pytest.mark.parametrize("kind", ["documents", "docstrings", "help texts", "errors"])
def test_nine_of_ten_sentences_have_at_most_25_words(figures: dict[str, dict[str, float]], kind: str) -> None:
    assert figures[kind]["sentences"] > 100
    assert figures[kind]["p90"] <= 25
