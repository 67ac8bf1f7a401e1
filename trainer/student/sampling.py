"""The student writes expansions of its own, many at once: what is served, and what preferences are learnt from.

A passage depends on the weights, the query and the seed alone, not on what is written beside it (up to rounding): every
passage has random numbers of its own. Of the next token only the `top_k` likeliest are drawn from; rows that have ended leave
the batch; the tokens that all prompts begin with are read once.
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
from querylift.plugin.expansion import STOP, clean_query, prompt
from querylift.trainer.candidates import Appender, Candidate, read
from querylift.trainer.settings import SampleSettings
from querylift.trainer.student.training_texts import ids

METHOD = "student"
LOG_PROBABILITY = "logprob"
"""Where a candidate's `params` hold the mean natural log-probability of its tokens, the end included."""
_LEFT_IN_BATCH = 0.75
"""Rows that have ended are taken out when fewer than this share is still written: taking out costs a copy."""


class Sample(NamedTuple):
    """One passage as the student wrote it, its tokens with the end, and the mean of their log-probabilities, untempered."""

    query_id: str
    query: str
    number: int
    text: str
    tokens: tuple[int, ...]
    logprob: float


class _Wanted(NamedTuple):
    query_id: str
    query: str
    number: int
    prompt_ids: list[int]


class _Token(NamedTuple):
    id: int
    log_prob: float


def sample(
    model: Any,
    tokenizer: Any,
    queries: Mapping[str, str],
    options: SampleSettings,
    *,
    seed: int,
    wanted: Callable[[str, int], bool] = lambda query_id, number: True,
) -> Iterator[Sample]:
    """`options.samples` passages for each query, one at temperature 0, shortest prompts first, a batch at a time.

    `wanted` says by query id and number which are still to be written.
    """
    stops = stop_ids(tokenizer)
    todo = [
        _Wanted(query_id, clean_query(query), number, ids(prompt(query), tokenizer))
        for query_id, query in queries.items()
        for number in range(_count(options))
        if wanted(query_id, number)
    ]
    todo.sort(key=lambda one: len(one.prompt_ids))
    for start in range(0, len(todo), options.batch_size):
        rows = todo[start : start + options.batch_size]
        draws = torch.stack([_draws(one, seed, options.max_tokens) for one in rows])
        with torch.no_grad():
            written = _write([one.prompt_ids for one in rows], model, options=options, stops=stops, draws=draws)
        for one, tokens in zip(rows, written, strict=True):
            yield _finished(one, tokens, tokenizer, stops=frozenset(stops.tolist()))


def missing(
    queries: Mapping[str, str], options: SampleSettings, *, out: Path, name: str, seed: int
) -> dict[tuple[str, int], Candidate]:
    """The candidates of model `name` that `out` lacks, by query id and number, without their texts."""
    with Appender(out):  # mends the end of the file
        known = {_asked(candidate).key for candidate in read(out)}
    asked = {
        (query_id, number): Candidate(query_id, clean_query(query), METHOD, name, "", _params(options, number, seed))
        for query_id, query in queries.items()
        for number in range(_count(options))
    }
    return {place: candidate for place, candidate in asked.items() if candidate.key not in known}


def write_samples(
    model: Any,
    tokenizer: Any,
    asked: Mapping[tuple[str, int], Candidate],
    options: SampleSettings,
    *,
    out: Path,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write what `missing` gave, and append it to `out` batch by batch."""
    queries = {query_id: candidate.query for (query_id, _), candidate in asked.items()}
    with Appender(out) as appender:
        drawn = sample(model, tokenizer, queries, options, seed=seed, wanted=lambda *place: place in asked)
        for done, one in enumerate(drawn, 1):
            new = asked[one.query_id, one.number]
            params = {**new.params, LOG_PROBABILITY: round(one.logprob, 4)}
            appender.write(replace(new, text=one.text, params=params).to_json())
            progress(done)


def stop_ids(tokenizer: Any) -> torch.Tensor:
    """The tokens that end a passage: those of `querylift.plugin.expansion.STOP`, and all whose text has a line's end in it, sorted.

    Raises SettingsError where an end is not one token.
    """
    special = [stop for stop in STOP if stop.startswith("<|")]
    found = {
        token for token in map(tokenizer.convert_tokens_to_ids, special) if token not in (None, tokenizer.unk_token_id)
    }
    if tokenizer.convert_tokens_to_ids(STOP[0]) not in found:
        raise SettingsError(f"the tokenizer has no token {STOP[0]}; name a model that speaks ChatML")
    every = tokenizer.batch_decode([[token] for token in range(len(tokenizer))], clean_up_tokenization_spaces=False)
    found |= {token for token, text in enumerate(every) if "\n" in text}
    return torch.tensor(sorted(found))


def _count(options: SampleSettings) -> int:
    return options.samples if options.temperature else 1


def _params(options: SampleSettings, number: int, seed: int) -> dict[str, Any]:
    drawn = {"top_k": options.top_k, "top_p": options.top_p} if options.temperature else {}
    return {
        "sample": number,
        "temperature": options.temperature,
        **drawn,
        "max_tokens": options.max_tokens,
        "seed": seed if options.temperature else 0,
    }


def _asked(candidate: Candidate) -> Candidate:
    """The candidate without what was only known once it was written."""
    return replace(candidate, params={k: v for k, v in candidate.params.items() if k != LOG_PROBABILITY})


def _draws(one: _Wanted, seed: int, count: int) -> torch.Tensor:
    """The passage's own random numbers, one a token, from 0 to 1."""
    digest = hashlib.sha256(f"{seed}\0{one.number}\0{one.query}".encode()).digest()
    return torch.rand(count, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))


