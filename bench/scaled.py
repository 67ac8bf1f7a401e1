#!/usr/bin/env python3
"""Builds or serves one expander in a process of its own: JSON in, JSON lines out. bench/scale and bench/builds ask it.

    scaled.py build {"engine": URL, "index": ..., "folder": ..., "form": ..., "threads": 2, "copies": FOLDER or ""}
    scaled.py start {"folder": ..., "cold": true}     how long it takes until a first query could be answered
    scaled.py serve {"folder": ...}
        in, a line each: {"queries": [...]} or {"exact": [...]}

Everything is measured from inside: wall clock, processor time, and memory that is this process's own (anonymous) or a file's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
from processes import json_lines

import querylift.index_tools
import querylift.plugin
from querylift.plugin.settings import parse_settings

MEGABYTE = 1_000_000
_OURS = (str(Path(str(querylift.index_tools.__file__)).parent), str(Path(str(querylift.plugin.__file__)).parent))
_HERE = Path(__file__).resolve().parent
_PAGE = os.sysconf("SC_PAGE_SIZE")


def memory_mb() -> tuple[float, float]:
    """What this process holds of its own, and of files."""
    resident, of_files = map(int, Path("/proc/self/statm").read_text(encoding="ascii").split()[1:3])
    return (resident - of_files) * _PAGE / MEGABYTE, of_files * _PAGE / MEGABYTE


class Stages:
    """Looks every few milliseconds where the main thread is: seconds, processor seconds and largest memory by function of ours.

    Waiting for the engine counts for the function that asks it, what other threads do for the one that waits for them.
    """

    def __init__(self, every_s: float = 0.01) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.cpu_seconds: defaultdict[str, float] = defaultdict(float)
        self.peak_mb: defaultdict[str, float] = defaultdict(float)
        self._every_s = every_s
        self._names: dict[CodeType, str] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(threading.main_thread().ident,), daemon=True)

    def __enter__(self) -> Stages:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self, main: int) -> None:
        before_s, before_cpu_s = time.perf_counter(), time.process_time()
        while not self._end.wait(self._every_s):
            name = self._stage(sys._current_frames()[main])
            now_s, now_cpu_s = time.perf_counter(), time.process_time()
            self.seconds[name] += now_s - before_s
            self.cpu_seconds[name] += now_cpu_s - before_cpu_s
            self.peak_mb[name] = max(self.peak_mb[name], memory_mb()[0])
            before_s, before_cpu_s = now_s, now_cpu_s

    def _stage(self, frame: FrameType | None) -> str:
        """The innermost function of ours that is not the client of the engine."""
        while frame is not None:
            code = frame.f_code
            if code not in self._names:
                path = Path(code.co_filename)
                is_ours = code.co_filename.startswith(_OURS) and path.stem != "engine"
                self._names[code] = f"{path.stem}.{code.co_qualname}".replace(".<locals>", "") if is_ours else ""
            if name := self._names[code]:
                return name
            frame = frame.f_back
        return "(start and end)"


class CopiesEncoder:
    """Stands for the encoder where documents are copies: the vector of the copied document, plus noise. Encodes nothing.

    `folder` holds `digests.npy` (of the texts, sorted), `originals.npy` (whose copy each is), `vectors.npy` (of the originals)
    and in `pace.json` the mean cosine of a copy's vector and its original's, which noise of length (1 / cosine^2 - 1)^0.5 makes.
    """

    def __init__(self, folder: Path) -> None:
        self._digests = np.load(folder / "digests.npy")
        self._originals = np.load(folder / "originals.npy")
        self._vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        cosine = json.loads((folder / "pace.json").read_text(encoding="utf-8"))["cosine"]
        self._noise = (1 / cosine**2 - 1) ** 0.5

    def encode_document(self, text: str) -> Any:
        """A vector of length 1, the same for the same text."""
        found = digest(text)
        at = int(np.searchsorted(self._digests, np.uint64(found)))
        vector = self._vectors[self._originals[at]]
        noise = np.random.Generator(np.random.SFC64(found)).standard_normal(len(vector), dtype=np.float32)
        noisy = vector + noise * (self._noise / np.sqrt(len(vector)))
        return noisy / np.linalg.norm(noisy)

    def encode_documents(self, texts: Sequence[str], *, threads: int) -> Any:
        """The vectors of texts. Nothing is encoded, so threads would not help."""
        return np.stack([self.encode_document(text) for text in texts])


def digest(text: str) -> int:
    """64 bits of a text."""
    from hashlib import blake2b

    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def build(asked: dict[str, Any]) -> dict[str, Any]:
    """Build the expander; with `copies` the vectors are made up."""
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.fast_expander import build as building
    from querylift.index_tools.fast_expander import encoder_sources
    from querylift.index_tools.indexing import CONTENTS_FIELD

    if asked["copies"]:
        copies = CopiesEncoder(Path(asked["copies"]))
        setattr(encoder_sources, "Encoder", lambda folder, reading: copies)  # noqa: B010  # there is no other way in
    request = building.BuildRequest(
        asked["index"], CONTENTS_FIELD, Path(asked["folder"]), form=asked["form"], threads=asked["threads"]
    )
    before_cpu_s, began_s = time.process_time(), time.perf_counter()
    with Engine(parse_settings({"engine": asked["engine"]}), timeout_s=600) as engine, Stages() as stages:
        built = building.build_expander(engine, request)
        took_s = time.perf_counter() - began_s
    return {
        "documents": built.record.source.documents,
        "terms": built.record.terms,
        "took_s": took_s,
        "cpu_s": time.process_time() - before_cpu_s,
        "peak_mb": max(stages.peak_mb.values()),
        "served_mb": {name: facts.size_bytes / MEGABYTE for name, facts in built.record.files.items()},
        "parts_mb": sum(path.stat().st_size for path in (request.folder / "parts").glob("*.npz")) / MEGABYTE,
        "stages_s": dict(stages.seconds),
        "stages_cpu_s": dict(stages.cpu_seconds),
        "stages_peak_mb": dict(stages.peak_mb),
    }


class Timed:
    """An object one of whose methods is timed, in processor seconds; all else is as it was."""

    def __init__(self, inner: Any, method: str) -> None:
        self._inner = inner
        self._method = getattr(inner, method)
        setattr(self, method, self._timed)
        self.cpu_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _timed(self, *args: Any, **kwargs: Any) -> Any:
        began_s = time.process_time()
        try:
            return self._method(*args, **kwargs)
        finally:
            self.cpu_s = time.process_time() - began_s


class Service:
    """An opened expander, its encoder timed, and the search for vectors where its form has one."""

    def __init__(self, folder: Path) -> None:
        from querylift.plugin.fast_expander.neighbours_weigher import NeighboursWeigher
        from querylift.plugin.generators.fast_expander import open_expander_model

        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        self._about, parts = open_expander_model(folder)
        self.opened_s, self.opened_cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        self._encoder = Timed(parts.encoder, "encode_query")
        self._vectors: Any = None
        if isinstance(parts.weigher, NeighboursWeigher):
            self._vectors = Timed(parts.weigher._vectors, "find_nearest")
            parts.weigher._vectors = self._vectors
        self._parts = replace(parts, encoder=self._encoder)

    def expand(self, queries: Sequence[str]) -> dict[str, Any]:
        """Milliseconds of each query, and its processor milliseconds in all, in the encoder, searching vectors, and after."""
        rows: dict[str, list[float]] = {"ms": [], "cpu_ms": [], "encoder": [], "vectors": [], "terms": []}
        for query in queries:
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            self._parts.expand(query)
            rows["ms"].append(1000 * (time.perf_counter() - began_s))
            rows["cpu_ms"].append(1000 * (time.process_time() - began_cpu_s))
            rows["encoder"].append(1000 * self._encoder.cpu_s)
            rows["vectors"].append(1000 * self._vectors.cpu_s if self._vectors else 0.0)
            rows["terms"].append(rows["cpu_ms"][-1] - rows["encoder"][-1] - rows["vectors"][-1])
        own_mb, file_mb = memory_mb()
        return {**rows, "own_mb": own_mb, "file_mb": file_mb}

    def recall(self, queries: Sequence[str]) -> dict[str, float | None]:
        """Which share of the documents that are really nearest the vectors' search finds; None where there is no search."""
        if not self._vectors:
            return {"recall": None}
        count, found = self._about.shape.documents, []
        for query in queries:
            vector = self._parts.encoder.encode_query(query)[None]
            near = set(self._vectors.find_nearest(vector, count)[0][0].tolist())
            nearest = self._vectors.find_nearest(vector, count, exactly=True)[0][0].tolist()
            found.append(len(near.intersection(nearest)) / len(nearest))
        return {"recall": float(np.mean(found))}


