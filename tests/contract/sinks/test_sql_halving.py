"""However bad items are found, the same rows are stored and the same items rejected, in order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from fuploader_dagster.contracts.sink import Delivery, ItemRows, RejectedItem
from fuploader_dagster.resources.sinks import sql_insertion
from tests.contract.sinks.databases import Database, Table, on_each

DELIVERY = Delivery("shop", "rows", "20261120T234501123Z-node1-s0-000017")
COLUMNS = """
    id INTEGER PRIMARY KEY, name VARCHAR(8) NOT NULL DEFAULT '-',
    code VARCHAR(8) UNIQUE, amount INTEGER, CONSTRAINT small_amount CHECK (amount < 1000)"""
_ODD: Sequence[dict[str, Any]] = (
    {"name": None},
    {"amount": 1_000},
    {"amount": "many"},
    {"code": "twice"},
    {"id": 1},
    {"id": None, "name": None},
)


def items(seed: int, share: float, *, plain: bool) -> list[ItemRows]:
    """A share of them is bad. If they are `plain`, each has one row, and all the same columns."""
    chance = random.Random(seed)
    made, number = [], 1
    for position in range(300):
        rows = []
        for _ in range(1 if plain else chance.randrange(4)):
            row = {"id": number, "name": "good", "code": f"c{number}", "amount": number % 900}
            if chance.random() < share:
                row |= chance.choice(_ODD)
            if not plain and chance.random() < 0.1:
                del row["amount"]
            rows.append(row)
            number += 1
        made.append(ItemRows(position, rows))
    return made


def outcome(
    database: Database, given: Sequence[ItemRows], **settings: Any
) -> tuple[int, list[tuple[Any, ...]], list[tuple[int, str]]]:
    table = Table(database, COLUMNS)
    rejected: list[RejectedItem] = []
    sink = table.settings(**settings).sink()
    stored = sink.store(DELIVERY, given, rejected.extend)
    sink.close()
    reasons = [(one.position, one.reason.replace(table.name, "t")) for one in rejected]
    return stored.rows, table.rows(), reasons


@on_each
@pytest.mark.parametrize("key", [(), ("id",)])
@pytest.mark.parametrize(("share", "plain"), [(0.01, True), (0.4, True), (0.1, False)])
def test_what_is_stored_and_rejected_does_not_depend_on_how_bad_items_are_found(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    key: Sequence[str],
    share: float,
    plain: bool,
) -> None:
    monkeypatch.setattr(sql_insertion, "CHUNK_ROWS", 130)
    given = items(round(100 * share), share, plain=plain)
    found = outcome(database, given, key=key)
    assert found[2], "some are bad"
    with monkeypatch.context() as halves_only:
        halves_only.setattr(sql_insertion, "_item_of", lambda items, row: None)
        assert outcome(database, given, key=key) == found
    monkeypatch.setattr(sql_insertion, "CHUNK_ROWS", 1)  # each is sent alone
    assert outcome(database, given, key=key) == found


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_an_item_whose_row_the_database_names_is_sent_alone_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    real = sql_insertion.Insertion._refused

    def counted(self: Any, some: Any) -> Any:
        sent.append(len(some))
        return real(self, some)

    monkeypatch.setattr(sql_insertion.Insertion, "_refused", counted)
    good = [{"id": n, "name": "good", "code": f"c{n}", "amount": n % 900} for n in range(1, 1001)]
    for n in range(99, 1000, 100):
        good[n] |= {"name": None}
    stored = outcome(database, [ItemRows(n, [row]) for n, row in enumerate(good)])
    assert stored[0] == 990
    assert [position for position, _ in stored[2]] == list(range(99, 1000, 100))
    assert len(sent) <= 41
