"""`querylift train report`: the shares and the tests are those computed by hand, and the page shows hostile names as text."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from querylift.index_tools.corpora.records import Document
from querylift.index_tools.engine import Engine
from querylift.index_tools.evaluation.experiment import Task
from querylift.index_tools.indexing import IndexPlan, build_index
from querylift.plugin.errors import EngineError, SettingsError
from querylift.plugin.settings import parse_settings
from querylift.trainer.commands.report import report
from querylift.trainer.results.formatting import format_percent
from querylift.trainer.results.html_rendering import render_html
from querylift.trainer.results.markdown_rendering import render_markdown
from querylift.trainer.results.pictures import Picture, read_pictures
from querylift.trainer.results.records import CollectionResult, Results, RowResult, SeedResult
from querylift.trainer.results.row_comparison import compare_rows
from querylift.trainer.results.table_settings import RowSettings, read_results_settings
from querylift.trainer.results.text_rendering import render_text
from tests.helpers.page import Page

HOSTILE = """</title><script>alert(1)</script><img src=x onerror='alert(2)'>" {{ 7 * 7 }} | a_b"""
INDEX = "results-test"
SECOND = 1 / math.log2(3)
"""nDCG@10 where the one relevant document is second."""
PLAIN = {"q1": 0.2, "q2": 0.4, "q3": 0.6, "q4": 0.0}
TAUGHT = {"q1": 0.6, "q2": 0.8, "q3": 0.7, "q4": 0.1}
COLLECTION = '[[collection]]\nname = "tiny"\ncorpus = "tiny"\nindex = "results-test"\n'
ROWS = '[[row]]\nname = "no expansion"\n'


# --- shares and tests, by hand


def _rows(*names: str, **against: str) -> list[RowSettings]:
    return [RowSettings(name=name, against=against.get(name)) for name in names]


def _measured(*seeds: Mapping[str, float]) -> tuple[SeedResult, ...]:
    return tuple(SeedResult(per_query=seed, recall_at_100=0.5) for seed in seeds)


def _cells(teacher: str | None = "teacher", **measured: Sequence[SeedResult]) -> dict[str, RowResult]:
    names = {"plain": _measured(PLAIN), "teacher": _measured(TAUGHT), **measured}
    return compare_rows(_rows(*names), names, teacher=teacher)


def test_a_share_is_that_of_the_teachers_mean_and_of_what_it_gains() -> None:
    # Means: plain 1.2 / 4 = 0.30, teacher 2.2 / 4 = 0.55, student 1.7 / 4 = 0.425.
    student = _cells(student=_measured({"q1": 0.5, "q2": 0.5, "q3": 0.6, "q4": 0.1}))["student"]
    assert student.ndcg_at_10 == pytest.approx(0.425)
    assert student.share_kept == pytest.approx(0.425 / 0.55)
    assert student.gain_kept == pytest.approx(0.125 / 0.25)


def test_the_teacher_keeps_all_and_the_plain_search_no_gain() -> None:
    made = _cells()
    assert (made["teacher"].share_kept, made["teacher"].gain_kept) == (1, 1)
    assert made["plain"].share_kept == pytest.approx(0.30 / 0.55)
    assert made["plain"].gain_kept == 0


def test_seeds_are_averaged_by_query_before_anything_is_compared() -> None:
    student = _cells(student=_measured({**PLAIN, "q1": 0.6}, {**PLAIN, "q1": 0.2}, {**PLAIN, "q1": 0.1}))["student"]
    # Seeds: (1.2 + 0.4) / 4, 1.2 / 4, (1.2 - 0.1) / 4; q1 is 0.3 on average, one query wins by 0.1.
    assert student.ndcg_by_seed == pytest.approx((0.4, 0.3, 0.275))
    assert student.per_query == pytest.approx({**PLAIN, "q1": 0.3})
    mean = 0.975 / 3
    assert student.deviation == pytest.approx(
        math.sqrt(((0.4 - mean) ** 2 + (0.3 - mean) ** 2 + (0.275 - mean) ** 2) / 2)
    )
    compared = student.against_plain
    assert compared is not None
    assert (compared.wins, compared.ties, compared.losses) == (1, 3, 0)
    assert compared.p_value == 1, "a single difference lies as far from zero with either sign"


