"""Taking over what FUploader left: the plan, and steps that may be killed and repeated anywhere."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import file_uploader
import pytest
import zstandard

from fuploader_dagster.delivery.attempts import Done
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.disk import crash_points
from fuploader_dagster.disk.crash_points import CrashPoint
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.intake.leftovers import key_prefixes, left_in_folder
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.takeover import Takeover
from fuploader_dagster.slots.dedup_window import DedupWindow
from fuploader_dagster.takeover.former_redis import FormerKeys, read_keys
from fuploader_dagster.takeover.plan import (
    Left,
    LeftArchive,
    LeftDirectory,
    LeftFile,
    Remove,
    SetAside,
    TakeArchive,
    plan,
)
from fuploader_dagster.takeover.run import examine, take_over
from fuploader_dagster.takeover.staging import taken_over
from tests.lives import pack_by_hand
from tests.settings import archived_files, pipeline

SEVEN_ZIP = b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(4) + (0).to_bytes(8, "little") + bytes(12)
NAMES = ["a.json", "b.txt", "c.bin", "d", "ä ö.json"]
SOURCES = (
    "slot_0_0",
    "slot_1_7",
    "active/slot-0/dir-000003",
    "sealed/slot-0/dir-000001",
    "sealed/slot-1/dir-000001",
    "sealed/.pool",
)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def pack_as_fuploader(directory: Path, name: str = "") -> Path:
    """FUploader's own packer on a directory, and its own name for what is to be uploaded."""
    made = asyncio.run(file_uploader.tar_zstd_packer(directory))
    assert made is not None
    return made.rename(made.with_name(name)) if name else made


