"""The benchmarks' own promises: what is written is what is read, and nothing is invented."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import file_uploader
import pytest

from benchmarks import report
from benchmarks.disk import Disk
from benchmarks.documents import Documents, name_of
from benchmarks.ground import Ground, Sizes
from benchmarks.results import ResultFile, Row, Spread, read
from benchmarks.rows import GROUPS, QUICK

HEADER = {
    "date": "2026-11-21T00:00:00+00:00",
    "machine": {
        "cores": 2,
        "processor": "one",
        "memory_gib": 4,
        "system": "Linux",
        "load_at_start": 0,
    },
    "versions": {"python": "3.11"},
    "commit": "abc",
    "disk": "ext4 with a journal",
    "journalled": True,
    "quick": False,
    "scale": 1,
    "whole": True,
}
MEASURED = Row(
    row="drain",
    unit="messages/s",
    ours=Spread(2000, 1800, 2200),
    fuploader=Spread(100, 90, 110),
    against="fuploader",
    least=15,
)
NOT_MEASURED = Row(row="pack", unit="files/s", against="bare", least=1, note="tar is missing")


def test_a_result_file_gives_back_what_was_measured(tmp_path: Path) -> None:
    kept = ResultFile(tmp_path / "one.jsonl", HEADER)
    kept.add(MEASURED)
    kept.add(NOT_MEASURED)
    header, rows = read(kept.path)
    assert header == {"header": True, **HEADER}
    assert list(rows) == [MEASURED, NOT_MEASURED]
    line = json.loads(kept.path.read_text().splitlines()[1])
    assert line["ratio"] == {
        "median": 20,
        "min": pytest.approx(16.36, abs=0.01),
        "max": pytest.approx(24.44, abs=0.01),
    }
    assert {"row", "unit", "ours", "fuploader", "bare", "ratio"} <= set(line)


def test_a_row_that_was_not_measured_has_no_ratio_and_reaches_nothing() -> None:
    assert (NOT_MEASURED.ratio, NOT_MEASURED.met) == (None, None)
    assert NOT_MEASURED.as_json()["ours"] is None


@pytest.mark.parametrize(("median", "met"), [(49.0, True), (51.0, False)])
def test_a_row_where_less_is_better_is_met_from_below(median: float, met: bool) -> None:
    row = Row(
        row="CPU",
        unit="ms",
        ours=Spread(median, median, median),
        judge="ours",
        least=50,
        more_is_better=False,
    )
    assert row.met is met


def test_a_spread_of_nothing_is_nothing() -> None:
    assert Spread.of([]) is None
    assert Spread.of([3, 1, 2]) == Spread(2, 1, 3)


def test_a_message_is_what_fuploader_makes_of_its_document_and_name() -> None:
    documents = Documents(2000)
    decoded = file_uploader.parse_file_message(documents.body(1234))
    assert decoded.file_name == name_of(1234)
    assert decoded.payload == json.loads(documents.content(1234))
    assert len(documents.content(1234)) == pytest.approx(2000, abs=100)
    assert Documents(2000).content(7) == documents.content(7)


def test_the_table_goes_between_the_marks_of_the_page_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_docs(HEADER, [MEASURED, NOT_MEASURED], "one.jsonl", page)
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith("\nafter\n")
    assert "old" not in written
    assert "2,000 (1,800 to 2,200)" in written
    assert "tar is missing" in written


def test_the_page_of_the_repository_has_a_place_for_the_table() -> None:
    text = report.DOCS.read_text()
    assert text.count(report.BEGIN) == text.count(report.END) == 1


def test_the_short_form_is_made_of_groups_that_exist() -> None:
    assert set(QUICK) <= set(GROUPS)


def test_repetitions_are_those_of_a_drain_and_others_are_in_proportion() -> None:
    assert [Sizes().times(full) for full in (5, 9, 3)] == [5, 9, 3]
    assert [Sizes(repetitions=3).times(full) for full in (5, 9, 3)] == [3, 6, 2]
    assert Sizes(quick=True).times(9, 5) == 5


def test_a_round_measures_all_and_begins_with_another_one_each_time(tmp_path: Path) -> None:
    order: list[str] = []

    def measure(name: str) -> int:
        order.append(name)
        return len(order)

    with Ground(Disk(tmp_path, "a folder", False), Sizes()) as ground:
        runs = ground.rounds("all", {one: partial(measure, one) for one in "abc"}, 2)
    assert "".join(order) == "abcbca"
    assert [one["a"] for one in runs.runs] == [1, 6]
