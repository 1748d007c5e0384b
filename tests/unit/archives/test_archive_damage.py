"""Whatever happens to an archive: an error of ours with name or offset, and the rest is saved."""

from __future__ import annotations

import random
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuploader_dagster.archives.foreign import ForeignArchive
from fuploader_dagster.archives.manifest import Manifest, digest, encode
from fuploader_dagster.archives.manifest_pages import encode_pages, pages_frame
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.archives.reports import RestoreReport
from fuploader_dagster.archives.seek_table import seek_table
from fuploader_dagster.archives.writer import write_archive
from fuploader_dagster.errors import DamagedArchive, TooLarge
from tests.unit.archives.archives import InMemory, headers_for, payloads, segment
from tests.unit.archives.test_archive_reader import files_below

POSITIONS = 1000
FRAME = 8192


class Sound:
    """An intact archive, and what a part of it must still give."""

    def __init__(self, folder: Path, *, keeps_headers: bool) -> None:
        self.contents = payloads(120)
        self.path = folder / "a.tar.zst"
        headers = headers_for(self.contents) if keeps_headers else {}
        with segment(folder / "segment", self.contents, headers) as source:
            write_archive(self.path, source, frame_bytes=FRAME)
        self.bytes = self.path.read_bytes()
        with Archive.open(self.path) as archive:
            manifest = archive.manifest
            self.members = archive.members
        assert isinstance(manifest, Manifest)
        self.manifest = manifest
        self.frames = manifest.frames()

    def in_frames(self, start: int, stop: int) -> set[str]:
        """Members that have a byte in a frame that overlaps these bytes of the archive."""
        hit = [f for f in self.frames if f.offset < stop and f.offset + f.size_bytes > start]
        return {
            m.name
            for m in self.members
            for f in hit
            if m.offset < f.tar_offset + f.tar_bytes and m.end > f.tar_offset
        }


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "with headers"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    return Sound(tmp_path_factory.mktemp("sound"), keeps_headers=request.param)


