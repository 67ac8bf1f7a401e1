"""Read the settings again while the proxy serves, and apply those that need no restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from querylift.plugin.errors import QueryliftError
from querylift.plugin.proxy.application import Proxy
from querylift.plugin.proxy.engine_check import log_doubts
from querylift.plugin.proxy.log_format import set_log_format
from querylift.plugin.settings import Settings

_log = logging.getLogger("querylift")

APPLIED_WHILE_SERVING = frozenset(
    {
        "enabled",
        "budget_ms",
        "max_body_bytes",
        "pit_index",
        "index",
        "log",
        "admin_token",
        "admin_hosts",
        "sniffing_address",
    }
)
"""The settings that `Proxy.apply_settings` puts into effect at once. A setting that is not listed needs a restart."""
RESTART_SETTINGS = tuple(name for name in Settings.model_fields if name not in APPLIED_WHILE_SERVING)


class SettingsReloader:
    """Reads the settings again when it is told to, and holds them against the engine afterwards."""

    def __init__(self, proxy: Proxy, read_settings: Callable[[], Settings]) -> None:
        self._proxy = proxy
        self._read_settings = read_settings
        self._check: asyncio.Task[None] | None = None

    def reload(self) -> None:
        """Apply the settings at once. The warnings about indices and fields come when the engine has answered."""
        reload_settings(self._proxy, self._read_settings)
        self._check = asyncio.ensure_future(log_doubts(self._proxy.settings))


def reload_settings(proxy: Proxy, read_settings: Callable[[], Settings]) -> None:
    """Apply the settings that `read_settings` returns. Log a warning that names the changed ones that need a restart.

    A setting that needs a restart keeps its old value. Settings that cannot be read are logged, and nothing changes.
    """
    try:
        settings = read_settings()
    except QueryliftError as error:
        _log.error("the settings were not applied: %s", error)
        return
    values_in_use = {name: getattr(proxy.settings, name) for name in RESTART_SETTINGS}
    changed_names = [name for name, value in values_in_use.items() if getattr(settings, name) != value]
    if changed_names:
        _log.warning("a restart is needed for: %s", ", ".join(changed_names))
    set_log_format(settings.log)
    proxy.apply_settings(settings.model_copy(update=values_in_use))
    _log.info("the settings were read again")