def leave(root: Path) -> dict[str, bytes]:
    """What a FUploader of either layout can leave; returns all files that must get through."""
    wanted = {}
    for number, source in enumerate(SOURCES):
        for name in NAMES:
            content = f"{number} {name}".encode() * (number + 1)
            write(root / source / f"{number}-{name}", content)
            wanted[f"{number}-{name}"] = content
    write(root / "slot_0_0/below/inner.json", b"inner")
    write(root / "sealed/slot-1/loose.json", b"loose")
    write(root / "slot_0_0/2-a.json", (root / "active/slot-0/dir-000003/2-a.json").read_bytes())
    (root / "active/slot-5/dir-000001").mkdir(parents=True)
    pack_as_fuploader(root / "slot_1_7")
    torn = pack_as_fuploader(root / "sealed/slot-0/dir-000001")
    os.truncate(torn, torn.stat().st_size // 2)
    orphan = root / "sealed/slot-0/dir-000009"
    write(orphan / "orphan.json", b"orphan")
    pack_as_fuploader(orphan, "20261120_101112_131415_0a1b2c3d.tar.zst")
    shutil.rmtree(orphan)
    partly = root / "slot_3_3"
    write(partly / "3-a.json", (root / "sealed/slot-0/dir-000001/3-a.json").read_bytes())
    write(partly / "only there.json", b"only there")
    pack_as_fuploader(partly)
    shutil.rmtree(partly)
    return {
        **wanted,
        "below/inner.json": b"inner",
        "loose.json": b"loose",
        "orphan.json": b"orphan",
        "only there.json": b"only there",
    }


def contents(folder: Path) -> Counter[tuple[str, bytes]]:
    """Name and bytes of everything in the archives; FUploader's have their directory's name."""
    found: Counter[tuple[str, bytes]] = Counter()
    for path in folder.rglob("*.tar.zst"):
        reader = zstandard.ZstdDecompressor().stream_reader(
            path.read_bytes(), read_across_frames=True
        )
        with tarfile.open(fileobj=io.BytesIO(reader.read())) as members:
            for member in members:
                if file := members.extractfile(member):
                    found[(member.name.removeprefix("dir-000009/"), file.read())] += 1
    return found


def ship_all(settings: Pipeline) -> None:
    outcomes = list(ship(settings, settings.store.open()))
    assert all(isinstance(one, Done) for one in outcomes), outcomes


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_everything_that_fuploader_left_is_stored_once_and_its_folders_are_gone(
    tmp_path: Path,
) -> None:
    root = tmp_path / "data"
    wanted = leave(root)
    write(root / "backup.tar.zst", b"somebody else's")
    write(root / "notes/slot_0_0/mine.txt", b"somebody else's")
    write(root / "slot_9_9.tar.zst", b"\x28\xb5\x2f\xfd torn")
    (root / "slot_1_7/link").symlink_to("/etc/passwd")
    odd = os.fsdecode(b"\xff.bin")
    write(root / "slot_0_0" / odd, b"odd")
    settings = pipeline(tmp_path)
    assert left_in_folder(settings)
    sealed = take_over(settings)
    ship_all(settings)
    wanted["\\xff.bin"] = b"odd"
    assert contents(tmp_path / "objects") == Counter(wanted.items())
    assert {path.name for path in root.iterdir()} == {"docs", "notes", "backup.tar.zst"}
    aside = [path.name.partition("-")[2] for path in settings.layout.set_aside.iterdir()]
    assert sorted(aside) == ["link", "slot_9_9.tar.zst"]
    assert {one.partition for one in taken_over(settings.layout)} >= {
        slot.seal.partition for slot in sealed
    }
    assert not left_in_folder(settings)
    assert take_over(settings) == []


def test_an_examination_changes_nothing(tmp_path: Path) -> None:
    leave(tmp_path / "data")
    before = tree(tmp_path)
    found = examine(pipeline(tmp_path))
    assert found.files == sum(len(step.directory.files) for step in found.adopt) - 1
    assert tree(tmp_path) == before


class Killed(BaseException):
    """No code catches it."""


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder on a file system where a sync costs nothing."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def take_over_killed_at(settings: Pipeline, number: int) -> bool:
    """Whether it came to this step, and so was killed after it."""
    passed = 0

    def count(_: CrashPoint) -> None:
        nonlocal passed
        passed += 1
        if passed == number:
            raise Killed

    crash_points.observe(count)
    try:
        take_over(settings, stopped=True)
    except Killed:
        return True
    finally:
        crash_points.observe(None)
    return False


def test_killed_after_any_step_the_next_take_over_ends_as_if_nothing_had_been(
    memory: Path,
) -> None:
    wanted = leave(memory / "original")
    number = 1
    while True:
        folder = memory / str(number)
        shutil.copytree(memory / "original", folder / "data")
        settings = pipeline(folder)
        if not take_over_killed_at(settings, number):
            break
        take_over(settings, stopped=True)
        ship_all(settings)
        assert contents(folder / "objects") == Counter(wanted.items()), number
        assert [path.name for path in (folder / "data").iterdir()] == ["docs"], number
        shutil.rmtree(folder)
        number += 1
    assert number > 100


def test_what_fuploader_stored_and_had_not_yet_removed_is_not_stored_again(tmp_path: Path) -> None:
    root, objects = tmp_path / "data", tmp_path / "objects/docs/20261121"
    names = [f"{number}.json" for number in range(9)]
    for directory in ("slot_0_1", "slot_0_2", "slot_0_3"):
        for name in names:
            write(root / directory / name, f"{directory} {name}".encode())
    objects.mkdir(parents=True)
    stamps = [f"20991231_235959_{n:06d}_0a1b2c3d.tar.zst" for n in range(2)]
    removed = pack_as_fuploader(root / "slot_0_1", stamps[0])
    removed.rename(objects / stamps[0])  # its archive is gone, its directory half
    (root / "slot_0_1/3.json").unlink()
    uploaded = pack_as_fuploader(root / "slot_0_2", stamps[1])
    shutil.copy(uploaded, objects / stamps[1])
    write(root / "slot_0_2/late.json", b"written when it was packed already")
    settings = pipeline(tmp_path, takeover=Takeover(stored_below="docs/"))
    sealed = take_over(settings)
    assert sorted(slot.seal.messages for slot in sealed) == [1, 9]
    window = DedupWindow(settings.layout, 1_000_000)
    window.refresh()  # 3.json is nowhere here any more, and may come again from the queue
    assert window.holds("3.json", digest(b"slot_0_1 3.json"))
    assert not window.holds("4.json", digest(b"slot_0_1 3.json"))
    ship_all(settings)
    found = Counter(name.rpartition("/")[2] for name, _ in contents(tmp_path / "objects"))
    assert found == {**dict.fromkeys(names, 3), "late.json": 1}


def test_another_file_system_is_copied_compared_and_then_removed(
    tmp_path: Path, memory: Path
) -> None:
    wanted = leave(memory)
    settings = pipeline(tmp_path, takeover=Takeover(root=memory))
    assert memory.stat().st_dev != tmp_path.stat().st_dev
    take_over(settings)
    ship_all(settings)
    assert contents(tmp_path / "objects") == Counter(wanted.items())
    assert not list(memory.iterdir())


def test_an_archive_of_another_packer_is_shipped_as_it_is(tmp_path: Path) -> None:
    name = "20261120_101112_131415_0a1b2c3d.tar.zst"
    write(tmp_path / "data" / name, SEVEN_ZIP)
    write(tmp_path / "data/slot_0_0.7z", SEVEN_ZIP[:20])
    settings = pipeline(tmp_path)
    (sealed,) = take_over(settings)
    ship_all(settings)
    (stored,) = (tmp_path / "objects").rglob("*.tar.zst")
    assert stored.read_bytes() == SEVEN_ZIP
    assert sealed.seal.archive == stored.name
    (aside,) = settings.layout.set_aside.iterdir()
    assert aside.read_bytes() == SEVEN_ZIP[:20]


def test_a_pipeline_whose_folder_would_be_fuploaders_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name that FUploader uses"):
        take_over(pipeline(tmp_path, name="active"))


def test_names_that_are_no_text_get_through_also_where_the_text_is_too_long_or_taken(
    tmp_path: Path,
) -> None:
    names = [b"x" * 250 + b"\xff", b"\xff", rb"\xff", b"\xfe/a", rb"\xfe", b"\xfd"]
    for number, name in enumerate(names):
        write(tmp_path / "data/slot_0_0" / os.fsdecode(name), b"%d" % number)
    (slot,) = take_over(pipeline(tmp_path))
    found = {entry.name: (slot.files / entry.name).read_bytes() for entry in slot.entries()}
    assert sorted(found.values()) == [b"%d" % number for number in range(len(names))]
    assert (found[r"\xff"], found[r"\xfe"], found[r"\xfd"]) == (b"2", b"4", b"5")


def test_damaged_notes_of_an_earlier_take_over_do_not_stop_the_next_one(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    staged = settings.layout.root / "adopting/slot-9999/dir-000001"
    write(staged / "files/a.json", b"{}")
    write(staged / "origin.json", b"\xff" + b"[" * 5000)
    line = b'{"source":"s","partition":"no-key","files":1,"at":""}\n'
    write(settings.layout.root / "taken-over.jsonl", line + b"\xff\n")
    (slot,) = take_over(settings)
    assert [entry.name for entry in slot.entries()] == ["a.json"]
    assert not left_in_folder(settings)


def file(name: str, content: bytes = b"x") -> LeftFile:
    return LeftFile(Path("/r") / name, name, len(content), digest(content), 0.0)


def digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def archive(state: Any, *members: str, **values: Any) -> LeftArchive:
    path = Path("/r/sealed/slot-0/x.tar.zst")
    return LeftArchive(
        path, "x.tar.zst", state, tuple((name, digest(b"x"), 1) for name in members), **values
    )


@pytest.mark.parametrize(
    ("one", "decision", "because"),
    [
        (archive("whole", "new"), TakeArchive, ""),
        (archive("whole", "here"), Remove, "adopted or stored"),
        (archive("whole", "here", "stored"), Remove, "adopted or stored"),
        (archive("whole", "here", others=True), SetAside, "links"),
        (archive("whole", others=True), SetAside, "links"),
        (archive("whole", "here", "new", others=True), TakeArchive, ""),
        (archive("whole", "new", stored_as="s3://b/x"), Remove, "stored as s3://b/x"),
        (archive("torn"), SetAside, "incomplete"),
        (archive("torn", directory_there=True), Remove, "being made"),
        (archive("foreign"), TakeArchive, ""),
        (archive("foreign", siblings=True), SetAside, "may hold"),
        (archive("unknown"), SetAside, "nothing shows"),
        (archive("unknown", directory_there=True), Remove, "being made"),
    ],
)
def test_the_decision_about_an_archive(one: LeftArchive, decision: type, because: str) -> None:
    here = LeftDirectory(Path("/r/slot_0_0"), "slot_0_0", "flat", (file("here"),))
    stored = {("stored", digest(b"x")): "s3://b/y"}
    made = plan(Left(Path("/r"), (here,), (one,), stored=stored))
    (step,) = (*made.archives, *made.remove, *made.aside)
    assert type(step) is decision
    assert because in getattr(step, "because", "")


def test_of_a_partly_known_archive_only_the_rest_is_taken() -> None:
    here = LeftDirectory(Path("/r/slot_0_0"), "slot_0_0", "flat", (file("here"),))
    (step,) = plan(Left(Path("/r"), (here,), (archive("whole", "here", "new"),))).archives
    assert step.only == {"new"}


def test_an_archive_of_links_only_is_set_aside(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "slot_0_0").mkdir(parents=True)
    (root / "slot_0_0/link").symlink_to("somewhere")
    command = ["tar", "--zstd", "-cf", "slot_0_0.tar.zst", "slot_0_0", "--remove-files"]
    subprocess.run(command, cwd=root, check=True)
    made = (root / "slot_0_0.tar.zst").read_bytes()
    settings = pipeline(tmp_path)
    assert take_over(settings) == []
    (aside,) = settings.layout.set_aside.iterdir()
    assert aside.read_bytes() == made


def tar_of(members: dict[str, bytes], folder: Path) -> Path:
    """An archive of FUploader's name with members of any name."""
    path = folder / "20261120_234501_123456_1a2b3c4d.tar.zst"
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    path.write_bytes(zstandard.ZstdCompressor().compress(raw.getvalue()))
    return path


@pytest.mark.parametrize(
    "name",
    [
        "slot_0_1/{outside}/evil",
        "slot_0_1/../../../evil",
        "slot_0_1/a/../../../../evil",
        "slot_0_1/way/../../../evil",
        "slot_0_1/" + "deep/" * 14000,
    ],
)
def test_a_left_archive_whose_names_lead_elsewhere_is_kept_whole_and_writes_nothing_outside(
    name: str, tmp_path: Path
) -> None:
    """Beside files that are known already: only then an archive is unpacked."""
    settings = pipeline(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    write(settings.storage_root / "slot_0_1" / "known.json", b"known")
    evil = {"slot_0_1/known.json": b"known", name.format(outside=f"/{outside}"): b"evil"}
    archive = tar_of({**evil, "slot_0_1/new.json": b"new"}, settings.storage_root)
    made = archive.read_bytes()
    take_over(settings, stopped=True)
    ship_all(settings)
    assert list(outside.iterdir()) == []
    assert not list(tmp_path.rglob("evil"))
    kept = [*settings.layout.set_aside.glob("*"), *(tmp_path / "objects").rglob("*")]
    assert made in [path.read_bytes() for path in kept if path.is_file()]


def test_links_with_names_of_fuploaders_are_not_followed_and_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = pipeline(tmp_path)
    root, elsewhere = settings.storage_root, tmp_path / "elsewhere"
    write(elsewhere / "slot-0" / "dir-000001" / "theirs", b"theirs")
    write(root / "slot_0_1" / "ours", b"ours")
    (root / "sealed" / "slot-2").mkdir(parents=True)
    made = {
        root / "active": elsewhere,
        root / "slot_0_2": elsewhere / "slot-0" / "dir-000001",
        root / "sealed" / "slot-1": elsewhere / "slot-0",
        root / "sealed" / "slot-2" / "dir-000001": elsewhere / "slot-0" / "dir-000001",
        root / "20261120_234501_123456_1a2b3c4d.tar.zst": elsewhere / "slot-0",
    }
    for link, target in made.items():
        link.symlink_to(target)
    take_over(settings, stopped=True)
    ship_all(settings)
    assert archived_files(tmp_path / "objects") == {"ours": [b"ours"]}
    assert (elsewhere / "slot-0" / "dir-000001" / "theirs").read_bytes() == b"theirs"
    for link in made:
        assert link.is_symlink()
        assert f"{link} is a symbolic link; it is left alone" in caplog.text


def test_a_custom_packer_gets_the_folders_in_an_adopted_directory_too(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, packer=pack_by_hand)
    contents = {"a.json": b"a", "inner/b.json": b"b", "inner/most/c": b"c"}
    for name, content in contents.items():
        write(settings.storage_root / "slot_0_1" / name, content)
    (slot,) = take_over(settings, stopped=True)
    assert {entry.name for entry in slot.entries()} == set(contents)
    ship_all(settings)
    assert archived_files(tmp_path / "objects") == {name: [c] for name, c in contents.items()}


LEGACY = {
    "t:meta:n:slot:0:active_dir": "dir-000002",
    "t:meta:n:slot:0:active_count": "3",
    "t:meta:n:slot:0:dir_seq": "2",
    "t:meta:n:sealed_ready": ["slot-0:dir-000001", "0:dir-000001", "nonsense"],
    "t:meta:n:pack_lock:slot-0:dir-000001": "token",
    "t:meta:n:somebody": "else's",
}


def test_keys_are_forgotten_only_where_they_name_something_that_is_or_was_here() -> None:
    keys = read_keys("t:meta:n:", LEGACY)
    assert keys.active == {0: "dir-000002"}
    assert keys.ready == ((0, "dir-000001"), (0, "dir-000001"))
    known = set(LEGACY) - {"t:meta:n:somebody"}
    for taken, expected in (("sealed/slot-0/dir-000001", known), ("slot_0_0", set())):
        made = plan(Left(Path("/r"), keys=(keys,), taken_before=frozenset([taken])))
        assert set(made.forget) == expected
        assert bool(made.remarks) is not bool(expected)


@pytest.mark.parametrize(
    ("named", "here", "forgotten"),
    [
        ("slot_0_1", "slot_0_1", True),
        ("slot_0_1", "slot_0_0", True),
        ("slot_0_2", "slot_0_0", True),
        ("slot_0_10", "slot_0_9", True),
        ("slot_0_100", "slot_0_98", True),
        ("dir-000010", "sealed/slot-0/dir-000009", True),
        ("dir-1000000", "sealed/slot-0/dir-999999", True),
        ("slot_0_3", "slot_0_0", False),
        ("slot_0_1", "slot_0_2", False),
        ("slot_0_1", "slot_1_0", False),
        ("dir-000001", "sealed/slot-1/dir-000001", False),
        ("dir-000001", "slot_0_0", True),
        ("dir-000001", "slot_1_0", False),
        ("dir-000002", "slot_0_0", False),
    ],
)
def test_keys_may_name_the_directory_that_was_about_to_be_made(
    named: str, here: str, forgotten: bool
) -> None:
    keys = read_keys("t:meta:n:", {"t:meta:n:slot:0:active_dir": named})
    left = LeftDirectory(Path("/r", here), here, "flat", (file("a"),))
    assert bool(plan(Left(Path("/r"), (left,), keys=(keys,))).forget) is forgotten


def test_both_styles_of_keys_are_read(tmp_path: Path) -> None:
    default = {
        "p:slot:1": {"active_dir_id": "slot_1_4", "active_count": "2", "dir_seq": "4"},
        "p:queue:ready": ["1:slot_1_3"],
        "p:runtime:initialized": "1",
        "p:slot:names": "somebody else's",
    }
    found = read_keys("p:", default)
    assert found == FormerKeys(
        "p:",
        ("p:queue:ready", "p:runtime:initialized", "p:slot:1"),
        {1: "slot_1_4"},
        ((1, "slot_1_3"),),
    )
    former = Takeover(task_name="t", node_id="box-meta-p3", key_prefix="p:")
    assert key_prefixes(pipeline(tmp_path, takeover=former)) == ["t:meta:box:", "p:"]
    ours = pipeline(tmp_path, node_id="box", takeover=Takeover(key_prefix=""))
    assert key_prefixes(ours)[0] == "docs:meta:box:"
    assert all(one.startswith("docs:meta:") for one in key_prefixes(ours))