def positions(sound: Sound) -> list[int]:
    """All of the last bytes, where the structure is dense, and a sample of the others."""
    size = len(sound.bytes)
    rng = random.Random(7)
    dense = range(size - POSITIONS // 4, size)
    return sorted({*dense, *rng.sample(range(size - POSITIONS // 4), POSITIONS * 3 // 4)})


def damage_of(content: bytes) -> str:
    """What `verify` says; every error must be one of ours and name a member or an offset."""
    with pytest.raises(DamagedArchive) as caught:
        Archive.open(InMemory(content)).verify(threads=1).raise_if_damaged()
    text = str(caught.value)
    assert re.search(r"offset \d+|'.+':|of the tar stream", text), text
    return text


def restored(content: bytes, folder: Path, wanted: Sound) -> tuple[set[str], RestoreReport]:
    """Names that `restore` got out; none of them may have other content than was packed."""
    report = Archive.open(InMemory(content)).restore(folder, threads=1)
    found = files_below(folder)
    assert found.items() <= wanted.contents.items()
    assert report.restored == len(found)
    return set(found), report


def test_a_flipped_bit_is_found_at_every_position(sound: Sound) -> None:
    rng = random.Random(1)
    for at in positions(sound):
        content = bytearray(sound.bytes)
        content[at] ^= 1 << rng.randrange(8)
        damage_of(bytes(content))


def test_a_flipped_bit_costs_the_members_of_one_frame(sound: Sound, tmp_path: Path) -> None:
    """Verify names exactly these; restore gets out all others, with the right content."""
    for number, at in enumerate(positions(sound)[::25]):
        content = bytearray(sound.bytes)
        content[at] ^= 0x10
        lost = sound.in_frames(at, at + 1)
        named = {
            d.member for d in Archive.open(InMemory(bytes(content))).verify().damages if d.member
        }
        assert named == lost
        found, report = restored(bytes(content), tmp_path / str(number), sound)
        assert found == set(sound.contents) - lost
        assert {d.member for d in report.damages if d.member} == lost


def test_a_cut_off_archive_is_found_at_every_position(sound: Sound) -> None:
    for number, at in enumerate(positions(sound)):
        damage_of(sound.bytes[:at])
        if number % 10 == 0:
            with pytest.raises(DamagedArchive):
                _ = Archive.open(InMemory(sound.bytes[:at])).members


def test_restoring_a_cut_off_archive_recovers_all_members_of_its_whole_frames(
    sound: Sound, tmp_path: Path
) -> None:
    for number, at in enumerate(positions(sound)[::25]):
        found, report = restored(sound.bytes[:at], tmp_path / str(number), sound)
        assert found == set(sound.contents) - sound.in_frames(at, len(sound.bytes))
        assert report.damages


def test_trailing_garbage_is_found_and_costs_nothing(sound: Sound, tmp_path: Path) -> None:
    rng = random.Random(3)
    for number in range(40):
        garbage = rng.choice(
            [bytes(number + 1), rng.randbytes(1 + 37 * number), b"\x28\xb5\x2f\xfd"]
        )
        damage_of(sound.bytes + garbage)
        if number % 8 == 0:
            found, _ = restored(sound.bytes + garbage, tmp_path / str(number), sound)
            assert found == set(sound.contents)


def test_two_archives_in_one_file_are_damage(sound: Sound) -> None:
    damage_of(sound.bytes + sound.bytes)


def test_missing_and_exchanged_bytes_are_found(sound: Sound) -> None:
    """A block that is missing, zeroed, repeated or in another place, as disks and proxies do it."""
    rng = random.Random(5)
    for _ in range(150):
        size = rng.choice([1, 100, 512, 4096])
        at = rng.randrange(len(sound.bytes) - size)
        to = rng.randrange(len(sound.bytes) - size)
        block = sound.bytes[at : at + size]
        for changed in (
            sound.bytes[:at] + sound.bytes[at + size :],
            sound.bytes[:at] + bytes(size) + sound.bytes[at + size :],
            sound.bytes[:at] + block + sound.bytes[at:],
            sound.bytes[:to] + block + sound.bytes[to + size :],
        ):
            if changed != sound.bytes:
                damage_of(changed)


def test_damage_in_the_middle_of_an_archive_without_its_end_costs_one_frame(
    sound: Sound, tmp_path: Path
) -> None:
    """No manifest and a damaged frame: reading goes on at the next frame."""
    cut = sound.manifest.pages_offset - 10
    last = sound.in_frames(cut, len(sound.bytes))
    for number, at in enumerate(range(0, cut - 1, cut // 20)):
        content = bytearray(sound.bytes[:cut])
        content[at] ^= 0x10
        found, _ = restored(bytes(content), tmp_path / str(number), sound)
        assert found == set(sound.contents) - last - sound.in_frames(at, at + 1)


def test_a_damaged_member_is_not_read_and_its_neighbours_are(sound: Sound) -> None:
    frame = sound.frames[len(sound.frames) // 2]
    content = bytearray(sound.bytes)
    content[frame.offset + 20] ^= 1
    archive = Archive.open(InMemory(bytes(content)))
    lost = sound.in_frames(frame.offset, frame.offset + 1)
    for name, payload in sound.contents.items():
        if name in lost:
            with pytest.raises(DamagedArchive, match=f"^{re.escape(repr(name))}: .*offset"):
                archive.read(name)
        else:
            assert archive.read(name) == payload


def test_a_report_with_damage_raises_the_first_and_counts_the_others(sound: Sound) -> None:
    archive = Archive(InMemory(sound.bytes[:100] + b"?" + sound.bytes[101:]))
    with pytest.raises(DamagedArchive, match=r"and \d+ more.*restore recovers"):
        archive.verify().raise_if_damaged()


@given(st.data())
@settings(max_examples=200)
def test_any_bytes_at_all_cause_only_errors_of_ours(data: st.DataObject) -> None:
    """Random bytes behind a beginning of an archive, or around pieces of zstd and tar."""
    pieces = st.sampled_from(
        [
            b"\x28\xb5\x2f\xfd",
            b"\x5d\x2a\x4d\x18",
            b"\x5e\x2a\x4d\x18",
            b"\xb1\xea\x92\x8f",
            b"PK\x03\x04",
            b"PAR1",
            bytes(64),
        ]
    )
    content = b"".join(data.draw(st.lists(st.one_of(st.binary(max_size=60), pieces), max_size=20)))
    archive = Archive.open(InMemory(content))
    for look in (archive.verify, archive.listing):
        try:
            assert look().damages
        except (DamagedArchive, ForeignArchive, TooLarge):
            # They begin like another kind of archive, whole or cut off, or like a frame with a
            # window that is larger than allowed.
            assert content


def rebuilt(sound: Sound, **changes: object) -> bytes:
    """The archive with another manifest: right digests over wrong statements."""
    manifest = msgspec.structs.replace(sound.manifest, **changes)
    packed = encode(manifest)
    return b"".join(
        [
            sound.bytes[: sound.manifest.offset],
            packed,
            manifest.end_frame,
            seek_table(manifest, len(packed)),
        ]
    )


@pytest.mark.parametrize("wrong", ["digest", "name", "size"])
@pytest.mark.parametrize("name", ["消息.json", "very large.bin"])
def test_a_manifest_that_does_not_match_the_members_is_damage(
    sound: Sound, name: str, wrong: str
) -> None:
    """Frames are sound, but a member has another digest, name or size than the manifest says."""
    members = [*sound.members]
    i = next(i for i, m in enumerate(members) if m.name == name)
    digests = [m.digest or b"" for m in members]
    names = [m.name for m in members]
    sizes = [m.size_bytes for m in members]
    if wrong == "digest":
        digests[i] = bytes(16)
    elif wrong == "name":
        names[i] = "other" + names[i][5:]
    else:
        sizes[i] -= 1
    lengths = [m.end - m.offset for m in members]
    headers = [m.headers for m in members]
    pages = encode_pages(names, sizes, lengths, b"".join(digests), headers)
    manifest = msgspec.structs.replace(
        sound.manifest,
        page_sizes=[len(p) for p in pages],
        page_digests=b"".join(map(digest, pages)),
    )
    packed = encode(manifest)
    content = b"".join(
        [
            sound.bytes[: sound.manifest.pages_offset],
            pages_frame(pages),
            packed,
            manifest.end_frame,
            seek_table(manifest, len(packed)),
        ]
    )
    archive = Archive.open(InMemory(content))
    assert [d.member for d in archive.verify().damages] == [names[i]]
    with pytest.raises(DamagedArchive, match="of the tar stream of memory is wrong"):
        archive.read(names[i])
    assert archive.read("last.json") == b"{}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frame_digests": b""}, "columns of different lengths"),
        ({"page_digests": b""}, "columns of different lengths"),
        ({"member_count": 7}, "a page of 128 of its 7 members"),
        ({"member_count": 129}, "add up to different sizes"),
        ({"member_count": 2**40}, "more members than its frames have room for"),
        ({"payload_bytes": -1}, "more members than its frames have room for"),
        ({"end_frame": b"x" * 23}, "end of tar|bytes are missing|end frame"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_damage(
    sound: Sound, changes: dict[str, object], words: str
) -> None:
    assert re.search(words, damage_of(rebuilt(sound, **changes)))


def test_a_newer_version_of_the_format_is_named(sound: Sound) -> None:
    content = bytearray(sound.bytes)
    content[sound.manifest.offset + 15] = 4
    assert "format version 4, this program reads 1 to 3" in damage_of(bytes(content))
    content[sound.manifest.offset + 15] = 3 - sound.bytes[sound.manifest.offset + 15]
    assert "does not match its own digest" in damage_of(bytes(content))