def start(asked: dict[str, Any]) -> dict[str, Any]:
    """How long opening takes, libraries apart; `cold` takes the files out of the operating system's cache before."""
    from querylift.plugin.fast_expander.expander_folder import check_files, read_expander_record
    from querylift.plugin.telemetry import switch_off_telemetry

    folder = Path(asked["folder"])
    about = read_expander_record(folder)
    if asked["cold"]:
        for name in about.files:
            _forget(folder / name)
    switch_off_telemetry()
    began_s = time.perf_counter()
    import faiss  # noqa: F401
    import onnxruntime  # noqa: F401
    import tokenizers  # noqa: F401

    libraries_s = time.perf_counter() - began_s
    service, began_cpu_s = Service(folder), time.process_time()
    check_files(folder, about)
    return {
        "libraries_s": libraries_s,
        "opened_s": service.opened_s,
        "opened_cpu_s": service.opened_cpu_s,
        "check_cpu_s": time.process_time() - began_cpu_s,
    }


def _forget(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # only what is on the disc can be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


@contextmanager
def serving(folder: Path) -> Iterator[Any]:
    """What asks a process that serves `folder`, for the block."""
    process = _popen("serve", {"folder": str(folder)})

    def ask(message: dict[str, Any]) -> dict[str, Any]:
        assert process.stdin is not None
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
        return _read(process, "serve")

    try:
        yield ask
    finally:
        process.communicate()


def run(kind: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What a process of its own answers to `asked`."""
    process = _popen(kind, asked)
    try:
        return _read(process, kind)
    finally:
        process.communicate()


def _popen(kind: str, asked: dict[str, Any]) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(_HERE.parent), **({} if kind == "build" else {"OMP_NUM_THREADS": "1"})}
    command = [sys.executable, str(_HERE / "scaled.py"), kind, json.dumps(asked)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


def _read(process: subprocess.Popen[str], kind: str) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        sys.exit(f"scaled.py {kind} ended with exit status {process.wait()}")
    found: dict[str, Any] = json.loads(line)
    return found


def main() -> None:
    """Do what the arguments ask for."""
    answer = json_lines()
    kind, asked = sys.argv[1], json.loads(sys.argv[2])
    if kind != "serve":
        answer({"build": build, "start": start}[kind](asked))
        return
    service = Service(Path(asked["folder"]))
    for line in sys.stdin:
        wanted = json.loads(line)
        answer(service.recall(wanted["exact"]) if "exact" in wanted else service.expand(wanted["queries"]))


if __name__ == "__main__":
    main()
