"""Every error that Querylift raises for a caller to act on.

QueryliftError
├── SettingsError      a setting, an option or a file named in one is wrong (exit code 2)
├── MissingExtra       an optional package is not installed (exit code 2)
├── DataError          a line of a user's file cannot be used; names path and line (exit code 2)
├── EngineError        the search engine failed or did not answer (exit code 1)
└── GeneratorError     an expansion could not be made; never reaches a search
    ├── GeneratorBusy  the generator has as many requests as it accepts
    └── EndpointError  an endpoint gave no vectors (exit code 1)
"""

from __future__ import annotations


class QueryliftError(Exception):
    """Something that a user can mend. The message is one sentence that names the value and the remedy."""

    exit_code = 1


class SettingsError(QueryliftError):
    """A setting, a command-line option, or a file that one of them names, cannot be used."""

    exit_code = 2


class MissingExtra(QueryliftError):
    """An optional package is not installed."""

    exit_code = 2

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run in the checkout of Querylift: pip install '.[{extra}]'")
        self.package = package
        self.extra = extra


class DataError(QueryliftError):
    """A line of a user's file cannot be used."""

    exit_code = 2

    def __init__(self, path: object, line: int, problem: str) -> None:
        super().__init__(f"{path}:{line}: {problem}")
        self.path = str(path)
        self.line = line


class EngineError(QueryliftError):
    """The search engine answered with an error, did not answer, or left out something it was asked for."""


class GeneratorError(QueryliftError):
    """An expansion could not be made. The served path turns it into an outcome, never into a failed search."""


class GeneratorBusy(GeneratorError):
    """The generator already has as many requests, running and waiting, as it accepts."""


class EndpointError(GeneratorError):
    """An encoder's endpoint did not answer with vectors. `is_temporary` says whether it may do so later."""

    def __init__(self, message: str, *, is_temporary: bool = False) -> None:
        super().__init__(message)
        self.is_temporary = is_temporary
