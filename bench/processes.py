"""What Linux tells of processes: memory, processor time, and which child is the proxy's worker; and what a child tells."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def resident_bytes(pid: int) -> int:
    """Memory that the process holds now; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def shared_memory_mb(pid: int) -> tuple[float, float]:
    """Memory that only this process holds, and its part of what it shares (proc(5): Private_* and Pss of smaps_rollup)."""
    values = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, size, _ = line.split()
        values[name] = int(size) * 1024 / 1e6
    return values["Private_Clean:"] + values["Private_Dirty:"], values["Pss:"]


def named_children(pid: int) -> dict[str, int]:
    """The children of a proxy with several workers by the names that it gives them: "ql worker 1", "ql admin page"."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return {Path(f"/proc/{child}/comm").read_text(encoding="utf-8").strip(): int(child) for child in children}


def cpu_s(pid: int) -> float:
    """Processor seconds of the process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_cpu_s() -> float:
    """Processor seconds that were used on this machine, by whomever, and those that its host gave to others."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = Path("/proc/stat").read_text("ascii").split()[1:9]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / os.sysconf("SC_CLK_TCK")


def worker_of(proxy_pid: int) -> int | None:
    """The proxy's worker process, if there is one just now."""
    for child in Path(f"/proc/{proxy_pid}/task/{proxy_pid}/children").read_text(encoding="ascii").split():
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if b"llama.worker" in command:
            return int(child)
    return None


def json_lines() -> Callable[[dict[str, Any]], None]:
    """What writes a line of JSON to standard output, where from here on nothing else is written."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what C code prints goes to standard error

    def answer(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    return answer
