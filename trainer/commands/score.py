"""`querylift train score`: measure what each candidate gains on the engine."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.index_tools.commands.options import (
    config_option,
    engine_option,
    load_settings_with_options,
    show_progress,
)
from querylift.plugin.errors import EngineError, SettingsError
from querylift.trainer.commands.reward_options import (
    cache_option,
    collect_reward_settings,
    describe_labels,
    index_option,
    mix_option,
    parse_mix,
    patience_option,
    read_labels_file,
    relevant_from_option,
    weights_option,
)
from querylift.trainer.commands.score_summary import format_summary, summarise_scoring

if TYPE_CHECKING:
    from querylift.index_tools.corpora.corpus import Corpus
    from querylift.index_tools.judging.grade_source import OpenedJudge
    from querylift.plugin.settings import Settings
    from querylift.trainer.candidates import Candidate
    from querylift.trainer.rewards.labels import Labels
    from querylift.trainer.rewards.rewarded_text import TextCutter
    from querylift.trainer.rewards.scoring import CandidatePool


@click.command()
@click.argument("candidates", type=click.Path(path_type=Path))
@engine_option
@click.option("--corpus", help="Corpus with the judgments. Its queries must be those of CANDIDATES.")
@click.option("--split", help="Split of the corpus [default: its only one].")
@click.option(
    "--labels",
    "labels_text",
    metavar="FILE|judge:FOLDER",
    help="TREC qrels file, or a judge that grades the first documents of all searches, in place of the corpus's judgments.",
)
@click.option(
    "--judge-field",
    "judge_fields",
    multiple=True,
    help="Field that the judge reads of a document. May be repeated [default: title and text].",
)
@click.option(
    "--same-model", is_flag=True, help="Allow a judge that is, or was taught by, the model of the candidates."
)
@relevant_from_option
@click.option("--prefix", default="", help="Prefix of the query ids in CANDIDATES, which the labels' ids lack.")
@index_option
@weights_option
@mix_option
@click.option(
    "--student",
    help="Student that will learn from the rewards: a folder, a FILE.gguf, or the name of a packaged model. "
    "Each teacher's text is cut to the 64 of its tokens that are served [default: no cut].",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="File of scored candidates to write, as JSON lines."
)
@cache_option
@patience_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_option
def score(candidates: Path, config: Path | None, out: Path, as_json: bool, **options: Any) -> None:
    """Score CANDIDATES on an index.

    The reward says how much better the engine ranks the relevant documents with the candidate than without it.
    The candidate is added to the search as the proxy would add it. When the engine stops answering, the command waits.
    It keeps every ranking, so that you can stop it and run it again.

    A judge grades the first ten documents of each query's own search and of all its candidates' rewrites. Any other
    document counts as not relevant.
    """
    from querylift.index_tools.judging.grade_source import open_recorded_judge
    from querylift.trainer.rewards.judge_labels import JUDGE_PREFIX

    labels_text: str | None = options["labels_text"]
    judge = None
    if labels_text is not None and labels_text.startswith(JUDGE_PREFIX):
        judge = open_recorded_judge(Path(labels_text.removeprefix(JUDGE_PREFIX)))
    settings = load_settings_with_options(config, engine=options["engine"])
    results = score_file(candidates, out, settings, judge, options)
    click.echo(json.dumps(results, indent=2) if as_json else format_summary(results))


def score_file(
    candidates: Path, out: Path, settings: Settings, judge: OpenedJudge | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Score a file of candidates, write the scored ones to `out` with a manifest, and return the manifest's results.

    `options` are those of the command by their names. With a judge, the labels are its grades.
    """
    from querylift.index_tools.engine import Engine
    from querylift.trainer.candidates import read_candidates
    from querylift.trainer.commands.output_checks import check_output_file
    from querylift.trainer.manifest import Manifest
    from querylift.trainer.rewards.engine_retry import EngineRetry, silence_client_log
    from querylift.trainer.rewards.ranking_cache import RankingCache
    from querylift.trainer.rewards.scored_candidates import write_scored_candidates
    from querylift.trainer.rewards.scoring import RewardOptions, score_candidates

    reward_options = RewardOptions(
        index=options["index"],
        weights=options["weights"],
        mix=parse_mix(options["mix"]),
        cut=_make_cutter(options["student"]),
    )
    inputs = {"candidates": candidates, **_list_student_inputs(options["student"])}
    if judge is None and options["labels_text"] is not None:
        inputs["labels"] = Path(options["labels_text"])
    check_output_file(out, inputs=inputs.values())
    all_candidates = list(read_candidates(candidates))
    if not all_candidates:
        raise SettingsError(f"{candidates} holds no candidate; write candidates there with `querylift train teach`")
    manifest_settings = {"student": options["student"], **collect_reward_settings(reward_options, settings)}
    if judge is None:
        labels = _load_labels(options, all_candidates)
        _check_labelled(candidates, all_candidates, labels)
        manifest_settings |= describe_labels(labels, options["labels_text"])
    else:
        _check_judged_candidates(all_candidates, judge, options)
        manifest_settings |= {"labels": f"judge:{judge.grader.name}", "judged_by": _describe_judge(judge, options)}
    manifest = Manifest(out, stage="score", inputs=inputs, settings=manifest_settings, is_folder=False)
    silence_client_log()
    retry = EngineRetry(options["patience"], say=lambda sentence: click.echo(sentence, err=True))
    cache_path = options["cache"] or out.with_name("rankings.sqlite")
    with manifest.record_run() as results:
        started_s = time.monotonic()
        with Engine(settings) as engine, RankingCache(cache_path) as cache:
            searching: dict[str, Any] = {
                "engine": engine,
                "settings": settings,
                "options": reward_options,
                "cache": cache,
                "retry": retry,
            }
            pooled = None
            if judge is not None:
                labels, pooled = _judge_candidates(all_candidates, judge, searching, options)
            with show_progress("scoring", len(all_candidates)) as advance:
                scoring = score_candidates(all_candidates, labels=labels, progress=advance, **searching)
        if scoring.index_changed or (pooled is not None and pooled.fingerprint != scoring.fingerprint):
            raise EngineError(
                f"the index {reward_options.index!r} changed while it was searched; score again once nothing writes to it"
            )
        write_scored_candidates(out, scoring.scored)
        results |= summarise_scoring(scoring, len(all_candidates), took_s=time.monotonic() - started_s)
        results |= {key: value for key, value in manifest_settings.items() if key == "judged_by"}
        if pooled is not None:
            graded_count = sum(map(len, labels.qrels.values()))
            results |= {"graded_pairs": graded_count, "labels_sha256": labels.compute_digest()}
            results |= {"searches": pooled.search_count + scoring.search_count, "from_cache": pooled.cache_hits}
    return dict(manifest.results)


