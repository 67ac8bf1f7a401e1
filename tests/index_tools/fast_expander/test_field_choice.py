"""A look at an index tells which of its text fields an expander should read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.field_choice import choose_fields, format_field_table, list_chosen_names
from querylift.index_tools.indexing import IndexPlan, make_index_body
from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import parse_settings
from tests.helpers.expanders import create_index, fill_index, remove_indices

pytestmark = pytest.mark.engine
INDEX, OTHER = INDICES = ("expander-choice-1", "expander-choice-2")
TEXT = {"type": "text"}
ENGLISH = {"type": "text", "analyzer": "english"}
KEYWORD = {"type": "keyword"}


@pytest.fixture
def engine(opensearch: str) -> Iterator[Engine]:
    with Engine(parse_settings({"engine": opensearch})) as connected_engine:
        remove_indices(connected_engine, *INDICES)
        yield connected_engine
        remove_indices(connected_engine, *INDICES)


def choose_reasons(engine: Engine, expression: str = INDEX, form: str = "neighbours") -> dict[str, str]:
    """Why each field is left out; "" when it is chosen."""
    return {field.name: field.reason for field in choose_fields(engine, expression, form=form)}


def fill_products(engine: Engine, properties: Mapping[str, Any], **values: Any) -> None:
    """Forty products. A value is a text for all, or a function of the product's number."""
    create_index(engine, INDEX, properties)
    documents = {
        f"p{number}": {name: value(number) if callable(value) else value for name, value in values.items()}
        for number in range(40)
    }
    fill_index(engine, INDEX, documents)


def name_product(number: int) -> str:
    return f"{'red green blue oak'.split()[number % 4]} {'chair table lamp shelf sofa'.split()[number % 5]}"


def describe_product(number: int) -> str:
    return f"A fine {name_product(number)} for every room of the house, made by hand"


def test_prose_is_chosen_and_codes_addresses_labels_and_rare_fields_are_left_out(engine: Engine) -> None:
    fill_products(
        engine,
        dict.fromkeys(("name", "description", "sku", "url", "color", "brand", "note", "unused"), TEXT),
        name=name_product,
        description=lambda number: f"Made by hand, number {number} of a series",
        sku=lambda number: f"AB-{number}/x",
        url=lambda number: f"https://shop.example/item/{'abcdefgh'[number % 8]}",
        color=lambda number: ["dark red", "green"][number % 2],
        brand=lambda number: f"maker {'abcdefghijklmnopqrst'[number // 2]}",
        note=lambda number: "handle with great care" if number == 7 else None,
    )
    assert choose_reasons(engine) == {
        "name": "",
        "brand": "",
        "color": "its values are labels, only 2 different ones",
        "description": "",
        "note": "fewer than 5% of the documents have it",
        "sku": "its values are codes, numbers or addresses",
        "unused": "no document has it",
        "url": "its values are codes, numbers or addresses",
    }


def test_an_index_of_querylift_gives_the_one_field_that_holds_the_others(engine: Engine) -> None:
    engine.call("PUT", f"/{INDEX}", make_index_body(IndexPlan(INDEX), "en"))
    fill_index(engine, INDEX, {f"d{number}": {"title": name_product(number), "text": "prose"} for number in range(5)})
    assert choose_reasons(engine) == {
        "title": "contents holds its text",
        "contents": "",
        "text": "contents holds its text",
    }


def test_a_field_that_holds_only_some_of_the_others_is_left_out(engine: Engine) -> None:
    copied = TEXT | {"copy_to": "all"}
    fill_products(
        engine,
        {"title": copied, "summary": copied, "body": TEXT, "all": TEXT},
        title=name_product,
        summary=lambda number: f"short words on {name_product(number)}",
        body=lambda number: f"a long story about {name_product(number)} and more",
    )
    assert choose_reasons(engine) == {
        "title": "",
        "all": "it holds the text of title, summary",
        "body": "",
        "summary": "",
    }


def test_a_field_that_an_application_filled_with_all_others_is_taken_alone(engine: Engine) -> None:
    fill_products(
        engine,
        {"title": TEXT, "text": TEXT, "title_and_text": TEXT},
        title=name_product,
        text=lambda number: f"made by hand in the year of {'abcdefgh'[number % 8]}",
        title_and_text=lambda number: f"{name_product(number)} made by hand in the year of {'abcdefgh'[number % 8]}",
    )
    assert choose_reasons(engine) == {
        "title": "title_and_text holds its text",
        "text": "title_and_text holds its text",
        "title_and_text": "",
    }


