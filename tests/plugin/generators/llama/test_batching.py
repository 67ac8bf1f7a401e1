"""Continuous batching, tested with a model whose tokens are bytes."""

import json
from collections.abc import Sequence

import pytest

from querylift.plugin.expansion import MAX_TOKENS
from querylift.plugin.generators.llama.batching import STEP_TOKENS, Batcher, BatchToken, QueryTooLong


class ByteModel:
    """A model whose tokens are bytes: for each query that it reads, it repeats the prepared answer byte by byte."""

    can_copy_prefix = True

    def __init__(self, answers: dict[str, bytes]) -> None:
        self.answers = answers
        self.sequences: dict[int, list[int]] = {}
        self.batch_sizes: list[int] = []

    def tokenize(self, text: str) -> list[int] | None:
        return list(text.encode())

    def get_token_bytes(self, token: int) -> bytes:
        return bytes([token])

    def is_end_token(self, token: int) -> bool:
        return token == 0

    def copy_prefix(self, source: int, target: int, *, count: int) -> None:
        assert not self.sequences.get(target)
        self.sequences[target] = self.sequences[source][:count]

    def clear_sequence(self, sequence: int) -> None:
        self.sequences[sequence] = []

    def decode_batch(self, batch: Sequence[BatchToken]) -> list[int]:
        self.batch_sizes.append(len(batch))
        return [token for entry in batch for token in self._read_token(entry)]

    def _read_token(self, entry: BatchToken) -> list[int]:
        tokens = self.sequences.setdefault(entry.sequence, [])
        assert entry.position == len(tokens)
        tokens.append(entry.token)
        return [self._predict_token(bytes(tokens))] if entry.needs_next else []

    def _predict_token(self, text: bytes) -> int:
        prompt, _, output = text.partition(b"assistant\n")
        answer = next(answer for query, answer in self.answers.items() if f": {query}<".encode() in prompt)
        return (answer + b"\x00")[len(output)]


def _write_answers(answers: dict[str, bytes], *, slots: int = 2) -> tuple[ByteModel, dict[str, str]]:
    model = ByteModel(answers)
    batcher = Batcher(model, slots=slots, slot_tokens=1000)
    queries = dict(enumerate(answers))
    for request_id, query in queries.items():
        batcher.submit(request_id, query)
    texts: dict[str, str] = {}
    while batcher.has_work:
        texts |= {queries[finished.request_id]: finished.text for finished in batcher.run_step()}
    assert not any(tokens for sequence, tokens in model.sequences.items() if sequence != slots)
    return model, texts


@pytest.mark.parametrize(
    ("output", "text"),
    [("naïve 光 😀".encode(), "naïve 光 😀"), (b"one\ntwo", "one"), (b"one <|im_end|> two", "one "), (b"", ""),
     (b"ab\xff cd", "ab\ufffd cd"), (b"x" * 99, "x" * MAX_TOKENS), ("光".encode() * 30, "光" * 21 + "\ufffd")],
)  # fmt: skip
def test_a_text_ends_before_a_stop_string_and_within_its_length(output: bytes, text: str) -> None:
    assert _write_answers({"q": output})[1] == {"q": text}


def test_a_long_prompt_is_read_in_parts_while_others_write() -> None:
    answers = {"a": b"short", "b" * 300: b"long", "c": b"third"}
    model, texts = _write_answers(answers)
    assert texts == {query: answer.decode() for query, answer in answers.items()}
    assert max(model.batch_sizes) <= STEP_TOKENS + 2


def test_a_prompt_with_another_beginning_is_still_read_completely() -> None:
    class JoiningModel(ByteModel):
        def tokenize(self, text: str) -> list[int] | None:
            if "odd" in text:
                text = text.replace("passage that", "passage, that")
            return list(text.encode())

    model = JoiningModel({"odd": b"fine", "even": b"too"})
    batcher = Batcher(model, slots=1, slot_tokens=1000)
    batcher.submit(1, "odd")
    batcher.submit(2, "even")
    texts = [finished.text for _ in range(30) if batcher.has_work for finished in batcher.run_step()]
    assert texts == ["fine", "too"]


def test_a_query_longer_than_a_slot_raises_an_error() -> None:
    batcher = Batcher(ByteModel({}), slots=1, slot_tokens=500)
    with pytest.raises(QueryTooLong, match=r"longer than \d+ tokens"):
        batcher.submit(1, "b" * 400)
    assert not batcher.has_work


def test_a_request_can_be_cancelled_while_it_waits_and_while_it_runs() -> None:
    model = ByteModel({"a": b"one", "b": b"two", "c": b"three"})
    batcher = Batcher(model, slots=1, slot_tokens=1000)
    for request_id, query in enumerate(model.answers):
        batcher.submit(request_id, query)
    assert batcher.fill_free_slots() == [0]
    batcher.run_step()
    assert batcher.fill_free_slots() == []
    for request_id in (0, 1, 7):
        batcher.cancel(request_id)
    finished = [text for _ in range(30) if batcher.has_work for text in batcher.run_step()]
    assert json.dumps([(text.request_id, text.text) for text in finished]) == '[[2, "three"]]'
