"""The build of a fast expander: read what is new in an index, then write the files that are served.

A build reads documents into parts. Each part is written as a whole. So a build that was stopped continues where it stopped,
and a later build encodes only the documents whose text has changed. The served files get their names at the end,
expander.json last: a proxy that serves from the folder keeps the files that it has open.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.document_parts import LOCK_FILE, DocumentParts
from querylift.index_tools.fast_expander.document_selection import EVERYTHING, DocumentSelection
from querylift.index_tools.fast_expander.encoder_sources import EncoderSource, PreparedEncoder, find_encoder_source
from querylift.index_tools.fast_expander.incremental_read import IncrementalReader
from querylift.index_tools.fast_expander.index_fields import AnalysedFields, find_fields
from querylift.index_tools.fast_expander.language_check import check_language
from querylift.index_tools.fast_expander.neighbours_form import ServedFiles
from querylift.index_tools.fast_expander.score_scale import measure_score_scale
from querylift.index_tools.fast_expander.served_folder import (
    WORK_FOLDER_PREFIX,
    create_folder,
    open_surface_words,
    place_files,
    remove_leftovers,
    write_form,
)
from querylift.index_tools.fast_expander.source_record import (
    compute_analysis_digest,
    create_change_query,
    create_field_groups,
    describe_source,
    find_latest_change,
    is_analyzed_as_before,
)
from querylift.index_tools.fast_expander.surface_words import SurfaceWords
from querylift.index_tools.fast_expander.temperature import measure_temperature
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.expander_folder import (
    FORMAT_VERSION,
    ExpanderRecord,
    ExpansionShape,
    FieldGroup,
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
from querylift.plugin.settings_tables.generators import EncoderEndpointSettings

_TRIAL_QUERY = "a search to try it with"
_DEFAULT_SHAPE = ExpansionShape()
_DEFAULT_ENDPOINT = EncoderEndpointSettings()


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """The expander to build.

    `fields` are one or several analysed fields. `sources` are the fields of the document source to read. By default they
    are the fields that `fields` are made of. `encoder` is a sentence-transformers folder, the name of a package, or the URL
    of an endpoint, which is asked as `endpoint` says; None stands for the packaged encoder. With `changed_field`, a later
    build asks only for documents whose value there is at least the largest value of the build before. `vector_search` is
    the search file of the form `cluster`. `measures_temperature` replaces the temperature of `shape` by one that suits the
    encoder. `selection` says which documents are read.
    """

    index: str
    fields: str | tuple[str, ...]
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
    selection: DocumentSelection = EVERYTHING


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
    names = (request.fields,) if isinstance(request.fields, str) else request.fields
    fields = find_fields(engine, request.index, names, sources=request.sources)
    _check_form(request, fields)
    encoders = find_encoder_source(request.encoder, request.endpoint)
    create_folder(request.folder)
    with hold_lock(request.folder / LOCK_FILE, output=request.folder):
        remove_leftovers(request.folder)
        if request.vector_search is not None:
            return _build_on_cluster(engine, request, fields, encoders, request.vector_search)
        return _build_from_documents(engine, request, fields, encoders, progress)


def _build_from_documents(
    engine: Engine,
    request: BuildRequest,
    fields: AnalysedFields,
    encoders: EncoderSource,
    progress: Callable[[int, int], None],
) -> BuildResult:
    """Build the form `neighbours` or `terms`."""
    parts = DocumentParts(request.folder, _create_plan(engine, request, fields, encoders))
    with TemporaryDirectory(dir=request.folder, prefix=WORK_FOLDER_PREFIX) as work:
        new_folder = Path(work)
        prepared = encoders.prepare(new_folder, request.folder)
        check_language(engine, request.index, fields.sources, prepared, threads=request.threads)
        reader = IncrementalReader(
            engine, request.index, fields, parts, prepared.encoder, threads=request.threads, selection=request.selection
        )
        changed_until = find_latest_change(engine, request.index, request.changed_field)
        rows_before = parts.find_current_rows()
        query = create_change_query(request.folder, request.changed_field) if rows_before is not None else None
        current_rows = reader.read_changes(progress, query=query, rows_before=rows_before if query else None)
        if not current_rows:
            raise SettingsError(
                f"no document of {request.index} has text in {', '.join(fields.sources)}; name others with --text"
            )
        if request.measures_temperature and not request.selection.slice_name:
            shape = request.shape.model_copy(update={"temperature": measure_temperature(parts, current_rows)})
            request = replace(request, shape=shape)
        surfaces = open_surface_words(engine, fields)
        score_scale = measure_score_scale(engine, request.index, fields)

        def describe_groups(groups: Sequence[FieldGroup]) -> SourceIndex:
            return describe_source(
                engine,
                request.index,
                fields,
                groups,
                documents=sum(map(len, current_rows)),
                in_index=engine.count_documents(request.index),
                changed_field=request.changed_field,
                changed_until=changed_until,
                selection=request.selection,
            )

        reusable = _find_reusable_record(request, surfaces) if current_rows == rows_before else None
        if reusable is not None:
            source = describe_groups(reusable.source.list_groups(reusable.terms))
            record = reusable.model_copy(update={"source": source, "score_scale": score_scale})
            place_files(new_folder, request.folder, record, names=())
        else:
            current_rows = parts.compact(current_rows)
            served = (
                ServedFiles((), [()] * len(fields.groups), width=0)  # The merge of all slices writes them.
                if request.selection.slice_name
                else write_form(request.form, new_folder, parts, current_rows, surfaces, fields)
            )
            source = describe_groups(create_field_groups(fields, surfaces, served.words))
            files = collect_file_facts(new_folder, [*prepared.files, *served.names])
            record = _create_record(
                request,
                source,
                prepared,
                width=served.width,
                terms=sum(map(len, served.words)),
                score_scale=score_scale,
                files=files,
            )
            place_files(new_folder, request.folder, record, names=files)
            parts.write_current_rows(current_rows)
    return BuildResult(record, reader.encoded, reader.without_text, reader.unreadable)


def _check_form(request: BuildRequest, fields: AnalysedFields) -> None:
    """Raise SettingsError when the form does not take these fields, or a vector search."""
    if (request.form == "cluster") != (request.vector_search is not None):
        raise SettingsError("--form cluster and --vector-search FILE belong together; give both or neither")
    if request.form == "cluster" and request.selection != EVERYTHING:
        raise SettingsError("the form cluster reads no documents; leave --sample and --slice out")
    names = ", ".join(fields.names)
    if request.form == "cluster" and len(fields.names) > 1:
        raise SettingsError(f"--field is {names}: the form cluster takes the terms of one field; name one")
    if request.form == "terms" and len(fields.groups) > 1:
        groups = " and ".join(", ".join(group) for group in fields.groups)
        raise SettingsError(
            f"--field is {names}: the form terms takes fields of one analyzer, but {groups} differ; "
            "name fields of one analyzer, or build the form neighbours"
        )


def _build_on_cluster(
    engine: Engine, request: BuildRequest, fields: AnalysedFields, encoders: EncoderSource, search_path: Path
) -> BuildResult:
    """Build the form `cluster`: an encoder and a search. Documents and vectors stay in the engine."""
    search = read_search_template(search_path)
    with TemporaryDirectory(dir=request.folder, prefix=WORK_FOLDER_PREFIX) as work:
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
        groups = [FieldGroup(names=fields.names, terms=0, probe={})]
        source = describe_source(engine, request.index, fields, groups, documents=in_index, in_index=in_index)
        files = collect_file_facts(new_folder, [*prepared.files, SEARCH_FILE])
        record = _create_record(
            request,
            source,
            prepared,
            width=len(vector),
            terms=0,
            score_scale=measure_score_scale(engine, request.index, fields),
            files=files,
        )
        place_files(new_folder, request.folder, record, names=files)
    return BuildResult(record)


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
        measures_temperature=request.measures_temperature,
        score_scale=score_scale,
        files=files,
    )


def _create_plan(
    engine: Engine, request: BuildRequest, fields: AnalysedFields, encoders: EncoderSource
) -> dict[str, Any]:
    """Return the facts that two builds must share to use the same parts: text fields, analyzer and encoder."""
    slice_name = request.selection.slice_name
    return {
        "index": request.index,
        "field": fields.names[0] if len(fields.names) == 1 else [list(group) for group in fields.groups],
        "text": list(fields.sources),
        **encoders.describe(),
        "analysis": compute_analysis_digest(engine, request.index, fields),
        **({"slice": slice_name} if slice_name else {}),
    }


def _find_reusable_record(request: BuildRequest, surfaces: Sequence[SurfaceWords]) -> ExpanderRecord | None:
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
    return record if is_analyzed_as_before(record.source, surfaces) else None
