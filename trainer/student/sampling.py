"""Sampling: the student writes expansions, many at once. They are what it would serve, and candidates for preferences.

A passage depends on the weights, the query and the seed, up to rounding. It does not depend on the other passages of its batch,
because every passage has random numbers of its own. Each token is drawn among the `top_k` likeliest. Passages that have ended
leave the batch. The tokens that all prompts begin with are computed once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import STOP_STRINGS, build_prompt, clean_query
from querylift.trainer.candidates import Candidate, JsonLinesAppender, read_candidates
from querylift.trainer.settings import SamplingOptions
from querylift.trainer.student.training_texts import encode_text

STUDENT_METHOD = "student"
LOG_PROBABILITY_PARAM = "logprob"
"""The entry of a candidate's `params` with the mean natural log-probability of its tokens, the end token included."""
_MIN_UNFINISHED_SHARE = 0.75
"""Finished passages are removed from the batch below this share of unfinished ones. Removing them costs a copy."""


class Sample(NamedTuple):
    """A passage that the student wrote.

    `number` tells the samples of a query apart. `tokens` includes the end token. `logprob` is the mean log-probability of
    the tokens at temperature 1.
    """

    query_id: str
    query: str
    number: int
    text: str
    tokens: tuple[int, ...]
    logprob: float


class _SampleRequest(NamedTuple):
    query_id: str
    query: str
    number: int
    prompt_ids: list[int]


class _WrittenToken(NamedTuple):
    id: int
    log_prob: float


def sample_passages(
    model: Any,
    tokenizer: Any,
    queries: Mapping[str, str],
    options: SamplingOptions,
    *,
    seed: int,
    is_wanted: Callable[[str, int], bool] = lambda query_id, number: True,
) -> Iterator[Sample]:
    """Yield `options.samples` passages of each query, or one at temperature 0. Short prompts come first.

    `is_wanted(query_id, number)` selects the samples to write.
    """
    stop_ids = find_stop_ids(tokenizer)
    requests = [
        _SampleRequest(query_id, clean_query(query), number, encode_text(build_prompt(query), tokenizer))
        for query_id, query in queries.items()
        for number in range(_count_samples(options))
        if is_wanted(query_id, number)
    ]
    requests.sort(key=lambda request: len(request.prompt_ids))
    for start in range(0, len(requests), options.batch_size):
        rows = requests[start : start + options.batch_size]
        draws = torch.stack([_draw_random_numbers(request, seed, options.max_tokens) for request in rows])
        prompts = [request.prompt_ids for request in rows]
        with torch.no_grad():
            passages = _write_batch(prompts, model, options=options, stop_ids=stop_ids, draws=draws)
        for request, tokens in zip(rows, passages, strict=True):
            yield _make_sample(request, tokens, tokenizer, stop_ids=frozenset(stop_ids.tolist()))


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
        for number in range(_count_samples(options))
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
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Sample the candidates of `find_missing_samples`, and append them to `out`.

    `progress` is called with the number of samples so far.
    """
    queries = {query_id: request.query for (query_id, _), request in requests.items()}
    with JsonLinesAppender(out) as appender:
        samples = sample_passages(model, tokenizer, queries, options, seed=seed, is_wanted=lambda *key: key in requests)
        for count, sample in enumerate(samples, 1):
            request = requests[sample.query_id, sample.number]
            params = {**request.params, LOG_PROBABILITY_PARAM: round(sample.logprob, 4)}
            appender.append(replace(request, text=sample.text, params=params).to_json())
            progress(count)


def find_stop_ids(tokenizer: Any) -> torch.Tensor:
    """Return the sorted ids of the tokens that end a passage.

    They are the special tokens of `querylift.plugin.expansion.STOP` and all tokens with a line break in their text. Raises
    SettingsError when the tokenizer lacks the end token of ChatML.
    """
    special_tokens = [stop for stop in STOP_STRINGS if stop.startswith("<|")]
    stop_ids = {
        token_id
        for token_id in map(tokenizer.convert_tokens_to_ids, special_tokens)
        if token_id not in (None, tokenizer.unk_token_id)
    }
    if tokenizer.convert_tokens_to_ids(STOP_STRINGS[0]) not in stop_ids:
        raise SettingsError(f"the tokenizer has no token {STOP_STRINGS[0]}; name a model that speaks ChatML")
    texts = tokenizer.batch_decode(
        [[token_id] for token_id in range(len(tokenizer))], clean_up_tokenization_spaces=False
    )
    stop_ids |= {token_id for token_id, text in enumerate(texts) if "\n" in text}
    return torch.tensor(sorted(stop_ids))


def _count_samples(options: SamplingOptions) -> int:
    return options.samples if options.temperature else 1


def _make_params(options: SamplingOptions, number: int, seed: int) -> dict[str, Any]:
    draw_options = {"top_k": options.top_k, "top_p": options.top_p} if options.temperature else {}
    return {
        "sample": number,
        "temperature": options.temperature,
        **draw_options,
        "max_tokens": options.max_tokens,
        "seed": seed if options.temperature else 0,
    }


def _make_request(candidate: Candidate) -> Candidate:
    """Return the candidate as it was requested, without its log-probability."""
    params = {name: value for name, value in candidate.params.items() if name != LOG_PROBABILITY_PARAM}
    return replace(candidate, params=params)


def _draw_random_numbers(request: _SampleRequest, seed: int, count: int) -> torch.Tensor:
    """Return the passage's own random numbers from 0 to 1, one for each token."""
    digest = hashlib.sha256(f"{seed}\0{request.number}\0{request.query}".encode()).digest()
    return torch.rand(count, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))