def test_the_p_value_counts_the_sign_patterns_that_lie_as_far_from_zero() -> None:
    # Differences of the teacher .4 .4 .1 .1, sum 1: of 16 patterns only ++++ and ---- reach it.
    against_plain = _cells()["teacher"].against_plain
    assert against_plain is not None
    assert against_plain.difference == pytest.approx(0.25)
    assert against_plain.p_value == 2 / 16
    assert 0.09 < against_plain.interval[0] < 0.25 < against_plain.interval[1] < 0.41


def test_the_row_above_is_the_nearest_that_has_the_collection() -> None:
    measured = {"plain": _measured(PLAIN), "base": (), "student": _measured(TAUGHT)}
    student = compare_rows(_rows("plain", "base", "student"), measured, teacher=None)["student"]
    assert student.above == "plain"
    assert student.against_above == student.against_plain
    assert (student.share_kept, student.gain_kept) == (None, None)


def test_a_row_may_be_set_against_another_than_the_one_above() -> None:
    measured = {"plain": _measured(PLAIN), "base": _measured(TAUGHT), "sft": _measured(PLAIN), "dpo": _measured(TAUGHT)}
    dpo = compare_rows(_rows("plain", "base", "sft", "dpo", dpo="base"), measured, teacher=None)["dpo"]
    assert dpo.above == "base"
    assert dpo.against_above is not None
    assert dpo.against_above.ties == 4
    absent = compare_rows(_rows("plain", "base", "sft", "dpo", dpo="base"), {**measured, "base": ()}, teacher=None)[
        "dpo"
    ]
    assert (absent.above, absent.against_above) == ("base", None)


def test_a_teacher_that_gains_nothing_has_no_gain_to_keep() -> None:
    names = {"plain": _measured(TAUGHT), "teacher": _measured(PLAIN)}
    made = compare_rows(_rows("plain", "teacher"), names, teacher="teacher")
    assert made["plain"].share_kept == pytest.approx(0.55 / 0.30)
    assert made["plain"].gain_kept is None


def test_a_teacher_without_a_result_here_leaves_the_shares_out() -> None:
    made = compare_rows(_rows("plain", "teacher"), {"plain": _measured(PLAIN), "teacher": ()}, teacher="teacher")
    assert (made["plain"].share_kept, made["plain"].gain_kept, list(made)) == (None, None, ["plain"])


@pytest.mark.parametrize(
    ("share", "text"), [(None, "-"), (0.954, "95%"), (-0.4, "-40%"), (-0.001, "0%"), (1.04, "104%")]
)
def test_a_share_is_whole_percent(share: float | None, text: str) -> None:
    assert format_percent(share) == text


# --- TABLE.toml


