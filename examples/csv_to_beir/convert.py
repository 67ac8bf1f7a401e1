"""Turn a spreadsheet of ratings into a BEIR folder, which `querylift evaluate` reads.

    python convert.py ratings.csv --out my-corpus

The CSV file has a header and one rating per line. Its columns are the query, the document's id in your index, and a grade
(0 means not relevant, higher is better). Other column names are options. Needs nothing but Python.
"""

import argparse
import csv
import json
import sys
from pathlib import Path


def read_ratings(path: Path, query_column: str, document_column: str, grade_column: str) -> dict[str, dict[str, int]]:
    """Return the grades by query and document id. Exit with one sentence where a line cannot be used."""
    ratings: dict[str, dict[str, int]] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        missing = {query_column, document_column, grade_column} - set(rows.fieldnames or [])
        if missing:
            options = "--query-column, --document-column or --grade-column"
            sys.exit(f"{path} has no column {sorted(missing)[0]!r}; name it with {options}")
        for row in rows:
            query, doc_id, grade = row[query_column].strip(), row[document_column].strip(), row[grade_column].strip()
            if not query or not doc_id or not grade.isdecimal():
                sys.exit(f"{path}:{rows.line_num}: write a query, a document id and a whole number of 0 or more")
            ratings.setdefault(query, {})[doc_id] = int(grade)
    return ratings


def write_beir_folder(ratings: dict[str, dict[str, int]], out: Path) -> None:
    """Write `queries.jsonl` and `qrels.tsv` into the new folder `out`."""
    out.mkdir(parents=True)
    with (
        (out / "queries.jsonl").open("w", encoding="utf-8") as queries,
        (out / "qrels.tsv").open("w", encoding="utf-8") as qrels,
    ):
        qrels.write("query-id\tcorpus-id\tscore\n")
        for number, (query, grades) in enumerate(ratings.items(), 1):
            queries.write(json.dumps({"_id": f"q{number}", "text": query}, ensure_ascii=False) + "\n")
            for doc_id, grade in grades.items():
                qrels.write(f"q{number}\t{doc_id}\t{grade}\n")


def main() -> None:
    """Read the command line, convert the file and print what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ratings", type=Path, help="CSV file with one rating per line")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; it must not exist")
    parser.add_argument("--query-column", default="query", help="column of the query [%(default)s]")
    parser.add_argument("--document-column", default="docid", help="column of the document id [%(default)s]")
    parser.add_argument("--grade-column", default="rating", help="column of the grade [%(default)s]")
    options = parser.parse_args()

    if options.out.exists():
        sys.exit(f"{options.out} exists; delete it, or name another --out")
    ratings = read_ratings(options.ratings, options.query_column, options.document_column, options.grade_column)
    write_beir_folder(ratings, options.out)
    count = sum(len(grades) for grades in ratings.values())
    print(f"{options.out}: {len(ratings)} queries, {count} ratings")


if __name__ == "__main__":
    main()
