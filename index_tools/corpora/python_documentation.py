"""Collect the documentation of the Python standard library. `builtin_corpus` runs this file as a script.

Importing the whole library has side effects, so a separate interpreter in isolated mode does it. This file therefore
imports nothing of Querylift. It prints one JSON line for each document: [doc_id, title, text].
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import json
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Container, Iterator
from types import ModuleType
from typing import Any, NamedTuple

_SKIPPED = set(
    # opens a browser or a window, prints, installs, or is not for users
    "antigravity this idlelib turtledemo test pydoc_data ensurepip venv encodings "
    # exists only on some machines or in some versions: the corpus should differ little between them
    "tkinter turtle curses readline msilib nis ossaudiodev spwd winreg winsound lib2to3 distutils imp asynchat asyncore "
    "smtpd aifc audioop cgi cgitb chunk crypt imghdr mailcap nntplib pipes sndhdr sunau telnetlib uu xdrlib "
    # documented under os and re
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
    """Whether the module that offers it also defines it, itself or in a submodule."""


def collect_entries() -> Iterator[_Entry]:
    """Stream the documents of the library. An object with two names gives one document, under its home's name."""
    modules = {name: module for name in _iter_module_names() if (module := _import_or_none(name))}
    members = {name: _list_members(name, module) for name, module in modules.items()}
    doc_ids: dict[object, str] = {}
    for member in sorted((member for group in members.values() for member in group), key=_rank_member):
        doc_ids.setdefault(_identify(member.value), member.doc_id)
    entries = (
        entry
        for name, module in modules.items()
        for entry in _iter_module_entries(name, module, members[name], doc_ids)
    )
    # unittest.main is a class and a module: the first one stays.
    entries_by_id: dict[str, _Entry] = {}
    for entry in (*entries, *_iter_topic_entries()):
        entries_by_id.setdefault(entry.doc_id, entry)
    yield from entries_by_id.values()


def _rank_member(member: _Member) -> tuple[bool, bool]:
    """Sort an object's home before other modules, and its own name before an alias: `OSError` before `IOError`."""
    return not member.at_home, member.doc_id.rpartition(".")[2] != getattr(member.value, "__name__", None)


# --- modules and their members


def _iter_module_names() -> Iterator[str]:
    yield "builtins"
    for name in sorted(sys.stdlib_module_names - _SKIPPED - {"builtins"}):
        if not name.startswith("_"):
            yield from _iter_submodule_names(name)


def _iter_submodule_names(name: str) -> Iterator[str]:
    """Stream the name of a module, then those of all its submodules."""
    yield name
    if name == "os":
        yield "os.path"
    for submodule in pkgutil.iter_modules(getattr(_import_or_none(name), "__path__", ())):
        full_name = f"{name}.{submodule.name}"
        is_private = submodule.name.startswith("_") or submodule.name in ("test", "tests")
        if not is_private and full_name not in _SKIPPED:
            yield from _iter_submodule_names(full_name)


def _import_or_none(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit):  # a module of another platform or build may raise anything
        return None


def _list_members(module_name: str, module: ModuleType) -> list[_Member]:
    """Return the members to document: functions before classes, and classes with short names first.

    The order decides the name of what two classes share. `random.choice` gets that name, not `random.Random.choice`.
    `ExitStack.callback` is not documented as a method of `AsyncExitStack`.
    """
    names = sorted(name for name in {*vars(module), *getattr(module, "__all__", ())} if not name.startswith("_"))
    prefix = "" if module_name == "builtins" else f"{module_name}."
    values = ((name, getattr(module, name, None)) for name in names)
    members = [
        _Member(prefix + name, value, _is_at_home(value, module))
        for name, value in values
        if _is_documentable(value) and _is_public(name, value, module) and prefix + name not in _SKIPPED
    ]
    return sorted(members, key=lambda member: len(member.doc_id) if inspect.isclass(member.value) else 0)


def _is_documentable(value: object) -> bool:
    is_special_form = type(value).__module__ == "typing" and "SpecialForm" in type(value).__name__
    return inspect.isclass(value) or inspect.isroutine(value) or is_special_form


def _is_public(name: str, value: object, module: ModuleType) -> bool:
    """Return whether a module offers a member to users.

    With `__all__`, the listed names are public, else whatever the module defines. Members from its submodules are
    public too, because Python 3.11 forgot `TaskGroup` in the `__all__` of asyncio.
    """
    home = _get_home(value, module)
    listed_names = getattr(module, "__all__", None)
    is_own = name in listed_names if listed_names else home in (module.__name__, f"_{module.__name__}")
    return is_own or re.match(rf"{re.escape(module.__name__)}\.[a-z]", home) is not None