def _read(folder: Path, text: str) -> Any:
    (folder / "table.toml").write_text(text, encoding="utf-8")
    return read_results_settings(folder / "table.toml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("weight = ", "is not TOML"),
        (ROWS, "collection is missing; every file needs it"),
        (COLLECTION, "row is missing; every file needs it"),
        ("weight = 0\n" + COLLECTION + ROWS, "weight is 0: input should be greater than 0"),
        ("weight = nan\n" + COLLECTION + ROWS, "weight is nan: input should be"),
        ("wieght = 1\n" + COLLECTION + ROWS, "wieght is not a setting; remove it, or mend its spelling"),
        ('teacher = "GPT"\n' + COLLECTION + ROWS, "teacher is 'GPT', which is no row; the rows are: no expansion"),
        (COLLECTION + "relevant_from = 0\n" + ROWS, "collection 'tiny', relevant_from is 0: input should be greater"),
        (COLLECTION + COLLECTION + ROWS, "collection 'tiny' comes 2 times; give every collection a name of its own"),
        (COLLECTION + ROWS + ROWS, "row 'no expansion' comes 2 times"),
        (COLLECTION + ROWS + "weight = 1\n", "row 'no expansion' is the first, the plain search; give it a name"),
        (COLLECTION + ROWS + '[[row]]\nname = "SFT"\n', "row 'SFT' has nothing to measure; give it tables or"),
        (COLLECTION + ROWS + '[[row]]\ngenerator = "none"\n', "row 2, name is missing; add it"),
        (COLLECTION + ROWS + '[[row]]\nname = "a\\u001b[1m"\ngenerator = "none"\n', "write one line of printable"),
        (
            COLLECTION + ROWS + '[[row]]\nname = "SFT"\ngenerator = "none"\ntables = [{ tiny = "t" }]\n',
            "row 'SFT': tables and generator are both given; keep one of them",
        ),
        (
            COLLECTION + ROWS + '[[row]]\nname = "SFT"\ntables = [{ dl19 = "t.jsonl" }]\n',
            "row 'SFT' has a table for 'dl19', which is no collection; there are: tiny",
        ),
        (COLLECTION + ROWS + '[[row]]\nname = "SFT"\ntables = [{}]\n', "row 'SFT' has tables without a file"),
        (
            COLLECTION + ROWS + '[[row]]\nname = "SFT"\ntables = [{ tiny = "t.jsonl" }]\n',
            "t.jsonl of row 'SFT' does not",
        ),
        (
            COLLECTION + ROWS + '[[row]]\nname = "SFT"\ngenerator = "none"\nagainst = "SFT"\n',
            "row 'SFT' is set against 'SFT'; name another row: no expansion",
        ),
    ],
)
def test_a_wrong_value_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as error:
        _read(tmp_path, text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'table.toml'}")


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"gone.toml cannot be read \(No such file or directory\); name a TOML file"
    ):
        read_results_settings(tmp_path / "gone.toml")


@pytest.mark.parametrize(
    ("corpus", "read"),
    [
        ("builtin", "builtin"),
        ("ir:beir/scifact", "ir:beir/scifact"),
        ("../data/scifact", "HERE/../data/scifact"),
        ("beir:scifact", "beir:HERE/scifact"),
        ("trec:old", "trec:HERE/old"),
        ("trec:documents=d.trec,topics=/t,qrels=q", "trec:documents=HERE/d.trec,topics=/t,qrels=HERE/q"),
    ],
)
def test_the_paths_of_a_corpus_are_relative_to_the_file(tmp_path: Path, corpus: str, read: str) -> None:
    settings = _read(tmp_path, COLLECTION.replace('corpus = "tiny"', f'corpus = "{corpus}"') + ROWS)
    assert settings.collection[0].corpus == read.replace("HERE", str(tmp_path))


def test_the_paths_of_a_row_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").touch()
    row = '[[row]]\nname = "SFT"\ntables = [{ tiny = "t.jsonl" }]\ncurves = ["c.png"]\n'
    model = '[[row]]\nname = "model"\ngenerator = "llama:m.gguf"\n'
    _, sft, other = _read(tmp_path, COLLECTION + ROWS + row + model).row
    assert sft.list_generators("tiny") == (f"table:{tmp_path / 't.jsonl'}",)
    assert sft.list_generators("other") == ()
    assert (other.list_generators("other"), sft.curves) == ((f"llama:{tmp_path / 'm.gguf'}",), (tmp_path / "c.png",))


# --- the page


