"""The build of a fast expander: read what is new in an index, then write the files that are served.

A build reads documents into parts. Each part is written as a whole. So a build that was stopped continues where it stopped,
and a later build encodes only the documents whose text has changed. The served files get their names at the end,
expander.json last: a proxy that serves from the folder keeps the files that it has open.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.document_parts import LOCK_FILE, DocumentParts
from querylift.index_tools.fast_expander.encoder_sources import EncoderSource, PreparedEncoder, find_encoder_source
from querylift.index_tools.fast_expander.incremental_read import IncrementalReader
from querylift.index_tools.fast_expander.index_reader import AnalysedField, find_analyzer, find_field
from querylift.index_tools.fast_expander.language_check import check_language
from querylift.index_tools.fast_expander.neighbours_form import write_neighbours_form
from querylift.index_tools.fast_expander.score_scale import measure_score_scale
from querylift.index_tools.fast_expander.surface_words import SurfaceWords
from querylift.index_tools.fast_expander.temperature import measure_temperature
from querylift.index_tools.fast_expander.terms_form import write_terms_form
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.expander_folder import (
    FORMAT_VERSION,
    RECORD_FILE,
    ExpanderRecord,
    ExpansionShape,
    FileFacts,
    SourceIndex,
    check_files,
    collect_file_facts,
    read_expander_record,
)
from querylift.plugin.fast_expander.mapped_files import list_text_files
from querylift.plugin.fast_expander.neighbours_weigher import IDS_NAME
from querylift.plugin.files import hold_lock
from querylift.plugin.generators.cluster_expander import SEARCH_FILE, fill_template, read_search_template
from querylift.plugin.settings import EncoderEndpointSettings

_PROBE_WORDS = 64
_TRIAL_QUERY = "a search to try it with"
_WORK_FOLDER_PREFIX = ".new-"
_DEFAULT_SHAPE = ExpansionShape()
_DEFAULT_ENDPOINT = EncoderEndpointSettings()
_WRITERS = {"neighbours": write_neighbours_form, "terms": write_terms_form}


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """The expander to build.

    `sources` are the fields of the document source to read. By default they are the fields that `field` is made of.
    `encoder` is a sentence-transformers folder, the name of a package, or the URL of an endpoint, which is asked as
    `endpoint` says; None stands for the packaged encoder. With `changed_field`, a later build
    asks only for documents whose value there is at least the largest value of the build before. `vector_search` is the
    search file of the form `cluster`. `measures_temperature` replaces the temperature of `shape` by one that suits the encoder.
    """

    index: str
    field: str
    folder: Path
    form: Literal["neighbours", "terms", "cluster"] = "neighbours"
    sources: tuple[str, ...] = ()
    encoder: str | Path | None = None
    endpoint: EncoderEndpointSettings = _DEFAULT_ENDPOINT
    changed_field: str = ""
    threads: int = 1
    shape: ExpansionShape = _DEFAULT_SHAPE
    measures_temperature: bool = False
    vector_search: Path | None = None


@dataclass(frozen=True, slots=True)
class BuildResult:
    """The record of the expander, and the counts of documents that `IncrementalReader` keeps."""

    record: ExpanderRecord
    encoded: int = 0
    without_text: int = 0
    unreadable: int = 0


def build_expander(
    engine: Engine, request: BuildRequest, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> BuildResult:
    """Build the expander, or bring it up to date. `progress` is called with the documents read, and with their total.

    Raises SettingsError when the folder holds another expander or the index cannot be read, EngineError, and MissingExtra.
    """
    field = find_field(engine, request.index, request.field, sources=request.sources)
    encoders = find_encoder_source(request.encoder, request.endpoint)
    if (request.form == "cluster") != (request.vector_search is not None):
        raise SettingsError("--form cluster and --vector-search FILE belong together; give both or neither")
    _create_folder(request.folder)
    with hold_lock(request.folder / LOCK_FILE, output=request.folder):
        _remove_leftovers(request.folder)
        if request.vector_search is not None:
            return _build_on_cluster(engine, request, field, encoders, request.vector_search)
        return _build_from_documents(engine, request, field, encoders, progress)


def _build_from_documents(
    engine: Engine,
    request: BuildRequest,
    field: AnalysedField,
    encoders: EncoderSource,
    progress: Callable[[int, int], None],
) -> BuildResult:
    """Build the form `neighbours` or `terms`."""
    parts = DocumentParts(request.folder, _create_plan(engine, request, field, encoders))
    with TemporaryDirectory(dir=request.folder, prefix=_WORK_FOLDER_PREFIX) as work:
        new_folder = Path(work)
        prepared = encoders.prepare(new_folder, request.folder)
        check_language(engine, request.index, field, prepared, threads=request.threads)
        reader = IncrementalReader(engine, request.index, field, parts, prepared.encoder, threads=request.threads)
        changed_until = _find_latest_change(engine, request)
        rows_before = parts.find_current_rows()
        query = _create_change_query(request) if rows_before is not None else None
        current_rows = reader.read_changes(progress, query=query, rows_before=rows_before if query else None)
        if not current_rows:
            raise SettingsError(
                f"no document of {request.index} has text in {', '.join(field.sources)}; name others with --text"
            )
        documents = sum(map(len, current_rows))
        if request.measures_temperature:
            shape = request.shape.model_copy(update={"temperature": measure_temperature(parts, current_rows)})
            request = replace(request, shape=shape)
        in_index = engine.count_documents(request.index)
        surfaces = SurfaceWords(engine, field.indices[0], field.name)
        score_scale = measure_score_scale(engine, request.index, field)
        reusable = _find_reusable_record(request, surfaces) if current_rows == rows_before else None
        if reusable is not None:
            source = _describe_source(
                engine,
                request,
                field,
                documents=documents,
                in_index=in_index,
                probe=dict(reusable.source.probe),
                changed_until=changed_until,
            )
            record = reusable.model_copy(update={"source": source, "score_scale": score_scale})
            _place_files(new_folder, request.folder, record, names=())
        else:
            current_rows = parts.compact(current_rows)
            served = _WRITERS[request.form](new_folder, parts, current_rows, surfaces)
            if not served.words:
                raise SettingsError(
                    f"{field.name} of {request.index} has no term to add to a query; name another field"
                )
            source = _describe_source(
                engine,
                request,
                field,
                documents=documents,
                in_index=in_index,
                probe=_create_probe(surfaces, served.words),
                changed_until=changed_until,
            )
            files = collect_file_facts(new_folder, [*prepared.files, *served.names])
            record = _create_record(
                request,
                source,
                prepared,
                width=served.width,
                terms=len(served.words),
                score_scale=score_scale,
                files=files,
            )
            _place_files(new_folder, request.folder, record, names=files)
            parts.write_current_rows(current_rows)
    return BuildResult(record, reader.encoded, reader.without_text, reader.unreadable)


def _build_on_cluster(
    engine: Engine, request: BuildRequest, field: AnalysedField, encoders: EncoderSource, search_path: Path
) -> BuildResult:
    """Build the form `cluster`: an encoder and a search. Documents and vectors stay in the engine."""
    search = read_search_template(search_path)
    with TemporaryDirectory(dir=request.folder, prefix=_WORK_FOLDER_PREFIX) as work:
        new_folder = Path(work)
        prepared = encoders.prepare(new_folder, request.folder)
        vector = prepared.encoder.encode_query(_TRIAL_QUERY)
        if not vector.any():  # an encoder of another language
            vector[0] = 1.0
        body = {**fill_template(search, _TRIAL_QUERY, vector.tolist()), "size": 1}
        # The engine tries the search now, so that its refusal is not met in serving.
        answer = engine.call("POST", f"/{request.index}/_search", body)
        if not answer["hits"]["hits"]:
            raise SettingsError(
                f"{search_path} finds nothing on {request.index}; name the vector field, and an encoder of its width"
            )
        (new_folder / SEARCH_FILE).write_text(json.dumps(search), encoding="utf-8")
        in_index = engine.count_documents(request.index)
        source = _describe_source(
            engine, request, field, documents=in_index, in_index=in_index, probe={}, changed_until=""
        )
        files = collect_file_facts(new_folder, [*prepared.files, SEARCH_FILE])
        record = _create_record(
            request,
            source,
            prepared,
            width=len(vector),
            terms=0,
            score_scale=measure_score_scale(engine, request.index, field),
            files=files,
        )
        _place_files(new_folder, request.folder, record, names=files)
    return BuildResult(record)


def _describe_source(
    engine: Engine,
    request: BuildRequest,
    field: AnalysedField,
    *,
    documents: int,
    in_index: int,
    probe: dict[str, tuple[str, ...]],
    changed_until: str | float,
) -> SourceIndex:
    return SourceIndex(
        index=request.index,
        indices=field.indices,
        aliases=field.aliases,
        uuids=field.uuids,
        field=field.name,
        documents=documents,
        in_index=in_index,
        engine=str(engine.read_info()),
        probe=probe,
        changed_field=request.changed_field,
        changed_until=changed_until,
    )


def _create_record(
    request: BuildRequest,
    source: SourceIndex,
    prepared: PreparedEncoder,
    *,
    width: int,
    terms: int,
    score_scale: float,
    files: dict[str, FileFacts],
) -> ExpanderRecord:
    return ExpanderRecord(
        version=FORMAT_VERSION,
        form=request.form,
        built=datetime.now(UTC).date().isoformat(),
        source=source,
        reading=prepared.reading,
        endpoint=prepared.endpoint,
        encoder=prepared.name,
        width=width,
        terms=terms,
        shape=request.shape,
        score_scale=score_scale,
        files=files,
    )


def _create_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error.strerror}; name another folder") from None


def _remove_leftovers(folder: Path) -> None:
    """Delete the unfinished files of a build that was killed."""
    for leftover in folder.glob(f"{_WORK_FOLDER_PREFIX}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _create_plan(
    engine: Engine, request: BuildRequest, field: AnalysedField, encoders: EncoderSource
) -> dict[str, Any]:
    """Return the facts that two builds must share to use the same parts: text fields, analyzer and encoder."""
    mappings = engine.call("GET", f"/{request.index}/_mapping")
    settings = engine.call("GET", f"/{request.index}/_settings")
    analyses = [
        [find_analyzer(mappings[index], field.name), settings[index]["settings"]["index"].get("analysis")]
        for index in field.indices
    ]
    # The names of the indices do not count: an alias may gain an index that is like the others.
    distinct_analyses = sorted({json.dumps(analysis, sort_keys=True) for analysis in analyses})
    return {
        "index": request.index,
        "field": field.name,
        "text": list(field.sources),
        **encoders.describe(),
        "analysis": hashlib.sha256(json.dumps(distinct_analyses).encode()).hexdigest()[:16],
    }


def _create_change_query(request: BuildRequest) -> dict[str, Any] | None:
    """Return the query for what has changed since the last build, and None when everything must be read."""
    if not request.changed_field:
        return None
    try:
        source = read_expander_record(request.folder).source
    except SettingsError:
        return None
    if source.changed_field != request.changed_field or source.changed_until == "":
        return None
    return {"range": {request.changed_field: {"gte": source.changed_until}}}


def _find_latest_change(engine: Engine, request: BuildRequest) -> str | float:
    """Return the largest value of the field of changes, and "" when the request names no such field."""
    if not request.changed_field:
        return ""
    body = {"size": 0, "aggs": {"until": {"max": {"field": request.changed_field}}}}
    maximum = engine.call("POST", f"/{request.index}/_search", body)["aggregations"]["until"]
    if maximum["value"] is None:
        raise SettingsError(
            f"--changed-since is {request.changed_field!r}: no document of {request.index} has a date or a number "
            "there; name another field"
        )
    return maximum.get("value_as_string", float(maximum["value"]))  # type: ignore[no-any-return]


def _create_probe(surfaces: SurfaceWords, words: Sequence[Any]) -> dict[str, tuple[str, ...]]:
    """Return a sample of the words of the index, each with the terms that the analyzer makes of it."""
    usable = [word.surface for word in words if word.surface]
    return surfaces.analyze_words(usable[:: max(1, len(usable) // _PROBE_WORDS)][:_PROBE_WORDS])


def _find_reusable_record(request: BuildRequest, surfaces: SurfaceWords) -> ExpanderRecord | None:
    """Return the record of the served files when they can stay, and None otherwise.

    They can stay when they are undamaged and of the requested form and shape, and when the analyzer makes the same terms.
    """
    try:
        record = read_expander_record(request.folder)
        check_files(request.folder, record)
    except SettingsError:
        return None
    if (record.form, record.shape) != (request.form, request.shape):
        return None
    if record.form == "neighbours" and not record.files.keys() >= {*list_text_files(IDS_NAME)}:
        return None  # an older Querylift wrote no ids
    probe = record.source.probe
    return record if surfaces.analyze_words(list(probe)) == probe else None


def _place_files(new_folder: Path, folder: Path, record: ExpanderRecord, *, names: Iterable[str]) -> None:
    """Write the record, and move it and the files `names` into `folder`."""
    try:
        (new_folder / RECORD_FILE).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for name in [*names, RECORD_FILE]:
            (new_folder / name).replace(folder / name)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error.strerror}; free space, and build again") from None
