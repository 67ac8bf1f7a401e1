"""What makes the weights of an expander: the docstrings' formulas, computed here by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from querylift.index_tools.fast_expander.document_parts import CountedTerms, DocumentPart, DocumentParts
from querylift.index_tools.fast_expander.neighbours_form import MAX_DOCUMENT_TERMS, TermStatistics, choose_surface_words
from querylift.index_tools.fast_expander.terms_form import (
    UNTRAINED_SCALE,
    calculate_mean_vectors,
    load_weighted_documents,
    write_matrix,
)
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.document_vectors import DocumentVectors, normalize_vectors, quantize_to_eight_bits
from querylift.plugin.fast_expander.expander_folder import ExpansionShape
from querylift.plugin.fast_expander.index_check import group_terms_by_text
from querylift.plugin.fast_expander.matrix_weigher import MATRIX_FILE, MatrixWeigher
from querylift.plugin.fast_expander.neighbours_weigher import (
    TERM_ENDS_FILE,
    TERMS_FILE,
    VECTORS_FILE,
    WEIGHTS_FILE,
    NeighboursWeigher,
)
from querylift.plugin.fast_expander.term_filter import compute_document_limit, is_usable_term

PLAN = {"index": "docs", "encoder": "aa"}


def create_part(
    documents: Sequence[dict[str, int]], surfaces: dict[str, tuple[str, int]] | None = None, width: int = 4
) -> DocumentPart:
    """A part of documents as counted terms, with random vectors."""
    vocabulary = list(dict.fromkeys(term for counted in documents for term in counted))
    vectors = np.random.default_rng(len(documents)).standard_normal((len(documents), width)).astype("f4")
    return DocumentPart(
        keys=[f"docs/{i}" for i in range(len(documents))],
        digests=np.arange(len(documents), dtype=np.uint64),
        vectors=quantize_to_eight_bits(vectors),
        groups=[
            CountedTerms(
                ends=np.cumsum([len(counted) for counted in documents]),
                terms=np.array([vocabulary.index(term) for counted in documents for term in counted], dtype=np.uint32),
                counts=np.array([count for counted in documents for count in counted.values()], dtype=np.uint16),
                lengths=np.array([sum(counted.values()) for counted in documents], dtype=np.uint32),
                vocabulary=vocabulary,
                surfaces=surfaces or {},
            )
        ],
    )


def write_parts(folder: Path, *parts: DocumentPart) -> DocumentParts:
    written_parts = DocumentParts(folder, PLAN)
    for part in parts:
        written_parts.add_part(part)
    return written_parts


def list_all_rows(*parts: DocumentPart) -> list[list[int]]:
    return [list(range(len(part.keys))) for part in parts]


# -- which terms, and how heavy in a document ---------------------------------------------------------------------------


def test_a_term_is_usable_in_two_documents_and_up_to_a_tenth_of_them(tmp_path: Path) -> None:
    documents = [{"each": 1, f"only{i}": 1} for i in range(40)]
    for doc_id, term_counts in enumerate(documents):
        term_counts |= {"four": 1} if doc_id < 4 else {}
        term_counts |= {"five": 1} if doc_id < 5 else {}
        term_counts |= {"two": 3, "x": 1, "2024": 1} if doc_id in (7, 30) else {}
    first_part, second_part = create_part(documents[:25]), create_part(documents[25:])
    parts = write_parts(tmp_path, first_part, second_part)
    assert list(TermStatistics(parts, list_all_rows(first_part, second_part)).numbers) == ["four", "two"]
    current_rows = [list(range(25)), list(range(5))]  # without the document 30, of 30 in all
    assert list(TermStatistics(parts, current_rows).numbers) == []
    assert (compute_document_limit(40), compute_document_limit(3)) == (4, 1)
    assert [is_usable_term(term) for term in ("ab", "a", "12", "a1", "法律")] == [True, False, False, True, True]


def test_a_term_of_a_document_weighs_the_root_of_its_share_times_its_idf(tmp_path: Path) -> None:
    documents = [{"boat": 3, "sail": 1, "rest": 5}, {"boat": 1}, {"sail": 2, "rope": 1}, {"rope": 1}]
    part = create_part(documents + [{f"other{i}": 1} for i in range(16)])
    statistics = TermStatistics(write_parts(tmp_path, part), list_all_rows(part))
    assert statistics.numbers == {"boat": 0, "rope": 1, "sail": 2}
    idf = math.log(1 + (20 - 2 + 0.5) / (2 + 0.5))
    numbers, weights = next(statistics.weigh_document_terms(part, [0]))
    assert numbers.tolist() == [0, 2]
    assert weights.tolist() == pytest.approx([math.sqrt(3 / 9) * idf, math.sqrt(1 / 9) * idf], rel=1e-3)


def test_of_a_long_document_the_heaviest_terms_stay(tmp_path: Path) -> None:
    long = {f"term{i:03}": 1 + (i % 7 == 0) for i in range(100)}
    part = create_part([long, long, *({f"other{i}": 1} for i in range(30))])
    statistics = TermStatistics(write_parts(tmp_path, part), list_all_rows(part))
    numbers, weights = next(statistics.weigh_document_terms(part, [0]))
    assert len(numbers) == MAX_DOCUMENT_TERMS
    assert (np.diff(weights) <= 0).all()
    assert {number for number in range(100) if number % 7 == 0} <= set(numbers.tolist())


class Stems:
    """In the place of the engine's analyzer: a word without its last s."""

    def analyze_words(self, words: Sequence[str]) -> dict[str, tuple[str, ...]]:
        return {word: (word.rstrip("s"),) for word in words}


