"""Packing: the same slot, the same bytes; whatever a packer does, the slot stays as it is."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import file_uploader
import pytest

from fuploader_dagster.delivery.attempts import Done, Failed
from fuploader_dagster.delivery.pack import find_packed, forget_packed, pack
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.errors import DamagedSlot, StrategyError
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.sealing import SEAL_NAME, SealedSlot, find_sealed
from tests.settings import pipeline, sealed

FORMATS = ["segment", "files"]
FILES = {f"m{n}.json": b"%d" % n * n for n in range(30)} | {"ü" * 100: b"\x00" * 70_000}


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file below the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def tar_files(archive: Path) -> dict[str, bytes]:
    """What zstd and tar find in an archive, by the last part of the name."""
    tar = subprocess.run(["zstd", "-dc", str(archive)], capture_output=True, check=True).stdout
    found = {}
    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        for member in members:
            if (file := members.extractfile(member)) is not None:
                found[Path(member.name).name] = file.read()
    return found


def listing_packer(directory: Path) -> Path:
    """Writes names and digests, in order."""
    made = directory.parent / f"{directory.name}.txt"
    lines = [
        f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in sorted(directory.iterdir())
    ]
    made.write_text("\n".join(lines))
    return made


async def async_listing_packer(directory: Path) -> Path:
    return listing_packer(directory)


def packer_that_moves_elsewhere(directory: Path) -> Path:
    """Returns a file on another file system, where there is one, through a link."""
    made = Path("/dev/shm") / f"fuploader-{os.getpid()}-{directory.name}.txt"
    shutil.copyfile(listing_packer(directory), made)
    link = directory.parent / "link.txt"
    link.symlink_to(made)
    return link


def packer_that_removes_its_input(directory: Path) -> Path:
    made = listing_packer(directory)
    shutil.rmtree(directory)
    return made


def packer_that_spoils_its_input(directory: Path) -> None:
    for path in directory.iterdir():
        path.write_bytes(b"spoilt")
        path.chmod(0o400)


def packer_that_returns_nothing(_: Path) -> None:
    return None


def packer_that_returns_the_folder(directory: Path) -> Path:
    return directory


def packer_that_lies(directory: Path) -> Path:
    return directory / "nowhere.txt"


def packer_that_raises(directory: Path) -> Path:
    raise OSError(28, "No space left on device", str(directory))


def packer_of_another_suffix(directory: Path) -> Path:
    return listing_packer(directory).rename(directory.with_suffix(".zip"))


def packer_of_nothing(directory: Path) -> Path:
    made = directory.with_suffix(".txt")
    made.touch()
    return made


def own(folder: Path, packer: Any, **values: Any) -> Pipeline:
    return pipeline(folder, packer=packer, archive_suffix=".txt", **values)


@pytest.mark.parametrize("slot_format", FORMATS)
def test_an_archive_holds_every_message_and_is_noted_with_its_digest(
    tmp_path: Path, slot_format: str
) -> None:
    settings = pipeline(tmp_path, slot_format=slot_format)
    slot = sealed(settings, FILES)
    packed = pack(slot, settings)
    archive = packed.file(settings.layout)
    content = archive.path.read_bytes()
    assert tar_files(archive.path) == FILES
    assert (archive.size_bytes, archive.sha256) == (
        len(content),
        hashlib.sha256(content).hexdigest(),
    )
    assert (packed.messages, packed.payload_bytes) == (len(FILES), sum(map(len, FILES.values())))
    assert archive.metadata == {
        "fuploader-partition": slot.seal.partition,
        "fuploader-messages": str(len(FILES)),
    }
    assert find_packed(settings.layout, slot.seal.partition) == packed


@pytest.mark.parametrize("slot_format", FORMATS)
def test_packing_again_gives_the_same_bytes_whatever_the_machine_has_done_meanwhile(
    tmp_path: Path, slot_format: str
) -> None:
    settings = pipeline(tmp_path, slot_format=slot_format, pack_threads=1)
    slot = sealed(settings, FILES)
    first = pack(slot, settings)
    content = first.file(settings.layout).path.read_bytes()
    forget_packed(settings.layout, slot.seal.partition, slot.seal.archive)
    assert list(settings.layout.archives.iterdir()) == []
    for path in slot.directory.rglob("*"):
        os.utime(path, (0, 0))
    again = pack(slot, pipeline(tmp_path, slot_format="segment", pack_threads=3))
    assert again == first
    assert again.file(settings.layout).path.read_bytes() == content


def test_both_formats_give_the_same_archive_for_the_same_messages(tmp_path: Path) -> None:
    digests = set()
    for slot_format in FORMATS:
        settings = pipeline(tmp_path / slot_format, slot_format=slot_format)
        digests.add(pack(sealed(settings, FILES), settings).sha256)
    assert len(digests) == 1


def test_what_is_packed_is_not_packed_again(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    slot = sealed(settings, FILES)
    packed = pack(slot, settings)
    before = packed.file(settings.layout).path.stat()
    assert pack(slot, settings) == packed
    assert packed.file(settings.layout).path.stat() == before


@pytest.mark.parametrize(
    "left", ["archive only", "note only", "torn note", "unreadable note", "cut archive"]
)
@pytest.mark.parametrize("packer", [None, listing_packer])
def test_whatever_a_crash_left_of_an_archive_is_packed_again(
    tmp_path: Path, left: str, packer: Any
) -> None:
    settings = own(tmp_path, packer) if packer else pipeline(tmp_path)
    slot = sealed(settings, FILES)
    packed = pack(slot, settings)
    archive = settings.layout.archives / slot.seal.archive
    note = settings.layout.archives / f"{slot.seal.partition}.packed.json"
    content, noted = archive.read_bytes(), note.read_bytes()
    if left == "archive only":
        note.unlink()
    elif left == "note only":
        archive.unlink()
    elif left == "torn note":
        note.write_bytes(noted[:-5])
    elif left == "unreadable note":
        note.write_bytes(b"\xff")
    else:
        archive.write_bytes(content[:-5])
    assert find_packed(settings.layout, slot.seal.partition) is None
    assert pack(slot, settings) == packed
    assert archive.read_bytes() == content
    assert note.read_bytes() == noted


@pytest.mark.parametrize("slot_format", FORMATS)
@pytest.mark.parametrize(
    "packer",
    [
        listing_packer,
        async_listing_packer,
        packer_that_removes_its_input,
        packer_that_moves_elsewhere,
    ],
)
def test_an_own_packer_gets_a_folder_with_real_files_and_spoils_nothing(
    tmp_path: Path, slot_format: str, packer: Any
) -> None:
    settings = own(tmp_path, packer, slot_format=slot_format)
    slot = sealed(settings, FILES)
    before = bytes_of(slot.directory)
    packed = pack(slot, settings)
    archive = packed.file(settings.layout)
    wanted = {f"{name} {hashlib.sha256(c).hexdigest()}" for name, c in FILES.items()}
    assert set(archive.path.read_text().splitlines()) == wanted
    assert not archive.path.is_symlink()
    assert archive.sha256 == hashlib.sha256(archive.path.read_bytes()).hexdigest()
    assert bytes_of(slot.directory) == before
    assert {path.name for path in settings.layout.archives.iterdir()} == {
        slot.seal.archive,
        f"{slot.seal.partition}.packed.json",
    }


def test_fuploaders_own_packer_works_as_it_is(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, packer=file_uploader.tar_zstd_packer)
    slot = sealed(settings, FILES)
    assert tar_files(pack(slot, settings).file(settings.layout).path) == FILES


@pytest.mark.parametrize("slot_format", FORMATS)
@pytest.mark.parametrize(
    ("packer", "said"),
    [
        (packer_that_returns_nothing, "returned None, which is not a file"),
        (packer_that_returns_the_folder, "which is not a file"),
        (packer_that_lies, "which is not a file"),
        (packer_that_raises, "raised OSError: "),
        (packer_that_spoils_its_input, "returned None"),
        (packer_of_another_suffix, r"which does not end in \.txt"),
        (packer_of_nothing, "wrote an empty file"),
    ],
)
def test_a_packer_that_misbehaves_is_named_and_the_slot_untouched(
    tmp_path: Path, slot_format: str, packer: Any, said: str
) -> None:
    settings = own(tmp_path, packer, slot_format=slot_format)
    slot = sealed(settings, FILES)
    before = bytes_of(slot.directory)
    with pytest.raises(StrategyError, match=rf"{packer.__name__} .*{said}"):
        pack(slot, settings)
    assert bytes_of(slot.directory) == before
    assert list(settings.layout.archives.iterdir()) == []
    assert pack(slot, own(tmp_path, listing_packer)).messages == len(FILES)


@pytest.mark.parametrize("slot_format", FORMATS)
@pytest.mark.parametrize("packer", [None, listing_packer])
def test_a_slot_that_was_changed_is_never_packed(
    tmp_path: Path, slot_format: str, packer: Any
) -> None:
    values: dict[str, Any] = {"slot_format": slot_format}
    settings = own(tmp_path, packer, **values) if packer else pipeline(tmp_path, **values)
    slot = sealed(settings, {"a.json": b"content", "b.json": b"other"})
    damaged = slot.files / "a.json" if slot_format == "files" else slot.segment
    damaged.write_bytes(damaged.read_bytes().replace(b"content", b"c0ntent"))
    before = bytes_of(slot.directory)
    with pytest.raises(DamagedSlot, match=r"a\.json"):
        pack(slot, settings)
    assert bytes_of(slot.directory) == before
    assert find_packed(settings.layout, slot.seal.partition) is None


@pytest.mark.parametrize("content", [b"content", b"c0ntent"])
def test_a_seal_without_a_digest_of_the_segment_has_each_message_compared(
    tmp_path: Path, content: bytes
) -> None:
    """As they were written before seals had one."""
    settings = pipeline(tmp_path)
    slot = sealed(settings, {"a.json": b"content", "b.json": b"other"})
    path = slot.directory / SEAL_NAME
    former = json.loads(path.read_bytes())
    del former["segment_xxh128"]
    path.write_text(json.dumps(former))
    slot.segment.write_bytes(slot.segment.read_bytes().replace(b"content", content))
    found = find_sealed(settings.layout, slot.seal.partition)
    assert found is not None
    if content == b"content":
        assert pack(found, settings).messages == 2
    else:
        with pytest.raises(DamagedSlot, match=r"a\.json"):
            pack(found, settings)


def test_forgetting_an_archive_may_be_repeated(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    forget_packed(settings.layout, "p", "a")
    slot = sealed(settings, FILES)
    pack(slot, settings)
    for _ in range(2):
        forget_packed(settings.layout, slot.seal.partition, slot.seal.archive)
        assert list(settings.layout.archives.iterdir()) == []


def reopened(slot: SealedSlot, settings: Pipeline) -> SealedSlot | None:
    return find_sealed(settings.layout, slot.seal.partition)


def test_one_bad_packer_fails_each_slot_on_its_own_and_is_noted(tmp_path: Path) -> None:
    settings = own(tmp_path, packer_that_returns_nothing)
    slots = [sealed(settings, {f"{n}.json": b"x"}) for n in range(3)]
    outcomes = list(ship(settings, settings.store.open()))
    assert [type(outcome) for outcome in outcomes] == [Failed] * 3
    assert all(isinstance(outcome, Failed) and outcome.permanent for outcome in outcomes)
    assert [reopened(slot, settings) for slot in slots] == slots
    mended = own(tmp_path, listing_packer)
    assert [type(outcome) for outcome in ship(mended, mended.store.open())] == [Done] * 3
    assert list(settings.layout.archives.iterdir()) == []
