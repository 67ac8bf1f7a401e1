"""`querylift train pairs`: pair better and worse passages of the same query."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.plugin.errors import SettingsError

if TYPE_CHECKING:
    from querylift.trainer.rewards.pairs import PairingResult
    from querylift.trainer.rewards.scored_candidates import ScoredCandidate


@click.command()
@click.argument("scored", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File of pairs to write, as JSON lines.")
@click.option(
    "--pool",
    "pools",
    multiple=True,
    help="Use only candidates of this method; repeatable [default: all methods].",
)
@click.option(
    "--strategy",
    type=click.Choice(["best-worst", "all"]),
    default="best-worst",
    show_default=True,
    help="Pair only the best with the worst candidate of a query, or all of them.",
)
@click.option(
    "--margin", type=float, default=0.05, show_default=True, help="Smallest difference between the two rewards."
)
@click.option(
    "--cap", type=int, default=4, show_default=True, help="Largest number of pairs per query, with --strategy all."
)
@click.option(
    "--order",
    type=click.Choice(["margin", "words", "random"]),
    default="margin",
    show_default=True,
    help="Pairs to keep when a query has more than --cap: those with the largest margins, those that also differ most in "
    "words, or random ones. Unless it is random, a candidate is used a second time only when all others have been used.",
)
@click.option(
    "--floor/--no-floor",
    default=True,
    show_default=True,
    help="Choose only passages that are no worse than no expansion.",
)
@click.option(
    "--min-gain",
    type=float,
    default=0.0,
    show_default=True,
    help="Smallest gain of a chosen passage over no expansion. Needs --floor.",
)
@click.option(
    "--max-length-ratio",
    type=float,
    help="Largest ratio of the longer passage's words to the shorter one's [default: any].",
)
@click.option(
    "--standardize",
    is_flag=True,
    help="Divide each reward by the standard deviation within the queries of its index, so that several indices count alike. "
    "--margin and --min-gain are then in standard deviations.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed for the random order and for equal rewards.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def pairs(scored: tuple[Path, ...], out: Path, as_json: bool, **options: Any) -> None:
    """Make pairs of a chosen and a rejected passage from the candidates in SCORED, by their rewards.

    Prints how many queries give a pair, and why the others do not.
    """
    from querylift.trainer.commands.output_checks import check_output_file
    from querylift.trainer.manifest import Manifest
    from querylift.trainer.rewards.pairs import PairOptions, make_pairs
    from querylift.trainer.rewards.scored_candidates import read_scored_candidates, write_json_lines

    pair_options = PairOptions(**options)
    check_output_file(out, inputs=scored)
    inputs = {f"scored {number}": path for number, path in enumerate(scored, 1)}
    settings = {name: value for name, value in asdict(pair_options).items() if name != "seed"}
    candidates = [candidate for path in scored for candidate in read_scored_candidates(path)]
    _check_candidates(candidates, scored, pair_options.pools)
    manifest = Manifest(out, stage="pairs", inputs=inputs, settings=settings, seed=pair_options.seed, is_folder=False)
    with manifest.record_run() as results:
        pairing = make_pairs(candidates, pair_options)
        write_json_lines(out, [pair.to_json() for pair in pairing.pairs])
        results |= _count_pairs(pairing)
    click.echo(json.dumps(dict(manifest.results), indent=2) if as_json else _format_table(pairing))


def _check_candidates(candidates: Sequence[ScoredCandidate], files: Sequence[Path], pools: Sequence[str]) -> None:
    """Raise SettingsError when there are no candidates, or none of one of the `pools`."""
    names = ", ".join(map(str, files))
    if not candidates:
        raise SettingsError(f"{names} holds no candidate; write candidates there with `querylift train score`")
    methods = sorted({scored.candidate.method for scored in candidates})
    for pool in pools:
        if pool not in methods:
            raise SettingsError(f"no candidate in {names} is of --pool {pool!r}; take any of {', '.join(methods)}")


def _count_pairs(pairing: PairingResult) -> dict[str, Any]:
    return {
        "queries": pairing.queries,
        "queries_with_a_pair": pairing.queries_with_pair,
        "pairs": len(pairing.pairs),
        "without_end": _count_texts_without_end(pairing),
        "without_a_pair": dict(pairing.reasons),
    }


def _count_texts_without_end(pairing: PairingResult) -> int:
    """Return how many passages of the pairs did not end. DPO does not teach their end."""
    return sum((not pair.chosen_ended) + (not pair.rejected_ended) for pair in pairing.pairs)


def _format_table(pairing: PairingResult) -> str:
    """Return the number of queries with a pair, and for every reason the number without one."""
    rows = [("queries with a pair", pairing.queries_with_pair), *pairing.reasons.items(), ("queries", pairing.queries)]
    total = max(pairing.queries, 1)
    lines = [f"{name:<28} {count:>7} {count / total:>6.0%}" for name, count in rows]
    texts = f"{'texts that did not end':<28} {_count_texts_without_end(pairing):>7}"
    return "\n".join([*lines, f"{'pairs':<28} {len(pairing.pairs):>7}", texts])