def test_a_text_that_begins_with_its_title_leaves_the_title_chosen(engine: Engine) -> None:
    fill_products(engine, {"title": TEXT, "text": TEXT}, title=name_product, text=describe_product)
    assert choose_reasons(engine) == {"title": "", "text": ""}


def test_sub_fields_nested_objects_and_unsearchable_fields_are_left_out(engine: Engine) -> None:
    sub_fields = {"english": ENGLISH, "raw": KEYWORD}
    fill_products(
        engine,
        {
            "title": TEXT | {"fields": sub_fields},
            "code": KEYWORD | {"fields": {"text": TEXT}},
            "stored": TEXT | {"index": False},
            "comments": {"type": "nested", "properties": {"text": TEXT}},
            "author": {"properties": {"biography": TEXT}},
        },
        title=name_product,
        code=lambda number: f"of the {name_product(number)} kind",
        stored=describe_product,
        comments=lambda number: [{"text": describe_product(number)}],
        author=lambda number: {"biography": f"was born in the {'abcdefgh'[number % 8]} century by the sea"},
    )
    assert choose_reasons(engine) == {
        "title": "",
        "author.biography": "",
        "code.text": "",
        "comments.text": "it is inside a nested object",
        "stored": "it cannot be searched",
        "title.english": "it is a sub-field of title",
    }


def test_a_field_of_only_one_of_several_indices_is_left_out(engine: Engine) -> None:
    fill_products(engine, {"title": TEXT, "text": TEXT}, title=name_product, text=describe_product)
    create_index(engine, OTHER, {"title": TEXT, "text": KEYWORD})
    fill_index(engine, OTHER, {"x": {"title": "green lamp"}})
    assert choose_reasons(engine, ",".join(INDICES)) == {"title": "", "text": f"{OTHER} has no such text field"}


def test_each_form_takes_as_many_fields_as_it_can(engine: Engine) -> None:
    fill_products(
        engine,
        {"title": TEXT, "text": ENGLISH, "note": ENGLISH},
        title=name_product,
        text=describe_product,
        note="x y z",
    )
    fields = {form: choose_reasons(engine, form=form) for form in ("neighbours", "terms", "cluster")}
    assert fields["neighbours"] == {"title": "", "note": "", "text": ""}
    assert fields["terms"] == {"title": "the form terms takes fields of one analyzer", "note": "", "text": ""}
    one_field = "the form cluster takes the terms of one field"
    assert fields["cluster"] == {"title": one_field, "note": one_field, "text": ""}


def test_titles_and_the_longest_fields_stay_when_there_are_many(engine: Engine) -> None:
    names = [f"part{number}" for number in range(9)]
    values = {name: f"{'some words ' * (position + 2)}in {name}" for position, name in enumerate(names)}
    fill_products(engine, dict.fromkeys(("title", *names), TEXT), title=name_product, **values)
    reasons = choose_reasons(engine)
    assert [name for name, reason in reasons.items() if not reason] == ["title", *names[2:]]
    assert reasons["part0"] == "there are more than 8 fields"


def test_chinese_prose_with_numbers_is_no_code_and_no_label(engine: Engine) -> None:
    cjk = {"type": "text", "analyzer": "cjk"}
    fill_products(engine, {"text": cjk}, text=lambda number: f"二〇{number}年法律問題的規定與解釋")
    (field,) = choose_fields(engine, INDEX)
    assert (field.reason, field.analyzer, field.coverage) == ("", "cjk", 1.0)
    assert field.mean_words > 5


def test_the_table_says_what_each_field_is_and_what_becomes_of_it(engine: Engine) -> None:
    fill_products(
        engine,
        {"title": ENGLISH, "sku": TEXT},
        title=lambda number: name_product(number) if number < 20 else None,
        sku=lambda number: f"AB-{number}",
    )
    fields = choose_fields(engine, INDEX)
    assert list_chosen_names(fields) == ("title",)
    assert format_field_table(fields) == [
        "  title  english   50% of documents      2 words  chosen",
        "  sku    default  100% of documents      1 words  left out: its values are codes, numbers or addresses",
    ]


def test_an_index_without_prose_is_refused_with_the_reasons(engine: Engine) -> None:
    fill_products(engine, {"sku": TEXT}, sku=lambda number: f"AB-{number}")
    with pytest.raises(SettingsError) as caught:
        choose_fields(engine, INDEX)
    assert str(caught.value) == (
        f"no field of {INDEX} can be chosen (sku: its values are codes, numbers or addresses); name one with --field"
    )
    create_index(engine, OTHER, {"tag": KEYWORD})
    with pytest.raises(SettingsError, match=f"no field of {OTHER} can be chosen .it has no text field.; name one"):
        choose_fields(engine, OTHER)