def test_a_term_is_named_by_its_commonest_word_over_all_parts(tmp_path: Path) -> None:
    documents: list[dict[str, int]] = [
        {"boat": 1, "sail": 1, "rope": 1, "glass": 1},
        {"boat": 1, "sail": 1, "rope": 1, "glass": 1},
    ]
    other_documents: list[dict[str, int]] = [{f"other{i}": 1} for i in range(18)]
    first_part = create_part(documents, {"boat": ("boat", 5), "sail": ("sails", 2)})
    second_part = create_part(other_documents, {"boat": ("boats", 9), "sail": ("sail", 2)})
    third_part = create_part([], {"boat": ("boat", 3)})
    parts = write_parts(tmp_path, first_part, second_part, third_part)
    statistics = TermStatistics(parts, list_all_rows(first_part, second_part, third_part))
    stems: Any = Stems()
    words: Any = choose_surface_words(statistics, parts, stems)
    assert dict(words) == {"boat": "boats", "glass": "", "rope": "rope", "sail": "sail"}


# -- the form `neighbours` ----------------------------------------------------------------------------------------------


def write_vectors(path: Path, vectors: Any) -> None:
    index = DocumentVectors.create_empty(vectors)
    index.add(vectors)
    index.write_file(path)


def test_neighbours_weigh_their_terms_by_how_near_they_are(tmp_path: Path) -> None:
    """Against every document, one by one: the graph finds them all where they are few."""
    random = np.random.default_rng(1)
    vectors = quantize_to_eight_bits(random.standard_normal((30, 16)).astype("f4"))
    terms = [random.choice(50, size=random.integers(0, 9), replace=False) for _ in range(30)]
    weights = [random.random(len(numbers)).astype(np.float16) for numbers in terms]
    write_vectors(tmp_path / VECTORS_FILE, vectors)
    np.save(tmp_path / TERM_ENDS_FILE, np.cumsum([len(numbers) for numbers in terms]))
    np.save(tmp_path / TERMS_FILE, np.concatenate(terms).astype(np.uint32))
    np.save(tmp_path / WEIGHTS_FILE, np.concatenate(weights))
    shape = ExpansionShape(terms=7, power=0.5, documents=5, temperature=0.1)
    query = random.standard_normal(16).astype("f4")

    similar = normalize_vectors(vectors) @ normalize_vectors(query)
    summed = dict.fromkeys(range(50), 0.0)
    for nearest in np.argsort(-similar)[:5]:
        for number, weight in zip(terms[nearest], weights[nearest], strict=True):
            summed[int(number)] += float(weight) * math.exp((similar[nearest] - similar.max()) / 0.1)
    expected = sorted(summed, key=lambda number: -summed[number])[:7]

    weighed = NeighboursWeigher(tmp_path, shape, width=16).weigh(query)
    assert weighed.terms.tolist() == expected
    assert weighed.term_weights.tolist() == pytest.approx([summed[number] ** 0.5 for number in expected], rel=1e-2)