def _png() -> bytes:
    """One white pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0\xff\xff\xff")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _results(text: str = "student") -> Results:
    measured = {"plain": _measured(PLAIN), text: _measured(TAUGHT, PLAIN), "absent": ()}
    made = compare_rows(_rows(*measured), measured, teacher=text)
    task = Task(text, text, text, {}, {})
    collection = CollectionResult(name=text, task=task, query_count=4, mode="boost", rows=made, notes=(text,))
    return Results(
        row_names=tuple(measured),
        collections=(collection,),
        engine=text,
        date="2031-01-02",
        weight=0.25,
        row_weights={text: 0.25, "absent": 0.25},
        teacher=text,
        notes=(text,),
    )


def test_hostile_names_are_shown_as_text_wherever_they_stand() -> None:
    page = Page(render_html(_results(HOSTILE), (Picture(HOSTILE, HOSTILE, _png()),), (HOSTILE,)))
    assert "script" not in page.tags
    assert page.tags.count("img") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.open == []
    assert page.text.count(HOSTILE) > 10
    assert "49" not in page.text, "a name is no template"


def test_the_page_loads_nothing_runs_nothing_and_forbids_both() -> None:
    page = render_html(_results(), (Picture("student", "curves.png", _png()),))
    for loader in ("http:", "https:", "href=", "url(", "@import", "<script", "<link", "javascript:"):
        assert loader not in page
    assert "default-src 'none'; img-src data:;" in page
    assert page.count("src=") == page.count('src="data:image/png;base64,iVBORw0KGgo') == 1


def test_every_id_is_used_once_and_the_tables_have_scopes() -> None:
    page = Page(render_html(_results(), (Picture("student", "curves.png", _png()),)))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value for name, value in page.attributes if name == "aria-labelledby"} <= set(ids)
    assert ("scope", "col") in page.attributes and ("scope", "row") in page.attributes


def test_the_page_has_every_number_of_a_row() -> None:
    words = " ".join(Page(render_html(_results())).text.split())
    # The two seeds have 0.55 and 0.30: their mean is 0.425, their deviation 0.25 / sqrt(2), p as in the test above.
    assert "student 0.425 2 seeds ±0.177 0.300–0.550 0.500 100% 100%" in words
    assert "4 / 0 / 0 0.125 0.125" in words
    assert "plain 0.300 0.500 71% 0% – – – –" in words
    assert "Weight 0.25" in words and "2031-01-02" in words


def test_the_text_fits_80_columns_and_a_row_without_a_result_is_empty() -> None:
    text = render_text(_results("a student whose name is so long that no terminal would hold it beside its numbers"))
    assert all(len(line) <= 80 for line in text.splitlines())
    lines = [line.split() for line in text.splitlines()]
    assert ["plain", "0.300", "-", "71%", "0%", "-", "-"] in lines
    assert ["absent", *["-"] * 6] in lines
    assert next(line for line in lines if "0.425" in line)[-7:] == [
        "0.425",
        "2",
        "±0.177",
        "100%",
        "100%",
        "0.125",
        "0.125",
    ]


def test_a_name_breaks_no_table_of_markdown() -> None:
    made = render_markdown(_results(HOSTILE))
    widths = {len(line.replace("\\|", "").split("|")) for line in made.splitlines() if line.startswith("|")}
    assert widths == {2 + 2, 9 + 2}, "a row has the name and one collection, or the name and eight columns"
    assert "<script" not in made.replace("\\<", "")
    assert "| student | 0.425 | 2 ±0.177 | 100% | 100% | +0.125 |" in render_markdown(_results())


def test_a_picture_that_is_absent_or_none_is_named_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "curves.png").write_bytes(_png())
    (tmp_path / "page.png").write_text("<svg onload='alert(1)'/>", encoding="utf-8")
    names = [tmp_path / name for name in ("curves.png", "page.png", "gone.png")]
    pictures, problems = read_pictures({"SFT": names})
    assert [picture.caption for picture in pictures] == [f"{tmp_path.parent.name}/{tmp_path.name}/curves.png"]
    assert problems == (
        f"a picture of SFT is left out: {names[1]} is no PNG; draw the curves as PNG",
        f"a picture of SFT is left out: {names[2]} cannot be read (No such file or directory)",
    )


# --- on an engine

DOCUMENTS = [
    # A search for "apple" finds a1 before a2 (the shorter one); "pear" lifts a2. So it goes with "stone" and "river".
    Document("a1", "", "apple tree"),
    Document("a2", "", "apple pear orchard garden"),
    Document("s1", "", "stone wall"),
    Document("s2", "", "stone granite quarry mountain"),
    Document("r1", "", "river bank"),
    Document("r2", "", "river delta estuary harbour"),
]
QUERIES = {"q1": "apple", "q2": "stone", "q3": "river", "q4": "nowhere"}
GOOD = {"apple": "pear orchard", "stone": "granite quarry", "river": "delta estuary"}


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


class _Corpus:
    language = "en"

    def iter_documents(self) -> Iterator[Document]:
        yield from DOCUMENTS


@pytest.fixture(scope="module")
def engine(opensearch: str) -> Iterator[str]:
    with Engine(parse_settings({"engine": opensearch})) as made:
        build_index(made, _Corpus(), IndexPlan(INDEX))
        yield opensearch
        made.call("DELETE", f"/{INDEX}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A corpus whose judged documents are second in a plain search, and tables that lift all or two of three of them."""
    corpus = tmp_path / "tiny"
    corpus.mkdir()
    (corpus / "queries.jsonl").write_text(_lines([{"_id": q, "text": t} for q, t in QUERIES.items()]), encoding="utf-8")
    judged = "q1\ta2\t1\nq2\ts2\t1\nq3\tr2\t1\nq4\ta1\t0\n"
    (corpus / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged, encoding="utf-8")
    for name, words in {"all": GOOD, "two": {q: t for q, t in GOOD.items() if q != "river"}}.items():
        rows = [{"query": q, "text": t} for q, t in words.items()]
        (tmp_path / f"{name}.jsonl").write_text(_lines(rows), encoding="utf-8")
    (tmp_path / "curves.png").write_bytes(_png())
    return tmp_path


