"""The private folder that one proxy's processes share: their Unix sockets, and the files of their metrics."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from querylift.plugin.errors import SettingsError
from querylift.plugin.files import find_cache_folder
from querylift.plugin.settings import Settings

_MAX_SOCKET_PATH_BYTES = 100
"""Linux takes 107 bytes."""
_METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """The paths in the folder, which only this user can open."""

    path: Path

    @property
    def metrics(self) -> Path:
        """The folder where each process counts in files of its own."""
        return self.path / "metrics"

    @property
    def model_socket(self) -> Path:
        """Where the process listens that runs language models for all workers."""
        return self.path / "model.sock"

    def admin_socket(self, number: int) -> Path:
        """Where the admin page of worker `number` listens."""
        return self.path / f"worker-{number}.sock"


@contextmanager
def open_shared_folder() -> Iterator[SharedFolder]:
    """Yield a new folder, and remove it at the end. Raises SettingsError.

    Call this before anything imports prometheus_client, which chooses its folder when it is imported.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="querylift-", ignore_cleanup_errors=True) as name:
            folder = SharedFolder(Path(name))
            if len(os.fsencode(folder.admin_socket(99))) > _MAX_SOCKET_PATH_BYTES:
                raise SettingsError(f"TMPDIR is too long for Unix sockets in {name}; set it to a shorter path")
            folder.metrics.mkdir()
            os.environ[_METRICS_VARIABLE] = str(folder.metrics)
            yield folder
    except FileNotFoundError as error:
        raise SettingsError(f"workers needs a folder for temporary files ({error.strerror}); set TMPDIR") from None
    finally:
        os.environ.pop(_METRICS_VARIABLE, None)


def share_cache(settings: Settings) -> Settings:
    """Return `settings` with a cache that several processes can share. Raises SettingsError.

    Where they name none, it is a file in the cache folder. Its name holds the address, as two proxies may run here.
    """
    if settings.cache.url is not None or settings.cache.file is not None:
        return settings
    folder = find_cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"workers is {settings.workers}, which needs a cache for all of them, and {folder} cannot be written "
            f"({error.strerror}); set cache.file or cache.url"
        ) from None
    file = folder / f"workers-{settings.listen.replace(':', '-')}.cache"
    return settings.model_copy(update={"cache": settings.cache.model_copy(update={"file": file})})


def fit_to_worker(settings: Settings, folder: SharedFolder, number: int) -> Settings:
    """Return the settings of worker `number`: its admin page and its model are sockets in the folder. Raises SettingsError."""
    llama = settings.llama.model_copy(update={"socket": folder.model_socket})
    admin = str(folder.admin_socket(number))
    return share_cache(settings).model_copy(update={"admin": admin, "llama": llama})