def test_neighbours_without_a_term_have_nothing_to_add(tmp_path: Path) -> None:
    write_vectors(tmp_path / VECTORS_FILE, np.ones((3, 16), dtype=np.int8))
    np.save(tmp_path / TERM_ENDS_FILE, np.zeros(3, dtype=np.int64))
    np.save(tmp_path / TERMS_FILE, np.array([], dtype=np.uint32))
    np.save(tmp_path / WEIGHTS_FILE, np.array([], dtype=np.float16))
    weighed = NeighboursWeigher(tmp_path, ExpansionShape(), width=16).weigh(np.ones(16, dtype="f4"))
    assert (len(weighed.terms), len(weighed.term_weights), weighed.document_ids) == (0, 0, [])


def test_the_nearest_are_those_that_looking_at_every_vector_finds(tmp_path: Path) -> None:
    """Nineteen of twenty of them, with cosines that are right to a hundredth."""
    random = np.random.default_rng(5)
    vectors, queries = random.standard_normal((5000, 64)).astype("f4"), random.standard_normal((50, 64)).astype("f4")
    write_vectors(tmp_path / VECTORS_FILE, vectors)
    stored_vectors = DocumentVectors.read_file(tmp_path / VECTORS_FILE, width=64)
    exact = normalize_vectors(queries) @ normalize_vectors(vectors).T
    best = np.argsort(-exact, axis=1)[:, :20]
    for exactly in (False, True):
        numbers, cosines = stored_vectors.find_nearest(queries, 20, exactly=exactly)
        shares = [
            len(set(near) & set(wanted)) / 20 for near, wanted in zip(numbers.tolist(), best.tolist(), strict=True)
        ]
        assert np.mean(shares) > 0.95
        assert np.abs(cosines - np.take_along_axis(exact, numbers, axis=1)).max() < 0.01
    assert stored_vectors.find_nearest(queries[:1], 9000, exactly=True)[0].shape == (1, 5000)


def test_vectors_of_another_width_are_named(tmp_path: Path) -> None:
    write_vectors(tmp_path / VECTORS_FILE, np.ones((3, 16), dtype=np.int8))
    with pytest.raises(
        SettingsError, match=r"documents\.faiss holds no vectors of 8 numbers; build the expander again"
    ):
        DocumentVectors.read_file(tmp_path / VECTORS_FILE, width=8)


def test_vectors_keep_their_directions_in_eight_bits() -> None:
    vectors = np.random.default_rng(2).standard_normal((50, 384)).astype("f4") * np.float32(1e-3)
    small = quantize_to_eight_bits(vectors)
    assert small.dtype == np.int8 and np.abs(small).max(axis=1).tolist() == [127] * 50
    assert (normalize_vectors(small) * normalize_vectors(vectors)).sum(axis=1).min() > 0.9995
    assert quantize_to_eight_bits(np.zeros(4, dtype="f4")).tolist() == [0] * 4


# -- the form `terms` ---------------------------------------------------------------------------------------------------


def test_an_untrained_row_is_the_mean_of_the_vectors_of_its_documents(tmp_path: Path) -> None:
    documents = [{"boat": 3, "sail": 1}, {"boat": 1}, {"sail": 2, "boats": 1}]
    part = create_part(documents + [{f"other{i}": 1} for i in range(17)])
    statistics = TermStatistics(write_parts(tmp_path, part), list_all_rows(part))
    rows = calculate_mean_vectors(
        load_weighted_documents(write_parts(tmp_path, part), [*list_all_rows(part), []], statistics)
    )
    assert list(statistics.numbers) == ["boat", "sail"]
    vectors = normalize_vectors(part.vectors)
    boat = math.sqrt(3 / 4) * vectors[0] + math.sqrt(1 / 1) * vectors[1]  # the idf is the same in both
    np.testing.assert_allclose(rows[0], boat / np.linalg.norm(boat), atol=1e-3)


