"""`querylift train pairs`: which passages are to be preferred over which."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.plugin.errors import SettingsError

if TYPE_CHECKING:
    from querylift.trainer.rewards.preferences import Preferences
    from querylift.trainer.rewards.scored_candidates import Scored


@click.command()
@click.argument("scored", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File of pairs to write, JSON lines.")
@click.option("--pool", "pools", multiple=True, help="Method to take candidates of; repeatable [default: all].")
@click.option(
    "--strategy", type=click.Choice(["best-worst", "all"]), default="best-worst", show_default=True, help="Which pairs."
)
@click.option("--margin", type=float, default=0.05, show_default=True, help="Least difference of the rewards.")
@click.option("--cap", type=int, default=4, show_default=True, help="Pairs kept of one query with --strategy all.")
@click.option(
    "--order", type=click.Choice(["margin", "random"]), default="margin", show_default=True, help="Which the cap keeps."
)
@click.option("--floor/--no-floor", default=True, show_default=True, help="Chosen: no worse than no expansion.")
@click.option("--min-gain", type=float, default=0.0, show_default=True, help="How much better the floor asks for.")
@click.option("--max-length-ratio", type=float, help="Longer passage's words over the shorter's [default: any].")
@click.option("--seed", type=int, default=0, show_default=True, help="Settles ties and the random order.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def pairs(scored: tuple[Path, ...], out: Path, as_json: bool, **options: Any) -> None:
    """Pair the candidates of SCORED files by reward: chosen and rejected, for DPO.

    Prints how many queries give a pair, and why the others do not.
    """
    from querylift.trainer.commands.output_checks import check_out
    from querylift.trainer.manifest import Manifest
    from querylift.trainer.rewards.preferences import PairOptions
    from querylift.trainer.rewards.preferences import pairs as made_of
    from querylift.trainer.rewards.scored_candidates import read_scored, write_rows

    wanted = PairOptions(**options)
    check_out(out, inputs=scored)
    inputs = {f"scored {number}": path for number, path in enumerate(scored, 1)}
    settings = {name: value for name, value in asdict(wanted).items() if name != "seed"}
    candidates = [one for path in scored for one in read_scored(path)]
    _refuse_nothing(candidates, scored, wanted.pools)
    manifest = Manifest(out, stage="pairs", inputs=inputs, settings=settings, seed=wanted.seed, folder=False)
    with manifest.running() as results:
        found = made_of(candidates, wanted)
        write_rows(out, [pair.to_json() for pair in found.pairs])
        results |= summary(found)
    click.echo(json.dumps(dict(manifest.results), indent=2) if as_json else _table(found))


def _refuse_nothing(candidates: Sequence[Scored], files: Sequence[Path], pools: Sequence[str]) -> None:
    """Raise SettingsError where there is nothing to pair: no candidates at all, or none of a pool."""
    names = ", ".join(map(str, files))
    if not candidates:
        raise SettingsError(f"there is no candidate in {names}; write candidates there with `querylift train score`")
    methods = sorted({one.candidate.method for one in candidates})
    for pool in pools:
        if pool not in methods:
            raise SettingsError(f"no candidate in {names} is of --pool {pool!r}; take any of {', '.join(methods)}")


def summary(found: Preferences) -> dict[str, Any]:
    """The counts, as JSON."""
    return {
        "queries": found.queries,
        "queries_with_a_pair": found.paired,
        "pairs": len(found.pairs),
        "without_a_pair": dict(found.reasons),
    }


def _table(found: Preferences) -> str:
    rows = [("queries with a pair", found.paired), *found.reasons.items(), ("queries", found.queries)]
    share = max(found.queries, 1)
    lines = [f"{name:<28} {count:>7} {count / share:>6.0%}" for name, count in rows]
    return "\n".join([*lines, f"{'pairs':<28} {len(found.pairs):>7}"])