def _is_at_home(value: object, module: ModuleType) -> bool:
    home = _get_home(value, module)
    return home in (module.__name__, f"_{module.__name__}") or home.startswith(f"{module.__name__}.")


def _get_home(value: object, module: ModuleType) -> str:
    # `open` claims to live in io, where nobody looks for it.
    return module.__name__ if module is builtins else getattr(value, "__module__", None) or module.__name__


def _identify(value: object) -> object:
    """Return the place where an object says that it was defined, or its `id` when it does not say."""
    place = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return place if all(isinstance(part, str) for part in place) else id(value)


# --- entries


def _iter_module_entries(
    name: str, module: ModuleType, members: list[_Member], doc_ids: dict[object, str]
) -> Iterator[_Entry]:
    yield from _iter_entry(name, title=name, doc=module.__doc__)
    for doc_id, value, _ in members:
        if doc_ids[_identify(value)] != doc_id:
            continue
        if inspect.isclass(value):
            yield from _iter_class_entries(doc_id, value, doc_ids)
        else:
            yield from _iter_object_entry(doc_id, value)


def _iter_class_entries(doc_id: str, cls: type, doc_ids: dict[object, str]) -> Iterator[_Entry]:
    init = vars(cls).get("__init__")
    docs = (vars(cls).get("__doc__"), init.__doc__ if inspect.isfunction(init) else None)
    text = "\n\n".join(doc for doc in docs if isinstance(doc, str))
    yield from _iter_entry(doc_id, title=doc_id + _format_signature(cls), doc=text)
    for name, value in _iter_methods(cls, doc_ids):
        method_id = f"{doc_id}.{name}"
        if doc_ids.setdefault(_identify(value), method_id) == method_id:
            yield from _iter_object_entry(method_id, value)


def _iter_methods(cls: type, doc_ids: Container[object]) -> Iterator[tuple[str, Any]]:
    """Stream the documented public methods and properties of a class.

    Those of a base class are included unless the base, or a class derived from it, is documented itself.
    """
    public_bases = [base for base in cls.__mro__ if base is not cls and _identify(base) in doc_ids]
    bases = [base for base in cls.__mro__ if not any(base in public.__mro__ for public in public_bases)]
    for name in sorted({name for base in bases for name in vars(base) if not name.startswith("_")}):
        values = (vars(base)[name] for base in bases if name in vars(base))
        value = next((value for value in values if value.__doc__), None)
        if _is_method(value):
            yield name, getattr(value, "__func__", value)


def _is_method(value: object) -> bool:
    """Return False for plain values, whose docstring is that of their type."""
    return inspect.isroutine(value) or inspect.isdatadescriptor(value) or type(value).__name__ == "cached_property"


def _iter_object_entry(doc_id: str, value: Any) -> Iterator[_Entry]:
    yield from _iter_entry(doc_id, title=doc_id + _format_signature(value), doc=value.__doc__)


def _iter_entry(doc_id: str, *, title: str, doc: object) -> Iterator[_Entry]:
    """Stream one entry, or none when the docstring is empty or boilerplate."""
    text = inspect.cleandoc(doc).strip() if isinstance(doc, str) else ""
    if text and not text.startswith(_BOILERPLATE):
        yield _Entry(doc_id, title, text)


def _format_signature(value: Callable[..., Any]) -> str:
    """Return `(a, b=1)`, or '' when Python does not know the signature.

    Long default values become `...`, because some describe the machine.
    """
    try:
        signature = inspect.signature(value)
        parameters = [_shorten_default(parameter) for parameter in signature.parameters.values()]
        return _ADDRESS.sub("", str(signature.replace(parameters=parameters)))
    except Exception:  # many C functions have no signature, and Python evaluates the text that others give
        return ""


def _shorten_default(parameter: inspect.Parameter) -> inspect.Parameter:
    is_short = len(repr(parameter.default)) <= _LONGEST_DEFAULT or parameter.default is parameter.empty
    return parameter if is_short else parameter.replace(default=...)


def _iter_topic_entries() -> Iterator[_Entry]:
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield from _iter_entry(f"topic:{name}", title=text.strip().partition("\n")[0], doc=text)


def main() -> None:
    """Print every document as a JSON line."""
    # A default value may come from the environment, and a title must not show the machine's secrets.
    # Windows needs SYSTEMROOT.
    for name in set(os.environ) - {"SYSTEMROOT"}:
        del os.environ[name]
    # Some modules print when they are imported. Only our own lines go to the real output.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with output:
        output.writelines(json.dumps(entry) + "\n" for entry in collect_entries())


if __name__ == "__main__":
    main()