def _make_cutter(student: str | None) -> TextCutter:
    """Return what cuts a text to the tokens that `student` may write. Without a student, nothing is cut."""
    if student is None:
        return str
    from querylift.trainer.student.training_texts import load_text_cutter

    return load_text_cutter(student)


def _list_student_inputs(student: str | None) -> dict[str, Path]:
    from querylift.trainer.student.model_bases import list_model_inputs

    return {} if student is None else list_model_inputs(student, name="student")


def _check_judged_candidates(candidates: Sequence[Candidate], judge: OpenedJudge, options: dict[str, Any]) -> None:
    """Raise SettingsError when the judge would judge its own candidates, or the corpus has other texts of the queries."""
    from querylift.index_tools.judging.model_names import check_different_models

    models = dict.fromkeys(candidate.model for candidate in candidates)
    check_different_models(models, judge.grader, allow_same=options["same_model"])
    if options["corpus"] is not None:
        _load_corpus_of_candidates(options, candidates)


def _judge_candidates(
    candidates: Sequence[Candidate], judge: OpenedJudge, searching: dict[str, Any], options: dict[str, Any]
) -> tuple[Labels, CandidatePool]:
    """Search for all candidates, and return the judge's grades of the first documents, and the pool of these."""
    from querylift.index_tools.judging.document_texts import DEFAULT_TEXT_FIELDS
    from querylift.trainer.rewards.judge_labels import make_judge_labels
    from querylift.trainer.rewards.scoring import pool_candidates

    with show_progress("searching", len(candidates)) as advance:
        pooled = pool_candidates(candidates, progress=advance, **searching)
    with show_progress("grading", pooled.pool.pair_count) as advance:
        labels = make_judge_labels(
            pooled,
            candidates,
            judge.grader,
            engine=searching["engine"],
            index=options["index"],
            relevant_from=options["relevant_from"],
            fields=options["judge_fields"] or DEFAULT_TEXT_FIELDS,
            progress=advance,
        )
    return labels, pooled


