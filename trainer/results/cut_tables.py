"""Tables of a teacher's passages, cut to what a student may write. The teacher is then compared at the student's length."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from querylift.plugin.generators.table import read_table_rows


@contextmanager
def open_cut_table(path: Path, *, student: str) -> Iterator[Path]:
    """Give a copy of the table at `path` in which each text is cut to the tokens that `student` may write.

    `student` is a folder, a FILE.gguf or the name of a packaged model; only its tokenizer is read. Raises SettingsError,
    DataError and MissingExtra.
    """
    from querylift.trainer.student.training_texts import load_text_cutter

    cut_text = load_text_cutter(student)
    with TemporaryDirectory(prefix="querylift-cut-") as folder:
        copy = Path(folder, path.name.removesuffix(".gz"))
        with copy.open("w", encoding="utf-8") as stream:
            for _, row in read_table_rows(path):
                cut = {"text": cut_text(row["text"])} if isinstance(row.get("text"), str) else {}
                stream.write(json.dumps({**row, **cut}, ensure_ascii=False) + "\n")
        yield copy
