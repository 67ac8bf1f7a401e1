"""The results as text, Markdown and HTML: every number is there, and hostile names are shown as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from querylift.index_tools.evaluation.experiment import Task
from querylift.trainer.results.curve_pictures import Picture, read_pictures
from querylift.trainer.results.formatting import format_percent
from querylift.trainer.results.html_rendering import render_html
from querylift.trainer.results.markdown_rendering import render_markdown
from querylift.trainer.results.records import CollectionResult, Results
from querylift.trainer.results.row_comparison import compare_rows
from querylift.trainer.results.text_rendering import render_text
from tests.helpers.page import Page
from tests.helpers.results import PLAIN, TAUGHT, create_png, create_rows, create_seed_results

HOSTILE = """</title><script>alert(1)</script><img src=x onerror='alert(2)'>" {{ 7 * 7 }} | a_b"""


def create_results(text: str = "student") -> Results:
    measured = {"plain": create_seed_results(PLAIN), text: create_seed_results(TAUGHT, PLAIN), "absent": ()}
    row_results = compare_rows(create_rows(*measured), measured, teacher=text)
    task = Task(text, text, text, {}, {})
    collection = CollectionResult(name=text, task=task, query_count=4, mode="boost", rows=row_results, notes=(text,))
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
    page = Page(render_html(create_results(HOSTILE), (Picture(HOSTILE, HOSTILE, create_png()),), (HOSTILE,)))
    assert "script" not in page.tags
    assert page.tags.count("img") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.open_tags == []
    assert page.text.count(HOSTILE) > 10
    assert "49" not in page.text, "a name is no template"


def test_the_page_loads_nothing_runs_nothing_and_forbids_both() -> None:
    page = render_html(create_results(), (Picture("student", "curves.png", create_png()),))
    for loader in ("http:", "https:", "href=", "url(", "@import", "<script", "<link", "javascript:"):
        assert loader not in page
    assert "default-src 'none'; img-src data:;" in page
    assert page.count("src=") == page.count('src="data:image/png;base64,iVBORw0KGgo') == 1


def test_every_id_is_used_once_and_the_tables_have_scopes() -> None:
    page = Page(render_html(create_results(), (Picture("student", "curves.png", create_png()),)))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value for name, value in page.attributes if name == "aria-labelledby"} <= set(ids)
    assert ("scope", "col") in page.attributes and ("scope", "row") in page.attributes


def test_the_page_has_every_number_of_a_row() -> None:
    words = " ".join(Page(render_html(create_results())).text.split())
    # The two seeds have 0.55 and 0.30: their mean is 0.425, their deviation 0.25 / sqrt(2). t = 0.125 / 0.125 with one
    # degree of freedom, nearly, because all seeds' variance is that of their means.
    assert "student 0.425 2 seeds ±0.177 0.300–0.550 0.500 100% 100%" in words
    assert "−1.000 to +1.000 4 / 0 / 0 0.501 Holm 0.501 0.501 Holm 0.501" in words
    assert "plain 0.300 0.500 71% 0% – – – –" in words
    assert "Weight 0.25" in words and "2031-01-02" in words


def test_the_text_fits_80_columns_and_a_row_without_a_result_is_empty() -> None:
    text = render_text(
        create_results("a student whose name is so long that no terminal would hold it beside its numbers")
    )
    assert all(len(line) <= 80 for line in text.splitlines())
    lines = [line.split() for line in text.splitlines()]
    assert ["plain", "0.300", "-", "71%", "0%", *["-"] * 4] in lines
    assert ["absent", *["-"] * 8] in lines
    assert next(line for line in lines if "0.425" in line)[-9:] == [
        "0.425",
        "2",
        "±0.177",
        "100%",
        "100%",
        *["0.501"] * 4,
    ]


def test_a_name_breaks_no_table_of_markdown() -> None:
    markdown = render_markdown(create_results(HOSTILE))
    widths = {len(line.replace("\\|", "").split("|")) for line in markdown.splitlines() if line.startswith("|")}
    assert widths == {2 + 2, 11 + 2}, "a row has the name and one collection, or the name and ten columns"
    assert "<script" not in markdown.replace("\\<", "")
    assert "| student | 0.425 | 2 ±0.177 | 100% | 100% | +0.125 |" in render_markdown(create_results())


def test_a_picture_that_is_absent_or_none_is_named_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "curves.png").write_bytes(create_png())
    (tmp_path / "page.png").write_text("<svg onload='alert(1)'/>", encoding="utf-8")
    names = [tmp_path / name for name in ("curves.png", "page.png", "gone.png")]
    pictures, problems = read_pictures({"SFT": names})
    assert [picture.caption for picture in pictures] == [f"{tmp_path.parent.name}/{tmp_path.name}/curves.png"]
    assert problems == (
        f"a picture of SFT is left out: {names[1]} is not a PNG file; draw the curves as PNG",
        f"a picture of SFT is left out: {names[2]} cannot be read (No such file or directory); name another file",
    )


@pytest.mark.parametrize(
    ("share", "text"), [(None, "-"), (0.954, "95%"), (-0.4, "-40%"), (-0.001, "0%"), (1.04, "104%")]
)
def test_a_share_is_whole_percent(share: float | None, text: str) -> None:
    assert format_percent(share) == text
