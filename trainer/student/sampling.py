"""Sampling: the student writes expansions, many at once. They are what it would serve, and candidates for preferences.

A passage depends on the weights, the query and the seed, up to rounding. It does not depend on the other passages of its batch,
because every passage has random numbers of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import MAX_TOKENS, STOP_STRINGS, build_prompt, clean_query
from querylift.trainer.candidates import Candidate, JsonLinesAppender, read_candidates
from querylift.trainer.student.batch_generation import WrittenToken, generate_batch
from querylift.trainer.student.training_texts import encode_text
from querylift.trainer.training_config import SamplingOptions

STUDENT_METHOD = "student"
LOG_PROBABILITY_PARAM = "logprob"
"""The entry of a candidate's `params` with the mean natural log-probability of its tokens, the end token included."""


class Sample(NamedTuple):
    """A passage that the student wrote.

    `number` tells the samples of a query apart. `tokens` includes the end token. `logprob` is the mean log-probability of
    the tokens at temperature 1. `ended` is False when the passage reached the longest length before its end.
    """

    query_id: str
    query: str
    number: int
    text: str
    tokens: tuple[int, ...]
    logprob: float
    ended: bool


class SampleRequest(NamedTuple):
    """A text to sample after the tokens of a prompt.

    `query` and `number` decide the random numbers, so they tell all requests of one seed apart.
    """

    query_id: str
    query: str
    number: int
    prompt_ids: list[int]


def sample_passages(
    model: Any,
    tokenizer: Any,
    queries: Mapping[str, str],
    options: SamplingOptions,
    *,
    seed: int,
    is_wanted: Callable[[str, int], bool] = lambda query_id, number: True,
    write_prompt: Callable[[str], str] = build_prompt,
) -> Iterator[Sample]:
    """Yield `options.samples` passages of each query, or one at temperature 0. Short prompts come first.

    A passage has at most `MAX_TOKENS` tokens, because no more is served.
    `is_wanted(query_id, number)` selects the samples to write. `write_prompt` returns the prompt of a query.
    """
    requests = [
        SampleRequest(query_id, clean_query(query), number, encode_text(write_prompt(query), tokenizer))
        for query_id, query in queries.items()
        for number in range(count_samples(options))
        if is_wanted(query_id, number)
    ]
    stop_ids = find_stop_ids(tokenizer)
    yield from sample_requests(model, tokenizer, requests, options, max_tokens=MAX_TOKENS, seed=seed, stop_ids=stop_ids)


def sample_requests(
    model: Any,
    tokenizer: Any,
    requests: Sequence[SampleRequest],
    options: SamplingOptions,
    *,
    max_tokens: int,
    seed: int,
    stop_ids: torch.Tensor,
) -> Iterator[Sample]:
    """Yield one text for each request. A token of `stop_ids` ends it, or its length. Short prompts come first."""
    by_length = sorted(requests, key=lambda request: len(request.prompt_ids))
    for start in range(0, len(by_length), options.batch_size):
        rows = by_length[start : start + options.batch_size]
        draws = torch.stack([_draw_random_numbers(request, seed, max_tokens) for request in rows])
        prompts = [request.prompt_ids for request in rows]
        with torch.no_grad():
            passages = generate_batch(prompts, model, options=options, stop_ids=stop_ids, draws=draws)
        for request, tokens in zip(rows, passages, strict=True):
            yield make_sample(request, tokens, tokenizer, stop_ids=frozenset(stop_ids.tolist()))


def find_missing_samples(
    queries: Mapping[str, str], options: SamplingOptions, *, out: Path, name: str, seed: int
) -> dict[tuple[str, int], Candidate]:
    """Return the candidates of the model `name` that the file `out` lacks, by query id and sample number, without text.

    An incomplete last line of `out` is removed.
    """
    with JsonLinesAppender(out):  # removes the incomplete line
        request_keys = {_make_request(candidate).request_key for candidate in read_candidates(out)}
    requests = {
        (query_id, number): Candidate(
            query_id, clean_query(query), STUDENT_METHOD, name, "", _make_params(options, number, seed)
        )
        for query_id, query in queries.items()
        for number in range(count_samples(options))
    }
    return {key: request for key, request in requests.items() if request.request_key not in request_keys}


