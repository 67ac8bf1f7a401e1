"""The corpus that is always at hand: the documentation of the Python standard library of this interpreter.

Importing the whole library has side effects, so a second interpreter does it: this very file, run as a script in
isolated mode. Hence nothing of ours is imported at the top.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Container, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from querylift.index_tools.corpora.trec_files import Document, Qrels, Queries

_TIMEOUT_S = 120
"""Collecting takes 1-3 s; a cold disk takes longer."""


def documents() -> Iterator[Document]:
    """Stream the documents, in the same order each time: modules by name, each before its members, then the topics.

    `doc_id` is the dotted name (`json.loads`; built-in names stand alone: `str.split`) or `topic:NAME`; `title` is the
    name with its signature where Python knows one; `text` is the docstring, never empty. Modules that this machine
    cannot import are left out. Raises QueryliftError where no second interpreter can be run.
    """
    from querylift.index_tools.corpora.trec_files import Document

    for line in _collected().splitlines():
        yield Document(*json.loads(line))


def queries() -> Queries:
    """Return the questions: `builtin_data/README.md` says how they were made."""
    from importlib.resources import as_file, files

    from querylift.index_tools.corpora.trec_files import read_topics

    with as_file(files("index_tools").joinpath("builtin_data", "queries.jsonl")) as path:
        return read_topics(path)


def qrels() -> Qrels:
    """Return the judgments of the documents that this Python has: some names came with 3.12 or 3.13, some will go."""
    from importlib.resources import as_file, files

    from querylift.index_tools.corpora.trec_files import read_qrels

    known = {document.doc_id for document in documents()}
    with as_file(files("index_tools").joinpath("builtin_data", "qrels.tsv")) as path:
        judged = read_qrels(path)
    return {query_id: {d: grade for d, grade in grades.items() if d in known} for query_id, grades in judged.items()}


def _collected() -> str:
    from querylift.plugin.errors import QueryliftError

    # -I: no user's folder or variable reaches it. -S: nor does an installed package. -W ignore: old modules warn.
    command = [sys.executable, "-I", "-S", "-W", "ignore", __file__]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=True, encoding="utf-8"
        )
    except (OSError, subprocess.SubprocessError) as error:
        problem = f"the built-in corpus needs a second Python, and {sys.executable!r} failed ({error})"
        raise QueryliftError(f"{problem}; name another corpus") from error
    return done.stdout


# --- from here on: what the second interpreter does

_SKIPPED = set(
    # opens a browser or a window, prints, installs, or is not for users
    "antigravity this idlelib turtledemo test pydoc_data ensurepip venv encodings "
    # here today, elsewhere not: the corpus should differ little between machines and versions
    "tkinter turtle curses readline msilib nis ossaudiodev spwd winreg winsound lib2to3 distutils imp asynchat asyncore "
    "smtpd aifc audioop cgi cgitb chunk crypt imghdr mailcap nntplib pipes sndhdr sunau telnetlib uu xdrlib "
    # known under os and re
    "posix nt posixpath ntpath genericpath sre_compile sre_constants sre_parse "
    # threads under the names of processes
    "multiprocessing.dummy "
    # the part of socket.socket that is written in C
    "socket.SocketType".split()
)
_LONGEST_DEFAULT = 40
_BOILERPLATE = ("Alias for field number ", "Structure/Union member", "An enumeration.")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class _Entry(NamedTuple):
    doc_id: str
    title: str
    text: str


class _Member(NamedTuple):
    doc_id: str
    value: Any
    at_home: bool
    """Whether the module that offers it is the one, or a package around the one, that defines it."""


def collect() -> Iterator[_Entry]:
    """Walk the library. An object with two names gives one document, under the name that it has at home."""
    modules = {name: module for name in _module_names() if (module := _imported(name))}
    members = {name: _members(name, module) for name, module in modules.items()}
    names: dict[object, str] = {}
    for member in sorted((member for found in members.values() for member in found), key=_precedence):
        names.setdefault(_identity(member.value), member.doc_id)
    entries = (e for name, module in modules.items() for e in _module_entries(name, module, members[name], names))
    # unittest.main is a class and a module: the first one stays.
    first: dict[str, _Entry] = {}
    for entry in (*entries, *_topics()):
        first.setdefault(entry.doc_id, entry)
    yield from first.values()


def _precedence(member: _Member) -> tuple[bool, bool]:
    """Put the home of an object before other modules, and its own name before an alias: `OSError`, not `IOError`."""
    return not member.at_home, member.doc_id.rpartition(".")[2] != getattr(member.value, "__name__", None)


def _module_names() -> Iterator[str]:
    yield "builtins"
    for name in sorted(sys.stdlib_module_names - _SKIPPED - {"builtins"}):
        if not name.startswith("_"):
            yield from _with_submodules(name)


def _with_submodules(name: str) -> Iterator[str]:
    yield name
    if name == "os":
        yield "os.path"
    for found in pkgutil.iter_modules(getattr(_imported(name), "__path__", ())):
        full_name = f"{name}.{found.name}"
        if not found.name.startswith("_") and found.name not in ("test", "tests") and full_name not in _SKIPPED:
            yield from _with_submodules(full_name)


def _imported(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit):  # whatever a module of another platform or build raises: it is not there
        return None


def _module_entries(
    name: str, module: ModuleType, members: list[_Member], names: dict[object, str]
) -> Iterator[_Entry]:
    yield from _entry(name, title=name, doc=module.__doc__)
    for doc_id, value, _ in members:
        if names[_identity(value)] == doc_id:
            yield from _class_entries(doc_id, value, names) if inspect.isclass(value) else _object_entry(doc_id, value)


def _members(module_name: str, module: ModuleType) -> list[_Member]:
    """Return functions before classes, and short class names first: what two of them share is named once.

    So `random.choice` is known by that name, not as `random.Random.choice`, and `ExitStack.callback` not as a method of
    `AsyncExitStack`.
    """
    names = sorted(name for name in {*vars(module), *getattr(module, "__all__", ())} if not name.startswith("_"))
    prefix = "" if module_name == "builtins" else f"{module_name}."
    values = ((name, getattr(module, name, None)) for name in names)
    found = [
        _Member(prefix + name, value, _is_at_home(value, module))
        for name, value in values
        if _documented(value) and _is_public(name, value, module) and prefix + name not in _SKIPPED
    ]
    return sorted(found, key=lambda member: len(member.doc_id) if inspect.isclass(member.value) else 0)


def _documented(value: object) -> bool:
    special_form = type(value).__module__ == "typing" and "SpecialForm" in type(value).__name__
    return inspect.isclass(value) or inspect.isroutine(value) or special_form


def _is_public(name: str, value: object, module: ModuleType) -> bool:
    """Tell whether a module offers what it holds: all of its own, or all that it lists and what it has from its parts.

    The parts, because 3.11 forgets `TaskGroup` in the `__all__` of asyncio.
    """
    home = _home(value, module)
    listed = getattr(module, "__all__", None)
    own = name in listed if listed else home in (module.__name__, f"_{module.__name__}")
    return own or re.match(rf"{re.escape(module.__name__)}\.[a-z]", home) is not None


def _is_at_home(value: object, module: ModuleType) -> bool:
    home = _home(value, module)
    return home in (module.__name__, f"_{module.__name__}") or home.startswith(f"{module.__name__}.")


def _home(value: object, module: ModuleType) -> str:
    # `open` says that it lives in io: nobody looks for it there.
    return module.__name__ if module is builtins else getattr(value, "__module__", None) or module.__name__


def _object_entry(doc_id: str, value: Any) -> Iterator[_Entry]:
    yield from _entry(doc_id, title=doc_id + _signature(value), doc=value.__doc__)


def _class_entries(doc_id: str, cls: type, names: dict[object, str]) -> Iterator[_Entry]:
    init = vars(cls).get("__init__")
    docs = (vars(cls).get("__doc__"), init.__doc__ if inspect.isfunction(init) else None)
    yield from _entry(doc_id, title=doc_id + _signature(cls), doc="\n\n".join(d for d in docs if isinstance(d, str)))
    for name, value in _methods(cls, names):
        method_id = f"{doc_id}.{name}"
        if names.setdefault(_identity(value), method_id) == method_id:
            yield from _object_entry(method_id, value)


def _methods(cls: type, names: Container[object]) -> Iterator[tuple[str, Any]]:
    """Give the public methods and properties that the class documents, or has from a base without a name of its own."""
    public = [base for base in cls.__mro__ if base is not cls and _identity(base) in names]
    bases = [base for base in cls.__mro__ if not any(base in other.__mro__ for other in public)]
    for name in sorted({name for base in bases for name in vars(base) if not name.startswith("_")}):
        values = (vars(base)[name] for base in bases if name in vars(base))
        value = next((value for value in values if value.__doc__), None)
        if _is_method(value):
            yield name, getattr(value, "__func__", value)


def _is_method(value: object) -> bool:
    """Leave out plain values, whose docstring is that of their type."""
    return inspect.isroutine(value) or inspect.isdatadescriptor(value) or type(value).__name__ == "cached_property"


def _identity(value: object) -> object:
    """Return where an object says that it was defined, or else which one it is."""
    where = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return where if all(isinstance(part, str) for part in where) else id(value)


def _entry(doc_id: str, *, title: str, doc: object) -> Iterator[_Entry]:
    text = inspect.cleandoc(doc).strip() if isinstance(doc, str) else ""
    if text and not text.startswith(_BOILERPLATE):
        yield _Entry(doc_id, title, text)


def _signature(value: Callable[..., Any]) -> str:
    """Return `(a, b=1)`, or '' where Python cannot tell. Long default values are left out: some describe the machine."""
    try:
        signature = inspect.signature(value)
        shortened = signature.replace(parameters=[_shortened(p) for p in signature.parameters.values()])
        return _ADDRESS.sub("", str(shortened))
    except Exception:  # many C functions have none, and the text that others give is evaluated, whatever it raises
        return ""


def _shortened(parameter: inspect.Parameter) -> inspect.Parameter:
    short = len(repr(parameter.default)) <= _LONGEST_DEFAULT or parameter.default is parameter.empty
    return parameter if short else parameter.replace(default=...)


def _topics() -> Iterator[_Entry]:
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield from _entry(f"topic:{name}", title=text.strip().partition("\n")[0], doc=text)


def _main() -> None:
    # A default value may show what it finds here, and a title is no place for a machine's secrets. Windows needs one.
    for name in set(os.environ) - {"SYSTEMROOT"}:
        del os.environ[name]
    # Some modules print when they are imported: what is ours goes to the real output, what is theirs nowhere.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with output:
        output.writelines(json.dumps(entry) + "\n" for entry in collect())


if __name__ == "__main__":
    _main()