TABLE = f"""
weight = 0.5
teacher = "teacher"
{COLLECTION}
{ROWS}
[[row]]
name = "engine feedback"
generator = "none"
[[row]]
name = "teacher"
tables = [{{ tiny = "all.jsonl" }}]
[[row]]
name = "SFT"
tables = [{{ tiny = "two.jsonl" }}, {{ tiny = "all.jsonl" }}]
curves = ["curves.png", "gone.png"]
"""


Report = Callable[..., Result]


@pytest.fixture
def run(folder: Path, engine: str) -> Report:
    def made(text: str, *arguments: str) -> Result:
        (folder / "table.toml").write_text(text, encoding="utf-8")
        return CliRunner().invoke(report, [str(folder / "table.toml"), "--engine", engine, *arguments])

    return made


@pytest.mark.engine
def test_the_rows_are_measured_through_the_rewrite_and_all_files_are_written(run: Report, folder: Path) -> None:
    done = run(TABLE, "--out", str(folder / "out"))
    assert done.exit_code == 0, done.output
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if not line.startswith("report: "))
    lines = [line.split() for line in done.stdout.splitlines()]
    # Plain: second for all three, 1 / log2(3) = 0.631. SFT: 0.877 = (1 + 1 + 0.631) / 3 and 1.
    assert ["no", "expansion", "0.631", "-", "63%", "0%", "-", "-"] in lines
    assert ["teacher", "1.000", "-", "100%", "100%", "0.250", "0.250"] in lines
    assert ["SFT", "0.938", "2", "±0.087", "94%", "83%", "0.250", "1.000"] in lines
    assert "* engine feedback: no expansion for 3 of 3 queries (skipped;nothing 3)" in done.stdout
    assert "* SFT: no expansion for 1, 0 of 3 queries (skipped;nothing 1)" in done.stdout
    assert "gone.png cannot be read" in done.stderr
    assert {path.name for path in (folder / "out").iterdir()} == {"report.html", "results.json", "results.md"}
    assert "gone.png cannot be read" in (folder / "out/report.html").read_text(encoding="utf-8")