def write_samples(
    model: Any,
    tokenizer: Any,
    requests: Mapping[tuple[str, int], Candidate],
    options: SamplingOptions,
    *,
    out: Path,
    seed: int,
    write_prompt: Callable[[str], str] = build_prompt,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Sample the candidates of `find_missing_samples`, and append them to `out`.

    `write_prompt` returns the prompt of a query. `progress` is called with the number of samples so far.
    """
    queries = {query_id: request.query for (query_id, _), request in requests.items()}
    with JsonLinesAppender(out) as appender:
        samples = sample_passages(
            model,
            tokenizer,
            queries,
            options,
            seed=seed,
            is_wanted=lambda *key: key in requests,
            write_prompt=write_prompt,
        )
        for count, sample in enumerate(samples, 1):
            request = requests[sample.query_id, sample.number]
            params = {**request.params, LOG_PROBABILITY_PARAM: round(sample.logprob, 4)}
            appender.append(replace(request, text=sample.text, params=params, ended=sample.ended).to_json())
            progress(count)


def count_passages(out: Path) -> tuple[int, int]:
    """Return how many passages the file `out` holds, and how many of them did not end."""
    ends = [candidate.ended for candidate in read_candidates(out)]
    return len(ends), ends.count(False)


def find_stop_ids(tokenizer: Any) -> torch.Tensor:
    """Return the sorted ids of the tokens that end a passage.

    They are those of `find_end_ids` and all tokens with a line break in their text. Raises SettingsError when the tokenizer
    lacks the end token of ChatML.
    """
    texts = tokenizer.batch_decode(
        [[token_id] for token_id in range(len(tokenizer))], clean_up_tokenization_spaces=False
    )
    line_break_ids = {token_id for token_id, text in enumerate(texts) if "\n" in text}
    return torch.tensor(sorted(line_break_ids.union(find_end_ids(tokenizer).tolist())))


def find_end_ids(tokenizer: Any) -> torch.Tensor:
    """Return the sorted ids of the special tokens of `STOP_STRINGS`, which end any text that a model writes.

    Raises SettingsError when the tokenizer lacks the end token of ChatML.
    """
    special_tokens = [stop for stop in STOP_STRINGS if stop.startswith("<|")]
    stop_ids = {
        token_id
        for token_id in map(tokenizer.convert_tokens_to_ids, special_tokens)
        if token_id not in (None, tokenizer.unk_token_id)
    }
    if tokenizer.convert_tokens_to_ids(STOP_STRINGS[0]) not in stop_ids:
        raise SettingsError(f"the tokenizer has no token {STOP_STRINGS[0]}; name a model that speaks ChatML")
    return torch.tensor(sorted(stop_ids))


def count_samples(options: SamplingOptions) -> int:
    """Return the number of passages of each query."""
    return options.samples if options.temperature else 1


def _make_params(options: SamplingOptions, number: int, seed: int) -> dict[str, Any]:
    draw_options = {"top_k": options.top_k, "top_p": options.top_p} if options.temperature else {}
    return {
        "sample": number,
        "temperature": options.temperature,
        **draw_options,
        "max_tokens": MAX_TOKENS,
        "seed": seed if options.temperature else 0,
    }


def _make_request(candidate: Candidate) -> Candidate:
    """Return the candidate as it was requested, without its log-probability."""
    params = {name: value for name, value in candidate.params.items() if name != LOG_PROBABILITY_PARAM}
    return replace(candidate, params=params)


def _draw_random_numbers(request: SampleRequest, seed: int, count: int) -> torch.Tensor:
    """Return the passage's own random numbers from 0 to 1, one for each token."""
    digest = hashlib.sha256(f"{seed}\0{request.number}\0{request.query}".encode()).digest()
    return torch.rand(count, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))


def make_sample(
    request: SampleRequest, tokens: Sequence[WrittenToken], tokenizer: Any, *, stop_ids: Collection[int]
) -> Sample:
    """Return the passage that the tokens make. Without a token of `stop_ids` at its end, it did not end."""
    token_ids = tuple(token.id for token in tokens)
    ended = token_ids[-1] in stop_ids
    text = tokenizer.decode(token_ids[:-1] if ended else token_ids, clean_up_tokenization_spaces=False)
    if not ended:
        text = text.rstrip("\ufffd")  # the last token may hold only a part of a sign
    mean_log_prob = sum(token.log_prob for token in tokens) / len(tokens)
    return Sample(request.query_id, request.query, request.number, text, token_ids, mean_log_prob, ended)
