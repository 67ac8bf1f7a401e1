"""Where Querylift keeps what it has fetched or made and can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """$QUERYLIFT_CACHE, else $XDG_CACHE_HOME/querylift, else ~/.cache/querylift."""
    given = os.environ.get("QUERYLIFT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given).expanduser().absolute() if given else Path(base).absolute() / "querylift"
