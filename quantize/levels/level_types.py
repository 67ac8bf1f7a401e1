"""The quantisation types that llama.cpp can write."""

from __future__ import annotations

from querylift.plugin.errors import SettingsError
from querylift.plugin.generators.llama.model_file import check_llama_cpp

PURE_SUFFIX = "-PURE"
"""Added to a type, it asks for that type in every tensor. llama.cpp would keep embeddings and output more exact."""
TYPES_WITHOUT_IMPORTANCE = ("BF16", "F16", "Q8_0")
"""Types whose numbers an importance matrix does not change."""
_PREFIX = "LLAMA_FTYPE_MOSTLY_"


def get_known_types() -> dict[str, int]:
    """Return llama.cpp's number for each type that the installed version can write, by the type's name."""
    check_llama_cpp()
    from llama_cpp import llama_cpp as api

    return {name.removeprefix(_PREFIX): getattr(api, name) for name in vars(api) if name.startswith(_PREFIX)}


def parse_types(text: str) -> list[str]:
    """Return the types in a comma-separated text, in their order and without duplicates. Raises SettingsError."""
    known_types = get_known_types()
    types = list(dict.fromkeys(name.strip().upper() for name in text.split(",") if name.strip()))
    unknown_types = [name for name in types if name.removesuffix(PURE_SUFFIX) not in known_types]
    if unknown_types or not types:
        problem = f"the type {unknown_types[0]!r} is unknown" if unknown_types else "no type is named"
        raise SettingsError(
            f"{problem}; name one or more of {', '.join(known_types)}, or TYPE{PURE_SUFFIX} to use one for all tensors"
        )
    return types