def _describe_judge(judge: OpenedJudge, options: dict[str, Any]) -> dict[str, Any]:
    """Return the names of the judge, and what decides its grades."""
    return {
        "judge": judge.grader.name,
        "teacher": judge.grader.teacher,
        "digest": judge.digest,
        "fields": list(options["judge_fields"]),
        "relevant_from": options["relevant_from"] or judge.grader.scale.relevant_from,
    }


def _check_labelled(path: Path, candidates: Sequence[Candidate], labels: Labels) -> None:
    """Raise SettingsError when no candidate is of a query with a relevant document."""
    if not labels.select_usable_qrels().keys() & {candidate.query_id for candidate in candidates}:
        raise SettingsError(
            f"no query of {path} (the first is {candidates[0].query_id!r}) has a relevant document in {labels.source}; "
            "name other labels, or give the prefix of the query ids with --prefix"
        )


def _load_labels(options: dict[str, Any], candidates: Sequence[Candidate]) -> Labels:
    """Load the judgments that score the candidates, of the corpus or of a file. Raises SettingsError when there are none."""
    from querylift.trainer.rewards.labels import load_split_labels

    path, prefix = options["labels_text"], options["prefix"]
    if options["corpus"] is None:
        if path is None:
            raise SettingsError(
                "no judgments are named; give --corpus with judgments, or --labels FILE or judge:FOLDER"
            )
        if options["split"] is not None:
            raise SettingsError(f"--split is {options['split']!r} without a corpus; give --corpus, or leave it out")
        return _read_labels(options, default_grade=1)
    corpus, split = _load_corpus_of_candidates(options, candidates)
    if path is not None:
        return _read_labels(options, default_grade=corpus.relevant_from)
    return load_split_labels(corpus, split, prefix=prefix)


def _read_labels(options: dict[str, Any], *, default_grade: int) -> Labels:
    return read_labels_file(
        Path(options["labels_text"]),
        relevant_from=options["relevant_from"],
        default_grade=default_grade,
        prefix=options["prefix"],
    )


def _load_corpus_of_candidates(options: dict[str, Any], candidates: Sequence[Candidate]) -> tuple[Corpus, str]:
    """Return the corpus and the split. Raises SettingsError when a candidate's query has another text there."""
    from querylift.index_tools.corpora.corpus_names import load_corpus
    from querylift.plugin.expansion import clean_query

    corpus = load_corpus(options["corpus"], relevant_from=options["relevant_from"])
    split = options["split"]
    if split is None and len(corpus.split_names) == 1:
        split = corpus.split_names[0]
    queries = {options["prefix"] + query_id: text for query_id, text in corpus.read_queries(split).items()}
    for candidate in candidates:
        text = queries.get(candidate.query_id, candidate.query)
        if clean_query(text).casefold() != clean_query(candidate.query).casefold():
            raise SettingsError(
                f"query {candidate.query_id!r} has another text in {options['corpus']} than in the candidates; "
                "name the candidates' corpus"
            )
    return corpus, split
