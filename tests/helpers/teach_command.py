"""Run `querylift train teach`, and write rows for it to import."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from querylift.trainer.commands.teach import teach
from tests.helpers.lessons import write_json_lines
from tests.helpers.teacher_server import QUERIES, TeacherServer


def run_teach(*arguments: object) -> dict[str, Any]:
    """Return the JSON that the command prints. Raise what the command raises."""
    result = CliRunner().invoke(teach, [*map(str, arguments), "--json"])
    if result.exception is not None:
        raise result.exception
    return dict(json.loads(result.stdout))


def run_teach_against_server(server: TeacherServer, *arguments: object) -> dict[str, Any]:
    """Start `server`, and run the command with it as the teacher."""

    async def run() -> dict[str, Any]:
        async with server:
            return await asyncio.to_thread(run_teach, *arguments, "--endpoint", server.url, "--model", "m")

    return asyncio.run(run())


def is_done(out: Path) -> bool:
    """Return whether the manifest of `out` says that the stage is done."""
    return bool(json.loads(out.with_name(out.name + ".manifest.json").read_text(encoding="utf-8"))["done"])


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    """Write a file of JSON lines."""
    return write_json_lines(path, rows)


def make_row(query_id: str, text: str, model: str = "72B", mode: str = "zs", **changes: Any) -> dict[str, Any]:
    """Return a published expansion of one of `QUERIES`."""
    row = {"query_id": query_id, "query": QUERIES[query_id], "method": "query2doc", "params": {"mode": mode}}
    return row | {"model": model, "text": text} | changes
