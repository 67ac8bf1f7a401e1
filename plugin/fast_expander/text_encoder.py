"""What an expander asks of its encoder, whatever it is: an ONNX file in the folder, or an endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.encoder import Encoder
from querylift.plugin.fast_expander.endpoint_encoder import EndpointEncoder
from querylift.plugin.fast_expander.expander_folder import ExpanderRecord
from querylift.plugin.settings_tables.generators import EncoderEndpointSettings

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.encoder import Vector
    from querylift.plugin.fast_expander.mapped_files import Array


class TextEncoder(Protocol):
    """Turns texts into vectors of length 1. A text that it cannot read gets a vector of zeros. It serves several threads."""

    def encode_query(self, text: str) -> Vector:
        """Return the vector of a query: shape (width,)."""
        ...

    def encode_queries(self, texts: Sequence[str], *, threads: int) -> Array:
        """Return the vectors of queries: shape (texts, width). It does `threads` things at once."""
        ...

    def encode_documents(self, texts: Sequence[str], *, threads: int) -> Array:
        """Return the vectors of documents: shape (texts, width). It does `threads` things at once."""
        ...


def open_text_encoder(
    folder: Path, record: ExpanderRecord, endpoint: EncoderEndpointSettings | None = None
) -> TextEncoder:
    """Return the encoder of the expander in `folder`, whose record is `record`. Raises SettingsError, MissingExtra.

    `endpoint` are the settings of an encoder behind an endpoint. It is not asked yet.
    """
    if record.endpoint is not None:
        return EndpointEncoder(record.endpoint, endpoint or EncoderEndpointSettings(), width=record.width)
    if record.reading is None:
        raise SettingsError(f"{folder} names no encoder; build the expander again")
    return Encoder(folder, record.reading)
