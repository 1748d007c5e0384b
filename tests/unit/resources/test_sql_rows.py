"""Messages that are made of many rows at once are those that would be made of each alone."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from sqlalchemy import types

from fuploader_dagster.resources.sources.sql.key_values import in_a_word
from fuploader_dagster.resources.sources.sql.rows import RowShape

NAMES = ["id", "名前", 'a "b"', "back\\slash", "tab\there", "with space", "class", "f0", "0"]


def shape_of(fields: dict[str, str], key: Sequence[str]) -> RowShape:
    return RowShape(fields, key, {column: types.Text() for column in [*fields.values(), *key]})


@pytest.mark.parametrize("names", [NAMES[:2], NAMES, [f"n{n}" for n in range(600)]])
@pytest.mark.parametrize("key", [["id"], ["other"], ["id", "other"]])
@pytest.mark.parametrize("first", [7, "ä", b"\xff"])
def test_rows_become_objects_and_keys(names: list[str], key: list[str], first: Any) -> None:
    fields = dict(zip(names, ["id", *names[1:]], strict=True))
    shape = shape_of(fields, key)
    selected = [column.name for column in shape.selected()]
    assert sorted(selected) == sorted({*fields.values(), *key})
    values = {name: f"{name} \N{SNOWMAN} \x01" for name in selected} | {"id": first, names[1]: None}
    row = tuple(values[name] for name in selected)
    other = tuple("id 2" if name == "id" else one for name, one in zip(selected, row, strict=True))
    made = shape.messages([row, other, row], 5, 2)
    of_row = {field: values[column] for field, column in fields.items()}
    assert [one.body for one in made] == [
        msgspec.json.encode(one) for one in (of_row, {**of_row, names[0]: "id 2"}, of_row)
    ]
    keys = [tuple(values[name] for name in key)] * 3
    if "id" in key:
        keys[1] = ("id 2", *keys[0][1:])
    assert [one.attributes for one in made] == keys
    assert [one.message_id for one in made] == list(map(in_a_word, keys))
    assert [(one.delivery, one.redelivered) for one in made] == [(5, True), (6, True), (7, False)]
    assert not any(one.damage for one in made)


def test_a_key_is_the_value_that_was_read_not_the_one_in_the_body() -> None:
    shape = RowShape({"price": "price"}, ["price"], {"price": types.Numeric()})
    (made,) = shape.messages([(Decimal("1.50"),)], 1, 0)
    assert (made.body, made.attributes) == (b'{"price":"1.50"}', (Decimal("1.50"),))
