"""Read the settings again while the proxy serves, and apply those that need no restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from querylift.plugin.errors import QueryliftError, SettingsError
from querylift.plugin.generators.factory import GENERATOR_TABLES
from querylift.plugin.proxy.application import Proxy
from querylift.plugin.proxy.engine_check import log_doubts
from querylift.plugin.proxy.log_format import set_log_format
from querylift.plugin.settings import Settings
from querylift.plugin.tls import ServerCertificate

_log = logging.getLogger("querylift")

APPLIED_WHILE_SERVING = frozenset(
    {
        "enabled",
        "generator",
        "budget_ms",
        "max_body_bytes",
        "pit_index",
        "index",
        "log",
        "admin_token",
        "admin_hosts",
        "sniffing_address",
    }
    | GENERATOR_TABLES
)
"""The settings that a reload puts into effect. A setting that is not listed needs a restart."""
RESTART_SETTINGS = tuple(name for name in Settings.model_fields if name not in APPLIED_WHILE_SERVING)


class SettingsReloader:
    """Reads the settings again when it is told to, and holds them against the engine afterwards."""

    def __init__(
        self, proxy: Proxy, read_settings: Callable[[], Settings], certificate: ServerCertificate | None = None
    ) -> None:
        self._proxy = proxy
        self._read_settings = read_settings
        self._certificate = certificate
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def reload(self) -> None:
        """Begin to apply the settings. The warnings about indices and fields come when the engine has answered."""
        task = asyncio.ensure_future(self._reload_and_check())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload_and_check(self) -> None:
        async with self._lock:
            await reload_settings(self._proxy, self._read_settings)
        if self._certificate is not None:
            reload_certificate(self._certificate)
        await log_doubts(self._proxy.settings)


async def reload_settings(proxy: Proxy, read_settings: Callable[[], Settings]) -> None:
    """Apply the settings that `read_settings` returns. Log a warning that names the changed ones that need a restart.

    A setting that needs a restart keeps its old value. New generators are opened first, and so are those whose files have
    changed. Meanwhile searches have the old ones. If the settings cannot be read, or a generator cannot be opened, that is
    logged, and nothing changes.
    """
    try:
        settings = read_settings()
    except QueryliftError as error:
        _log.error("the settings were not applied: %s", error)
        return
    new_settings = keep_settings_in_use(settings, proxy.settings, RESTART_SETTINGS)
    try:
        await proxy.brokers.open_generators(new_settings, new_settings.list_generator_names())
    except QueryliftError as error:
        _log.error("the settings were not applied: %s", error)
        return
    set_log_format(settings.log)
    proxy.apply_settings(new_settings)
    _log.info("the settings were read again")


def keep_settings_in_use(settings: Settings, settings_in_use: Settings, names: Sequence[str]) -> Settings:
    """Return `settings` with those in use for `names`. Log a warning that names the ones that differ."""
    values_in_use = {name: getattr(settings_in_use, name) for name in names}
    changed_names = [name for name, value in values_in_use.items() if getattr(settings, name) != value]
    if changed_names:
        _log.warning("a restart is needed for: %s", ", ".join(changed_names))
    return settings.model_copy(update=values_in_use)


def reload_certificate(certificate: ServerCertificate) -> None:
    """Read the files of the certificate again. Files that cannot be used are logged, and the certificate stays."""
    try:
        certificate.reload()
    except SettingsError as error:
        _log.error("the certificate was not read again, and the old one stays: %s", error)
        return
    _log.info("the certificate was read again")
