"""How `querylift serve` writes its log: as text with a time, or as one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from querylift.plugin.proxy.journal import SEARCH_LOGGER
from querylift.plugin.settings_tables.log import LogSettings

_TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_TALKATIVE_LIBRARIES = ("uvicorn.error", "faiss")
"""Libraries that report normal events. faiss names each of its builds that the processor or the wheel does not have."""


class TextFormatter(logging.Formatter):
    """A line with time, level, logger and message. The record of a search is its JSON object alone."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, and the lines of a traceback after it."""
        return record.getMessage() if record.name == SEARCH_LOGGER else super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line. A name that a client chose cannot begin another one."""
        return super().formatMessage(record).replace("\n", "\\n").replace("\r", "\\r")


class JsonFormatter(logging.Formatter):
    """A JSON object with timestamp, level, logger and message. The record of a search is an object already."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        if record.name == SEARCH_LOGGER:
            return record.getMessage()
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"timestamp": time, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _LogHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """The handler of `querylift serve`. Its own class tells it from handlers of another program."""


def start_log(settings: LogSettings) -> None:
    """Write the log of this process to standard error, warnings of Python included."""
    root = logging.getLogger()
    root.addHandler(_LogHandler(sys.stderr))
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    for name in _TALKATIVE_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    set_log_format(settings)


def set_log_format(settings: LogSettings) -> None:
    """Apply `log.format`. Without `start_log`, nothing changes."""
    formatter = JsonFormatter() if settings.format == "json" else TextFormatter(_TEXT_FORMAT)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _LogHandler):
            handler.setFormatter(formatter)
