"""A small corpus with documents, two splits and judgments."""

import json
from pathlib import Path

import pytest

from tests.helpers.teacher_server import QUERIES


@pytest.fixture
def judged_corpus(tmp_path: Path) -> Path:
    """Four documents, a train split of three judged queries, a dev split of one."""
    folder = tmp_path / "docs"
    folder.mkdir()
    long_text = " ".join(f"w{n}" for n in range(100))
    documents = [
        ("d1", "Rainbows", f"Light bends. {long_text}"),
        ("d2", "", "Cats purr."),
        ("d3", "Steam", "Watt."),
        ("d4", "Only a title", ""),
    ]
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": i, "title": t, "text": x}) + "\n" for i, t, x in documents), encoding="utf-8"
    )
    for split, queries in {"train": QUERIES, "dev": {"8": "what makes thunder loud"}}.items():
        lines = [json.dumps({"_id": i, "text": t}) + "\n" for i, t in queries.items()]
        (folder / f"queries.{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    rows = ["1\td1\t2", "1\td2\t1", "1\td3\t0", "2\td2\t1", "2\td4\t1", "2\tgone\t1", "3\td3\t1"]
    (folder / "qrels.train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(rows) + "\n", encoding="utf-8")
    (folder / "qrels.dev.tsv").write_text("query-id\tcorpus-id\tscore\n8\td1\t1\n", encoding="utf-8")
    return folder
