"""Answers that the teacher itself samples for annotated pairs, in a file that only grows.

A file holds one JSON object a line: {"query_id", "doc_id", "number", "text"}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from querylift.index_tools.corpora.json_rows import get_json_id, get_json_text, read_jsonl
from querylift.plugin.errors import DataError
from querylift.trainer.candidates import JsonLinesAppender
from querylift.trainer.judge.adaptation.adaptation_config import AnswerSamplingOptions
from querylift.trainer.student.sampling import SampleRequest, find_end_ids, sample_requests
from querylift.trainer.student.training_texts import encode_text

AnswersByPair = dict[tuple[str, str], dict[int, str]]
"""The sampled answers of each pair of a query id and a document id, by their numbers."""


def sample_missing_answers(
    model: Any,
    tokenizer: Any,
    prompts: Mapping[tuple[str, str], str],
    options: AnswerSamplingOptions,
    *,
    path: Path,
    seed: int,
    progress: Callable[[int], None] = lambda count: None,
) -> AnswersByPair:
    """Append the answers that the file lacks, and return all of them. `prompts` has the prompt of each pair.

    The seed, the place of the prompt among `prompts` and the number of an answer decide its random numbers. `progress` is
    called with the number of answers so far, those of an earlier attempt included.
    """
    pair_keys = list(prompts)
    with JsonLinesAppender(path) as appender:  # removes an incomplete last line
        answers = read_answers(path)
        requests = [
            SampleRequest(str(position), prompt, number, encode_text(prompt, tokenizer))
            for position, (pair_key, prompt) in enumerate(prompts.items())
            for number in range(options.samples)
            if number not in answers.get(pair_key, {})
        ]
        samples = sample_requests(
            model,
            tokenizer,
            requests,
            options,
            max_tokens=options.max_tokens,
            seed=seed,
            stop_ids=find_end_ids(tokenizer),
        )
        earlier_count = len(prompts) * options.samples - len(requests)
        for count, sample in enumerate(samples, earlier_count + 1):
            query_id, doc_id = pair_keys[int(sample.query_id)]
            row = {"query_id": query_id, "doc_id": doc_id, "number": sample.number, "text": sample.text}
            appender.append(row)
            answers.setdefault((query_id, doc_id), {})[sample.number] = sample.text
            progress(count)
    return answers


def read_answers(path: Path) -> AnswersByPair:
    """Return the answers of a file. Raises DataError with path and line."""
    answers: AnswersByPair = {}
    for line_number, row in read_jsonl(path):
        query_id, doc_id = (get_json_id(path, line_number, row, names=(name,)) for name in ("query_id", "doc_id"))
        number = row.get("number")
        if not isinstance(number, int):
            raise DataError(path, line_number, f"'number' is {number!r}; remove the file to sample again")
        text = get_json_text(path, line_number, row, names=("text",))
        answers.setdefault((query_id, doc_id), {})[number] = text
    return answers
