"""Settings: impossible values and traps between options are refused with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fuploader_dagster.archives.forms import FORMS
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from fuploader_dagster.settings.archive_formats import SUFFIXES, format_of
from fuploader_dagster.settings.pipeline import Intake, Pipeline
from tests.settings import intake, pipeline


def packer_of_a_user(directory: Path) -> Path:
    return directory


async def async_name(_: Any) -> str:
    return "name"


def refusal(folder: Path, values: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        pipeline(folder, **values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prefetch_count": 500, "commit_messages": 500}, "prefetch_count (500) must be larger"),
        ({"prefetch_count": 1}, "greater than or equal to 2"),
        ({"lease_seconds": 5}, "lease_seconds (5) must be between 6 and 60"),
        ({"lease_seconds": 61}, "lease_seconds (61) must be between 6 and 60"),
        ({"flush_interval_seconds": 10.5}, "flush_interval_seconds (10.5) must be at most 10"),
        ({"flush_interval_seconds": 0}, "greater than 0"),
        ({"seal_age_seconds": float("inf")}, "finite number"),
        ({"max_unshipped_bytes": 1, "seal_bytes": 10}, "must be at least twice seal_bytes (10)"),
        ({"seal_messages": 0}, "greater than or equal to 1"),
        ({"name_fields": ("id", "payload")}, "name_fields cannot contain payload"),
        ({"file_name": async_name}, "file_name must be a plain function"),
        ({"archive_suffix": ".7z"}, "the built-in packer writes tar.zst only as .tar.zst or .tzst"),
        ({"archive_suffix": ".zip"}, "set archive_format: zip"),
        ({"archive_format": "zip", "archive_suffix": ".tar.zst"}, "zip only as .zip; set"),
        ({"archive_format": "zip", "archive_suffix": ".zipped"}, "zip only as .zip"),
        ({"parquet_columns": {"id": "int64"}}, "need archive_format: parquet"),
        ({"parquet_content": False}, "need archive_format: parquet"),
        (
            {"archive_format": "parquet", "parquet_columns": {"id": "decimal"}},
            "'bool', 'int64', 'double' or 'string'",
        ),
        (
            {"archive_format": "parquet", "parquet_columns": {"_content": "string"}},
            "_content cannot be a column",
        ),
        ({"archive_format": "7z"}, "'tar.zst', 'jsonl.zst', 'zip' or 'parquet'"),
        (
            {"archive_format": "zip", "packer": packer_of_a_user},
            "packer and archive_format (zip) both say how an archive is made",
        ),
        ({"archive_suffix": "7z"}, "should match pattern"),
        ({"recovery_base_seconds": 60, "recovery_cap_seconds": 30}, "must not be more than"),
        ({"name": "Docs"}, "should match pattern"),
        ({"name": "../docs"}, "should match pattern"),
        ({"timezone": "Mars/Olympus"}, "there is no time zone 'Mars/Olympus'"),
        ({"timezone": "Europe"}, "there is no time zone 'Europe'"),
        ({"timezone": "../../etc/passwd"}, "there is no time zone"),
        ({"timezone": ""}, "there is no time zone ''"),
        ({"timezone": 8}, "there is no time zone 8"),
        ({"node_id": "a/b"}, "should match pattern"),
        ({"node_id": ""}, "should match pattern"),
        ({"compression_level": 20}, "less than or equal to 19"),
        ({"message_format": "xml"}, "'envelope', 'json' or 'raw'"),
        ({"no_such_setting": 1}, "no_such_setting"),
        ({"store": None}, "instance of OpensObjectStore"),
    ],
)
def test_an_impossible_value_or_combination_is_refused_with_what_would_be_right(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    assert said in refusal(tmp_path, values)


@pytest.mark.parametrize(
    ("values", "commit_messages"),
    [
        ({}, 500),
        ({"prefetch_count": 50}, 25),
        ({"prefetch_count": "50"}, 25),
        ({"prefetch_count": 2}, 1),
        ({"prefetch_count": 10_000}, 500),
        ({"prefetch_count": 50, "commit_messages": 49}, 49),
    ],
)
def test_the_default_batch_follows_the_prefetch(
    tmp_path: Path, values: dict[str, Any], commit_messages: int
) -> None:
    assert intake(tmp_path, **values).commit_messages == commit_messages


@pytest.mark.parametrize(
    "node_id", ["node_id-10.0.0.1", "node_id-10.0.0.1-meta-p0", "node-1.a_B", "n" * 64]
)
def test_node_names_that_fuploader_makes_are_accepted(tmp_path: Path, node_id: str) -> None:
    assert intake(tmp_path, node_id=node_id).node == node_id


def test_without_a_node_name_partition_keys_say_local(tmp_path: Path) -> None:
    assert intake(tmp_path).node == "local"


def test_a_custom_packer_may_have_its_own_suffix(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, packer=packer_of_a_user, archive_suffix=".7z")
    assert settings.archive_suffix == ".7z"


def test_the_extension_of_archives_follows_their_format(tmp_path: Path) -> None:
    assert pipeline(tmp_path).archive_suffix == ".tar.zst"
    assert pipeline(tmp_path, archive_format="zip").archive_suffix == ".zip"
    assert intake(tmp_path, archive_format="jsonl.zst").archive_suffix == ".jsonl.zst"
    assert pipeline(tmp_path, archive_suffix=".tzst").archive_suffix == ".tzst"


def test_every_format_in_the_settings_can_be_written_and_its_names_say_which_it_is() -> None:
    assert tuple(SUFFIXES) == FORMS
    for name, suffixes in SUFFIXES.items():
        for suffix in suffixes:
            assert format_of(f"20261120T234501123Z-a.zip.b-s0-000017{suffix}") == name


def test_name_fields_may_be_a_list_or_one_line(tmp_path: Path) -> None:
    assert intake(tmp_path, name_fields="id, file_name").name_fields == ("id", "file_name")
    assert intake(tmp_path, name_fields=["id"]).name_fields == ("id",)
    assert intake(tmp_path, name_fields=[]).name_fields == ()
    allowed = intake(tmp_path, name_fields=["payload"], message_format="json")
    assert allowed.name_fields == ("payload",)


def test_a_tilde_means_the_home_folder_as_in_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = intake(tmp_path, storage_root="~/data")
    assert settings.layout.root == tmp_path / "data" / "docs"


def test_workers_own_disjoint_slots(tmp_path: Path) -> None:
    settings = intake(tmp_path, process_count=3, slots_per_worker=4)
    owned = [slot for worker in range(3) for slot in settings.slots_of(worker)]
    assert owned == list(range(12))


def test_no_printed_form_of_the_settings_shows_a_secret(tmp_path: Path) -> None:
    source = RabbitMQ(queue="q", user="u", password="hunter2")
    settings = pipeline(tmp_path, source=source)
    for shown in (
        repr(settings),
        str(settings),
        repr(settings.intake()),
        str(settings.model_dump(exclude={"store"})),
        settings.intake().model_dump_json(),
        source.describe(),
    ):
        assert "hunter2" not in shown


def test_a_worker_gets_its_half_of_the_settings_and_nothing_of_the_store(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, seal_messages=7, node_id="n")
    half = settings.intake()
    assert type(half) is Intake
    assert half == Intake(**{name: getattr(settings, name) for name in Intake.model_fields})
    assert not set(half.model_dump()) & (set(Pipeline.model_fields) - set(Intake.model_fields))


def test_settings_cannot_be_changed_after_they_were_checked(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        intake(tmp_path).seal_messages = 1  # type: ignore[misc]


def test_headers_may_be_a_list_or_one_line(tmp_path: Path) -> None:
    assert intake(tmp_path, headers="cmd, Content-Type").headers == ("cmd", "Content-Type")
    assert intake(tmp_path, headers=["cmd"]).headers == ("cmd",)
    assert intake(tmp_path).headers == ()


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["cmd", ""], "at least 1 character"),
        (["content-type", "Content_Type"], "two of the names mean the same header"),
        ([str(number) for number in range(33)], "at most 32 items"),
        ([7], "valid string"),
    ],
)
def test_headers_that_are_no_names_or_too_many_are_refused(
    tmp_path: Path, names: list[str], problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        intake(tmp_path, headers=names)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"owners": ["ann"]}, "'ann' is neither an e-mail address nor team:NAME"),
        ({"owners": "a@example.com,team:"}, "'team:' is neither"),
        ({"tags": {"a b": "c"}}, "'a b': 'c' is no tag"),
        ({"tags": {"a": "c" * 64}}, "is no tag"),
        ({"tags": {"a/b/c": "d"}}, "is no tag"),
    ],
)
def test_owners_and_tags_that_dagster_would_refuse_are_named(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    assert said in refusal(tmp_path, values)
