"""Message headers are kept with each file of a slot, whatever happens to directory and setting."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from fuploader_dagster.disk.header_text import from_text, to_text
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.slots.dedup_window import DedupWindow
from fuploader_dagster.slots.formats import WRITERS, contents
from fuploader_dagster.slots.index import PLAIN, WITH_HEADERS, read_index
from fuploader_dagster.slots.sealing import SealedSlot
from fuploader_dagster.slots.slot import SlotOwner
from tests.settings import intake

FORMATS = ["segment", "files"]
CMD = to_text({"cmd": "größe/64", "content-type": "image/png"})


def keeping(folder: Path, slot_format: str = "segment") -> Intake:
    return intake(folder, slot_format=slot_format, headers=["cmd", "content-type"])


def without(settings: Intake) -> Intake:
    return settings.model_copy(update={"headers": ()})


def headers_of(sealed: SealedSlot) -> dict[str, str]:
    return {entry.name: entry.headers for entry in sealed.entries()}


def version_of(directory: Path) -> int | None:
    return read_index((directory / "index").read_bytes()).version


def comments_in(segment: Path) -> dict[str, str]:
    """The headers in a segment, as tarfile sees them."""
    with tarfile.open(fileobj=io.BytesIO(segment.read_bytes() + bytes(1024))) as tar:
        return {one.name: one.pax_headers.get("comment", "") for one in tar.getmembers()}


@pytest.mark.parametrize("slot_format", FORMATS)
def test_a_sealed_slot_has_the_headers_of_each_file(tmp_path: Path, slot_format: str) -> None:
    with SlotOwner(keeping(tmp_path, slot_format), 0) as slot:
        slot.add("a.png", b"a", CMD)
        slot.add("b.png", b"b")
        slot.commit()
    with SlotOwner(keeping(tmp_path, slot_format), 0) as slot:
        slot.add("字.png", b"c", to_text({"cmd": ""}))
        sealed = slot.seal("request")
    assert sealed is not None
    assert headers_of(sealed) == {"a.png": CMD, "b.png": "", "字.png": '{"cmd":""}'}
    if slot_format == "segment":
        assert comments_in(sealed.segment) == headers_of(sealed)
    else:
        assert sorted(path.name for path in sealed.files.iterdir()) == ["a.png", "b.png", "字.png"]


@pytest.mark.parametrize("slot_format", FORMATS)
def test_a_pipeline_that_keeps_none_writes_the_bytes_of_version_2(
    tmp_path: Path, slot_format: str
) -> None:
    with SlotOwner(intake(tmp_path, slot_format=slot_format), 0) as slot:
        slot.add("a.json", b"a")
        sealed = slot.seal("request")
    assert sealed is not None
    assert version_of(sealed.directory) == PLAIN


@pytest.mark.parametrize("slot_format", FORMATS)
@pytest.mark.parametrize("reopened", [False, True])
def test_name_content_and_headers_decide_what_is_a_duplicate(
    tmp_path: Path, slot_format: str, reopened: bool
) -> None:
    """The same file for two commands is two messages."""
    other = to_text({"cmd": "other"})
    wanted = {"a": (b"1", CMD), "a~2": (b"1", other), "a~3": (b"2", other), "a~4": (b"1", "")}
    settings = keeping(tmp_path, slot_format)
    with SlotOwner(settings, 0) as slot:
        assert [slot.add("a", *message) for message in wanted.values()] == [True] * 4
        slot.commit()
        if not reopened:
            assert [slot.add("a", *message) for message in wanted.values()] == [False] * 4
            sealed = slot.seal("request")
    if reopened:
        with SlotOwner(settings, 0) as slot:
            assert [slot.add("a", *message) for message in wanted.values()] == [False] * 4
            sealed = slot.seal("request")
    assert sealed is not None
    found = zip(sealed.entries(), contents(sealed, sealed.entries()), strict=True)
    assert {entry.name: (content, entry.headers) for entry, content in found} == wanted


def test_a_redelivered_message_is_looked_for_with_its_headers(tmp_path: Path) -> None:
    settings = keeping(tmp_path)
    with SlotOwner(without(settings), 0) as slot:
        slot.add("plain", b"1")
        slot.seal("request")
    with SlotOwner(settings, 1) as slot:
        slot.add("a", b"1", CMD)
        slot.add("a", b"1", to_text({"cmd": "other"}))
        slot.commit()
        window = DedupWindow(settings.layout, 100)
        window.refresh()
        digest = hashlib.sha256(b"1").digest()
        asked = [CMD, to_text({"cmd": "other"}), to_text({"cmd": "third"}), "", None]
        assert [window.holds("a", digest, one) for one in asked] == [True, True, False, False, True]
        # Stored while no headers were kept: nobody knows which it had.
        assert window.holds("plain", digest, CMD)


@pytest.mark.parametrize("slot_format", FORMATS)
def test_switched_on_the_open_directory_is_sealed_as_it_is(
    tmp_path: Path, slot_format: str
) -> None:
    settings = keeping(tmp_path, slot_format)
    with SlotOwner(without(settings), 0) as slot:
        slot.add("before", b"1")
        slot.commit()
    with SlotOwner(settings, 0) as slot:
        (first,) = slot.found_sealed
        assert (first.seal.reason, version_of(first.directory)) == ("adopted", PLAIN)
        slot.add("after", b"2", CMD)
        second = slot.seal("request")
    assert second is not None
    assert (headers_of(first), headers_of(second)) == ({"before": ""}, {"after": CMD})
    assert version_of(second.directory) == WITH_HEADERS


@pytest.mark.parametrize("slot_format", FORMATS)
def test_switched_on_an_empty_directory_gets_room_for_headers(
    tmp_path: Path, slot_format: str
) -> None:
    settings = keeping(tmp_path, slot_format)
    with SlotOwner(without(settings), 0) as slot:
        slot.add("never committed", b"1")
    with SlotOwner(settings, 0) as slot:
        assert slot.found_sealed == []
        slot.add("a", b"2", CMD)
        sealed = slot.seal("request")
    assert sealed is not None
    assert (sealed.seal.number, headers_of(sealed)) == (1, {"a": CMD})


@pytest.mark.parametrize("slot_format", FORMATS)
def test_switched_off_the_open_directory_is_continued_in_its_version(
    tmp_path: Path, slot_format: str
) -> None:
    settings = keeping(tmp_path, slot_format)
    with SlotOwner(settings, 0) as slot:
        slot.add("before", b"1", CMD)
        slot.commit()
    with SlotOwner(without(settings), 0) as slot:
        slot.add("after", b"2")
        first = slot.seal("request")
        slot.add("next", b"3")
        second = slot.seal("request")
    assert first is not None
    assert second is not None
    assert headers_of(first) == {"before": CMD, "after": ""}
    assert [version_of(one.directory) for one in (first, second)] == [WITH_HEADERS, PLAIN]


@pytest.mark.parametrize("slot_format", FORMATS)
@pytest.mark.parametrize("still_on", [True, False])
def test_what_a_damaged_directory_proves_is_stored_again_with_its_headers(
    tmp_path: Path, slot_format: str, still_on: bool
) -> None:
    """Also where the setting was switched off meanwhile."""
    settings = keeping(tmp_path, slot_format)
    with SlotOwner(settings, 0) as slot:
        for number in range(3):
            slot.add(f"{number}", b"content %d" % number, to_text({"cmd": f"n/{number}"}))
            slot.commit()
        directory = slot.layout.active(0, 1)
    damaged = bytearray((directory / "index").read_bytes())
    damaged[damaged.index(b"n/1")] ^= 1
    (directory / "index").write_bytes(damaged)
    expected = {"0": '{"cmd":"n/0"}', "2": '{"cmd":"n/2"}'}
    now = settings if still_on else without(settings)
    with SlotOwner(now, 0) as slot:
        assert slot.count.messages == 2
    with SlotOwner(now, 0) as slot:  # as after a crash
        sealed = slot.seal("request")
        slot.add("next", b"1")
        later = slot.seal("request")
    assert sealed is not None
    assert headers_of(sealed) == expected
    assert later is not None
    assert version_of(later.directory) == (WITH_HEADERS if still_on else PLAIN)


def test_other_headers_in_the_data_than_in_the_index_are_damage(tmp_path: Path) -> None:
    with SlotOwner(keeping(tmp_path), 0) as slot:
        slot.add("a", b"1", CMD)
        slot.add("b", b"2", CMD)
        slot.commit()
        segment = slot.layout.active(0, 1) / "segment.tar"
    content = bytearray(segment.read_bytes())
    content[content.index(b"image/png")] ^= 1
    segment.write_bytes(content)
    with SlotOwner(keeping(tmp_path), 0) as slot:
        sealed = slot.seal("request")
    assert sealed is not None
    assert headers_of(sealed) == {"b": CMD}


def test_headers_count_towards_the_size_at_which_a_slot_is_sealed(tmp_path: Path) -> None:
    settings = keeping(tmp_path).model_copy(update={"seal_bytes": 10_000})
    with SlotOwner(settings, 0) as slot:
        slot.add("a", b"1", to_text({"cmd": "x" * 5_000}))
        assert slot.due() is None
        slot.add("b", b"1", to_text({"cmd": "x" * 5_000}))
        slot.commit()
        assert slot.due() == "bytes"
    with SlotOwner(settings, 0) as slot:
        assert slot.due() == "bytes"
        sealed = slot.seal("bytes")
    assert sealed is not None
    assert sealed.seal.payload_bytes == 2


def test_a_redelivered_message_is_found_in_an_index_of_either_version(tmp_path: Path) -> None:
    """In the open directory too, of which more is read each time."""
    settings = keeping(tmp_path)
    window = DedupWindow(settings.layout, 1000)
    bodies = {"plain": b"0"}
    with SlotOwner(without(settings), 0) as slot:
        slot.add("plain", b"0")
        slot.commit()
    with SlotOwner(settings, 0) as slot:
        for number in range(3):
            bodies[f"{number}"] = b"%d" % number
            slot.add(f"{number}", b"%d" % number, CMD)
            slot.commit()
            window.refresh()
            digests = {name: hashlib.sha256(body).digest() for name, body in bodies.items()}
            for headers in (CMD, None):
                assert all(window.holds(name, one, headers) for name, one in digests.items())
        assert not window.holds("3", digests["2"])


def test_a_writer_without_room_refuses_headers(tmp_path: Path) -> None:
    for name, make in WRITERS.items():
        writer = make(tmp_path / name)
        writer.open(lambda path: path)
        with pytest.raises(ValueError, match="no room for message headers"):
            writer.add("a", b"1", bytes(32), CMD)
        writer.add("a", b"1", bytes(32))
        writer.commit()
        writer.close()


def test_the_text_is_the_same_whatever_the_order_and_comes_back() -> None:
    headers = {"b": "2", "a": '"\\\n\x7f字'}
    assert to_text(headers) == to_text(dict(sorted(headers.items())))
    assert from_text(to_text(headers)) == headers
    assert (to_text({}), from_text("")) == ("", {})


@pytest.mark.parametrize("text", ["built by make", "{", '{"a":1}', "[]", '{"a":' * 10_000, "{}x"])
def test_a_comment_of_another_program_is_no_headers(text: str) -> None:
    assert from_text(text) == {}