def _finished(one: _Wanted, tokens: Sequence[_Token], tokenizer: Any, *, stops: Collection[int]) -> Sample:
    every = tuple(token.id for token in tokens)
    kept = every[:-1] if every[-1] in stops else every
    text = tokenizer.decode(kept, clean_up_tokenization_spaces=False)
    mean = sum(token.log_prob for token in tokens) / len(tokens)
    return Sample(one.query_id, one.query, one.number, text, every, mean)


# --- one batch


@dataclass(slots=True)
class _Batch:
    """Rows under way. `row` says which of the batch each was; `mask` covers all tokens so far; `position` is the next one's."""

    row: torch.Tensor
    cache: DynamicCache
    mask: torch.Tensor
    position: torch.Tensor
    logits: torch.Tensor

    def keep(self, alive: torch.Tensor) -> None:
        """Only the rows that are alive stay."""
        which = alive.nonzero()[:, 0]
        self.row, self.mask, self.position = self.row[which], self.mask[which], self.position[which]
        self.cache.batch_select_indices(which)


def _write(
    prompts: Sequence[list[int]], model: Any, *, options: SampleSettings, stops: torch.Tensor, draws: torch.Tensor
) -> list[list[_Token]]:
    """For each prompt the tokens that follow it, each with its log-probability; the end, if it came, is the last."""
    batch, draws, stops = _begin(prompts, model), draws.to(model.device), stops.to(model.device)
    written: list[list[_Token]] = [[] for _ in prompts]
    alive = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    for step in range(options.max_tokens):
        logits = batch.logits.float()
        chosen = _choose(logits, draws[batch.row, step], options)
        sure = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
        for row, *token in torch.stack([batch.row.double(), chosen.double(), sure.double()], dim=1)[alive].tolist():
            written[int(row)].append(_Token(int(token[0]), token[1]))
        alive = alive & ~torch.isin(chosen, stops)
        if not alive.any() or step + 1 == options.max_tokens:
            break
        if alive.float().mean() < _LEFT_IN_BATCH:
            batch.keep(alive)
            chosen, alive = chosen[alive], alive[alive]
        _step(batch, chosen, model)
    return written


def _begin(prompts: Sequence[list[int]], model: Any) -> _Batch:
    """Read the prompts: what they share once, then the rest, padded between the two so that all end together."""
    shared = _shared(prompts)
    longest = max(map(len, prompts))
    rest = torch.zeros(len(prompts), longest - shared, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask[:, :shared] = 1
    for row, prompt_ids in enumerate(prompts):
        length = len(prompt_ids) - shared
        rest[row, rest.size(1) - length :] = torch.tensor(prompt_ids[shared:])
        mask[row, longest - length :] = 1
    rest, mask = rest.to(model.device), mask.to(model.device)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    cache = _read_shared(prompts[0][:shared], len(prompts), model)
    logits = model(
        input_ids=rest,
        attention_mask=mask,
        position_ids=position[:, shared:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return _Batch(torch.arange(len(prompts), device=model.device), cache, mask, position[:, -1:] + 1, logits)


def _read_shared(prefix: list[int], rows: int, model: Any) -> DynamicCache:
    """The keys and values of `prefix`, for every row."""
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


def _shared(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with, less the last of the shortest: one is left to read in every row."""
    shortest = min(map(len, prompts)) - 1
    alike = (len(set(column)) == 1 for column in zip(*(p[:shortest] for p in prompts), strict=True))
    return next((place for place, same in enumerate(alike) if not same), shortest)


def _step(batch: _Batch, chosen: torch.Tensor, model: Any) -> None:
    batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(chosen), 1)], dim=1)
    batch.logits = model(
        input_ids=chosen[:, None],
        attention_mask=batch.mask,
        position_ids=batch.position,
        past_key_values=batch.cache,
        use_cache=True,
    ).logits[:, -1]
    batch.position = batch.position + 1


def _choose(logits: torch.Tensor, draws: torch.Tensor, options: SampleSettings) -> torch.Tensor:
    """The next token of every row: the likeliest at temperature 0, else where the row's draw falls among the `top_k`."""
    if options.temperature == 0:
        return logits.argmax(-1)
    values, places = logits.topk(min(options.top_k, logits.size(-1)), dim=-1)  # the likeliest first
    shares = (values / options.temperature).softmax(-1)
    before = shares.cumsum(-1) - shares
    reached = shares.masked_fill(before >= options.top_p, 0.0).cumsum(-1)
    fallen = (reached <= draws[:, None] * reached[:, -1:]).sum(-1, keepdim=True)
    return places.gather(1, fallen.clamp(max=places.size(1) - 1))[:, 0]