@pytest.mark.engine
def test_the_json_has_every_number_and_says_which_tables_were_measured(run: Report, folder: Path) -> None:
    done = run(TABLE, "--json", "--out", str(folder / "out"))
    told = json.loads(done.stdout)
    assert told == json.loads((folder / "out/results.json").read_text(encoding="utf-8"))
    assert (told["engine"][:11], told["weight"], told["teacher"]) == ("OpenSearch ", 0.5, "teacher")
    (collection,) = told["collections"]
    assert {key: collection[key] for key in ("corpus", "split", "index", "mode", "queries", "relevant_from")} == {
        "corpus": "tiny",
        "split": "all",
        "index": INDEX,
        "mode": "boost",
        "queries": 3,
        "relevant_from": 1,
    }
    plain, _, teacher, sft = collection["rows"]
    assert (plain["against_plain"], plain["above"], plain["weight"]) == (None, None, None)
    assert sft["ndcg_at_10_by_seed"] == pytest.approx([(2 + SECOND) / 3, 1])
    assert sft["gain_kept"] == pytest.approx(5 / 6)
    assert sft["recall_at_100"] == 1
    assert (sft["above"], sft["against_above"]["losses"]) == ("teacher", 1)
    assert sft["against_plain"]["difference"] == pytest.approx((1 - SECOND) * 5 / 6)
    assert [sft["against_plain"][key] for key in ("wins", "ties", "losses", "p_value")] == [3, 0, 0, 0.25]
    assert sft["seeds"][1] == teacher["seeds"][0]
    assert sft["seeds"][0]["generator"] != sft["seeds"][1]["generator"]
    assert sft["seeds"][0]["outcomes"] == {"expanded": 2, "skipped;nothing": 1}


@pytest.mark.engine
def test_a_weight_given_is_that_of_the_rows_without_their_own(run: Report) -> None:
    told = json.loads(run(TABLE + "weight = 0.1\n", "--json", "--weight", "0.7").stdout)
    assert [row["weight"] for row in told["collections"][0]["rows"]] == [None, 0.7, 0.7, 0.1]
    assert told["notes"] == ["SFT is measured with weight 0.1"]


@pytest.mark.engine
def test_a_collection_that_a_row_lacks_is_left_empty_and_what_is_missing_is_named(run: Report) -> None:
    second = COLLECTION.replace('"tiny"\ncorpus', '"other"\ncorpus')
    done = run(TABLE.replace(ROWS, second + ROWS) + '[[row]]\nname = "again"\ngenerator = "none"\n')
    other = done.stdout.partition("\nother: ")[2]
    assert ["SFT", *["-"] * 6] in [line.split() for line in other.splitlines()]
    assert "* no share is shown: the teacher, teacher, has no result here" in other
    assert "* the row above again is here engine feedback" in other


@pytest.mark.engine
@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ('index = "results-test"', 'index = "gone"', "has no index 'gone'; make it with `querylift index`, or name"),
        ('corpus = "tiny"', 'corpus = "gone"', "no corpus"),
        ("[[collection]]", '[[collection]]\nsplit = "dev"', "has no split 'dev'; its splits are all"),
        ("[[collection]]", "[[collection]]\nrelevant_from = 3", "collection 'tiny' cannot be measured: no query"),
        ('generator = "none"', 'generator = "gpt"', "generator is 'gpt'; use one of"),
        ("weight = 0.5", "weight = 0.5 # as it is", ""),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(run: Report, before: str, after: str, sentence: str) -> None:
    done = run(TABLE.replace(before, after))
    assert isinstance(done.exception, SettingsError) == bool(sentence)
    assert sentence in str(done.exception)
    assert "\n" not in str(done.exception)


@pytest.mark.engine
def test_an_index_of_another_corpus_is_no_result(run: Report, folder: Path) -> None:
    (folder / "tiny/qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\telsewhere\t1\n", encoding="utf-8")
    error = run(TABLE).exception
    assert str(error).endswith("not one query finds a relevant document on results-test; index tiny there")


@pytest.mark.parametrize("weight", ["0", "11", "nan"])
def test_a_wrong_weight_given_is_one_sentence(folder: Path, weight: str) -> None:
    (folder / "table.toml").write_text(TABLE, encoding="utf-8")
    done = CliRunner().invoke(report, [str(folder / "table.toml"), "--weight", weight])
    assert str(done.exception) == f"--weight is {weight}; use a number above 0 and at most 10"


def test_an_engine_that_is_not_there_is_one_sentence(folder: Path) -> None:
    (folder / "table.toml").write_text(TABLE, encoding="utf-8")
    done = CliRunner().invoke(report, [str(folder / "table.toml"), "--engine", "http://127.0.0.1:9"])
    assert isinstance(done.exception, EngineError)
    assert "no search engine answers at http://127.0.0.1:9" in str(done.exception)