def test_a_matrix_weighs_terms_by_the_power_of_their_scores(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    rows = normalize_vectors(random.standard_normal((60, 32))) * UNTRAINED_SCALE
    bias = random.standard_normal(60).astype("f4")
    write_matrix(tmp_path / MATRIX_FILE, rows, bias)
    query = normalize_vectors(random.standard_normal(32))
    weighed = MatrixWeigher(tmp_path, ExpansionShape(terms=10, power=0.5)).weigh(query)
    numbers, weights = weighed.terms, weighed.term_weights
    scores = rows @ query + bias
    assert set(numbers.tolist()[:5]) <= set(np.argsort(-scores)[:8].tolist())  # eight bits may turn what is near
    expected = [math.exp(scores[number] * 0.5) for number in numbers]
    assert weights.tolist() == pytest.approx([weight / expected[0] for weight in expected], rel=0.15)
    assert weights[0] == 1 and (np.diff(weights) <= 0).all()
    every_term = MatrixWeigher(tmp_path, ExpansionShape(terms=128)).weigh(query).terms
    assert sorted(every_term.tolist()) == list(range(60))


# -- parts --------------------------------------------------------------------------------------------------------------


def test_a_part_is_read_as_it_was_written_and_half_a_one_is_thrown_away(tmp_path: Path) -> None:
    part = create_part([{"boat": 3, "müll": 1}, {}], {"boat": ("boats", 9)})
    write_parts(tmp_path, part, part)
    (tmp_path / "parts" / "000002.tmp").write_bytes(b"half")
    reopened = DocumentParts(tmp_path, PLAN)
    read_parts = list(reopened)
    assert [path.name for path in reopened.list_files()] == ["000000.npz", "000001.npz"]
    assert not (tmp_path / "parts" / "000002.tmp").exists()
    for name in ("digests", "vectors"):
        np.testing.assert_array_equal(getattr(read_parts[1], name), getattr(part, name))
    assert read_parts[0].keys == part.keys
    assert_same_terms(read_parts[0].groups[0], part.groups[0])


def assert_same_terms(terms: CountedTerms, expected: CountedTerms) -> None:
    for name in ("ends", "terms", "counts", "lengths"):
        np.testing.assert_array_equal(getattr(terms, name), getattr(expected, name))
    assert (terms.vocabulary, terms.surfaces) == (expected.vocabulary, expected.surfaces)


def test_a_part_keeps_the_terms_of_each_group_of_fields(tmp_path: Path) -> None:
    english, exact = create_part([{"boat": 3}, {}], {"boat": ("boats", 9)}), create_part([{"boats": 3}, {"sails": 1}])
    part = replace(english, groups=[*english.groups, *exact.groups])
    (read_part,) = write_parts(tmp_path, part)
    assert_same_terms(read_part.groups[0], english.groups[0])
    assert_same_terms(read_part.groups[1], exact.groups[0])
    assert [list(group.lengths) for group in read_part.select_rows([1]).groups] == [[0], [1]]


def test_parts_of_other_settings_are_named_with_what_is_other(tmp_path: Path) -> None:
    DocumentParts(tmp_path, {"index": "elsewhere"})  # holds nothing yet
    write_parts(tmp_path, create_part([{"boat": 1}]))
    with pytest.raises(SettingsError) as caught:
        DocumentParts(tmp_path, PLAN | {"encoder": "bb"})
    assert str(caught.value) == (
        f"{tmp_path} holds an expander of other settings (encoder was 'aa'); name another folder, or delete it"
    )
    (tmp_path / "parts" / "plan.json").write_text("{", encoding="utf-8")
    with pytest.raises(SettingsError, match="its plan cannot be read"):
        DocumentParts(tmp_path, PLAN)


# -- which token is of which text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "tokens", "made"),
    [
        (["boats", "sail"], [("boat", 0), ("sail", 6)], [("boat",), ("sail",)]),
        (["the", "sail"], [("sail", 4)], [(), ("sail",)]),
        (["wi-fi", "x"], [("x", 6), ("fi", 3), ("wi", 0)], [("wi", "fi"), ("x",)]),
        (["🍕🍕", "é", "ab"], [("p", 0), ("e", 5), ("ab", 7)], [("p",), ("e",), ("ab",)]),
        (["", "ab"], [("ab", 1)], [(), ("ab",)]),
        (["ab"], [("ab", 0), ("ab", 0), ("past", 40)], [("ab", "ab")]),
        ([], [], []),
    ],
)  # fmt: skip
def test_tokens_go_to_the_text_that_they_stand_in(
    texts: list[str], tokens: list[tuple[str, int]], made: list[tuple[str, ...]]
) -> None:
    """Offsets run on over the texts, one apart, and count UTF-16."""
    engine_tokens = [{"token": token, "start_offset": start} for token, start in tokens]
    assert group_terms_by_text(texts, engine_tokens) == dict(zip(texts, made, strict=True))
