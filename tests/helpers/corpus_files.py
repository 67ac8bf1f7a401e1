"""Write the files of small corpora, and read a corpus whole."""

import gzip
import json
from pathlib import Path

from querylift.index_tools.corpora.corpus import Corpus
from querylift.index_tools.corpora.records import Qrels, Queries

QRELS_HEADER = "query-id\tcorpus-id\tscore\n"


def write_text_file(path: Path, text: str) -> Path:
    """Write a file and its folders, gzipped when the name ends in `.gz`. Return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def format_jsonl(**texts: str) -> str:
    """Return a JSONL row for each id and text."""
    return "".join(json.dumps({"_id": row_id, "text": text}) + "\n" for row_id, text in texts.items())


def read_all_splits(corpus: Corpus) -> dict[str, tuple[Queries, Qrels]]:
    """Return the queries and judgments of every split, by the name of the split."""
    return {split: (corpus.read_queries(split), corpus.read_qrels(split)) for split in corpus.split_names}
