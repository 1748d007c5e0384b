"""While something of FUploader's is in its folder or its Redis, a pipeline does not start."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import Field

from fuploader_dagster.errors import MigrationNeeded, StateUnavailable
from fuploader_dagster.intake.leftovers import refuse_leftovers
from fuploader_dagster.resources.states.sqlite import SqliteState
from fuploader_dagster.settings.takeover import Takeover
from tests.settings import pipeline

NODE = "box1"


class Shared(SqliteState):
    """A state store on a server with keys of another program's; counts how often it is asked."""

    keys: tuple[str, ...] = ()
    down: bool = False
    asked: list[int] = Field(default_factory=list)

    def holds_any(self, keys: Sequence[str]) -> bool:
        self.asked.append(1)
        if self.down:
            raise StateUnavailable("it does not answer")
        return not set(self.keys).isdisjoint(keys)


@pytest.mark.parametrize(
    "left",
    [
        "slot_0_3/",
        "dir-000001/",
        "active/slot-0/dir-000001/",
        "sealed/slot-0/dir-000001/",
        "sealed/slot-0/loose.json",
        "sealed/.pool/",
        "20261120_234501_123456_1a2b3c4d.tar.zst",
        "sealed/slot-0/slot_0_3.tar.zst",
        "docs/adopting/slot-9999/",
    ],
)
def test_it_does_not_start_beside_anything_of_fuploaders_and_names_the_command(
    tmp_path: Path, left: str
) -> None:
    docs, path = pipeline(tmp_path), tmp_path / "data" / left
    (path if left.endswith("/") else path.parent).mkdir(parents=True)
    if not left.endswith("/"):
        path.write_bytes(b"a")
    for _ in range(2):
        with pytest.raises(MigrationNeeded, match="`fuploader migrate --pipeline docs`") as caught:
            refuse_leftovers(docs)
        assert str(tmp_path / "data") in caught.value.message
    refuse_leftovers(pipeline(tmp_path, takeover=Takeover(enabled=False)))
    shutil.rmtree(tmp_path / "data")
    refuse_leftovers(docs)


@pytest.mark.parametrize(
    "path",
    ["slot_0", "notes/slot_0_3", "active/mine", "backup.tar.zst", "docs/sealed/slot-0/dir-000001"],
)
def test_what_is_not_fuploaders_is_nobodys_business(tmp_path: Path, path: str) -> None:
    (tmp_path / "data" / path).mkdir(parents=True)
    refuse_leftovers(pipeline(tmp_path))


@pytest.mark.parametrize(
    ("key", "refused"),
    [
        (f"docs:meta:{NODE}:slot:0:active_dir", True),
        (f"docs:meta:{NODE}:sealed_ready", True),
        ("file_uploader:slot:0", True),
        ("file_uploader:queue:ready", True),
        ("file_uploader:runtime:initialized", True),
        ("docs:meta:box2:slot:0:active_dir", False),
        (f"images:meta:{NODE}:slot:0:active_dir", False),
        ("file_uploader:images:slot:0", False),
    ],
)
def test_keys_of_this_task_on_this_node_count_until_a_take_over_has_judged_them(
    tmp_path: Path, key: str, refused: bool
) -> None:
    docs = pipeline(
        tmp_path, node_id=NODE, state=Shared(path=tmp_path / "state.sqlite", keys=(key,))
    )
    if not refused:
        refuse_leftovers(docs)
        return
    with pytest.raises(MigrationNeeded, match=f"left keys that begin with docs:meta:{NODE}:"):
        refuse_leftovers(docs)
    docs.layout.root.mkdir(parents=True)
    (docs.layout.root / "taken-over.jsonl").touch()
    refuse_leftovers(docs)


def test_once_it_is_found_clean_a_process_looks_no_more(tmp_path: Path) -> None:
    docs = pipeline(tmp_path, state=Shared(path=tmp_path / "state.sqlite"))
    for _ in range(3):
        refuse_leftovers(docs)
    assert docs.state.asked == [1]  # type: ignore[attr-defined]


def test_a_redis_that_is_down_stops_no_start_and_is_asked_again(tmp_path: Path) -> None:
    docs = pipeline(tmp_path, state=Shared(path=tmp_path / "state.sqlite", down=True))
    for _ in range(2):
        refuse_leftovers(docs)
    assert docs.state.asked == [1, 1]  # type: ignore[attr-defined]