def _make_sample(
    request: _SampleRequest, tokens: Sequence[_WrittenToken], tokenizer: Any, *, stop_ids: Collection[int]
) -> Sample:
    token_ids = tuple(token.id for token in tokens)
    text_ids = token_ids[:-1] if token_ids[-1] in stop_ids else token_ids
    text = tokenizer.decode(text_ids, clean_up_tokenization_spaces=False)
    mean_log_prob = sum(token.log_prob for token in tokens) / len(tokens)
    return Sample(request.query_id, request.query, request.number, text, token_ids, mean_log_prob)


# --- one batch


@dataclass(slots=True)
class _Batch:
    """The unfinished passages of a batch, one in each row.

    `row` holds their rows in the full batch. `mask` covers all tokens so far. `position` and `logits` are those of the next
    token.
    """

    row: torch.Tensor
    cache: DynamicCache
    mask: torch.Tensor
    position: torch.Tensor
    logits: torch.Tensor

    def keep_rows(self, is_unfinished: torch.Tensor) -> None:
        """Remove the finished passages."""
        rows = is_unfinished.nonzero()[:, 0]
        self.row, self.mask, self.position = self.row[rows], self.mask[rows], self.position[rows]
        self.cache.batch_select_indices(rows)


def _write_batch(
    prompts: Sequence[list[int]], model: Any, *, options: SamplingOptions, stop_ids: torch.Tensor, draws: torch.Tensor
) -> list[list[_WrittenToken]]:
    """Return the tokens after each prompt. The end token is the last, unless the passage reached `max_tokens`."""
    batch, draws, stop_ids = _read_prompts(prompts, model), draws.to(model.device), stop_ids.to(model.device)
    passages: list[list[_WrittenToken]] = [[] for _ in prompts]
    is_unfinished = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    for step in range(options.max_tokens):
        logits = batch.logits.float()
        token_ids = _choose_tokens(logits, draws[batch.row, step], options)
        log_probs = logits.gather(1, token_ids[:, None])[:, 0] - logits.logsumexp(-1)
        columns = torch.stack([batch.row.double(), token_ids.double(), log_probs.double()], dim=1)
        for row, token_id, log_prob in columns[is_unfinished].tolist():
            passages[int(row)].append(_WrittenToken(int(token_id), log_prob))
        is_unfinished = is_unfinished & ~torch.isin(token_ids, stop_ids)
        if not is_unfinished.any() or step + 1 == options.max_tokens:
            break
        if is_unfinished.float().mean() < _MIN_UNFINISHED_SHARE:
            batch.keep_rows(is_unfinished)
            token_ids, is_unfinished = token_ids[is_unfinished], is_unfinished[is_unfinished]
        _append_tokens(batch, token_ids, model)
    return passages


def _read_prompts(prompts: Sequence[list[int]], model: Any) -> _Batch:
    """Compute the state after the prompts. The tokens that all share are computed once.

    Padding stands between the shared tokens and the rest, so that all prompts end in the same column.
    """
    shared = _count_shared_tokens(prompts)
    longest = max(map(len, prompts))
    suffixes = torch.zeros(len(prompts), longest - shared, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask[:, :shared] = 1
    for row, prompt_ids in enumerate(prompts):
        length = len(prompt_ids) - shared
        suffixes[row, suffixes.size(1) - length :] = torch.tensor(prompt_ids[shared:])
        mask[row, longest - length :] = 1
    suffixes, mask = suffixes.to(model.device), mask.to(model.device)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    cache = _read_shared_prefix(prompts[0][:shared], len(prompts), model)
    logits = model(
        input_ids=suffixes,
        attention_mask=mask,
        position_ids=position[:, shared:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return _Batch(torch.arange(len(prompts), device=model.device), cache, mask, position[:, -1:] + 1, logits)


def _read_shared_prefix(prefix: list[int], rows: int, model: Any) -> DynamicCache:
    """Return the keys and values of `prefix`, repeated for every row."""
    cache = DynamicCache()
    if prefix:
        model(
            input_ids=torch.tensor([prefix], device=model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        for layer in cache.layers:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
    return cache


def _count_shared_tokens(prompts: Sequence[list[int]]) -> int:
    """Count the tokens that all prompts begin with. At least one token of every prompt is not counted."""
    shortest = min(map(len, prompts)) - 1
    is_same = (len(set(column)) == 1 for column in zip(*(prompt[:shortest] for prompt in prompts), strict=True))
    return next((position for position, same in enumerate(is_same) if not same), shortest)


def _append_tokens(batch: _Batch, token_ids: torch.Tensor, model: Any) -> None:
    """Add one token to every passage of the batch, and compute the logits of the next."""
    batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(token_ids), 1)], dim=1)
    batch.logits = model(
        input_ids=token_ids[:, None],
        attention_mask=batch.mask,
        position_ids=batch.position,
        past_key_values=batch.cache,
        use_cache=True,
    ).logits[:, -1]
    batch.position = batch.position + 1


def _choose_tokens(logits: torch.Tensor, draws: torch.Tensor, options: SamplingOptions) -> torch.Tensor:
    """Return the next token of every row: the likeliest at temperature 0, else one of the `top_k` and `top_p` likeliest.

    `draws` holds a random number from 0 to 1 for every row. It decides by inverse transform sampling.
    """
    if options.temperature == 0:
        return logits.argmax(-1)
    values, token_ids = logits.topk(min(options.top_k, logits.size(-1)), dim=-1)  # the likeliest first
    probabilities = (values / options.temperature).softmax(-1)
    preceding = probabilities.cumsum(-1) - probabilities
    cumulative = probabilities.masked_fill(preceding >= options.top_p, 0.0).cumsum(-1)
    choice = (cumulative <= draws[:, None] * cumulative[:, -1:]).sum(-1, keepdim=True)
    return token_ids.gather(1, choice.clamp(max=token_ids.size(1) - 1))[:, 0]
